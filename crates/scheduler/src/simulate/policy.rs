//! What a simulation asks of who decides.

use std::time::Duration;

use bstr::BStr;

use crate::pool::{Cancelled, Effect, End, JobId, Pool, Request, WorkerId};

/// Decides which worker gets which job. The operations, and what is to be done after each, are those of [`Pool`].
pub(super) trait Policy {
    /// What reports call it.
    const NAME: &'static str;

    fn set_rate(&mut self, client: &BStr, rate: f64);
    /// Adds a worker that is active at once. `None`: it is there already.
    fn connect(&mut self, now: Duration, name: &BStr, capacity: u32) -> Option<WorkerId>;
    fn disconnect(&mut self, now: Duration, worker: WorkerId);
    fn pop(&mut self, now: Duration, worker: WorkerId);
    fn submit(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId;
    fn cancel(&mut self, job: JobId) -> Cancelled;
    fn finished(&mut self, now: Duration, job: JobId, end: End);
    fn requeue(&mut self, now: Duration, job: JobId);
    fn next_tick(&self) -> Option<Duration>;
    fn tick(&mut self, now: Duration);
    fn take_effects(&mut self) -> Vec<Effect>;
    /// Returns how many jobs wait in the backlog and in queues of workers.
    fn waiting(&self) -> usize;
}

impl Policy for Pool {
    const NAME: &'static str = "kiln";

    fn set_rate(&mut self, client: &BStr, rate: f64) {
        // Traces have only rates that can be.
        let _ = Pool::set_rate(self, client, rate);
    }

    fn connect(&mut self, now: Duration, name: &BStr, capacity: u32) -> Option<WorkerId> {
        let worker = self.register(name, capacity).ok()?;
        self.set_active(now, worker, true);
        Some(worker)
    }

    fn disconnect(&mut self, now: Duration, worker: WorkerId) {
        self.unregister(now, worker);
    }

    fn pop(&mut self, now: Duration, worker: WorkerId) {
        Pool::pop(self, now, worker);
    }

    fn submit(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId {
        Pool::submit(self, now, client, request)
    }

    fn cancel(&mut self, job: JobId) -> Cancelled {
        Pool::cancel(self, job)
    }

    fn finished(&mut self, now: Duration, job: JobId, end: End) {
        Pool::finished(self, now, job, end);
    }

    fn requeue(&mut self, now: Duration, job: JobId) {
        Pool::requeue(self, now, job);
    }

    fn next_tick(&self) -> Option<Duration> {
        Pool::next_tick(self)
    }

    fn tick(&mut self, now: Duration) {
        Pool::tick(self, now);
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        Pool::take_effects(self)
    }

    fn waiting(&self) -> usize {
        let gauges = self.gauges();
        gauges.backlog.high + gauges.backlog.low + gauges.assigned.high + gauges.assigned.low
    }
}
