//! Owner, mode, times and extended attributes from one entry to another.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fstat,
    getxattr, listxattr, mknodat, openat, readlinkat, setxattr, symlinkat, utimensat,
};
use rustix::io::{self, Errno};

use crate::StoreError;
use crate::error::At;
use crate::walk::open_path;

/// Gives the directory `to` what the directory `from` has.
pub(crate) fn copy_path(from: &Path, to: &Path) -> Result<(), StoreError> {
    let from = open_path(from).at("read", from)?;
    let target = open_path(to).at("read", to)?;
    copy(&from, &target).at("copy attributes to", to)
}

/// Gives the directory or file `to` what `from` has.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    // After the owner: its change takes a file's capabilities away.
    copy_extended(from, to)?;
    set_times(to, &stat)
}

/// Sets the times that `stat` says.
pub(crate) fn set_times(to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    rustix::fs::futimens(to, &times(stat))
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
fn copy_extended(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (from, to) = (path(from), path(to));
    let mut names = vec![0_u8; 64 << 10]; // XATTR_LIST_MAX
    let length = match listxattr(&*from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // Overlayfs' own marks belong to a layer, not to what it holds.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10]; // XATTR_SIZE_MAX
        let length = getxattr(&*from, name, &mut value[..])?;
        setxattr(&*to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Copies the entry `name` of `source`, no directory, to `target`.
pub(crate) fn copy_file(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(source, name, look, Mode::empty())?;
    let stat = fstat(&from)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let data = openat(source, name, flags | OFlags::RDONLY, Mode::empty())?;
            let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let to = openat(target, name, create, Mode::RUSR | Mode::WUSR)?;
            let (mut data, mut to) = (File::from(data), File::from(to));
            std::io::copy(&mut data, &mut to).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            return copy(&data.into(), &to.into());
        }
        FileType::Symlink => symlinkat(readlinkat(source, name, Vec::new())?, target, name)?,
        kind => mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?,
    }
    let to = openat(target, name, look, Mode::empty())?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // Not a link, as it was just made.
        rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    copy_extended(&from, &to)?;
    utimensat(target, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
}
