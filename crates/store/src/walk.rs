//! Reading trees that hostile steps wrote: no name is followed, no depth overflows a stack, and only
//! the directory at hand is open, however deep or wide the tree is.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, openat, statat};
use rustix::io::{self, Errno};

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

/// Opens the regular file `name` for reading. `NONBLOCK`: should it be a fifo after all.
pub(crate) fn open_file(directory: &OwnedFd, name: &CStr) -> io::Result<File> {
    const REGULAR: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
    Ok(openat(directory, name, REGULAR, Mode::empty())?.into())
}

/// Returns the names in a directory, sorted, the first at the end.
pub(crate) fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

/// Looks at `name`. The devices that overlayfs takes for removed files are not there: in some trees they can be seen,
/// and once another tree stands on them they cannot.
pub(crate) fn look(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if kind(&stat) == FileType::CharacterDevice && stat.st_rdev == 0 => Ok(None),
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// Returns a path for calls on extended attributes, which take no descriptor of a directory before Linux 6.13. Use those
/// that do not follow the last component.
pub(crate) fn path_in(directory: &OwnedFd, name: &CStr) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    PathBuf::from(OsString::from_vec(path))
}

/// Returns the extended attributes of the entry `name`, sorted, without overlayfs' own: those belong to a layer, not
/// to what it holds.
pub(crate) fn extended(directory: &OwnedFd, name: &CStr) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let path = path_in(directory, name);
    // Most have none: the kernel would clear a large buffer each time.
    let mut list = vec![0_u8; 256];
    let length = match llistxattr(&path, &mut list[..]) {
        Err(Errno::RANGE) => {
            list = vec![0; 64 << 10]; // XATTR_LIST_MAX
            llistxattr(&path, &mut list[..])?
        }
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut found = Vec::new();
    for name in list[..length].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if name.to_bytes().starts_with(crate::user_namespace::overlay_marks().as_bytes()) {
            continue;
        }
        let mut value = vec![0; 64 << 10]; // XATTR_SIZE_MAX
        let length = lgetxattr(&path, name, &mut value[..])?;
        value.truncate(length);
        value.shrink_to_fit();
        found.push((name.to_owned(), value));
    }
    found.sort_unstable();
    Ok(found)
}
