//! What is done in the background, by one process at a time.

use std::fs::File;
use std::time::SystemTime;

use rustix::fs::FlockOperation;

use crate::error::At;
use crate::index::Index;
use crate::lease::try_lock;
use crate::{Limits, Pruned, Store, StoreError, recover, remove};

impl Store {
    /// Tidies the index, prunes until `limits` hold and deletes what dead processes left, while builds go on. Returns `None`,
    /// having done nothing, if another process is at it.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written.
    pub fn maintain(&self, limits: &Limits, now: SystemTime) -> Result<Option<Pruned>, StoreError> {
        let path = self.layout.state("maintainer");
        let file = File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
        if !try_lock(&file, FlockOperation::NonBlockingLockExclusive).at("lock", &path)? {
            return Ok(None);
        }
        self.with_index(Index::tidy)?;
        let pruned = match *limits == Limits::default() {
            true => Pruned::default(),
            false => self.prune(limits, now, false)?,
        };
        recover::said("the trash", remove::empty_trash(self));
        Ok(Some(pruned))
    }
}
