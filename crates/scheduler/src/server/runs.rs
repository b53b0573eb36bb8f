//! The runs of jobs on workers: how they begin, what comes of them, and what if the worker goes.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bstr::{BStr, BString};
use futures::FutureExt as _;
use kiln_api::{Error, ErrorKind, Job, JobKey, JobLog, LogTail, Run};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::jobs::{LiveJob, patiently, without_secrets};
use super::pool::{LivePool, Pop};
use super::record::{Outcome, Record};
use crate::pool::{End, JobId, WorkerId};
use crate::state::Change;

/// How many parts of a log are written at once.
const PARTS: usize = 64;

/// How long a worker may stay that says it has lost a job, until that is believed.
const BELIEF: Duration = Duration::from_secs(30);

/// A worker's try at a job.
pub(super) struct LiveRun {
    /// Its name.
    pub(super) worker: BString,
    number: u32,
    /// Where its log begins in the job's.
    log_start: u64,
    at: At,
    /// All of the log has come. Only the result is missing, so it is not begun again.
    log_is_complete: bool,
}

enum At {
    /// The worker is here, and has not been given the job yet.
    Beginning,
    /// The worker has the job. Without a reference to it, nobody wants it any more.
    Worker { on: WorkerId, job: Option<Job>, comes_back: bool, unwanted: CancellationToken },
    /// The worker is gone, and may come back.
    Lost,
}

impl LiveRun {
    /// Returns a run on a worker that is not there.
    pub(super) fn lost(worker: BString, number: u32, log_start: u64) -> Self {
        Self { worker, number, log_start, at: At::Lost, log_is_complete: false }
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self.at, At::Lost)
    }

    /// Returns the worker's object, if it has the job.
    pub(super) fn job(&self) -> Option<Job> {
        match &self.at {
            At::Worker { job, .. } => job.clone(),
            At::Beginning | At::Lost => None,
        }
    }

    /// Returns the worker's object, if it keeps the log and the result until it is told to forget them.
    pub(super) fn into_forgettable(self) -> Option<Job> {
        match self.at {
            At::Worker { job, comes_back: true, .. } => job,
            _ => None,
        }
    }
}

impl LiveRun {
    /// Lets go of a job that nobody wants any more. For a worker of OCluster's that is what cancels it. What this returns is to
    /// be dropped while nothing is borrowed: a worker can make that end its registration, or a client's hold.
    #[must_use]
    pub(super) fn let_go(&mut self) -> Option<Job> {
        if let At::Worker { job, comes_back: false, unwanted, .. } = &mut self.at {
            unwanted.cancel();
            return job.take();
        }
        None
    }

    fn on(worker: WorkerId, itself: Job, comes_back: bool) -> At {
        At::Worker { on: worker, job: Some(itself), comes_back, unwanted: CancellationToken::new() }
    }

    fn is_on(&self, worker: WorkerId) -> bool {
        matches!(&self.at, At::Worker { on, .. } if *on == worker)
    }
}

impl LiveJob {
    /// Returns the run of this number, if that is the one that there is.
    fn run(&mut self, number: u32) -> Option<&mut LiveRun> {
        if self.is_over { None } else { self.run.as_mut().filter(|run| run.number == number) }
    }
}

