//! What a whole tree is, in 32 bytes: to see later that it is still the same.
//!
//! The digest is of the tree, not of how a store keeps it: the same on every kind of store, and for a draft as for what
//! it becomes. It covers all that a step could see: names, kinds, modes, owners, times of modification, targets,
//! device numbers, extended attributes, contents, and which names are hard links of one file.
//!
//! It is BLAKE3 over one record for each entry, in the order of a walk that sorts names by their bytes; `.` ends a
//! directory. Numbers are little-endian, texts follow their length.
//!
//! ```text
//! entry   = kind name mode uid gid seconds nanoseconds count{xattr value} what
//!         | 'h' name number            another name of the file in the record of this number
//! what    = 'f': size digest  'l': target  'b', 'c': major minor  'p', 's', 'd': nothing
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use blake3::{Hash, Hasher};
use rayon::prelude::*;
use rustix::fs::{FileType, Stat, major, minor, readlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::At;
use crate::walk;
use crate::{Root, StoreError};

/// A BLAKE3 digest of a whole tree, printed as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreeDigest(Hash);

impl fmt::Display for TreeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_hex().as_str())
    }
}

impl TryFrom<String> for TreeDigest {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Hash::from_hex(text).map(Self)
    }
}

impl From<TreeDigest> for String {
    fn from(digest: TreeDigest) -> Self {
        digest.to_string()
    }
}

impl TreeDigest {
    /// Reads the whole tree, which nobody writes to. Errors name entries below `place`.
    pub(crate) fn of(root: &Root, place: &Path) -> Result<Self, StoreError> {
        let tree = root.read_only().mount().at("mount", place)?;
        let mut walk = Walk { path: Vec::new(), links: HashMap::new(), records: 0, batch: Batch::default() };
        let digest = walk.tree(&tree);
        digest.map_err(|error| StoreError::disk("read", place.join(OsStr::from_bytes(&walk.path)), error))
    }
}

struct Walk {
    /// Where the walk is, for errors.
    path: Vec<u8>,
    /// The record of each file that may have several names.
    links: HashMap<(u64, u64), u64>,
    records: u64,
    batch: Batch,
}

/// A directory on the way.
struct Level {
    /// How long the path above it is.
    above: usize,
    /// What is left to look at, the first at the end.
    names: Vec<CString>,
}

impl Walk {
    fn tree(&mut self, root: &OwnedFd) -> io::Result<TreeDigest> {
        let mut directory = walk::open(root, c".")?;
        self.record(&directory, c".", &rustix::fs::fstat(&directory)?)?;
        let mut levels = vec![Level { above: 0, names: walk::names(&directory)? }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.path.truncate(level.above);
                levels.pop();
                self.batch.text.push(b'.');
                if !levels.is_empty() {
                    directory = walk::open(&directory, c"..")?;
                }
                continue;
            };
            let above = self.path.len();
            self.path.extend_from_slice(name.to_bytes());
            if let Some(stat) = walk::look(&directory, &name)? {
                self.record(&directory, &name, &stat)?;
                if walk::is_directory(&stat) {
                    self.path.push(b'/');
                    directory = walk::open(&directory, &name)?;
                    levels.push(Level { above, names: walk::names(&directory)? });
                    continue;
                }
            }
            self.path.truncate(above);
        }
        self.batch.end(&mut self.path)
    }

    fn record(&mut self, directory: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let batch = &mut self.batch;
        let number = self.records;
        self.records += 1;
        if kind != FileType::Directory && stat.st_nlink > 1 {
            match self.links.entry((stat.st_dev, stat.st_ino)) {
                Entry::Occupied(first) => {
                    batch.text.push(b'h');
                    batch.bytes(name.to_bytes());
                    batch.number(*first.get());
                    return batch.hash_if_full(&mut self.path);
                }
                Entry::Vacant(slot) => _ = slot.insert(number),
            }
        }
        batch.text.push(match kind {
            FileType::Directory => b'd',
            FileType::RegularFile => b'f',
            FileType::Symlink => b'l',
            FileType::BlockDevice => b'b',
            FileType::CharacterDevice => b'c',
            FileType::Fifo => b'p',
            FileType::Socket => b's',
            FileType::Unknown => return Err(Errno::INVAL.into()),
        });
        batch.bytes(name.to_bytes());
        for number in [stat.st_mode & 0o7777, stat.st_uid, stat.st_gid] {
            batch.number(number.into());
        }
        batch.number(stat.st_mtime.cast_unsigned());
        batch.number(stat.st_mtime_nsec);
        let extended = walk::extended(directory, name)?;
        batch.number(extended.len() as u64);
        for (name, value) in &extended {
            batch.bytes(name.to_bytes());
            batch.bytes(value);
        }
        match kind {
            FileType::RegularFile => {
                batch.number(stat.st_size.cast_unsigned());
                batch.file(walk::open_file(directory, name)?, stat.st_size.cast_unsigned(), &self.path);
            }
            FileType::Symlink => batch.bytes(readlinkat(directory, name, Vec::new())?.to_bytes()),
            FileType::BlockDevice | FileType::CharacterDevice => {
                batch.number(major(stat.st_rdev).into());
                batch.number(minor(stat.st_rdev).into());
            }
            _ => {}
        }
        batch.hash_if_full(&mut self.path)
    }
}

