//! System calls that no safe wrapper offers.
#![expect(unsafe_code, reason = "the one place of this crate for it")]

mod btrfs;
mod fiemap;

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::mount::OWN_MOUNTS;

pub(crate) use btrfs::{
    Search, SearchKey, clear_subvolume_flags, commit_btrfs, create_subvolume, destroy_subvolume, open_by_inode,
    snapshot_subvolume, subvolume_id,
};
pub(crate) use fiemap::shared_bytes;

/// Gives the calling thread a mount namespace, root and working directory of its own.
pub(crate) fn unshare_mounts_of_this_thread() -> Result<(), Errno> {
    // SAFETY: unsound only with `UnshareFlags::FILES`, after which descriptors owned by other
    // threads' objects would mean something else here. OWN_MOUNTS holds NEWNS and FS alone.
    unsafe { rustix::thread::unshare_unsafe(OWN_MOUNTS) }
}

/// Adds `attributes` to the mount whose root `mount` is.
pub(crate) fn add_mount_attributes(mount: &OwnedFd, attributes: MountAttrFlags) -> Result<(), std::io::Error> {
    let attr = libc::mount_attr { attr_set: attributes.bits().into(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: mount_setattr(2) reads an empty C string and `size_of` bytes at `attr`, and keeps neither pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
