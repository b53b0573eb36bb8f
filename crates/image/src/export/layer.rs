//! Writes tar archives: ustar headers, with pax records for what does not fit; nothing of GNU's.
//!
//! The same entries give the same bytes: no names of users, times in whole seconds, records in a fixed order.

use std::fs::File;

use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

use super::compress::Feed;
use super::diff::{Change, Rules, WHITEOUT, diff, inexpressible, read_error};
use super::{ExportError, Opened};
use crate::Progress;
use crate::tar::{Entry, Kind, Time};

/// Everything is a multiple of it.
const BLOCK: u64 = 512;
/// Two empty blocks end an archive.
const END: [u8; 1024] = [0; 1024];
/// The longest name and target in a header.
const NAME: usize = 100;
/// What readers take, Go's and ours.
const LONGEST_RECORDS: usize = 1 << 20;
/// What is written into a header where a record says the rest.
const INSTEAD: &[u8] = b"PaxHeaders/";
const PLAIN: Time = Time { seconds: 0, nanoseconds: 0 };

/// Appends all that differs in `trees`, and the end of the archive. Returns whether there is anything.
///
/// # Errors
///
/// As [`diff`].
pub(super) fn write(
    feed: &mut Feed<'_>,
    trees: &Opened,
    rules: Rules,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<bool, ExportError> {
    let mut is_empty = true;
    diff(trees, rules, cancel, &mut |found| {
        is_empty = false;
        change(feed, found)?;
        progress.bytes(feed.bytes(), feed.bytes());
        Ok(())
    })?;
    end(feed)?;
    Ok(!is_empty)
}

/// Appends a change to a layer.
fn change(feed: &mut Feed<'_>, change: Change) -> Result<(), ExportError> {
    match change {
        Change::Entry(entry, file) => member(feed, &entry, file),
        Change::Removed(path) => {
            let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            let path = [&path[..name], WHITEOUT, &path[name..]].concat();
            member(feed, &plain(path, Kind::File { size: 0, segments: None }), None)
        }
    }
}

/// Appends a file that is in no tree, with content that follows; see [`padding`].
pub(super) fn file(feed: &mut Feed<'_>, name: &str, size: u64) -> Result<(), ExportError> {
    header(feed, &plain(name.into(), Kind::File { size, segments: None }))
}

/// Appends a directory that is in no tree.
pub(super) fn directory(feed: &mut Feed<'_>, name: &str) -> Result<(), ExportError> {
    header(feed, &Entry { mode: 0o755, ..plain(name.into(), Kind::Directory) })
}

fn plain(name: Vec<u8>, kind: Kind) -> Entry {
    Entry { name, kind, mode: 0o644, uid: 0, gid: 0, mtime: PLAIN, xattrs: Vec::new() }
}

/// Ends an archive.
pub(super) fn end(feed: &mut Feed<'_>) -> Result<(), ExportError> {
    feed.write(&END)
}

/// Fills up the last block of a content of `size` bytes.
pub(super) fn padding(feed: &mut Feed<'_>, size: u64) -> Result<(), ExportError> {
    let length = size.wrapping_neg() % BLOCK;
    feed.write(&END[..usize::try_from(length).unwrap_or_default()])
}

fn member(feed: &mut Feed<'_>, entry: &Entry, file: Option<File>) -> Result<(), ExportError> {
    header(feed, entry)?;
    let (Some(mut file), Kind::File { size, .. }) = (file, &entry.kind) else { return Ok(()) };
    let missing = feed.copy(&mut file, *size, |error| read_error(&entry.name, error))?;
    if missing > 0 {
        return Err(read_error(&entry.name, std::io::ErrorKind::UnexpectedEof));
    }
    padding(feed, *size)
}

fn header(feed: &mut Feed<'_>, entry: &Entry) -> Result<(), ExportError> {
    let mut records = Records::default();
    let mut header = Header::new_ustar();
    let (kind, size, target, device) = parts(&entry.kind);
    let name = match entry.kind {
        Kind::Directory if entry.name.is_empty() => b"./".to_vec(),
        Kind::Directory => [&entry.name, &b"/"[..]].concat(),
        _ => entry.name.clone(),
    };
    header.set_entry_type(kind);
    let fields = header.as_ustar_mut().expect("made as one");
    records.text(&mut fields.name, b"path", &name);
    records.text(&mut fields.linkname, b"linkpath", target);
    header.set_mode(entry.mode);
    header.set_size(records.number(b"size", size, 0o77_777_777_777));
    header.set_uid(records.number(b"uid", entry.uid.into(), 0o7_777_777));
    header.set_gid(records.number(b"gid", entry.gid.into(), 0o7_777_777));
    header.set_mtime(match u64::try_from(entry.mtime.seconds) {
        Ok(seconds) => records.number(b"mtime", seconds, 0o77_777_777_777),
        Err(_) => {
            records.add(b"mtime", entry.mtime.seconds.to_string().as_bytes());
            0
        }
    });
    if let Some((major, minor)) = device {
        // Linux has twelve and twenty bits; a field has 21.
        let fits = header.set_device_major(major).and_then(|()| header.set_device_minor(minor));
        fits.map_err(|_| inexpressible(&entry.name, "its device number does not fit"))?;
    }
    header.set_cksum();
    for (name, value) in &entry.xattrs {
        if name.contains(&b'=') {
            return Err(inexpressible(&entry.name, "the name of one of its extended attributes has a `=`"));
        }
        records.add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    if !records.0.is_empty() {
        if records.0.len() > LONGEST_RECORDS {
            return Err(inexpressible(&entry.name, "its name and extended attributes take more than 1 MiB"));
        }
        let size = records.0.len() as u64;
        feed.write(records.header(&name, size).as_bytes())?;
        feed.write(&records.0)?;
        padding(feed, size)?;
    }
    feed.write(header.as_bytes())
}

/// Returns type, size, target and device of a member.
fn parts(kind: &Kind) -> (EntryType, u64, &[u8], Option<(u32, u32)>) {
    match kind {
        Kind::File { size, .. } => (EntryType::Regular, *size, b"", None),
        Kind::HardLink(target) => (EntryType::Link, 0, target, None),
        Kind::Symlink(target) => (EntryType::Symlink, 0, target, None),
        Kind::Directory => (EntryType::Directory, 0, b"", None),
        Kind::CharDevice { major, minor } => (EntryType::Char, 0, b"", Some((*major, *minor))),
        Kind::BlockDevice { major, minor } => (EntryType::Block, 0, b"", Some((*major, *minor))),
        Kind::Fifo => (EntryType::Fifo, 0, b"", None),
    }
}

/// The records of one extended header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// Adds `LENGTH KEY=VALUE\n`, in which the length counts its own digits.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// Puts a text into its field or, if it does not fit or is not ASCII, into a record. The field has its start then.
    fn text(&mut self, field: &mut [u8; NAME], key: &[u8], text: &[u8]) {
        if text.len() > NAME || !text.is_ascii() {
            self.add(key, text);
        }
        for (to, from) in field.iter_mut().zip(text) {
            *to = if from.is_ascii() { *from } else { b'_' };
        }
    }

    /// Returns the number, or 0 if it is more than `most` and stands in a record.
    fn number(&mut self, key: &[u8], number: u64, most: u64) -> u64 {
        if number <= most {
            return number;
        }
        self.add(key, number.to_string().as_bytes());
        0
    }

    /// Returns the header of these records, for the member `name`.
    fn header(&self, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        let fields = header.as_ustar_mut().expect("made as one");
        for (to, from) in fields.name.iter_mut().zip(INSTEAD.iter().chain(name)) {
            *to = if from.is_ascii() { *from } else { b'_' };
        }
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }
}
