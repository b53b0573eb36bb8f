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

/// Takes a free range and makes a namespace that maps to it. In a user namespace there are none to take: then it is our own ids,
/// as many as a step can have, over which the namespace made has no rights outside of it.
pub(super) fn make(helper: &OwnedFd) -> io::Result<Slot> {
    match ids_of_this_namespace()? {
        None => {
            let (range, lock) = take_range(Path::new(PLACE))?;
            let first = first_of(range);
            let map = [(0, first, IDS)];
            Ok(Slot { first, namespace: namespace(helper, [&map, &map])?, lock: Some(lock), count: IDS })
        }
        Some(maps) => {
            let count = |map: &[Extent]| map.last().map_or(0, |(first, _, count)| first + count);
            let namespace = namespace(helper, maps.each_ref().map(Vec::as_slice))?;
            Ok(Slot { first: 0, namespace, lock: None, count: count(&maps[0]).min(count(&maps[1])) })
        }
    }
}

/// Returns whether this process is in another user namespace than the host's.
pub(super) fn is_ours() -> bool {
    ids_of_this_namespace().is_ok_and(|maps| maps.is_some())
}

/// A line of a map: inside, outside, count.
type Extent = (u32, u32, u32);

/// Returns the maps that give a namespace the ids that this one has; `None` in the host's, which has all.
fn ids_of_this_namespace() -> io::Result<Option<[Vec<Extent>; 2]>> {
    let map = |file: &str| Ok::<_, io::Error>(same(&std::fs::read_to_string(file)?));
    let (users, groups) = (map("/proc/self/uid_map")?, map("/proc/self/gid_map")?);
    Ok(users.zip(groups).map(|(users, groups)| [users, groups]))
}

/// Returns the map that leaves ids as they are in a namespace with the map `ours`: those from 0 to the first gap, 65536 at most.
/// The kernel takes no line that spans two of `ours`. `None`: `ours` is the host's.
fn same(ours: &str) -> Option<Vec<Extent>> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u32>);
        Some((fields.next()?.ok()?, fields.nth(1)?.ok()?))
    };
    let mut ranges: Vec<_> = ours.lines().filter_map(line).collect();
    ranges.sort_unstable();
    let (mut map, mut end) = (Vec::new(), 0);
    for (first, count) in ranges {
        if count == u32::MAX {
            return None;
        }
        let count = count.min(IDS - end);
        if first == end && count > 0 {
            map.push((first, first, count));
            end += count;
        }
    }
    Some(map)
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

/// Makes a namespace with these maps of users and groups.
fn namespace(helper: &OwnedFd, maps: [&[Extent]; 2]) -> io::Result<OwnedFd> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = helper_command(helper, NAME, theirs.into()).spawn()?;
    let made = open_mapped(&mut ours, &child, maps);
    drop(ours);
    child.wait()?;
    made
}

fn open_mapped(link: &mut UnixStream, child: &Child, maps: [&[Extent]; 2]) -> io::Result<OwnedFd> {
    let mut errno = [0; 4];
    link.read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    // It lives until the link is closed, so the number is still its own.
    let process = format!("/proc/{}", child.id());
    for (file, map) in ["uid_map", "gid_map"].into_iter().zip(maps) {
        let lines: String =
            map.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
        // The kernel takes a map by one write.
        File::options().write(true).open(format!("{process}/{file}"))?.write_all(lines.as_bytes())?;
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
    fn a_namespace_below_has_the_ids_of_ours_from_0_to_the_first_gap() {
        assert_eq!(same("         0          0 4294967295\n"), None);
        let all = vec![(0, 0, 1), (1, 1, 65_535)];
        assert_eq!(same("0 1000 1\n1 100000 65536\n").unwrap(), all);
        assert_eq!(same("1 100000 65535\n0 1000 1\n").unwrap(), all);
        assert_eq!(same("0 100000 70000\n70000 5 1\n").unwrap(), [(0, 0, 65_536)]);
        assert_eq!(same("0 1000 1\n2 100000 65536\n").unwrap(), [(0, 0, 1)]);
        assert_eq!(same("5 1000 1\n").unwrap(), []);
    }

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
