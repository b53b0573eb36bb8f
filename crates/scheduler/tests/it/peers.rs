//! A worker that does what a test says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Action, Answer, Error, Job, JobDescription, JobServer, KeptJobServer, LogChunk, MAX_CHUNK, Metric, MetricsSource,
    PoolAdmin, Progress, ProgressServer, Queue, Run, Submission, Worker, WorkerServer, answer,
};
use tokio::sync::watch;

use crate::world::{Guest, Wire, World};

pub(crate) struct TestWorker {
    pub(crate) connection: Wire,
    pub(crate) queue: Queue,
    pub(crate) updates: Updates,
}

/// What it does when it is to update itself.
pub(crate) type Updates = Rc<RefCell<Box<dyn FnMut() -> Answer<()>>>>;

struct Itself {
    name: String,
    updates: Updates,
}

impl WorkerServer for Itself {
    fn metrics(&self, source: MetricsSource) -> Answer<Metric> {
        let data = format!("metrics of {} ({source:?})\n", self.name).into();
        answer(Ok(Metric { content_type: "text/plain; version=0.0.4".into(), data }))
    }

    fn self_update(&self) -> Answer<()> {
        (self.updates.borrow_mut())()
    }

    fn additional_metric(&self, source: BString) -> Answer<Option<Metric>> {
        answer(Ok((source == "page").then(|| Metric { content_type: "text/html".into(), data: "<b>".into() })))
    }
}

impl TestWorker {
    pub(crate) async fn register(world: &World, name: &str, capacity: i32) -> Result<Self, Error> {
        Self::register_at(world.registration().await, name, capacity).await
    }

    pub(crate) async fn register_at(
        at: Guest<kiln_api::Registration>,
        name: &str,
        capacity: i32,
    ) -> Result<Self, Error> {
        let updates: Updates = Rc::new(RefCell::new(Box::new(|| answer(Err(Error::failed("no update"))))));
        let itself = Worker::serve(Itself { name: name.to_owned(), updates: Rc::clone(&updates) });
        let queue = at.register(name.as_bytes(), itself, capacity).await?;
        Ok(Self { connection: at.connection, queue, updates })
    }

    /// Takes one job.
    pub(crate) async fn take(&self) -> Task {
        self.try_take().await.expect("there is a job")
    }

    pub(crate) async fn try_take(&self) -> Result<Task, Error> {
        let work = Rc::new(Work::default());
        let job = Job::serve(Served(Rc::clone(&work)));
        let description = self.queue.pop(job).await?;
        Ok(Task { description, work, run: None })
    }

    /// Does everything that comes, `lanes` jobs at once, and says so to `done`, until the future is dropped.
    pub(crate) async fn work(&self, lanes: usize, done: impl Fn(&JobDescription)) {
        let lane = async || {
            while let Ok(task) = self.try_take().await {
                done(&task.description);
                task.finish(Ok("".into()));
            }
        };
        futures::future::join_all((0..lanes).map(|_| lane())).await;
    }
}

impl TestWorker {
    /// Waits until the scheduler has had an answer to something that it asked after now.
    pub(crate) async fn until_asked_again(&self, admin: &PoolAdmin) {
        admin.worker(b"w1").metrics(MetricsSource::Agent).await.expect("it answers");
    }
}

/// A worker that comes back for its jobs.
pub(crate) struct KeptWorker {
    connection: Wire,
    pub(crate) queue: Queue,
    itself: Away,
}

/// Such a worker without a connection.
pub(crate) struct Away {
    name: String,
    process: Vec<u8>,
}

impl KeptWorker {
    pub(crate) async fn enter(world: &World, name: &str, process: &[u8]) -> Self {
        Self::try_enter(world, name, process).await.expect("it is registered")
    }

