//! What a layer holds: the difference between a tree and what lies below it.
//!
//! Entries come sorted, directories before what is in them, the same on every kind of store. An entry is unchanged if
//! nothing would be different after a layer with it is unpacked; so times count in whole seconds. Of what is
//! unchanged, only the directories above something changed are told, as other tools do.
//!
//! A hint shortens the search: overlayfs' own layer of the result names all that may have changed. Of what the names
//! stand for in there (whiteouts, opaque directories, copies of what did not change) nothing is believed: each is
//! compared in the two trees. So the same trees give the same layer with and without it.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, openat};
use rustix::io::{self, Errno};
use tokio_util::sync::CancellationToken;

use super::trees::{Side, has_same_content, is_same_file};
use super::{ExportError, Opened};
use crate::tar::{Entry, Kind, Time};
use crate::tree::shown;

/// What starts the name of a removed file in a layer.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The longest path that is written. The kernel takes 4 KiB, but trees can be deeper than that.
const LONGEST_PATH: usize = 64 << 10;

/// What is different.
#[derive(Debug)]
pub(super) enum Change {
    /// New or changed; a regular file comes with its content, to be read from its start.
    Entry(Entry, Option<File>),
    /// The path of what is no longer there.
    Removed(Vec<u8>),
}

/// How to look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// No time is later.
    pub(super) latest: Option<i64>,
    /// For archives of whole trees: names that start with `.wh.` are names like others.
    pub(super) is_literal: bool,
}

/// Hears of each change.
pub(super) type Visit<'a> = dyn FnMut(Change) -> Result<(), ExportError> + 'a;

/// Tells `visit` of all that differs in `trees`.
///
/// # Errors
///
/// A tree cannot be read; a name cannot be in a layer; `visit`'s own; cancelled.
pub(super) fn diff(
    trees: &Opened,
    rules: Rules,
    cancel: &CancellationToken,
    visit: &mut Visit<'_>,
) -> Result<(), ExportError> {
    let changed = match &trees.below {
        Some(_) => changed_links(Walk::start(trees, rules, cancel)?)?,
        None => HashSet::new(),
    };
    let mut walk = Walk::start(trees, rules, cancel)?;
    walk.root()?;
    let mut told = Told { links: HashMap::new(), is_literal: rules.is_literal, visit };
    if walk.levels.first().is_some_and(|root| root.is_due) {
        walk.tell_above(&mut told)?;
    }
    while let Some(seen) = walk.next()? {
        let Some(new) = &seen.new else {
            walk.tell_above(&mut told)?;
            told.removed(walk.path_of(&seen.name))?;
            continue;
        };
        if is_directory(new) {
            let entry = walk.entry(&seen.name, new, Kind::Directory)?;
            let is_changed = walk.differs(&seen, new)?;
            walk.enter(&seen, Some(entry))?;
            if is_changed {
                walk.tell_above(&mut told)?;
            }
        } else if changed.contains(&inode(new)) || walk.differs(&seen, new)? {
            walk.tell_above(&mut told)?;
            walk.tell(&seen.name, new, &mut told)?;
        }
    }
    Ok(())
}

/// Returns the files that have several names, one of which changed. All their names are told then: the others may come
/// first, and a hard link needs a file in its own layer.
fn changed_links(mut walk: Walk<'_>) -> Result<HashSet<Inode>, ExportError> {
    let mut changed = HashSet::new();
    while let Some(seen) = walk.next()? {
        let Some(new) = &seen.new else { continue };
        if is_directory(new) {
            walk.enter(&seen, None)?;
        } else if new.st_nlink > 1 && walk.differs(&seen, new)? {
            changed.insert(inode(new));
        }
    }
    Ok(changed)
}

/// Identifies a file among the others of its tree.
type Inode = (u64, u64);

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_directory(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// A walk through the trees, side by side.
struct Walk<'a> {
    below: Option<Side>,
    tree: Side,
    /// Where to look: everywhere, if it is none or does not have the place.
    own: Option<Side>,
    path: Vec<u8>,
    levels: Vec<Level>,
    latest: Option<i64>,
    cancel: &'a CancellationToken,
}

/// A directory on the way.
struct Level {
    /// How long the path above it is.
    above: usize,
    /// What is left to look at; the first is at the end.
    names: Vec<CString>,
    /// Itself, while it is not told: it must be before what is in it.
    entry: Option<Entry>,
    /// It is told even if nothing in it is.
    is_due: bool,
}

/// A name in the directory at hand.
struct Seen {
    name: CString,
    /// What it is below.
    old: Option<Stat>,
    /// What it is in the tree.
    new: Option<Stat>,
}

