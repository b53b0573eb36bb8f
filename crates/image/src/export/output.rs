//! Files that appear when they are whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::At;
use super::{ExportError, Output};
use crate::stream::Section;
use crate::temporary::nameless;

/// Says what it means that the output cannot be written.
pub(super) type Failed<'a> = dyn Fn(io::Error) -> ExportError + Sync + 'a;

/// Lets `fill` write the output, which appears if that succeeds.
pub(super) fn write<T>(
    output: Output,
    fill: impl FnOnce(&mut (dyn Write + Send), &Failed<'_>) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    let path = match output {
        Output::Stream(mut stream) => return fill(&mut stream, &ExportError::Stream),
        Output::File(path) => path,
    };
    let failed = |source| ExportError::Write { path: path.clone(), source };
    // A link stays, and what it leads to is replaced; a device or fifo is written to.
    let target = path.canonicalize().unwrap_or_else(|_| path.clone());
    match target.metadata() {
        Ok(meta) if meta.is_dir() => return Err(failed(io::ErrorKind::IsADirectory.into())),
        Ok(meta) if !meta.is_file() => {
            let mut file = File::options().write(true).open(&target).map_err(failed)?;
            return fill(&mut file, &failed);
        }
        _ => {}
    }
    let new = beside(&target);
    let mut file = File::options().write(true).create_new(true).open(&new).map_err(failed)?;
    let new = Unfinished(Some(new));
    let filled = fill(&mut file, &failed)?;
    new.rename(&target).at_write(&path)?;
    Ok(filled)
}

/// Returns a name that nothing has, in the same directory.
pub(super) fn beside(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".kiln-{}-{number}", std::process::id()))
}

/// A file or directory that is removed unless it gets its name.
pub(super) struct Unfinished(pub(super) Option<PathBuf>);

impl Unfinished {
    pub(super) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives it its name, in place of what has it.
    pub(super) fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(self.path(), to)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove what was not finished");
        }
    }
}

/// Where blobs wait for the destination to take them: one file without a name.
pub(super) struct Spool {
    file: Arc<File>,
    /// Where the next blob starts.
    end: u64,
    dir: PathBuf,
}

impl Spool {
    pub(super) fn new(dir: &Path) -> Result<Self, ExportError> {
        let file = nameless(dir).map_err(|source| ExportError::Temporary { dir: dir.to_owned(), source })?;
        Ok(Self { file: Arc::new(file), end: 0, dir: dir.to_owned() })
    }

    /// Returns what writes the next blob.
    pub(super) fn writer(&self) -> impl Write + Send {
        Writer { file: Arc::clone(&self.file), offset: self.end }
    }

    /// Says what it means that it cannot be written.
    pub(super) fn failed(&self, source: io::Error) -> ExportError {
        ExportError::Temporary { dir: self.dir.clone(), source }
    }

    /// Returns the blob of `size` bytes that was written.
    pub(super) fn take(&mut self, size: u64) -> Section {
        let section = Section::new(Arc::clone(&self.file), self.end, size);
        self.end += size;
        section
    }

    /// Forgets all blobs: nobody reads them any more.
    pub(super) fn clear(&mut self) -> Result<(), ExportError> {
        self.end = 0;
        self.file.set_len(0).map_err(|source| self.failed(source))
    }
}

/// Writes at a place of its own, whatever others do with the file.
struct Writer {
    file: Arc<File>,
    offset: u64,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = std::os::unix::fs::FileExt::write_at(&*self.file, bytes, self.offset)?;
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
