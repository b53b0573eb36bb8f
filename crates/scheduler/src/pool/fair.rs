//! A client's share of the pool.

use std::collections::BTreeSet;
use std::time::Duration;

use super::effect::JobId;
use super::gauges::Lengths;
use super::queue::Turn;

/// What a job is charged at least: even one that does nothing takes part of a worker for a moment, and free jobs could not be
/// shared fairly.
pub(super) const LEAST: Duration = Duration::from_secs(1);

/// No job costs more, however low the rate: a century of fair time is enough, and the sum of any number of these still is a time.
const MOST: Duration = Duration::from_secs(3_000_000_000);

/// A client, as far as sharing is concerned.
#[derive(Debug)]
pub(super) struct Client {
    /// How many workers' worth of share it has. Above zero, finite.
    pub(super) rate: f64,
    /// The start time of its next job, unless that has passed.
    pub(super) next: Duration,
    /// What it last had to do without: shares of before this are gone.
    since: Duration,
    /// It submitted a job, or somebody set its rate, since the scheduler started.
    pub(super) seen: bool,
    /// Its jobs in the pool, waiting or running.
    pub(super) jobs: Lengths,
    /// Those of them in the backlog, the first first: urgent ones, and the others.
    pub(super) lines: [BTreeSet<JobId>; 2],
    /// How much of its share these will take.
    pub(super) queued: Duration,
    /// Those of its jobs that wait for workers' caches.
    pub(super) held_jobs: BTreeSet<JobId>,
    /// How much of its share these will take.
    pub(super) held: Duration,
}

/// What a job is charged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Charge {
    /// When the job would start if everyone got just their share. Zero while it is in the backlog.
    pub(super) start: Duration,
    /// How much later the client's next job starts because of it.
    pub(super) share: Duration,
    /// What it is expected to take.
    pub(super) cost: Duration,
}

impl Client {
    pub(super) const RATE: f64 = 1.0;

    pub(super) fn new(rate: f64) -> Client {
        Client {
            rate,
            next: Duration::ZERO,
            since: Duration::ZERO,
            seen: false,
            jobs: Lengths::default(),
            lines: Default::default(),
            queued: Duration::ZERO,
            held_jobs: BTreeSet::new(),
            held: Duration::ZERO,
        }
    }

    /// Returns what a job is to be charged that is expected to take this long, and does not charge it yet.
    pub(super) fn estimate(&self, cost: Duration) -> Charge {
        let cost = cost.max(LEAST);
        let share = Duration::try_from_secs_f64(cost.as_secs_f64() / self.rate).unwrap_or(MOST).min(MOST);
        Charge { start: Duration::ZERO, share, cost }
    }

    /// Takes away what the client has not used of its share of before `fair_now`. What it has waiting for workers' caches could
    /// have used some: so much it may keep. To be called before it gets something to do, if it has nothing in the backlog; and
    /// when it no longer wants something of what waits for caches, since it could save up its share with jobs that are not
    /// meant to run.
    pub(super) fn catch_up(&mut self, fair_now: Duration) {
        let fair_now = fair_now.saturating_sub(self.held);
        if self.next < fair_now {
            (self.next, self.since) = (fair_now, fair_now);
        }
    }

    /// Charges a job that is expected to take this long.
    pub(super) fn charge(&mut self, cost: Duration) -> Charge {
        let charge = Charge { start: self.next, ..self.estimate(cost) };
        self.next = self.next.saturating_add(charge.share);
        charge
    }

    /// Corrects a charge when it is known what the job took.
    pub(super) fn settle(&mut self, charge: Charge, took: Duration) {
        let took = took.max(LEAST).as_secs_f64() / charge.cost.as_secs_f64();
        let share = Duration::try_from_secs_f64(charge.share.as_secs_f64() * took).unwrap_or(MOST).min(MOST);
        match share.checked_sub(charge.share) {
            Some(more) => self.next = self.next.saturating_add(more),
            None => self.give_back(charge, charge.share - share),
        }
    }

    /// Takes a charge back: nothing was done for it.
    pub(super) fn refund(&mut self, charge: Charge) {
        self.give_back(charge, charge.share);
    }

    /// Gives back part of a charge, but none that is gone with the share that the client had to [do without]: it would get
    /// it twice.
    ///
    /// [do without]: Client::catch_up
    fn give_back(&mut self, charge: Charge, share: Duration) {
        let left = charge.start.saturating_add(charge.share).saturating_sub(self.since);
        self.next = self.next.saturating_sub(share.min(left));
    }

    /// Returns whether it has no job in the backlog.
    pub(super) fn waits_for_nothing(&self) -> bool {
        self.lines.iter().all(BTreeSet::is_empty)
    }

    /// Returns where it stands among those all of whose jobs wait for workers' caches, if it is one of them.
    pub(super) fn only_holds(&self) -> Option<Duration> {
        (self.waits_for_nothing() && !self.held_jobs.is_empty()).then_some(self.next)
    }

    /// Returns where its next jobs stand, the urgent one and the other.
    pub(super) fn heads(&self) -> [Option<Turn>; 2] {
        [false, true].map(|patient| {
            let job = *self.lines[usize::from(patient)].first()?;
            Some(Turn { patient, start: self.next, job })
        })
    }

    /// Takes a job out of its line, of which it will take so much no longer.
    pub(super) fn leave_line(&mut self, job: JobId, urgent: bool, share: Duration) {
        self.lines[usize::from(!urgent)].remove(&job);
        self.queued = self.queued.saturating_sub(share);
    }
}