impl<'a> Walk<'a> {
    fn start(trees: &Opened, rules: Rules, cancel: &'a CancellationToken) -> Result<Self, ExportError> {
        let open = || {
            let own = trees.own.as_ref().map(|own| openat(CWD, own, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()));
            Ok::<_, Errno>(Self {
                below: trees.below.as_ref().map(Side::new).transpose()?,
                tree: Side::new(&trees.tree)?,
                own: own.transpose()?.as_ref().map(Side::new).transpose()?,
                path: Vec::new(),
                levels: Vec::new(),
                latest: rules.latest,
                cancel,
            })
        };
        let mut walk = open().map_err(|error| read_error(b"", error))?;
        let names = walk.names().map_err(|error| read_error(b"", error))?;
        walk.levels.push(Level { above: 0, names, entry: None, is_due: false });
        Ok(walk)
    }

    /// Looks at the root. Over another tree, it is told if it changed, and not because something in it did. Over
    /// nothing, it is told before anything else is, and by itself if it is not what every root is by default.
    fn root(&mut self) -> Result<(), ExportError> {
        let look = |side: &Side| side.look_here().map_err(|error| read_error(b"", error));
        let Some(new) = look(&self.tree)? else { return Ok(()) };
        let old = self.below.as_ref().map(look).transpose()?.flatten();
        let root = Seen { name: c".".to_owned(), old, new: Some(new) };
        let entry = Entry { name: Vec::new(), ..self.entry(&root.name, &new, Kind::Directory)? };
        let is_default = (entry.mode, entry.uid, entry.gid, entry.xattrs.is_empty()) == (0o755, 0, 0, true);
        let is_changed = self.differs(&root, &new)?;
        if let Some(level) = self.levels.first_mut() {
            (level.entry, level.is_due) = match root.old {
                None => (Some(entry), !is_default),
                Some(_) => (is_changed.then_some(entry), is_changed),
            };
        }
        Ok(())
    }

    /// Returns what is next in the directory at hand, or above if it has no more: what is in the tree or was below.
    fn next(&mut self) -> Result<Option<Seen>, ExportError> {
        while let Some(level) = self.levels.last_mut() {
            if self.cancel.is_cancelled() {
                return Err(ExportError::Cancelled);
            }
            if let Some(name) = level.names.pop() {
                let look = || {
                    io::Result::Ok((
                        self.below.as_ref().map(|side| side.look(&name)).transpose()?,
                        self.tree.look(&name)?,
                    ))
                };
                let (old, new) = look().map_err(|error| read_error(&self.path_of(&name), error))?;
                let old = old.flatten();
                if old.is_some() || new.is_some() {
                    return Ok(Some(Seen { name, old, new }));
                }
                continue;
            }
            self.path.truncate(level.above);
            self.levels.pop();
            if !self.levels.is_empty() {
                let ascended = self.sides().try_for_each(Side::ascend);
                ascended.map_err(|error| read_error(&self.path, error))?;
            }
        }
        Ok(None)
    }

    /// Goes into a directory of the tree, which is told as `entry` when something in it is.
    fn enter(&mut self, seen: &Seen, entry: Option<Entry>) -> Result<(), ExportError> {
        let path = self.path_of(&seen.name);
        let failed = |error| read_error(&path, error);
        if path.len() > LONGEST_PATH {
            return Err(inexpressible(&path, "its path is longer than 64 KiB"));
        }
        let name = Some(&*seen.name);
        let was_directory = seen.old.as_ref().is_some_and(is_directory);
        self.tree.descend(name).map_err(failed)?;
        if let Some(below) = &mut self.below {
            below.descend(name.filter(|_| was_directory)).map_err(failed)?;
        }
        if let Some(own) = &mut self.own {
            // What was not a directory before is all new. An opaque one may name only some of what it hides.
            let is_hint = was_directory && own.is_transparent(&seen.name).map_err(failed)?;
            own.descend(name.filter(|_| is_hint)).map_err(failed)?;
        }
        self.levels.push(Level { above: self.path.len(), names: Vec::new(), entry, is_due: false });
        let names = self.names().map_err(failed)?;
        self.levels.last_mut().expect("just pushed").names = names;
        self.path = path;
        Ok(())
    }

    fn sides(&mut self) -> impl Iterator<Item = &mut Side> {
        [Some(&mut self.tree), self.below.as_mut(), self.own.as_mut()].into_iter().flatten()
    }

    /// Returns the names to be looked at here, the first at the end.
    fn names(&self) -> io::Result<Vec<CString>> {
        let mut names = Vec::new();
        match &self.own {
            Some(own) if own.here().is_some() => own.names(&mut names)?,
            _ => {
                self.tree.names(&mut names)?;
                self.below.as_ref().map_or(Ok(()), |below| below.names(&mut names))?;
            }
        }
        names.sort_unstable_by(|one, other| other.cmp(one));
        names.dedup();
        Ok(names)
    }

    fn path_of(&self, name: &CStr) -> Vec<u8> {
        let slash: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        [&self.path, slash, name.to_bytes()].concat()
    }

