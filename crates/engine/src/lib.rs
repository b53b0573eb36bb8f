//! Turns a spec and a source directory into results.
//!
//! The only room that knows language, store, sandbox and images. It reads neither environment nor
//! configuration, and prints nothing: what happens goes to [`Events`].
//!
//! The life of a build: `engine` starts it; `plan` flattens the spec into stages of steps (pure); `build` runs the stages,
//! each step through `flight`, which finds it in the store, joins whoever is making it, or makes it. `steps` knows the three
//! kinds of step, and `base`, `import`, `run` and `copy` how to make each; `mask` hides secrets in logs. `key` says what a
//! step's identity is made of. `export` says what image a result would be, and `limits` how much a step may use and did.
//! `text` is a build's log as people and programs read it. `visit` runs what a user wants to see of one.
#![forbid(unsafe_code)]

mod base;
mod build;
mod copy;
mod engine;
mod error;
mod events;
mod export;
mod flight;
mod ids;
mod import;
mod key;
mod limits;
mod manifest;
mod mask;
mod passwd;
mod plan;
mod run;
mod steps;
mod text;
mod visit;

pub use engine::{Built, Engine, Isolation, Request, Settings, UserIds};
pub use error::{BuildError, Fault};
pub use events::{Event, Events, StepInfo};
pub use export::{RunsAs, image};
pub use kiln_sandbox::SecretBytes;
pub use limits::{Limit, StepUsage};
pub use plan::PlanError;
pub use text::{Lines, LogText, one_line};
pub use visit::{FailedStep, Surroundings, Visited, Visitor};
