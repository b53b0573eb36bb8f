//! What a tree occupies on the disk.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io;

use crate::StoreError;
use crate::error::At;
use crate::parallel::{self, Below};
use crate::sys;
use crate::walk::open_path;

/// Returns the bytes that the tree at `root` occupies; a file with several names counts once.
pub(crate) fn all(root: &Path) -> Result<u64, StoreError> {
    measure(root, |_, _, stat| Ok(blocks(stat)))
}

/// Returns the bytes that the tree at `root` shares with no other, if those are in directories and in what changed at `since`,
/// seconds and nanoseconds as in `st_ctime`, or later.
pub(crate) fn unshared_since(root: &Path, since: (i64, u64)) -> Result<u64, StoreError> {
    measure(root, |directory, name, stat| {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(blocks(stat));
        }
        if (stat.st_ctime, stat.st_ctime_nsec) < since || stat.st_blocks == 0 {
            return Ok(0);
        }
        let file = openat(directory, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        // Blocks count also what is not written yet; a map of the file shows what was there before.
        Ok(blocks(stat).saturating_sub(sys::shared_bytes(&file)?))
    })
}

fn blocks(stat: &Stat) -> u64 {
    const BLOCK: u64 = 512; // st_blocks, stat(2)
    stat.st_blocks.cast_unsigned() * BLOCK
}

/// Returns the sum of what `count` says of each entry of a tree.
fn measure(root: &Path, count: impl Fn(&OwnedFd, &CStr, &Stat) -> io::Result<u64> + Sync) -> Result<u64, StoreError> {
    let bytes = AtomicU64::new(0);
    // Files with several names that were counted.
    let linked: Mutex<HashSet<(u64, u64)>> = Mutex::default();
    let is_first = |stat: &Stat| {
        stat.st_nlink == 1 || linked.lock().unwrap_or_else(PoisonError::into_inner).insert((stat.st_dev, stat.st_ino))
    };
    let tree = open_path(root).at("read", root)?;
    let walked = parallel::walk(vec![tree], (), |place, ()| {
        let Some(directory) = place.directory(0) else { return Ok(Vec::new()) };
        let mut directories = Vec::new();
        let mut sum = 0;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory || is_first(&stat) {
                sum += count(directory, name, &stat)?;
            }
            if is_directory {
                directories.push(Below { name: name.to_owned(), is_in: vec![true], state: () });
            }
        }
        bytes.fetch_add(sum, Ordering::Relaxed);
        Ok(directories)
    });
    walked.at("measure", root)?;
    Ok(bytes.into_inner())
}
