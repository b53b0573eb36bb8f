//! The numbers that an operator watches.

use bstr::BStr;

use super::job::Pool;

/// How many jobs, by priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Urgent jobs.
    pub high: usize,
    /// The others.
    pub low: usize,
}

impl Lengths {
    pub(super) fn add(&mut self, urgent: bool) {
        *self.of(urgent) += 1;
    }

    pub(super) fn subtract(&mut self, urgent: bool) {
        *self.of(urgent) -= 1;
    }

    fn of(&mut self, urgent: bool) -> &mut usize {
        if urgent { &mut self.high } else { &mut self.low }
    }
}

/// A pool's numbers at a moment. All but the three totals are zero when no job and no worker is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Jobs in the backlog.
    pub backlog: Lengths,
    /// Jobs in the queues of workers, together, and those that wait for workers that are gone.
    pub assigned: Lengths,
    /// Jobs that run, or whose worker was lost and for which nobody has said yet how they go on.
    pub running: usize,
    /// Jobs that wait until their clients have given again what is missing of them.
    pub withheld: usize,
    /// Workers that are connected.
    pub connected: usize,
    /// Jobs that these run at once, together.
    pub capacity: u64,
    /// `pop`s of active workers that wait for a job.
    pub ready: usize,
    /// Connected workers that are not active.
    pub paused: usize,
    /// Jobs submitted, ever.
    pub submitted_total: u64,
    /// Jobs cancelled while they were queued, ever.
    pub cancelled_total: u64,
    /// Jobs given to workers, ever.
    pub accepted_total: u64,
}

impl Pool {
    /// Returns the pool's numbers, in constant time.
    pub fn gauges(&self) -> Gauges {
        Gauges { backlog: self.backlog.lengths(), ready: self.ready.len(), ..self.counts }
    }

    /// Returns the connected workers, sorted by name, each with the jobs in its queue.
    pub fn worker_queues(&self) -> impl Iterator<Item = (&BStr, Lengths)> {
        self.machines.iter().filter_map(|(name, _, machine)| {
            let worker = self.workers.get(machine.worker?)?;
            Some((name, worker.queue.lengths()))
        })
    }

    /// Returns the clients that have jobs in the pool, waiting or running, sorted by name, and how many.
    pub fn client_jobs(&self) -> impl Iterator<Item = (&BStr, Lengths)> {
        let clients = self.clients.iter().map(|(name, _, client)| (name, client.jobs));
        clients.filter(|(_, jobs)| *jobs != Lengths::default())
    }
}
