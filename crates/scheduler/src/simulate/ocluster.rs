//! OCluster's policy, to compare with. A model of it, after how it is described; none of its code, and no part of [`Pool`].
//!
//! * Urgent jobs first, then by fair start time: `start = max(now, next)`, and `next = start + cost / rate`. A job costs 10
//!   seconds if a worker ran its hint or another job of it waits, 600 otherwise. Nothing is given back.
//! * A job goes to the worker with the least workload among all that ran its hint, if that is 600 seconds at most; else to
//!   the worker that has waited longest; else to the backlog. When it is taken from there, the first is tried again.
//! * A worker that disconnects gives its queue back. What it ran is lost to its client, who submits it anew.
//!
//! [`Pool`]: crate::pool::Pool

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bstr::{BStr, BString};

use super::policy::Policy;
use crate::pool::{Cancelled, Effect, End, JobId, Request, WorkerId};

/// What a job costs on a worker that ran its hint.
const WARM: Duration = Duration::from_secs(10);
/// What it costs elsewhere.
const COLD: Duration = Duration::from_secs(600);
/// A worker with more work than this in its queue is no longer preferred.
const MOST: Duration = Duration::from_secs(600);

/// A pool with OCluster's policy.
#[derive(Default)]
pub(super) struct OCluster {
    clients: HashMap<BString, Client>,
    jobs: HashMap<JobId, Job>,
    workers: BTreeMap<WorkerId, Worker>,
    /// Hints that are known: which workers ran them, by name, and how many jobs of them wait.
    hints: HashMap<BString, Hint>,
    connected: HashMap<BString, WorkerId>,
    backlog: Queue,
    /// Workers that wait for a job, the longest first.
    ready: BTreeMap<u64, WorkerId>,
    effects: Vec<Effect>,
    count: u64,
}

/// Jobs that wait, the next one first: not urgent, start time, number.
type Queue = BTreeSet<(bool, Duration, JobId)>;

struct Client {
    rate: f64,
    next: Duration,
}

struct Job {
    client: BString,
    hint: BString,
    urgent: bool,
    start: Duration,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Backlog,
    Assigned(WorkerId),
    Running(WorkerId),
    Lost,
}

struct Worker {
    name: BString,
    queue: Queue,
    running: BTreeSet<JobId>,
    /// Its place among those that wait, if it does.
    ready: Option<u64>,
}

#[derive(Default)]
struct Hint {
    workers: Vec<BString>,
    waiting: usize,
}

impl Worker {
    /// Each of the jobs in its queue is there because it ran the hint.
    fn workload(&self) -> Duration {
        WARM.saturating_mul(u32::try_from(self.queue.len()).unwrap_or(u32::MAX))
    }
}

impl OCluster {
    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn turn(&self, id: JobId) -> (bool, Duration, JobId) {
        self.jobs.get(&id).map_or((true, Duration::MAX, id), |job| (!job.urgent, job.start, id))
    }

    /// Charges the client, and finds a place for the job.
    fn enter(&mut self, now: Duration, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let mut cost = COLD;
        if !job.hint.is_empty() {
            let hint = self.hints.entry(job.hint.clone()).or_default();
            if hint.waiting > 0 || !hint.workers.is_empty() {
                cost = WARM;
            }
            hint.waiting += 1;
        }
        let client = self.clients.entry(job.client.clone()).or_insert(Client { rate: 1.0, next: Duration::ZERO });
        job.start = now.max(client.next);
        client.next = job.start + cost.div_f64(client.rate);
        self.place(id);
    }

    fn place(&mut self, id: JobId) {
        if let Some(worker) = self.preferred(id) {
            return self.assign(id, worker);
        }
        match self.ready.first_key_value() {
            Some((_, &worker)) => self.start(id, worker),
            None => {
                let turn = self.turn(id);
                self.backlog.insert(turn);
                self.set_place(id, Place::Backlog);
            }
        }
    }

    /// Returns the worker that ran the hint and has the least to do, if it has not too much to do.
    fn preferred(&self, id: JobId) -> Option<WorkerId> {
        let hint = self.hints.get(&self.jobs.get(&id)?.hint)?;
        let able = hint.workers.iter().filter_map(|name| {
            let id = *self.connected.get(name)?;
            let workload = self.workers.get(&id)?.workload();
            (workload <= MOST).then_some((workload, id))
        });
        able.min().map(|(_, id)| id)
    }

    fn assign(&mut self, id: JobId, to: WorkerId) {
        let turn = self.turn(id);
        self.set_place(id, Place::Assigned(to));
        if let Some(worker) = self.workers.get_mut(&to) {
            worker.queue.insert(turn);
            if worker.ready.is_some() {
                self.serve(to);
            }
        }
    }

