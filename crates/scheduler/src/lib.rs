//! The scheduler: holds pools of workers, and places clients' jobs on them.
//!
//! * [`pool`] decides, and is pure;
//! * [`state`] remembers, in OCluster's database;
//! * [`Scheduler`] is reached over the network, and [`web`] over HTTP.
//!
//! Does not know what a job is to do.
#![forbid(unsafe_code)]

mod metrics;
pub mod pool;
mod server;
pub mod simulate;
pub mod state;
pub mod web;

pub use server::{Keeping, Provided, Running, Scheduler, SchedulerError, Settings};
