//! Services whose answers are known, and a host that offers them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Address, Admin, AdminServer, Answer, Capability, CapabilityUri, Connection, Error, Identity, Job, JobDescription,
    JobServer, Key, Limits, Link, Listener, LogChunk, Metric, MetricsSource, PoolAdmin, PoolAdminServer, Progress,
    Queue, QueueServer, Reference as _, Registration, RegistrationServer, Security, ServiceId, Services, Submission,
    SubmissionServer, Ticket, TicketServer, Worker, WorkerInfo, WorkerServer, answer,
};
use tokio_util::sync::CancellationToken;

pub(crate) const ADMIN: &[u8] = b"\xfe\xffadmin";
pub(crate) const POOL: &[u8] = b"pool";
pub(crate) const JOB: &[u8] = b"job";
/// A job with a log that waits until a job is offered.
pub(crate) const GATE: &[u8] = b"gate";
pub(crate) const SUBMISSION: &[u8] = b"submission";
pub(crate) const REGISTRATION: &[u8] = b"registration";
/// Looking this up is a bug.
pub(crate) const PANIC: &[u8] = b"panic";

pub(crate) fn id(bytes: &[u8]) -> ServiceId {
    ServiceId(bytes.to_vec())
}

pub(crate) struct Pool(pub(crate) &'static str);

impl PoolAdminServer for Pool {
    fn show(&self) -> Answer<BString> {
        answer(Ok(self.0.into()))
    }
    fn workers(&self) -> Answer<Vec<WorkerInfo>> {
        answer(Ok(vec![WorkerInfo { name: "w1".into(), active: true, connected: false }]))
    }
    fn set_active(&self, _: BString, _: bool, _: bool) -> Answer<()> {
        answer(Err(Error::failed("Unknown worker")))
    }
    fn worker(&self, _: BString) -> Answer<Worker> {
        answer(Err(Error::failed("Unknown worker")))
    }
    fn update(&self, _: BString, progress: Option<Progress>) -> Answer<()> {
        Box::pin(async move {
            let progress = progress.ok_or_else(|| Error::failed("no progress"))?;
            progress.report("one").await?;
            progress.report("two").await
        })
    }
    fn set_rate(&self, _: BString, _: f64) -> Answer<()> {
        answer(Ok(()))
    }
    fn forget(&self, _: BString) -> Answer<()> {
        answer(Ok(()))
    }
    fn drain(&self, _: BString, _: Option<Progress>) -> Answer<()> {
        answer(Ok(()))
    }
}

struct Root(Rc<World>);

impl AdminServer for Root {
    fn pools(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec!["a".into(), b"\xff".as_slice().into()]))
    }
    fn pool(&self, name: BString) -> PoolAdmin {
        if name == "a" { PoolAdmin::serve(Pool("pool a")) } else { PoolAdmin::broken(Error::failed("No such pool")) }
    }
    fn add_client(&self, id: BString) -> Answer<Submission> {
        let world = Rc::clone(&self.0);
        answer(match id.as_slice() {
            b"alice" => Err(Error::failed("exists")),
            _ => Ok(Submission::serve(Client(world))),
        })
    }
    fn remove_client(&self, _: BString) -> Answer<()> {
        answer(Ok(()))
    }
    fn list_clients(&self) -> Answer<Vec<BString>> {
        answer(Ok(vec![]))
    }
}

/// A job whose result never comes, and that notes its own end.
pub(crate) struct Endless(pub(crate) Rc<Cell<bool>>);