    /// Gives a worker that asks the next job, from its own queue or the backlog.
    fn serve(&mut self, id: WorkerId) {
        loop {
            let Some(worker) = self.workers.get(&id) else { return };
            if let Some(&(_, _, job)) = worker.queue.first() {
                return self.start(job, id);
            }
            let Some((_, _, job)) = self.backlog.pop_first() else { return };
            match self.preferred(job) {
                Some(other) if other != id => self.assign(job, other),
                _ => return self.start(job, id),
            }
        }
    }

    fn start(&mut self, id: JobId, on: WorkerId) {
        self.unqueue(id);
        self.set_place(id, Place::Running(on));
        let Some(worker) = self.workers.get_mut(&on) else { return };
        worker.running.insert(id);
        if let Some(place) = worker.ready.take() {
            self.ready.remove(&place);
        }
        if let Some(hint) = self.jobs.get(&id).and_then(|job| self.hints.get_mut(&job.hint)) {
            hint.waiting -= 1;
            if !hint.workers.contains(&worker.name) {
                hint.workers.push(worker.name.clone());
            }
        }
        self.effects.push(Effect::Start { worker: on, job: id });
    }

    fn set_place(&mut self, id: JobId, place: Place) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.place = place;
        }
    }

    /// Takes a job out of the queue in which it is, if it is in one.
    fn unqueue(&mut self, id: JobId) {
        let turn = self.turn(id);
        match self.jobs.get(&id).map(|job| job.place) {
            Some(Place::Backlog) => _ = self.backlog.remove(&turn),
            Some(Place::Assigned(worker)) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.queue.remove(&turn);
                }
            }
            _ => {}
        }
    }
}

impl Policy for OCluster {
    const NAME: &'static str = "ocluster";

    fn set_rate(&mut self, client: &BStr, rate: f64) {
        self.clients.insert(client.to_owned(), Client { rate, next: Duration::ZERO });
    }

    fn connect(&mut self, _: Duration, name: &BStr, _: u32) -> Option<WorkerId> {
        let id = WorkerId::of_no_pool(self.number());
        self.connected.insert(name.to_owned(), id);
        let worker = Worker { name: name.to_owned(), queue: Queue::new(), running: BTreeSet::new(), ready: None };
        self.workers.insert(id, worker);
        Some(id)
    }

    fn disconnect(&mut self, _: Duration, id: WorkerId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.connected.remove(&worker.name);
        if let Some(place) = worker.ready {
            self.ready.remove(&place);
        }
        for job in worker.running {
            self.set_place(job, Place::Lost);
            self.effects.push(Effect::Lost { job });
        }
        worker.queue.into_iter().for_each(|(_, _, job)| self.place(job));
    }

    fn pop(&mut self, _: Duration, id: WorkerId) {
        let place = self.number();
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ready = Some(place);
            self.ready.insert(place, id);
            self.serve(id);
        }
    }

    fn submit(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId {
        let id = JobId::of_no_pool(self.number());
        let (client, hint) = (client.to_owned(), request.hint.to_owned());
        let job = Job { client, hint, urgent: request.urgent, start: now, place: Place::Lost };
        self.jobs.insert(id, job);
        self.enter(now, id);
        id
    }

    fn cancel(&mut self, id: JobId) -> Cancelled {
        let Some(job) = self.jobs.get(&id) else { return Cancelled::Unknown };
        let cancelled = match job.place {
            Place::Running(worker) => return Cancelled::Running(worker),
            Place::Lost => Cancelled::Lost,
            Place::Backlog | Place::Assigned(_) => Cancelled::Queued,
        };
        self.unqueue(id);
        if let Some(job) = self.jobs.remove(&id)
            && cancelled == Cancelled::Queued
            && let Some(hint) = self.hints.get_mut(&job.hint)
        {
            hint.waiting -= 1;
        }
        cancelled
    }

    fn finished(&mut self, _: Duration, id: JobId, _: End) {
        let Some(Job { place: Place::Running(worker), .. }) = self.jobs.remove(&id) else { return };
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.running.remove(&id);
        }
    }

    fn requeue(&mut self, now: Duration, id: JobId) {
        self.enter(now, id);
    }

    fn next_tick(&self) -> Option<Duration> {
        None
    }

    fn tick(&mut self, _: Duration) {}

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn waiting(&self) -> usize {
        let assigned: usize = self.workers.values().map(|worker| worker.queue.len()).sum();
        self.backlog.len() + assigned
    }
}
