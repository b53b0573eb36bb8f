//! The `kiln` program as a user sees it: real builds of real specs, in stores of their own.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod admin;
mod cache;
mod chaos;
mod cluster;
mod copy;
mod deploy;
mod doctor;
mod durable;
mod env;
mod exit_codes;
mod export;
mod foreign_scheduler;
mod hostile;
mod hosts;
mod kinds;
mod limits;
mod marked;
mod masking;
mod network;
mod operations;
mod output;
mod personality;
mod processes;
mod prune;
mod registry;
mod registry_hostile;
mod rootless;
mod run;
mod scheduler;
mod seccomp;
mod simulate;
mod spec;
mod stages;
mod standby;
mod store;
mod stores;
mod submit;
mod terminal;
mod userns;
