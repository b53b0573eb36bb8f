//! Workers that only wait.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::{
    Action, Answer, CapabilityUri, Connection, Error, Job, JobServer, KeptJobServer, Key, Limits, LogChunk, Metric,
    MetricsSource, Queue, Registration, Run, ServiceId, WorkerServer, answer,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Plan, Tally};

/// How long to wait before connecting again, first and at most: as a real worker.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What a worker says first of a job, and what last.
pub(super) fn log(worker: &BString, job: usize) -> (String, String) {
    let begin = format!("Building on {worker}\n(from debian:12)\n(run (shell \"job {job}\"))\n");
    (begin, format!("---> saved as the result of job {job}\nJob succeeded\n"))
}

/// What a job makes.
pub(super) fn result(worker: &BString, job: usize) -> BString {
    format!("job {job} was done by {worker}").into()
}

/// One worker, whatever its connection does.
pub(super) struct Worker {
    name: BString,
    process: Vec<u8>,
    pool: CapabilityUri,
    capacity: u32,
    job: Duration,
    tally: Rc<Tally>,
    /// What its scheduler has not said to forget.
    kept: RefCell<HashMap<Run, Rc<Task>>>,
    slots: Semaphore,
}

/// A job that is waited for.
struct Task {
    number: Cell<Option<usize>>,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Wanted,
    Begun,
    Ended,
}

impl Worker {
    pub(super) fn new(number: usize, plan: &Plan, tally: &Rc<Tally>) -> Rc<Self> {
        Rc::new(Self {
            name: format!("w{number}").into(),
            process: ServiceId::random().0,
            pool: plan.pool.clone(),
            capacity: plan.capacity,
            job: plan.job,
            tally: Rc::clone(tally),
            kept: RefCell::default(),
            slots: Semaphore::new(plan.capacity as usize),
        })
    }

    /// Works until `stop`.
    pub(super) async fn work(self: Rc<Self>, stop: CancellationToken) {
        let mut patience = PATIENCE.0;
        let mut jobs = JoinSet::new();
        while !stop.is_cancelled() {
            match self.session(&mut jobs, &stop, &mut patience).await {
                Ok(()) => return,
                Err(error) if error.kind == kiln_api::ErrorKind::Disconnected => {}
                Err(error) => self.tally.wrong(format!("worker {}: {error}", self.name)),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(patience) => {}
            }
            patience = (patience * 2).min(PATIENCE.1);
        }
    }

    /// Works until the connection is lost, or until `stop`.
    async fn session(
        self: &Rc<Self>,
        jobs: &mut JoinSet<()>,
        stop: &CancellationToken,
        patience: &mut Duration,
    ) -> Result<(), Error> {
        let cannot_connect = |error: &dyn std::error::Error| Error::disconnected(error.to_string());
        let (key, _) = Key::generate().map_err(|error| cannot_connect(&error))?;
        let connection =
            Connection::open(&self.pool, &key, Limits::default()).await.map_err(|error| cannot_connect(&error))?;
        let registration: Registration = connection.bootstrap(&self.pool.service);
        let capacity = i32::try_from(self.capacity).unwrap_or(i32::MAX);
        let itself = kiln_api::Worker::serve(Silent);
        let queue = registration.enter(&self.name, itself, capacity, &self.process).await?;
        let kept: Vec<_> = self.kept.borrow().iter().map(|(run, task)| (*run, Rc::clone(task))).collect();
        for (run, task) in kept {
            let offered = Face { worker: Rc::clone(self), task, run: Cell::new(Some(run)).into() };
            if !queue.offer(run, Job::serve_kept(offered)).await? {
                self.kept.borrow_mut().remove(&run);
            }
        }
        queue.ready().await?;
        queue.set_active(true).await?;
        *patience = PATIENCE.0;
        self.tally.comes();
        let over = tokio::select! {
            Err(error) = self.take_jobs(&queue, jobs) => Err(error),
            () = connection.closed() => Err(Error::disconnected("the connection is lost")),
            () = stop.cancelled() => Ok(()),
        };
        self.tally.goes();
        drop(queue);
        connection.close().await;
        over
    }

