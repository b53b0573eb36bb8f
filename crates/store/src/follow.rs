//! The log of a step that runs, perhaps in another process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::error::At;
use crate::layout::{Layout, log_in};
use crate::lease::Watch;
use crate::{Id, StoreError};

/// Reads a log while it grows. The descriptor becomes readable when there may be more to read, or
/// when the lease of the step may have become free.
#[derive(Debug)]
pub struct LogFollower {
    layout: Layout,
    id: Id,
    watch: Watch,
    log: Option<Arc<File>>,
}

impl LogFollower {
    pub(crate) fn start(layout: &Layout, id: &Id) -> Result<Self, StoreError> {
        let log = log_in(&layout.draft(id));
        let watch = Watch::start(&[&layout.lease(id), &log])?;
        Ok(Self { layout: layout.clone(), id: *id, watch, log: None })
    }

    /// Returns the log, once it exists, and its length now. Look whether the step has ended *before*
    /// calling this, to be sure to see all of it.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn look(&mut self) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        self.watch.drain();
        let path = log_in(&self.layout.draft(&self.id));
        if self.log.is_none() {
            // Its builder writes to the lease when the log is there; watch that too from now on.
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => self.log = Some(Arc::new(opened.at("open", &path)?)),
            }
            self.watch.add(&path)?;
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
