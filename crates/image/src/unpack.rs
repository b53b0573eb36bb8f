//! One archive into a tree.

use std::io;
use std::path::Path;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::Limits;
use crate::stream::{self, Expected, Section, Watch};
use crate::tar::{Reader, Source, TarError};
use crate::tree::{Tree, Whiteouts};

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
    #[error("its {compression} data is damaged")]
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
            | Self::TooManyDirectories(_)
            | Self::Refused { .. }
            | Self::NoTarget { .. } => true,
        }
    }
}

/// Unpacks the archive in `section` into `tree`, as the next layer of it.
///
/// # Errors
///
/// See [`UnpackError`]. What was unpacked so far stays.
pub(crate) fn layer(
    section: Section,
    expected: Expected,
    whiteouts: Whiteouts,
    tree: &mut Tree,
    watch: &Watch<'_>,
) -> Result<(), UnpackError> {
    stream::unpack(section, expected, watch, |unpacked| members(unpacked, whiteouts, tree, watch.limits, watch.cancel))
}

fn members(
    source: impl Source,
    whiteouts: Whiteouts,
    tree: &mut Tree,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(), UnpackError> {
    tree.begin_layer(whiteouts)?;
    let mut reader = Reader::new(source, limits);
    while let Some(entry) = reader.next()? {
        if cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        tree.add(&entry, &mut reader, cancel)?;
    }
    tree.finish_layer()
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

    let mut tree = Tree::new(into, limits).map_err(UnpackError::Read)?;
    let cancel = CancellationToken::new();
    layers.iter().try_for_each(|layer| members(Memory(layer), Whiteouts::Apply, &mut tree, limits, &cancel))
}
