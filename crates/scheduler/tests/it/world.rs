//! A running scheduler and who connects to it. Every test ends with a look at the metrics: nothing is held.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_api::{
    Address, Admin, CapabilityUri, Connection, Key, Limits, PoolAdmin, Reference, Registration, Submission,
};
use kiln_scheduler::state::lease::{Lease, Terms};
use kiln_scheduler::{Keeping, Running, Scheduler, Settings};
use kiln_testkit::Postgres;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, LocalSet};
use tokio_util::sync::CancellationToken;

use crate::peers::{JobDescriptions as _, TestWorker};

pub(crate) const POOL: &[u8] = b"linux";

/// How long a test may hang.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    key: Key,
    pub(crate) secure: bool,
    pub(crate) limits: Limits,
    pub(crate) keeping: Keeping,
    /// A database that schedulers share, each with a state directory of its own.
    pub(crate) shared: Option<Postgres>,
    server: RefCell<Option<Server>>,
    /// How many schedulers there have been.
    turns: Cell<u32>,
}

struct Server {
    running: Running,
    stop: CancellationToken,
    task: JoinHandle<()>,
    lease: Option<Lease>,
}

/// Somebody's connection, and what it was opened for.
pub(crate) struct Guest<R> {
    pub(crate) connection: Wire,
    pub(crate) it: R,
}

/// A connection that can be cut.
pub(crate) struct Wire {
    connection: Connection,
    relay: AbortHandle,
    frozen: watch::Sender<bool>,
}

impl Wire {
    /// Stops it, or lets it go on: both sides are there, and nothing comes through.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Waits until it is over, and is this side's no more.
    pub(crate) async fn over(self) {
        self.connection.closed().await;
    }

    /// Cuts it, without a word to anyone.
    pub(crate) async fn cut(self) {
        self.relay.abort();
        self.connection.closed().await;
    }
}

/// Returns an address that leads to another's, once, and what cuts the connection and stops it.
async fn relay(to: &Address) -> (Address, AbortHandle, watch::Sender<bool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("it has one").port();
    let Address::Tcp { port: target, .. } = *to else { panic!("not in these tests") };
    let (freeze, mut frozen) = watch::channel(false);
    let relay = tokio::task::spawn_local(async move {
        let (mut one, _) = listener.accept().await.expect("somebody connects");
        let mut other = TcpStream::connect(("127.0.0.1", target)).await.expect("it listens");
        one.set_nodelay(true).expect("it is open");
        other.set_nodelay(true).expect("it is open");
        // How it ends is for the two to see.
        let mut copied = std::pin::pin!(tokio::io::copy_bidirectional(&mut one, &mut other));
        loop {
            tokio::select! {
                biased;
                Ok(()) = frozen.changed() => {}
                _ = &mut copied, if !*frozen.borrow() => break,
                else => break,
            }
        }
    });
    (Address::Tcp { host: "127.0.0.1".to_owned(), port }, relay.abort_handle(), freeze)
}

impl<R> Deref for Guest<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.it
    }
}

/// Runs `test` with a scheduler, and checks that it holds nothing in the end.
pub(crate) async fn world(test: impl AsyncFnOnce(&World)) {
    run(PATIENCE, World::new(true), test).await;
}

/// The same with a scheduler that keeps jobs so.
pub(crate) async fn keeping_world(keeping: Keeping, test: impl AsyncFnOnce(&World)) {
    run(PATIENCE, World { keeping, ..World::new(true) }, test).await;
}

/// The least patience there is: who is lost is lost.
pub(crate) fn impatient() -> Keeping {
    Keeping { worker_grace: Duration::ZERO, client_grace: Duration::ZERO, ..Keeping::default() }
}

/// The same with a scheduler of which peers may take so much.
pub(crate) async fn limited_world(limits: Limits, test: impl AsyncFnOnce(&World)) {
    run(PATIENCE, World { limits, ..World::new(true) }, test).await;
}

