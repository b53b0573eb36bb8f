//! The life of a job in a pool.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bstr::{BStr, BString};

use super::backlog::Backlog;
use super::effect::{Effect, JobId, WorkerId};
use super::fair::{Charge, Client};
use super::gauges::Gauges;
use super::hints::{Hint, Hints};
use super::names::{Names, Row};
use super::queue::Turn;
use super::rows::Keyed;
use super::worker::{Machine, Worker};

/// The workers of one kind of machine, and the jobs for them.
pub struct Pool {
    pub(super) name: BString,
    pub(super) jobs: Keyed<JobId, Job>,
    pub(super) backlog: Backlog,
    /// How far the fair time has come.
    pub(super) fair: Duration,
    /// The jobs that wait for workers that are gone, by when they will do so no longer. There are none while anybody is idle.
    pub(super) absent: BTreeSet<(Duration, JobId)>,
    /// The jobs in queues of workers, by when they will have waited there for too long.
    pub(super) overdue: BTreeSet<(Duration, JobId)>,
    pub(super) workers: Keyed<WorkerId, Worker>,
    /// The `pop`s that wait, the longest first. While there are any, the backlog is empty.
    pub(super) ready: BTreeMap<u64, WorkerId>,
    /// Whether what happened last was that a worker found nothing to do, not that a job found no worker. Only
    /// [`show`](Pool::show) needs to know.
    pub(super) is_ready: bool,
    pub(super) machines: Names<Machine>,
    pub(super) clients: Names<Client>,
    pub(super) hints: Hints,
    pub(super) effects: Vec<Effect>,
    /// `backlog` and `ready` are filled in when asked for.
    pub(super) counts: Gauges,
    pub(super) next_pop: u64,
}

/// A job that waits or runs.
pub(super) struct Job {
    pub(super) client: Row<Client>,
    pub(super) hint: Option<Row<Hint>>,
    pub(super) urgent: bool,
    /// What it was charged, or what it is likely to be while it is in the backlog.
    pub(super) charge: Charge,
    /// Since when it waits for workers' caches, if it does.
    pub(super) waits_since: Option<Duration>,
    pub(super) place: Place,
}

pub(super) enum Place {
    Backlog,
    /// In a worker's queue, where it adds its cost to the workload. If somebody is idle by `until`, it has been there for too
    /// long.
    Assigned {
        worker: WorkerId,
        until: Duration,
    },
    /// It waits for a worker that is gone to be back by `until`.
    Absent {
        machine: Row<Machine>,
        until: Duration,
    },
    Running {
        worker: WorkerId,
        trial: Trial,
    },
    /// It waits until its client has given again what is missing of it.
    Withheld,
    /// It ran on a worker that is gone, and is charged for that until it is known to be in vain.
    Lost(Trial),
    /// None of these, on its way.
    Nowhere,
}

/// What is known of a job's stay on a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    /// `None`: it began when the pool did not know.
    pub(super) since: Option<Duration>,
    /// The worker had run the hint before.
    pub(super) warm: bool,
}

/// What the pool must know of a job that is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Jobs with the same hint share cached work. Empty: no hint.
    pub hint: &'a BStr,
    /// Goes before all that are not.
    pub urgent: bool,
}

/// How a job ended that was running or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It came to its end, good or bad: so long such jobs take.
    Finished,
    /// It was cancelled, or lost for good.
    Cancelled,
}

/// Where a job was when it was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It waited. It is gone and never starts.
    Queued,
    /// It runs: its worker is to be told. It stays until [`Pool::finished`].
    Running(WorkerId),
    /// Its worker is gone. It is gone too.
    Lost,
    /// There is no such job, or not any more.
    Unknown,
}

impl Pool {
    /// Returns a pool in which nothing is.
    pub fn new(name: impl Into<BString>) -> Pool {
        Pool {
            name: name.into(),
            jobs: Keyed::default(),
            backlog: Backlog::default(),
            fair: Duration::ZERO,
            absent: BTreeSet::new(),
            overdue: BTreeSet::new(),
            workers: Keyed::default(),
            ready: BTreeMap::new(),
            is_ready: false,
            machines: Names::default(),
            clients: Names::default(),
            hints: Hints::default(),
            effects: Vec::new(),
            counts: Gauges::default(),
            next_pop: 0,
        }
    }

    /// Returns the name it was given.
    pub fn name(&self) -> &BStr {
        self.name.as_ref()
    }

