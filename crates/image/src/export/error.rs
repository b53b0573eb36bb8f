//! Why nothing was exported.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::RegistryError;
use crate::unpack::UnpackError;

/// Why an image could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A result's trees cannot be opened.
    #[error("cannot open the result {key}")]
    Open {
        /// The layer's key.
        key: String,
        /// What the caller or the kernel said.
        #[source]
        source: io::Error,
    },
    /// A result's tree cannot be read.
    #[error("cannot read `{entry}` in the result")]
    Read {
        /// Its path in the tree.
        entry: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A layer has no way to say it.
    #[error("`{entry}` cannot be in an image: {reason}")]
    Inexpressible {
        /// Its path in the tree.
        entry: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// The destination cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The destination, an open file or pipe, cannot be written.
    #[error("cannot write the output")]
    Stream(#[source] io::Error),
    /// A temporary file cannot be written.
    #[error("cannot write a temporary file in {}", dir.display())]
    Temporary {
        /// Where.
        dir: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory for the tree is in use.
    #[error("{} is not empty; choose another directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory for the image holds something else.
    #[error("{} is not an OCI layout: {reason}; choose another directory", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// Another process is writing to the layout.
    #[error("another export is writing to {}; try again when it is done", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The tag breaks the rules.
    #[error("`{tag}` is not a tag for an OCI layout: {reason}")]
    BadTag {
        /// What was given.
        tag: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The tree cannot be written into a directory.
    #[error("cannot write the tree to {}", path.display())]
    Unpack {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: UnpackError,
    },
    /// The registry does not take it.
    #[error(transparent)]
    Push(RegistryError),
    /// There is no tree to be exported: no step has a layer.
    #[error("the image has no files")]
    NoTree,
    /// A worker thread of ours died.
    #[error("a thread that wrote the image panicked")]
    Panicked,
}

impl ExportError {
    /// Returns true if another destination or another spec would help; false if the host failed.
    pub fn is_users_fault(&self) -> bool {
        match self {
            Self::Inexpressible { .. } | Self::NotEmpty { .. } | Self::NotALayout { .. } | Self::BadTag { .. } => true,
            Self::NoTree => true,
            Self::Write { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidFilename
            ),
            Self::Unpack { source, .. } => source.is_images_fault(),
            Self::Push(source) => source.is_users_fault(),
            Self::Cancelled
            | Self::InUse { .. }
            | Self::Open { .. }
            | Self::Read { .. }
            | Self::Stream(_)
            | Self::Temporary { .. }
            | Self::Panicked => false,
        }
    }

    /// Returns true if the caller's own cancellation is why.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Push(RegistryError::Cancelled)
                | Self::Unpack { source: UnpackError::Cancelled, .. }
        )
    }
}

/// Adds what was written to an [`io::Error`].
pub(super) trait At<T> {
    fn at_write(self, path: &Path) -> Result<T, ExportError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at_write(self, path: &Path) -> Result<T, ExportError> {
        self.map_err(|error| ExportError::Write { path: path.to_owned(), source: error.into() })
    }
}
