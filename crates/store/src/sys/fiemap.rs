//! Where a file's data lies.

use std::os::fd::OwnedFd;

use rustix::io;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

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
