//! A directory that is a root filesystem: copied, never used in place.
//!
//! The same walk identifies and copies it, so what was copied is known to be what was identified. It stays on
//! one filesystem: what is mounted in the directory becomes an empty directory. Sockets are left out.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::digest::hex;
use crate::error::At;
use crate::fetch::Plan;
use crate::layers::Fetch;
use crate::tar::{Entry, Kind, Time};
use crate::tree::{Below, Content, Tree, Whiteouts, is_kept};
use crate::unpack::UnpackError;
use crate::{FileDigests, ImageError, Resolved};

/// The first bytes that are hashed: a new version whenever what follows changes.
const VERSION: &[u8] = b"kiln directory 1";

/// Identifies the directory by all that a copy of it would have.
pub(crate) fn resolve(dir: PathBuf, digests: &dyn FileDigests) -> Result<Resolved, ImageError> {
    check(&dir)?;
    let blake3 = walk(&dir, &mut |path, entry| match entry.kind {
        Kind::File { .. } => digests.blake3(path).at_read(path),
        _ => Ok([0; 32]),
    })?;
    let identity = format!("dir blake3:{}", hex(&blake3));
    Ok(Resolved::tree(identity, Plan::Dir { dir, blake3 }))
}

/// Copies the directory.
pub(crate) fn fetch(dir: &Path, blake3: [u8; 32], into: &Path, fetch: &Fetch) -> Result<(), ImageError> {
    check(dir)?;
    if into.canonicalize().at_open(into)?.starts_with(dir.canonicalize().at_open(dir)?) {
        // The copy would be copied, and the copy of the copy.
        return Err(ImageError::ContainsStore { dir: dir.to_owned(), into: into.to_owned() });
    }
    let Fetch { limits, progress, cancel } = fetch;
    let unpacking = |path: &Path, error| ImageError::unpacking(path.display().to_string(), error);
    let mut tree = Tree::new(into, Below::Nothing, Whiteouts::Literal, limits).at_write(into)?;
    let (mut buffer, mut done) = (vec![0; 128 << 10], 0);
    let found = walk(dir, &mut |path, entry| {
        if cancel.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let file = match entry.kind {
            Kind::File { .. } => Some(open(path).at_open(path)?),
            _ => None,
        };
        let mut content = Copied::new(file, &mut buffer);
        tree.add(entry, &mut content, cancel).map_err(|error| unpacking(path, error))?;
        done += content.length;
        progress.bytes(done, done);
        Ok(content.digest())
    })?;
    tree.finish(&**progress).map_err(|error| unpacking(dir, error))?;
    if found != blake3 {
        return Err(ImageError::Changed { path: dir.to_owned() });
    }
    Ok(())
}

/// Opens what was a regular file when the walk saw it.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn check(dir: &Path) -> Result<(), ImageError> {
    if dir.metadata().at_open(dir)?.is_dir() {
        return Ok(());
    }
    Err(ImageError::NotA { path: dir.to_owned(), wanted: "a directory", found: "it is a file".to_owned() })
}

/// Looks at an entry, and returns the digest of its content if it is a file.
type Visit<'a> = dyn FnMut(&Path, &Entry) -> Result<[u8; 32], ImageError> + 'a;

/// Tells `visit` of each entry below `dir`, directories before what is in them, in one order for all machines.
/// Returns a digest of it all; `visit` gives those of files.
fn walk(dir: &Path, visit: &mut Visit<'_>) -> Result<[u8; 32], ImageError> {
    // Not following the last link would make an empty image of a link to a directory.
    let meta = dir.metadata().at_read(dir)?;
    let mut walk = Walk { device: meta.dev(), links: HashMap::new(), hasher: blake3::Hasher::new(), visit };
    walk.hasher.update(VERSION);
    walk.entry(dir, Vec::new(), &meta)?;
    walk.directory(dir, b"")?;
    Ok(walk.hasher.finalize().into())
}

