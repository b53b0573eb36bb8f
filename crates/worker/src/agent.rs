//! A worker's life: it connects to its scheduler, takes jobs as long as it has room for them, and connects again when it is cut off.
//!
//! Objects of the wire live on this thread, in a `LocalSet`; jobs are done on another runtime.
//!
//! A scheduler of Kiln's keeps jobs: when the connection is lost, they go on, and are handed over again by the next. With a scheduler of
//! OCluster's, a job ends when nobody refers to it any more, so one whose connection is lost is cancelled.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bstr::{BString, ByteSlice as _};
use kiln_api::{
    Action, Answer, CapabilityUri, ConnectError, Connection, Dockerfile, Error, ErrorKind, Job, JobDescription, JobLog,
    JobServer, KeptJobServer, Key, KeyError, Limits, LogChunk, Metric, MetricsSource, Queue, Registration, Retries,
    Run, ServiceId, Worker, WorkerServer, answer,
};
use regex::bytes::Regex;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::hands::{Hands, JobError};
use crate::job::Progress;
use crate::metrics::{self, Metrics, Others};
use crate::upkeep::{self, Clones, DockerPrune, HealthCheck};

/// How long to wait before connecting again: first, and at last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How long a worker that is to end tries to tell its scheduler what came of its jobs.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Debug)]
pub struct Settings {
    /// What it is called: no other worker of the pool may be.
    pub name: BString,
    /// How many jobs it does at once.
    pub capacity: u32,
    /// Jobs that count for more than one.
    pub weights: Vec<Weight>,
    /// The pool that it works for.
    pub pool: CapabilityUri,
    /// What it can do.
    pub hands: Arc<Hands>,
    /// A directory for the logs of jobs, which must exist.
    pub logs: PathBuf,
    /// How long a job's log may be, in bytes.
    pub log_limit: u64,
    /// Whether it can work.
    pub health: Option<HealthCheck>,
    /// When Docker's images go.
    pub docker_prune: Option<DockerPrune>,
    /// Which clones of repositories are kept.
    pub clones: Clones,
    /// Whose metrics it passes on.
    pub metrics: Others,
    /// What its scheduler may take.
    pub limits: Limits,
}

/// Jobs that count for more than one.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Those whose spec or recipe has this.
    pub pattern: Regex,
    /// For how many they count.
    pub weight: u32,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its scheduler wants it to start again, as the newest version.
    Update,
}

/// Why a worker cannot work.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AgentError {
    #[error("cannot make a key")]
    Key(#[from] KeyError),
    #[error("this worker's capability is not one: the scheduler does not know it")]
    UnknownCapability,
    #[error(transparent)]
    WrongKey(ConnectError),
}

/// Why a session with a scheduler ended.
enum Over {
    Ended(Ended),
    Lost(String),
}

/// What belongs to the worker, whatever its connection does.
struct Agent {
    settings: Settings,
    /// What this process calls itself.
    process: Vec<u8>,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    /// How many jobs are being done.
    running: watch::Sender<usize>,
    /// Those that its scheduler has the result of when it says so: it keeps them, and offers them when it is connected again.
    kept: watch::Sender<HashMap<Run, Arc<Progress>>>,
    /// How many jobs a scheduler of OCluster's refers to, those included that are done.
    lent: watch::Sender<usize>,
    healthy: watch::Receiver<bool>,
    /// The scheduler wants the newest version.
    update: CancellationToken,
    builds: Handle,
}

