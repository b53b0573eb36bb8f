//! What the store knows by its index, which may be lost at any time.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::Store;
use crate::StoreError;
use crate::index::{self, Digest, FileVersion, Index};
use crate::layout::INDEX;

impl Store {
    /// Asks the index, which is opened at the first use.
    pub(crate) fn with_index<T>(&self, act: impl FnOnce(&Index) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut index = self.lock_index();
        if index.is_none() {
            *index = Some(Index::open(self.layout.state(INDEX))?);
        }
        let done = act(index.as_ref().expect("just opened"));
        if let Err(StoreError::Index { path, source }) = &done
            && index::is_damage(source)
        {
            tracing::warn!(path = %path.display(), error = %source, "dropping the damaged index");
            *index = None;
            Index::delete(path);
            self.index_is_filled.store(false, Ordering::Relaxed);
        }
        done
    }

    /// Uses this index from now on; with `None`, that on the disk.
    pub(crate) fn set_index(&self, index: Option<Index>) {
        *self.lock_index() = index;
    }

    /// Puts an empty index in the place of one on the disk that is damaged. Reads all of it. The caller holds the lock of the
    /// state.
    pub(crate) fn drop_damaged_index(&self) -> Result<(), StoreError> {
        if self.with_index(|index| Ok(index.is_whole()))? {
            return Ok(());
        }
        let mut index = self.lock_index();
        *index = None;
        tracing::warn!(path = %self.layout.state(INDEX).display(), "dropping the damaged index");
        Index::delete(&self.layout.state(INDEX));
        Ok(())
    }

    fn lock_index(&self) -> MutexGuard<'_, Option<Index>> {
        // A panic elsewhere leaves the database as SQLite keeps it: whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the remembered content digests of files, in order; `None` for what is not known.
    ///
    /// # Errors
    ///
    /// The index cannot be read.
    pub fn known_digests(&self, files: &[FileVersion]) -> Result<Vec<Option<Digest>>, StoreError> {
        self.with_index(|index| index.digests(files))
    }

    /// Remembers content digests. Give only files whose times are older than the filesystem's clock tick:
    /// a younger file can change without changing its times.
    ///
    /// # Errors
    ///
    /// The index cannot be written.
    pub fn remember_digests(&self, files: &[(FileVersion, Digest)]) -> Result<(), StoreError> {
        self.with_index(|index| index.remember(files))
    }

    /// Returns what was remembered under `question`, by any process.
    ///
    /// # Errors
    ///
    /// The index cannot be read.
    pub fn recall(&self, question: &str) -> Result<Option<String>, StoreError> {
        self.with_index(|index| index.fact(question))
    }

    /// Remembers the answer to a question that is slow to find out again. It is not safe from loss.
    ///
    /// # Errors
    ///
    /// The index cannot be written.
    pub fn remember(&self, question: &str, answer: &str) -> Result<(), StoreError> {
        self.with_index(|index| index.set_fact(question, answer))
    }
}