/// What one thread hashes sooner than it could share it with another.
const SMALL_BYTES: u64 = 256 << 10;

/// Records whose files are not read yet. They are read side by side, a few at a time: each holds a descriptor.
#[derive(Default)]
struct Batch {
    hasher: Hasher,
    text: Vec<u8>,
    files: Vec<Content>,
}

struct Content {
    file: File,
    size_bytes: u64,
    /// Where in the text its digest belongs.
    at: usize,
    path: Vec<u8>,
}

impl Batch {
    const FILES: usize = 32;
    const TEXT_BYTES: usize = 1 << 20;

    fn number(&mut self, number: u64) {
        self.text.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.text.extend_from_slice(bytes);
    }

    fn file(&mut self, file: File, size_bytes: u64, path: &[u8]) {
        self.files.push(Content { file, size_bytes, at: self.text.len(), path: path.to_owned() });
        self.text.extend_from_slice(&[0; blake3::OUT_LEN]);
    }

    fn hash_if_full(&mut self, path: &mut Vec<u8>) -> io::Result<()> {
        if self.files.len() < Self::FILES && self.text.len() < Self::TEXT_BYTES {
            return Ok(());
        }
        self.hash(path)
    }

    /// Reads the files. `path` becomes the path of one that cannot be read.
    fn hash(&mut self, path: &mut Vec<u8>) -> io::Result<()> {
        let read = |content: Content| match hash_content(&content) {
            Ok(hash) => Ok((content.at, hash)),
            Err(error) => Err((content.path, error)),
        };
        let bytes: u64 = self.files.iter().map(|content| content.size_bytes).sum();
        let hashes: Result<Vec<_>, _> = match bytes {
            // Not worth waking anyone for.
            0..SMALL_BYTES => self.files.drain(..).map(read).collect(),
            _ => self.files.par_drain(..).map(read).collect(),
        };
        let hashes = hashes.map_err(|(of, error)| {
            *path = of;
            error
        })?;
        for (at, hash) in hashes {
            self.text[at..at + blake3::OUT_LEN].copy_from_slice(hash.as_bytes());
        }
        self.hasher.update(&self.text);
        self.text.clear();
        Ok(())
    }

    fn end(&mut self, path: &mut Vec<u8>) -> io::Result<TreeDigest> {
        self.hash(path)?;
        Ok(TreeDigest(self.hasher.finalize()))
    }
}

fn hash_content(content: &Content) -> io::Result<Hash> {
    const PART: u64 = 1 << 20;
    let mut hasher = Hasher::new();
    let mut part = vec![0; usize::try_from(content.size_bytes.clamp(1, PART)).expect("a part fits in memory")];
    let mut left = content.size_bytes;
    while left > 0 {
        let length = (&content.file).read(&mut part)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if length as u64 >= SMALL_BYTES {
            hasher.update_rayon(&part[..length]);
        } else {
            hasher.update(&part[..length]);
        }
        left = left.saturating_sub(length as u64);
    }
    Ok(hasher.finalize())
}
