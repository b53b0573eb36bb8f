//! Which worker gets which job.

use std::time::Duration;

use super::effect::{Effect, JobId, WorkerId};
use super::hints::{COLD, MACHINES};
use super::job::{Place, Pool, Trial};

/// A worker's queue is worth waiting for up to this many times what the job would take elsewhere. What it does not take from
/// others, they have for jobs that nobody would do better. With longer queues there are more hits, but what is in these queues is
/// no longer shared out.
const WORTH_WAITING: u32 = 2;
/// After this many times what it would take elsewhere a job has been in workers' queues for too long, if somebody is free.
const PATIENCE: u32 = 4;
/// And after so many more, if nobody is: whoever asks next may do it then. Sooner, a pool that falls behind would fall behind more,
/// by doing without its caches.
const MORE_PATIENCE: u32 = 16;
/// How many jobs one operation moves on behalf of others, so that none takes long. The rest is moved by the next ones.
const AT_ONCE: usize = 64;

impl Pool {
    /// Finds a place for a job that has none.
    pub(super) fn place(&mut self, now: Duration, id: JobId) {
        let Some((&first, &waiting)) = self.ready.first_key_value() else {
            return self.add_to_backlog(now, id);
        };
        if let Some(worker) = self.preferred(now, id) {
            self.assign(now, id, worker);
            return self.serve(now, worker);
        }
        self.ready.remove(&first);
        if let Some(worker) = self.workers.get_mut(&waiting) {
            worker.ready.pop_front();
        }
        self.start(now, id, waiting);
    }

    /// Gives a worker what its `pop`s ask for, as far as there is something: what is next in its own queue or in the backlog. Jobs
    /// of the backlog that another would do better go to that one. The rest of the `pop`s wait.
    pub(super) fn serve(&mut self, now: Duration, id: WorkerId) {
        self.expire(now);
        let mut moved = 0;
        loop {
            let Some(worker) = self.workers.get(&id) else { return };
            if worker.waiting == 0 || !worker.pauses.is_active() {
                return;
            }
            let job = match (worker.queue.first(), self.backlog.first()) {
                (Some(own), other) if other.is_none_or(|other| own < other) => {
                    self.unassign(own.job);
                    own.job
                }
                (_, Some(next)) => match self.preferred(now, next.job) {
                    Some(other) if other != id && moved < AT_ONCE => {
                        moved += 1;
                        self.assign(now, next.job, other);
                        continue;
                    }
                    _ => next.job,
                },
                (_, None) => return self.make_ready(id),
            };
            // What is served now may have been waiting in line.
            if let Some(worker) = self.workers.get_mut(&id)
                && let Some(place) = worker.ready.pop_front()
            {
                self.ready.remove(&place);
            }
            self.start(now, job, id);
        }
    }

    /// Gives jobs that have waited for too long in the queue of a worker to whoever is free. To be called at
    /// [`next_tick`](Pool::next_tick); calls at other times do no harm.
    pub fn tick(&mut self, now: Duration) {
        self.expire(now);
    }

    /// Returns when [`tick`](Pool::tick) is to be called next: there is somebody who would have something to do then.
    pub fn next_tick(&self) -> Option<Duration> {
        let (until, _) = self.overdue.first()?;
        (!self.ready.is_empty()).then_some(*until)
    }