    pub(crate) async fn try_enter(world: &World, name: &str, process: &[u8]) -> Result<Self, Error> {
        let at = world.registration().await;
        let updates: Updates = Rc::new(RefCell::new(Box::new(|| answer(Err(Error::failed("no update"))))));
        let worker = Worker::serve(Itself { name: name.to_owned(), updates });
        let queue = at.enter(name.as_bytes(), worker, 4, process).await?;
        let itself = Away { name: name.to_owned(), process: process.to_owned() };
        Ok(Self { connection: at.connection, queue, itself })
    }

    /// Loses its connection.
    pub(crate) async fn cut(self) -> Away {
        self.connection.cut().await;
        self.itself
    }

    /// Is as if it were stopped, or goes on.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.connection.freeze(frozen);
    }

    /// Leaves its pool, and stays connected as long as what this returns is there.
    pub(crate) fn leave(self) -> Wire {
        self.connection
    }

    /// Waits until the scheduler has ended its connection.
    pub(crate) async fn over(self) -> Away {
        self.connection.over().await;
        self.itself
    }

    /// Is without a connection because its scheduler is.
    pub(crate) fn away(self) -> Away {
        self.itself
    }

    /// Takes one job. What it does first says that it is ready.
    pub(crate) async fn take(&self) -> Task {
        self.queue.ready().await.expect("it is welcome");
        let work = Rc::new(Work::default());
        let (description, run) = self.queue.take(Job::serve_kept(ServedKept(Rc::clone(&work)))).await.expect("a job");
        Task { description, work, run: Some(run) }
    }

    /// Offers a job. Returns whether it is wanted.
    pub(crate) async fn offer(&self, task: &Task) -> bool {
        let job = Job::serve_kept(ServedKept(Rc::clone(&task.work)));
        self.queue.offer(task.run(), job).await.expect("an answer")
    }

    /// A job that nobody does.
    pub(crate) fn nothing() -> impl KeptJobServer {
        ServedKept(Rc::default())
    }
}

impl Away {
    /// Connects again.
    pub(crate) async fn enter(&self, world: &World) -> KeptWorker {
        KeptWorker::enter(world, &self.name, &self.process).await
    }
}

/// A job that a worker has.
pub(crate) struct Task {
    pub(crate) description: JobDescription,
    work: Rc<Work>,
    run: Option<Run>,
}

#[derive(Default)]
struct Work {
    log: RefCell<Vec<u8>>,
    result: RefCell<Option<Result<BString, Error>>>,
    log_has_ended: Cell<bool>,
    is_cancelled: Cell<bool>,
    is_forgotten: Cell<bool>,
    is_dropped: Cell<bool>,
    changed: watch::Sender<()>,
}

impl Work {
    async fn until(&self, condition: impl Fn(&Work) -> bool) {
        let mut changed = self.changed.subscribe();
        while !condition(self) {
            changed.changed().await.expect("it is here");
        }
    }

    fn end(&self, result: Result<BString, Error>) {
        self.result.borrow_mut().get_or_insert(result);
        self.changed.send_replace(());
    }
}

impl Task {
    pub(crate) fn write(&self, text: &str) {
        self.work.log.borrow_mut().extend_from_slice(text.as_bytes());
        self.work.changed.send_replace(());
    }

    pub(crate) fn finish(&self, result: Result<BString, Error>) {
        self.work.end(result);
    }

    /// Says that no more of the log will come.
    pub(crate) fn end_log(&self) {
        self.work.log_has_ended.set(true);
        self.work.changed.send_replace(());
    }

    /// Returns which run it is, of a worker that comes back for it.
    pub(crate) fn run(&self) -> Run {
        self.run.expect("it is known")
    }

    /// Waits until the scheduler needs it no more.
    pub(crate) async fn forgotten(&self) {
        self.work.until(|work| work.is_forgotten.get()).await;
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.work.is_forgotten.get()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.work.is_cancelled.get()
    }

    /// Waits until nobody refers to the job any more.
    pub(crate) async fn dropped(&self) {
        self.work.until(|work| work.is_dropped.get()).await;
    }

    /// Returns whether somebody refers to it, of a worker that comes back for it.
    pub(crate) fn is_referred_to(&self) -> bool {
        Rc::strong_count(&self.work) > 1
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.work.is_dropped.get()
    }

