//! Workers come, ask for jobs, pause and go.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bstr::{BStr, BString};
use thiserror::Error;

use super::effect::{Effect, JobId, WorkerId};
use super::job::{Place, Pool};
use super::names::Row;
use super::queue::{QUEUE, Queue};

/// A worker by its name, whether it is connected or not. Never removed: hints refer to it.
#[derive(Default)]
pub(super) struct Machine {
    /// It has been registered, or announced by an administrator, and not been forgotten since.
    pub(super) known: bool,
    /// An administrator paused it.
    pub(super) paused: bool,
    /// Its connection.
    pub(super) worker: Option<WorkerId>,
    /// What that offers. It is kept here since many are looked at for each job.
    pub(super) offer: Option<Offer>,
    /// Since when it is gone, if it was ever there.
    pub(super) gone: Option<Duration>,
    /// The jobs that wait for it to come back.
    pub(super) waited_for: BTreeSet<JobId>,
}

/// What a job finds that is put into the queue of a worker, if that takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// How long it waits behind the others there.
    pub(super) wait: Duration,
    /// The worker has not asked for a job.
    pub(super) busy: bool,
}

/// A worker that is connected.
pub(super) struct Worker {
    pub(super) machine: Row<Machine>,
    pub(super) capacity: u32,
    pub(super) pauses: Pauses,
    /// Jobs assigned to it.
    pub(super) queue: Queue,
    /// What these will take.
    pub(super) workload: Duration,
    pub(super) running: BTreeSet<JobId>,
    /// Its `pop`s that are not answered.
    pub(super) waiting: usize,
    /// The places of these in [`Pool::ready`], the first first. None while it is not active.
    pub(super) ready: VecDeque<u64>,
}

impl Worker {
    /// Returns what it offers to jobs.
    pub(super) fn offer(&self) -> Option<Offer> {
        let takes = self.pauses.is_active() && self.queue.len() < QUEUE;
        takes.then(|| Offer { wait: self.wait(), busy: self.waiting == 0 })
    }

    /// Returns how long a job would wait behind its queue.
    pub(super) fn wait(&self) -> Duration {
        self.workload / self.capacity.max(1)
    }

    /// Tells whether it is to be given a job.
    pub(super) fn asks(&self) -> bool {
        self.waiting > 0 && self.pauses.is_active()
    }
}

/// Why a worker is given nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pauses {
    /// It does not want to.
    pub(super) worker: bool,
    /// An administrator does not want it to.
    pub(super) administrator: bool,
    /// It is about to leave.
    pub(super) leaving: bool,
}

impl Pauses {
    pub(super) fn is_active(self) -> bool {
        !(self.worker || self.administrator || self.leaving)
    }
}

/// A worker of this name is connected. OCluster's text, which its workers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Worker already registered!")]
pub struct AlreadyRegistered;

impl Pool {
    /// Adds a worker that has connected and runs up to `capacity` jobs at once. (It says itself when it wants one, by
    /// [`pop`](Pool::pop).) It is paused until it [says](Pool::set_active) that it is active, and longer if an
    /// administrator paused its name.
    ///
    /// # Errors
    ///
    /// A worker of this name is there. The older one stays.
    pub fn register(&mut self, name: &BStr, capacity: u32) -> Result<WorkerId, AlreadyRegistered> {
        let row = self.machines.find_or_add(name, Machine::default);
        if self.machines.get(row).worker.is_some() {
            return Err(AlreadyRegistered);
        }
        let machine = self.machines.get_mut(row);
        let pauses = Pauses { worker: true, administrator: machine.paused, leaving: false };
        if !std::mem::replace(&mut machine.known, true) {
            self.effects.push(Effect::SaveWorker { worker: name.to_owned(), paused: false });
        }
        let id = self.workers.add(Worker {
            machine: row,
            capacity,
            pauses,
            queue: Queue::default(),
            workload: Duration::ZERO,
            running: BTreeSet::new(),
            waiting: 0,
            ready: VecDeque::new(),
        });
        machine.worker = Some(id);
        self.counts.connected += 1;
        self.counts.paused += 1;
        self.counts.capacity += u64::from(capacity);
        Ok(id)
    }

