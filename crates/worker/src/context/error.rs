//! Why there are no sources for a job.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::command::CommandError;

/// Why there are no sources for a job. The job's log has what git said.
#[derive(Debug, Error)]
pub enum ContextError {
    /// The job is no longer wanted.
    #[error("cancelled")]
    Cancelled,
    /// The URL is none that sources are fetched from.
    #[error("cannot fetch from `{url}`: {reason}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// No object id.
    #[error("`{text}` is no commit: write all 40 or 64 hexadecimal digits of its id, of one kind for all commits")]
    NoId {
        /// What the job has.
        text: String,
    },
    /// The remote does not have the commit.
    #[error("{url} has no commit {commit}")]
    NoCommit {
        /// The URL, without credentials.
        url: String,
        /// The commit's id.
        commit: String,
    },
    /// The remote cannot be reached, or gives nothing.
    #[error("cannot fetch from {url}")]
    Fetch {
        /// The URL, without credentials.
        url: String,
        /// How git ended.
        #[source]
        source: CommandError,
    },
    /// The commits of a job do not fit together.
    #[error("cannot merge {commit}: it conflicts with {head}")]
    Conflict {
        /// What was to be merged.
        commit: String,
        /// Into what.
        head: String,
    },
    /// A commit holds what git refuses to check out, or no merge.
    #[error("cannot check out {commit}: {reason}")]
    Refused {
        /// The commit.
        commit: String,
        /// What git says.
        reason: String,
    },
    /// A submodule cannot be had.
    #[error("submodule `{path}`")]
    Submodule {
        /// Where it is in the sources.
        path: String,
        /// Why not.
        #[source]
        source: Box<ContextError>,
    },
    /// Submodules of submodules without an end.
    #[error("more than {most} submodules, or more than {deepest} in each other")]
    TooMany {
        /// How many may be in a context.
        most: usize,
        /// How many may be in each other.
        deepest: usize,
    },
    /// Git fails on a clone of ours.
    #[error("cannot use the clone of {url}")]
    Clone {
        /// The URL, without credentials.
        url: String,
        /// How git ended.
        #[source]
        source: CommandError,
    },
    /// A file or directory of ours.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ContextError {
    /// Whether another worker would fail as well: the job asks for what cannot be.
    pub fn is_the_jobs_fault(&self) -> bool {
        match self {
            Self::Url { .. }
            | Self::NoId { .. }
            | Self::NoCommit { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::TooMany { .. } => true,
            Self::Submodule { source, .. } => source.is_the_jobs_fault(),
            Self::Cancelled | Self::Fetch { .. } | Self::Clone { .. } | Self::File { .. } => false,
        }
    }
}

/// Adds to an error what was done to which file.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ContextError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ContextError> {
        self.map_err(|source| ContextError::File { action, path: path.into(), source })
    }
}
