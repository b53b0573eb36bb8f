//! A hostile root inside a step of a real build tries to get out. One test a promise of SECURITY.md, in every kind of
//! sandbox.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod arena;
mod disk;
mod ends;
#[path = "../it/env.rs"]
#[expect(dead_code, reason = "the other tests use all of it")]
mod env;
mod files;
mod images;
mod kernel;
mod limits;
mod neighbours;
mod processes;
mod users;
