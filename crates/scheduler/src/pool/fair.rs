//! A client's share of the pool.

use std::time::Duration;

use super::gauges::Lengths;

/// A client, as far as sharing is concerned.
#[derive(Debug)]
pub(super) struct Client {
    /// How many workers' worth of share it has. Above zero, finite.
    pub(super) rate: f64,
    /// The start time of its next job, unless that has passed.
    pub(super) next: Duration,
    /// It submitted a job, or somebody set its rate, since the scheduler started.
    pub(super) seen: bool,
    /// Its jobs in the pool, waiting or running.
    pub(super) jobs: Lengths,
}

/// What a job was charged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Charge {
    /// When the job would start if everyone got just their share.
    pub(super) start: Duration,
    /// How much later the client's next job starts because of it.
    pub(super) share: Duration,
}

impl Client {
    pub(super) const RATE: f64 = 1.0;

    pub(super) fn new(rate: f64) -> Client {
        Client { rate, next: Duration::ZERO, seen: false, jobs: Lengths::default() }
    }

    /// Charges a job that is expected to take this long. Shares of before `fair_now` are gone.
    pub(super) fn charge(&mut self, fair_now: Duration, cost: Duration) -> Charge {
        let start = fair_now.max(self.next);
        let share = Duration::try_from_secs_f64(cost.as_secs_f64() / self.rate).unwrap_or(Duration::MAX);
        self.next = start.saturating_add(share);
        Charge { start, share }
    }

    /// Gives back the unused part of a charge, of which `used` (0 to 1) was used; but none of the time that is gone: a
    /// client could save that up by cancelling jobs of long ago.
    pub(super) fn refund(&mut self, fair_now: Duration, charge: Charge, used: f64) {
        let unused = charge.share.mul_f64((1.0 - used).clamp(0.0, 1.0));
        let future = charge.start.saturating_add(charge.share).saturating_sub(fair_now);
        self.next = self.next.saturating_sub(unused.min(future));
    }
}
