//! Turns a spec and a source directory into results.
//!
//! The only room that knows language, store, sandbox and images. It reads neither environment nor
//! configuration, and prints nothing: what happens goes to [`Events`].
//!
//! The life of a build: `plan` flattens the spec into stages of steps (pure); `build` runs the stages,
//! each step through `flight`, which finds it in the store, joins whoever is making it, or makes it; `run`,
//! `copy` and `base` are the three ways to make one. `key` says what a step's identity is made of.
#![forbid(unsafe_code)]

mod base;
mod build;
mod copy;
mod error;
mod events;
mod flight;
mod key;
mod manifest;
mod passwd;
mod plan;
mod run;

pub use build::{Built, Engine, Request, Settings};
pub use error::{BuildError, Fault};
pub use events::{Event, Events, StepInfo};
pub use plan::PlanError;
