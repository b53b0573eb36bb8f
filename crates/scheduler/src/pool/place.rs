//! Which worker gets which job.

use std::time::Duration;

use super::effect::{Effect, JobId, WorkerId};
use super::hints::{COLD, MACHINES};
use super::job::{Place, Pool, Trial};

/// How many jobs one operation moves on behalf of others, so that none takes long. The rest is moved by the next ones.
const AT_ONCE: usize = 64;

impl Pool {
    /// Finds a place for a job that has none.
    pub(super) fn place(&mut self, now: Duration, id: JobId) {
        let Some((&first, &waiting)) = self.ready.first_key_value() else {
            return self.add_to_backlog(id);
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

    /// Gives a worker what its `pop`s ask for, as far as there is something. The rest of them wait.
    pub(super) fn serve(&mut self, now: Duration, id: WorkerId) {
        self.expire(now);
        loop {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            if worker.waiting == 0 || !worker.pauses.is_active() {
                return;
            }
            let next = worker.queue.iter().next().map(|turn| turn.job);
            let job = match next {
                Some(job) => {
                    self.unassign(job);
                    Some(job)
                }
                None => self.take_from_backlog(now, id),
            };
            let Some(job) = job else { return self.make_ready(id) };
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

    fn add_to_backlog(&mut self, id: JobId) {
        self.is_ready = false;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.place = Place::Backlog;
            self.backlog.insert(job.turn(id));
        }
    }

    /// Takes the next job for a worker out of the backlog. Those before it that others would do better go to them.
    fn take_from_backlog(&mut self, now: Duration, id: WorkerId) -> Option<JobId> {
        let mut moved = 0;
        loop {
            let job = self.backlog.pop()?.job;
            match self.preferred(now, job) {
                Some(other) if other != id && moved < AT_ONCE => {
                    moved += 1;
                    self.assign(now, job, other);
                }
                _ => return Some(job),
            }
        }
    }

    /// Returns the worker at which a job is to wait, rather than to be done by whoever is free.
    fn preferred(&self, now: Duration, id: JobId) -> Option<WorkerId> {
        let job = self.jobs.get(&id).filter(|job| job.patience.is_none_or(|until| now < until))?;
        let hint = job.hint?;
        // With a longer queue before it, it would be done sooner elsewhere.
        let longest = self.hints.cost(hint, false);
        let machines = &self.hints.names.get(hint).machines;
        // So many ran it that it is not worth waiting for one of them; and there are others, who are not remembered.
        let everywhere = machines.len() == MACHINES;
        let able = machines.iter().filter_map(|&machine| {
            let id = self.machines.get(machine).worker?;
            let worker = self.workers.get(&id)?;
            let busy = worker.waiting == 0;
            let is_able = worker.pauses.is_active() && worker.workload <= longest && !(everywhere && busy);
            is_able.then_some((worker.workload, busy, id))
        });
        able.min().map(|(_, _, id)| id)
    }

    /// Puts a job that is nowhere into the queue of a worker that ran its hint.
    fn assign(&mut self, now: Duration, id: JobId, to: WorkerId) {
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&id), self.workers.get_mut(&to)) else { return };
        let Some(hint) = job.hint else { return };
        let cost = self.hints.cost(hint, true);
        // Twice as long as the queue should take.
        let patience = self.hints.cost(hint, false).saturating_mul(2);
        // Counted from the first time: a worker that comes and goes would hold the job for ever.
        let until = *job.patience.get_or_insert(now.saturating_add(patience));
        job.place = Place::Assigned { worker: to, cost };
        worker.queue.insert(job.turn(id));
        worker.workload = worker.workload.saturating_add(cost);
        self.overdue.insert((until, id));
        self.counts.assigned.add(job.urgent);
    }

    /// Answers a `pop` of a worker with a job that is nowhere.
    fn start(&mut self, now: Duration, id: JobId, on: WorkerId) {
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&id), self.workers.get_mut(&on)) else { return };
        let (mut warm, mut cost) = (false, COLD);
        if let Some(hint) = job.hint {
            warm = self.hints.is_warm(hint, worker.machine);
            cost = self.hints.cost(hint, warm);
            if self.hints.ran(hint, worker.machine) {
                self.effects.push(Effect::SaveHint {
                    hint: self.hints.names.name(hint).to_owned(),
                    worker: self.machines.name(worker.machine).to_owned(),
                });
            }
        }
        job.place = Place::Running { worker: on, trial: Trial { since: Some(now), warm, cost } };
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

    /// Takes jobs from the queues of workers where they have been for too long.
    fn expire(&mut self, now: Duration) {
        for _ in 0..AT_ONCE {
            match self.overdue.first() {
                Some(&(until, id)) if until <= now => {
                    self.unassign(id);
                    self.place(now, id);
                }
                _ => return,
            }
        }
    }
}
