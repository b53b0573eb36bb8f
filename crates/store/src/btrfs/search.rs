//! What the filesystem's own trees say of subvolumes. Needs `CAP_SYS_ADMIN`.
//!
//! The formats are those of `<linux/btrfs_tree.h>`: all numbers are little-endian, and an item is found by its
//! key, a triple. A search sees what the kernel has not written to the disk yet, except for file data that waits to be placed.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::io;

use crate::sys::{Search, SearchKey};

/// `BTRFS_ROOT_TREE_OBJECTID`: the tree of all subvolumes.
const SUBVOLUMES: u64 = 1;
/// `BTRFS_ROOT_ITEM_KEY`.
const ROOT_ITEM: u32 = 132;
/// `BTRFS_ROOT_REF_KEY`.
const ROOT_REF: u32 = 156;
/// `BTRFS_EXTENT_DATA_KEY`.
const EXTENT_DATA: u32 = 108;

/// `BTRFS_ORPHAN_OBJECTID`, -5.
const ORPHANS: u64 = u64::MAX - 4;
/// `BTRFS_ORPHAN_ITEM_KEY`.
const ORPHAN_ITEM: u32 = 48;

/// A subvolume in another.
#[derive(Debug)]
pub(super) struct Nested {
    pub(super) id: u64,
    /// The subvolume that it is in, the inode of the directory there, and its name.
    pub(super) parent: u64,
    pub(super) directory: u64,
    pub(super) name: CString,
}

/// Returns the subvolumes in subvolume `id`, and those in them: each after the one that it is in.
pub(super) fn nested(entry: &OwnedFd, id: u64) -> io::Result<Vec<Nested>> {
    let mut found = Vec::new();
    let mut parent = id;
    let mut visited = 0;
    loop {
        items(entry, SUBVOLUMES, [(parent, ROOT_REF, 0), (parent, ROOT_REF, u64::MAX)], 0, |item| {
            // `struct btrfs_root_ref`, then the name.
            if let (Some(directory), Some(Ok(name))) = (number(item.data, 0), item.data.get(18..).map(CString::new)) {
                found.push(Nested { id: item.key.2, parent, directory, name });
            }
        })?;
        let Some(next) = found.get(visited) else { return Ok(found) };
        parent = next.id;
        visited += 1;
    }
}

/// Returns true if there are destroyed subvolumes whose space is not free yet.
pub(super) fn has_destroyed(entry: &OwnedFd) -> io::Result<bool> {
    let mut found = false;
    items(entry, SUBVOLUMES, [(ORPHANS, ORPHAN_ITEM, 0), (ORPHANS, ORPHAN_ITEM, u64::MAX)], 0, |_| found = true)?;
    Ok(found)
}

/// Returns the bytes of file data that subvolume `id` does not share with the one that it was cloned from, if with any.
/// Data that waits to be placed is not counted.
pub(super) fn own_bytes(entry: &OwnedFd, id: u64) -> io::Result<u64> {
    let mut cloned_at = 0;
    // A snapshot's key ends in the generation in which it was made, that of another subvolume in 0.
    items(entry, SUBVOLUMES, [(id, ROOT_ITEM, 0), (id, ROOT_ITEM, u64::MAX)], 0, |item| cloned_at = item.key.2)?;
    let mut inline = 0;
    let mut placed = Vec::new();
    // What has changed since is in blocks that were written since, which are few in a snapshot.
    items(entry, id, [(0, EXTENT_DATA, 0), (u64::MAX, EXTENT_DATA, u64::MAX)], cloned_at + 1, |item| {
        // `struct btrfs_file_extent_item`: a block that was written since has older items too.
        let (kind, generation) = (item.data.get(20), number(item.data, 0));
        match (item.key.1, kind, generation) {
            (EXTENT_DATA, Some(kind), Some(generation)) if generation > cloned_at => match kind {
                0 => inline += item.data.len() as u64 - 21,
                // Where it lies, and how long it is there; 0 is a hole.
                _ => placed.extend(number(item.data, 21).filter(|place| *place != 0).zip(number(item.data, 29))),
            },
            _ => {}
        }
    })?;
    // Several places of several files can have the same data.
    placed.sort_unstable();
    placed.dedup();
    Ok(placed.iter().map(|(_, bytes)| bytes).sum::<u64>() + inline)
}

fn number(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

type Key = (u64, u32, u64);

struct Item<'a> {
    key: Key,
    data: &'a [u8],
}

/// Calls `each` for the items of a tree between two keys, whatever their kind, in blocks of at least this generation.
fn items(
    entry: &OwnedFd,
    tree: u64,
    [from, to]: [Key; 2],
    min_generation: u64,
    mut each: impl FnMut(&Item<'_>),
) -> io::Result<()> {
    /// `struct btrfs_ioctl_search_header`, with numbers as the processor has them.
    const HEADER: usize = 32;
    let mut search = Search::new();
    let mut from = Some(from);
    while let Some((min_object, min_kind, min_offset)) = from {
        search.key = SearchKey {
            tree,
            min_object,
            min_kind,
            min_offset,
            max_object: to.0,
            max_kind: to.1,
            max_offset: to.2,
            min_generation,
            max_generation: u64::MAX,
            items: u32::MAX,
            unused: [0; 9],
        };
        search.run(entry)?;
        from = None;
        let mut rest = &search.buffer[..];
        for _ in 0..search.key.items {
            let (header, behind) = rest.split_at(HEADER);
            let long = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight bytes"));
            let short = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let key = (long(8), short(24), long(16));
            let (data, behind) = behind.split_at(short(28) as usize);
            each(&Item { key, data });
            rest = behind;
            from = after(key);
        }
    }
    Ok(())
}

/// Returns the next key that there can be.
fn after((object, kind, offset): Key) -> Option<Key> {
    /// A kind is one byte.
    const LAST: u32 = 255;
    match (offset.checked_add(1), object.checked_add(1)) {
        (Some(offset), _) => Some((object, kind, offset)),
        (None, _) if kind < LAST => Some((object, kind + 1, 0)),
        (None, object) => object.map(|object| (object, 0, 0)),
    }
}
