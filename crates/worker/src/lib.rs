//! The worker: takes jobs from a pool, and does them.
//!
//! * [`agent`] is its life: connecting, registering, taking jobs, ending;
//! * [`Hands`] are what it can do: [`builds`] by a spec with the engine, [`docker`] builds, [`custom`] kinds, each with sources from git
//!   ([`context`]);
//! * [`log`] is what a job prints, and [`command`] how programs of the host are run for it.
#![forbid(unsafe_code)]

pub mod agent;
pub mod builds;
pub mod command;
pub mod context;
pub mod custom;
pub mod docker;
mod hands;
mod job;
pub mod log;
mod metrics;
pub mod secrets;
mod upkeep;

pub use hands::Hands;
pub use metrics::Others;
pub use upkeep::{Clones, DockerPrune, HealthCheck};
