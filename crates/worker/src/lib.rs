//! The worker: takes jobs from a pool, and does them.
//!
//! * [`agent`] is its life: connecting, registering, taking jobs, ending;
//! * [`Hands`] are what it can do: [`builds`] by a spec with the engine, [`docker`] builds, [`custom`] kinds, each with sources from git
//!   ([`context`]);
//! * [`command`] is how programs of the host are run for a job.
#![forbid(unsafe_code)]

pub mod agent;
pub mod builds;
pub mod command;
pub mod context;
pub mod custom;
pub mod docker;
mod hands;
mod job;
mod metrics;
pub mod secrets;
mod upkeep;

pub use hands::Hands;
pub use metrics::Others;
pub use upkeep::{Clones, DockerPrune, HealthCheck};
