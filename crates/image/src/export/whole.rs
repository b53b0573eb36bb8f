//! The whole tree of the last layer, without an image around it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::compress::pack;
use super::diff::{Change, Rules, diff};
use super::error::At;
use super::output::{self, Unfinished, beside};
use super::{Compression, ExportError, Opened, Output, Written, layer};
use crate::tar::Kind;
use crate::tree::{Below, Content, Tree, Whiteouts};
use crate::unpack::UnpackError;
use crate::{Limits, Progress};

/// Writes a tree as an archive.
pub(super) fn tar(
    tree: &Opened,
    output: Output,
    compression: Compression,
    rules: Rules,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Written, ExportError> {
    let packed = output::write(output, |output, failed| {
        pack(compression, output, failed, cancel, |feed| layer::write(feed, tree, rules, progress, cancel).map(drop))
    })?;
    Ok(Written { manifest: None, config: None, bytes: packed.size, layers: 0 })
}

/// Writes a tree into a directory that is empty or does not exist. It appears when it is whole.
pub(super) fn directory(
    tree: &Opened,
    path: &Path,
    rules: Rules,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Written, ExportError> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            if entries.at_write(path)?.next().is_some() {
                return Err(ExportError::NotEmpty { path: path.to_owned() });
            }
        }
    }
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let new = Unfinished(Some(beside(&target)));
    fs::create_dir(new.path()).at_write(path)?;
    let unpack = |source| ExportError::Unpack { path: path.to_owned(), source };
    // The tree is no stranger's any more: it may be as large as it is.
    let limits = Limits { unpacked_bytes: u64::MAX, ..Limits::default() };
    let mut unpacked = Tree::new(new.path(), Below::Nothing, Whiteouts::Literal, &limits).at_write(path)?;
    let mut bytes = 0;
    diff(tree, rules, cancel, &mut |change| {
        let Change::Entry(entry, file) = change else { return Ok(()) };
        let mut content = FileContent::new(file, &entry.kind);
        let size = content.left;
        unpacked.add(&entry, &mut content, cancel).map_err(unpack)?;
        bytes += size;
        progress.bytes(bytes, bytes);
        Ok(())
    })?;
    unpacked.finish(progress).map_err(unpack)?;
    new.rename(&target).at_write(path)?;
    Ok(Written { manifest: None, config: None, bytes, layers: 0 })
}

/// What is in a file of a tree.
struct FileContent {
    file: Option<File>,
    /// What is not read yet.
    left: u64,
    buffer: Vec<u8>,
    start: usize,
}

impl FileContent {
    fn new(file: Option<File>, kind: &Kind) -> Self {
        let left = if let (Some(_), Kind::File { size, .. }) = (&file, kind) { *size } else { 0 };
        Self { file, left, buffer: Vec::new(), start: 0 }
    }
}

impl Content for FileContent {
    fn part(&mut self) -> Result<&[u8], UnpackError> {
        const PART: u64 = 128 << 10;
        if self.start == self.buffer.len()
            && let Some(file) = &mut self.file
        {
            self.buffer.clear();
            self.start = 0;
            file.take(self.left.min(PART)).read_to_end(&mut self.buffer).map_err(UnpackError::Read)?;
            if self.buffer.is_empty() && self.left > 0 {
                return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            self.left -= self.buffer.len() as u64;
        }
        Ok(&self.buffer[self.start..])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}
