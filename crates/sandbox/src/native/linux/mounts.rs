//! Mounts by descriptor: made or copied detached, then moved onto a place that `walk` found. No path is
//! resolved twice, so nobody can swap it in between.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, PROC_SUPER_MAGIC, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

use super::sys::{self, SingleThread};
use crate::plan::{Attributes, Content, Filesystem};

/// `linux/magic.h`.
const SYSFS_MAGIC: u64 = 0x6265_6572;
/// Longest file copied from the host, such as `/etc/resolv.conf`.
const MAX_HOST_FILE: u64 = 64 << 10;

/// Returns a new filesystem, mounted nowhere.
pub(super) fn make(filesystem: &Filesystem) -> io::Result<OwnedFd> {
    let options = filesystem.options.iter().map(|(key, value)| (key.as_c_str(), value.as_c_str()));
    make_with(&filesystem.kind, options, filesystem.attributes)
}

/// As [`make`], for a sandbox with the host's network: to show which that has, the kernel wants rights over it. Without them,
/// what is shown is a network that nobody uses. A child makes it: whoever leaves a network cannot come back without such rights.
pub(super) fn make_in_an_empty_network(filesystem: &Filesystem, thread: &SingleThread) -> io::Result<OwnedFd> {
    super::wire::made_by_a_child(thread, || {
        sys::unshare(UnshareFlags::NEWNET)?;
        make(filesystem)
    })
}

fn make_with<'a>(
    kind: &CStr,
    options: impl IntoIterator<Item = (&'a CStr, &'a CStr)>,
    attributes: Attributes,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The first column of `mount` and `df`.
    fsconfig_set_string(context.as_fd(), c"source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let bits = u32::try_from(attributes.0).expect("the known attributes are low bits");
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(bits))?)
}

/// Returns a copy of the mount at `path` below `dir`, mounted nowhere, without the mounts on it.
pub(super) fn copy(dir: BorrowedFd<'_>, path: &CStr, attributes: Attributes) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(dir, path, flags)?;
    sys::mount_set_private(mount.as_fd(), attributes, None)?;
    Ok(mount)
}

/// As [`copy_from_host`], its files' ids being those of a user namespace.
pub(super) fn copy_mapped(path: &CStr, attributes: Attributes, ids: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags)?;
    sys::mount_set_private(mount.as_fd(), attributes, Some(ids))?;
    Ok(mount)
}

/// As [`copy`], of a path of the host.
pub(super) fn copy_from_host(path: &CStr, attributes: Attributes) -> io::Result<OwnedFd> {
    copy(CWD, path, attributes)
}

/// Sees to it that nothing mounted from here on shows up on the host, nor the other way round.
pub(super) fn cut_propagation() -> io::Result<()> {
    Ok(mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Mounts `mount` over what `target` has open.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}

/// Fails with `EACCES` if `target` is in `/proc` or `/sys`, where a mount would fake what the kernel says or uncover
/// what is masked, or if it is the root itself.
pub(super) fn refuse_target(root: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let kind = rustix::fs::fstatfs(target)?.f_type as u64;
    let (root, at) = (rustix::fs::fstat(root)?, rustix::fs::fstat(target)?);
    if kind == PROC_SUPER_MAGIC as u64 || kind == SYSFS_MAGIC || (root.st_dev, root.st_ino) == (at.st_dev, at.st_ino) {
        return Err(rustix::io::Errno::ACCESS.into());
    }
    Ok(())
}

/// A small filesystem in memory for generated files and secrets, seen by init alone. It is a ramfs: other than tmpfs it is
/// never written to swap. Bound over their targets its files are all that anybody else sees of it.
pub(super) struct Staging {
    dir: OwnedFd,
    files: u32,
}

impl Staging {
    /// Mounts it over `place`, where it hides the host's directory from this mount namespace only.
    pub(super) fn new(place: &CStr) -> io::Result<Self> {
        let attributes = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC);
        // Runtimes look at the root as its own user; all else has modes of its own.
        let dir = make_with(c"ramfs", [(c"mode", c"0711")], attributes)?;
        attach(dir.as_fd(), super::walk::open_on_host(place)?.as_fd())?;
        rustix::fs::mkdirat(&dir, c"root", Mode::from_raw_mode(0o700))?;
        rustix::fs::mkdirat(&dir, c"empty", Mode::from_raw_mode(0o755))?;
        Ok(Self { dir, files: 0 })
    }

    /// Returns the directory on which the sandbox's root is put together.
    pub(super) fn root_place(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.dir, c"root", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Returns a mount of an empty directory.
    pub(super) fn empty_directory(&self) -> io::Result<OwnedFd> {
        let attributes = Attributes::READ_ONLY.and(Attributes::NOSUID).and(Attributes::NODEV).and(Attributes::NOEXEC);
        copy(self.dir.as_fd(), c"empty", attributes)
    }

    /// Returns a read-only mount of a file with `content`, or `None` if it is to be a copy of a file that the host does
    /// not have.
    pub(super) fn file(&mut self, content: &Content, mode: u32, owner: (u32, u32)) -> io::Result<Option<OwnedFd>> {
        let copied;
        let bytes = match content {
            Content::Bytes(bytes) => bytes,
            Content::Host(path) => match read_from_host(path) {
                Ok(bytes) => {
                    copied = bytes;
                    &copied
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
            Content::Resolver => {
                let host = match read_from_host(c"/etc/resolv.conf") {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                    read => read?,
                };
                copied = crate::reach::resolver(&String::from_utf8_lossy(&host)).into_bytes();
                &copied
            }
        };
        self.files += 1;
        let name = self.files.to_string();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name.as_str(), flags, Mode::from_raw_mode(mode))?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
        File::from(file).write_all(bytes)?;
        let name = std::ffi::CString::new(name).expect("digits");
        let attributes = Attributes::READ_ONLY.and(Attributes::NOSUID).and(Attributes::NODEV).and(Attributes::NOEXEC);
        copy(self.dir.as_fd(), &name, attributes).map(Some)
    }
}

fn read_from_host(path: &CStr) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(MAX_HOST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}
