//! How long jobs take that do nothing: through a scheduler, over TLS on the loopback interface.
//!
//! ```sh
//! cargo run --release -p kiln-scheduler --example no_op_jobs
//! ```

use std::error::Error as StdError;
use std::thread;
use std::time::{Duration, Instant};

use bstr::BString;
use futures::future::join_all;
use kiln_api::{
    Action, Address, Admin, Answer, CapabilityUri, Connection, Error, Job, JobDescription, JobServer, Key, Limits,
    LogChunk, MAX_CHUNK, Metric, MetricsSource, Registration, Submission, Worker, WorkerServer, answer,
};
use kiln_scheduler::{Running, Scheduler, Settings};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

type Result<T> = std::result::Result<T, Box<dyn StdError>>;

const POOL: &str = "linux";
const CAPACITY: i32 = 10;
/// How long the log is that is read in the end, in bytes.
const LONG: i64 = 1 << 30;

struct Nothing;

impl WorkerServer for Nothing {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        answer(Err(Error::failed("none")))
    }
    fn self_update(&self) -> Answer<()> {
        answer(Err(Error::failed("no")))
    }
    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}

/// A job with a log of so many bytes, that is over.
struct Done(i64);

impl JobServer for Done {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let left = usize::try_from(self.0 - start).unwrap_or_default();
        let bytes = vec![b'x'; left.min(MAX_CHUNK)];
        let next = start + i64::try_from(bytes.len()).unwrap_or_default();
        answer(Ok(LogChunk { bytes, next }))
    }
    fn result(&self) -> Answer<BString> {
        answer(Ok("".into()))
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

fn description() -> JobDescription {
    JobDescription {
        action: Action::OBuilder("((from scratch))".into()),
        cache_hint: "".into(),
        repository: "".into(),
        commits: vec![],
        secrets: vec![],
    }
}

/// Runs `future` on a thread of its own.
fn on_a_thread<F: Future<Output = Result<()>>>(make: impl FnOnce() -> F + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, make()).expect("it goes well");
    })
}

async fn open(uri: &CapabilityUri) -> Result<Connection> {
    let (key, _) = Key::generate()?;
    Ok(Connection::open(uri, &key, Limits::default()).await?)
}

async fn worker(uri: CapabilityUri, log: i64, stop: CancellationToken) -> Result<()> {
    let connection = open(&uri).await?;
    let registration: Registration = connection.bootstrap(&uri.service);
    let queue = registration.register(format!("w{log}").as_bytes(), Worker::serve(Nothing), CAPACITY).await?;
    let lane = async || while queue.pop(Job::serve(Done(log))).await.is_ok() {};
    tokio::select! {
        _ = join_all((0..CAPACITY).map(|_| lane())) => {}
        () = stop.cancelled() => {}
    }
    connection.close().await;
    Ok(())
}

/// Does one job, as a client does that shows its log. Returns the log's length in bytes.
async fn job(client: &Submission) -> Result<usize> {
    let ticket = client.submit(POOL.as_bytes(), &description(), false)?;
    let job = ticket.job();
    let result = job.result();
    let (mut length, mut start) = (0, 0);
    loop {
        let chunk = job.log(start).await?;
        if chunk.bytes.is_empty() {
            break;
        }
        length += chunk.bytes.len();
        start = chunk.next;
    }
    result.await?;
    Ok(length)
}

async fn measure(running: Running) -> Result<()> {
    let admin_connection = open(&running.admin).await?;
    let admin: Admin = admin_connection.bootstrap(&running.admin.service);
    let uri = admin.add_client(b"client").save().await?;
    let connection = open(&uri).await?;
    let client: Submission = connection.bootstrap(&uri.service);
    let pool = running.pools[&BString::from(POOL)].clone();
    let stop = CancellationToken::new();
    let (to, until) = (pool.clone(), stop.clone());
    let short = on_a_thread(move || worker(to, 40, until));

    for _ in 0..50 {
        job(&client).await?;
    }
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        job(&client).await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("one after the other: median {:?}, 99 of 100 within {:?}", times[500], times[990]);

    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        for result in join_all((0..100).map(|_| job(&client))).await {
            result?;
        }
        times.push(start.elapsed());
    }
    times.sort();
    println!("100 at once: median {:?}, slowest {:?}", times[10], times[19]);
    stop.cancel();
    short.join().map_err(|_| "the worker failed")?;

    let stop = CancellationToken::new();
    let until = stop.clone();
    let long = on_a_thread(move || worker(pool, LONG, until));
    let start = Instant::now();
    let length = job(&client).await?;
    let rate = length as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("a log of {} MB: {rate:.0} MB/s", length >> 20);
    stop.cancel();
    long.join().map_err(|_| "the worker failed")?;
    connection.close().await;
    admin_connection.close().await;
    Ok(())
}

fn main() -> Result<()> {
    let state = tempfile::tempdir()?;
    let (key, _) = Key::generate()?;
    let settings = Settings {
        state: state.path().to_owned(),
        tenure: None,
        key,
        secure: true,
        listen: Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        public: None,
        pools: vec![POOL.into()],
        capabilities: None,
        web: None,
        limits: Limits::default(),
        keeping: kiln_scheduler::Keeping::default(),
    };
    let (told, running) = std::sync::mpsc::channel();
    let stop = CancellationToken::new();
    let until = stop.clone();
    let scheduler = on_a_thread(move || async move {
        let scheduler = Scheduler::start(settings).await?;
        told.send(scheduler.running())?;
        scheduler.serve(until).await;
        Ok(())
    });
    let running = running.recv_timeout(Duration::from_secs(10))?;
    on_a_thread(move || measure(running)).join().map_err(|_| "the client failed")?;
    stop.cancel();
    scheduler.join().map_err(|_| "the scheduler failed")?;
    Ok(())
}
