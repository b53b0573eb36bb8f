//! An OCI layout in a directory, alone or with the images that are there.
//!
//! ```text
//! DIR/oci-layout           says what the directory is
//! DIR/index.json           the images, by their names: written last, by a rename
//! DIR/blobs/sha256/HEX     layers, configurations, manifests
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::ExportError;
use super::document::{self, Descriptor};
use super::error::At;
use super::output::{Unfinished, beside};

/// The longest index that is read.
const LONGEST_INDEX: u64 = 64 << 20;

/// A layout that is being written to. It is locked against other processes of ours.
pub(super) struct Layout {
    dir: PathBuf,
    new: New,
    /// Given up last.
    _lock: File,
}

/// What is removed again if the image does not get into the index. Directories that others put something into stay.
#[derive(Default)]
struct New(Vec<PathBuf>);

impl New {
    /// Makes a directory, unless it is there.
    fn make(&mut self, path: PathBuf) -> Result<(), ExportError> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made.at_write(&path)?;
                self.0.push(path);
            }
        }
        Ok(())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // A directory goes after what is in it.
        for path in self.0.drain(..).rev() {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was not finished");
            }
        }
    }
}

impl Layout {
    /// Opens the layout in `dir`, or starts one if that is empty or does not exist.
    pub(super) fn open(dir: &Path) -> Result<Self, ExportError> {
        let mut new = New::default();
        new.make(dir.to_owned())?;
        let lock = File::open(dir).at_write(dir)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                // Whoever was faster to lock what we made has it now.
                new.0.clear();
                return Err(ExportError::InUse { path: dir.to_owned() });
            }
            locked => locked.at_write(dir)?,
        }
        let bad = |reason: &str| ExportError::NotALayout { path: dir.to_owned(), reason: reason.to_owned() };
        let is_layout = dir.join("oci-layout").exists();
        if !is_layout && fs::read_dir(dir).at_write(dir)?.next().is_some() {
            return Err(bad("it is not empty, and has no `oci-layout`"));
        }
        new.make(dir.join("blobs"))?;
        new.make(dir.join("blobs/sha256"))?;
        let mut layout = Self { dir: dir.to_owned(), _lock: lock, new };
        if !is_layout {
            let mut text = document::LAYOUT;
            layout.write("oci-layout", &mut text)?;
        }
        Ok(layout)
    }

    /// Returns true if the blob is there.
    pub(super) fn has(&self, blob: &Descriptor) -> bool {
        let meta = fs::metadata(self.dir.join(document::blob_path(&blob.digest)));
        meta.is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
    }

    /// Writes a blob, unless it is there.
    pub(super) fn put(&mut self, blob: &Descriptor, content: &mut (impl Read + ?Sized)) -> Result<(), ExportError> {
        if self.has(blob) { Ok(()) } else { self.write(&document::blob_path(&blob.digest), content) }
    }

    /// Puts the image into the index. All its blobs are there.
    pub(super) fn finish(mut self, entries: &[Descriptor]) -> Result<(), ExportError> {
        let path = self.dir.join("index.json");
        let index = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => document::index(entries),
            file => {
                let mut old = Vec::new();
                file.and_then(|file| file.take(LONGEST_INDEX + 1).read_to_end(&mut old)).at_write(&path)?;
                let merged = match old.len() as u64 {
                    0..=LONGEST_INDEX => document::merge_index(&old, entries),
                    _ => Err(format!("its index.json is longer than {LONGEST_INDEX} bytes")),
                };
                merged.map_err(|reason| ExportError::NotALayout { path: self.dir.clone(), reason })?
            }
        };
        self.write("index.json", &mut &*index)?;
        self.new.0.clear();
        Ok(())
    }

    /// Writes a file, which appears when it is whole.
    fn write(&mut self, name: &str, content: &mut (impl Read + ?Sized)) -> Result<(), ExportError> {
        let path = self.dir.join(name);
        let new = Unfinished(Some(beside(&path)));
        let mut write = || {
            let mut file = File::options().write(true).create_new(true).open(new.path())?;
            io::copy(content, &mut file)?;
            file.flush()
        };
        write().at_write(&path)?;
        let is_replaced = path.exists();
        new.rename(&path).at_write(&path)?;
        if !is_replaced {
            self.new.0.push(path);
        }
        Ok(())
    }
}
