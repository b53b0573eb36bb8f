//! Policies that do what none may do: the simulation counts it.

use bstr::BStr;

use super::super::policy::Policy;
use super::super::run::play;
use super::*;
use crate::pool::{Cancelled, Effect, End, JobId, Request, WorkerId};

/// Kiln's policy, with a fault.
struct Faulty {
    pool: Pool,
    fault: Fault,
    count: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// None.
    None,
    /// Tells of one start in ten twice.
    StartsTwice,
    /// Cancels one job in ten by itself.
    Forgets,
    /// Says nothing of jobs whose worker was lost.
    LosesTheLost,
}

impl Policy for Faulty {
    const NAME: &'static str = "faulty";

    fn set_rate(&mut self, client: &BStr, rate: f64) {
        Policy::set_rate(&mut self.pool, client, rate);
    }

    fn connect(&mut self, now: Duration, name: &BStr, capacity: u32) -> Option<WorkerId> {
        self.pool.connect(now, name, capacity)
    }

    fn disconnect(&mut self, now: Duration, worker: WorkerId) {
        self.pool.disconnect(now, worker);
    }

    fn pop(&mut self, now: Duration, worker: WorkerId) {
        self.pool.pop(now, worker);
    }

    fn submit(&mut self, now: Duration, client: &BStr, request: Request<'_>) -> JobId {
        let job = self.pool.submit(now, client, request);
        self.count += 1;
        if self.fault == Fault::Forgets && self.count.is_multiple_of(10) {
            let _ = self.pool.cancel(job);
        }
        job
    }

    fn cancel(&mut self, job: JobId) -> Cancelled {
        self.pool.cancel(job)
    }

    fn finished(&mut self, now: Duration, job: JobId, end: End) {
        self.pool.finished(now, job, end);
    }

    fn requeue(&mut self, now: Duration, job: JobId) {
        Policy::requeue(&mut self.pool, now, job);
    }

    fn next_tick(&self) -> Option<Duration> {
        self.pool.next_tick()
    }

    fn tick(&mut self, now: Duration) {
        self.pool.tick(now);
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = self.pool.take_effects();
        match self.fault {
            Fault::StartsTwice => {
                let twice =
                    effects.iter().find(|effect| matches!(effect, Effect::Start { job, .. } if job.number() % 10 == 0));
                effects.extend(twice.cloned());
            }
            Fault::LosesTheLost => effects.retain(|effect| !matches!(effect, Effect::Lost { .. })),
            Fault::None | Fault::Forgets => {}
        }
        effects
    }

    fn waiting(&self) -> usize {
        self.pool.waiting()
    }
}

#[test]
fn what_is_lost_or_run_twice_is_counted() {
    let trace = Workload { outages: 40.0, ..busy(1) }.trace();
    let faulty = |fault| play(&trace, Faulty { pool: Pool::new("p"), fault, count: 0 });
    assert!(faulty(Fault::None).is_sound());
    let twice = faulty(Fault::StartsTwice);
    assert!(twice.wrong_starts > 500 && twice.lost == 0 && !twice.is_sound(), "{twice:?}");
    for fault in [Fault::Forgets, Fault::LosesTheLost] {
        let outcome = faulty(fault);
        assert!(outcome.lost > 50 && outcome.wrong_starts == 0 && !outcome.is_sound(), "{outcome:?}");
    }
}
