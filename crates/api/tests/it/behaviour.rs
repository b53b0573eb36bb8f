//! What OCluster's programs rely on, message by message.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Action, Address, Admin, Answer, Capability, Connection, Error, ErrorKind, Identity, Job, JobDescription, JobServer,
    Key, Limits, Link, ListenError, Listener, LogChunk, MetricsSource, PoolAdmin, Reference as _, Registration,
    Security, ServiceId, Services, Submission, answer,
};
use tokio_util::sync::CancellationToken;

use crate::crafted::{ADMIN_ID, JOB_ID, TICKET_ID, job, register_promise};
use crate::raw::{On, Raw};
use crate::world::{ADMIN, Directory, Endless, Host, JOB, POOL, REGISTRATION, SUBMISSION, id, nobody, with_host};

/// A job that fails, and notes that it is dropped.
struct Failing(Rc<Cell<bool>>);

impl JobServer for Failing {
    fn log(&self, _: i64) -> Answer<LogChunk> {
        Box::pin(std::future::pending())
    }
    fn result(&self) -> Answer<BString> {
        answer(Err(Error::failed("Build failed")))
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// A client that has submitted a job, which is answer 2.
async fn submitted(host: &Host) -> Raw {
    let mut raw = Raw::connect(&host.uri).await;
    raw.bootstrap(0, SUBMISSION).await;
    raw.bytes(&job(1)).await;
    raw.call(2, On::Answer(1, Some(0)), TICKET_ID, 0).await;
    for expected in ["return 0: results", "return 1: results", "return 2: results"] {
        assert_eq!(raw.hear().await.expect("an answer").summary(), expected);
    }
    raw
}

/// Connects a worker that takes the job and does it as `job` does.
async fn work(host: &Host, job: Job) -> Connection {
    let connection = host.connect().await;
    let pool: Registration = connection.bootstrap(&id(REGISTRATION));
    let queue = pool.register(b"w", nobody(), 1).await.expect("a queue");
    queue.pop(job).await.expect("a job");
    // It stays registered.
    std::mem::forget(queue);
    connection
}

#[tokio::test]
async fn a_promise_that_fails_is_announced_as_having_failed() {
    with_host(None, Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, ADMIN).await;
        raw.call(1, On::Answer(0, None), ADMIN_ID, 1).await;
        for expected in ["return 0: results", "return 1: results", "resolve: No such pool"] {
            assert_eq!(raw.hear().await.expect("a message").summary(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_job_is_a_promise_until_a_worker_has_it_and_calls_on_it_wait() {
    with_host(None, Limits::default(), async |host| {
        let mut raw = submitted(&host).await;
        raw.call(3, On::Answer(2, Some(0)), JOB_ID, 0).await;
        let _worker = work(&host, Job::serve(Endless(Rc::default()))).await;
        let mut heard = [raw.hear().await, raw.hear().await].map(|heard| heard.expect("a message").summary());
        heard.sort();
        assert_eq!(heard, ["resolve: an object", "return 3: results"]);
    })
    .await;
}

#[tokio::test]
async fn an_error_is_passed_on_as_it_was_said() {
    with_host(None, Limits::default(), async |host| {
        let mut raw = submitted(&host).await;
        raw.call(3, On::Answer(2, Some(0)), JOB_ID, 1).await;
        let _worker = work(&host, Job::serve(Failing(Rc::default()))).await;
        loop {
            let heard = raw.hear().await.expect("a message").summary();
            if heard.starts_with("return 3") {
                assert_eq!(heard, "return 3: Build failed");
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_job_that_its_client_lets_go_of_is_dropped_by_the_worker_though_calls_are_open() {
    // By losing the connection, and by dropping the references only.
    for loses_connection in [true, false] {
        with_host(None, Limits::default(), async |host| {
            let connection = host.connect().await;
            let client: Submission = connection.bootstrap(&id(SUBMISSION));
            let ticket = client.submit(b"pool", &description(), false).expect("it can be said");
            let job = ticket.job();
            let open = tokio::task::spawn_local(job.log(0));
            let dropped = Rc::new(Cell::new(false));
            let _worker = work(&host, Job::serve(Failing(Rc::clone(&dropped)))).await;
            assert_eq!(job.result().await, Err(Error::failed("Build failed")));
            assert!(!dropped.get() && !open.is_finished());
            drop((job, ticket));
            let connection = (!loses_connection).then_some(connection);
            while !dropped.get() {
                tokio::task::yield_now().await;
            }
            assert!(connection.is_none() || !open.is_finished());
        })
        .await;
    }
}

pub(crate) fn description() -> JobDescription {
    JobDescription {
        action: Action::OBuilder("((from scratch))".into()),
        cache_hint: "".into(),
        repository: "".into(),
        commits: vec![],
        secrets: vec![],
    }
}

#[tokio::test]
async fn a_lost_connection_is_told_from_a_refusal() {
    with_host(None, Limits::default(), async |host| {
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, REGISTRATION).await;
        raw.hear().await.expect("an answer");
        raw.say(|root| register_promise(root, 1, 5)).await;
        raw.hear().await.expect("an answer");
        let worker = host.world.worker.borrow().clone().expect("it registered");
        let call = tokio::task::spawn_local(worker.metrics(MetricsSource::Agent));
        raw.hear().await.expect("the call");
        drop(raw);
        let error = call.await.expect("it ends").expect_err("it is gone");
        assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
        let error = worker.metrics(MetricsSource::Agent).await.expect_err("it is gone");
        assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
        assert!(host.world.left.get(), "its queue is let go");
    })
    .await;
}

/// Another host, which has the first one's pools and jobs.
struct Branch {
    jobs: Job,
    pools: Admin,
}

impl Services for Branch {
    fn restore(&self, id: &ServiceId, _: &Link) -> Answer<Capability> {
        answer(match id.0.as_slice() {
            JOB => Ok(self.jobs.clone().into()),
            ADMIN => Ok(self.pools.clone().into()),
            _ => Err(Error::failed("Unknown persistent service ID")),
        })
    }
}

#[tokio::test]
async fn references_work_through_a_host_that_has_them_from_another() {
    with_host(None, Limits::default(), async |host| {
        let near = host.connect().await;
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
        let listener = Listener::bind(&address, Security::Insecure, Limits::default()).await.expect("a port");
        let uri = kiln_api::CapabilityUri { addresses: listener.address().clone().into(), ..host.uri.clone() };
        let stop = CancellationToken::new();
        let branch = Branch { jobs: near.bootstrap(&id(JOB)), pools: near.bootstrap(&id(ADMIN)) };
        let server = tokio::task::spawn_local(listener.serve(branch, stop.clone()));
        let (key, _) = Key::generate().expect("a key");
        let far = Connection::open(&uri, &key, Limits::default()).await.expect("a connection");
        let (jobs, pools): (Job, Admin) = (far.bootstrap(&id(JOB)), far.bootstrap(&id(ADMIN)));
        assert_eq!(jobs.log(1).await.expect("a part").next, 10_241);
        assert_eq!(pools.pool(b"a").show().await.expect("it is shown"), "pool a");
        assert_eq!(pools.pool(b"b").show().await.expect_err("none"), Error::failed("No such pool"));
        let reports = Rc::new(RefCell::new(Vec::new()));
        pools.pool(b"a").update(b"w", reporter(&reports)).await.expect("it is done");
        assert_eq!(*reports.borrow(), ["one", "two"]);
        far.close().await;
        stop.cancel();
        server.await.expect("it ends");
    })
    .await;
}

/// Returns who notes what is reported.
fn reporter(reports: &Rc<RefCell<Vec<String>>>) -> kiln_api::Progress {
    struct Reporter(Rc<RefCell<Vec<String>>>);
    impl kiln_api::ProgressServer for Reporter {
        fn report(&self, status: &[u8]) -> Answer<()> {
            self.0.borrow_mut().push(String::from_utf8_lossy(status).into_owned());
            answer(Ok(()))
        }
    }
    kiln_api::Progress::serve(Reporter(Rc::clone(reports)))
}

#[tokio::test]
async fn a_thousand_calls_are_made_before_any_is_answered() {
    let (key, _) = Key::generate().expect("a key");
    with_host(Some(key), Limits::default(), async |host| {
        let connection = host.connect().await;
        let admin: Admin = connection.bootstrap(&id(ADMIN));
        let pools: Vec<_> = (0..1000).map(|_| admin.pool(b"a")).collect();
        let shown = futures::future::join_all(pools.iter().map(PoolAdmin::show)).await;
        assert!(shown.iter().all(|shown| shown.as_ref().is_ok_and(|shown| shown == "pool a")));
    })
    .await;
}

#[tokio::test]
async fn a_new_client_is_saved_before_it_is_known_whether_it_is_one() {
    with_host(None, Limits::default(), async |host| {
        let connection = host.connect().await;
        let admin: Admin = connection.bootstrap(&id(ADMIN));
        let uri = admin.add_client(b"bob").save().await.expect("a URI");
        assert_eq!(uri.to_string(), "capnp://insecure@example.org:9000/c2VjcmV0");
        let error = admin.add_client(b"alice").save().await.expect_err("there is one");
        assert_eq!(error, Error::failed("exists"));
        // What has no URI says so.
        let pool: Submission = connection.bootstrap(&id(POOL));
        assert_eq!(pool.save().await.expect_err("no client").kind, ErrorKind::Unimplemented);
    })
    .await;
}

#[tokio::test]
async fn a_service_is_reached_through_a_unix_socket_of_any_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a socket%41.sock");
    let address = Address::Unix(path.clone());
    tokio::task::LocalSet::new()
        .run_until(async {
            std::fs::write(&path, "mine").expect("it is written");
            let refused = Listener::bind(&address, Security::Insecure, Limits::default()).await;
            assert!(matches!(refused.err(), Some(ListenError::NotASocket { .. })));
            assert_eq!(std::fs::read(&path).expect("it is there"), b"mine");
            std::fs::remove_file(&path).expect("it is there");
            // What a host before left is no hindrance.
            drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
            let (key, _) = Key::generate().expect("a key");
            let identity = Identity::Key(key.fingerprint());
            let listener =
                Listener::bind(&address, Security::Key(Box::new(key)), Limits::default()).await.expect("a socket");
            let uri = kiln_api::CapabilityUri { identity, addresses: address.clone().into(), service: id(POOL) };
            let uri: kiln_api::CapabilityUri = uri.to_string().parse().expect("a URI");
            let stop = CancellationToken::new();
            let server = tokio::task::spawn_local(listener.serve(Directory(Rc::default()), stop.clone()));
            let (client, _) = Key::generate().expect("a key");
            let connection = Connection::open(&uri, &client, Limits::default()).await.expect("a connection");
            let pool: PoolAdmin = connection.bootstrap(&uri.service);
            assert_eq!(pool.show().await.expect("it is shown"), "by id");
            stop.cancel();
            server.await.expect("it ends");
            connection.closed().await;
            assert_eq!(pool.show().await.expect_err("it is gone").kind, ErrorKind::Disconnected);
        })
        .await;
}

#[tokio::test]
async fn a_promise_is_settled_when_it_is_kept_or_fails() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let kept = Job::promise(async { Ok(Job::serve(Endless(Rc::default()))) });
            kept.settled().await.expect("it is kept");
            assert_eq!(Job::broken(Error::failed("no")).settled().await, Err(Error::failed("no")));
        })
        .await;
}
