//! Walks a result's tree beside the one that it was made from, and sees what differs.
//!
//! Trees were written by hostile steps: no name is followed, nothing but regular files and directories is opened, and
//! only the directories at hand are open, however deep a tree is.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Stat, fgetxattr, readlinkat};
use rustix::io::Errno;

use crate::user_namespace::overlay_marks;
use crate::walk::{self, is_directory, kind};

/// Identifies a file among the others of its tree.
pub(super) type Inode = (u64, u64);

pub(super) fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// One of the trees: its directory at the place where the walk is, or the last one above that it has.
pub(super) struct Side {
    directory: OwnedFd,
    /// How many levels the walk is below `directory`, in places that this tree does not have.
    below: usize,
}

impl Side {
    pub(super) fn new(root: &OwnedFd) -> io::Result<Self> {
        // Mounts are opened as paths only.
        Ok(Self { directory: walk::open(root, c".")?, below: 0 })
    }

    /// Returns the directory, if the tree has this place.
    pub(super) fn here(&self) -> Option<&OwnedFd> {
        (self.below == 0).then_some(&self.directory)
    }

    /// Goes to the directory `name`, or below what this tree has.
    fn descend(&mut self, name: Option<&CStr>) -> io::Result<()> {
        match name {
            Some(name) if self.below == 0 => self.directory = walk::open(&self.directory, name)?,
            _ => self.below += 1,
        }
        Ok(())
    }

    fn ascend(&mut self) -> io::Result<()> {
        match self.below.checked_sub(1) {
            Some(above) => self.below = above,
            None => self.directory = walk::open(&self.directory, c"..")?,
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<CString>> {
        self.here().map_or(Ok(Vec::new()), |directory| Ok(walk::names(directory)?))
    }

    fn look(&self, name: &CStr) -> io::Result<Option<Stat>> {
        self.here().map_or(Ok(None), |directory| Ok(walk::look(directory, name)?))
    }
}

/// The trees to be walked through side by side.
pub(super) struct Trees {
    /// What the other was made from. `None`: all is new.
    pub(super) below: Option<OwnedFd>,
    pub(super) tree: OwnedFd,
    /// Names all that may differ, see [`crate::Changes::own`].
    pub(super) own: Option<OwnedFd>,
}

/// A walk through the trees.
pub(super) struct Walk {
    below: Option<Side>,
    tree: Side,
    /// Where to look: everywhere, if it is none or does not have the place.
    own: Option<Side>,
    levels: Vec<Level>,
    /// From the root to the directory at hand; it ends in a slash, or is empty.
    pub(super) path: Vec<u8>,
}

struct Level {
    /// How long the path above it is.
    above: usize,
    /// What is left to look at; the first is at the end.
    names: Vec<CString>,
}

/// A name in the directory at hand.
pub(super) struct Seen {
    pub(super) name: CString,
    /// What it is below.
    pub(super) old: Option<Stat>,
    /// What it is in the tree.
    pub(super) new: Option<Stat>,
}

impl Seen {
    /// Returns whether it is a directory in both trees.
    pub(super) fn was_directory(&self) -> bool {
        self.old.as_ref().is_some_and(is_directory)
    }
}

/// What a walk comes to.
pub(super) enum Step {
    Entry(Box<Seen>),
    /// The end of the directory at hand. Leave it with [`Walk::leave`].
    End,
}

impl Walk {
    pub(super) fn start(trees: &Trees) -> io::Result<Self> {
        let mut walk = Self {
            below: trees.below.as_ref().map(Side::new).transpose()?,
            tree: Side::new(&trees.tree)?,
            own: trees.own.as_ref().map(Side::new).transpose()?,
            levels: Vec::new(),
            path: Vec::new(),
        };
        walk.levels.push(Level { above: 0, names: walk.names()? });
        Ok(walk)
    }

    /// Returns the tree's directory at hand.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.tree.directory
    }

    /// Looks at the root.
    pub(super) fn root(&self) -> io::Result<Seen> {
        let look = |side: &Side| Ok::<_, io::Error>(rustix::fs::fstat(&side.directory)?);
        let old = self.below.as_ref().map(look).transpose()?;
        Ok(Seen { name: c".".to_owned(), old, new: Some(look(&self.tree)?) })
    }

    /// Returns what is next; `None` after the end of the root.
    pub(super) fn next(&mut self) -> io::Result<Option<Step>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        while let Some(name) = level.names.pop() {
            let old = self.below.as_ref().map_or(Ok(None), |below| below.look(&name))?;
            let new = self.tree.look(&name)?;
            if old.is_some() || new.is_some() {
                return Ok(Some(Step::Entry(Box::new(Seen { name, old, new }))));
            }
        }
        Ok(Some(Step::End))
    }

