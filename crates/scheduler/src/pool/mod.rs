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
//! *Urgent jobs first, then by fair start time.* Each client has a time of its own, which its jobs move forward by what they
//! cost, divided by its rate; the client that is furthest behind is next. So a client that submits a thousand jobs does not
//! delay one that submits a single job, and a client of rate 2 gets twice what one of rate 1 gets while both have jobs waiting,
//! however many and however long these are. A client's own jobs run in the order in which they came, except that those which
//! wait for a worker's cache let others by.
//!
//! *Shares are not saved up.* The *fair time* is the start time of the job that was last taken. A client that had nothing
//! waiting continues from there (with jobs that wait for caches only: from as much before as these could have used), so it
//! neither gets more later for what it did not use, nor less for having had the pool to itself. This is start-time fair
//! queueing, by P. Goyal, H. M. Vin and H. Cheng.
//!
//! *Urgent jobs of any client go before all others.* A steady stream of urgent jobs that fills the pool stops
//! everything else: that is what urgent means, and clients that are not trusted with it should not have it. Among
//! themselves urgent jobs are as fair as others, and cost the same.
//!
//! # What a job costs
//!
//! What it took. That is known when it ends; when it is taken it is charged what jobs of its hint took before on workers of
//! this pool: an average in which each new run counts for a quarter, kept apart for runs on a worker that had run the hint
//! before (*warm*) and on others (*cold*). For a hint of which that is not known, it is the average of all hints, and before
//! there is one, 10 s and 600 s. Jobs without a hint are charged 600 s at first. No job costs less than a second. A job that is
//! lost with its worker, or that a worker gives back, costs nothing; but as long as the worker may come back with it, it is
//! charged like one that runs. A job of which nobody knows when it began, because a worker brought it back, costs what was
//! expected.
//!
//! # Where it runs
//!
//! *The client that is furthest behind goes first; of its jobs, one that the worker which asks does as well as any other: one
//! whose hint ran there, or ran nowhere.* What another worker has cached goes into that one's queue and waits. It is charged
//! when it starts, so its client stays first at that worker, and loses none of its share by waiting as long as it has other
//! jobs.
//!
//! *How long that is worth it depends on whether somebody is idle.*
//!
//! * While nobody is, a wait costs only who waits, and a run elsewhere costs everybody. So a job waits for the worker with the
//!   shortest queue among those that ran its hint, if that is no more than an hour of work. A longer one says that the hint is
//!   worth having on one more worker. A worker that is gone is waited for too, for half an hour, except by urgent jobs.
//! * While somebody is, a job waits if it is done sooner so: if the wait is no longer than what the cache saves. Whoever finds
//!   nothing else to do takes what waits elsewhere for longer.
//! * A client all of whose jobs wait does lose by it. When it is owed three hundred times what the cache saves, it is served by
//!   whoever asks, which then has the hint cached too.
//!
//! If nothing waits, the job goes to the worker that has waited longest. Further:
//!
//! * Of the workers that ran a hint, the latest 256 are remembered, and the latest 32 are looked at. When 256 ran it, jobs go
//!   to whoever is free.
//! * A job that has waited for caches for four times its cold cost goes to whoever is idle; after four hours, also to whoever
//!   asks next. So a worker that is stuck, or one that comes and goes, holds nothing up for ever.
//! * A worker that pauses or disconnects gives its queue back.
//!
//! The figures are those that did best in [simulations](crate::simulate).
//!
//! # What it costs the scheduler
//!
//! Each operation is logarithmic in jobs, workers, clients and hints, except that a worker that leaves gives back its
//! queue, and questions of administrators list things. Memory is bounded by the most jobs that there ever were at once, the names
//! of clients and workers that there ever were, and the latest 100 000 hints that nobody is using.
//!
//! Most of the time is spent waiting for the processor's memory. So jobs, workers, clients and hints are in tables, found by
//! where they are (`rows.rs`); what is looked at of many workers for each job stands together; and what did not change is not
//! touched.
//!
//! # What differs from OCluster
//!
//! The idea is OCluster's, whose administrators will find the same text in [`Pool::show`], with times from the fair time on.
//! Theirs charges a job when it is submitted, by two fixed costs, gives nothing back, does not slow down fair time when it
//! falls behind, does not count how much a worker does at once, remembers all workers of a hint, lets 60 jobs wait for a worker
//! whether others are idle or not, and lets a job wait for a stuck worker.

mod absent;
mod administration;
mod backlog;
mod effect;
mod fair;
mod gauges;
mod hints;
mod job;
mod names;
mod place;
mod queue;
mod rows;
mod show;
mod worker;

pub use administration::{ForgetError, RateError, Saved, UnknownWorker, WorkerInfo};
pub use effect::{Effect, JobId, WorkerId};
pub use gauges::{Gauges, Lengths};
pub use job::{Cancelled, End, Pool, Request};
pub use worker::AlreadyRegistered;

#[cfg(test)]
mod tests;
