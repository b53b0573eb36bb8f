//! Reading trees that hostile steps wrote: no name is followed, no depth overflows a stack, and only
//! the directory at hand is open, however deep or wide the tree is.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io;

/// How a directory is opened in order to read it.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the directory `name` of `parent`. With `..` as the name this is the way back up: nobody
/// moves directories in a tree that is read here.
pub(crate) fn open(parent: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Opens the directory at `path`.
pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    openat(CWD, path, DIRECTORY, Mode::empty())
}
