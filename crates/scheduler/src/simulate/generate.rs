//! Traces that are made up: those of a cluster that builds packages.

use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Exp1, StandardNormal, Zipf};

use super::trace::{Builder, Event, Job, Trace};

/// How much hints differ in what they take, as the standard deviation of a logarithm: one in six takes more than twice the
/// median.
const SIGMA_HINTS: f64 = 0.8;
/// How much jobs of a hint differ.
const SIGMA_JOBS: f64 = 0.2;
/// Over how long the jobs of a burst are submitted.
const BURST_SECONDS: f64 = 60.0;
/// How many jobs of a burst have the hint that it is about. The others have any.
const OWN_HINT: f64 = 0.5;
/// After how long bursts are cancelled, on average.
const CANCELLED_AFTER_SECONDS: f64 = 600.0;
const DAY_SECONDS: f64 = 86_400.0;

/// What a made-up trace is like. The same values make the same trace.
///
/// Clients submit *bursts*, as somebody does who has a commit tested: half of the jobs of a burst have one hint, the
/// package that it is about, and the others have hints of their own, what depends on it. Hints are popular by Zipf's law.
/// What a hint takes is distributed log-normally, cold and warm, and so is what its jobs take. A burst is urgent as a whole, and
/// cancelled as a whole, by a newer commit. Bursts come at any time of the span, and so from all clients alike, whatever
/// their rates.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Chooses one of all traces that are like this.
    pub seed: u64,
    /// How many jobs are submitted, at least; the last burst is not cut off.
    pub jobs: u32,
    /// How many workers there are.
    pub workers: u32,
    /// How many jobs each of them does at once.
    pub capacity: u32,
    /// A client for each, which has that rate.
    pub rates: Vec<f64>,
    /// How many hints there are.
    pub hints: u32,
    /// The exponent of Zipf's law: 0 has all hints alike, 1 the first twice as popular as the second.
    pub zipf: f64,
    /// Over how long jobs are submitted.
    pub span: Duration,
    /// How many jobs a burst has, on average.
    pub burst: f64,
    /// What half of the hints take no longer than, on a worker that has not done them.
    pub cold: Duration,
    /// And on one that has.
    pub warm: Duration,
    /// The share of bursts that are urgent, 0 to 1.
    pub urgent: f64,
    /// The share of bursts that are cancelled, 0 to 1.
    pub cancelled: f64,
    /// How often a worker is lost in a day, on average.
    pub outages: f64,
    /// For how long it is gone then, on average.
    pub outage: Duration,
}

impl Default for Workload {
    /// A day of a hundred machines, which have somewhat more to do than they can.
    fn default() -> Workload {
        Workload {
            seed: 1,
            jobs: 100_000,
            workers: 100,
            capacity: 4,
            rates: vec![1.0, 1.0, 2.0, 4.0],
            hints: 4000,
            zipf: 1.0,
            span: Duration::from_secs(24 * 3600),
            burst: 30.0,
            cold: Duration::from_secs(600),
            warm: Duration::from_secs(120),
            urgent: 0.02,
            cancelled: 0.03,
            outages: 1.0,
            outage: Duration::from_secs(600),
        }
    }
}

impl Workload {
    /// Makes the trace.
    pub fn trace(&self) -> Trace {
        let mut random = Random(Xoshiro256PlusPlus::seed_from_u64(self.seed));
        let mut builder = Builder::default();
        for (index, &rate) in self.rates.iter().enumerate() {
            builder.rate(&format!("client-{}", index + 1), rate);
        }
        let work = self.add_jobs(&mut random, &mut builder);
        let slots = f64::from(self.workers.max(1)) * f64::from(self.capacity.max(1));
        // Later than this it is all done.
        let end = self.span.as_secs_f64() + work / slots;
        for index in 0..self.workers {
            let worker = builder.worker(&format!("worker-{:04}", index + 1), self.capacity);
            self.add_worker(&mut random, &mut builder, worker, end);
        }
        builder.finish()
    }

    /// Returns how many seconds the jobs take, all being cold.
    fn add_jobs(&self, random: &mut Random, builder: &mut Builder) -> f64 {
        let takes: Vec<(f64, f64)> = (0..self.hints)
            .map(|index| {
                builder.hint(&format!("package-{:04}", index + 1));
                let cold = random.about(self.cold.as_secs_f64(), SIGMA_HINTS);
                (random.about(self.warm.as_secs_f64(), SIGMA_HINTS).min(cold), cold)
            })
            .collect();
        let popularity = Zipf::new(f64::from(self.hints.max(1)), self.zipf.max(0.0)).ok();
        let clients = u32::try_from(self.rates.len()).unwrap_or(u32::MAX);
        let (mut jobs, mut work) = (0, 0.0);
        while jobs < self.jobs && clients > 0 {
            let begins = random.below_one() * self.span.as_secs_f64();
            let client = random.below(clients);
            let urgent = random.below_one() < self.urgent;
            let is_cancelled = random.below_one() < self.cancelled;
            let cancelled_at = begins + BURST_SECONDS + CANCELLED_AFTER_SECONDS * random.exponential();
            let own = random.hint(popularity);
            // One at least, and on average as many as there should be.
            let size = 1.0 + (self.burst - 1.0).max(0.0) * random.exponential();
            for _ in 0..size as u32 {
                let hint = if random.below_one() < OWN_HINT { own } else { random.hint(popularity) };
                let at = begins + BURST_SECONDS * random.below_one();
                let (warm, cold) = takes.get(hint as usize).copied().unwrap_or_default();
                let factor = random.about(1.0, SIGMA_JOBS);
                work += cold * factor;
                jobs += 1;
                builder.add(
                    milliseconds(at),
                    Event::Submit(Job {
                        client,
                        hint: (self.hints > 0).then_some(hint),
                        urgent,
                        warm: milliseconds(warm * factor),
                        cold: milliseconds(cold * factor),
                        cancel_after: is_cancelled.then(|| milliseconds(cancelled_at - at)),
                    }),
                );
            }
        }
        work
    }

    fn add_worker(&self, random: &mut Random, builder: &mut Builder, worker: u32, end: f64) {
        let mut at = 0.0;
        loop {
            builder.add(milliseconds(at), Event::Connect { worker });
            if self.outages <= 0.0 {
                return;
            }
            at += random.exponential() * DAY_SECONDS / self.outages;
            if at >= end {
                return;
            }
            builder.add(milliseconds(at), Event::Disconnect { worker });
            at += random.exponential() * self.outage.as_secs_f64();
        }
    }
}

/// Chance. (The generator is one whose numbers stay the same in later versions, unlike `StdRng`.)
struct Random(Xoshiro256PlusPlus);

impl Random {
    fn below_one(&mut self) -> f64 {
        self.0.random()
    }

    fn below(&mut self, end: u32) -> u32 {
        self.0.random_range(0..end)
    }

    /// 1 on average.
    fn exponential(&mut self) -> f64 {
        Exp1.sample(&mut self.0)
    }

    /// Log-normal around this median.
    fn about(&mut self, median: f64, sigma: f64) -> f64 {
        let normal: f64 = StandardNormal.sample(&mut self.0);
        median * (sigma * normal).exp()
    }

    fn hint(&mut self, popularity: Option<Zipf<f64>>) -> u32 {
        popularity.map_or(0, |popularity| popularity.sample(&mut self.0) as u32 - 1)
    }
}

/// Whole milliseconds are written and read without loss.
fn milliseconds(seconds: f64) -> Duration {
    Duration::from_millis((seconds.max(0.0) * 1000.0).round() as u64)
}
