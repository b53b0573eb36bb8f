//! What peers can have a host keep for them: objects, promises, and calls that they do not answer.

use capnp_rpc::rpc_capnp::message;
use futures::FutureExt as _;
use kiln_api::{Admin, Limits, MetricsSource};

use crate::behaviour::description;
use crate::crafted::{JOB_ID, TICKET_ID, job, register_promise};
use crate::raw::{Heard, On, Raw, references};
use crate::world::{ADMIN, Host, JOB, POOL, REGISTRATION, SUBMISSION, id, nobody, plain, with_host};

/// Few references.
fn sparing() -> Limits {
    Limits { references: 100, ..Limits::default() }
}

fn finish(root: message::Builder<'_>, question: u32, lets_go: bool) {
    let mut finish = root.init_finish();
    finish.set_question_id(question);
    finish.set_release_result_caps(lets_go);
}

/// Waits for an answer.
async fn until_answered(raw: &mut Raw, question: u32) -> Heard {
    loop {
        let heard = raw.hear().await.expect("an answer");
        if heard.summary() == format!("return {question}: results") {
            return heard;
        }
    }
}

#[tokio::test]
async fn objects_that_are_never_let_go_have_a_limit() {
    plain(sparing(), async |host| {
        let too_many = "abort: more than 100 references to objects here at once";
        // Each answer is finished, and what came with it is kept.
        let mut raw = Raw::connect(&host.uri).await;
        for _ in 0..=100 {
            raw.bootstrap(0, POOL).await;
            until_answered(&mut raw, 0).await;
            raw.say(|root| finish(root, 0, false)).await;
        }
        assert_eq!(raw.hear_all().await, [too_many]);
        // So is the answer, in which it is.
        let mut raw = Raw::connect(&host.uri).await;
        for question in 0..=100 {
            raw.bootstrap(question, POOL).await;
            until_answered(&mut raw, question).await;
        }
        assert_eq!(raw.hear_all().await, [too_many]);
        // Promises of which it is not known yet what they are.
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, SUBMISSION).await;
        for _ in 0..99 {
            raw.bytes(&job(1)).await;
            raw.call(2, On::Answer(1, Some(0)), TICKET_ID, 0).await;
            until_answered(&mut raw, 2).await;
            raw.say(|root| finish(root, 1, true)).await;
            raw.say(|root| finish(root, 2, false)).await;
        }
        raw.bytes(&job(1)).await;
        assert_eq!(raw.hear_all().await.last().map(String::as_str), Some(too_many));
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn objects_that_are_let_go_do_not_count() {
    plain(sparing(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, POOL).await;
        raw.hear().await.expect("an answer");
        for _ in 0..200 {
            raw.bootstrap(1, POOL).await;
            raw.hear().await.expect("an answer");
            raw.finish(1).await;
        }
        for _ in 0..200 {
            raw.bootstrap(1, POOL).await;
            let heard = raw.hear().await.expect("an answer");
            let id = references(&heard)[0];
            raw.say(|root| finish(root, 1, false)).await;
            raw.say(|root| {
                let mut release = root.init_release();
                release.set_id(id);
                release.set_reference_count(1);
            })
            .await;
        }
        raw.bootstrap(1, b"nothing").await;
        assert_eq!(raw.hear().await.expect("it is there").summary(), "return 1: Unknown persistent service ID");
    })
    .await;
}

#[tokio::test]
async fn a_program_that_lets_go_of_what_it_had_may_ask_for_more() {
    plain(sparing(), async |host| {
        let connection = host.connect().await;
        let submission: kiln_api::Submission = connection.bootstrap(&id(SUBMISSION));
        let admin: Admin = connection.bootstrap(&id(ADMIN));
        for _ in 0..200 {
            let ticket = submission.submit(b"a", &description(), false).expect("it is small");
            let job = ticket.job();
            drop((ticket, job));
            admin.pool(b"a").show().await.expect("an answer");
        }
        // As a worker, which gives references, and has them let go.
        let registration: kiln_api::Registration = connection.bootstrap(&id(REGISTRATION));
        for _ in 0..200 {
            let queue = registration.register(b"w", nobody(), 1).await.expect("it is welcome");
            let worker = host.world.worker.borrow().clone().expect("it registered");
            worker.metrics(MetricsSource::Agent).await.expect("an answer");
            // What is not waited for is given up.
            assert!(worker.metrics(MetricsSource::Agent).now_or_never().is_none());
            drop(queue);
        }
        admin.pools().await.expect("an answer");
        connection.close().await;
    })
    .await;
}

#[tokio::test]
async fn objects_of_a_peers_own_that_it_has_the_host_refer_to_have_a_limit() {
    plain(sparing(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, JOB).await;
        // Each comes with a call that waits.
        for question in 1..=2 {
            raw.say(|root| {
                let mut call = root.init_call();
                call.set_question_id(question);
                call.set_interface_id(JOB_ID);
                call.set_method_id(1);
                call.reborrow().init_target().init_promised_answer();
                let mut references = call.init_params().init_cap_table(60);
                for index in 0..60 {
                    references.reborrow().get(index).set_sender_hosted(60 * question + index);
                }
            })
            .await;
        }
        let heard = raw.hear_all().await;
        assert_eq!(heard, ["return 0: results", "abort: more than 100 references to objects there at once"]);
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_not_asked_for_ever() {
    let limits = Limits { calls: 100, ..Limits::default() };
    plain(limits, async |host| {
        let mut raw = promised_worker(&host).await;
        let worker = host.world.worker.borrow().clone().expect("it registered");
        for _ in 0..200 {
            // Nobody waits for the answer, and the question is in the table nevertheless.
            assert!(worker.metrics(MetricsSource::Agent).now_or_never().is_none());
        }
        let heard = raw.hear_all().await;
        assert_eq!(heard.last().map(String::as_str), Some("abort: more than 100 calls without an answer at once"));
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn promises_that_become_objects_of_the_host_have_a_limit() {
    plain(Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, REGISTRATION).await;
        let (mut own, mut last) = (None, String::new());
        for promise in 1.. {
            raw.say(|root| register_promise(root, promise, promise)).await;
            let heard = loop {
                match raw.hear().await {
                    Some(heard) if heard.summary() == format!("return {promise}: results") => break Some(heard),
                    Some(heard) => last = heard.summary(),
                    None => break None,
                }
            };
            let Some(heard) = heard else { break };
            let own = *own.get_or_insert(references(&heard)[0]);
            // It is called before it is known that it is an object of the host's.
            let worker = host.world.worker.borrow().clone().expect("it registered");
            tokio::task::spawn_local(worker.metrics(MetricsSource::Agent));
            raw.say(|root| {
                let mut resolve = root.init_resolve();
                resolve.set_promise_id(promise);
                resolve.init_cap().set_receiver_hosted(own);
            })
            .await;
        }
        assert_eq!(last, "abort: more than 64 embargoes at once");
        host.is_well().await;
    })
    .await;
}

/// Registers a worker that is a promise, and returns its connection when the host has it.
async fn promised_worker(host: &Host) -> Raw {
    let mut raw = Raw::connect(&host.uri).await;
    raw.bootstrap(0, REGISTRATION).await;
    raw.hear().await.expect("an answer");
    raw.say(|root| register_promise(root, 1, 5)).await;
    assert_eq!(raw.hear().await.expect("an answer").summary(), "return 1: results");
    raw
}

fn resolve(root: message::Builder<'_>, promise: u32, next: u32) {
    let mut resolve = root.init_resolve();
    resolve.set_promise_id(promise);
    resolve.init_cap().set_sender_promise(next);
}

#[tokio::test]
async fn promises_that_are_never_kept_do_not_keep_the_host_busy() {
    let world = with_host(None, Limits::default(), async |host| {
        // To itself; in a circle; and so many that following them would need more stack than there is.
        let chains: [Vec<(u32, u32)>; 3] =
            [vec![(5, 5)], vec![(5, 6), (6, 5), (5, 6), (6, 5), (5, 5)], (5..200_000).map(|id| (id, id + 1)).collect()];
        for chain in chains {
            let mut raw = promised_worker(&host).await;
            let worker = host.world.worker.borrow().clone().expect("it registered");
            for (promise, next) in chain {
                raw.say(|root| resolve(root, promise, next)).await;
            }
            raw.gone().await;
            worker.metrics(MetricsSource::Agent).await.expect_err("it is gone");
            host.is_well().await;
        }
    })
    .await;
    assert!(world.left.get());
}

#[tokio::test]
async fn a_promise_that_is_kept_after_all_is_one() {
    plain(Limits::default(), async |host| {
        let mut raw = promised_worker(&host).await;
        let worker = host.world.worker.borrow().clone().expect("it registered");
        raw.say(|root| resolve(root, 5, 6)).await;
        raw.say(|root| {
            let mut resolve = root.init_resolve();
            resolve.set_promise_id(6);
            resolve.init_cap().set_sender_hosted(7);
        })
        .await;
        let call = tokio::task::spawn_local(worker.metrics(MetricsSource::Agent));
        loop {
            let heard = raw.hear().await.expect("a call");
            if let Ok(message::Call(call)) = heard.root().which() {
                let question = call.expect("it is there").get_question_id();
                raw.say(|root| {
                    let mut answer = root.init_return();
                    answer.set_answer_id(question);
                    answer.init_exception().set_reason("as if");
                })
                .await;
                break;
            }
        }
        assert_eq!(call.await.expect("it ends").expect_err("it fails").to_string(), "as if");
    })
    .await;
}
