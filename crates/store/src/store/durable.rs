//! Marking results as safely on the disk: see `boot` for what the mark means.

use std::fs::File;
use std::sync::atomic::Ordering;

use rustix::fs::FlockOperation;

use super::{Store, lock};
use crate::StoreError;
use crate::boot::{Durable, Stamp};

impl Store {
    /// Waits until all that is committed now is on the disk, and marks it so. This can take as long as the
    /// disk is slow: call it where nobody waits.
    ///
    /// # Errors
    ///
    /// The disk fails.
    pub fn mark_durable(&self) -> Result<(), StoreError> {
        self.has_unmarked.store(false, Ordering::Relaxed);
        let marked = self.try_mark_durable();
        if marked.is_err() {
            self.has_unmarked.store(true, Ordering::Relaxed);
        }
        marked
    }

    fn try_mark_durable(&self) -> Result<(), StoreError> {
        let mark = {
            let results = self.layout.results();
            let _no_commits = lock(&results, FlockOperation::LockExclusive)?;
            Durable::from(Stamp::now(&self.boot_id))
        };
        self.flush()?;
        let _lock = self.lock_state()?;
        match Durable::read(&self.layout) {
            Ok(Some(old)) if old.is_of_boot(&self.boot_id) && !mark.is_later_than(&old) => Ok(()),
            _ => mark.write(&self.layout),
        }
    }

    /// Waits until all that is committed is on the disk.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.backend.flush()
    }

    /// Call before taking the stamp of what is committed, and hold until it is visible. A mark set between
    /// the two would cover something whose last files were written after the flush.
    pub(crate) fn begin_commit(&self) -> Result<File, StoreError> {
        lock(&self.layout.results(), FlockOperation::LockShared)
    }

    /// Returns whether this process committed anything since it asked last, and takes it as marked: the caller sees to that,
    /// by another process.
    pub fn hand_over_marking(&self) -> bool {
        self.has_unmarked.swap(false, Ordering::Relaxed)
    }

    /// Returns whether this process committed anything that [`Store::mark_durable`] has not marked.
    pub fn has_unmarked_results(&self) -> bool {
        self.has_unmarked.load(Ordering::Relaxed)
    }
}
