//! The sandbox's promises, each tested from inside and named after it.

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
mod rootless;
mod secrets;
mod system_calls;
mod terminal;
mod user_namespace;
mod virtual_machine;
mod world;
