//! Walks up to three trees side by side, and compares what is in them.
//!
//! The trees were written by hostile steps. No name is followed; nothing but regular files and directories is
//! opened; and only the directory at hand is open, however deep a tree is: the way back up is `..`, since nobody
//! moves directories in these trees.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{self, Errno};

use crate::tree::is_kept;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK`: should it be a fifo after all.
const REGULAR: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const XATTR: usize = 64 << 10;

/// One of the trees: its directory at the place where the walk is, or the last one above that it has.
pub(super) struct Side {
    directory: OwnedFd,
    /// How many levels the walk is below `directory`, in places that this tree does not have.
    below: usize,
}

impl Side {
    /// Starts at the root of a tree.
    pub(super) fn new(root: &OwnedFd) -> io::Result<Self> {
        // Mounts are opened as paths only.
        Ok(Self { directory: openat(root, c".", DIRECTORY, Mode::empty())?, below: 0 })
    }

    /// Returns the directory, if the tree has this place.
    pub(super) fn here(&self) -> Option<&OwnedFd> {
        (self.below == 0).then_some(&self.directory)
    }

    /// Goes to the directory `name`, or below what this tree has.
    pub(super) fn descend(&mut self, name: Option<&CStr>) -> io::Result<()> {
        match name {
            Some(name) if self.below == 0 => self.directory = openat(&self.directory, name, DIRECTORY, Mode::empty())?,
            _ => self.below += 1,
        }
        Ok(())
    }

    pub(super) fn ascend(&mut self) -> io::Result<()> {
        match self.below.checked_sub(1) {
            Some(above) => self.below = above,
            None => self.directory = openat(&self.directory, c"..", DIRECTORY, Mode::empty())?,
        }
        Ok(())
    }

    /// Adds the names in this directory.
    pub(super) fn names(&self, names: &mut Vec<CString>) -> io::Result<()> {
        let Some(directory) = self.here() else { return Ok(()) };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        Ok(())
    }

    /// Looks at `name`. What a layer cannot hold is not there: sockets, and devices that overlayfs takes for removed
    /// files.
    pub(super) fn look(&self, name: &CStr) -> io::Result<Option<Stat>> {
        let Some(directory) = self.here() else { return Ok(None) };
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Socket | FileType::Unknown => None,
                FileType::CharacterDevice if stat.st_rdev == 0 => None,
                _ => Some(stat),
            }),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns true if the directory `name` of an overlay's layer names only what differs from below. An opaque one
    /// (`trusted.overlay.opaque` is `y`, or `user.overlay.opaque` without root) hides all that was below, and names nothing of that.
    pub(super) fn is_transparent(&self, name: &CStr) -> io::Result<bool> {
        let Some(directory) = self.here() else { return Ok(false) };
        let directory = match openat(directory, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            opened => opened?,
        };
        // A step can write the second itself where it is no mark. Then more is read than need be.
        Ok([c"trusted.overlay.opaque", c"user.overlay.opaque"].into_iter().all(|mark| {
            let mut value = [0_u8; 8];
            !matches!(rustix::fs::fgetxattr(&directory, mark, &mut value), Ok(1) if value[0] == b'y')
        }))
    }

    /// Looks at the directory itself.
    pub(super) fn look_here(&self) -> io::Result<Option<Stat>> {
        self.here().map(fstat).transpose()
    }

    /// Opens the regular file `name`, which looked like `stat`.
    pub(super) fn open(&self, name: &CStr, stat: &Stat) -> io::Result<File> {
        let file = openat(&self.directory, name, REGULAR, Mode::empty())?;
        let now = fstat(&file)?;
        let is_same = (now.st_dev, now.st_ino, now.st_size, now.st_mode)
            == (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mode);
        if is_same { Ok(file.into()) } else { Err(Errno::STALE) }
    }

    pub(super) fn link(&self, name: &CStr) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.directory, name, Vec::new())?.into_bytes())
    }

    /// Returns the extended attributes of the directory or regular file `name` that are part of a tree, sorted by
    /// name.
    pub(super) fn xattrs(&self, name: &CStr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // There is no `listxattrat(2)` before Linux 6.13. The last component is not followed.
        let mut path = format!("/proc/self/fd/{}/", self.directory.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        // Most have none: the kernel would clear the large buffer each time.
        let mut names = vec![0_u8; 256];
        let length = match rustix::fs::llistxattr(&path, &mut names[..]) {
            Err(Errno::RANGE) => {
                names = vec![0; XATTR];
                rustix::fs::llistxattr(&path, &mut names[..])?
            }
            Err(Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        let mut found = Vec::new();
        for name in names[..length].split(|&byte| byte == 0).filter(|name| is_kept(name)) {
            let mut value = vec![0; XATTR];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..])?;
            value.truncate(length);
            value.shrink_to_fit();
            found.push((name.to_vec(), value));
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// Returns true if both are one file, or one and its snapshot.
pub(super) fn is_same_file(one: &Stat, other: &Stat) -> bool {
    let version =
        |stat: &Stat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) || version(one) == version(other)
}

/// Returns true if two files of one size have the same content.
pub(super) fn has_same_content(mut one: File, mut other: File) -> std::io::Result<bool> {
    const PART: usize = 64 << 10;
    let (mut left, mut right) = (vec![0; PART], vec![0; PART]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..length]) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}
