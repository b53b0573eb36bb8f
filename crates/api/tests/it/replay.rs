//! What OCluster's clients said to its scheduler, said to ours: with the same state, the answers are the same.

use std::time::Duration;

use bstr::BString;
use capnp_rpc::rpc_capnp::{message, return_};
use kiln_api::transcript::{messages, replay, transcript};
use kiln_api::{
    Admin, AdminServer, Answer, Capability, CapabilityUri, Error, JobDescription, Limits, Link, PoolAdmin,
    PoolAdminServer, Progress, Reference as _, ServiceId, Services, Submission, SubmissionServer, Ticket, Worker,
    WorkerInfo, answer, converse_over,
};

use crate::generated::ocluster_capnp::pool_admin::show_results;
use crate::wire::read;

/// A scheduler in the state that it was in when a conversation was recorded.
#[derive(Clone)]
struct Recorded {
    conversation: &'static str,
    /// What it showed, if it did.
    shown: BString,
}

impl Services for Recorded {
    fn restore(&self, _: &ServiceId, _: &Link) -> Answer<Capability> {
        answer(Ok(match self.conversation == "submit-bad-pool" {
            true => Submission::serve(self.clone()).into(),
            false => Admin::serve(self.clone()).into(),
        }))
    }
}

impl AdminServer for Recorded {
    fn pools(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec!["linux-arm64".into(), "linux-x86_64".into()]))
    }
    fn pool(&self, name: BString) -> PoolAdmin {
        match name.starts_with(b"linux-") {
            true => PoolAdmin::serve(self.clone()),
            false => PoolAdmin::broken(Error::failed("No such pool")),
        }
    }
    fn add_client(&self, id: BString) -> Answer<Submission> {
        answer(match self.conversation {
            "admin-add-dup" => Err(Error::failed(format!("Client \"{id}\" already registered!"))),
            _ => Ok(Submission::serve(self.clone())),
        })
    }
    fn remove_client(&self, _: BString) -> Answer<()> {
        answer(Ok(()))
    }
    fn list_clients(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec!["alice".into(), "bob".into()]))
    }
}

impl PoolAdminServer for Recorded {
    fn show(&self) -> Answer<BString> {
        answer(Ok(self.shown.clone()))
    }
    fn workers(&self) -> Answer<Vec<WorkerInfo>> {
        answer(Ok(vec![WorkerInfo { name: "w1".into(), active: true, connected: true }]))
    }
    fn set_active(&self, worker: BString, _: bool, auto_create: bool) -> Answer<()> {
        answer(if worker == "w1" || auto_create { Ok(()) } else { Err(Error::failed("Unknown worker")) })
    }
    fn worker(&self, _: BString) -> Answer<Worker> {
        answer(Err(Error::failed("Unknown worker")))
    }
    fn update(&self, _: BString, _: Option<Progress>) -> Answer<()> {
        answer(Ok(()))
    }
    fn set_rate(&self, client: BString, _: f64) -> Answer<()> {
        answer(if client == "bob" { Ok(()) } else { Err(Error::failed("No such user")) })
    }
    fn forget(&self, worker: BString) -> Answer<()> {
        answer(match worker.as_slice() {
            b"w1" => Err(Error::failed("Worker \"w1\" is still connected!")),
            _ => Ok(()),
        })
    }
    fn drain(&self, _: BString, progress: Option<Progress>) -> Answer<()> {
        Box::pin(async move {
            let progress = progress.ok_or_else(|| Error::failed("no progress"))?;
            progress.report("Running jobs: 1").await?;
            progress.report("Running jobs: 0").await
        })
    }
}

impl SubmissionServer for Recorded {
    fn submit(&self, pool: BString, _: JobDescription, _: bool) -> Ticket {
        Ticket::broken(Error::failed(format!("Pool ID \"{pool}\" not one of {{linux-arm64, linux-x86_64}}")))
    }
    fn save(&self) -> Answer<CapabilityUri> {
        answer(Ok("capnp://insecure@host:1/aaaa".parse().expect("a URI")))
    }
}

/// Returns the text that was shown, if one was.
fn shown(bytes: &[u8]) -> BString {
    let of = |one: &capnp::message::Reader<_>| -> Option<BString> {
        let message::Return(answer) = one.get_root::<message::Reader<'_>>().ok()?.which().ok()? else { return None };
        let return_::Results(results) = answer.ok()?.which().ok()? else { return None };
        let state = results.ok()?.get_content().get_as::<show_results::Reader<'_>>().ok()?.get_state().ok()?;
        (!state.is_empty()).then(|| state.as_bytes().into())
    };
    messages(bytes).expect("they are messages").iter().find_map(of).unwrap_or_default()
}

/// Says what the client said, when it said it, and returns all that is answered.
async fn replayed(conversation: &'static str) -> Vec<u8> {
    let [asking, answering, events] = ["c2s", "s2c", "events"].map(|part| read(&format!("{conversation}.{part}")));
    let services = Recorded { conversation, shown: shown(&answering) };
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let host = tokio::task::spawn_local(converse_over(ours, services, Limits::default()));
    let heard = tokio::time::timeout(Duration::from_secs(20), replay(theirs, [&asking, &answering, &events])).await;
    host.await.expect("it ends");
    heard
        .unwrap_or_else(|_| panic!("{conversation}: no answer"))
        .unwrap_or_else(|error| panic!("{conversation}: {error}"))
}

#[tokio::test]
async fn clients_and_administrators_get_the_answers_that_ocluster_gave() {
    tokio::task::LocalSet::new()
        .run_until(async {
            for conversation in [
                "admin-add-client",
                "admin-add-dup",
                "admin-drain-2",
                "admin-drain-3",
                "admin-exec",
                "admin-forget",
                "admin-forget-connected",
                "admin-list-clients",
                "admin-nopool",
                "admin-pause",
                "admin-pause-autocreate",
                "admin-pause-unknown",
                "admin-remove-client",
                "admin-set-rate",
                "admin-set-rate-unknown",
                "admin-show",
                "admin-show-ghost",
                "admin-show-paused",
                "admin-show-pool",
                "admin-terse",
                "admin-unpause",
                "submit-bad-pool",
                "submit-queued-released-2",
                "submit-queued-released-3",
            ] {
                let heard = replayed(conversation).await;
                let [asking, answering] = ["c2s", "s2c"].map(|part| read(&format!("{conversation}.{part}")));
                let say = |asking: &[u8], answering: &[u8]| transcript(asking, answering).expect("it is understood");
                pretty(conversation, &say(&asking, &heard), &say(&asking, &answering));
                pretty(conversation, &say(&heard, &asking), &say(&answering, &asking));
            }
        })
        .await;
}

fn pretty(conversation: &str, is: &[kiln_api::transcript::Exchange], should_be: &[kiln_api::transcript::Exchange]) {
    let [is, should_be] = [is, should_be].map(|all| all.iter().map(|one| format!("{one}\n")).collect::<String>());
    assert_eq!(is, should_be, "{conversation}");
}