    /// Returns what is to be done since this was last asked. To be called after each operation that takes `&mut self`.
    #[must_use = "what is not done is lost"]
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Adds a job of a client. If a worker waits for one it may start at once.
    pub fn submit(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId {
        let id = self.add(client, request);
        self.place(now, id);
        id
    }

    /// Adds a job that a worker had when the scheduler began: it is [lost](Effect::Lost), and is to be treated so.
    pub fn submit_lost(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId {
        let id = self.add(client, request);
        self.charge(now, id, self.expected(id));
        if let Some(job) = self.jobs.get_mut(id) {
            job.place = Place::Lost(Trial { since: None, warm: false });
        }
        self.counts.running += 1;
        id
    }

    /// Adds a job of which something is missing. It waits until it is [requeued](Pool::requeue).
    pub fn submit_withheld(&mut self, client: &BStr, request: Request<'_>) -> JobId {
        let id = self.add(client, request);
        if let Some(job) = self.jobs.get_mut(id) {
            job.place = Place::Withheld;
        }
        self.counts.withheld += 1;
        id
    }

    /// Adds a job that is nowhere yet. Returns its number.
    fn add(&mut self, client: &BStr, request: Request<'_>) -> JobId {
        let hint = (!request.hint.is_empty()).then(|| self.hints.begin(request.hint));
        let client = self.clients.find_or_add(client, || Client::new(Client::RATE));
        let content = self.clients.get_mut(client);
        content.seen = true;
        content.jobs.add(request.urgent);
        let charge = content.estimate(Duration::ZERO);
        let urgent = request.urgent;
        self.counts.submitted_total += 1;
        self.jobs.add(Job { client, hint, urgent, charge, waits_since: None, place: Place::Nowhere })
    }

    /// Notes that a job that waits, is lost or is withheld runs on this worker, which says so. Returns false if there is no
    /// such job or worker, or the job runs elsewhere.
    pub fn resume(&mut self, now: Duration, id: JobId, on: WorkerId) -> bool {
        let (Some(job), true) = (self.jobs.get(id), self.workers.get(on).is_some()) else { return false };
        let trial = match job.place {
            Place::Running { .. } | Place::Nowhere => return false,
            Place::Lost(trial) => trial,
            Place::Backlog | Place::Assigned { .. } | Place::Absent { .. } | Place::Withheld => {
                if matches!(job.place, Place::Withheld) {
                    self.counts.withheld -= 1;
                }
                self.charge(now, id, self.expected(id));
                self.counts.running += 1;
                self.counts.accepted_total += 1;
                Trial { since: None, warm: false }
            }
        };
        if let (Some(job), Some(worker)) = (self.jobs.get_mut(id), self.workers.get_mut(on)) {
            job.place = Place::Running { worker: on, trial };
            job.waits_since = None;
            worker.running.insert(id);
            self.effects.push(Effect::Running { worker: on, jobs: worker.running.len() });
        }
        true
    }

    /// Cancels a job. One that waits is gone at once; for one that runs, the answer says whom to tell.
    pub fn cancel(&mut self, id: JobId) -> Cancelled {
        let Some(job) = self.jobs.get(id) else { return Cancelled::Unknown };
        let cancelled = match job.place {
            Place::Running { worker, .. } => return Cancelled::Running(worker),
            Place::Lost(_) => {
                self.refund(id);
                self.counts.running -= 1;
                Cancelled::Lost
            }
            Place::Backlog => {
                self.remove_from_backlog(id);
                self.counts.cancelled_total += 1;
                Cancelled::Queued
            }
            Place::Assigned { .. } | Place::Absent { .. } => {
                let (row, fair) = (job.client, self.fair);
                self.unassign(id);
                self.stop_waiting_for_absent(id);
                self.change_client(row, |client| client.catch_up(fair));
                self.counts.cancelled_total += 1;
                Cancelled::Queued
            }
            Place::Withheld => {
                self.counts.withheld -= 1;
                self.counts.cancelled_total += 1;
                Cancelled::Queued
            }
            Place::Nowhere => return Cancelled::Unknown,
        };
        self.remove(id);
        cancelled
    }

    /// Notes that a job has ended that was running, lost or withheld. Does nothing for others: a worker may report what is no
    /// longer so.
    pub fn finished(&mut self, now: Duration, id: JobId, end: End) {
        let Some(job) = self.jobs.get(id) else { return };
        match job.place {
            Place::Running { trial: Trial { since, warm }, .. } => {
                // Of one that began who knows when, what was expected has to do.
                if let Some(took) = since.map(|since| now.saturating_sub(since)) {
                    if let (End::Finished, Some(hint)) = (end, job.hint) {
                        self.hints.took(hint, warm, took);
                    }
                    let charge = job.charge;
                    self.change_client(job.client, |client| client.settle(charge, took));
                }
                self.stop(id);
            }
            Place::Lost(_) => self.refund(id),
            Place::Withheld => {
                self.counts.withheld -= 1;
                return self.remove(id);
            }
            Place::Backlog | Place::Assigned { .. } | Place::Absent { .. } | Place::Nowhere => return,
        }
        self.counts.running -= 1;
        self.remove(id);
    }

    /// Puts a job that is running, lost or withheld (back) to where it is in the order of things, to be started. Returns
    /// whether there is such a job.
    ///
    /// When its worker is gone, that is to be [unregistered](Pool::unregister) first: it could be given the job again.
    pub fn requeue(&mut self, now: Duration, id: JobId) -> bool {
        let Some(job) = self.jobs.get_mut(id) else { return false };
        match &job.place {
            Place::Running { .. } => self.stop(id),
            Place::Lost(_) => {}
            Place::Withheld => {
                job.place = Place::Nowhere;
                self.counts.withheld -= 1;
                self.place(now, id);
                return true;
            }
            _ => return false,
        }
        self.counts.running -= 1;
        self.refund(id);
        self.place(now, id);
        true
    }

    /// Takes a running job off its worker.
    fn stop(&mut self, id: JobId) {
        let Some(Place::Running { worker, .. }) = self.jobs.get(id).map(|job| &job.place) else { return };
        let worker = *worker;
        if let Some(content) = self.workers.get_mut(worker) {
            content.running.remove(&id);
            self.effects.push(Effect::Running { worker, jobs: content.running.len() });
        }
    }

    /// Removes a job that is nowhere.
    fn remove(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(id) else { return };
        self.clients.get_mut(job.client).jobs.subtract(job.urgent);
        if let Some(hint) = job.hint {
            self.hints.end(hint);
        }
        self.drop_client_if_removed(job.client);
    }

    /// Returns whose job it is, and how it is shown.
    pub(super) fn describe(&self, turn: Turn) -> Option<(&BStr, &BStr, &Job)> {
        let job = self.jobs.get(turn.job)?;
        let hint = job.hint.map_or(BStr::new(""), |hint| self.hints.names.name(hint));
        Some((self.clients.name(job.client), hint, job))
    }
}
