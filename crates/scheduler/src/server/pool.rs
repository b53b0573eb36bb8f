//! A pool with its objects: does what the pool wants done.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bstr::{BStr, BString};
use kiln_api::{Error, ErrorKind, Job, JobDescription, Progress, Worker};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::clients::Deposit;
use super::keeper::Keeper;
use crate::pool::{AlreadyRegistered, Cancelled, Effect, End, JobId, Pool, Request, WorkerId};
use crate::state::StateError;

/// What a job's client waits for until it runs.
pub(super) type Started = oneshot::Receiver<Result<Job, Error>>;

/// What a worker waits for that asked for a job.
pub(super) type Popped = oneshot::Receiver<JobDescription>;

/// A job of which the end is not known.
struct LiveJob {
    /// What it is to do. `None` once a worker knows.
    description: Option<JobDescription>,
    /// What keeping that costs its client.
    deposit: Option<Deposit>,
    /// Who waits until it starts. `None` once it has.
    started: Option<oneshot::Sender<Result<Job, Error>>>,
    /// Somebody cancelled it.
    is_cancelled: bool,
    /// Its ticket is gone. If its client lets the job go too, its worker cancels it.
    is_released: bool,
}

/// A connected worker.
struct LiveWorker {
    worker: Worker,
    /// Its requests for jobs, the first first.
    pops: VecDeque<Pop>,
    /// How many jobs it runs.
    running: watch::Sender<usize>,
}

struct Pop {
    number: u64,
    /// What the job will be.
    job: Job,
    answer: oneshot::Sender<JobDescription>,
}

/// One pool of a running scheduler.
pub(crate) struct LivePool {
    pub(crate) name: BString,
    pool: RefCell<Pool>,
    jobs: RefCell<HashMap<JobId, LiveJob>>,
    workers: RefCell<HashMap<WorkerId, LiveWorker>>,
    /// The pool may have another time to be told.
    changed: Notify,
    /// Changes with each registration.
    registered: watch::Sender<u64>,
    next_pop: Cell<u64>,
    epoch: Instant,
    keeper: Keeper,
}

impl LivePool {
    pub(super) fn new(pool: Pool, keeper: Keeper) -> Rc<Self> {
        Rc::new(Self {
            name: pool.name().to_owned(),
            pool: RefCell::new(pool),
            jobs: RefCell::default(),
            workers: RefCell::default(),
            changed: Notify::new(),
            registered: watch::Sender::new(0),
            next_pop: Cell::new(0),
            epoch: Instant::now(),
            keeper,
        })
    }

    /// Returns what `ask` makes of the pool as it is.
    pub(crate) fn look<T>(&self, ask: impl FnOnce(&Pool, Duration) -> T) -> T {
        ask(&self.pool.borrow(), self.epoch.elapsed())
    }

    /// Changes the pool, and does what follows.
    pub(super) fn act<T>(self: &Rc<Self>, change: impl FnOnce(&mut Pool, Duration) -> T) -> T {
        let (result, effects) = {
            let mut pool = self.pool.borrow_mut();
            let result = change(&mut pool, self.epoch.elapsed());
            (result, pool.take_effects())
        };
        let mut kept = Vec::new();
        for effect in effects {
            match effect {
                Effect::Start { worker, job } => self.start(worker, job),
                Effect::Lost { job } => self.lose(job),
                Effect::Running { worker, jobs } => self.set_running(worker, jobs),
                Effect::SaveHint { .. }
                | Effect::SaveWorker { .. }
                | Effect::ForgetWorker { .. }
                | Effect::SaveRate { .. } => kept.push(effect),
            }
        }
        self.changed.notify_one();
        if !kept.is_empty() {
            self.keeper.save(self.name.clone(), kept);
        }
        result
    }

