//! Which worker gets which job.

use std::time::Duration;

use super::effect::{Effect, JobId, WorkerId};
use super::hints::{COLD, MACHINES};
use super::job::{Place, Pool, Trial};
use super::worker::Offer;

/// While nobody is idle, a worker's queue is worth waiting for if it takes no longer. Those who ask have other work meanwhile, so that
/// only the job itself comes later; but a hint for which there is such a queue is worth having on one more worker. So long, and
/// not some times as long as the job, since that is what its client has to bear.
const WORTH_WAITING: Duration = Duration::from_secs(3600);
/// A client all of whose jobs wait for caches is served without them when it is owed this many times what a cache saves. It then has
/// one more worker that has them cached, so this is a price that is paid once; at a lower one, a pool that falls behind pays it for
/// hints that are not used again.
const OWED: u32 = 300;
/// While nobody is idle, a job that has waited for workers' caches for this long is done by whoever asks next.
const TOO_LONG: Duration = Duration::from_secs(4 * 3600);
/// While somebody is idle, one that has waited for this many times what it would take elsewhere is done by them: its worker is
/// stuck, or takes far longer than expected.
const PATIENCE: u32 = 4;
/// How much one operation does on behalf of others, so that none takes long. The rest is done by the next ones.
const AT_ONCE: usize = 48;
/// At how many of the workers that ran a hint is looked, the latest. The others do its jobs when they ask themselves.
const LOOKED_AT: usize = 32;

impl Pool {
    /// Finds a place for a job, unless it has one: who places several may find that the first brought others with it.
    pub(super) fn place(&mut self, now: Duration, id: JobId) {
        if !self.jobs.get(id).is_some_and(|job| matches!(job.place, Place::Nowhere)) {
            return;
        }
        let Some((&first, &waiting)) = self.ready.first_key_value() else {
            return self.add_to_backlog(now, id);
        };
        if let Some(worker) = self.preferred(now, id) {
            self.assign(now, id, worker);
            return self.hand_out(now, worker);
        }
        self.ready.remove(&first);
        if let Some(worker) = self.workers.get_mut(waiting) {
            worker.ready.pop_front();
        }
        self.start(now, id, waiting);
    }

    /// Gives a worker what its `pop`s ask for, as far as there is something: what is next in its own queue or in the backlog.
    /// Jobs of the backlog that another would do better wait for that one. The rest of the `pop`s wait.
    pub(super) fn serve(&mut self, now: Duration, id: WorkerId) {
        self.expire(now);
        self.hand_out(now, id);
    }