    /// Waits until somebody cancels the job.
    pub(crate) async fn cancelled(&self) {
        self.work.until(|work| work.is_cancelled.get()).await;
    }
}

struct Served(Rc<Work>);

impl JobServer for Served {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        log(&self.0, start)
    }

    fn result(&self) -> Answer<BString> {
        result(&self.0)
    }

    fn cancel(&self) -> Answer<()> {
        cancel(&self.0)
    }
}

fn log(work: &Rc<Work>, start: i64) -> Answer<LogChunk> {
    let work = Rc::clone(work);
    Box::pin(async move {
        let start = usize::try_from(start).map_err(|_| Error::failed("not in this test"))?;
        work.until(|work| {
            work.log.borrow().len() > start || work.log_has_ended.get() || work.result.borrow().is_some()
        })
        .await;
        let log = work.log.borrow();
        let end = log.len().min(start + MAX_CHUNK);
        let bytes = log.get(start..end).unwrap_or_default().to_vec();
        Ok(LogChunk { bytes, next: i64::try_from(end.max(start)).expect("it is small") })
    })
}

fn result(work: &Rc<Work>) -> Answer<BString> {
    let work = Rc::clone(work);
    Box::pin(async move {
        work.until(|work| work.result.borrow().is_some()).await;
        work.result.borrow().clone().expect("there is one")
    })
}

fn cancel(work: &Rc<Work>) -> Answer<()> {
    work.is_cancelled.set(true);
    work.end(Err(Error::failed("Build cancelled")));
    answer(Ok(()))
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.is_dropped.set(true);
        self.0.end(Err(Error::failed("Build cancelled")));
    }
}

/// The same, for who comes back.
struct ServedKept(Rc<Work>);

impl JobServer for ServedKept {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        log(&self.0, start)
    }

    fn result(&self) -> Answer<BString> {
        result(&self.0)
    }

    fn cancel(&self) -> Answer<()> {
        cancel(&self.0)
    }
}

impl KeptJobServer for ServedKept {
    fn forget(&self) -> Answer<()> {
        self.0.is_forgotten.set(true);
        self.0.changed.send_replace(());
        answer(Ok(()))
    }
}

/// Descriptions of jobs, by their hints.
pub(crate) trait JobDescriptions {
    fn job(&self) -> JobDescription;
}

impl JobDescriptions for str {
    fn job(&self) -> JobDescription {
        JobDescription {
            action: Action::OBuilder(format!("((from {self}))").into()),
            cache_hint: self.into(),
            repository: "".into(),
            commits: vec![],
            secrets: vec![],
        }
    }
}

/// Reads a log to its end.
pub(crate) async fn whole_log(job: &Job) -> Result<String, Error> {
    let (mut text, mut start) = (Vec::new(), 0);
    loop {
        let chunk = job.log(start).await?;
        if chunk.bytes.is_empty() {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend_from_slice(&chunk.bytes);
        start = chunk.next;
    }
}

/// Submits, and returns the ticket.
pub(crate) fn submit(client: &Submission, hint: &str) -> kiln_api::Ticket {
    client.submit(crate::world::POOL, &hint.job(), false).expect("it is small")
}

/// Notes what it is told.
#[derive(Clone, Default)]
pub(crate) struct Notes(Rc<RefCell<Vec<String>>>, watch::Sender<()>);

impl Notes {
    pub(crate) fn progress(&self) -> Progress {
        Progress::serve(self.clone())
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    pub(crate) async fn until(&self, wanted: &str) {
        let mut changed = self.1.subscribe();
        while !self.0.borrow().iter().any(|note| note == wanted) {
            changed.changed().await.expect("it is here");
        }
    }
}

impl ProgressServer for Notes {
    fn report(&self, status: &[u8]) -> Answer<()> {
        self.0.borrow_mut().push(String::from_utf8_lossy(status).into_owned());
        self.1.send_replace(());
        answer(Ok(()))
    }
}
