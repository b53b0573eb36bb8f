//! What can be wrong with an archive.

use std::io;

use thiserror::Error;

/// Why an archive could not be read.
#[derive(Debug, Error)]
pub enum TarError {
    /// The file below could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It does not start with a header.
    #[error("it is not a tar archive")]
    NotTar,
    /// It ends in the middle of a member.
    #[error("the archive ends early, at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// A header does not have its checksum.
    #[error("the archive is damaged: no header at byte {offset}")]
    Checksum {
        /// Where the header should be.
        offset: u64,
    },
    /// A header's field cannot be understood.
    #[error("the header at byte {offset} has a bad {field}")]
    Field {
        /// Where the header is.
        offset: u64,
        /// Which field.
        field: &'static str,
    },
    /// A member is of a kind that cannot be unpacked.
    #[error("the member at byte {offset} is of the unknown kind {:?}", char::from(*kind))]
    Kind {
        /// Where its header is.
        offset: u64,
        /// The kind's byte.
        kind: u8,
    },
    /// A header that describes the next one is too long.
    #[error("the extended header at byte {offset} is longer than {limit} bytes")]
    ExtensionTooLong {
        /// Where it is.
        offset: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// A member's name or link is too long for any filesystem.
    #[error("the member at byte {offset} has a name longer than 4095 bytes")]
    NameTooLong {
        /// Where its header is.
        offset: u64,
    },
    /// There are too many headers.
    #[error("the archive has more than {0} members")]
    TooManyEntries(u64),
}
