//! Reads tar archives: POSIX (ustar, pax), GNU (long names, sparse files), old Unix.
//!
//! Our own reader, because the `tar` crate reads extended headers into memory without a bound, keeps
//! times to the second, and knows neither where in the file a member's data lies (which is how an image
//! is read inside its archive) nor the sparse files of pax. It reads; where entries may go and what may
//! be in them is decided by [`crate::tree`].

mod error;
mod header;
mod pax;
mod reader;
mod sparse;

pub use error::TarError;
pub(crate) use reader::{Reader, Source};

/// One member, its extended headers applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// As written: may be absolute, may climb.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// The low twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// In the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Its content follows. `segments` says where it goes in a sparse file; their lengths add up to
    /// the content that is stored, they are in order and end within `size`.
    File {
        size: u64,
        segments: Option<Vec<Segment>>,
    },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Directory,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// A part of a sparse file that is stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Seconds and nanoseconds since 1970; the nanoseconds count forwards also before it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}