    /// Removes a job from the queue of its worker. It is nowhere then.
    pub(super) fn unassign(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (Place::Assigned { worker, cost }, Some(until)) = (&job.place, job.patience) else { return };
        self.overdue.remove(&(until, id));
        self.counts.assigned.subtract(job.urgent);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.queue.remove(job.turn(id));
            worker.workload = worker.workload.saturating_sub(*cost);
        }
    }

    /// Returns the worker at which a job is to wait, rather than to be done by whoever is free.
    fn preferred(&self, now: Duration, id: JobId) -> Option<WorkerId> {
        let job = self.jobs.get(&id).filter(|job| job.patience.is_none_or(|until| now < until))?;
        let hint = job.hint?;
        let longest = self.hints.cost(hint, false).saturating_mul(WORTH_WAITING);
        let machines = &self.hints.names.get(hint).machines;
        // So many ran it that it is not worth waiting for one of them; and there are others, who are not remembered.
        let everywhere = machines.len() == MACHINES;
        let able = machines.iter().filter_map(|&machine| {
            let id = self.machines.get(machine).worker?;
            let worker = self.workers.get(&id)?;
            let busy = worker.waiting == 0;
            let is_able = worker.pauses.is_active() && worker.wait() <= longest && !(everywhere && busy);
            is_able.then_some((worker.wait(), busy, id))
        });
        able.min().map(|(_, _, id)| id)
    }

    /// Puts a job that is nowhere, or in the backlog, into the queue of a worker that ran its hint.
    fn assign(&mut self, now: Duration, id: JobId, to: WorkerId) {
        let Some(hint) = self.jobs.get(&id).and_then(|job| job.hint) else { return };
        let cost = self.hints.cost(hint, true);
        self.charge(now, id, cost);
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&id), self.workers.get_mut(&to)) else { return };
        let patience = self.hints.cost(hint, false).saturating_mul(PATIENCE);
        // Counted from the first time: a worker that comes and goes would hold the job for ever.
        let until = *job.patience.get_or_insert(now.saturating_add(patience));
        job.place = Place::Assigned { worker: to, cost };
        worker.queue.insert(job.turn(id));
        worker.workload = worker.workload.saturating_add(cost);
        self.overdue.insert((until, id));
        self.counts.assigned.add(job.urgent);
    }

    /// Answers a `pop` of a worker with a job that is nowhere, in the backlog or was in the worker's queue.
    fn start(&mut self, now: Duration, id: JobId, on: WorkerId) {
        let (Some(job), Some(worker)) = (self.jobs.get(&id), self.workers.get(&on)) else { return };
        let is_charged = matches!(job.place, Place::Assigned { .. });
        let (machine, hint) = (worker.machine, job.hint);
        let warm = hint.is_some_and(|hint| self.hints.is_warm(hint, machine));
        if !is_charged {
            self.charge(now, id, hint.map_or(COLD, |hint| self.hints.cost(hint, warm)));
        }
        if let Some(hint) = hint
            && self.hints.ran(hint, machine)
        {
            self.effects.push(Effect::SaveHint {
                hint: self.hints.names.name(hint).to_owned(),
                worker: self.machines.name(machine).to_owned(),
            });
        }
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&id), self.workers.get_mut(&on)) else { return };
        job.place = Place::Running { worker: on, trial: Trial { since: Some(now), warm } };
        job.patience = None;
        worker.waiting -= 1;
        worker.running.insert(id);
        self.counts.running += 1;
        self.counts.accepted_total += 1;
        self.effects.push(Effect::Start { worker: on, job: id });
    }

    /// Puts the `pop`s of a worker into the line of those who wait.
    fn make_ready(&mut self, id: WorkerId) {
        self.is_ready = true;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        while worker.ready.len() < worker.waiting {
            self.ready.insert(self.next_pop, id);
            worker.ready.push_back(self.next_pop);
            self.next_pop += 1;
        }
    }

    /// Tells whether a job has been in workers' queues for too long, which it has by `until` if somebody is free.
    fn has_waited(&self, now: Duration, until: Duration, id: JobId) -> bool {
        let more = || {
            let hint = self.jobs.get(&id).and_then(|job| job.hint);
            hint.map_or(COLD, |hint| self.hints.cost(hint, false)).saturating_mul(MORE_PATIENCE)
        };
        until <= now && (!self.ready.is_empty() || until.saturating_add(more()) <= now)
    }

    /// Takes jobs from the queues of workers where they have been for too long.
    fn expire(&mut self, now: Duration) {
        for _ in 0..AT_ONCE {
            match self.overdue.first() {
                Some(&(until, id)) if self.has_waited(now, until, id) => {
                    self.unassign(id);
                    self.refund(id);
                    self.place(now, id);
                }
                _ => return,
            }
        }
    }
}
