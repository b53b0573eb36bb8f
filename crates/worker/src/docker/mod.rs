//! Docker jobs, through Docker's command line.
//!
//! [`Docker::build`] builds an image from a context and, if the job asks for it and the worker allows it, pushes it. What `docker` is
//! told is decided in `plan.rs`, which is pure. What a job has secret is in no command line: passwords are read from standard input,
//! other secrets from files that only we can read and that are gone with the build.

mod build;
mod error;
mod plan;
mod prune;
mod push;

pub use build::{Docker, Settings};
pub use error::DockerError;