/// The same without encryption.
pub(crate) async fn insecure_world(test: impl AsyncFnOnce(&World)) {
    run(PATIENCE, World::new(false), test).await;
}

/// The same, where each scheduler that is started is on another machine: they share a database.
pub(crate) async fn shared_world(test: impl AsyncFnOnce(&World)) {
    let shared = Some(Postgres::start().expect("a PostgreSQL"));
    run(PATIENCE, World { shared, ..World::new(true) }, test).await;
}

/// The same, for tests that stop the clock.
pub(crate) async fn timeless_world(test: impl AsyncFnOnce(&World)) {
    // Where time flies, no answer comes in time.
    let keeping = Keeping { worker_silence: Duration::ZERO, ..Keeping::default() };
    run(Duration::from_secs(1_000_000), World { keeping, ..World::new(true) }, test).await;
}

async fn run(patience: Duration, world: World, test: impl AsyncFnOnce(&World)) {
    let local = LocalSet::new();
    let all = local.run_until(async {
        world.start().await;
        test(&world).await;
        world.assert_that_nothing_is_held().await;
        world.stop().await;
    });
    tokio::time::timeout(patience, all).await.expect("a test does not hang");
}

impl World {
    pub(crate) fn new(secure: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (key, _) = Key::generate().expect("a key");
        Self {
            directory,
            key,
            secure,
            limits: Limits::default(),
            keeping: Keeping::default(),
            shared: None,
            server: RefCell::default(),
            turns: Cell::default(),
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the state directory of the scheduler that there is, or was last.
    pub(crate) fn scheduler_state(&self) -> PathBuf {
        match self.shared {
            Some(_) => self.state().join(format!("scheduler-{}", self.turns.get())),
            None => self.state().to_owned(),
        }
    }

    /// Waits until so many bytes of logs are in the database, if one is shared.
    pub(crate) async fn until_archived(&self, bytes: usize) {
        let Some(shared) = &self.shared else { return };
        while shared.query("SELECT sum(size) FROM kiln_logs").expect("an answer").trim() != bytes.to_string() {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            state: self.scheduler_state(),
            tenure: None,
            key: self.key.clone(),
            secure: self.secure,
            listen: Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
            public: None,
            pools: vec![POOL.into(), "arm".into()],
            capabilities: None,
            web: Some(([127, 0, 0, 1], 0).into()),
            limits: self.limits.clone(),
            keeping: self.keeping.clone(),
        }
    }

    pub(crate) async fn start(&self) {
        self.turns.set(self.turns.get() + 1);
        self.start_with(self.settings()).await;
    }

    pub(crate) async fn start_with(&self, mut settings: Settings) {
        let mut lease = None;
        if let Some(shared) = &self.shared {
            let server = shared.uri().parse().expect("its URI");
            let terms = Terms::new(&settings.key, settings.secure, &[]);
            let name = settings.state.display().to_string();
            let held = Lease::acquire(server, name, Some(terms), |_| ()).await.expect("the lease");
            std::fs::create_dir_all(&settings.state).expect("a directory");
            settings.tenure = Some(held.tenure());
            lease = Some(held);
        }
        let scheduler = Scheduler::start(settings).await.expect("a scheduler");
        let running = scheduler.running();
        let stop = CancellationToken::new();
        let task = tokio::task::spawn_local(scheduler.serve(stop.clone()));
        *self.server.borrow_mut() = Some(Server { running, stop, task, lease });
    }

    pub(crate) async fn stop(&self) {
        let server = self.server.borrow_mut().take();
        let Some(Server { stop, task, lease, .. }) = server else { return };
        stop.cancel();
        task.await.expect("the scheduler ends");
        if let Some(lease) = lease {
            lease.release().await;
        }
    }

    pub(crate) fn running(&self) -> Running {
        self.server.borrow().as_ref().expect("it runs").running.clone()
    }

    pub(crate) async fn open<R: Reference>(&self, uri: &CapabilityUri) -> Guest<R> {
        let (key, _) = Key::generate().expect("a key");
        let (address, relay, frozen) = relay(uri.addresses.first()).await;
        let through = CapabilityUri { addresses: address.into(), ..uri.clone() };
        let connection = Connection::open(&through, &key, Limits::default()).await.expect("a connection");
        Guest { it: connection.bootstrap(&uri.service), connection: Wire { connection, relay, frozen } }
    }

    pub(crate) async fn admin(&self) -> Guest<Admin> {
        self.open(&self.running().admin).await
    }

    pub(crate) async fn pool_admin(&self) -> Guest<PoolAdmin> {
        let Guest { connection, it } = self.admin().await;
        Guest { connection, it: it.pool(POOL) }
    }

    pub(crate) async fn registration(&self) -> Guest<Registration> {
        let uri = self.running().pools[&bstr::BString::from(POOL)].clone();
        self.open(&uri).await
    }

    /// Adds a client, and connects as one.
    pub(crate) async fn client(&self, name: &str) -> Guest<Submission> {
        let uri = self.add_client(name).await;
        self.open(&uri).await
    }

    pub(crate) async fn add_client(&self, name: &str) -> CapabilityUri {
        self.admin().await.add_client(name.as_bytes()).save().await.expect("a URI")
    }

    pub(crate) async fn worker(&self, name: &str, capacity: i32) -> TestWorker {
        TestWorker::register(self, name, capacity).await.expect("it is registered")
    }

    /// Registers a worker, when its name is free.
    pub(crate) async fn until_registered(&self, name: &str) -> TestWorker {
        loop {
            match TestWorker::register(self, name, 1).await {
                Ok(worker) => return worker,
                Err(error) => assert_eq!(error.message, "Worker already registered!"),
            }
        }
    }

    /// Returns how what `uri` names is reached now: after a restart the port is another.
    pub(crate) fn here(&self, uri: &CapabilityUri) -> CapabilityUri {
        CapabilityUri { addresses: self.running().admin.addresses, ..uri.clone() }
    }

    pub(crate) async fn show(&self) -> String {
        self.pool_admin().await.show().await.expect("it is shown").to_string()
    }

    /// Waits until `show` says what is wanted.
    pub(crate) async fn until_shown(&self, wanted: impl Fn(&str) -> bool) {
        self.until_shown_in("linux", wanted).await;
    }

    pub(crate) async fn until_shown_in(&self, pool: &str, wanted: impl Fn(&str) -> bool) {
        let all = self.admin().await;
        let admin = all.pool(pool.as_bytes());
        while !wanted(&admin.show().await.expect("it is shown").to_string()) {
            tokio::task::yield_now().await;
        }
    }

    /// Asks over HTTP. Returns the whole answer.
    pub(crate) async fn get(&self, path: &str) -> String {
        let address = self.running().web.expect("there is HTTP");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Returns the value of a metric, labels and all.
    pub(crate) async fn metric(&self, name: &str) -> i64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).trim().parse().expect("a number")
    }

    async fn assert_that_nothing_is_held(&self) {
        if self.server.borrow().is_none() {
            return;
        }
        loop {
            let text = self.get("/metrics").await;
            let held = text
                .lines()
                .filter(|line| line.starts_with("ocluster_") && !line.contains("_total") && !line.ends_with(" 0"));
            let held: Vec<_> = held.collect();
            if held.is_empty() {
                assert!(text.contains("ocluster_pool_workers_connected"), "{text}");
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Runs one job of `client` on `worker`, to see that all is well.
pub(crate) async fn a_job_goes_through(pool: &[u8], client: &Submission, worker: &TestWorker) {
    let ticket = client.submit(pool, &"".job(), false).expect("it is small");
    let job = ticket.job();
    let task = worker.take().await;
    task.finish(Ok("fine".into()));
    assert_eq!(job.result().await.expect("it ends well"), "fine");
}

/// Returns the vectors' directory.
pub(crate) fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/vectors")
}
