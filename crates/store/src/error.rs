//! Why the store could not do something.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::Id;

/// An error of the store. None of them is the build's own fault.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The filesystem below the store is full.
    #[error("disk full: cannot {action} {}", path.display())]
    DiskFull {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The text after `--store` is not a store.
    #[error("`{text}` is not a store: {reason}")]
    BadLocation {
        /// What was given.
        text: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The kernel or the privileges do not allow this kind of store here.
    #[error("{} cannot be a store of kind {kind}: {reason}", path.display())]
    Unfit {
        /// The kind of store.
        kind: &'static str,
        /// Where it was to be.
        path: PathBuf,
        /// What is missing, and what to do.
        reason: String,
    },
    /// Steps cannot be kept to a limit on this store.
    #[error("cannot limit the {what} of steps: {reason}")]
    CannotLimit {
        /// What was to be limited.
        what: &'static str,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The directory holds something else, or a store of another version.
    #[error("{} is not a store that this version can read: {found}", path.display())]
    Format {
        /// The store's directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The index cannot be read or written.
    #[error("the index {} failed", path.display())]
    Index {
        /// The database file; it may be deleted, it is rebuilt.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A result's own description cannot be read.
    #[error("the description of result {id} is damaged")]
    Meta {
        /// The result.
        id: Id,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A result's tree has another digest than it was committed with.
    #[error("the tree of result {0} is not what it was when it was committed")]
    TreeChanged(Id),
    /// What a result was made from is gone.
    #[error("result {id} stands on {parent}, which is not there")]
    NoParent {
        /// The result.
        id: Id,
        /// What it was made from.
        parent: Id,
    },
    /// No result has this id.
    #[error("no result {0}")]
    NoSuchResult(String),
    /// Several results start like this.
    #[error("`{prefix}` is the start of several ids: {}", ids.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Ids that match: the first few, shortened.
        ids: Vec<String>,
    },
    /// The result must stay because others stand on it.
    #[error("result {id} is the parent of {children} other results; remove those first, or give --recursive")]
    HasChildren {
        /// The result.
        id: Id,
        /// How many results stand on it.
        children: usize,
    },
    /// The result must stay because it was pinned.
    #[error("result {0} is pinned; to remove it, take that back with `kiln unpin`")]
    Pinned(Id),
    /// The result is used or built by another process or step right now.
    #[error("result {0} is in use by a build")]
    InUse(Id),
}

impl StoreError {
    /// Wraps an error of the filesystem: a full disk is told apart from the rest.
    pub fn disk(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path, source },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Adds what was tried, and on what, to an [`io::Error`].
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::disk(action, path, error.into()))
    }
}