    /// Goes into a directory of the tree.
    pub(super) fn enter(&mut self, seen: &Seen) -> io::Result<()> {
        let name = Some(&*seen.name);
        self.tree.descend(name)?;
        if let Some(below) = &mut self.below {
            below.descend(name.filter(|_| seen.was_directory()))?;
        }
        if let Some(own) = &mut self.own {
            // What was no directory before is all new. An opaque one may name only some of what it hides.
            let is_hint = seen.was_directory() && is_transparent(own, &seen.name)?;
            own.descend(name.filter(|_| is_hint))?;
        }
        let above = self.path.len();
        self.levels.push(Level { above, names: self.names()? });
        self.path.extend_from_slice(seen.name.to_bytes());
        self.path.push(b'/');
        Ok(())
    }

    /// Goes back up.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        if let Some(level) = self.levels.pop() {
            self.path.truncate(level.above);
        }
        if self.levels.is_empty() {
            return Ok(());
        }
        [Some(&mut self.tree), self.below.as_mut(), self.own.as_mut()].into_iter().flatten().try_for_each(Side::ascend)
    }

    fn hint(&self) -> Option<&Side> {
        self.own.as_ref().filter(|own| own.here().is_some())
    }

    /// Returns the names to be looked at here.
    fn names(&self) -> io::Result<Vec<CString>> {
        if let Some(own) = self.hint() {
            return own.names();
        }
        let mut names = self.tree.names()?;
        if let Some(below) = &self.below {
            names.extend(below.names()?);
            names.sort_unstable_by(|one, other| other.cmp(one));
            names.dedup();
        }
        Ok(names)
    }

    /// Returns true if the entry is not what it was below.
    pub(super) fn differs(&self, seen: &Seen) -> io::Result<bool> {
        let (Some(old), Some(new)) = (&seen.old, &seen.new) else { return Ok(true) };
        let Some(below) = self.below.as_ref().and_then(Side::here) else { return Ok(true) };
        if !is_directory(new) && is_same_file(old, new) {
            return Ok(false);
        }
        let plain = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec);
        let (tree, name) = (&self.tree.directory, &*seen.name);
        if plain(old) != plain(new) || walk::extended(below, name)? != walk::extended(tree, name)? {
            return Ok(true);
        }
        Ok(match kind(new) {
            FileType::RegularFile => {
                old.st_size != new.st_size
                    || !has_same_content(walk::open_file(below, name)?, walk::open_file(tree, name)?)?
            }
            FileType::Symlink => readlinkat(below, name, Vec::new())? != readlinkat(tree, name, Vec::new())?,
            FileType::BlockDevice | FileType::CharacterDevice => old.st_rdev != new.st_rdev,
            _ => false,
        })
    }

    /// Returns the files with several names that are not one and the same file below by the same names: one of the names
    /// is new, changed, or was another file's. All their names have to be made anew, to be links of one file and of no
    /// other.
    pub(super) fn changed_links(mut self) -> io::Result<HashSet<Inode>> {
        let mut changed = HashSet::new();
        let (mut was, mut became) = (HashMap::new(), HashMap::new());
        while let Some(step) = self.next()? {
            let Step::Entry(seen) = step else {
                self.leave()?;
                continue;
            };
            let Some(new) = &seen.new else { continue };
            if is_directory(new) {
                self.enter(&seen)?;
                continue;
            }
            let has_names = |stat: &Stat| stat.st_nlink > 1;
            if !has_names(new) && !seen.old.as_ref().is_some_and(has_names) {
                continue;
            }
            let is_link_of_the_same = match &seen.old {
                Some(old) if !self.differs(&seen)? => {
                    let (old_inode, new_inode) = (inode(old), inode(new));
                    let is_paired = *was.entry(new_inode).or_insert(old_inode) == old_inode
                        && *became.entry(old_inode).or_insert(new_inode) == new_inode;
                    // Where only some names are looked at, the others may still be the old file.
                    is_paired && (self.hint().is_none() || !has_names(old) || is_same_file(old, new))
                }
                _ => false,
            };
            if !is_link_of_the_same {
                changed.insert(inode(new));
            }
        }
        Ok(changed)
    }
}

/// Returns true if the directory `name` of an overlay's layer names only what differs from below. An opaque one
/// (`…overlay.opaque` is `y`) hides all that was below, and names nothing of that.
fn is_transparent(own: &Side, name: &CStr) -> io::Result<bool> {
    let Some(directory) = own.here() else { return Ok(false) };
    let directory = match walk::open(directory, name) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        opened => opened?,
    };
    let mut value = [0_u8; 8];
    Ok(!matches!(fgetxattr(&directory, format!("{}opaque", overlay_marks()), &mut value), Ok(1) if value[0] == b'y'))
}

/// Returns true if both are one file, or one and its snapshot.
fn is_same_file(one: &Stat, other: &Stat) -> bool {
    let version =
        |stat: &Stat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    inode(one) == inode(other) || version(one) == version(other)
}

/// Returns true if two files of one size have the same content.
fn has_same_content(mut one: File, mut other: File) -> io::Result<bool> {
    const PART: usize = 64 << 10;
    let (mut left, mut right) = (vec![0; PART], vec![0; PART]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..length]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}
