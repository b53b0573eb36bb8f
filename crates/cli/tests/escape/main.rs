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
// The attack is a program in the processor's own words.
#[cfg(target_arch = "x86_64")]
mod loader;
mod neighbours;
mod processes;
mod users;
