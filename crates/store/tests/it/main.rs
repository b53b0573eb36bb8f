//! Integration tests of the store, on real filesystems.

mod boot;
mod btrfs;
mod cache;
mod changes;
mod concurrency;
mod conformance;
mod crash;
mod damage;
mod filesystem;
mod fixture;
mod helper;
mod hostile;
mod lease;
mod many;
mod power;
mod prune;
mod quota;
mod repair;
mod result;
mod rootless;
mod transfer;
mod trees;
mod verify;
mod zfs;

use kiln_store::{Location, Store, StoreError};

/// Makes the directory of a store that [`open_in_boot`] opens.
fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Opens the store that most tests use. Other test programs run some of these modules on other kinds.
fn open_in_boot(location: &Location, boot_id: &str) -> Result<Store, StoreError> {
    Store::open_in_boot(location, boot_id.to_owned())
}
