//! The log of a step that runs, perhaps in another process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::error::At;
use crate::layout::{Layout, log_in};
use crate::lease::{Watch, is_still_at};
use crate::{Id, StoreError};

/// Reads a log while it grows. The descriptor becomes readable when there may be more to read, or
/// when the lease of the step may have become free. It stays so until what it has to say is read from
/// it, which [`LogFollower::drain`] does: drain *before* looking, or news between the two are lost.
#[derive(Debug)]
pub struct LogFollower {
    layout: Layout,
    id: Id,
    watch: Watch,
    log: Option<Arc<File>>,
}

impl LogFollower {
    /// Look again after so long even if nothing woke you. When a builder is killed, the kernel tells of its last close a
    /// moment *before* it frees the lock (`__fput()` in fs/file_table.c), so whoever looks at once can still find
    /// the lease taken, and is not woken again.
    pub const PATIENCE: Duration = Duration::from_secs(1);

    pub(crate) fn start(layout: &Layout, id: &Id) -> Result<Self, StoreError> {
        let watch = Watch::start(layout)?;
        Ok(Self { layout: layout.clone(), id: *id, watch, log: None })
    }

    /// Makes the descriptor unreadable until something happens from now on.
    pub fn drain(&self) {
        self.watch.drain();
    }

    /// Returns the log, once it exists, and its length now: another log if the step was begun anew. Look
    /// whether the step has ended *before* calling this, to be sure to see all of it.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn look(&mut self) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        let path = log_in(&self.layout.draft(&self.id));
        // A log that is no longer there is still read to its end.
        let is_current = |log: &Arc<File>| !path.exists() || is_still_at(log, &path);
        if !self.log.as_ref().is_some_and(is_current) {
            // Its builder writes to the lease when the log is there; watch that too from now on.
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => {
                    self.log = Some(Arc::new(opened.at("open", &path)?));
                    self.watch.add(&path)?;
                }
            }
        }
        let Some(log) = &self.log else { return Ok(None) };
        let length = log.metadata().at("read", &path)?.len();
        Ok(Some((Arc::clone(log), length)))
    }
}

impl AsFd for LogFollower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
