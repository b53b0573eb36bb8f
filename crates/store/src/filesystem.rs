//! What backends ask of the filesystem that their store is on.

use std::fs::File;
use std::path::Path;

use rustix::fs::StatFs;

use crate::error::At;
use crate::{Space, StoreError};

/// Returns true if what was asked is on btrfs.
pub(crate) fn is_btrfs(stat: &StatFs) -> bool {
    const BTRFS_SUPER_MAGIC: u32 = 0x9123_683E; // statfs(2)
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magic number has 32 bits")]
    let magic = stat.f_type as u32;
    magic == BTRFS_SUPER_MAGIC
}

/// Waits until the whole filesystem of `root` is on the disk.
pub(crate) fn flush(root: &Path) -> Result<(), StoreError> {
    let directory = File::open(root).at("open", root)?;
    rustix::fs::syncfs(&directory).at("flush", root)
}

/// Returns the room on the filesystem of `root`.
pub(crate) fn space(root: &Path) -> Result<Space, StoreError> {
    let stat = rustix::fs::statvfs(root).at("ask the space of", root)?;
    Ok(Space { total_bytes: stat.f_blocks * stat.f_frsize, free_bytes: stat.f_bavail * stat.f_frsize })
}
