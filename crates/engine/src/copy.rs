//! Writes a manifest into an image.
//!
//! The image's tree is a stranger's: its directories can be symbolic links to anywhere. Every path is resolved inside the
//! root (`openat2(2)`, `RESOLVE_IN_ROOT`), and a link in the place of a file is replaced, not followed.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use bstr::{BString, ByteSlice};
use kiln_store::Digest;
use rayon::prelude::*;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens,
    mkdirat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::error::{CopyError, Stopped};
use crate::manifest::{Entry, Kind, Manifest, Tree, version_of};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How many files one worker takes at a time: they share their directory's descriptor.
const BATCH: usize = 64;

/// A place in an image to copy to.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// The image's root.
    pub(crate) root: &'a OwnedFd,
    /// Absolute; ends in `/` if the copies go into it, else it is the one copy's own name.
    pub(crate) dst: &'a BString,
    /// Who owns what is made: uid and gid.
    pub(crate) owner: (u32, u32),
}

/// Copies all of `manifest` from `tree`. Blocks; uses all processors.
pub(crate) fn into(
    target: &Target<'_>,
    tree: &Tree,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> Result<(), Stopped> {
    let (directory, _) = target.dst.rsplit_once_str("/").unwrap_or_default();
    target.make_directories(directory.into())?;
    let mut made = Vec::new();
    for entry in &manifest.entries {
        if matches!(entry.kind, Kind::Directory) && target.make_directory(entry)? {
            made.push(entry);
        }
    }
    let files: Vec<&Entry> = manifest.entries.iter().filter(|entry| !matches!(entry.kind, Kind::Directory)).collect();
    files.par_chunks(BATCH).try_for_each(|batch| -> Result<(), Stopped> {
        let mut open: Option<(BString, OwnedFd)> = None;
        for entry in batch {
            if cancel.is_cancelled() {
                return Err(Stopped::Cancelled);
            }
            let path = target.path(entry);
            let (parent, name) = path.rsplit_once_str("/").unwrap_or_default();
            let directory = match open.take() {
                Some((known, directory)) if known == parent => directory,
                _ => target.open_directory(parent.into())?,
            };
            target.write(&directory, name, tree, entry, cancel)?;
            open = Some((parent.into(), directory));
        }
        Ok(())
    })?;
    // Last, because filling a directory changes its times.
    for entry in made.into_iter().rev() {
        let directory = target.open_directory(target.path(entry))?;
        let path = target.path(entry);
        futimens(&directory, &times(entry.mtime)).map_err(failed("set the times of", &path))?;
    }
    Ok(())
}

impl Target<'_> {
    /// Returns where an entry goes, absolute.
    fn path(&self, entry: &Entry) -> BString {
        if entry.to.is_empty() {
            return self.dst.strip_suffix(b"/").unwrap_or(self.dst).into();
        }
        let mut path = self.dst.clone();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.to);
        path
    }

    fn resolve(&self, path: &BString, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"/" } else { path };
        open_in_root(self.root, path, flags)
    }

    fn open_directory(&self, path: BString) -> Result<OwnedFd, CopyError> {
        self.resolve(&path, DIRECTORY).map_err(failed("open", &path))
    }

    /// Makes the directory `path` with its parents, unless it is there.
    fn make_directories(&self, path: BString) -> Result<OwnedFd, CopyError> {
        let wanted = |kind| CopyError::InTheWay { name: path.to_string(), kind, wanted: "a directory" };
        match self.resolve(&path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return Err(wanted("no directory")),
            Err(Errno::LOOP) => return Err(wanted("a loop of symbolic links")),
            opened => return opened.map_err(failed("open", &path)),
        }
        let (parent, name) = path.rsplit_once_str("/").unwrap_or_default();
        let parent = self.make_directories(parent.into())?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => return Err(wanted("a symbolic link to nowhere")),
            made => made.map_err(failed("create", &path))?,
        }
        self.own_directory(&parent, name, &path)
    }

    /// Opens a directory just made and gives it its owner and mode.
    fn own_directory(&self, parent: &OwnedFd, name: &[u8], path: &BString) -> Result<OwnedFd, CopyError> {
        let made = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(failed("open", path))?;
        self.own(&made, 0o755).map_err(failed("change the owner of", path))?;
        Ok(made)
    }

    fn own(&self, file: impl AsFd, mode: u32) -> Result<(), Errno> {
        if self.owner != (0, 0) {
            fchown(&file, Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)))?;
        }
        // Whatever the umask took away.
        fchmod(&file, Mode::from_raw_mode(mode))
    }

    /// Makes the directory of an entry. One that is there keeps its mode and owner: returns false for it.
    fn make_directory(&self, entry: &Entry) -> Result<bool, CopyError> {
        let path = self.path(entry);
        let (parent, name) = path.rsplit_once_str("/").unwrap_or_default();
        if name.is_empty() {
            return Ok(false);
        }
        let parent = self.make_directories(parent.into())?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.own_directory(&parent, name, &path).map(|_| true),
            // Also through a link, as long as it stays inside: `/bin` is one in many images.
            Err(Errno::EXIST) => match self.resolve(&path, DIRECTORY) {
                Ok(_) => Ok(false),
                Err(_) => {
                    let kind = "no directory";
                    Err(CopyError::InTheWay { name: path.to_string(), kind, wanted: "a directory" })
                }
            },
            Err(error) => Err(failed("create", &path)(error)),
        }
    }

    /// Writes a file or link into the open directory.
    fn write(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        tree: &Tree,
        entry: &Entry,
        cancel: &CancellationToken,
    ) -> Result<(), Stopped> {
        let path = self.path(entry);
        match &entry.kind {
            Kind::Directory => {}
            Kind::Link(link) => {
                self.replacing(directory, name, &path, || symlinkat(link.as_slice(), directory, name))?;
                let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
                if self.owner != (0, 0) {
                    chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed("change the owner of", &path))?;
                }
                utimensat(directory, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("set the times of", &path))?;
            }
            Kind::File { version, executable, digest } => {
                let mut source = tree.open_file(&entry.from, version)?;
                let mode = if *executable { 0o755 } else { 0o644 };
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let create = || openat(directory, name, flags, Mode::from_raw_mode(mode));
                let file = self.replacing(directory, name, &path, create)?;
                let mut file = std::fs::File::from(file);
                let copied = copy_content(&mut source, &mut file, version.size_bytes, entry, &path, cancel)?;
                let after = rustix::fs::fstat(&source).map_err(failed("read", &entry.from))?;
                // The digest too: who writes through a mapping changes the times only now and then.
                if version_of(&after) != *version || copied != *digest {
                    return Err(CopyError::Changed(entry.from.to_string()).into());
                }
                self.own(&file, mode).map_err(failed("change the owner of", &path))?;
                futimens(&file, &times(entry.mtime)).map_err(failed("set the times of", &path))?;
            }
        }
        Ok(())
    }

    /// Makes something new under `name`; what is there, if it is no directory, goes.
    fn replacing<T>(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        path: &BString,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, CopyError> {
        match make() {
            Err(Errno::EXIST) => {}
            made => return made.map_err(failed("create", path)),
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("read", path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(CopyError::InTheWay { name: path.to_string(), kind: "a directory", wanted: "a file" });
        }
        unlinkat(directory, name, AtFlags::empty()).map_err(failed("replace", path))?;
        make().map_err(failed("create", path))
    }
}

/// Opens a path of a stranger's tree; its links and `..` lead no further than `root`.
pub(crate) fn open_in_root(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
            // Something was renamed, anywhere on this host, while a `..` was followed.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// Copies the first `size_bytes`. Returns the digest of what was written.
fn copy_content(
    source: &mut std::fs::File,
    file: &mut std::fs::File,
    size_bytes: u64,
    entry: &Entry,
    path: &BString,
    cancel: &CancellationToken,
) -> Result<Digest, Stopped> {
    const SMALL: usize = 64 << 10;
    let mut small = [0; SMALL];
    let mut large = Vec::new();
    let buffer = if size_bytes > SMALL as u64 {
        large.resize(1 << 20, 0);
        &mut large[..]
    } else {
        &mut small[..]
    };
    let mut hasher = blake3::Hasher::new();
    let mut left = size_bytes;
    // A file that grows meanwhile is noticed by its version; it must not fill the disk first.
    while left > 0 {
        if cancel.is_cancelled() {
            return Err(Stopped::Cancelled);
        }
        let limit = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = source.read(&mut buffer[..limit]);
        let length = read.map_err(|source| CopyError::Read { action: "read", name: entry.from.to_string(), source })?;
        if length == 0 {
            break;
        }
        let written = file.write_all(&buffer[..length]);
        written.map_err(|source| CopyError::Write { action: "write", name: path.to_string(), source })?;
        hasher.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(hasher.finalize().into())
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn failed(action: &'static str, path: &BString) -> impl Fn(Errno) -> CopyError {
    let name = path.to_string();
    move |error| CopyError::Write { action, name: name.clone(), source: error.into() }
}
