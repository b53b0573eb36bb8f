//! A pool with its objects: does what the pool wants done.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bstr::{BStr, BString};
use kiln_api::{Job, JobDescription, JobKey, JobLog, Progress, Run, Worker};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::jobs::LiveJob;
use super::keeper::Keeper;
use super::logs::Logs;
use super::scheduler::Keeping;
use crate::pool::{AlreadyRegistered, Effect, JobId, Pool, WorkerId};
use crate::state::StateError;

/// What a worker waits for that asked for a job.
pub(super) type Popped = oneshot::Receiver<(JobDescription, Run)>;

/// A connected worker.
struct LiveWorker {
    worker: Worker,
    /// What it called itself when it started; nothing for one that does not come back for its jobs.
    process: Vec<u8>,
    /// Its requests for jobs, the first first.
    pops: VecDeque<Pop>,
    /// How many jobs it runs.
    running: watch::Sender<usize>,
    /// Cancelled when it has gone.
    gone: CancellationToken,
}

/// A worker's request for a job.
pub(super) struct Pop {
    number: u64,
    /// What the job will be.
    pub(super) job: Job,
    pub(super) answer: oneshot::Sender<(JobDescription, Run)>,
}

/// How often since the scheduler began.
#[derive(Default)]
pub(crate) struct Losses {
    /// A job began again.
    pub(crate) retried: Cell<u64>,
    /// A job was given up.
    pub(crate) abandoned: Cell<u64>,
}

/// One pool of a running scheduler.
pub(crate) struct LivePool {
    pub(crate) name: BString,
    pub(super) pool: RefCell<Pool>,
    pub(super) jobs: RefCell<HashMap<JobId, LiveJob>>,
    pub(super) keys: RefCell<HashMap<JobKey, JobId>>,
    /// The jobs of workers that are gone and may come back, by the workers' names.
    pub(super) lost: RefCell<HashMap<BString, BTreeSet<JobId>>>,
    /// What came of jobs whose workers were.
    pub(crate) losses: Losses,
    workers: RefCell<HashMap<WorkerId, LiveWorker>>,
    /// The pool may have another time to be told.
    changed: Notify,
    /// Changes with each registration.
    registered: watch::Sender<u64>,
    next_pop: Cell<u64>,
    epoch: Instant,
    pub(super) keeper: Keeper,
    pub(super) keeping: Rc<Keeping>,
    pub(super) logs: Logs,
    /// The scheduler ends: whoever goes now does not mean it.
    pub(super) stopping: CancellationToken,
    /// Jobs on workers that may be forgotten there once all is on disk.
    pub(super) settling: RefCell<Vec<(Job, Option<JobLog>)>>,
    pub(super) to_settle: Notify,
}