struct Walk<'a> {
    device: u64,
    /// The first name of each file that has several.
    links: HashMap<u64, Vec<u8>>,
    hasher: blake3::Hasher,
    visit: &'a mut Visit<'a>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, name: &[u8]) -> Result<(), ImageError> {
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::read_dir(path).at_read(path)? {
            names.push(entry.at_read(path)?.file_name());
        }
        names.sort_unstable();
        for below in names {
            let path = path.join(&below);
            let mut name = name.to_vec();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(below.as_bytes());
            let meta = path.symlink_metadata().at_read(&path)?;
            if meta.file_type().is_socket() {
                continue;
            }
            self.entry(&path, name.clone(), &meta)?;
            if meta.is_dir() && meta.dev() == self.device {
                self.directory(&path, &name)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: Vec<u8>, meta: &Metadata) -> Result<(), ImageError> {
        let kind = self.kind(path, &name, meta)?;
        let has_xattrs = matches!(kind, Kind::File { .. } | Kind::Directory);
        let entry = Entry {
            name,
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: Time { seconds: meta.mtime(), nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or_default() },
            xattrs: if has_xattrs { xattrs(path).at_read(path)? } else { Vec::new() },
        };
        let content = (self.visit)(path, &entry)?;
        self.hash(&entry, content);
        Ok(())
    }

    fn kind(&mut self, path: &Path, name: &[u8], meta: &Metadata) -> Result<Kind, ImageError> {
        let kind = meta.file_type();
        if kind.is_dir() {
            return Ok(Kind::Directory);
        }
        if meta.nlink() > 1 {
            match self.links.get(&meta.ino()) {
                Some(first) => return Ok(Kind::HardLink(first.clone())),
                None => drop(self.links.insert(meta.ino(), name.to_vec())),
            }
        }
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        Ok(if kind.is_symlink() {
            Kind::Symlink(fs::read_link(path).at_read(path)?.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Kind::CharDevice { major, minor }
        } else if kind.is_block_device() {
            Kind::BlockDevice { major, minor }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            Kind::File { size: meta.len(), segments: None }
        })
    }

    /// Every field in a fixed order, those of varying length after their length.
    fn hash(&mut self, entry: &Entry, content: [u8; 32]) {
        let Self { hasher, .. } = self;
        let mut bytes = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        bytes(&entry.name);
        let (kind, size, target, device) = match &entry.kind {
            Kind::File { size, .. } => (b"f", *size, &b""[..], (0, 0)),
            Kind::HardLink(target) => (b"h", 0, &target[..], (0, 0)),
            Kind::Symlink(target) => (b"l", 0, &target[..], (0, 0)),
            Kind::Directory => (b"d", 0, &b""[..], (0, 0)),
            Kind::CharDevice { major, minor } => (b"c", 0, &b""[..], (*major, *minor)),
            Kind::BlockDevice { major, minor } => (b"b", 0, &b""[..], (*major, *minor)),
            Kind::Fifo => (b"p", 0, &b""[..], (0, 0)),
        };
        bytes(kind);
        bytes(target);
        bytes(&content);
        bytes(&size.to_le_bytes());
        bytes(&entry.mtime.seconds.to_le_bytes());
        for number in [entry.mtime.nanoseconds, entry.mode, entry.uid, entry.gid, device.0, device.1] {
            bytes(&number.to_le_bytes());
        }
        bytes(&(entry.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &entry.xattrs {
            bytes(name);
            bytes(value);
        }
    }
}

/// Returns the attributes that a copy gets, sorted.
fn xattrs(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // More than the kernel allows for all names, and for one value.
    const MOST: usize = 64 << 10;
    let mut names = Vec::with_capacity(256);
    loop {
        names.resize(names.capacity(), 0);
        match rustix::fs::llistxattr(path, &mut names[..]) {
            Ok(length) => break names.truncate(length),
            Err(rustix::io::Errno::RANGE) if names.len() < MOST => names.reserve(MOST),
            // A filesystem without attributes.
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty() && is_kept(name)) {
        let mut value = vec![0; MOST];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    Ok(found)
}

/// The content of a file that is copied and hashed on its way.
struct Copied<'a> {
    file: Option<File>,
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
    length: u64,
    hasher: blake3::Hasher,
}

impl<'a> Copied<'a> {
    fn new(file: Option<File>, buffer: &'a mut [u8]) -> Self {
        Self { file, buffer, start: 0, end: 0, length: 0, hasher: blake3::Hasher::new() }
    }

    /// Returns the digest of what was copied; zeros for what is not a file.
    fn digest(&self) -> [u8; 32] {
        if self.file.is_some() { self.hasher.finalize().into() } else { [0; 32] }
    }
}

impl Content for Copied<'_> {
    fn part(&mut self) -> Result<&[u8], UnpackError> {
        if self.start == self.end
            && let Some(file) = &mut self.file
        {
            (self.start, self.end) = (0, file.read(self.buffer).map_err(UnpackError::Read)?);
            self.hasher.update(&self.buffer[..self.end]);
            self.length += self.end as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}
