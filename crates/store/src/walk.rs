//! Reading trees that hostile steps wrote: no name is followed, no depth overflows a stack.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io;

use crate::StoreError;
use crate::error::At;

/// How a directory is opened in order to read it.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns the bytes that the tree at `root` occupies on the disk; a file with several names counts once.
pub(crate) fn size_bytes(root: &Path) -> Result<u64, StoreError> {
    const BLOCK: u64 = 512; // st_blocks, stat(2)
    let top = openat(CWD, root, DIRECTORY, Mode::empty()).at("read", root)?;
    let mut linked = HashSet::new();
    let mut bytes = 0;
    let mut pending = vec![Rc::new(top)];
    while let Some(directory) = pending.pop() {
        let mut visit = || -> io::Result<()> {
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if is_directory || stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                    bytes += stat.st_blocks.cast_unsigned() * BLOCK;
                }
                if is_directory {
                    pending.push(Rc::new(openat(&directory, name, DIRECTORY, Mode::empty())?));
                }
            }
            Ok(())
        };
        visit().at("measure", root)?;
    }
    Ok(bytes)
}
