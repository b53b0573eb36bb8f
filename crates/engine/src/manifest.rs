//! What a copy would take: names, kinds and content digests.
//!
//! The source is read through one directory descriptor and no symbolic link is followed, so what lies outside is never
//! reached, whoever renames what meanwhile. Content digests are remembered by inode and times; reading
//! and hashing run on all processors.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use bstr::{BString, ByteSlice};
use kiln_store::{Digest, FileVersion, Store};
use rayon::prelude::*;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::error::{BuildError, CopyError, Stopped};
use crate::key::Encoder;

/// No link is followed and nothing above the root is reached, `openat2(2)`.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Never blocks on a fifo, never follows a link, and does not make a terminal ours.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// Files up to this size are hashed by one thread each.
const LARGE_BYTES: u64 = 8 << 20;

/// A tree to copy from: an open directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// For messages: "the source directory", "the build `x`".
    place: String,
    /// Whether inodes and times identify content from one build to the next.
    is_lasting: bool,
}

/// What a copy asks for, as in the spec.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) src: Vec<BString>,
    /// Base names to leave out, at any depth.
    pub(crate) exclude: Vec<BString>,
    /// The copies go into the destination, under their own names. Else the one item becomes the destination.
    pub(crate) into_directory: bool,
}

/// Everything that one copy takes, sorted by where it goes.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
}

/// One thing to copy.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it is, below the source's root.
    pub(crate) from: BString,
    /// Where it goes, below the destination; empty for the destination itself.
    pub(crate) to: BString,
    pub(crate) mtime: Timespec,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory,
    Link(BString),
    File { version: FileVersion, executable: bool, digest: Digest },
}

impl Tree {
    /// Opens the directory that a user works in.
    pub(crate) fn open_source(path: &Path) -> Result<Self, BuildError> {
        let opened = openat(CWD, path, DIRECTORY, Mode::empty());
        let root = opened.map_err(|error| BuildError::Source { path: path.to_owned(), source: error.into() })?;
        Ok(Self { root, place: "the source directory".to_owned(), is_lasting: true })
    }

    /// Takes the root of a result, which is mounted anew for each use.
    pub(crate) fn of_result(root: OwnedFd, place: String) -> Self {
        Self { root, place, is_lasting: false }
    }

    /// Returns what a copy takes from here.
    pub(crate) fn manifest(
        &self,
        wanted: &Wanted,
        store: &Store,
        cancel: &CancellationToken,
    ) -> Result<Manifest, Stopped> {
        let exclude: HashSet<&[u8]> = wanted.exclude.iter().map(|name| name.as_slice()).collect();
        let mut found = Vec::new();
        for item in &wanted.src {
            let from = relative(item)?;
            let base = from.rsplit_str("/").next().unwrap_or_default();
            // `.` stands for what is in the root: its own name goes nowhere.
            let to = if wanted.into_directory { base.into() } else { BString::default() };
            found.extend(self.item(from, to, item)?);
        }
        let mut directories: Vec<(BString, BString)> = directories_of(&found).collect();
        while !directories.is_empty() {
            let children: Vec<Vec<Found>> = directories
                .par_iter()
                .map(|(from, to)| match cancel.is_cancelled() {
                    true => Err(Stopped::Cancelled),
                    false => Ok(self.children(from, to, &exclude)?),
                })
                .collect::<Result<_, Stopped>>()?;
            directories = children.iter().flat_map(|found| directories_of(found)).collect();
            found.extend(children.into_iter().flatten());
        }
        let entries = self.digest_files(found, store, cancel)?;
        let mut manifest = Manifest { entries };
        // Of two sources for one name the later wins, as if they were copied one after the other: the
        // sort is stable, and the last of equals is kept.
        manifest.entries.sort_by(|a, b| a.to.cmp(&b.to));
        manifest.entries.reverse();
        manifest.entries.dedup_by(|a, b| a.to == b.to);
        manifest.entries.reverse();
        Ok(manifest)
    }