impl LivePool {
    /// Gives a job to the worker's first request.
    pub(super) fn start(self: &Rc<Self>, worker: WorkerId, id: JobId) {
        let name = self.look(|pool, _| pool.worker_name(worker));
        let (Some(pop), Some(name)) = (self.take_pop(worker), name) else {
            return tracing::error!(pool = %self.name, %worker, job = %id, "a job was started for nobody");
        };
        {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id) else {
                return tracing::error!(pool = %self.name, %worker, job = %id, "a job was started that is not there");
            };
            job.runs += 1;
            job.run = Some(LiveRun {
                worker: name,
                number: job.runs,
                log_start: 0,
                at: At::Beginning,
                log_is_complete: false,
            });
            // What there was before it has its say first.
            let before = job.relay.take();
            let begin = Rc::clone(self).begin(id, job.runs, worker, pop, before);
            job.relay = Some(spawn_local(begin));
        }
        let running = self.look(|pool, _| pool.running(worker).count());
        self.set_running(worker, running);
    }

    /// Has everything written that is to be known of a run before its worker begins, and gives the worker the job. `before` is
    /// what began or read the run before.
    async fn begin(self: Rc<Self>, id: JobId, number: u32, worker: WorkerId, pop: Pop, before: Option<JoinHandle<()>>) {
        let Some((log, log_start)) = self.open_log(id, number, before).await else {
            return self.put_pop_back(worker, pop);
        };
        let (run, description) = {
            let mut jobs = self.jobs.borrow_mut();
            let job = jobs.get_mut(&id).and_then(|job| job.run(number).is_some().then_some(job));
            let Some(job) = job else {
                drop(jobs);
                return self.put_pop_back(worker, pop);
            };
            (Run { job: job.record.key, number }, job.description.clone().filter(|_| !job.is_cancelled))
        };
        let Some(description) = description else {
            let is_cancelled = self.jobs.borrow().get(&id).is_some_and(|job| job.is_cancelled);
            self.finish(id, Err(if is_cancelled { Error::failed("Build cancelled") } else { without_secrets() }));
            return self.put_pop_back(worker, pop);
        };
        let Pop { job: itself, answer, .. } = pop;
        if answer.send(((*description).clone(), run)).is_err() {
            // Its worker has just gone, or does not want it any more.
            return self.again(id);
        }
        let comes_back = self.comes_back(worker);
        if let Some(job) = self.jobs.borrow_mut().get_mut(&id)
            && let Some(run) = job.run(number)
        {
            (run.log_start, run.at) = (log_start, LiveRun::on(worker, itself.clone(), comes_back));
            job.record.begin(log.clone());
            job.relay = Some(spawn_local(Rc::clone(&self).relay(id, number, worker, itself, log)));
        }
    }

    /// Opens the log of a job for a new run, and has it written that the run begins. Returns the log and where the run's
    /// begins. `before` is what read the one before.
    async fn open_log(&self, id: JobId, number: u32, before: Option<JoinHandle<()>>) -> Option<(JobLog, u64)> {
        if let Some(before) = before {
            // What it still has to write comes first. If it failed, it writes nothing.
            let _ = before.await;
        }
        let (record, kept, worker) = {
            let mut jobs = self.jobs.borrow_mut();
            let job = jobs.get_mut(&id)?;
            let kept = job.is_kept.then_some(job.record.key);
            let worker = job.run(number)?.worker.clone();
            (Rc::clone(&job.record), kept, worker)
        };
        let log = self.log_of(&record, kept).await?;
        let lost = {
            let mut jobs = self.jobs.borrow_mut();
            let job = jobs.get_mut(&id)?;
            // Its worker may have gone meanwhile, and the next run is waiting for this to end.
            job.run(number)?;
            job.lost_on.take()
        };
        if let Some(lost) = lost {
            let note = format!("\n[worker {lost} is lost; the job starts again on {worker}]\n");
            self.write(&log, note.into_bytes()).await;
        }
        let log_start = log.length();
        self.jobs.borrow_mut().get_mut(&id)?.run(number)?;
        if let Some(job) = kept {
            // Whoever takes over begins to read this run's log there.
            self.archive(&record).await;
            let begin = || Change::Begin { job, run: number, worker: worker.clone(), log_start };
            self.patiently(async || self.keeper.write(begin(), false).await).await;
        }
        Some((log, log_start))
    }

    /// Returns the log of a job, which `kept` says if it is kept; perhaps nothing if it has ended.
    async fn log_of(&self, record: &Record, kept: Option<JobKey>) -> Option<JobLog> {
        let log = patiently(record.key, async || record.open_log().await).await;
        if log.is_some() || !record.is_waiting() {
            // For a job that has ended none is made: an empty one would pass for what is kept of it.
            return log;
        }
        let logs = self.logs.clone();
        Some(self.patiently(async || blocking(logs.clone(), move |logs| logs.open(kept)).await).await)
    }

    /// Reads what a worker says of a run, to the end.
    async fn relay(self: Rc<Self>, id: JobId, number: u32, worker: WorkerId, job: Job, log: JobLog) {
        let known = self.jobs.borrow_mut().get_mut(&id).and_then(|job| {
            let run = job.run(number)?;
            let At::Worker { unwanted, .. } = &run.at else { return None };
            Some((run.log_start, unwanted.clone()))
        });
        let Some((log_start, unwanted)) = known else { return };
        // Not holding on to the worker's object: what it knows is known by its end.
        let result = job.result();
        // After a power failure there may be less than there was.
        let position = log.length().saturating_sub(log_start);
        let mut tail = LogTail::at(job, i64::try_from(position).unwrap_or(i64::MAX));
        let copied = tokio::select! {
            copied = self.copy(&mut tail, &log, worker) => copied,
            () = unwanted.cancelled() => Ok(()),
        };
        drop(tail);
        let outcome = match copied {
            Ok(()) => {
                if let Some(run) = self.jobs.borrow_mut().get_mut(&id).and_then(|job| job.run(number)) {
                    // One that is as long as it may be may go on.
                    run.log_is_complete = !log.is_full();
                }
                self.unless_gone(worker, result).await
            }
            Err(error) if error.kind == ErrorKind::Disconnected => Err(error),
            Err(error) => {
                self.write(&log, format!("\n[the rest of the log cannot be read: {error}]\n").into_bytes()).await;
                self.unless_gone(worker, result).await
            }
        };
        match outcome {
            Err(error) if error.kind == ErrorKind::Disconnected => {
                // If its worker has gone, that says how it goes on.
                let _ = timeout(BELIEF, self.gone(worker)).await;
                let is_here = self
                    .jobs
                    .borrow_mut()
                    .get_mut(&id)
                    .and_then(|job| job.run(number))
                    .is_some_and(|run| run.is_on(worker));
                if is_here {
                    self.lose(id);
                }
            }
            outcome => self.end(id, number, outcome),
        }
    }

    /// Waits for a worker's answer, but not for one that has left and is connected still: it would hold up whoever does its job
    /// next.
    async fn unless_gone<T>(
        &self,
        worker: WorkerId,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.gone(worker) => Err(Error::disconnected("the worker has left the pool")),
        }
    }

    /// Copies a log, until it is complete or as long as one may be.
    async fn copy(&self, tail: &mut LogTail, log: &JobLog, worker: WorkerId) -> Result<(), Error> {
        let mut next = None;
        loop {
            let mut bytes = match next.take() {
                Some(part) => part,
                None => self.unless_gone(worker, tail.next()).await,
            }?;
            if bytes.is_empty() {
                return Ok(());
            }
            for _ in 1..PARTS {
                match tail.next().now_or_never() {
                    Some(Ok(more)) if !more.is_empty() => bytes.extend(more),
                    other => {
                        next = other;
                        break;
                    }
                }
            }
            self.write(log, bytes).await;
            if log.is_full() {
                return Ok(());
            }
        }
    }

    /// Adds to a log. If that fails, a disk is full: what comes waits on its worker.
    async fn write(&self, log: &JobLog, bytes: Vec<u8>) {
        let what = (log.clone(), Rc::new(bytes));
        self.patiently(async || {
            let (log, bytes) = (what.0.clone(), what.1.to_vec());
            blocking((log, bytes), |(log, bytes)| log.append(&bytes)).await
        })
        .await;
    }

    /// Notes that a run has come to its end.
    fn end(self: &Rc<Self>, id: JobId, number: u32, outcome: Outcome) {
        let is_cut_short = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id) else { return };
            if job.run(number).is_none() {
                return;
            }
            outcome.is_err() && job.is_cancelled
        };
        let end = if is_cut_short { End::Cancelled } else { End::Finished };
        self.act(|pool, now| pool.finished(now, id, end));
        self.finish(id, outcome);
    }

    /// Says how it goes on with a job whose worker is gone.
    pub(super) fn lose(self: &Rc<Self>, id: JobId) {
        // All go when the scheduler does. The next one finds its jobs as they were.
        if self.stopping.is_cancelled() {
            return;
        }
        let (was, waits_for) = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id) else { return };
            let Some(run) = job.run.as_mut() else { return };
            let was = std::mem::replace(&mut run.at, At::Lost);
            let comes_back = matches!(was, At::Worker { comes_back: true, .. });
            let waits = comes_back && !job.is_cancelled && !self.keeping.worker_grace.is_zero();
            (was, waits.then(|| run.worker.clone()))
        };
        match was {
            At::Beginning => return self.again(id),
            At::Lost => return,
            // Nothing is borrowed: dropping what a worker gave us may come back here.
            At::Worker { .. } => drop(was),
        }
        match waits_for {
            Some(worker) => self.await_worker(id, worker),
            None => self.retry(id),
        }
    }

    /// Begins a job again somewhere if its worker does not come back in time.
    pub(super) fn await_worker(self: &Rc<Self>, id: JobId, worker: BString) {
        let runs = self.jobs.borrow().get(&id).map_or(0, |job| job.runs);
        tracing::info!(pool = %self.name, worker = ?worker, grace = ?self.keeping.worker_grace, "waiting for a job's worker");
        self.lost.borrow_mut().entry(worker).or_default().insert(id);
        let pool = Rc::clone(self);
        spawn_local(async move {
            sleep(pool.keeping.worker_grace).await;
            let is_lost = pool.jobs.borrow().get(&id).is_some_and(|job| job.runs == runs && job.is_lost());
            if is_lost {
                pool.retry(id);
            }
        });
    }

    /// Begins those jobs again elsewhere that ran on this worker, which is back without them.
    pub(super) fn give_up_on(self: &Rc<Self>, worker: &BStr) {
        let lost = self.lost.borrow_mut().remove(worker);
        lost.into_iter().flatten().for_each(|id| self.retry(id));
    }

    /// Begins a job again that was lost, if it may be.
    fn retry(self: &Rc<Self>, id: JobId) {
        let failure = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id).filter(|job| !job.is_over) else { return };
            let Some(run) = job.run.take_if(|run| run.is_lost()) else { return };
            self.is_not_lost(&run.worker, id);
            job.losses += 1;
            let worker = run.worker;
            let failure = if job.is_cancelled {
                Some(Error::failed("Build cancelled"))
            } else if run.log_is_complete {
                Some(Error::disconnected(format!("worker {worker} is lost, and the job's result with it")))
            } else if job.losses > self.keeping.retries {
                Some(Error::disconnected(format!("worker {worker} is lost")))
            } else if job.description.is_none() {
                Some(without_secrets())
            } else {
                None
            };
            tracing::warn!(pool = %self.name, job = %job.record.key, worker = ?worker, again = failure.is_none(), "a job's worker is lost");
            job.lost_on = Some(worker);
            failure
        };
        match failure {
            Some(error) => {
                // What failed for another reason was cancelled, or lacks something.
                if error.kind == ErrorKind::Disconnected {
                    self.losses.abandoned.update(|before| before + 1);
                }
                self.finish(id, Err(error));
            }
            None => {
                self.losses.retried.update(|before| before + 1);
                self.act(|pool, now| pool.requeue(now, id));
            }
        }
    }

    /// Puts a job back that was not begun after all.
    fn again(self: &Rc<Self>, id: JobId) {
        if let Some(job) = self.jobs.borrow_mut().get_mut(&id) {
            job.run = None;
        }
        let is_cancelled = self.jobs.borrow().get(&id).is_some_and(|job| job.is_cancelled);
        match is_cancelled {
            true => self.finish(id, Err(Error::failed("Build cancelled"))),
            false => _ = self.act(|pool, now| pool.requeue(now, id)),
        }
    }

    /// Takes a run over that a worker has brought back. Returns false if it is not wanted.
    pub(super) fn offer(self: &Rc<Self>, worker: WorkerId, run: Run, itself: Job) -> bool {
        let Some(id) = self.keys.borrow().get(&run.job).copied() else { return false };
        let Some(name) = self.look(|pool, _| pool.worker_name(worker)) else { return false };
        let comes_back = self.comes_back(worker);
        {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id).filter(|job| !job.is_cancelled) else { return false };
            if job.is_over {
                // Its end is not on disk yet: until then, the worker keeps it, or it would be begun again after a restart.
                let ended = job.run.as_mut().filter(|ended| (ended.number, &ended.worker) == (run.number, &name));
                let Some(ended) = ended else { return false };
                let was = std::mem::replace(&mut ended.at, LiveRun::on(worker, itself, comes_back));
                // Dropping it may come back here.
                drop(jobs);
                drop(was);
                return true;
            }
            let fits = match &job.run {
                Some(lost) => lost.is_lost() && (lost.number, &lost.worker) == (run.number, &name),
                // It was begun, but the scheduler's machine failed before that was on its disk.
                None => run.number > job.runs,
            };
            if !fits {
                return false;
            }
        }
        if !self.prepare(|pool, now| pool.resume(now, id, worker)) {
            return false;
        }
        self.is_not_lost(&name, id);
        if let Some(job) = self.jobs.borrow_mut().get_mut(&id) {
            job.runs = run.number;
            let is_known = job.run.is_some();
            let known = job.run.get_or_insert_with(|| LiveRun::lost(name, run.number, 0));
            known.at = LiveRun::on(worker, itself.clone(), comes_back);
            let before = job.relay.take();
            job.relay = Some(spawn_local(Rc::clone(self).go_on(id, run.number, worker, itself, before, is_known)));
        }
        self.act(|_, _| ());
        true
    }

    /// Goes on reading what a worker says of a run. Where its log begins is known, or the log begins now.
    async fn go_on(
        self: Rc<Self>,
        id: JobId,
        number: u32,
        worker: WorkerId,
        itself: Job,
        before: Option<JoinHandle<()>>,
        is_known: bool,
    ) {
        let known = self.jobs.borrow().get(&id).map(|job| {
            let key = job.record.key;
            (Rc::clone(&job.record), job.is_kept.then_some(key))
        });
        let Some((record, kept)) = known else { return };
        let log = if is_known {
            if let Some(before) = before {
                // What it still has to write comes first.
                let _ = before.await;
            }
            let Some(log) = self.log_of(&record, kept).await else { return };
            log
        } else {
            let Some((log, log_start)) = self.open_log(id, number, before).await else { return };
            if let Some(run) = self.jobs.borrow_mut().get_mut(&id).and_then(|job| job.run(number)) {
                run.log_start = log_start;
            }
            log
        };
        // It may have ended meanwhile.
        if self.jobs.borrow_mut().get_mut(&id).and_then(|job| job.run(number)).is_some() {
            record.begin(log.clone());
            self.relay(id, number, worker, itself, log).await;
        }
    }

    pub(super) fn is_not_lost(&self, worker: &BString, id: JobId) {
        let mut lost = self.lost.borrow_mut();
        if let Some(jobs) = lost.get_mut(worker) {
            jobs.remove(&id);
            if jobs.is_empty() {
                lost.remove(worker);
            }
        }
    }

    /// Lets workers forget what has ended, once it is on disk, for ever.
    pub(super) async fn settle(self: Rc<Self>) {
        /// Waiting for a disk is for many at once.
        const PAUSE: Duration = Duration::from_secs(1);
        loop {
            self.to_settle.notified().await;
            let ended = self.settling.take();
            let logs: Vec<_> = ended.iter().filter_map(|(_, log)| log.clone()).collect();
            let all = (self.logs.clone(), logs);
            self.patiently(async || blocking(all.clone(), |(directory, logs)| directory.sync(&logs)).await).await;
            self.patiently(async || self.keeper.settled().await).await;
            for (job, _) in ended {
                // A worker that is not told offers it again, and is told then.
                let forgotten = job.forget();
                spawn_local(async move { forgotten.await.map_err(drop) });
            }
            sleep(PAUSE).await;
        }
    }
}

/// Does what waits for a disk elsewhere.
async fn blocking<T: Send + 'static, R: Send + 'static>(
    what: T,
    act: impl FnOnce(T) -> io::Result<R> + Send + 'static,
) -> io::Result<R> {
    spawn_blocking(move || act(what)).await.map_err(io::Error::from)?
}
