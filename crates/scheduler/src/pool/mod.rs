//! A pool: the workers of one kind of machine, the jobs that wait for them, and who gets which.
//!
//! [`Pool`] is a state machine. It does no I/O, has no clock and starts nothing: each operation is told what time it
//! is, and what is to be done about it is asked for afterwards ([`Pool::take_effects`]). Times are durations since any
//! one moment, which must be the same for all calls; a clock that runs backwards harms nothing but fairness.
//!
//! It does not know what jobs are to do, nor who may submit them; that is the server's.
//!
//! # Which job is next
//!
//! *Urgent jobs first, then by fair start time.* A client's jobs are given start times one after the other, as if the
//! client had `rate` workers of its own: `start = max(now, next)`, and `next = start + cost / rate`. So a client that
//! submits a thousand jobs does not delay one that submits a single job, and a client of rate 2 gets twice what one of
//! rate 1 gets while both have jobs waiting. When there is more work than the workers can do, `now` is the least start
//! time in the backlog: fair time runs as slowly as the pool does. Each job that a client adds moves its next one back,
//! so no job waits for ever behind others of its kind.
//!
//! *Urgent jobs of any client go before all others.* A steady stream of urgent jobs that fills the pool stops
//! everything else: that is what urgent means, and clients that are not trusted with it should not have it. Among
//! themselves urgent jobs are as fair as others, and cost the same.
//!
//! # What a job costs
//!
//! What jobs of its hint took before on workers of this pool: an average in which each new run counts for a quarter,
//! kept apart for runs on a worker that had run the hint before (*warm*) and on others (*cold*). What is not known yet
//! is taken to be 10 s and 600 s. A job is charged as warm when its hint has been run here, or another job of the hint
//! waits. Jobs without a hint are charged 600 s. No job costs less than a second.
//!
//! A job that is cancelled gives back what it did not use, and one whose worker was lost all of it, as far as it is of
//! the future: the share of an hour that is over cannot be used any more.
//!
//! # Where it runs
//!
//! A job with a hint goes to the worker with the shortest queue among those that ran the hint, if that queue takes no
//! longer than the job would elsewhere: its cold cost. Otherwise it goes to the worker that has waited longest, and if
//! none waits, to the *backlog*, from which workers take. When they take a job that another worker would do better,
//! that one gets it, into a queue of its own.
//!
//! * Of the workers that ran a hint, the latest 64 are remembered. When it is that many, their caches are not worth
//!   waiting for: if none of them is free, the job goes to whoever is.
//! * A job that has been in workers' queues for twice its cold cost goes back to the backlog, where everyone may take
//!   it. So a worker that is stuck, or one that comes and goes, holds nothing up while others are free.
//! * A worker that pauses or disconnects gives its queue back.
//!
//! # What it costs the scheduler
//!
//! Each operation is logarithmic in jobs, workers, clients and hints, except that a worker that leaves gives back its
//! queue, and questions of administrators list things. Memory is bounded by what is queued, the names of clients and
//! workers that there ever were, and the latest 100 000 hints that nobody is using.
//!
//! # What differs from OCluster
//!
//! The policy is OCluster's, whose administrators will find the same text in [`Pool::show`]. Theirs does not learn
//! costs, gives nothing back, does not slow down fair time, remembers all workers of a hint, and lets a job wait for a
//! stuck worker.

mod administration;
mod effect;
mod fair;
mod gauges;
mod hints;
mod job;
mod names;
mod place;
mod queue;
mod show;
mod worker;

pub use administration::{ForgetError, RateError, Saved, UnknownWorker, WorkerInfo};
pub use effect::{Effect, JobId, WorkerId};
pub use gauges::{Gauges, Lengths};
pub use job::{Cancelled, End, Pool, Request};
pub use worker::AlreadyRegistered;

#[cfg(test)]
mod tests;
