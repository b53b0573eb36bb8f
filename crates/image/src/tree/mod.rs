//! Writes members of archives into a directory, and nowhere else.
//!
//! Archives are written by strangers. No name of theirs is ever given to the kernel as a path: a name is
//! split into components, and each is opened without following links, from the descriptor of the directory
//! before it (see [`cursor`]). A link in the middle of a name is read and followed by us, inside the root, as
//! it would be seen by a process for which the tree is `/`. The last component is never followed: a
//! member replaces what is there.
//!
//! Layers lie on each other. A whiteout (`.wh.NAME`, or `.wh..wh..opq` for all of a directory) hides what
//! lower layers have, never what its own layer has, wherever in the layer it stands.

mod cursor;
mod node;
mod remove;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Timespec, Timestamps};
use tokio_util::sync::CancellationToken;

use self::cursor::{Cursor, Missing};
pub(crate) use self::node::is_kept;
use self::remove::Made;
use crate::tar::{Entry, Kind, Reader, Source, Time};
use crate::unpack::UnpackError;
use crate::{Limits, Progress};

/// Whether names that start with `.wh.` mean something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Whiteouts {
    /// In layers of images.
    Apply,
    /// In archives of whole trees, which have nothing below to hide.
    Literal,
}

/// What lies under a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Below {
    /// It is the lowest: the directory is empty.
    Nothing,
    /// Other layers, whoever unpacked them.
    Layers,
}

/// What a file holds, part by part.
pub(crate) trait Content {
    /// Returns the next part, or nothing at the end.
    fn part(&mut self) -> Result<&[u8], UnpackError>;
    /// Passes over the first `count` bytes that [`Content::part`] returned.
    fn consume(&mut self, count: usize);
}

impl<S: Source> Content for Reader<S> {
    fn part(&mut self) -> Result<&[u8], UnpackError> {
        Ok(self.content()?)
    }

    fn consume(&mut self, count: usize) {
        Reader::consume(self, count);
    }
}

/// A layer being written over the tree below it. The directory must not be written by others meanwhile.
///
/// It may be an overlay of what is below and an empty layer. Then the numbers of directories stay the same when they are
/// copied up, which `made` relies on; those of files do not.
pub(crate) struct Tree {
    cursor: Cursor,
    /// For the targets of hard links, so that the two do not drive each other from their places.
    targets: Cursor,
    /// The directories that this layer went into, by their real paths: what they get at its end, when
    /// nothing is written into them any more.
    directories: HashMap<Vec<u8>, Directory>,
    remembered_bytes: usize,
    /// What this layer has made; nothing is noted where nothing can be hidden.
    made: Option<Made>,
    whiteouts: Whiteouts,
    /// The owner that new files have by themselves.
    user: (u32, u32),
    /// Bytes of files so far, holes included.
    size: u64,
    /// Device nodes that could not be made.
    skipped_devices: u64,
    /// We are root of a user namespace without other ids: all is ours.
    has_one_owner: bool,
    /// Entries that are ours for that reason alone.
    lost_owners: u64,
    limits: Limits,
}

/// What a directory gets at the end of a layer.
#[derive(Clone, Copy, Debug)]
struct Directory {
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: Time,
}

/// Returns whether a user namespace with this map has one id and no other.
fn has_one_id(map: &str) -> bool {
    let mut lines = map.lines();
    let count = lines.next().and_then(|line| line.split_whitespace().nth(2));
    count == Some("1") && lines.next().is_none()
}

/// The longest name of one file that Linux has, `NAME_MAX`.
const LONGEST_NAME: usize = 255;

/// A directory that an archive implies and does not list: like one of root's, made in 1970, so that the
/// same archive always gives the same tree.
const IMPLIED: Directory = Directory { mode: 0o755, owner: Some((0, 0)), mtime: Time { seconds: 0, nanoseconds: 0 } };

