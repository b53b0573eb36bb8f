//! Capability files: a URI in a file that only its owner may read.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::uri::{CapabilityUri, UriError};

/// Why a capability file is not read or written.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum CapFileError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no capability")]
    Content {
        path: PathBuf,
        #[source]
        source: UriError,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads the URI in the file at `path`.
///
/// # Errors
///
/// If it cannot be read, or holds something else.
pub fn load(path: &Path) -> Result<CapabilityUri, CapFileError> {
    let text = fs::read_to_string(path).map_err(|source| CapFileError::Read { path: path.into(), source })?;
    text.parse().map_err(|source| CapFileError::Content { path: path.into(), source })
}

/// Writes `uri` to the file at `path`, whole or not at all, for its owner only.
///
/// # Errors
///
/// If it cannot be written.
pub fn save(path: &Path, uri: &CapabilityUri) -> Result<(), CapFileError> {
    let failed = |source| CapFileError::Write { path: path.into(), source };
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let result = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            writeln!(file, "{uri}")?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    result.map_err(failed)
}
