//! Simulations: what a pool would do with what happened, or might happen, in as little time as deciding takes.
//!
//! [`Trace`] is what happens from outside, read from a file or made up by a [`Workload`]. [`simulate`] plays it to the real
//! [`Pool`], or to a model of OCluster's, and returns how that went: an [`Outcome`]. [`measure()`] says what the
//! operations of a pool of a size cost this machine.
//!
//! Nothing here is part of a scheduler that runs. Only [`measure()`] looks at a clock.

mod generate;
mod measure;
mod ocluster;
mod outcome;
mod policy;
mod run;
mod trace;

pub use generate::Workload;
pub use measure::{Costs, measure};
pub use outcome::{ClientOutcome, Distribution, Outcome};
pub use trace::{Event, Job, Trace, TraceError};

use crate::pool::Pool;

/// Who decides in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decider {
    /// Kiln's scheduler: the very code.
    Kiln,
    /// OCluster's policy: a model of it, made after its description.
    OCluster,
}

/// Plays a trace until all jobs have ended, or none can go on. The same trace gives the same outcome.
pub fn simulate(trace: &Trace, decider: Decider) -> Outcome {
    match decider {
        Decider::Kiln => run::play(trace, Pool::new("simulation")),
        Decider::OCluster => run::play(trace, ocluster::OCluster::default()),
    }
}

#[cfg(test)]
mod tests;