    /// Tells the pool when it is time, for ever.
    pub(super) async fn keep_time(self: Rc<Self>) {
        loop {
            let tick = self.look(|pool, _| pool.next_tick());
            match tick {
                None => self.changed.notified().await,
                Some(tick) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(self.epoch + tick) => self.act(|pool, now| pool.tick(now)),
                },
            }
        }
    }

    /// Adds a job of a client. Returns its number, and what tells when a worker has it.
    pub(super) fn submit(
        self: &Rc<Self>,
        client: &BStr,
        description: JobDescription,
        urgent: bool,
        deposit: Deposit,
    ) -> (JobId, Started) {
        let (sender, started) = oneshot::channel();
        let hint = description.cache_hint.clone();
        let job = LiveJob {
            description: Some(description),
            deposit: Some(deposit),
            started: Some(sender),
            is_cancelled: false,
            is_released: false,
        };
        let request = Request { hint: hint.as_ref(), urgent };
        let id = self.pool.borrow_mut().submit(self.epoch.elapsed(), client, request);
        self.jobs.borrow_mut().insert(id, job);
        // Only now, because it may start.
        self.act(|_, _| ());
        (id, started)
    }

    /// Cancels a job that waits, with what its client is told. For one that runs it is noted, and its worker is to be told.
    pub(super) fn cancel(self: &Rc<Self>, id: JobId, why: &str) -> Cancelled {
        let cancelled = self.act(|pool, now| pool.cancel(now, id));
        match cancelled {
            Cancelled::Queued | Cancelled::Lost => {
                let job = self.jobs.borrow_mut().remove(&id);
                if let Some(started) = job.and_then(|job| job.started) {
                    // The client may be gone.
                    let _ = started.send(Err(Error::failed(why)));
                }
            }
            Cancelled::Running(_) => {
                if let Some(job) = self.jobs.borrow_mut().get_mut(&id) {
                    job.is_cancelled = true;
                }
            }
            Cancelled::Unknown => {}
        }
        cancelled
    }

    /// Notes that a job's ticket is gone. One that waits is cancelled.
    pub(super) fn release(self: &Rc<Self>, id: JobId) {
        match self.jobs.borrow_mut().get_mut(&id) {
            Some(job) if job.started.is_none() => return job.is_released = true,
            Some(_) => {}
            None => return,
        }
        self.cancel(id, "Ticket released (cancelled)");
    }

    /// Adds a worker. It is active at once, as OCluster's workers expect: they only say when they are not.
    pub(super) fn register(
        self: &Rc<Self>,
        name: &BStr,
        worker: Worker,
        capacity: u32,
    ) -> Result<WorkerId, AlreadyRegistered> {
        let id = self.act(|pool, _| pool.register(name, capacity))?;
        let worker = LiveWorker { worker, pops: VecDeque::new(), running: watch::Sender::new(0) };
        self.workers.borrow_mut().insert(id, worker);
        self.registered.send_modify(|count| *count += 1);
        self.act(|pool, now| pool.set_active(now, id, true));
        Ok(id)
    }

    /// Removes a worker. What it ran is lost.
    pub(super) fn unregister(self: &Rc<Self>, id: WorkerId) {
        self.act(|pool, now| pool.unregister(now, id));
        // Dropping what it was may come back here.
        let gone = self.workers.borrow_mut().remove(&id);
        drop(gone);
    }

    /// Asks for a job for a worker. `job` will be it. Returns the request's number, and what tells the answer.
    pub(super) fn pop(self: &Rc<Self>, id: WorkerId, job: Job) -> (u64, Popped) {
        let number = self.next_pop.get();
        self.next_pop.set(number + 1);
        let (answer, popped) = oneshot::channel();
        if let Some(worker) = self.workers.borrow_mut().get_mut(&id) {
            worker.pops.push_back(Pop { number, job, answer });
        }
        self.act(|pool, now| pool.pop(now, id));
        (number, popped)
    }

    /// Gives a request up, if it was not answered.
    pub(super) fn give_up_pop(self: &Rc<Self>, id: WorkerId, number: u64) {
        let given_up = {
            let mut workers = self.workers.borrow_mut();
            let Some(worker) = workers.get_mut(&id) else { return };
            let index = worker.pops.iter().position(|pop| pop.number == number);
            index.and_then(|index| worker.pops.remove(index))
        };
        if given_up.is_some() {
            self.act(|pool, _| pool.give_up_pop(id));
        }
    }

    /// Waits until what was done is on disk: what was done until this is called, not until the future is polled.
    pub(super) fn kept(&self) -> impl Future<Output = Result<(), StateError>> + 'static {
        self.keeper.settled()
    }

    /// Returns the worker's own object.
    pub(crate) fn worker(&self, name: &BStr) -> Option<Worker> {
        let id = self.pool.borrow().connected(name)?;
        self.workers.borrow().get(&id).map(|worker| worker.worker.clone())
    }

    /// Waits until a worker runs nothing, or is gone.
    pub(super) async fn wait_until_idle(&self, id: WorkerId, progress: Option<&Progress>) {
        let running = self.workers.borrow().get(&id).map(|worker| worker.running.subscribe());
        let Some(mut running) = running else { return };
        loop {
            let count = *running.borrow_and_update();
            if let Some(progress) = progress {
                // Whoever does not want to know any more has cancelled the whole call.
                let _ = progress.report(&format!("Running jobs: {count}")).await;
            }
            if count == 0 || running.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until a worker of this name registers that is not `old`.
    pub(super) async fn wait_until_back(&self, name: &BStr, old: WorkerId) {
        let mut registered = self.registered.subscribe();
        loop {
            if self.pool.borrow().connected(name).is_some_and(|id| id != old) {
                return;
            }
            if registered.changed().await.is_err() {
                return;
            }
        }
    }

    /// Gives a job to the worker's first request.
    fn start(self: &Rc<Self>, worker: WorkerId, id: JobId) {
        let pop = self.workers.borrow_mut().get_mut(&worker).and_then(|worker| worker.pops.pop_front());
        let description = self.jobs.borrow_mut().get_mut(&id).and_then(|job| job.description.take());
        let (Some(pop), Some(description)) = (pop, description) else {
            tracing::error!(pool = %self.name, %worker, job = %id, "a job was started that is not there, or for nobody");
            return;
        };
        if let Err(description) = pop.answer.send(description) {
            // Its worker has just gone.
            if let Some(job) = self.jobs.borrow_mut().get_mut(&id) {
                job.description = Some(description);
            }
            self.act(|pool, now| pool.requeue(now, id));
            return;
        }
        let running = self.pool.borrow().running(worker).count();
        self.set_running(worker, running);
        // Not holding on to the job: when its client lets go, it is cancelled.
        let result = pop.job.result();
        let started = self.jobs.borrow_mut().get_mut(&id).and_then(|job| {
            job.deposit = None;
            job.started.take()
        });
        if let Some(started) = started {
            let _ = started.send(Ok(pop.job));
        }
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let result = result.await;
            pool.end(id, result.err());
        });
    }

    /// Notes that a job has ended.
    fn end(self: &Rc<Self>, id: JobId, failure: Option<Error>) {
        let Some(job) = self.jobs.borrow_mut().remove(&id) else { return };
        // Whether a released job failed or was cancelled is known to its worker only. It may have been cut short, so nothing is
        // learned from it.
        let is_cut_short =
            failure.is_some_and(|error| job.is_cancelled || job.is_released || error.kind == ErrorKind::Disconnected);
        let end = if is_cut_short { End::Cancelled } else { End::Finished };
        self.act(|pool, now| pool.finished(now, id, end));
    }

    /// Gives a job up whose worker is gone. Its client is told by the connection.
    fn lose(self: &Rc<Self>, id: JobId) {
        self.jobs.borrow_mut().remove(&id);
        self.act(|pool, now| pool.finished(now, id, End::Cancelled));
    }

    fn set_running(&self, worker: WorkerId, count: usize) {
        if let Some(worker) = self.workers.borrow().get(&worker) {
            worker.running.send_replace(count);
        }
    }
}