    /// Does that, and nothing for jobs of others that have waited for too long: finding a place for one of them comes back here.
    fn hand_out(&mut self, now: Duration, id: WorkerId) {
        let mut done = 0;
        while let Some(worker) = self.workers.get(id).filter(|worker| worker.asks()) {
            // What is done for others does not change it.
            let own = worker.queue.first(&self.clients);
            let job = loop {
                match (own, self.backlog.first()) {
                    // Of one client, its own first: it has them cached.
                    (Some(own), other) if other.is_none_or(|other| own.is_due_with(other)) => break own.job,
                    // Enough was done for others.
                    (Some(own), _) if done >= AT_ONCE => break own.job,
                    (_, Some(next)) => {
                        done += 1 + self.looked_at(next.job) / 16;
                        if done >= AT_ONCE || !self.send_away(now, next.job, id) {
                            break next.job;
                        }
                    }
                    (_, None) => match self.worth_taking(now) {
                        Some(job) => break job,
                        None => return self.make_ready(id),
                    },
                }
            };
            let job = self.owed(job).unwrap_or(job);
            // What is served now may have been waiting in line.
            if let Some(worker) = self.workers.get_mut(id)
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

    /// Lets a job of the backlog wait for a worker that would do it better than the one that asks, if there is such a worker.
    fn send_away(&mut self, now: Duration, id: JobId, asks: WorkerId) -> bool {
        if self.is_warm(id, asks) {
            return false;
        }
        if let Some(other) = self.preferred(now, id) {
            self.assign(now, id, other);
            return true;
        }
        self.wait_for_absent(now, id)
    }

    /// Returns the job that is to be done rather than this one, cached or not: its client has only such jobs, and is owed so
    /// much time that it is better served so. (Its last one: that would wait longest.)
    fn owed(&self, id: JobId) -> Option<JobId> {
        let job = self.jobs.get(id)?;
        let (next, row) = self.backlog.first_holder()?;
        let client = self.clients.get(row);
        let owed = self.clients.get(job.client).next.checked_sub(next)?.as_secs_f64() * client.rate;
        let other_id = *client.held_jobs.last()?;
        let other = self.jobs.get(other_id)?;
        let most = self.hints.saves(other.hint?).saturating_mul(OWED).as_secs_f64();
        (other.urgent >= job.urgent && owed > most).then_some(other_id)
    }

    /// Returns a job that waits for another worker, and is better done by one that is idle.
    fn worth_taking(&self, now: Duration) -> Option<JobId> {
        self.absent.first().map(|(_, id)| *id).or_else(|| {
            let mut longest = self.overdue.iter().take(AT_ONCE).map(|(_, id)| *id);
            longest.find(|id| {
                let job = self.jobs.get(*id);
                let waits = job.and_then(|job| match job.place {
                    Place::Assigned { worker, .. } => Some((self.workers.get(worker)?.wait(), job.hint?)),
                    _ => None,
                });
                waits.is_some_and(|(wait, hint)| wait > self.hints.saves(hint)) || self.has_waited(now, *id)
            })
        })
    }

    /// Removes a job from the queue of its worker. It is nowhere then.
    pub(super) fn unassign(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Place::Assigned { worker, until } = job.place else { return };
        job.place = Place::Nowhere;
        let (client, urgent, cost) = (job.client, job.urgent, job.charge.cost);
        self.overdue.remove(&(until, id));
        self.counts.assigned.subtract(urgent);
        self.change_worker(worker, |worker| {
            worker.queue.remove(client, !urgent, id);
            worker.workload = worker.workload.saturating_sub(cost);
        });
        self.stop_holding(id);
    }

    /// Returns how many workers are looked at to place a job.
    fn looked_at(&self, id: JobId) -> usize {
        let hint = self.jobs.get(id).and_then(|job| job.hint);
        hint.map_or(0, |hint| self.hints.names.get(hint).machines.len().min(LOOKED_AT))
    }

    /// Tells whether a worker ran the hint of a job.
    fn is_warm(&self, id: JobId, on: WorkerId) -> bool {
        let hint = self.jobs.get(id).and_then(|job| job.hint);
        let machine = self.workers.get(on).map(|worker| worker.machine);
        hint.zip(machine).is_some_and(|(hint, machine)| self.hints.is_warm(hint, machine))
    }

    /// Returns the worker at which a job is to wait, rather than to be done by whoever is free.
    fn preferred(&self, now: Duration, id: JobId) -> Option<WorkerId> {
        let hint = self.jobs.get(id)?.hint?;
        if self.has_waited(now, id) {
            return None;
        }
        let longest = match self.ready.is_empty() {
            true => WORTH_WAITING,
            // It would be done sooner by who is idle.
            false => self.hints.saves(hint),
        };
        let machines = &self.hints.names.get(hint).machines;
        // So many ran it that it is not worth waiting for one of them; and there are others, who are not remembered.
        let everywhere = machines.len() == MACHINES;
        let able = machines.iter().rev().take(LOOKED_AT).filter_map(|&machine| {
            let machine = self.machines.get(machine);
            let Offer { wait, busy } = machine.offer?;
            Some((wait, busy, machine.worker?)).filter(|_| wait <= longest && !(everywhere && busy))
        });
        able.min().map(|(_, _, id)| id)
    }

    /// Puts a job that is nowhere, or in the backlog, into the queue of a worker that ran its hint.
    fn assign(&mut self, now: Duration, id: JobId, to: WorkerId) {
        let Some(hint) = self.jobs.get(id).and_then(|job| job.hint) else { return };
        let cost = self.hints.cost(hint, true);
        let patience = self.hints.cost(hint, false).saturating_mul(PATIENCE);
        self.hold(now, id, cost);
        let Some(job) = self.jobs.get_mut(id) else { return };
        let until = job.waits_since.unwrap_or(now).saturating_add(patience);
        job.place = Place::Assigned { worker: to, until };
        let (client, urgent, cost) = (job.client, job.urgent, job.charge.cost);
        self.change_worker(to, |worker| {
            worker.queue.insert(client, !urgent, id);
            worker.workload = worker.workload.saturating_add(cost);
        });
        self.overdue.insert((until, id));
        self.counts.assigned.add(urgent);
    }

    /// Answers a `pop` of a worker with a job that waits, or that is nowhere.
    fn start(&mut self, now: Duration, id: JobId, on: WorkerId) {
        let (Some(job), Some(worker)) = (self.jobs.get(id), self.workers.get(on)) else { return };
        let (machine, hint) = (worker.machine, job.hint);
        let warm = hint.is_some_and(|hint| self.hints.is_warm(hint, machine));
        self.charge(now, id, hint.map_or(COLD, |hint| self.hints.cost(hint, warm)));
        if let Some(hint) = hint
            && self.hints.ran(hint, machine)
        {
            self.effects.push(Effect::SaveHint {
                hint: self.hints.names.name(hint).to_owned(),
                worker: self.machines.name(machine).to_owned(),
            });
        }
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.place = Place::Running { worker: on, trial: Trial { since: Some(now), warm } };
        job.waits_since = None;
        self.change_worker(on, |worker| {
            worker.waiting -= 1;
            worker.running.insert(id);
        });
        self.counts.running += 1;
        self.counts.accepted_total += 1;
        self.effects.push(Effect::Start { worker: on, job: id });
    }

    /// Puts the `pop`s of a worker into the line of those who wait.
    fn make_ready(&mut self, id: WorkerId) {
        self.is_ready = true;
        let Some(worker) = self.workers.get_mut(id) else { return };
        while worker.ready.len() < worker.waiting {
            self.ready.insert(self.next_pop, id);
            worker.ready.push_back(self.next_pop);
            self.next_pop += 1;
        }
    }

    /// Tells whether a job has waited for workers' caches for too long.
    fn has_waited(&self, now: Duration, id: JobId) -> bool {
        let Some((since, hint)) = self.jobs.get(id).and_then(|job| job.waits_since.zip(job.hint)) else {
            return false;
        };
        let patience = match self.ready.is_empty() {
            true => TOO_LONG,
            false => self.hints.cost(hint, false).saturating_mul(PATIENCE),
        };
        since.saturating_add(patience) <= now
    }

    /// Takes jobs from the queues of workers where they have been for too long, and from those of absent ones.
    fn expire(&mut self, now: Duration) {
        for _ in 0..AT_ONCE {
            let overdue = self.overdue.first().map(|(until, id)| (*until, *id));
            let absent = self.absent.first().map(|(until, id)| (*until, *id));
            match (overdue, absent) {
                (Some((until, id)), _) if until <= now && (!self.ready.is_empty() || self.has_waited(now, id)) => {
                    self.unassign(id);
                    self.place(now, id);
                }
                (_, Some((until, id))) if until <= now => {
                    self.stop_waiting_for_absent(id);
                    self.place(now, id);
                }
                _ => return,
            }
        }
    }
}
