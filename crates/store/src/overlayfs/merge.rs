//! Several layers as one, by hard links.
//!
//! The merged layer looks, over whatever lies below, exactly as the layers did: whiteouts and
//! opaque marks are kept (format: Documentation/filesystems/overlayfs.rst). Layers are written by
//! hostile steps, so no name is followed: every entry is reached from its directory's descriptor.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr,
    flistxattr, fsetxattr, futimens, linkat, mkdirat, openat, statat,
};
use rustix::io::{self, Errno};

use super::{is_whiteout, whiteout};
use crate::StoreError;
use crate::error::At;
use crate::walk::DIRECTORY;

const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// Set by overlayfs on a directory whose listing needs a second look for inode numbers.
const IMPURE: &CStr = c"trusted.overlay.impure";

/// Makes the directory `into` the merge of `layers`, the topmost first. `is_lowest`: nothing lies
/// below the last of them, so that what only hides things can be left out.
pub(super) fn layers(layers: &[impl AsRef<Path>], into: &Path, is_lowest: bool) -> Result<(), StoreError> {
    fs::create_dir(into).at("create", into)?;
    let open = |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).map(Rc::new).at("read", path);
    let sources = layers.iter().map(|layer| open(layer.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut pending = vec![Pending { sources, target: open(into)?, is_lowest, is_opaque: false }];
    while let Some(directory) = pending.pop() {
        // Depth-first, and each directory is opened before it waits: descriptors are bounded by
        // the number of directories along one path and their siblings.
        merge_directory(directory, &mut pending).at("merge layers into", into)?;
    }
    Ok(())
}

/// A directory to be merged.
struct Pending {
    /// The directory in each layer that has it, topmost first, down to where one hides the rest.
    sources: Vec<Rc<OwnedFd>>,
    target: Rc<OwnedFd>,
    /// Nothing lies below the lowest source, or nothing that shows.
    is_lowest: bool,
    /// This very directory has to hide what lies below.
    is_opaque: bool,
}

fn merge_directory(directory: Pending, pending: &mut Vec<Pending>) -> io::Result<()> {
    let Pending { sources, target, is_lowest, is_opaque } = directory;
    let mut seen = std::collections::HashSet::<CString>::new();
    for (at, source) in sources.iter().enumerate() {
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || !seen.insert(name.to_owned()) {
                continue;
            }
            let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push(begin_directory(&sources[at..], name, &target, is_lowest)?);
            } else if !is_whiteout(&stat) {
                linkat(source, name, &target, name, AtFlags::empty())?;
            } else if !is_lowest {
                whiteout(&target, name)?;
            }
        }
    }
    // Last, because filling a directory changes its times.
    if sources.iter().any(|source| is_marked(source, IMPURE)) {
        fsetxattr(&target, IMPURE, b"y", XattrFlags::empty())?;
    }
    if is_opaque {
        fsetxattr(&target, OPAQUE, b"y", XattrFlags::empty())?;
    }
    copy_open(&sources[0], &target)
}

/// Makes the directory `name` in `target` and finds its sources; the first of `layers` has it.
fn begin_directory(
    layers: &[Rc<OwnedFd>],
    name: &CStr,
    target: &OwnedFd,
    parent_is_lowest: bool,
) -> io::Result<Pending> {
    mkdirat(target, name, Mode::RWXU)?;
    let target = Rc::new(openat(target, name, DIRECTORY, Mode::empty())?);
    let mut sources = Vec::new();
    let mut hides_the_rest = false;
    for layer in layers {
        match openat(layer, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            // A file, symlink or whiteout below a directory: overlayfs looks no further down.
            Err(Errno::NOTDIR | Errno::LOOP) => hides_the_rest = true,
            opened => {
                let directory = opened?;
                hides_the_rest = is_marked(&directory, OPAQUE);
                sources.push(Rc::new(directory));
            }
        }
        if hides_the_rest {
            break;
        }
    }
    let is_lowest = parent_is_lowest || hides_the_rest;
    Ok(Pending { sources, target, is_lowest, is_opaque: hides_the_rest && !parent_is_lowest })
}

/// An opaque directory's mark is "y"; "x" only says that whiteouts may be xattrs (Linux 6.8).
fn is_marked(directory: &OwnedFd, mark: &CStr) -> bool {
    let mut value = [0_u8; 8];
    matches!(fgetxattr(directory, mark, &mut value), Ok(1)) && value[0] == b'y'
}

/// Gives the directory `to` the mode, owner, times and extended attributes of `from`.
pub(super) fn copy_attributes(from: &Path, to: &Path) -> Result<(), StoreError> {
    let open = |path| openat(CWD, path, DIRECTORY, Mode::empty()).at("read", path);
    let (from, target) = (open(from)?, open(to)?);
    copy_open(&from, &target).at("copy attributes to", to)
}

fn copy_open(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat: Stat = rustix::fs::fstat(from)?;
    let mut names = vec![0_u8; 64 << 10];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // Overlayfs' own marks belong to a layer, not to the directory's content.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let time = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec.cast_signed() };
    futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}
