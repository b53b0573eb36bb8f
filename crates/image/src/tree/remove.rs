//! Removing what is in the way, and what a whiteout hides.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::cursor::Missing;
use super::{Found, Tree, refused, remember, write_error};
use crate::unpack::UnpackError;

/// What the current layer has made, so that its own whiteouts spare it.
///
/// Eight bytes for each name, not the name: layers can have millions. Two names with one hash would be
/// needed for a mistake, and the hash's key is a secret of this process.
#[derive(Default)]
pub(super) struct Made {
    keys: HashSet<u64>,
    hasher: RandomState,
}

impl Made {
    pub(super) fn note(&mut self, directory: u64, name: &[u8]) {
        self.keys.insert(self.hasher.hash_one((directory, name)));
    }

    fn has(&self, directory: u64, name: &[u8]) -> bool {
        self.keys.contains(&self.hasher.hash_one((directory, name)))
    }
}

impl Tree {
    /// Obeys the whiteout `name` in the directory `parent`.
    pub(super) fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let hidden = &name[4..];
        let opaque = hidden == b".wh..opq";
        // The rest are the notes of a filesystem of old.
        if hidden.starts_with(b".wh.") && !opaque {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(name, "it hides no file"));
        }
        let Self { cursor, targets, directories, remembered_bytes, limits, made, .. } = self;
        // Below the first layer there is nothing.
        let Some(made) = made else { return Ok(()) };
        let mut note = |path: &[u8], found: Found| remember(directories, remembered_bytes, limits, path, found);
        if !cursor.walk(parent, Missing::Stop, &mut note)? {
            return Ok(());
        }
        targets.rewind();
        cursor.forget_below();
        let removed = if opaque {
            remove_content(cursor.fd(), cursor.inode(), Some(made)).map(drop)
        } else {
            remove(cursor.fd(), cursor.inode(), hidden, Some(made)).map(drop)
        };
        removed.map_err(|error| write_error("remove what is hidden by", &cursor.path_of(name), error))
    }
}

/// Removes `name`, with all that is in it, but not what `keep` says. Returns true if it is gone.
pub(super) fn remove(parent: BorrowedFd<'_>, inode: u64, name: &[u8], keep: Option<&Made>) -> io::Result<bool> {
    let kept = keep.is_some_and(|keep| keep.has(inode, name));
    if !kept {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP) if kept => return Ok(false),
        Err(Errno::NOENT) => return Ok(true),
        // Without privilege, a closed directory must be opened to be emptied.
        Err(Errno::ACCESS) if !kept => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(&directory)?;
    if !kept && !rustix::process::geteuid().is_root() {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    let empty = remove_content(directory.as_fd(), stat.st_ino, keep)?;
    if kept || !empty {
        return Ok(false);
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Removes all that is in a directory. Returns true if it is empty now. Not deeper than the tree's own limit.
fn remove_content(directory: BorrowedFd<'_>, inode: u64, keep: Option<&Made>) -> io::Result<bool> {
    let mut empty = true;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            empty &= remove(directory, inode, name, keep)?;
        }
    }
    Ok(empty)
}
