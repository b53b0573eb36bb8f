//! Why a build produced no result.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::{ImageError, ReferenceError};
use kiln_sandbox::{ExitStatus, SandboxError, Step};
use kiln_store::{Id, StoreError};
use thiserror::Error;

use crate::events::StepInfo;
use crate::limits::{Limit, StepUsage};
use crate::plan::PlanError;

/// Why a build produced no result. One failure can end several builds that share a step, hence the `Arc`s.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The caller's token fired.
    #[error("cancelled")]
    Cancelled,
    /// The spec asks for something that is not there.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The text after `from` is not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The source directory cannot be opened.
    #[error("cannot open the source directory {}", path.display())]
    Source {
        /// What was given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The command of a step ended badly.
    #[error("step `{}` {}", line(&step.text), describe(*status, *limit))]
    StepFailed {
        /// The step.
        step: Arc<StepInfo>,
        /// Under which its log is kept.
        id: Id,
        /// How the command ended.
        status: ExitStatus,
        /// The limit that it came up against before.
        limit: Option<Limit>,
        /// What it had used.
        usage: Box<StepUsage>,
    },
    /// The files to copy cannot be taken.
    #[error("step `{}` cannot copy", line(&step.text))]
    Copy {
        /// The step.
        step: Arc<StepInfo>,
        /// Which file, and why.
        #[source]
        source: CopyError,
    },
    /// The base image cannot be had.
    #[error("cannot import the base image `{reference}`")]
    Base {
        /// As in the spec.
        reference: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The sandbox could not be set up.
    #[error("cannot run step `{}`", line(&step.text))]
    Sandbox {
        /// The step.
        step: Arc<StepInfo>,
        /// Why.
        #[source]
        source: SandboxError,
    },
    /// There is no user namespace for a step just now, though this kernel has them.
    #[error("cannot give a step users of its own; `--userns host` does without, and holds steps less")]
    NoUserNamespace(#[source] SandboxError),
    /// There is no user namespace for steps here, and nothing is to run without.
    #[error("a step cannot have users of its own: {reason}; `--userns auto` lets it have the host's")]
    NoOwnUsers {
        /// What stands in the way.
        reason: String,
    },
    /// A name is not in the image's `/etc/passwd`.
    #[error("step `{}` is to run as `{name}`, who is not in the image's /etc/passwd", line(&step.text))]
    NoSuchUser {
        /// The step.
        step: Arc<StepInfo>,
        /// The name.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What a result says of itself is not what this version writes.
    #[error("the description of {} cannot be understood; remove it with `kiln rm`", id.short())]
    Description {
        /// The result.
        id: Id,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A system call failed.
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
    /// A task of ours panicked: a bug.
    #[error("internal error: {0}")]
    Bug(String),
}

/// Why files could not be copied into an image.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A name in `src` does not exist.
    #[error("there is no `{name}` in {place}")]
    Missing {
        /// As in the spec.
        name: String,
        /// Where it was looked for.
        place: String,
    },
    /// A name in `src` leads upwards.
    #[error("`{0}` leads out of the source; name what is inside, without `..`")]
    Outside(String),
    /// A directory on the way is a symbolic link.
    #[error("`{0}` goes through a symbolic link; name the directory that the link points to")]
    ThroughLink(String),
    /// Neither file, directory nor symbolic link.
    #[error("`{name}` is a {kind}; only files, directories and symbolic links can be copied; exclude it")]
    Special {
        /// Which entry.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// It differs from what was read a moment ago.
    #[error("`{0}` changed while it was read; build again when nothing writes to the source")]
    Changed(String),
    /// Several items for one name.
    #[error("`{dst}` is to become {count} files; end it in `/` to make it a directory")]
    SeveralForOne {
        /// As in the spec.
        dst: String,
        /// How many.
        count: usize,
    },
    /// Something stands where the copy should go.
    #[error("`{name}` in the image is {kind}, and the copy would need {wanted} there")]
    InTheWay {
        /// Which entry.
        name: String,
        /// What it is.
        kind: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A system call failed on a file of the source.
    #[error("cannot {action} `{name}`")]
    Read {
        /// What was tried: a verb.
        action: &'static str,
        /// Which entry.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call failed on a file of the image.
    #[error("{}cannot {action} `{name}` in the image", if is_full(source) { "disk full: " } else { "" })]
    Write {
        /// What was tried: a verb.
        action: &'static str,
        /// Which entry.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The remembered digests failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A copy was cancelled, or failed.
#[derive(Debug)]
pub(crate) enum Stopped {
    Cancelled,
    Failed(CopyError),
}

impl From<CopyError> for Stopped {
    fn from(error: CopyError) -> Self {
        Self::Failed(error)
    }
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody's: it was asked for.
    Cancelled,
    /// The build's: its commands or its files.
    Build,
    /// The caller's: the spec or the arguments.
    Usage,
    /// This host's, or ours.
    Host,
}

impl BuildError {
    /// Returns whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Cancelled => Fault::Cancelled,
            Self::Plan(_) | Self::Reference(_) | Self::Source { .. } => Fault::Usage,
            Self::StepFailed { .. } | Self::NoSuchUser { .. } => Fault::Build,
            Self::Copy { source: CopyError::Write { .. } | CopyError::Store(_), .. } => Fault::Host,
            Self::Copy { .. } => Fault::Build,
            Self::Sandbox { source: SandboxError::Profile { .. }, .. } => Fault::Usage,
            // A directory or target that cannot be, in this image.
            Self::Sandbox { source: SandboxError::Invalid { .. }, .. } => Fault::Build,
            Self::Sandbox { source: SandboxError::Setup { step, source, .. }, .. }
                if matches!(step, Step::EnterDirectory | Step::MountTree | Step::MountFile) && !is_full(source) =>
            {
                Fault::Build
            }
            Self::Base { source, .. } if source.is_cancelled() => Fault::Cancelled,
            Self::Base { source, .. } if source.is_users_fault() => Fault::Usage,
            Self::Base { .. }
            | Self::Sandbox { .. }
            | Self::NoUserNamespace(_)
            | Self::NoOwnUsers { .. }
            | Self::Store(_)
            | Self::Description { .. }
            | Self::Io { .. }
            | Self::Bug(_) => Fault::Host,
        }
    }
}

/// Returns how a command ended, to follow its name: `exited with status 2`.
pub(crate) fn describe(status: ExitStatus, limit: Option<Limit>) -> String {
    let how = match (status, limit) {
        (_, Some(limit)) if limit.has_killed(status) => return format!("was killed: {limit}"),
        (ExitStatus::Signal(signal), _) => format!("was killed by signal {signal}"),
        (ExitStatus::Code(code), _) => format!("exited with status {code}"),
    };
    match limit {
        Some(limit) => format!("{how}; before that: {limit}"),
        None => how,
    }
}

/// Returns the text of a step as one line, shortened.
fn line(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds what was tried, and on what, to an [`io::Error`].
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BuildError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::Io { action, path: path.as_ref().to_owned(), source: error.into() })
    }
}
