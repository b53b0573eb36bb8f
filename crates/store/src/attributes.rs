//! Owner, mode, times and extended attributes from one entry to another.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, flistxattr, fstat, getxattr,
    listxattr, setxattr, utimensat,
};
use rustix::io::{self, Errno};

use crate::StoreError;
use crate::error::At;
use crate::user_namespace::overlay_marks;
use crate::walk::open_path;

/// What becomes of overlayfs' marks, attributes `trusted.overlay.*` or `user.overlay.*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    /// They are copied: in a whole tree they are what a step wrote.
    Kept,
    /// They stay behind: in overlayfs' layers they belong to the layer, not to what it holds.
    Dropped,
}

/// Gives the directory `to`, of a layer, what the directory `from` has.
pub(crate) fn copy_path(from: &Path, to: &Path) -> Result<(), StoreError> {
    let from = open_path(from).at("read", from)?;
    let target = open_path(to).at("read", to)?;
    copy(&from, &target, Marks::Dropped).at("copy attributes to", to)
}

/// Gives the directory or file `to` what `from` has.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd, marks: Marks) -> io::Result<()> {
    copy_as(from, &fstat(from)?, to, marks)
}

/// As [`copy`], where the `stat` of `from` is known.
pub(crate) fn copy_as(from: &OwnedFd, stat: &Stat, to: &OwnedFd, marks: Marks) -> io::Result<()> {
    // Most are right as they were made. To look costs a fifth of what it costs to write the same again.
    let made = fstat(to)?;
    let is_owned = (made.st_uid, made.st_gid) == (stat.st_uid, stat.st_gid);
    if !is_owned {
        fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    // A change of the owner takes set-user-id away.
    if !is_owned || made.st_mode != stat.st_mode {
        fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    }
    // After the owner: its change takes a file's capabilities away.
    copy_extended(from, to, marks)?;
    set_times(to, stat)
}

/// Sets the times that `stat` says.
pub(crate) fn set_times(to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    rustix::fs::futimens(to, &times(stat))
}

/// Sets the times that `stat` says on the entry `name`, itself if it is a link.
pub(crate) fn set_times_at(directory: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies extended attributes, through `/proc`, since `O_PATH` descriptors are all that one gets of a
/// symbolic link or a device.
pub(crate) fn copy_extended(from: &OwnedFd, to: &OwnedFd, marks: Marks) -> io::Result<()> {
    // Most have none, and are not worth a large buffer.
    if matches!(flistxattr(from, &mut [0_u8; 64]), Ok(0) | Err(Errno::OPNOTSUPP)) {
        return Ok(());
    }
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (from, to) = (path(from), path(to));
    let mut names = vec![0_u8; 64 << 10]; // XATTR_LIST_MAX
    let length = match listxattr(&*from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if marks == Marks::Dropped && name.to_bytes().starts_with(overlay_marks().as_bytes()) {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10]; // XATTR_SIZE_MAX
        let length = getxattr(&*from, name, &mut value[..])?;
        setxattr(&*to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}
