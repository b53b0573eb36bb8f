//! System calls that no safe wrapper offers.
#![expect(unsafe_code, reason = "the one place of this crate for it")]

use std::os::fd::OwnedFd;

use rustix::io::{self, Errno};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use crate::mount::OWN_MOUNTS;

/// Gives the calling thread a mount namespace, root and working directory of its own.
pub(crate) fn unshare_mounts_of_this_thread() -> Result<(), Errno> {
    // SAFETY: unsound only with `UnshareFlags::FILES`, after which descriptors owned by other
    // threads' objects would mean something else here. OWN_MOUNTS holds NEWNS and FS alone.
    unsafe { rustix::thread::unshare_unsafe(OWN_MOUNTS) }
}

/// How many extents are asked for at once.
const EXTENTS: usize = 32;

/// `struct fiemap` of `<linux/fiemap.h>` without the extents, by whose size the call is numbered.
#[repr(C)]
#[derive(Default)]
struct MapHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Map {
    header: MapHeader,
    extents: [Extent; EXTENTS],
}

/// Returns how many bytes of a file lie in blocks that other files have too, as far as the filesystem has placed them.
pub(crate) fn shared_bytes(file: &OwnedFd) -> io::Result<u64> {
    const FIEMAP: Opcode = opcode::read_write::<MapHeader>(b'f', 11);
    const SHARED: u32 = 0x2000; // FIEMAP_EXTENT_SHARED
    const LAST: u32 = 1; // FIEMAP_EXTENT_LAST
    let mut shared = 0;
    let mut start = 0;
    loop {
        let header =
            MapHeader { start, length: u64::MAX - start, extent_count: EXTENTS as u32, ..MapHeader::default() };
        let mut map = Map { header, extents: [Extent::default(); EXTENTS] };
        // SAFETY: FS_IOC_FIEMAP reads a `MapHeader` and writes it and at most `extent_count` extents behind it: `map` has
        // room for these. Both types are plain integers without padding, so whatever is written is valid.
        unsafe { ioctl(file, Updater::<FIEMAP, Map>::new(&mut map)) }?;
        let extents = &map.extents[..EXTENTS.min(map.header.mapped_extents as usize)];
        shared += extents.iter().filter(|extent| extent.flags & SHARED != 0).map(|extent| extent.length).sum::<u64>();
        match extents.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Ok(shared),
        }
    }
}
