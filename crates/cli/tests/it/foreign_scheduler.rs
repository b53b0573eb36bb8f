//! The real worker with a scheduler that is not Kiln's: it has OCluster's interfaces and no more.

use std::cell::RefCell;
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Action, Address, Answer, Capability, Error, Job, JobDescription, Key, Limits, Link, Listener, LogTail, Queue,
    QueueServer, Registration, RegistrationServer, Security, ServiceId, Services, Worker, answer, cap_file,
};
use kiln_testkit::{Need, need};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::env::TestEnv;

/// A pool of one worker, which is asked for by its pops.
#[derive(Clone)]
struct Pool(mpsc::UnboundedSender<(Job, oneshot::Sender<JobDescription>)>);

impl Services for Pool {
    fn restore(&self, _: &ServiceId, _: &Link) -> Answer<Capability> {
        answer(Ok(Registration::serve(self.clone()).into()))
    }
}

impl RegistrationServer for Pool {
    fn register(&self, _: BString, _: Worker, _: i32) -> Answer<Queue> {
        answer(Ok(Queue::serve(self.clone())))
    }
}

impl QueueServer for Pool {
    fn pop(&self, job: Job) -> Answer<JobDescription> {
        let (give, given) = oneshot::channel();
        // A test that has ended takes none.
        let _ = self.0.send((job, give));
        Box::pin(async move { given.await.map_err(|_| Error::failed("no job")) })
    }

    fn set_active(&self, _: bool) -> Answer<()> {
        answer(Ok(()))
    }
}

fn shell() -> JobDescription {
    // A message without anything in it: one segment of one word, a null pointer.
    let payload = vec![0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    JobDescription {
        action: Action::Custom { kind: "wait".into(), payload },
        cache_hint: "".into(),
        repository: "".into(),
        commits: vec![],
        secrets: vec![],
    }
}

#[test]
fn a_worker_serves_it_and_ends_when_its_last_job_has_been_told() {
    need!(Need::Root);
    let env = TestEnv::without_base();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (key, _) = Key::generate().unwrap();
        let address = Address::Unix(env.at("socket"));
        let identity = kiln_api::Identity::Key(key.fingerprint());
        let listener = Listener::bind(&address, Security::Key(Box::new(key)), Limits::default()).await.unwrap();
        let uri = kiln_api::CapabilityUri { identity, addresses: address.into(), service: ServiceId::random() };
        cap_file::save(&env.at("pool.cap"), &uri).unwrap();
        let (pool, mut pops) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let serving = tokio::task::spawn_local(listener.serve(Pool(pool), stop.clone()));
        // It waits for a line that the test writes.
        let arguments = [
            "worker",
            "-c",
            "pool.cap",
            "--name=w1",
            "--capacity=1",
            "--state-dir=worker",
            "--no-docker",
            "--no-healthcheck",
            "--custom=wait=echo begun; mkfifo line; read it < line; echo $it > $KILN_RESULT",
        ];
        let worker = Rc::new(RefCell::new(Some(env.spawn(&mut env.kiln(&arguments)))));

        // One that nobody wants any more is cancelled.
        let (job, give) = pops.recv().await.unwrap();
        give.send(shell()).unwrap();
        let mut tail = LogTail::new(job.clone());
        while !tail.next().await.unwrap().ends_with(b"begun\n") {}
        let result = job.result();
        drop((job, tail));
        assert_eq!(result.await, Err(Error::failed("Build cancelled")));

        // The last one is told of, though the worker is to end when it is done.
        let (job, give) = pops.recv().await.unwrap();
        give.send(shell()).unwrap();
        let mut tail = LogTail::new(job.clone());
        while !tail.next().await.unwrap().ends_with(b"begun\n") {}
        worker.borrow().as_ref().unwrap().signal(Signal::TERM);
        let line = loop {
            let found = std::fs::read_dir(env.at("worker")).unwrap().flatten().find_map(|entry| find(&entry.path()));
            if let Some(line) = found {
                break line;
            }
            tokio::task::yield_now().await;
        };
        std::fs::write(line, "fine\n").unwrap();
        assert_eq!(job.result().await, Ok("fine\n".into()));
        let mut rest = Vec::new();
        while let Some(part) = Some(tail.next().await.unwrap()).filter(|part| !part.is_empty()) {
            rest.extend(part);
        }
        assert!(rest.ends_with(b"Job succeeded\n"), "{}", String::from_utf8_lossy(&rest));
        drop((job, tail));
        let ended = worker.take().unwrap();
        tokio::task::spawn_blocking(move || ended.end().ok()).await.unwrap();
        stop.cancel();
        serving.await.unwrap();
    });
}

/// Returns the path of what is called `line` in a directory, however deep.
fn find(path: &std::path::Path) -> Option<std::path::PathBuf> {
    if path.file_name()? == "line" {
        return Some(path.to_owned());
    }
    std::fs::read_dir(path).ok()?.flatten().find_map(|entry| find(&entry.path()))
}