    /// Looks at one item of `src`.
    fn item(&self, from: BString, to: BString, name: &BString) -> Result<Option<Found>, CopyError> {
        if from.is_empty() {
            let stat = rustix::fs::fstat(&self.root).map_err(failed("read", name))?;
            return Ok(Some(Found { from, to, what: What::Directory, mtime: mtime(&stat) }));
        }
        let (parent, base) = match from.rsplit_once_str("/") {
            Some((parent, base)) => (self.open(parent.into(), DIRECTORY), base),
            None => (self.open(".".into(), DIRECTORY), from.as_slice()),
        };
        let missing = || CopyError::Missing { name: name.to_string(), place: self.place.clone() };
        let parent = parent.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => missing(),
            Errno::LOOP => CopyError::ThroughLink(name.to_string()),
            error => failed("open", name)(error),
        })?;
        match look(&parent, base, from.clone(), to) {
            Err(CopyError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Err(missing()),
            found => found.map(Some),
        }
    }

    fn children(&self, from: &BString, to: &BString, exclude: &HashSet<&[u8]>) -> Result<Vec<Found>, CopyError> {
        let path = if from.is_empty() { BString::from(".") } else { from.clone() };
        let directory = self.open(path, DIRECTORY).map_err(gone_or("open", from))?;
        let mut found = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed("read", from))? {
            let entry = entry.map_err(failed("read", from))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || exclude.contains(name) {
                continue;
            }
            found.push(look(&directory, name, below(from, name), below(to, name))?);
        }
        Ok(found)
    }

    fn open(&self, path: BString, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(&self.root, path.as_slice(), flags, Mode::empty(), INSIDE)
    }

    /// Opens a file for reading and checks that it is still the version that was seen.
    pub(crate) fn open_file(&self, from: &BString, version: &FileVersion) -> Result<File, CopyError> {
        let file = self.open(from.clone(), FILE).map_err(gone_or("open", from))?;
        let stat = rustix::fs::fstat(&file).map_err(failed("read", from))?;
        if version_of(&stat) == *version { Ok(file.into()) } else { Err(CopyError::Changed(from.to_string())) }
    }

    /// Adds the digest of every file: remembered ones, or read now.
    fn digest_files(
        &self,
        found: Vec<Found>,
        store: &Store,
        cancel: &CancellationToken,
    ) -> Result<Vec<Entry>, Stopped> {
        let versions: Vec<FileVersion> = found.iter().filter_map(Found::version).collect();
        let known = match self.is_lasting {
            true => store.known_digests(&versions)?,
            false => vec![None; versions.len()],
        };
        // Taken before anything is read: a file that was changed later than this is not remembered.
        let now_ns = now_ns();
        let mut known = known.into_iter();
        let with_known: Vec<(Found, Option<Digest>)> = found
            .into_iter()
            .map(|found| match found.what {
                What::File { .. } => (found, known.next().flatten()),
                _ => (found, None),
            })
            .collect();
        let made: Vec<(Entry, Option<(FileVersion, Digest)>)> = with_known
            .into_par_iter()
            .map(|(Found { from, to, mtime, what }, known)| {
                let (kind, new) = match what {
                    What::Directory => (Kind::Directory, None),
                    What::Link(target) => (Kind::Link(target), None),
                    What::File { version, executable } => {
                        let digest = match known {
                            Some(digest) => digest,
                            None => self.hash(&from, &version, cancel)?,
                        };
                        let is_new = known.is_none() && self.is_lasting && is_settled(&version, now_ns);
                        (Kind::File { version, executable, digest }, is_new.then_some((version, digest)))
                    }
                };
                Ok((Entry { from, to, mtime, kind }, new))
            })
            .collect::<Result<_, Stopped>>()?;
        let (entries, new): (Vec<Entry>, Vec<_>) = made.into_iter().unzip();
        let new: Vec<(FileVersion, Digest)> = new.into_iter().flatten().collect();
        if !new.is_empty() {
            store.remember_digests(&new)?;
        }
        Ok(entries)
    }

    fn hash(&self, from: &BString, version: &FileVersion, cancel: &CancellationToken) -> Result<Digest, Stopped> {
        let mut file = self.open_file(from, version)?;
        let mut hasher = blake3::Hasher::new();
        let (mut small, mut large) = ([0; 64 << 10], Vec::new());
        let is_large = version.size_bytes > LARGE_BYTES;
        let buffer = if is_large {
            large.resize(4 << 20, 0);
            &mut large[..]
        } else {
            &mut small[..]
        };
        loop {
            if cancel.is_cancelled() {
                return Err(Stopped::Cancelled);
            }
            let read = read_full(&mut file, buffer);
            match read.map_err(|source| CopyError::Read { action: "read", name: from.to_string(), source })? {
                0 => break,
                // In large pieces, the tree of the hash is spread over the processors. Not mapped: a file that is cut
                // short under a mapping kills the reader.
                length if is_large => hasher.update_rayon(&buffer[..length]),
                length => hasher.update(&buffer[..length]),
            };
        }
        let stat = rustix::fs::fstat(&file).map_err(failed("read", from))?;
        match version_of(&stat) == *version {
            true => Ok(hasher.finalize().into()),
            false => Err(CopyError::Changed(from.to_string()).into()),
        }
    }
}

