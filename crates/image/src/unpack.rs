//! One archive into a tree.

use std::io;
use std::path::Path;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::stream::{self, Expected, Section, Watch};
use crate::tar::{Reader, Source, TarError};
use crate::tree::{Below, Tree, Whiteouts};
use crate::{Limits, Quiet};

/// Why a layer or archive could not be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The archive is damaged, or none.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Reading it failed.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// It cannot be decompressed.
    #[error("its {compression} data cannot be decompressed")]
    Corrupt {
        /// How it is compressed.
        compression: &'static str,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// It is compressed in a way that is not supported.
    #[error("{0} compression is not supported; use gzip, zstd or xz")]
    UnsupportedCompression(&'static str),
    /// It is not what its descriptor or configuration says.
    #[error("its {what} digest is {found}, not {wanted}")]
    WrongDigest {
        /// `stored` or `unpacked`.
        what: &'static str,
        /// The digest that it should have.
        wanted: String,
        /// The digest that it has.
        found: String,
    },
    /// It unpacks to too much.
    #[error("it unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// So little that unpacks to so much is an attack.
    #[error("it unpacks to more than {unpacked} bytes, more than {ratio} times the {stored} that are stored")]
    TooDense {
        /// The bytes that came out so far.
        unpacked: u64,
        /// The bytes that are stored.
        stored: u64,
        /// How many times as many are accepted.
        ratio: u64,
    },
    /// It has so many directories that remembering their times takes too much memory.
    #[error("its directories need more than {0} bytes to remember")]
    TooManyDirectories(usize),
    /// A member is refused, because it would do harm or makes no sense.
    #[error("refused `{entry}`: {reason}")]
    Refused {
        /// The member's name.
        entry: String,
        /// Why.
        reason: String,
    },
    /// A hard link's target is not there.
    #[error("`{entry}` is a hard link to `{target}`, which does not exist before it")]
    NoTarget {
        /// The link.
        entry: String,
        /// What it should be linked to.
        target: String,
    },
    /// A file operation in the tree failed.
    #[error("cannot {action} `{entry}`")]
    Write {
        /// What was tried: a verb.
        action: &'static str,
        /// The member, by its name in the tree.
        entry: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread that decompresses died.
    #[error("the thread that decompresses panicked")]
    Panicked,
}

impl UnpackError {
    /// Returns true if the image is at fault, false if it is the host or the caller.
    pub fn is_images_fault(&self) -> bool {
        match self {
            Self::Tar(TarError::Read(_)) | Self::Cancelled | Self::Read(_) | Self::Write { .. } | Self::Panicked => {
                false
            }
            Self::Tar(_)
            | Self::Corrupt { .. }
            | Self::UnsupportedCompression(_)
            | Self::WrongDigest { .. }
            | Self::TooLarge(_)
            | Self::TooDense { .. }
            | Self::TooManyDirectories(_)
            | Self::Refused { .. }
            | Self::NoTarget { .. } => true,
        }
    }
}

/// Unpacks the archive in `section` as the layer `tree`.
///
/// # Errors
///
/// See [`UnpackError`]. What was unpacked so far stays.
pub(crate) fn layer(section: Section, expected: Expected, tree: Tree, watch: &Watch<'_>) -> Result<(), UnpackError> {
    stream::unpack(section, expected, watch, |unpacked| members(unpacked, tree, watch))
}

fn members(source: impl Source, mut tree: Tree, watch: &Watch<'_>) -> Result<(), UnpackError> {
    let mut reader = Reader::new(source, watch.limits);
    while let Some(entry) = reader.next()? {
        if watch.cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        tree.add(&entry, &mut reader, watch.cancel)?;
    }
    tree.finish(watch.progress)
}

/// Unpacks layers that are in memory, without checking digests: for tests and fuzzing.
#[doc(hidden)]
pub fn unpack_in_memory(layers: &[&[u8]], into: &Path, limits: &Limits) -> Result<(), UnpackError> {
    struct Memory<'a>(&'a [u8]);

    impl Source for Memory<'_> {
        fn fill(&mut self) -> io::Result<&[u8]> {
            // In pieces, so that what straddles two is seen too.
            Ok(&self.0[..self.0.len().min(1000)])
        }

        fn consume(&mut self, count: usize) {
            self.0 = &self.0[count..];
        }
    }

    let cancel = CancellationToken::new();
    let watch = Watch { limits, cancel: &cancel, progress: &Quiet, done: 0, total: 0 };
    let mut below = Below::Nothing;
    for layer in layers {
        let tree = Tree::new(into, below, Whiteouts::Apply, limits).map_err(UnpackError::Read)?;
        members(Memory(layer), tree, &watch)?;
        below = Below::Layers;
    }
    Ok(())
}
