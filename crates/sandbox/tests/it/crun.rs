//! The promises of `main.rs` once more, kept by crun: `harness::RUNTIME` says so in here, and `not_kept` what it cannot.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod devices;
mod ends;
mod filesystems;
mod harness;
mod hostile;
mod isolation;
mod limits;
mod network;
mod not_kept;
mod privileges;
mod secrets;
mod system_calls;
mod user_namespace;
mod world;
