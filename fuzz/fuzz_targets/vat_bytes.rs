//! What a peer sends to a vat that has services of several kinds, and calls what it is given.
#![no_main]

use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::{
    Admin, AdminServer, Answer, Capability, CapabilityUri, Error, Job, JobDescription, JobServer, Limits, Link,
    LogChunk, MetricsSource, PoolAdmin, PoolAdminServer, Progress, Queue, QueueServer, Reference as _, Registration,
    RegistrationServer, ServiceId, Services, Submission, SubmissionServer, Ticket, TicketServer, Worker, WorkerInfo,
    answer, converse_over,
};
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

#[derive(Clone)]
struct Fake(Rc<watch::Sender<Option<Job>>>);

impl Services for Fake {
    fn restore(&self, id: &ServiceId, _: &Link) -> Answer<Capability> {
        let fake = self.clone();
        answer(Ok(match id.0.len() {
            0 => return answer(Err(Error::failed("no id"))),
            20 => Submission::serve(fake).into(),
            _ if id.0[0] % 3 == 0 => Admin::serve(fake).into(),
            _ if id.0[0] % 3 == 1 => Registration::serve(fake).into(),
            _ => Job::serve(fake).into(),
        }))
    }
}

impl AdminServer for Fake {
    fn pools(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec!["pool".into()]))
    }
    fn pool(&self, name: BString) -> PoolAdmin {
        if name.is_empty() { PoolAdmin::broken(Error::failed("No such pool")) } else { PoolAdmin::serve(self.clone()) }
    }
    fn add_client(&self, _: BString) -> Answer<Submission> {
        answer(Ok(Submission::serve(self.clone())))
    }
    fn remove_client(&self, _: BString) -> Answer<()> {
        answer(Ok(()))
    }
    fn list_clients(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec![]))
    }
}

impl PoolAdminServer for Fake {
    fn show(&self) -> Answer<BString> {
        answer(Ok("state".into()))
    }
    fn workers(&self) -> Answer<Vec<WorkerInfo>> {
        answer(Ok(vec![WorkerInfo { name: "w".into(), active: true, connected: false }]))
    }
    fn set_active(&self, _: BString, _: bool, _: bool) -> Answer<()> {
        answer(Ok(()))
    }
    fn worker(&self, _: BString) -> Answer<Worker> {
        answer(Ok(Worker::broken(Error::failed("gone"))))
    }
    fn update(&self, _: BString, progress: Option<Progress>) -> Answer<()> {
        Box::pin(async move {
            let progress = progress.ok_or_else(|| Error::failed("no progress"))?;
            progress.settled().await?;
            progress.report("half").await
        })
    }
    fn set_rate(&self, _: BString, _: f64) -> Answer<()> {
        answer(Ok(()))
    }
    fn forget(&self, _: BString) -> Answer<()> {
        answer(Ok(()))
    }
    fn drain(&self, worker: BString, progress: Option<Progress>) -> Answer<()> {
        PoolAdminServer::update(self, worker, progress)
    }
}

impl SubmissionServer for Fake {
    fn submit(&self, _: BString, _: JobDescription, urgent: bool) -> Ticket {
        if urgent { Ticket::broken(Error::failed("no")) } else { Ticket::serve(self.clone()) }
    }
    fn save(&self) -> Answer<CapabilityUri> {
        answer("capnp://insecure@host:1/aaaa".parse().map_err(|_| Error::failed("no URI")))
    }
}

impl TicketServer for Fake {
    fn job(&self) -> Job {
        let mut offered = self.0.subscribe();
        Job::promise(async move {
            let job = offered.wait_for(Option::is_some).await.map_err(|_| Error::failed("nobody"))?;
            job.clone().ok_or_else(|| Error::failed("nobody"))
        })
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

impl RegistrationServer for Fake {
    fn register(&self, _: BString, worker: Worker, _: i32) -> Answer<Queue> {
        let fake = self.clone();
        Box::pin(async move {
            drop(worker.metrics(MetricsSource::Agent));
            Ok(Queue::serve(fake))
        })
    }
}

impl QueueServer for Fake {
    fn pop(&self, job: Job) -> Answer<JobDescription> {
        self.0.send_replace(Some(job));
        Box::pin(pending())
    }
    fn set_active(&self, _: bool) -> Answer<()> {
        self.0.send_replace(None);
        answer(Ok(()))
    }
}

impl JobServer for Fake {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        answer(Ok(LogChunk { bytes: vec![b'x'; 100], next: start.wrapping_add(100) }))
    }
    fn result(&self) -> Answer<BString> {
        Box::pin(pending())
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut from, mut to) = tokio::io::split(theirs);
        let limits = Limits { message: 1 << 20, calls: 1000, handshake: Duration::from_secs(5), ..Limits::default() };
        let fake = Fake(Rc::new(watch::channel(None).0));
        let host = converse_over(ours, fake.clone(), limits);
        let say = async {
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let mut nowhere = tokio::io::sink();
        let _ = tokio::join!(host, say, tokio::io::copy(&mut from, &mut nowhere));
        // The job refers to the connection, which refers to the services. What is left then is a leak.
        fake.0.send_replace(None);
    });
});