    /// Removes a worker that has disconnected. Its queue goes to others; each job that it was running is
    /// [lost](Effect::Lost).
    pub fn unregister(&mut self, now: Duration, id: WorkerId) {
        self.set_pauses(now, id, |pauses| pauses.worker = true);
        let Some(worker) = self.workers.remove(id) else { return };
        let machine = self.machines.get_mut(worker.machine);
        (machine.worker, machine.gone) = (None, Some(now));
        self.counts.connected -= 1;
        self.counts.paused -= 1;
        self.counts.capacity -= u64::from(worker.capacity);
        for job in worker.running {
            if let Some(content) = self.jobs.get_mut(job) {
                if let Place::Running { trial, .. } = content.place {
                    content.place = Place::Lost(trial);
                }
                self.effects.push(Effect::Lost { job });
            }
        }
    }

    /// Notes that a worker asks for a job. It is answered by [`Effect::Start`], now or later. Several may wait.
    pub fn pop(&mut self, now: Duration, id: WorkerId) {
        if self.change_worker(id, |worker| worker.waiting += 1).is_some() {
            self.serve(now, id);
        }
    }

    /// Notes that a worker gives up one `pop` that has not been answered, the latest. Does nothing if there is none.
    pub fn give_up_pop(&mut self, id: WorkerId) {
        let place = self.change_worker(id, |worker| {
            worker.waiting = worker.waiting.saturating_sub(1);
            worker.ready.pop_back()
        });
        if let Some(Some(place)) = place {
            self.ready.remove(&place);
        }
    }

    /// Notes that a worker pauses itself, or is active again. Jobs that run go on.
    pub fn set_active(&mut self, now: Duration, id: WorkerId, active: bool) {
        self.set_pauses(now, id, |pauses| pauses.worker = !active);
    }

    /// Stops giving jobs to a worker that is about to restart. That ends when it connects again, or by saying that it stays.
    pub fn set_leaving(&mut self, now: Duration, id: WorkerId, leaving: bool) {
        self.set_pauses(now, id, |pauses| pauses.leaving = leaving);
    }

    /// Returns the connected worker of this name.
    pub fn connected(&self, name: &BStr) -> Option<WorkerId> {
        self.machines.get(self.machines.find(name)?).worker
    }

    /// Returns the jobs that a worker runs, oldest first.
    pub fn running(&self, id: WorkerId) -> impl Iterator<Item = JobId> {
        self.workers.get(id).into_iter().flat_map(|worker| worker.running.iter().copied())
    }

    /// Returns the name of a connected worker.
    pub fn worker_name(&self, id: WorkerId) -> Option<BString> {
        Some(self.machines.name(self.workers.get(id)?.machine).to_owned())
    }

    /// Changes a worker's queue, `pop`s or pauses. All changes of these are made here.
    pub(super) fn change_worker<T>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let worker = self.workers.get_mut(id)?;
        let result = change(worker);
        self.machines.get_mut(worker.machine).offer = worker.offer();
        Some(result)
    }

    /// Changes why a worker is given nothing, and does what follows.
    pub(super) fn set_pauses(&mut self, now: Duration, id: WorkerId, change: impl FnOnce(&mut Pauses)) {
        let activity = self.change_worker(id, |worker| {
            let was_active = worker.pauses.is_active();
            change(&mut worker.pauses);
            (was_active, worker.pauses.is_active())
        });
        let (Some(activity), Some(worker)) = (activity, self.workers.get_mut(id)) else { return };
        match activity {
            (true, false) => {
                self.counts.paused += 1;
                for place in worker.ready.drain(..) {
                    self.ready.remove(&place);
                }
                let queue: Vec<JobId> = worker.queue.iter().collect();
                for job in queue {
                    self.unassign(job);
                    self.place(now, job);
                }
            }
            (false, true) => {
                self.counts.paused -= 1;
                let machine = worker.machine;
                self.end_absence(now, machine);
                self.serve(now, id);
            }
            _ => {}
        }
    }
}
