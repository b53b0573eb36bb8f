//! The files of an image, in a directory or in place in a tar archive.
//!
//! Archives are not copied out: one pass over the headers, seeking over the content, finds where each file
//! lies, and blobs are read from there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::error::At;
use crate::stream::{Compression, Section};
use crate::tar::{Kind, Reader, Source};
use crate::unpack::UnpackError;
use crate::{Digest, ImageError, Limits};

/// Members of an archive that are noted; an image has a few for each layer.
const MEMBERS: usize = 100_000;
/// Longest name that is noted: `blobs/sha256/` and 64 digits, or what Docker used to write.
const NAME_LENGTH: usize = 512;
/// Links from one member to another that are followed.
const LINKS: usize = 8;

/// Where the files of an image are.
#[derive(Debug)]
pub(crate) struct Container {
    path: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Directory,
    Archive { file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

#[derive(Debug)]
enum Member {
    File { offset: u64, length: u64 },
    Link(Vec<u8>),
}

impl Container {
    /// Opens a directory.
    pub(crate) fn directory(path: &Path, wanted: &'static str) -> Result<Self, ImageError> {
        if !path.metadata().at_open(path)?.is_dir() {
            return Err(ImageError::NotA { path: path.to_owned(), wanted, found: "not a directory".to_owned() });
        }
        Ok(Self { path: path.to_owned(), files: Files::Directory })
    }

    /// Opens a tar archive and finds its members.
    pub(crate) fn archive(path: &Path, wanted: &'static str, limits: &Limits) -> Result<Self, ImageError> {
        Self::archive_in(open_file(path, wanted)?, path, wanted, limits)
    }

    /// Finds the members of a tar archive that is open, and that errors call `path`.
    pub(crate) fn archive_in(
        section: Section,
        path: &Path,
        wanted: &'static str,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let mut start = [0; 8];
        let have = section.peek(&mut start).at_read(path)?;
        let compression = Compression::of(&start[..have]);
        if compression != Compression::None {
            let found = format!("it is compressed with {}; decompress it first", compression.name());
            return Err(ImageError::NotA { path: path.to_owned(), wanted, found });
        }
        let unpack = |source| ImageError::Unpack { name: path.display().to_string(), source };
        let file = section.file();
        let mut reader = Reader::new(Seeking::new(Arc::clone(&file), section.len()), limits);
        let mut members = HashMap::new();
        while let Some(entry) = reader.next().map_err(|error| unpack(error.into()))? {
            let member = match entry.kind {
                Kind::File { size, segments: None } => Member::File { offset: reader.offset(), length: size },
                // Docker used to write layers that several images share once, and links to them.
                Kind::Symlink(target) => match entry.name.iter().rposition(|&byte| byte == b'/') {
                    Some(slash) if target.first() != Some(&b'/') => {
                        Member::Link([&entry.name[..=slash], &target].concat())
                    }
                    _ => Member::Link(target),
                },
                Kind::HardLink(target) => Member::Link(target),
                _ => continue,
            };
            if entry.name.len() <= NAME_LENGTH && members.len() < MEMBERS {
                members.insert(plain(&entry.name), member);
            }
        }
        Ok(Self { path: path.to_owned(), files: Files::Archive { file, members } })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if there is a file `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.files {
            Files::Directory => self.path.join(name).exists(),
            Files::Archive { members, .. } => members.contains_key(&plain(name.as_bytes())),
        }
    }

    /// Returns the file `name`.
    pub(crate) fn section(&self, name: &str) -> Result<Section, ImageError> {
        let missing = || ImageError::Missing { path: self.path.clone(), name: name.to_owned() };
        match &self.files {
            Files::Directory => match open_file(&self.path.join(name), "a file of an image") {
                Err(ImageError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(missing()),
                opened => opened,
            },
            Files::Archive { file, members } => {
                let mut name = plain(name.as_bytes());
                for _ in 0..LINKS {
                    match members.get(&name) {
                        None => break,
                        Some(Member::Link(target)) => name = plain(target),
                        Some(&Member::File { offset, length }) => {
                            return Ok(Section::new(Arc::clone(file), offset, length));
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// Returns the content of the document `name`.
    pub(crate) fn document(&self, name: &str, limits: &Limits) -> Result<Vec<u8>, ImageError> {
        let mut section = self.section(name)?;
        let (size, limit) = (section.len(), limits.document_bytes);
        if size > limit {
            return Err(ImageError::DocumentTooLong { path: self.path.clone(), name: name.to_owned(), size, limit });
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut section, &mut bytes).at_read(&self.path)?;
        Ok(bytes)
    }

    /// Returns the blob `digest`, which must be `size` bytes long. Its content is not checked.
    pub(crate) fn blob(&self, digest: Digest, size: u64) -> Result<Section, ImageError> {
        let name = blob_name(digest);
        let section = self.section(&name)?;
        if section.len() != size {
            let found = section.len();
            return Err(ImageError::WrongSize { path: self.path.clone(), name, wanted: size, found });
        }
        Ok(section)
    }

    /// Returns the content of the blob `digest`, checked.
    pub(crate) fn blob_document(&self, digest: Digest, size: u64, limits: &Limits) -> Result<Vec<u8>, ImageError> {
        self.blob(digest, size)?;
        let name = blob_name(digest);
        let bytes = self.document(&name, limits)?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(ImageError::WrongDigest { path: self.path.clone(), name, found: found.to_string() });
        }
        Ok(bytes)
    }

    /// Parses the document `name`, whose content is `bytes`.
    pub(crate) fn parse<T: DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, ImageError> {
        parse(&self.path, name, bytes)
    }
}

/// Parses the document `name` of the image at `path`.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::BadDocument {
        path: path.to_owned(),
        name: name.to_owned(),
        source,
    })
}

/// Parses a digest that stands in the document `name` of the image at `path`.
pub(crate) fn digest(path: &Path, name: &str, text: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|source| ImageError::BadDigest { path: path.to_owned(), name: name.to_owned(), source })
}

/// Returns where an image layout keeps the blob `digest`.
pub(crate) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Opens a regular file.
pub(crate) fn open_file(path: &Path, wanted: &'static str) -> Result<Section, ImageError> {
    let kind = path.metadata().at_open(path)?.file_type();
    if !kind.is_file() {
        // Opening a fifo would wait for its writer.
        let found = if kind.is_dir() { "a directory" } else { "not a regular file" };
        return Err(ImageError::NotA { path: path.to_owned(), wanted, found: found.to_owned() });
    }
    Section::whole(File::open(path).at_open(path)?).at_read(path)
}

/// Returns a member's name without `.`, `..` and empty components.
fn plain(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Reads a file from its start, and passes over what is not wanted without reading it.
struct Seeking {
    file: Arc<File>,
    offset: u64,
    length: u64,
    buffer: Box<[u8; 4096]>,
    start: usize,
    end: usize,
}

impl Seeking {
    fn new(file: Arc<File>, length: u64) -> Self {
        Self { file, offset: 0, length, buffer: Box::new([0; 4096]), start: 0, end: 0 }
    }
}

impl Source for Seeking {
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, self.file.read_at(&mut self.buffer[..], self.offset)?);
            self.offset += self.end as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let here = (self.end - self.start) as u64;
        if count <= here {
            self.start += usize::try_from(count).expect("less than the buffer");
            return Ok(count);
        }
        (self.start, self.end) = (0, 0);
        let beyond = (count - here).min(self.length.saturating_sub(self.offset));
        self.offset += beyond;
        Ok(here + beyond)
    }
}

impl ImageError {
    /// Returns the error of unpacking `name`, or that of the caller's cancellation.
    pub(crate) fn unpacking(name: impl Into<String>, source: UnpackError) -> Self {
        match source {
            UnpackError::Cancelled => Self::Cancelled,
            source => Self::Unpack { name: name.into(), source },
        }
    }
}
