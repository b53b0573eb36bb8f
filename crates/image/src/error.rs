//! Why an image could not be had.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use thiserror::Error;

use crate::tree::shown;
use crate::unpack::UnpackError;
use crate::{DigestError, RegistryError};

/// Why an image could not be resolved or fetched.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The registry did not give it.
    #[error(transparent)]
    Registry(RegistryError),
    /// What the reference names cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Reading failed after opening.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Writing into the target failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The reference names something of another kind.
    #[error("{} is not {wanted}: {found}", path.display())]
    NotA {
        /// What the reference names.
        path: PathBuf,
        /// What the transport needs.
        wanted: &'static str,
        /// What is there instead.
        found: String,
    },
    /// A file of the image is missing.
    #[error("{} has no {name}", path.display())]
    Missing {
        /// The layout or archive.
        path: PathBuf,
        /// What is missing in it.
        name: String,
    },
    /// A file of the image does not have the length that its descriptor says.
    #[error("{name} in {} is {found} bytes long, not {wanted} as its descriptor says", path.display())]
    WrongSize {
        /// The layout or archive.
        path: PathBuf,
        /// The blob.
        name: String,
        /// The length in the descriptor.
        wanted: u64,
        /// The length of the file.
        found: u64,
    },
    /// A document of the image does not have its digest.
    #[error("{name} in {} is damaged: its digest is {found}", path.display())]
    WrongDigest {
        /// The layout or archive.
        path: PathBuf,
        /// The blob; its name is the digest it should have.
        name: String,
        /// The digest it has.
        found: String,
    },
    /// A document is too long to be one.
    #[error("{name} in {} is {size} bytes long; at most {limit} are read", path.display())]
    DocumentTooLong {
        /// The layout or archive.
        path: PathBuf,
        /// The document.
        name: String,
        /// Its length.
        size: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// A document is not what it should be.
    #[error("{name} in {} cannot be understood", path.display())]
    BadDocument {
        /// The layout or archive.
        path: PathBuf,
        /// The document.
        name: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A document names a blob by something that is not a digest.
    #[error("{name} in {} names a blob badly", path.display())]
    BadDigest {
        /// The layout or archive.
        path: PathBuf,
        /// The document.
        name: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// No image has the tag.
    #[error("{} has no image tagged `{tag}`; it has {}", path.display(), list(known))]
    UnknownTag {
        /// The layout or archive.
        path: PathBuf,
        /// The tag asked for.
        tag: String,
        /// The tags that there are.
        known: Vec<String>,
    },
    /// Several images are there and no tag says which.
    #[error("{} holds several images; choose one by its tag: {}", path.display(), list(known))]
    WhichTag {
        /// The layout or archive.
        path: PathBuf,
        /// The tags that there are.
        known: Vec<String>,
    },
    /// There is no image at all.
    #[error("{} holds no image", path.display())]
    NoImage {
        /// The layout or archive.
        path: PathBuf,
    },
    /// The image was not made for the platform that is wanted.
    #[error("{} has no image for {wanted}; it has {}; choose with `--platform`", path.display(), list(known))]
    WrongPlatform {
        /// The layout or archive.
        path: PathBuf,
        /// The platform that is built for.
        wanted: String,
        /// The platforms that there are.
        known: Vec<String>,
    },
    /// The image is of a kind that cannot be unpacked.
    #[error("{name} in {} is of the unsupported kind `{media_type}`", path.display())]
    UnsupportedKind {
        /// The layout or archive.
        path: PathBuf,
        /// The document or layer.
        name: String,
        /// Its media type.
        media_type: String,
    },
    /// A layer is not kept beside its image.
    #[error("{name} in {} is to be fetched from elsewhere; such layers are not supported", path.display())]
    ForeignLayer {
        /// The layout, archive or name of the image.
        path: PathBuf,
        /// The layer.
        name: String,
    },
    /// Documents contradict each other.
    #[error("{name} in {} is inconsistent: {reason}", path.display())]
    Inconsistent {
        /// The layout or archive.
        path: PathBuf,
        /// The document.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// The image changed between resolving and fetching.
    #[error("{} changed while it was read; try again", path.display())]
    Changed {
        /// What changed.
        path: PathBuf,
    },
    /// The directory would be copied into itself.
    #[error("{} cannot be a base: {} lies in it", dir.display(), into.display())]
    ContainsStore {
        /// The directory.
        dir: PathBuf,
        /// Where it was to be copied.
        into: PathBuf,
    },
    /// A layer or archive could not be unpacked.
    #[error("cannot unpack {name}")]
    Unpack {
        /// The archive, or the layer in it.
        name: String,
        /// What went wrong.
        #[source]
        source: UnpackError,
    },
    /// The program that keeps images has no such one.
    #[error("`{program}` has no image `{name}`; `{program} images` tells what it has")]
    NotKept {
        /// What was asked for.
        name: String,
        /// Who was asked.
        program: &'static str,
    },
    /// The program that the transport needs is not installed.
    #[error("`{program}` is not installed; install it with `apt-get install {package}`")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// The transport needs root.
    #[error("`{reference}` needs root")]
    NeedsRoot {
        /// The reference.
        reference: String,
    },
    /// The program that the transport needs could not be started.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program that the transport needs failed.
    #[error("`{command}` failed: {status}{}", last_words(last))]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it printed.
        last: Vec<String>,
    },
    /// The caller asked for a layer after the last: a bug.
    #[error("the image has no more layers")]
    NoMoreLayers,
    /// A worker thread of ours died.
    #[error("the thread that read the image panicked")]
    Panicked,
}

impl ImageError {
    /// Returns true if changing the spec or the image would help: a missing file, an unknown tag, a
    /// damaged archive. False if the host failed: a full disk, a missing program or privilege.
    pub fn is_users_fault(&self) -> bool {
        match self {
            Self::Open { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidFilename
            ),
            Self::Unpack { source, .. } => source.is_images_fault(),
            Self::Cancelled
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::NoProgram { .. }
            | Self::NeedsRoot { .. }
            | Self::Run { .. }
            // The program's mirror or network, or a suite that does not exist: it cannot be told apart.
            | Self::Failed { .. }
            | Self::NoMoreLayers
            | Self::Panicked => false,
            Self::Registry(error) => error.is_users_fault(),
            Self::NotA { .. }
            | Self::Missing { .. }
            | Self::WrongSize { .. }
            | Self::WrongDigest { .. }
            | Self::DocumentTooLong { .. }
            | Self::BadDocument { .. }
            | Self::BadDigest { .. }
            | Self::UnknownTag { .. }
            | Self::WhichTag { .. }
            | Self::NoImage { .. }
            | Self::WrongPlatform { .. }
            | Self::UnsupportedKind { .. }
            | Self::NotKept { .. }
            | Self::ForeignLayer { .. }
            | Self::Inconsistent { .. }
            | Self::ContainsStore { .. }
            | Self::Changed { .. } => true,
        }
    }

    /// Returns true if the caller's own cancellation is why.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Unpack { source: UnpackError::Cancelled, .. })
    }
}

impl From<RegistryError> for ImageError {
    fn from(error: RegistryError) -> Self {
        if error.is_cancelled() { Self::Cancelled } else { Self::Registry(error) }
    }
}

/// Returns `names`, which are strangers', as the end of a sentence that a terminal shows and does nothing else with.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".to_owned();
    }
    let first: Vec<_> = names.iter().take(SHOWN).map(|name| shown(name.as_bytes())).collect();
    let more = names.len().checked_sub(SHOWN + 1).map(|more| format!(" and {} more", more + 1));
    first.join(", ") + &more.unwrap_or_default()
}

fn last_words(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

/// Adds what was tried to an [`io::Error`].
pub(crate) trait At<T> {
    fn at_open(self, path: &Path) -> Result<T, ImageError>;
    fn at_read(self, path: &Path) -> Result<T, ImageError>;
    fn at_write(self, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at_open(self, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Open { path: path.to_owned(), source: error.into() })
    }

    fn at_read(self, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Read { path: path.to_owned(), source: error.into() })
    }

    fn at_write(self, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Write { path: path.to_owned(), source: error.into() })
    }
}