/// Works until `stop`, and until its jobs are done after that; they are done on `builds`.
///
/// # Errors
///
/// If its capability is wrong. What may pass, as a scheduler that does not answer, is waited for.
pub async fn run(settings: Settings, stop: CancellationToken, builds: Handle) -> Result<Ended, AgentError> {
    let metrics = Arc::new(Metrics::new());
    // Until the first check, a worker that has one is not known to be well.
    let (healthy_sender, healthy) = watch::channel(settings.health.is_none());
    let mut chores = JoinSet::new();
    if let Some(check) = settings.health.clone() {
        let (logs, metrics) = (settings.logs.clone(), Arc::clone(&metrics));
        chores.spawn_on(async move { upkeep::check(check, &logs, metrics, healthy_sender).await }, &builds);
    }
    if let Some(prune) = settings.docker_prune {
        let (logs, metrics, hands) = (settings.logs.clone(), Arc::clone(&metrics), Arc::clone(&settings.hands));
        chores.spawn_on(async move { upkeep::prune(prune, hands, &logs, metrics).await }, &builds);
    }
    let (clones, hands) = (settings.clones, Arc::clone(&settings.hands));
    chores.spawn_on(async move { upkeep::prune_clones(clones, hands).await }, &builds);
    let slots = Arc::new(Semaphore::new(usize::try_from(settings.capacity).unwrap_or(Semaphore::MAX_PERMITS)));
    let agent = Rc::new(Agent {
        settings,
        process: ServiceId::random().0,
        metrics,
        slots,
        running: watch::Sender::new(0),
        kept: watch::Sender::default(),
        lent: watch::Sender::new(0),
        healthy,
        update: CancellationToken::new(),
        builds,
    });
    let mut retries = Retries::new(PAUSE.0, PAUSE.1);
    loop {
        let why = match agent.session(&stop, &mut retries).await? {
            Over::Ended(ended) => return Ok(ended),
            Over::Lost(why) => why,
        };
        let pause = retries.pause();
        tracing::warn!(why, again = ?pause, "no scheduler");
        tokio::select! {
            ended = agent.end(&stop) => return Ok(ended),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Agent {
    /// Waits until the worker is to end.
    async fn leave(&self, stop: &CancellationToken) -> Ended {
        tokio::select! {
            () = stop.cancelled() => Ended::Stopped,
            () = self.update.cancelled() => Ended::Update,
        }
    }

    /// Waits until the worker is to end, its jobs are done, and its scheduler knows, or cannot be told.
    async fn end(&self, stop: &CancellationToken) -> Ended {
        let ended = self.leave(stop).await;
        // Both senders are the agent's.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
        let told = async {
            let _ = self.kept.subscribe().wait_for(HashMap::is_empty).await;
            let _ = self.lent.subscribe().wait_for(|lent| *lent == 0).await;
        };
        if tokio::time::timeout(LAST_WORDS, told).await.is_err() {
            let jobs = self.kept.borrow().len() + *self.lent.borrow();
            tracing::warn!(jobs, "ending with results that no scheduler has taken");
        }
        ended
    }

    /// Connects and works until the connection is lost or the worker is to end.
    async fn session(self: &Rc<Self>, stop: &CancellationToken, retries: &mut Retries) -> Result<Over, AgentError> {
        let Settings { pool, name, limits, .. } = &self.settings;
        // A key for each connection: OCaml's schedulers close one of two with the same.
        let (key, _) = Key::generate()?;
        let connecting = Connection::open(pool, &key, limits.clone());
        let connection = tokio::select! {
            ended = self.end(stop) => return Ok(Over::Ended(ended)),
            connection = connecting => match connection {
                Ok(connection) => connection,
                Err(error) if error.is_wrong_key() => return Err(AgentError::WrongKey(error)),
                Err(error) => return Ok(Over::Lost(reason(&error))),
            },
        };
        let registered = tokio::select! {
            ended = self.end(stop) => return Ok(Over::Ended(ended)),
            registered = self.register(connection.bootstrap(&pool.service)) => registered,
        };
        let (queue, scheduler) = match registered {
            Ok(registered) => registered,
            Err(error) if error.message == "Unknown persistent service ID" => {
                return Err(AgentError::UnknownCapability);
            }
            Err(error) => return Ok(Over::Lost(error.to_string())),
        };
        *retries = Retries::new(PAUSE.0, PAUSE.1);
        tracing::info!(worker = ?name, "registered");
        let over = self.work(&connection, queue, scheduler, stop).await;
        connection.close().await;
        Ok(over)
    }

    /// Becomes a worker of the pool, and hands over what it does already.
    async fn register(self: &Rc<Self>, registration: Registration) -> Result<(Queue, SchedulerKind), Error> {
        let Settings { name, capacity, .. } = &self.settings;
        let capacity = i32::try_from(*capacity).unwrap_or(i32::MAX);
        let controls = || Worker::serve(Controls { agent: Rc::clone(self) });
        match registration.enter(name, controls(), capacity, &self.process).await {
            Ok(queue) => {
                let offers: Vec<_> = self.kept.borrow().iter().map(|(run, kept)| (*run, Arc::clone(kept))).collect();
                for (run, progress) in offers {
                    let served = KeptJob { agent: Rc::clone(self), progress, run: Cell::new(Some(run)).into() };
                    let is_wanted = queue.offer(run, Job::serve_kept(served)).await?;
                    tracing::info!(job = %run.job, run = run.number, is_wanted, "handed a job over again");
                    if !is_wanted {
                        self.drop_kept(run);
                    }
                }
                queue.ready().await?;
                Ok((queue, SchedulerKind::Kiln))
            }
            Err(error) if error.kind == ErrorKind::Unimplemented => {
                // What another scheduler gave us, this one cannot take.
                let runs: Vec<_> = self.kept.borrow().keys().copied().collect();
                runs.into_iter().for_each(|run| self.drop_kept(run));
                Ok((registration.register(name, controls(), capacity).await?, SchedulerKind::OCluster))
            }
            Err(error) => Err(error),
        }
    }

    /// Cancels a job that nobody wants any more, and forgets it.
    fn drop_kept(&self, run: Run) {
        if let Some(progress) = self.forget(run) {
            progress.cancel.cancel();
        }
    }

    /// Forgets a job that its scheduler keeps.
    fn forget(&self, run: Run) -> Option<Arc<Progress>> {
        let mut forgotten = None;
        self.kept.send_modify(|kept| forgotten = kept.remove(&run));
        forgotten
    }

    /// Takes jobs until the connection is lost, or until the worker is to end and its jobs are done.
    async fn work(
        self: &Rc<Self>,
        connection: &Connection,
        queue: Queue,
        scheduler: SchedulerKind,
        stop: &CancellationToken,
    ) -> Over {
        let mut healthy = self.healthy.clone();
        let mut closed = std::pin::pin!(connection.closed());
        let mut leave = std::pin::pin!(self.leave(stop));
        let mut end = std::pin::pin!(self.end(stop));
        let mut is_leaving = false;
        // Not dropped when something else happens: a job might be on its way.
        let mut next = std::pin::pin!(self.next(queue.clone(), scheduler));
        loop {
            let active = !is_leaving && *healthy.borrow_and_update();
            if let Err(error) = queue.set_active(active).await {
                return Over::Lost(error.to_string());
            }
            loop {
                tokio::select! {
                    // A job that came before the scheduler was told is done, so it is looked for before the end.
                    biased;
                    () = &mut closed => return Over::Lost("the connection is lost".to_owned()),
                    job = &mut next => match job {
                        Ok(job) => {
                            self.start(job);
                            next.set(self.next(queue.clone(), scheduler));
                        }
                        Err(error) => return Over::Lost(error.to_string()),
                    },
                    _ = &mut leave, if !is_leaving => {
                        is_leaving = true;
                        break;
                    }
                    ended = &mut end, if is_leaving => return Over::Ended(ended),
                    Ok(()) = healthy.changed() => break,
                }
            }
        }
    }

    /// Waits until there is room for a job, and for a job.
    async fn next(self: &Rc<Self>, queue: Queue, scheduler: SchedulerKind) -> Result<Taken, Error> {
        let closed = || Error::failed("this worker has ended");
        let mut permit = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| closed())?;
        let progress = Progress::new(self.new_log().await);
        let description = match scheduler {
            SchedulerKind::OCluster => {
                let lent = Rc::new(RefCell::new(None));
                let description = queue.pop(progress.serve(Rc::clone(&lent) as _)).await?;
                *lent.borrow_mut() = Some(Counted::new(&self.lent));
                description
            }
            SchedulerKind::Kiln => {
                let run = Rc::new(Cell::new(None));
                let served = KeptJob { agent: Rc::clone(self), progress: Arc::clone(&progress), run: Rc::clone(&run) };
                let (description, taken) = queue.take(Job::serve_kept(served)).await?;
                run.set(Some(taken));
                self.kept.send_modify(|kept| _ = kept.insert(taken, Arc::clone(&progress)));
                description
            }
        };
        // From here on it is the worker's: it does not end before.
        let running = Counted::new(&self.running);
        let mut rest: Rest = Box::pin(Arc::clone(&self.slots).acquire_many_owned(self.weight(&description) - 1));
        // It is in the queue for its other slots before the next job asks for its first, so that two cannot wait for each other. The job itself
        // waits for them, and not this, which is dropped with the connection.
        let at_once = tokio::select! {
            biased;
            others = tokio::task::unconstrained(&mut rest) => Some(others),
            () = std::future::ready(()) => None,
        };
        let rest = match at_once {
            Some(others) => {
                permit.merge(others.map_err(|_| closed())?);
                None
            }
            None => Some(rest),
        };
        Ok(Taken { description, progress, permit, rest, running })
    }

    /// Makes a log for the next job. While there is no room for one, no job is asked for.
    async fn new_log(&self) -> JobLog {
        let mut is_first = true;
        loop {
            match JobLog::new(&self.settings.logs, self.settings.log_limit) {
                Ok(log) => return log,
                Err(error) if is_first => {
                    let directory = self.settings.logs.display();
                    tracing::error!(%error, %directory, "no file for a log; no jobs are taken until there is one");
                    is_first = false;
                }
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE.1).await;
        }
    }

    /// Returns for how many jobs one counts.
    fn weight(&self, description: &JobDescription) -> u32 {
        let text: &[u8] = match &description.action {
            Action::OBuilder(spec) => spec,
            Action::DockerBuild(build) => match &build.dockerfile {
                Dockerfile::Contents(text) => text,
                Dockerfile::Path(path) => path,
            },
            Action::Custom { kind, .. } => kind,
        };
        let matching = self.settings.weights.iter().filter(|weight| weight.pattern.is_match(text));
        matching.map(|weight| weight.weight).max().unwrap_or(1).clamp(1, self.settings.capacity.max(1))
    }

    /// Has a job done.
    fn start(self: &Rc<Self>, taken: Taken) {
        let Taken { description, progress, mut permit, rest, running } = taken;
        self.metrics.accepted.inc();
        self.metrics.running.inc();
        let (hands, metrics, name) =
            (Arc::clone(&self.settings.hands), Arc::clone(&self.metrics), self.settings.name.clone());
        self.builds.spawn(async move {
            if let Some(rest) = rest {
                tokio::select! {
                    Ok(others) = rest => permit.merge(others),
                    () = progress.cancel.cancelled() => {}
                }
            }
            let begun = Instant::now();
            let doing = {
                let progress = Arc::clone(&progress);
                tokio::spawn(async move { perform(&hands, &name, description, &progress).await })
            };
            // A bug in one job must not leave its client waiting.
            let done = doing.await.unwrap_or_else(|error| Done::error(format!("internal error: {error}")));
            if let Err(error) = progress.log.end(done.last.as_bytes()) {
                tracing::warn!(%error, "cannot write the end of a job's log");
            }
            tracing::info!(result = done.result, took = ?begun.elapsed(), "a job has ended");
            metrics.ended(done.result, begun.elapsed());
            progress.end(done.outcome);
            drop(permit);
            metrics.running.dec();
            drop(running);
        });
    }
}

/// What waits for slots.
type Rest = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A job that was taken.
struct Taken {
    description: JobDescription,
    progress: Arc<Progress>,
    permit: OwnedSemaphorePermit,
    /// What it needs besides, if it counts for several and there is no room yet.
    rest: Option<Rest>,
    running: Counted,
}

/// One of so many, until it is dropped.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Whose program a scheduler is.
#[derive(Debug, Clone, Copy)]
enum SchedulerKind {
    /// It keeps jobs, and takes them again from a worker that was cut off.
    Kiln,
    OCluster,
}

/// A job for a scheduler that keeps it: what refers to it may be lost with a connection, and that means nothing.
struct KeptJob {
    agent: Rc<Agent>,
    progress: Arc<Progress>,
    /// Which one it is, once that is known.
    run: Rc<Cell<Option<Run>>>,
}

impl JobServer for KeptJob {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        self.progress.log(start)
    }

    fn result(&self) -> Answer<BString> {
        self.progress.result()
    }

    fn cancel(&self) -> Answer<()> {
        self.progress.cancel.cancel();
        answer(Ok(()))
    }
}

impl KeptJobServer for KeptJob {
    fn forget(&self) -> Answer<()> {
        if let Some(run) = self.run.get() {
            self.agent.forget(run);
        }
        answer(Ok(()))
    }
}

/// How a job ended.
struct Done {
    outcome: crate::job::Outcome,
    /// The end of its log.
    last: String,
    /// What metrics call it.
    result: &'static str,
}

impl Done {
    fn error(message: String) -> Self {
        tracing::error!(message, "a job failed by a fault of this worker");
        Self { outcome: Err("Build failed"), last: format!("Job failed: {message}\n"), result: "error" }
    }
}

/// Does a job, and says how it ended.
async fn perform(hands: &Hands, name: &BString, description: JobDescription, progress: &Progress) -> Done {
    let begin = progress.log.append(&[b"Building on ", name.as_bytes(), b"\n"].concat());
    if let Err(error) = begin {
        return Done::error(format!("the log cannot be written: {error}"));
    }
    match hands.perform(description, &progress.log, &progress.cancel).await {
        Ok(output) => Done { outcome: Ok(output), last: "Job succeeded\n".to_owned(), result: "ok" },
        Err(JobError::Cancelled) => {
            Done { outcome: Err("Build cancelled"), last: "Job cancelled\n".to_owned(), result: "cancelled" }
        }
        Err(error) if error.is_the_jobs_fault() => {
            Done { outcome: Err("Build failed"), last: format!("Job failed: {}\n", reason(&error)), result: "fail" }
        }
        Err(error) => Done::error(reason(&error)),
    }
}

/// Returns an error with all its causes, as one line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What the scheduler may do with this worker.
struct Controls {
    agent: Rc<Agent>,
}

impl WorkerServer for Controls {
    fn metrics(&self, source: MetricsSource) -> Answer<Metric> {
        match (source, &self.agent.settings.metrics.host) {
            (MetricsSource::Agent, _) => answer(Ok(self.agent.metrics.text())),
            (MetricsSource::Host, Some(url)) => Box::pin(metrics::fetch(url.clone())),
            (MetricsSource::Host, None) => answer(Err(Error::failed("this worker knows no metrics of its machine"))),
        }
    }

    fn self_update(&self) -> Answer<()> {
        self.agent.update.cancel();
        let mut running = self.agent.running.subscribe();
        Box::pin(async move {
            // An error means that the worker has ended.
            let _ = running.wait_for(|running| *running == 0).await;
            Ok(())
        })
    }

    fn additional_metric(&self, source: BString) -> Answer<Option<Metric>> {
        match self.agent.settings.metrics.additional.get(&source).cloned() {
            None => answer(Ok(None)),
            Some(url) => Box::pin(async move { metrics::fetch(url).await.map(Some) }),
        }
    }
}