    /// Takes jobs, one at a time, while there is room.
    async fn take_jobs(self: &Rc<Self>, queue: &Queue, jobs: &mut JoinSet<()>) -> Result<(), Error> {
        loop {
            // It is never closed, and its permits come back when a job has ended.
            let Ok(room) = self.slots.acquire().await else { return Ok(()) };
            let task = Rc::new(Task { number: Cell::new(None), stage: watch::Sender::new(Stage::Wanted) });
            let known = Rc::new(Cell::new(None));
            let face = Face { worker: Rc::clone(self), task: Rc::clone(&task), run: Rc::clone(&known) };
            let (description, run) = queue.take(Job::serve_kept(face)).await?;
            let number = match &description.action {
                Action::OBuilder(spec) => number_of(spec),
                _ => None,
            };
            let Some(number) = number else {
                return Err(Error::failed(format!("a job that nobody submitted: {description:?}")));
            };
            room.forget();
            self.tally.begins(number, &self.name);
            known.set(Some(run));
            task.number.set(Some(number));
            task.stage.send_replace(Stage::Begun);
            self.kept.borrow_mut().insert(run, Rc::clone(&task));
            let (itself, job) = (Rc::clone(self), self.job);
            while jobs.try_join_next().is_some() {}
            jobs.spawn_local(async move {
                if !job.is_zero() {
                    sleep(job).await;
                }
                task.stage.send_replace(Stage::Ended);
                itself.slots.add_permits(1);
            });
        }
    }
}

/// The spec of a job, as long as short ones are.
pub(super) fn spec(job: usize) -> BString {
    let lines: String = (0..8).map(|line| format!("\n (run (shell \"echo line {line} of a job\"))")).collect();
    format!("; job {job}\n((from debian:12){lines})\n").into()
}

fn number_of(spec: &BString) -> Option<usize> {
    let line = spec.split(|byte| *byte == b'\n').next()?;
    str::from_utf8(line.strip_prefix(b"; job ")?).ok()?.parse().ok()
}

/// What the scheduler refers to.
struct Face {
    worker: Rc<Worker>,
    task: Rc<Task>,
    run: Rc<Cell<Option<Run>>>,
}

impl JobServer for Face {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let (task, name) = (Rc::clone(&self.task), self.worker.name.clone());
        let mut stage = task.stage.subscribe();
        Box::pin(async move {
            let gone = |_| Error::failed("the job is gone");
            stage.wait_for(|stage| *stage >= Stage::Begun).await.map_err(gone)?;
            let (begin, end) = log(&name, task.number.get().unwrap_or_default());
            let start = usize::try_from(start).map_err(|_| Error::failed("this log is read from its beginning"))?;
            let now = if start < begin.len() {
                *stage.borrow()
            } else {
                *stage.wait_for(|stage| *stage >= Stage::Ended).await.map_err(gone)?
            };
            let text = if now == Stage::Ended { begin + &end } else { begin };
            let bytes = text.as_bytes().get(start..).unwrap_or_default().to_vec();
            let next = i64::try_from(start + bytes.len()).unwrap_or(i64::MAX);
            Ok(LogChunk { bytes, next })
        })
    }

    fn result(&self) -> Answer<BString> {
        let (task, name) = (Rc::clone(&self.task), self.worker.name.clone());
        let mut stage = task.stage.subscribe();
        Box::pin(async move {
            let ended = stage.wait_for(|stage| *stage >= Stage::Ended).await;
            ended.map_err(|_| Error::failed("the job is gone"))?;
            Ok(result(&name, task.number.get().unwrap_or_default()))
        })
    }

    fn cancel(&self) -> Answer<()> {
        self.worker.tally.wrong(format!("job {:?} is cancelled", self.task.number.get()));
        answer(Ok(()))
    }
}

impl KeptJobServer for Face {
    fn forget(&self) -> Answer<()> {
        if let Some(run) = self.run.get() {
            self.worker.kept.borrow_mut().remove(&run);
        }
        answer(Ok(()))
    }
}

/// What the scheduler may ask a worker.
struct Silent;

impl WorkerServer for Silent {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        answer(Err(Error::failed("this worker has no metrics")))
    }

    fn self_update(&self) -> Answer<()> {
        answer(Err(Error::failed("this worker is no program")))
    }

    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}
