//! Several layers as one, by hard links.
//!
//! The merged layer looks, over whatever lies below, exactly as the layers did: whiteouts and
//! opaque marks are kept (format: Documentation/filesystems/overlayfs.rst). Layers are written by
//! hostile steps, so no name is followed, and neither depth nor width of a tree costs descriptors:
//! layers are added one by one, the topmost first, each by a walk that has only the directory at
//! hand open. What is there already hides what comes.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat, XattrFlags, fgetxattr, fsetxattr, linkat, mkdirat, statat};
use rustix::io::{self, Errno};

use super::{is_whiteout, whiteout};
use crate::StoreError;
use crate::attributes;
use crate::error::At;
use crate::walk::{open, open_path};

/// "y": overlayfs looks no further down for entries of this directory.
const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// Set by overlayfs on a directory whose listing needs a second look for inode numbers.
const IMPURE: &CStr = c"trusted.overlay.impure";
/// Says where a directory was copied up from; empty: unknown. Overlayfs lists a directory that only one
/// layer has as it is, whiteouts too, unless it has this mark. Merging can leave such a directory.
const ORIGIN: &CStr = c"trusted.overlay.origin";

/// Makes the directory `into` the merge of `layers`, the topmost first. `is_lowest`: nothing lies
/// below the last of them, so that what only hides things can be left out.
pub(super) fn layers(layers: &[impl AsRef<Path>], into: &Path, is_lowest: bool) -> Result<(), StoreError> {
    fs::create_dir(into).at("create", into)?;
    let mut has_whiteouts = false;
    for (at, layer) in layers.iter().enumerate() {
        let is_first = at == 0;
        has_whiteouts |= add(layer.as_ref(), into, is_first).at("merge layers into", into)?;
    }
    if has_whiteouts {
        tidy(into, is_lowest).at("merge layers into", into)?;
    }
    Ok(())
}

/// A directory of a layer on its way into the merged one.
struct Adding {
    source: OwnedFd,
    target: OwnedFd,
}

/// What is left to do in a directory.
struct Level {
    /// Its subdirectories still to be added.
    directories: Vec<CString>,
    /// The directory in the merged layer as a higher layer left it; `None`: this layer is the first that has it.
    before: Option<Stat>,
    has_whiteouts: bool,
}

/// Adds a layer below those that `into` has. Returns whether a whiteout was made.
fn add(layer: &Path, into: &Path, is_first: bool) -> io::Result<bool> {
    let mut at = Adding { source: open_path(layer)?, target: open_path(into)? };
    let mut has_whiteouts = false;
    let mut levels = vec![at.enter(is_first)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.directories.pop() {
            let Some((below, is_new)) = at.descend(&name)? else { continue };
            at = below;
            levels.push(at.enter(is_new)?);
        } else {
            at.leave(level)?;
            has_whiteouts |= level.has_whiteouts;
            levels.pop();
            if !levels.is_empty() {
                at = Adding { source: open(&at.source, c"..")?, target: open(&at.target, c"..")? };
            }
        }
    }
    Ok(has_whiteouts)
}

impl Adding {
    /// Adds the entries of a directory but its subdirectories.
    fn enter(&self, is_new: bool) -> io::Result<Level> {
        let before = if is_new { None } else { Some(rustix::fs::fstat(&self.target)?) };
        let mut level = Level { directories: Vec::new(), before, has_whiteouts: false };
        for entry in Dir::read_from(&self.source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(&self.source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let added = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                level.directories.push(name.to_owned());
                continue;
            } else if is_whiteout(&stat) {
                whiteout(&self.target, name).inspect(|()| level.has_whiteouts = true)
            } else {
                link(&self.source, &self.target, name)
            };
            match added {
                // A directory of a higher layer: overlayfs looks for its entries no further down than here.
                Err(Errno::EXIST) => self.close(name)?,
                added => added?,
            }
        }
        Ok(level)
    }

    /// Marks the directory `name` of the merged layer as opaque, if it is one.
    fn close(&self, name: &CStr) -> io::Result<()> {
        match open(&self.target, name) {
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
            directory => fsetxattr(directory?, OPAQUE, b"y", XattrFlags::empty()),
        }
    }

    /// Goes into the directory `name`, made if no higher layer has it; `None` if a higher layer hides it.
    fn descend(&self, name: &CStr) -> io::Result<Option<(Self, bool)>> {
        let is_new = match mkdirat(&self.target, name, Mode::RWXU) {
            Err(Errno::EXIST) => false,
            made => made.map(|()| true)?,
        };
        let target = match open(&self.target, name) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            opened => opened?,
        };
        if !is_new && is_marked(&target, OPAQUE) {
            return Ok(None);
        }
        Ok(Some((Self { source: open(&self.source, name)?, target }, is_new)))
    }

    /// Sets the attributes of a directory: last, because filling it changes its times.
    fn leave(&self, level: &Level) -> io::Result<()> {
        for mark in [IMPURE, OPAQUE] {
            if is_marked(&self.source, mark) {
                fsetxattr(&self.target, mark, b"y", XattrFlags::empty())?;
            }
        }
        if level.has_whiteouts {
            fsetxattr(&self.target, ORIGIN, b"", XattrFlags::empty())?;
        }
        match &level.before {
            Some(before) => attributes::set_times(&self.target, before),
            None => attributes::copy(&self.source, &self.target),
        }
    }
}

/// Gives the file `name` of `source` the same name in `target`: a hard link, or a copy of a file that
/// has all the names that the filesystem allows (65 000 on ext4).
fn link(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    match linkat(source, name, target, name, AtFlags::empty()) {
        Err(Errno::MLINK) => attributes::copy_file(source, target, name),
        linked => linked,
    }
}

/// Removes whiteouts that have nothing to hide: those in opaque directories and, if `is_lowest`, all.
fn tidy(into: &Path, is_lowest: bool) -> io::Result<()> {
    let mut directory = open_path(into)?;
    // The subdirectories still to be visited, one list a level, and whether something may lie below.
    let mut waiting = vec![tidy_directory(&directory, is_lowest)?];
    while let Some((names, nothing_below)) = waiting.last_mut() {
        if let Some(name) = names.pop() {
            let nothing_below = *nothing_below;
            directory = open(&directory, &name)?;
            waiting.push(tidy_directory(&directory, nothing_below)?);
        } else {
            waiting.pop();
            if !waiting.is_empty() {
                directory = open(&directory, c"..")?;
            }
        }
    }
    Ok(())
}

fn tidy_directory(directory: &OwnedFd, nothing_below: bool) -> io::Result<(Vec<CString>, bool)> {
    let nothing_below = nothing_below || is_marked(directory, OPAQUE);
    let before = rustix::fs::fstat(directory)?;
    let mut directories = Vec::new();
    let mut has_changed = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match entry.file_type() {
            FileType::Directory => directories.push(name.to_owned()),
            FileType::CharacterDevice | FileType::Unknown => {
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    directories.push(name.to_owned());
                } else if nothing_below && is_whiteout(&stat) {
                    rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
                    has_changed = true;
                }
            }
            _ => {}
        }
    }
    if has_changed {
        rustix::fs::fremovexattr(directory, ORIGIN)?;
        attributes::set_times(directory, &before)?;
    }
    Ok((directories, nothing_below))
}

/// An opaque directory's mark is "y"; "x" only says that whiteouts may be xattrs (Linux 6.8).
fn is_marked(directory: &OwnedFd, mark: &CStr) -> bool {
    let mut value = [0_u8; 8];
    matches!(fgetxattr(directory, mark, &mut value), Ok(1)) && value[0] == b'y'
}