impl JobServer for Endless {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        answer(Ok(LogChunk { bytes: vec![b'x'; 10_240], next: start + 10_240 }))
    }
    fn result(&self) -> Answer<BString> {
        Box::pin(std::future::pending())
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

struct Gate(Rc<World>);

impl JobServer for Gate {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let world = Rc::clone(&self.0);
        Box::pin(async move {
            world.offered.notified().await;
            Ok(LogChunk { bytes: vec![b'x'; 10_240], next: start + 10_240 })
        })
    }
    fn result(&self) -> Answer<BString> {
        Box::pin(std::future::pending())
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

/// A client whose ticket is for the job that the last worker offered, or will offer.
struct Client(Rc<World>);

impl SubmissionServer for Client {
    fn submit(&self, _: BString, description: JobDescription, _: bool) -> Ticket {
        self.0.submitted.borrow_mut().push(description);
        Ticket::serve(Held(Rc::clone(&self.0)))
    }
    fn save(&self) -> Answer<CapabilityUri> {
        answer(Ok("capnp://insecure@example.org:9000/c2VjcmV0".parse().expect("a URI")))
    }
}

struct Held(Rc<World>);

impl TicketServer for Held {
    fn job(&self) -> Job {
        let world = Rc::clone(&self.0);
        Job::promise(async move {
            loop {
                let offered = world.offered.notified();
                if let Some(job) = world.job.borrow_mut().take() {
                    return Ok(job);
                }
                offered.await;
            }
        })
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

struct Entrance(Rc<World>);

impl RegistrationServer for Entrance {
    fn register(&self, _: BString, worker: Worker, _: i32) -> Answer<Queue> {
        *self.0.worker.borrow_mut() = Some(worker);
        answer(Ok(Queue::serve(Line(Rc::clone(&self.0)))))
    }
}

struct Line(Rc<World>);

impl QueueServer for Line {
    fn pop(&self, job: Job) -> Answer<JobDescription> {
        *self.0.job.borrow_mut() = Some(job);
        self.0.offered.notify_waiters();
        match self.0.submitted.borrow_mut().pop() {
            Some(description) => answer(Ok(description)),
            None => Box::pin(std::future::pending()),
        }
    }
    fn set_active(&self, _: bool) -> Answer<()> {
        answer(Ok(()))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.left.set(true);
        self.0.job.borrow_mut().take();
    }
}

struct Idle;

impl WorkerServer for Idle {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        answer(Ok(Metric { content_type: "text/plain".into(), data: "metrics".into() }))
    }
    fn self_update(&self) -> Answer<()> {
        answer(Ok(()))
    }
    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}

/// Returns a worker that does nothing.
pub(crate) fn nobody() -> Worker {
    Worker::serve(Idle)
}

/// What happens to a host.
#[derive(Default)]
pub(crate) struct World {
    /// Whether the job with an id of its own was dropped.
    pub(crate) dropped: Rc<Cell<bool>>,
    pub(crate) submitted: RefCell<Vec<JobDescription>>,
    pub(crate) worker: RefCell<Option<Worker>>,
    pub(crate) job: RefCell<Option<Job>>,
    pub(crate) offered: tokio::sync::Notify,
    /// Whether a worker's queue was dropped.
    pub(crate) left: Cell<bool>,
}

pub(crate) struct Directory(pub(crate) Rc<World>);

impl Services for Directory {
    fn restore(&self, id: &ServiceId, _: &Link) -> Answer<Capability> {
        let world = Rc::clone(&self.0);
        answer(match id.0.as_slice() {
            ADMIN => Ok(Admin::serve(Root(world)).into()),
            POOL => Ok(PoolAdmin::serve(Pool("by id")).into()),
            JOB => Ok(Job::serve(Endless(Rc::clone(&world.dropped))).into()),
            GATE => Ok(Job::serve(Gate(world)).into()),
            SUBMISSION => Ok(Submission::serve(Client(world)).into()),
            REGISTRATION => Ok(Registration::serve(Entrance(world)).into()),
            PANIC => panic!("this is meant to happen"),
            _ => Err(Error::failed("Unknown persistent service ID")),
        })
    }
}

/// A host, and whoever is with it.
pub(crate) struct Host {
    pub(crate) uri: CapabilityUri,
    pub(crate) world: Rc<World>,
}

impl Host {
    /// Connects, and returns the connection.
    pub(crate) async fn connect(&self) -> Connection {
        let (key, _) = Key::generate().expect("a key");
        Connection::open(&self.uri, &key, Limits::default()).await.expect("a connection")
    }

    /// Checks that the host is well: a new client gets an answer.
    pub(crate) async fn is_well(&self) {
        let connection = self.connect().await;
        let pool: PoolAdmin = connection.bootstrap(&id(POOL));
        assert_eq!(pool.show().await.expect("it is shown"), "by id");
        connection.close().await;
    }
}

/// Runs `client` with a host, encrypted with `key` or plain, and returns its world.
pub(crate) async fn with_host<F: Future<Output = ()>>(
    key: Option<Key>,
    limits: Limits,
    client: impl FnOnce(Rc<Host>) -> F,
) -> Rc<World> {
    tokio::task::LocalSet::new()
        .run_until(async move {
            let (identity, security) = match key {
                Some(key) => (Identity::Key(key.fingerprint()), Security::Key(Box::new(key))),
                None => (Identity::Insecure, Security::Insecure),
            };
            let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
            let listener = Listener::bind(&address, security, limits).await.expect("a port");
            let uri =
                CapabilityUri { identity, addresses: listener.address().clone().into(), service: ServiceId::default() };
            let world = Rc::<World>::default();
            let stop = CancellationToken::new();
            let server = tokio::task::spawn_local(listener.serve(Directory(Rc::clone(&world)), stop.clone()));
            client(Rc::new(Host { uri, world: Rc::clone(&world) })).await;
            stop.cancel();
            server.await.expect("the server stops");
            world
        })
        .await
}

/// Runs a host that does not encrypt.
pub(crate) async fn plain<F: Future<Output = ()>>(limits: Limits, client: impl FnOnce(Rc<Host>) -> F) {
    with_host(None, limits, client).await;
}
