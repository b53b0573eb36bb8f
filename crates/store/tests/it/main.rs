//! Integration tests of the store, on real filesystems.

mod boot;
mod btrfs;
mod cache;
mod changes;
mod concurrency;
mod conformance;
mod damage;
mod filesystem;
mod fixture;
mod helper;
mod hostile;
mod lease;
mod prune;
mod repair;
mod result;
mod transfer;
mod verify;
