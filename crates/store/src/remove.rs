//! Deleting trees: invisible at once, then emptied.
//!
//! A hostile step can nest directories deeper than any stack or path, so nothing here recurses: a
//! directory that is not empty moves up into `trash/` and waits there for its turn.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::btrfs;
use crate::error::At;
use crate::layout::Layout;
use crate::lease::try_lock;
use crate::walk::DIRECTORY;
use crate::{Name, Store, StoreError};

/// Removes the directory `dir` of the store: gone by one rename, then deleted. Success if it does
/// not exist.
pub(crate) fn tree(layout: &Layout, dir: &Path) -> Result<(), StoreError> {
    let Some(place) = to_trash(layout, dir)? else { return Ok(()) };
    // Whoever opens the store meanwhile need not help.
    let _busy = busy(layout, FlockOperation::NonBlockingLockShared)?;
    delete(layout, &place)
}

/// Renames the directory `dir` of the store into the trash and returns where it is now; `None` if it does not exist.
pub(crate) fn to_trash(layout: &Layout, dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let place = layout.trash().join(unique());
    match fs::rename(dir, &place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        renamed => renamed.at("remove", dir).map(|()| Some(place)),
    }
}

/// Deletes a directory that no one looks into any more, in place. Success if it does not exist.
pub(crate) fn below(layout: &Layout, dir: &Path) -> Result<(), StoreError> {
    // Most are empty or hold one empty directory; only the others are worth a rename.
    let only_child = dir.join("work");
    let _ = fs::remove_dir(only_child);
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => tree(layout, dir),
        Ok(()) => Ok(()),
    }
}

/// Deletes what earlier processes left in the trash, unless someone is deleting there now.
pub(crate) fn empty_trash(store: &Store) -> Result<(), StoreError> {
    let trash = store.layout.trash();
    let Some(_busy) = busy(&store.layout, FlockOperation::NonBlockingLockExclusive)? else { return Ok(()) };
    for entry in fs::read_dir(&trash).at("read", &trash)? {
        // A tree may be more than its directory.
        store.backend.remove(&Name::trash(&entry.at("read", &trash)?.file_name().to_string_lossy()))?;
    }
    Ok(())
}

/// Locks the trash; `None` if somebody else has it.
fn busy(layout: &Layout, operation: FlockOperation) -> Result<Option<File>, StoreError> {
    let trash = layout.trash();
    let directory = File::open(&trash).at("open", &trash)?;
    Ok(try_lock(&directory, operation).at("lock", &trash)?.then_some(directory))
}

/// A name that no other process or thread uses, in whatever pid namespace it is.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    format!("{}-{}-{}{:09}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed), time.tv_sec, time.tv_nsec)
}

/// Deletes what is at `place` in the trash.
pub(crate) fn delete(layout: &Layout, place: &Path) -> Result<(), StoreError> {
    let trash = layout.trash();
    let open_trash = openat(CWD, &trash, DIRECTORY, Mode::empty()).at("read", &trash)?;
    let mut pending = vec![place.file_name().unwrap_or_default().to_owned()];
    while let Some(name) = pending.pop() {
        empty(&open_trash, &name, &mut pending).at("delete", place)?;
    }
    Ok(())
}

/// Empties and removes the directory `name` of the trash. Directories in it that are not empty
/// become pending in the trash itself.
fn empty(trash: &OwnedFd, name: &OsStr, pending: &mut Vec<std::ffi::OsString>) -> Result<(), Errno> {
    // Another process may be emptying the same trash.
    let gone_is_fine = |result: Result<(), Errno>| match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    };
    let directory = match openat(trash, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return gone_is_fine(unlinkat(trash, name, AtFlags::empty())),
        opened => opened?,
    };
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name();
        if matches!(child.to_bytes(), b"." | b"..") {
            continue;
        }
        let known_as_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => false,
            _ => {
                gone_is_fine(unlinkat(&directory, child, AtFlags::empty()))?;
                continue;
            }
        };
        if !known_as_directory && unlinkat(&directory, child, AtFlags::empty()).is_ok() {
            continue;
        }
        match unlinkat(&directory, child, AtFlags::REMOVEDIR) {
            // What is in a subvolume cannot move out of it. It goes as a whole, also where a step had it protected.
            Err(_) if btrfs::destroy(&directory, child)? => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let place = unique();
                gone_is_fine(renameat(&directory, child, trash, &place))?;
                pending.push(OsStr::from_bytes(place.as_bytes()).to_owned());
            }
            removed => gone_is_fine(removed)?,
        }
    }
    match unlinkat(trash, name, AtFlags::REMOVEDIR) {
        // A process that is just being killed wrote into it: once more.
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            pending.push(name.to_owned());
            Ok(())
        }
        removed => gone_is_fine(removed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: dir.path().to_owned() };
        for path in layout.directories() {
            fs::create_dir(path).unwrap();
        }
        let victim = layout.drafts().join("deep");
        fs::create_dir(&victim).unwrap();
        let mut at = openat(CWD, &victim, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..2_500 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            openat(&at, "file", rustix::fs::OFlags::CREATE, Mode::RUSR).unwrap();
            at = openat(&at, "directory", DIRECTORY, Mode::empty()).unwrap();
        }
        tree(&layout, &victim).unwrap();
        assert!(!victim.exists());
        assert_eq!(fs::read_dir(layout.trash()).unwrap().count(), 0);
    }
}
