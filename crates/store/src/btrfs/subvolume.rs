//! Subvolumes and what is in them.
//!
//! Anyone can make subvolumes in a directory of his (`systemd-tmpfiles` does), set them read-only, and nest them as deep
//! as he likes. A snapshot has an empty directory in place of each, and what holds one cannot be destroyed.
//! So whatever is done to a subvolume here is done to those in it, which are found in the filesystem's tree of
//! subvolumes and opened by number.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, IFlags, fstat, fstatfs, ioctl_getflags, ioctl_setflags, unlinkat};
use rustix::io::{self, Errno};

use super::search::{self, nested};
use crate::filesystem::is_btrfs;
use crate::{attributes, sys, walk};

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode of each subvolume's root.
const ROOT_INODE: u64 = 256;

/// Opens the root of the subvolume at `path`.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let root = walk::open_path(path)?;
    if is_root(&root)? { Ok(root) } else { Err(Errno::INVAL) }
}

fn is_root(directory: &OwnedFd) -> io::Result<bool> {
    Ok(fstat(directory)?.st_ino == ROOT_INODE && is_btrfs(&fstatfs(directory)?))
}

/// Makes the subvolume `name` of `directory`: equal to the one whose root `source` is, which nobody changes meanwhile.
pub(super) fn snapshot(source: &OwnedFd, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    sys::snapshot_subvolume(source, directory, name)?;
    let id = sys::subvolume_id(source)?;
    let inner = nested(source, id)?;
    if inner.is_empty() {
        return Ok(());
    }
    let mut copies = HashMap::from([(id, sys::subvolume_id(&walk::open(directory, name)?)?)]);
    for inner in inner {
        // Inodes have the same numbers in a snapshot.
        let place = sys::open_by_inode(source, copies[&inner.parent], inner.directory)?;
        let before = fstat(&place)?;
        unlinkat(&place, &inner.name, AtFlags::REMOVEDIR)?;
        sys::snapshot_subvolume(&sys::open_by_inode(source, inner.id, ROOT_INODE)?, &place, &inner.name)?;
        attributes::set_times(&place, &before)?;
        copies.insert(inner.id, sys::subvolume_id(&walk::open(&place, &inner.name)?)?);
    }
    Ok(())
}

/// Removes the subvolume `name` of `directory` and those in it; the kernel frees their space later. Returns false if
/// that is no subvolume, or not there.
pub(crate) fn destroy(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    let root = match walk::open(directory, name) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        root => root?,
    };
    if !is_root(&root)? {
        return Ok(false);
    }
    if sys::destroy_subvolume(directory, name).is_ok() {
        return Ok(true);
    }
    let inner = nested(&root, sys::subvolume_id(&root)?)?;
    make_writable(&root)?;
    for inner in &inner {
        make_writable(&sys::open_by_inode(&root, inner.id, ROOT_INODE)?)?;
    }
    for inner in inner.iter().rev() {
        let place = sys::open_by_inode(&root, inner.parent, inner.directory)?;
        make_changeable(&place)?;
        sys::destroy_subvolume(&place, &inner.name)?;
    }
    sys::destroy_subvolume(directory, name)?;
    Ok(true)
}

/// Undoes what keeps a subvolume from being destroyed.
fn make_writable(root: &OwnedFd) -> io::Result<()> {
    sys::clear_subvolume_flags(root)?;
    make_changeable(root)
}

/// Undoes `chattr +i` and `chattr +a`.
fn make_changeable(directory: &OwnedFd) -> io::Result<()> {
    let flags = ioctl_getflags(directory)?;
    let kept = flags.difference(IFlags::IMMUTABLE | IFlags::APPEND);
    if kept == flags { Ok(()) } else { ioctl_setflags(directory, kept) }
}

/// Returns the bytes that the subvolume whose root `root` is and those in it do not share with what they were cloned from.
pub(super) fn own_bytes(root: &OwnedFd) -> io::Result<u64> {
    let id = sys::subvolume_id(root)?;
    let mut bytes = search::own_bytes(root, id)?;
    for inner in nested(root, id)? {
        bytes += search::own_bytes(root, inner.id)?;
    }
    Ok(bytes)
}