    /// Returns true if the entry would not be the same after unpacking.
    fn differs(&self, seen: &Seen, new: &Stat) -> Result<bool, ExportError> {
        let (Some(old), Some(below)) = (&seen.old, &self.below) else { return Ok(true) };
        let plain = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, self.seconds(stat));
        if plain(old) != plain(new) {
            return Ok(true);
        }
        let differs = || {
            let name = &*seen.name;
            Ok(match kind(new) {
                FileType::Directory => below.xattrs(name)? != self.tree.xattrs(name)?,
                _ if is_same_file(old, new) => false,
                FileType::RegularFile => {
                    old.st_size != new.st_size
                        || below.xattrs(name)? != self.tree.xattrs(name)?
                        || !has_same_content(below.open(name, old)?, self.tree.open(name, new)?)?
                }
                FileType::Symlink => below.link(name)? != self.tree.link(name)?,
                _ => old.st_rdev != new.st_rdev,
            })
        };
        differs().map_err(|error: std::io::Error| read_error(&self.path_of(&seen.name), error))
    }

    fn seconds(&self, stat: &Stat) -> i64 {
        self.latest.map_or(stat.st_mtime, |latest| stat.st_mtime.min(latest))
    }

    /// Returns the entry `name` of the directory at hand.
    fn entry(&self, name: &CStr, stat: &Stat, kind: Kind) -> Result<Entry, ExportError> {
        let path = self.path_of(name);
        let xattrs = match kind {
            Kind::Directory | Kind::File { .. } => self.tree.xattrs(name).map_err(|error| read_error(&path, error))?,
            _ => Vec::new(),
        };
        Ok(Entry {
            name: path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time { seconds: self.seconds(stat), nanoseconds: 0 },
            xattrs,
        })
    }

    /// Tells the directories above that are not told yet.
    fn tell_above(&mut self, told: &mut Told<'_, '_>) -> Result<(), ExportError> {
        // All that are told stand above all that are not.
        let first = self.levels.iter().rposition(|level| level.entry.is_none()).map_or(0, |last| last + 1);
        self.levels[first..]
            .iter_mut()
            .filter_map(|level| level.entry.take())
            .try_for_each(|entry| told.entry(entry, None))
    }

    /// Tells the entry `name` of the directory at hand, which is no directory.
    fn tell(&self, name: &CStr, stat: &Stat, told: &mut Told<'_, '_>) -> Result<(), ExportError> {
        let failed = |error| read_error(&self.path_of(name), error);
        let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let mut file = None;
        let kind = match (told.first_name(stat, || self.path_of(name)), kind(stat)) {
            (Some(first), _) => Kind::HardLink(first),
            (None, FileType::RegularFile) => {
                file = Some(self.tree.open(name, stat).map_err(failed)?);
                Kind::File { size: stat.st_size.unsigned_abs(), segments: None }
            }
            (None, FileType::Symlink) => Kind::Symlink(self.tree.link(name).map_err(failed)?),
            (None, FileType::Fifo) => Kind::Fifo,
            (None, FileType::BlockDevice) => {
                let (major, minor) = device();
                Kind::BlockDevice { major, minor }
            }
            (None, _) => {
                let (major, minor) = device();
                Kind::CharDevice { major, minor }
            }
        };
        told.entry(self.entry(name, stat, kind)?, file)
    }
}

/// What was told so far.
struct Told<'a, 'b> {
    /// The first name of each file that has several.
    links: HashMap<Inode, Vec<u8>>,
    is_literal: bool,
    visit: &'a mut Visit<'b>,
}

impl Told<'_, '_> {
    fn entry(&mut self, entry: Entry, file: Option<File>) -> Result<(), ExportError> {
        self.check(&entry.name)?;
        (self.visit)(Change::Entry(entry, file))
    }

    fn removed(&mut self, path: Vec<u8>) -> Result<(), ExportError> {
        self.check(&path)?;
        (self.visit)(Change::Removed(path))
    }

    /// Returns the name under which a file was told before; else notes this one.
    fn first_name(&mut self, stat: &Stat, path: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        match self.links.entry(inode(stat)) {
            Slot::Occupied(first) => Some(first.get().clone()),
            Slot::Vacant(slot) => {
                slot.insert(path());
                None
            }
        }
    }

    fn check(&self, path: &[u8]) -> Result<(), ExportError> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if !self.is_literal && name.starts_with(WHITEOUT) {
            return Err(inexpressible(path, "in a layer, names that start with `.wh.` mean removed files"));
        }
        Ok(())
    }
}

pub(super) fn read_error(path: &[u8], error: impl Into<std::io::Error>) -> ExportError {
    ExportError::Read { entry: place(path), source: error.into() }
}

pub(super) fn inexpressible(path: &[u8], reason: &'static str) -> ExportError {
    ExportError::Inexpressible { entry: place(path), reason }
}

fn place(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { shown(path) }
}
