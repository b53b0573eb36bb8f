//! What strangers and guests cannot do to a host, and to each other.

use std::time::Duration;

use kiln_api::{Admin, Connection, Key, Limits, PoolAdmin};

use crate::crafted::{JOB_ID, POOL_ADMIN_ID, amplified_job, deep_job, restore};
use crate::raw::{On, Raw, bootstrap, call, words};
use crate::world::{ADMIN, GATE, Host, JOB, PANIC, POOL, SUBMISSION, id, plain, with_host};

/// Limits that are reached soon.
fn tight() -> Limits {
    Limits { handshake: Duration::from_millis(300), stall: Duration::from_millis(300), ..Limits::default() }
}

/// Connects, says `bytes`, and waits until the host is gone; returns what it said.
async fn provoke(host: &Host, bytes: &[u8]) -> Vec<String> {
    let mut raw = Raw::connect(&host.uri).await;
    raw.bytes(bytes).await;
    raw.hear_all().await
}

/// Returns this process's largest resident size so far, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0_usize) / 1024
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    plain(Limits::default(), async |host| {
        for garbage in [
            b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(),
            vec![0xff; 4096],
            // One empty message, and one with a pointer to nowhere.
            vec![0; 16],
            [[0, 0, 0, 0, 1, 0, 0, 0].as_slice(), &[0xfc, 0xff, 0xff, 0x7f, 1, 0, 1, 0]].concat(),
            // A kind of message that there is not, with a Bootstrap's length.
            [[0, 0, 0, 0, 3, 0, 0, 0].as_slice(), &[0, 0, 0, 0, 1, 0, 1, 0], &[0xff; 16]].concat(),
        ] {
            let mut raw = Raw::connect(&host.uri).await;
            raw.bytes(&garbage).await;
            // Some of it is refused politely, and waited on.
            raw.bytes(&[0xff; 64]).await;
            raw.gone().await;
        }
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn what_announces_more_than_is_allowed_is_refused_before_anything_is_kept() {
    plain(Limits::default(), async |host| {
        let tables: [Vec<u32>; 4] =
            [vec![0, u32::MAX], vec![u32::MAX, 0], vec![1 << 20, 1], [vec![510], vec![u32::MAX; 511]].concat()];
        let before = peak();
        for table in tables {
            let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
            let heard = provoke(&host, &bytes).await;
            assert!(matches!(&heard[..], [only] if only.starts_with("abort")), "{heard:?}");
        }
        assert!(peak() < before + 32, "{} MiB, before {before}", peak());
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_may_not_say_much() {
    plain(Limits::default(), async |host| {
        let long = words(|root| bootstrap(root, 0, &vec![b'x'; 100_000]));
        // It is refused by its announcement; what is not read would reset the connection before the reason is read.
        let heard = provoke(&host, &long[..16]).await;
        assert!(matches!(&heard[..], [only] if only.contains("too large")), "{heard:?}");
        // Who has named a service may.
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, POOL).await;
        raw.bytes(&words(|root| bootstrap(root, 1, &vec![b'x'; 100_000]))).await;
        raw.hear().await.expect("an answer");
        assert_eq!(raw.hear().await.expect("an answer").summary(), "return 1: Unknown persistent service ID");
    })
    .await;
}

#[tokio::test]
async fn nesting_has_an_end() {
    plain(Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, SUBMISSION).await;
        raw.hear().await.expect("an answer");
        raw.bytes(&deep_job(1, 100_000)).await;
        let answer = raw.hear().await.expect("an answer").summary();
        assert!(answer.contains("nesting") || answer.contains("too deep"), "{answer}");
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn pointers_to_the_same_bytes_are_not_multiplied() {
    plain(Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, SUBMISSION).await;
        raw.hear().await.expect("an answer");
        let before = peak();
        // A million times a hundred thousand bytes.
        raw.bytes(&amplified_job(1, 1_000_000, 100_000)).await;
        let answer = raw.hear().await.expect("an answer").summary();
        assert!(answer.contains("ead limit") || answer.contains("amplification"), "{answer}");
        assert!(peak() < before + 200, "{} MiB, before {before}", peak());
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn silence_is_waited_for_only_so_long() {
    let (key, _) = Key::generate().expect("a key");
    with_host(Some(key), tight(), async |host| {
        // Before TLS, and within.
        Raw::connect(&host.uri).await.gone().await;
        let mut raw = Raw::connect(&host.uri).await;
        raw.bytes(&[22, 3, 1]).await;
        raw.gone().await;
    })
    .await;
    plain(tight(), async |host| {
        // Before the first message, within it, and before the first service.
        Raw::connect(&host.uri).await.gone().await;
        let mut raw = Raw::connect(&host.uri).await;
        raw.bytes(&words(|root| bootstrap(root, 0, POOL))[..20]).await;
        raw.gone().await;
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, b"nothing").await;
        let heard = raw.hear_all().await;
        assert_eq!(heard.len(), 2, "{heard:?}");
        // Within a later message.
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, POOL).await;
        raw.hear().await.expect("an answer");
        raw.bytes(&words(|root| bootstrap(root, 1, POOL))[..20]).await;
        raw.gone().await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_may_not_guess_for_long() {
    plain(Limits::default(), async |host| {
        let mut guesses = Vec::new();
        for question in 0..100 {
            guesses.extend(words(|root| bootstrap(root, question, b"a guess")));
        }
        let heard = provoke(&host, &guesses).await;
        assert_eq!(heard.len(), 17, "{heard:?}");
        assert_eq!(heard[16], "abort: more than 16 calls at once");
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn calls_that_are_never_finished_have_a_limit() {
    let limits = Limits { calls: 100, ..Limits::default() };
    plain(limits, async |host| {
        for finished in [false, true] {
            let mut raw = Raw::connect(&host.uri).await;
            raw.bootstrap(0, JOB).await;
            for question in 1..=100 {
                raw.call(question, On::Answer(0, None), JOB_ID, 1).await;
                // What is given up before it is answered is kept in mind too.
                if finished {
                    raw.finish(question).await;
                }
            }
            let heard = raw.hear_all().await;
            assert_eq!(heard, ["return 0: results", "abort: more than 100 calls at once"]);
        }
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn calls_that_wait_may_not_be_too_big_together() {
    let limits = Limits { held: 4 << 20, ..Limits::default() };
    plain(limits, async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, JOB).await;
        raw.hear().await.expect("an answer");
        for question in 1..=4 {
            raw.say(|root| {
                let mut call = root.init_call();
                call.set_question_id(question);
                call.set_interface_id(JOB_ID);
                call.set_method_id(1);
                call.reborrow().init_target().init_promised_answer();
                call.init_params().get_content().initn_as::<capnp::data::Builder<'_>>(1 << 20).fill(1);
            })
            .await;
        }
        let heard = raw.hear_all().await;
        assert!(heard[0].starts_with("abort: more than 4194304 bytes of calls"), "{heard:?}");
    })
    .await;
}

#[tokio::test]
async fn who_asks_for_much_and_takes_nothing_costs_little_and_is_cut_off() {
    let limits = Limits { unsent: 1 << 20, stall: Duration::from_secs(2), ..Limits::default() };
    let world = with_host(None, limits, async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, JOB).await;
        raw.hear().await.expect("an answer");
        let before = peak();
        let mut asked = 0_u32;
        // A gigabyte.
        while asked < 100_000 {
            let mut calls = Vec::new();
            for _ in 0..100 {
                asked += 1;
                calls.extend(words(|root| call(root, asked, &On::Answer(0, None), JOB_ID, 0)));
            }
            if tokio::io::AsyncWriteExt::write_all(&mut raw.0, &calls).await.is_err() {
                break;
            }
        }
        assert!(asked < 100_000, "all was taken");
        host.is_well().await;
        assert!(peak() < before + 40, "{} MiB, before {before}", peak());
    })
    .await;
    assert!(world.dropped.get(), "what it held is let go");
}

#[tokio::test]
async fn answers_that_all_come_at_once_to_one_who_takes_nothing_are_not_kept() {
    let limits = Limits { unsent: 1 << 20, stall: Duration::from_millis(500), ..Limits::default() };
    plain(limits, async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, GATE).await;
        raw.hear().await.expect("an answer");
        for question in 1..=2000 {
            raw.call(question, On::Answer(0, None), JOB_ID, 0).await;
        }
        // When this is answered, the others have come.
        raw.call(2001, On::Answer(0, None), JOB_ID, 2).await;
        assert_eq!(raw.hear().await.expect("an answer").summary(), "return 2001: results");
        host.world.offered.notify_waiters();
        let finish = words(|root| root.init_finish().set_question_id(u32::MAX - 1));
        let cut_off = async { while tokio::io::AsyncWriteExt::write_all(&mut raw.0, &finish).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(20), cut_off).await.expect("it is cut off");
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn connections_of_one_address_have_a_limit_and_are_free_again() {
    let limits = Limits { connections_of_address: 3, ..Limits::default() };
    plain(limits, async |host| {
        let mut first = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::connect(&host.uri).await;
            raw.bootstrap(0, POOL).await;
            raw.hear().await.expect("an answer");
            first.push(raw);
        }
        let mut fourth = Raw::connect(&host.uri).await;
        fourth.gone().await;
        first.pop();
        // The host notices in its own time.
        loop {
            let mut raw = Raw::connect(&host.uri).await;
            raw.bootstrap(0, POOL).await;
            if raw.hear().await.is_some() {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_number_of_our_own_question_is_taken() {
    plain(Limits::default(), async |host| {
        for bytes in [
            words(|root| bootstrap(root, u32::MAX, POOL)),
            words(|root| call(root, u32::MAX, &On::Export(0), 1, 1)),
            words(|root| root.init_finish().set_question_id(u32::MAX)),
        ] {
            let heard = provoke(&host, &bytes).await;
            assert!(matches!(&heard[..], [only] if only.starts_with("abort: that question")), "{heard:?}");
        }
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_about_nothing_hurts_nobody() {
    let messages: Vec<(&str, Vec<u8>)> = vec![
        (
            "release",
            words(|root| {
                let mut release = root.init_release();
                release.set_id(77);
                release.set_reference_count(1);
            }),
        ),
        ("release too often", words(|root| root.init_release().set_reference_count(u32::MAX))),
        ("finish", words(|root| root.init_finish().set_question_id(77))),
        ("return", words(|root| root.init_return().set_answer_id(77))),
        ("take from other", words(|root| root.init_return().set_take_from_other_question(77))),
        (
            "resolve",
            words(|root| {
                let mut resolve = root.init_resolve();
                resolve.set_promise_id(77);
                resolve.init_cap().set_sender_hosted(78);
            }),
        ),
        ("resolve to nothing", words(|root| root.init_resolve().init_cap().set_none(()))),
        (
            "disembargo",
            words(|root| {
                let mut disembargo = root.init_disembargo();
                disembargo.reborrow().init_context().set_receiver_loopback(77);
                disembargo.init_target().set_imported_cap(77);
            }),
        ),
        (
            "disembargo of ours",
            words(|root| {
                let mut disembargo = root.init_disembargo();
                disembargo.reborrow().init_context().set_sender_loopback(77);
                disembargo.init_target().set_imported_cap(0);
            }),
        ),
        ("provide", words(|root| root.init_provide().set_question_id(77))),
        ("accept", words(|root| root.init_accept().set_question_id(77))),
        ("join", words(|root| root.init_join().set_question_id(77))),
        ("unimplemented", words(|root| root.init_unimplemented().init_call().set_question_id(77))),
        (
            "unimplemented resolve",
            words(|root| {
                root.init_unimplemented().init_resolve().init_cap().set_sender_hosted(77);
            }),
        ),
        ("call of nothing", words(|root| call(root, 5, &On::Export(77), 1, 1))),
        ("call of no answer", words(|root| call(root, 5, &On::Answer(77, None), 1, 1))),
        (
            "third party",
            words(|root| {
                root.init_call().get_send_results_to().init_third_party();
            }),
        ),
        ("to itself", words(|root| root.init_call().get_send_results_to().set_yourself(()))),
        (
            "many references",
            words(|root| {
                root.init_call().init_params().init_cap_table(65);
            }),
        ),
    ];
    plain(Limits::default(), async |host| {
        for (name, bytes) in messages {
            for known in [false, true] {
                let mut raw = Raw::connect(&host.uri).await;
                if known {
                    raw.bootstrap(0, POOL).await;
                    raw.hear().await.expect("an answer");
                }
                raw.bytes(&bytes).await;
                // Whatever it makes of that, it goes on listening, or says why not.
                raw.bootstrap(9, b"nothing").await;
                loop {
                    let heard = raw.hear().await.map(|heard| heard.summary()).unwrap_or_default();
                    if heard.starts_with("abort: ") || heard.starts_with("return 9: ") {
                        break;
                    }
                    let polite = ["return 5: ", "release 1", "unimplemented"];
                    assert!(polite.iter().any(|answer| heard.starts_with(answer)), "{name}: {heard:?}");
                }
            }
        }
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn what_looks_services_up_gives_no_more_than_a_bootstrap_and_is_no_export() {
    plain(Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, b"nothing").await;
        assert_eq!(raw.hear().await.expect("an answer").summary(), "return 0: Unknown persistent service ID");
        for (question, id, answer) in [(1, &b"nothing"[..], "Unknown persistent service ID"), (2, POOL, "results")] {
            raw.say(|root| restore(root, question, &On::Answer(u32::MAX, None), id)).await;
            assert_eq!(raw.hear().await.expect("an answer").summary(), format!("return {question}: {answer}"));
        }
        // The first export is what was asked for.
        raw.call(3, On::Export(0), POOL_ADMIN_ID, 0).await;
        assert_eq!(raw.hear().await.expect("an answer").summary(), "return 3: results");
        raw.say(|root| restore(root, 4, &On::Export(0), POOL)).await;
        assert!(raw.hear().await.expect("an answer").summary().starts_with("return 4: Unimplemented"));
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn a_bug_ends_one_connection_and_lets_go_of_what_it_held() {
    let world = with_host(None, Limits::default(), async |host| {
        let other = host.connect().await;
        let pool: PoolAdmin = other.bootstrap(&id(POOL));
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, JOB).await;
        raw.hear().await.expect("an answer");
        raw.bootstrap(1, PANIC).await;
        raw.gone().await;
        assert!(host.world.dropped.get(), "the job is let go");
        assert_eq!(pool.show().await.expect("the other goes on"), "by id");
        host.is_well().await;
    })
    .await;
    assert!(world.dropped.get());
}

#[tokio::test]
async fn one_peer_that_floods_does_not_stop_others() {
    plain(Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, POOL).await;
        let flood = tokio::task::spawn_local(async move {
            let (mut from, mut to) = raw.0.into_split();
            let all = words(|root| call(root, 1, &On::Answer(0, None), POOL_ADMIN_ID, 0));
            let all = [all, words(|root| root.init_finish().set_question_id(1))].concat().repeat(100);
            let write = async { while tokio::io::AsyncWriteExt::write_all(&mut to, &all).await.is_ok() {} };
            let read = async { tokio::io::copy(&mut from, &mut tokio::io::sink()).await };
            let _ = tokio::join!(write, read);
        });
        let other: Connection = host.connect().await;
        let admin: Admin = other.bootstrap(&id(ADMIN));
        for _ in 0..100 {
            admin.pools().await.expect("an answer");
        }
        assert!(!flood.is_finished());
        flood.abort();
    })
    .await;
}
