//! Several layers as one directory, by hard links.
//!
//! The format of layers is that of Documentation/filesystems/overlayfs.rst. They are written by hostile steps, so all
//! of them are walked side by side as [`parallel`] does it: each directory of the result is made once, complete.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, XattrFlags, fgetxattr, fsetxattr, linkat, llistxattr, lremovexattr, mkdirat, statat,
};
use rustix::io::{self, Errno};

use super::{is_whiteout, whiteout};
use crate::StoreError;
use crate::attributes::{self, Marks};
use crate::copy::{self, Content};
use crate::error::At;
use crate::parallel::{self, Below, Place};
use crate::user_namespace::overlay_marks;
use crate::walk::open_path;

/// "y": overlayfs looks no further down for entries of this directory.
const OPAQUE: &str = "opaque";
/// Set by overlayfs on a directory whose listing needs a second look for inode numbers.
const IMPURE: &str = "impure";
/// Says where a directory was copied up from; empty: unknown. Overlayfs lists a directory that only one
/// layer has as it is, whiteouts too, unless it has this mark. Merging can leave such a directory.
const ORIGIN: &str = "origin";

/// What layers are merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// A layer that looks, over whatever lies below, exactly as the layers did.
    Layer {
        /// Nothing lies below, so that what only hides things can be left out.
        is_lowest: bool,
    },
    /// What overlayfs shows of the layers, without a trace of overlayfs. Its marks on files of all layers but the lowest are
    /// removed; the lowest has none.
    Tree,
}

/// What a directory is told by the one that it is in.
struct Hiding {
    /// A layer below those that have the directory has something else in its place.
    is_closed: bool,
    /// Nothing that lies below the merged layer shows here.
    nothing_below: bool,
}

/// Makes the directory `into` the merge of `layers`, the topmost first.
pub(crate) fn layers(layers: &[impl AsRef<Path>], into: &Path, merged: Merged) -> Result<(), StoreError> {
    fs::create_dir(into).at("create", into)?;
    let merge = || -> io::Result<()> {
        let mut trees = layers.iter().map(|layer| open_path(layer.as_ref())).collect::<io::Result<Vec<_>>>()?;
        trees.push(open_path(into)?);
        let root = Hiding { is_closed: false, nothing_below: merged != Merged::Layer { is_lowest: false } };
        let layers = layers.len();
        parallel::walk(trees, root, |place, hiding| Merge { place, layers, merged }.directory(&hiding))
    };
    merge().at("merge layers into", into)
}

/// The merge of one directory.
struct Merge<'a> {
    /// The layers, and the result behind them.
    place: &'a Place,
    layers: usize,
    merged: Merged,
}

impl Merge<'_> {
    /// Makes all that is in the directory but the entries of its subdirectories, which are returned.
    fn directory(&self, hiding: &Hiding) -> io::Result<Vec<Below<Hiding>>> {
        let (Some(target), (sources, is_opaque)) = (self.place.directory(self.layers), self.sources()) else {
            return Ok(Vec::new());
        };
        let is_opaque = is_opaque || hiding.is_closed;
        let nothing_below = hiding.nothing_below || is_opaque;
        let mut directories: Vec<Below<Hiding>> = Vec::new();
        let mut has_whiteouts = false;
        // What higher layers have: for a directory, which of the above.
        let mut known: HashMap<CString, Option<usize>> = HashMap::new();
        for &(layer, source) in &sources {
            for entry in Dir::read_from(source)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let kind = copy::kind(source, &entry)?;
                if let Some(above) = known.get(name) {
                    if let Some(above) = above.map(|at| &mut directories[at])
                        && !above.state.is_closed
                    {
                        above.is_in[layer] = kind == FileType::Directory;
                        above.state.is_closed = kind != FileType::Directory;
                    }
                    continue;
                }
                let mut directory = None;
                if kind == FileType::Directory {
                    mkdirat(target, name, Mode::RWXU)?;
                    let mut is_in = vec![false; self.layers + 1];
                    (is_in[layer], is_in[self.layers]) = (true, true);
                    directory = Some(directories.len());
                    let state = Hiding { is_closed: false, nothing_below };
                    directories.push(Below { name: name.to_owned(), is_in, state });
                } else if kind != FileType::CharacterDevice
                    || !is_whiteout(&statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?)
                {
                    self.link(layer, source, target, name)?;
                } else if !nothing_below {
                    whiteout(target, name)?;
                    has_whiteouts = true;
                }
                if sources.len() > 1 {
                    known.insert(name.to_owned(), directory);
                }
            }
        }
        if self.merged != Merged::Tree {
            let mark = |mark, value: &[u8]| fsetxattr(target, named(mark), value, XattrFlags::empty());
            if is_opaque {
                mark(OPAQUE, b"y")?;
            }
            if sources.iter().any(|(_, source)| is_marked(source, IMPURE)) {
                mark(IMPURE, b"y")?;
            }
            if has_whiteouts {
                mark(ORIGIN, b"")?;
            }
        }
        // Nothing more is made in it, and what is below it does not change its times.
        if let Some((_, highest)) = sources.first() {
            attributes::copy(highest, target, Marks::Dropped)?;
        }
        Ok(directories)
    }

    /// Returns the layers whose entries show in the directory, and whether the lowest of them hides what is below.
    fn sources(&self) -> (Vec<(usize, &OwnedFd)>, bool) {
        let mut sources = Vec::new();
        for layer in 0..self.layers {
            let Some(source) = self.place.directory(layer) else { continue };
            sources.push((layer, source));
            if is_marked(source, OPAQUE) {
                return (sources, true);
            }
        }
        (sources, false)
    }

    /// Gives the file `name` of `source` the same name in `target`: a hard link, or a copy of a file that
    /// has all the names that the filesystem allows (65 000 on ext4) or may not have more (`chattr +i`).
    fn link(&self, layer: usize, source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
        if self.merged == Merged::Tree && layer + 1 < self.layers {
            remove_marks(source, name)?;
        }
        match linkat(source, name, target, name, AtFlags::empty()) {
            Err(Errno::MLINK | Errno::PERM) => copy::file(source, target, name, Content::Shared),
            linked => linked,
        }
    }
}

/// Marks a directory as overlayfs does.
pub(super) fn mark(directory: &Path) -> io::Result<()> {
    fsetxattr(open_path(directory)?, named(OPAQUE), b"y", XattrFlags::empty())
}

/// Returns the name of the attribute that is a mark.
fn named(mark: &str) -> String {
    format!("{}{mark}", overlay_marks())
}

/// An opaque directory's mark is "y"; "x" only says that whiteouts may be xattrs (Linux 6.8).
fn is_marked(directory: &OwnedFd, mark: &str) -> bool {
    let mut value = [0_u8; 8];
    matches!(fgetxattr(directory, named(mark), &mut value), Ok(1)) && value[0] == b'y'
}

/// Removes what overlayfs notes on a file that it copied up.
fn remove_marks(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut names = vec![0_u8; 64 << 10]; // XATTR_LIST_MAX
    let length = match llistxattr(&*path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if name.to_bytes().starts_with(overlay_marks().as_bytes()) {
            lremovexattr(&*path, name)?;
        }
    }
    Ok(())
}