impl Tree {
    /// Starts to write into the directory `root`.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub(crate) fn new(root: &Path, below: Below, whiteouts: Whiteouts, limits: &Limits) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(root, flags, Mode::empty())?;
        let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let has_one_owner =
            user.0 == 0 && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| has_one_id(&map));
        let targets = Cursor::new(root.try_clone()?, limits.depth)?;
        let cursor = Cursor::new(root, limits.depth)?;
        // Where it has no entry in the layer, the root stays as it is.
        let root = if below == Below::Nothing { IMPLIED } else { cursor.existing()? };
        Ok(Self {
            targets,
            cursor,
            directories: HashMap::from([(Vec::new(), root)]),
            remembered_bytes: 0,
            made: (below == Below::Layers && whiteouts == Whiteouts::Apply).then(Made::default),
            whiteouts,
            user,
            has_one_owner,
            size: 0,
            skipped_devices: 0,
            lost_owners: 0,
            limits: *limits,
        })
    }

    /// Writes one member. If it is a file, `content` gives what is stored of it.
    pub(crate) fn add(
        &mut self,
        entry: &Entry,
        content: &mut dyn Content,
        cancel: &CancellationToken,
    ) -> Result<(), UnpackError> {
        let path = clean(&entry.name)?;
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        if self.whiteouts == Whiteouts::Apply && name.starts_with(b".wh.") {
            return self.whiteout(parent, name);
        }
        if name.is_empty() {
            return match entry.kind {
                Kind::Directory => self.root(entry),
                _ => Err(refused(&entry.name, "it would replace the root")),
            };
        }
        if name.len() > LONGEST_NAME {
            return Err(too_long(&entry.name));
        }
        self.enter(parent)?;
        if let Some(made) = &mut self.made {
            made.note(self.cursor.inode(), name);
        }
        self.lost_owners += u64::from(self.has_one_owner && (entry.uid, entry.gid) != (0, 0));
        match &entry.kind {
            Kind::Directory => self.directory(name, entry),
            Kind::File { size, segments } => self.file(name, entry, (*size, segments.as_deref()), content, cancel),
            Kind::HardLink(target) => self.hard_link(name, target),
            Kind::Symlink(target) => self.symlink(name, target, entry),
            Kind::Fifo => self.special(name, FileType::Fifo, (0, 0), entry),
            Kind::CharDevice { major, minor } => self.special(name, FileType::CharacterDevice, (*major, *minor), entry),
            Kind::BlockDevice { major, minor } => self.special(name, FileType::BlockDevice, (*major, *minor), entry),
        }
    }

    /// Gives the directories of this layer their modes, owners and times. Tells of what could not be made.
    pub(crate) fn finish(mut self, progress: &dyn Progress) -> Result<(), UnpackError> {
        let mut directories: Vec<_> = std::mem::take(&mut self.directories).into_iter().collect();
        // Children before their parents: without privilege, a parent may be closed to us afterwards.
        directories.sort_unstable_by(|one, other| other.0.cmp(&one.0));
        for (path, directory) in directories {
            // It may have been replaced since.
            if self.cursor.walk(&path, Missing::Stop, &mut |_, _| Ok(()))? && self.cursor.path() == path {
                self.set_directory(directory).map_err(|source| write_error("set the mode of", &path, source))?;
            }
        }
        if self.lost_owners > 0 {
            progress
                .line(&format!("{} files were not root's and are now: this user has no other ids", self.lost_owners));
        }
        if self.skipped_devices > 0 {
            progress.line(&format!("left out {} device nodes: making them needs root", self.skipped_devices));
        }
        Ok(())
    }

    fn set_directory(&self, directory: Directory) -> std::io::Result<()> {
        let fd = self.cursor.fd();
        if let (Some((uid, gid)), true) = (directory.owner, self.gives_away()) {
            rustix::fs::fchown(fd, Some(node::uid(uid)), Some(node::gid(gid)))?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(directory.mode))?;
        Ok(rustix::fs::futimens(fd, &times(directory.mtime))?)
    }

    /// Returns true if files can be given to others.
    fn gives_away(&self) -> bool {
        self.is_root() && !self.has_one_owner
    }

    fn is_root(&self) -> bool {
        self.user.0 == 0
    }

    /// Goes to the directory `path`, making what is missing.
    fn enter(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let Self { cursor, directories, remembered_bytes, limits, .. } = self;
        cursor
            .walk(path, Missing::Make, &mut |path, found| remember(directories, remembered_bytes, limits, path, found))
            .map(drop)
    }

    /// Notes what the directory at `path` gets at the end of the layer.
    fn note(&mut self, path: &[u8], directory: Directory) -> Result<(), UnpackError> {
        let Self { directories, remembered_bytes, limits, .. } = self;
        remember(directories, remembered_bytes, limits, path, Found::Made(directory))
    }
}

/// How the cursor came by a directory.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// It was there, with this.
    Existing(Directory),
    /// It is new, or listed by the layer, and gets this.
    Made(Directory),
}

fn remember(
    directories: &mut HashMap<Vec<u8>, Directory>,
    bytes: &mut usize,
    limits: &Limits,
    path: &[u8],
    found: Found,
) -> Result<(), UnpackError> {
    /// About what a map's slot takes besides its key's bytes.
    const SLOT: usize = 96;
    match (directories.entry(path.to_vec()), found) {
        (Slot::Occupied(_), Found::Existing(_)) => {}
        (Slot::Occupied(mut slot), Found::Made(directory)) => drop(slot.insert(directory)),
        (Slot::Vacant(slot), Found::Existing(directory) | Found::Made(directory)) => {
            *bytes += slot.key().len() + SLOT;
            slot.insert(directory);
            if *bytes > limits.remembered_bytes {
                return Err(UnpackError::TooManyDirectories(limits.remembered_bytes));
            }
        }
    }
    Ok(())
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Returns a member's name without its leading slash, empty components and dots.
fn clean(name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let mut path = Vec::with_capacity(name.len());
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            // No honest archiver writes it, and its meaning depends on links.
            b".." => return Err(refused(name, "its name contains `..`")),
            // The mark of a removed file comes on top of its name.
            long if long.strip_prefix(b".wh.").unwrap_or(long).len() > LONGEST_NAME => return Err(too_long(name)),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// Returns a name for an error message: not longer than a reader bears, and without control characters.
pub(crate) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let text = text.strip_prefix("./").unwrap_or(&text);
    let short: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() { short + "…" } else { short }
}

fn too_long(name: &[u8]) -> UnpackError {
    refused(name, "a part of its name is longer than 255 bytes")
}

fn refused(name: &[u8], reason: impl Into<String>) -> UnpackError {
    UnpackError::Refused { entry: shown(name), reason: reason.into() }
}

fn write_error(action: &'static str, name: &[u8], source: impl Into<std::io::Error>) -> UnpackError {
    UnpackError::Write { action, entry: shown(name), source: source.into() }
}
