//! The promises of `main.rs` once more, with the host's users: `harness::MAPPED` is false in here.

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
mod terminal;
mod virtual_machine;
mod world;