impl LivePool {
    pub(super) fn new(
        pool: Pool,
        keeper: Keeper,
        keeping: Rc<Keeping>,
        logs: Logs,
        stopping: CancellationToken,
    ) -> Rc<Self> {
        Rc::new(Self {
            name: pool.name().to_owned(),
            pool: RefCell::new(pool),
            jobs: RefCell::default(),
            keys: RefCell::default(),
            lost: RefCell::default(),
            losses: Losses::default(),
            workers: RefCell::default(),
            changed: Notify::new(),
            registered: watch::Sender::new(0),
            next_pop: Cell::new(0),
            epoch: Instant::now(),
            keeper,
            keeping,
            logs,
            stopping,
            settling: RefCell::default(),
            to_settle: Notify::new(),
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

    /// Changes the pool, without doing what follows: the next [`act`](Self::act) does.
    pub(super) fn prepare<T>(&self, change: impl FnOnce(&mut Pool, Duration) -> T) -> T {
        change(&mut self.pool.borrow_mut(), self.epoch.elapsed())
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

    /// Adds a worker that does not come back for its jobs. It is active at once, as OCluster's workers expect: they only say
    /// when they are not.
    pub(super) fn register(
        self: &Rc<Self>,
        name: &BStr,
        worker: Worker,
        capacity: u32,
    ) -> Result<WorkerId, AlreadyRegistered> {
        let id = self.connect(name, worker, capacity, Vec::new())?;
        self.welcome(id);
        Ok(id)
    }

    /// Adds a worker that comes back for its jobs, and is active once it is [welcome](Self::welcome). Its older self, if that
    /// is there, goes.
    pub(super) fn enter(
        self: &Rc<Self>,
        name: &BStr,
        worker: Worker,
        capacity: u32,
        process: Vec<u8>,
    ) -> Result<WorkerId, AlreadyRegistered> {
        let older = self.pool.borrow().connected(name);
        let is_itself = |id: &WorkerId| {
            self.workers.borrow().get(id).is_some_and(|other| !process.is_empty() && other.process == process)
        };
        if let Some(older) = older.filter(is_itself) {
            self.unregister(older);
        }
        self.connect(name, worker, capacity, process)
    }

    fn connect(
        self: &Rc<Self>,
        name: &BStr,
        worker: Worker,
        capacity: u32,
        process: Vec<u8>,
    ) -> Result<WorkerId, AlreadyRegistered> {
        let id = self.act(|pool, _| pool.register(name, capacity))?;
        let gone = CancellationToken::new();
        let worker = LiveWorker { worker, process, pops: VecDeque::new(), running: watch::Sender::new(0), gone };
        self.workers.borrow_mut().insert(id, worker);
        self.registered.send_modify(|count| *count += 1);
        Ok(id)
    }

    /// Lets a worker have jobs, which has brought back what it had.
    pub(super) fn welcome(self: &Rc<Self>, id: WorkerId) {
        if let Some(name) = self.look(|pool, _| pool.worker_name(id)) {
            self.give_up_on(name.as_ref());
        }
        self.act(|pool, now| pool.set_active(now, id, true));
    }

    /// Removes a worker. What it ran is lost.
    pub(super) fn unregister(self: &Rc<Self>, id: WorkerId) {
        self.act(|pool, now| pool.unregister(now, id));
        // Dropping what it was may come back here.
        let gone = self.workers.borrow_mut().remove(&id);
        if let Some(gone) = gone {
            gone.gone.cancel();
        }
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

    /// Takes a worker's first request, for which there is a job.
    pub(super) fn take_pop(&self, id: WorkerId) -> Option<Pop> {
        self.workers.borrow_mut().get_mut(&id)?.pops.pop_front()
    }

    /// Makes a request again that was taken for nothing.
    pub(super) fn put_pop_back(self: &Rc<Self>, id: WorkerId, pop: Pop) {
        match self.workers.borrow_mut().get_mut(&id) {
            // Nobody waits for its answer any more.
            Some(_) if pop.answer.is_closed() => return,
            Some(worker) => worker.pops.push_front(pop),
            None => return,
        }
        self.act(|pool, now| pool.pop(now, id));
    }

    /// Waits until what was done is on disk: what was done until this is called, not until the future is polled.
    pub(super) fn kept(&self) -> impl Future<Output = Result<(), StateError>> + use<> {
        self.keeper.settled()
    }

    /// Returns the worker's own object.
    pub(crate) fn worker(&self, name: &BStr) -> Option<Worker> {
        let id = self.pool.borrow().connected(name)?;
        self.workers.borrow().get(&id).map(|worker| worker.worker.clone())
    }

    /// Returns whether a worker comes back for its jobs.
    pub(super) fn comes_back(&self, id: WorkerId) -> bool {
        self.workers.borrow().get(&id).is_some_and(|worker| !worker.process.is_empty())
    }

    /// Waits until a worker has gone.
    pub(super) async fn gone(&self, id: WorkerId) {
        let gone = self.workers.borrow().get(&id).map(|worker| worker.gone.clone());
        if let Some(gone) = gone {
            gone.cancelled().await;
        }
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

    pub(super) fn set_running(&self, worker: WorkerId, count: usize) {
        if let Some(worker) = self.workers.borrow().get(&worker) {
            worker.running.send_replace(count);
        }
    }
}
