//! A worker's life: it connects to its scheduler, takes jobs as long as it has room for them, and connects again when it is cut off.
//!
//! Objects of the wire live on this thread, in a `LocalSet`; jobs are done on another runtime. A job ends when nobody refers to it
//! any more, so one whose connection is lost is cancelled.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bstr::{BString, ByteSlice as _};
use kiln_api::{
    Action, Answer, CapabilityUri, ConnectError, Connection, Dockerfile, Error, JobDescription, Key, KeyError, Limits,
    Metric, MetricsSource, Queue, Registration, Worker, WorkerServer, answer,
};
use regex::bytes::Regex;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::hands::{Hands, JobError};
use crate::job::Progress;
use crate::log::JobLog;
use crate::metrics::{self, Metrics, Others};
use crate::upkeep::{self, Clones, DockerPrune, HealthCheck};

/// How long to wait before connecting again: first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

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
    Stopped,
    Update,
    Lost(String),
}

/// What belongs to the worker, whatever its connection does.
struct Agent {
    settings: Settings,
    metrics: Arc<Metrics>,
    slots: Arc<Semaphore>,
    running: watch::Sender<usize>,
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
    let running = watch::Sender::new(0);
    let update = CancellationToken::new();
    let agent = Rc::new(Agent { settings, metrics, slots, running, healthy, update, builds });
    let mut patience = PATIENCE.0;
    loop {
        let why = match agent.session(&stop, &mut patience).await? {
            Over::Stopped => return Ok(Ended::Stopped),
            Over::Update => return Ok(Ended::Update),
            Over::Lost(why) => why,
        };
        tracing::warn!(why, again = ?patience, "no scheduler");
        tokio::select! {
            () = stop.cancelled() => return Ok(Ended::Stopped),
            () = tokio::time::sleep(patience) => {}
        }
        patience = (patience * 2).min(PATIENCE.1);
    }
}

impl Agent {
    /// Connects and works until the connection is lost or the worker is to end.
    async fn session(self: &Rc<Self>, stop: &CancellationToken, patience: &mut Duration) -> Result<Over, AgentError> {
        let Settings { pool, name, capacity, limits, .. } = &self.settings;
        // A key for each connection: OCaml's schedulers close one of two with the same.
        let (key, _) = Key::generate()?;
        let connecting = Connection::open(pool, &key, limits.clone());
        let connection = tokio::select! {
            () = stop.cancelled() => return Ok(Over::Stopped),
            connection = connecting => match connection {
                Ok(connection) => connection,
                Err(error @ ConnectError::WrongKey { .. }) => return Err(AgentError::WrongKey(error)),
                Err(error) => return Ok(Over::Lost(reason(&error))),
            },
        };
        let registration: Registration = connection.bootstrap(&pool.service);
        let controls = Controls { agent: Rc::clone(self) };
        let capacity = i32::try_from(*capacity).unwrap_or(i32::MAX);
        let registering = registration.register(name, Worker::serve(controls), capacity);
        let queue = tokio::select! {
            () = stop.cancelled() => return Ok(Over::Stopped),
            queue = registering => match queue {
                Ok(queue) => queue,
                Err(error) if error.message == "Unknown persistent service ID" => {
                    return Err(AgentError::UnknownCapability);
                }
                Err(error) => return Ok(Over::Lost(error.to_string())),
            },
        };
        *patience = PATIENCE.0;
        tracing::info!(worker = ?name, "registered");
        let over = self.work(&connection, queue, stop).await;
        connection.close().await;
        Ok(over)
    }

    /// Takes jobs until the connection is lost, or until the worker is to end and its jobs are done.
    async fn work(self: &Rc<Self>, connection: &Connection, queue: Queue, stop: &CancellationToken) -> Over {
        let mut healthy = self.healthy.clone();
        let mut running = self.running.subscribe();
        let mut closed = std::pin::pin!(connection.closed());
        let leave = async {
            tokio::select! {
                () = stop.cancelled() => Over::Stopped,
                () = self.update.cancelled() => Over::Update,
            }
        };
        let mut leave = std::pin::pin!(leave);
        let mut leaving = None;
        // Not dropped when something else happens: a job might be on its way.
        let mut next = std::pin::pin!(self.next(queue.clone()));
        loop {
            let active = leaving.is_none() && *healthy.borrow_and_update();
            if let Err(error) = queue.set_active(active).await {
                return Over::Lost(error.to_string());
            }
            loop {
                if *running.borrow_and_update() == 0
                    && let Some(over) = leaving.take()
                {
                    return over;
                }
                tokio::select! {
                    () = &mut closed => return Over::Lost("the connection is lost".to_owned()),
                    job = &mut next => match job {
                        Ok(job) => {
                            self.start(job);
                            next.set(self.next(queue.clone()));
                        }
                        Err(error) => return Over::Lost(error.to_string()),
                    },
                    over = &mut leave, if leaving.is_none() => {
                        leaving = Some(over);
                        break;
                    }
                    Ok(()) = healthy.changed() => break,
                    Ok(()) = running.changed() => {}
                }
            }
        }
    }

    /// Waits until there is room for a job, and for a job.
    async fn next(self: &Rc<Self>, queue: Queue) -> Result<Taken, Error> {
        let closed = || Error::failed("this worker has ended");
        let mut permit = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| closed())?;
        let log = JobLog::new(&self.settings.logs, self.settings.log_limit).map_err(|error| {
            Error::failed(format!("no file for a log in {}: {error}", self.settings.logs.display()))
        })?;
        let progress = Progress::new(log);
        let description = queue.pop(progress.serve()).await?;
        // Who takes several has all of them before the next job is asked for, so that two cannot wait for each other.
        let more = self.weight(&description) - 1;
        if more > 0 {
            permit.merge(Arc::clone(&self.slots).acquire_many_owned(more).await.map_err(|_| closed())?);
        }
        Ok(Taken { description, progress, permit })
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
        let Taken { description, progress, permit } = taken;
        self.metrics.accepted.inc();
        self.metrics.running.inc();
        self.running.send_modify(|running| *running += 1);
        let (hands, metrics, name) =
            (Arc::clone(&self.settings.hands), Arc::clone(&self.metrics), self.settings.name.clone());
        let running = self.running.clone();
        self.builds.spawn(async move {
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
            running.send_modify(|running| *running -= 1);
        });
    }
}

/// A job that was taken.
struct Taken {
    description: JobDescription,
    progress: Arc<Progress>,
    permit: OwnedSemaphorePermit,
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
