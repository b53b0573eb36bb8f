//! System calls that no safe wrapper offers.
#![expect(unsafe_code, reason = "the one place of this crate for it")]

mod btrfs;
mod fiemap;
mod quota;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::mount::OWN_MOUNTS;

pub(crate) use btrfs::{
    Search, SearchKey, clear_subvolume_flags, commit_btrfs, create_subvolume, destroy_subvolume, open_by_inode,
    snapshot_subvolume, subvolume_id,
};
pub(crate) use fiemap::shared_bytes;
pub(crate) use quota::{ProjectUsage, limit_project, limits_projects, project, project_usage, set_project};

/// Gives the calling thread a mount namespace, root and working directory of its own.
pub(crate) fn unshare_mounts_of_this_thread() -> Result<(), Errno> {
    // SAFETY: unsound only with `UnshareFlags::FILES`, after which descriptors owned by other
    // threads' objects would mean something else here. OWN_MOUNTS holds NEWNS and FS alone.
    unsafe { rustix::thread::unshare_unsafe(OWN_MOUNTS) }
}

/// Adds `attributes` to the mount whose root `mount` is.
pub(crate) fn add_mount_attributes(mount: &OwnedFd, attributes: MountAttrFlags) -> io::Result<()> {
    set_mount(mount, libc::mount_attr { attr_set: attributes.bits().into(), attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Maps the ids of files on this detached mount, which nothing may have used yet, by the map of a user namespace.
pub(crate) fn map_ids(mount: &OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = namespace.as_raw_fd() as u64;
    set_mount(mount, libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd })
}

/// Makes what the calling thread makes from now on belong to the host's user and group `id`. Its rights stay as they are.
pub(crate) fn make_files_as(id: u32) -> io::Result<()> {
    // SAFETY: all take an integer and touch no memory. The kernel's calls, which change one thread.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, id);
        libc::syscall(libc::SYS_setfsuid, id);
        // Neither tells whether it failed. An invalid id changes nothing and returns the one that is.
        [libc::SYS_setfsgid, libc::SYS_setfsuid].map(|call| libc::syscall(call, u32::MAX))
    };
    if now != [i64::from(id); 2] {
        return Err(Errno::PERM.into());
    }
    // The kernel took the capabilities over files away with the 0; they are still permitted.
    let sets = rustix::thread::capabilities(None)?;
    let sets = rustix::thread::CapabilitySets { effective: sets.permitted, ..sets };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn set_mount(mount: &OwnedFd, attr: libc::mount_attr) -> io::Result<()> {
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
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