impl Manifest {
    /// Returns the digest of all that can change the result: paths, kinds, content, the x bit and link
    /// targets. Times and owners do not count.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut encoder = Encoder::new("kiln manifest 1");
        for Entry { to, kind, .. } in &self.entries {
            encoder.bytes(to);
            match kind {
                Kind::Directory => encoder.bytes(b"d"),
                Kind::Link(target) => encoder.bytes(b"l").bytes(target),
                Kind::File { executable, digest, .. } => {
                    encoder.bytes(if *executable { b"x" } else { b"f" }).bytes(digest)
                }
            };
        }
        encoder.finish()
    }
}

/// An entry whose content was not read yet.
struct Found {
    from: BString,
    to: BString,
    mtime: Timespec,
    what: What,
}

enum What {
    Directory,
    Link(BString),
    File { version: FileVersion, executable: bool },
}

impl Found {
    fn version(&self) -> Option<FileVersion> {
        match self.what {
            What::File { version, .. } => Some(version),
            _ => None,
        }
    }
}

fn directories_of(found: &[Found]) -> impl Iterator<Item = (BString, BString)> {
    found
        .iter()
        .filter(|found| matches!(found.what, What::Directory))
        .map(|found| (found.from.clone(), found.to.clone()))
}

/// Looks at the entry `name` of a directory.
fn look(directory: &OwnedFd, name: &[u8], from: BString, to: BString) -> Result<Found, CopyError> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("read", &from))?;
    let special = |kind| Err(CopyError::Special { name: from.to_string(), kind });
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => What::Directory,
        FileType::RegularFile => What::File { version: version_of(&stat), executable: stat.st_mode & 0o111 != 0 },
        FileType::Symlink => {
            let target = readlinkat(directory, name, Vec::new()).map_err(failed("read", &from))?;
            What::Link(target.into_bytes().into())
        }
        FileType::Fifo => return special("named pipe"),
        FileType::Socket => return special("socket"),
        _ => return special("device"),
    };
    Ok(Found { from, to, mtime: mtime(&stat), what })
}

/// Returns an item of `src` as a path below the source's root; empty for the root itself.
fn relative(item: &BString) -> Result<BString, CopyError> {
    let mut parts = Vec::new();
    for part in item.split_str("/") {
        match part {
            b"" | b"." => {}
            b".." => return Err(CopyError::Outside(item.to_string())),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/').into())
}

fn below(directory: &BString, name: &[u8]) -> BString {
    if directory.is_empty() { name.into() } else { bstr::join("/", [directory.as_slice(), name]).into() }
}

pub(crate) fn version_of(stat: &Stat) -> FileVersion {
    let time =
        |seconds: i64, nanoseconds: u64| seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanoseconds);
    FileVersion {
        dev: stat.st_dev,
        ino: stat.st_ino,
        size_bytes: stat.st_size.cast_unsigned(),
        mtime_ns: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// The time of day on the clock that filesystems stamp with, nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Returns whether a later change is sure to change the file's times too. They tick with the kernel's coarse
/// clock, 10 ms at worst; on filesystems that keep whole or even seconds, 2 s.
pub(crate) fn is_settled(version: &FileVersion, now_ns: i64) -> bool {
    let keeps_fractions = version.ctime_ns % 1_000_000_000 != 0 || version.mtime_ns % 1_000_000_000 != 0;
    let grain_ns = if keeps_fractions { 20_000_000 } else { 2_000_000_000 };
    version.ctime_ns.max(version.mtime_ns).saturating_add(grain_ns) < now_ns
}

fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

fn failed(action: &'static str, name: &BString) -> impl Fn(Errno) -> CopyError {
    let name = if name.is_empty() { ".".to_owned() } else { name.to_string() };
    move |error| CopyError::Read { action, name: name.clone(), source: error.into() }
}

/// For an entry that was there a moment ago.
fn gone_or(action: &'static str, name: &BString) -> impl Fn(Errno) -> CopyError {
    let name = name.clone();
    move |error| match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => CopyError::Changed(name.to_string()),
        error => failed(action, &name)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_file_is_not_remembered() {
        let at = |ctime_ns| FileVersion { dev: 1, ino: 1, size_bytes: 1, mtime_ns: 1, ctime_ns };
        let now = 5_000_000_000;
        assert!(is_settled(&at(now - 20_000_001), now));
        assert!(!is_settled(&at(now - 19_999_999), now));
        let whole_seconds = FileVersion { mtime_ns: 0, ..at(now - 2_000_000_000) };
        assert!(!is_settled(&whole_seconds, now));
    }

    #[test]
    fn an_item_of_the_source_stays_inside() {
        assert_eq!(relative(&"./a//b/".into()).unwrap(), "a/b");
        assert_eq!(relative(&"/".into()).unwrap(), "");
        assert!(matches!(relative(&"a/../../b".into()), Err(CopyError::Outside(_))));
    }
}
