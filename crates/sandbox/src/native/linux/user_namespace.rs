//! Makes user namespaces, and takes the ranges of ids that they map to.
//!
//! A process with threads cannot make one, so the helper's binary is started for it: it goes into a new namespace,
//! the caller writes the map and opens the namespace, and it ends.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, exit};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::sandbox::helper_command;
use super::sys;
use crate::ids::{IDS, RANGES, Slot, first_of};

/// Where a range is locked: an empty file each. Gone with the machine's uptime, as its processes are.
const PLACE: &str = "/run/kiln/ids";
/// `argv[0]` of the process that makes a namespace.
pub(super) const NAME: &str = "kiln: user namespace";

/// Takes a free range and makes a namespace that maps to it.
pub(super) fn make(helper: &OwnedFd) -> io::Result<Slot> {
    let (range, lock) = take_range(Path::new(PLACE))?;
    let first = first_of(range);
    Ok(Slot { first, namespace: namespace(helper, first)?, lock })
}

/// Locks the first range that nobody has. It is free again when the last copy of the descriptor is closed, whoever dies.
fn take_range(place: &Path) -> io::Result<(u32, OwnedFd)> {
    DirBuilder::new().recursive(true).mode(0o700).create(place)?;
    for range in 0..RANGES {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(place.join(range.to_string()), flags, Mode::from_raw_mode(0o600))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            locked => return locked.map(|()| (range, file)).map_err(Into::into),
        }
    }
    Err(rustix::io::Errno::USERS.into())
}

fn namespace(helper: &OwnedFd, first: u32) -> io::Result<OwnedFd> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = helper_command(helper, NAME, theirs.into()).spawn()?;
    let made = open_mapped(&mut ours, &child, first);
    drop(ours);
    child.wait()?;
    made
}

fn open_mapped(link: &mut UnixStream, child: &Child, first: u32) -> io::Result<OwnedFd> {
    let mut errno = [0; 4];
    link.read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    // It lives until the link is closed, so the number is still its own.
    let process = format!("/proc/{}", child.id());
    for map in ["uid_map", "gid_map"] {
        // The kernel takes a map by one write.
        File::options()
            .write(true)
            .open(format!("{process}/{map}"))?
            .write_all(format!("0 {first} {IDS}").as_bytes())?;
    }
    Ok(File::open(format!("{process}/ns/user"))?.into())
}

/// Is the process that makes a namespace: says what came of it on `link`, then waits until nobody needs it.
pub(super) fn hold(link: OwnedFd) -> ! {
    let made = leave_chroot().and_then(|()| sys::unshare(UnshareFlags::NEWUSER));
    let errno = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let mut link = UnixStream::from(link);
    if link.write_all(&errno.to_ne_bytes()).is_ok() {
        let _ = link.read(&mut [0]);
    }
    exit(0);
}

/// The kernel lets nobody make a user namespace whose root directory is not that of its mount namespace, as in a rescue system.
/// Whoever enters a mount namespace, be it the one that he is in, gets its root.
fn leave_chroot() -> io::Result<()> {
    let mounts = File::open("/proc/self/ns/mnt")?;
    Ok(move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Makes the calling process root in `namespace`, with every capability there and none outside.
pub(super) fn enter(namespace: &OwnedFd) -> io::Result<()> {
    use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_one_owner_and_is_free_when_its_last_descriptor_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("run/ids");
        let (one, two) = (take_range(&place).unwrap(), take_range(&place).unwrap());
        assert_eq!((one.0, two.0), (0, 1));
        let copy = one.1.try_clone().unwrap();
        drop(one);
        assert_eq!(take_range(&place).unwrap().0, 2);
        drop(copy);
        assert_eq!(take_range(&place).unwrap().0, 0);
    }
}
