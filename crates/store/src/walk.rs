//! Reading trees that hostile steps wrote: no name is followed, no depth overflows a stack, and only
//! the directory at hand is open, however deep or wide the tree is.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io;

use crate::StoreError;
use crate::error::At;

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

/// Returns the bytes that the tree at `root` occupies on the disk; a file with several names counts once.
pub(crate) fn size_bytes(root: &Path) -> Result<u64, StoreError> {
    let mut size = Size { linked: HashSet::new(), bytes: 0 };
    let mut walk = || -> io::Result<()> {
        let mut directory = open_path(root)?;
        // The subdirectories still to be visited, one list a level.
        let mut waiting = vec![size.visit(&directory)?];
        while let Some(names) = waiting.last_mut() {
            if let Some(name) = names.pop() {
                directory = open(&directory, &name)?;
                waiting.push(size.visit(&directory)?);
            } else {
                waiting.pop();
                if !waiting.is_empty() {
                    directory = open(&directory, c"..")?;
                }
            }
        }
        Ok(())
    };
    walk().at("measure", root)?;
    Ok(size.bytes)
}

struct Size {
    /// Files with several names that were counted.
    linked: HashSet<(u64, u64)>,
    bytes: u64,
}

impl Size {
    /// Counts the entries of a directory and returns the names of those that are directories.
    fn visit(&mut self, directory: &OwnedFd) -> io::Result<Vec<CString>> {
        const BLOCK: u64 = 512; // st_blocks, stat(2)
        let mut directories = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
                self.bytes += stat.st_blocks.cast_unsigned() * BLOCK;
            }
            if is_directory {
                directories.push(name.to_owned());
            }
        }
        Ok(directories)
    }
}
