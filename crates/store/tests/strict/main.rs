//! The tests of the store's policy once more, on a backend that panics when the policy breaks the contract. What is
//! particular to overlayfs, and how stores are found, is tested in `it` alone.

#[path = "../it/boot.rs"]
mod boot;
#[path = "../it/cache.rs"]
mod cache;
#[path = "../it/concurrency.rs"]
mod concurrency;
#[path = "../it/fixture.rs"]
mod fixture;
#[path = "../it/helper.rs"]
mod helper;
#[path = "../it/lease.rs"]
mod lease;
#[path = "../it/prune.rs"]
mod prune;
#[path = "../it/result.rs"]
mod result;

use kiln_store::{Location, Store, StoreError};
use kiln_testkit::store::Strict;

/// In memory, where there is any: the fake copies whole trees.
fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn open_in_boot(location: &Location, boot_id: &str) -> Result<Store, StoreError> {
    Store::open_with_backend(&location.place, Box::new(Strict::open(&location.place)), boot_id.to_owned())
}
