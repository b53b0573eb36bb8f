//! Copies of trees and of what is in them, with all that can be seen of it.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, chmodat, chownat, fstat, ftruncate, ioctl_ficlone, linkat,
    mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat, unlinkat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::{self, Errno, pread, pwrite};

use crate::attributes::{self, Marks};
use crate::parallel::{self, Below};
use crate::remove;
use crate::walk::open;

/// How the content of a file gets into its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Both share their blocks until one of them is written. What the filesystem cannot share is copied.
    Shared,
    /// It is read and written; holes stay holes.
    Copied,
}

/// Copies all that is in the directory `from`, and its attributes, to the empty directory `to`, on all processors. File flags
/// (`chattr`) stay behind. Nobody may write to either tree meanwhile. On an error part of the copy is there.
pub(crate) fn tree(from: OwnedFd, to: OwnedFd, content: Content) -> io::Result<()> {
    let (from_root, to_root) = (io::dup(&from)?, io::dup(&to)?);
    let links = Links { root: &to_root, place: Mutex::new(None) };
    parallel::walk(vec![from, to], (), |place, ()| {
        let (Some(source), Some(target)) = (place.directory(0), place.directory(1)) else { return Ok(Vec::new()) };
        let mut directories = Vec::new();
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match kind(source, &entry)? {
                FileType::Directory => {
                    mkdirat(target, name, Mode::RWXU)?;
                    directories.push(Below { name: name.to_owned(), is_in: vec![true; 2], state: () });
                }
                kind => links.copy(source, target, name, kind, content)?,
            }
        }
        // Nothing more is made in it, and what is below it does not change its times.
        attributes::copy(source, target, Marks::Kept)?;
        Ok(directories)
    })?;
    links.finish(&from_root)
}

/// Returns what an entry of `directory` is; not all filesystems tell when they list it.
pub(crate) fn kind(directory: &OwnedFd, entry: &rustix::fs::DirEntry) -> io::Result<FileType> {
    match entry.file_type() {
        FileType::Unknown => {
            let stat = statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        }
        kind => Ok(kind),
    }
}

/// The files of a tree that have several names. Each gets one more, by which the next name finds it: in a directory in
/// the root of the copy, since neither descriptors nor paths of all of them could be kept.
struct Links<'a> {
    root: &'a OwnedFd,
    /// The directory and its name, once there is such a file.
    place: Mutex<Option<(OwnedFd, CString)>>,
}

impl Links<'_> {
    /// Copies an entry that is no directory, or gives its copy another name.
    fn copy(
        &self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CStr,
        kind: FileType,
        content: Content,
    ) -> io::Result<()> {
        let entry = Entry::open(source, name, kind)?;
        if entry.stat.st_nlink == 1 {
            return entry.copy(source, target, name, content);
        }
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            // No tree has such a name: the time in it has only come.
            let name = CString::new(format!(".kiln-{}", remove::unique())).map_err(|_| Errno::INVAL)?;
            mkdirat(self.root, &*name, Mode::RWXU)?;
            *place = Some((open(self.root, &*name)?, name));
        }
        let Some((place, _)) = &*place else { return Ok(()) };
        let known = format!("{:x}-{:x}", entry.stat.st_dev, entry.stat.st_ino);
        match linkat(place, &known, target, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {
                entry.copy(source, target, name, content)?;
                linkat(target, name, place, &known, AtFlags::empty())
            }
            // It has all the names there can be, one of them here.
            Err(Errno::MLINK) => entry.copy(source, target, name, content),
            linked => linked,
        }
    }

    /// Takes the additional names away, and gives the root its times back, which are those of `from`.
    fn finish(self, from: &OwnedFd) -> io::Result<()> {
        let Some((place, name)) = self.place.into_inner().unwrap_or_else(PoisonError::into_inner) else {
            return Ok(());
        };
        for entry in Dir::read_from(&place)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                unlinkat(&place, entry.file_name(), AtFlags::empty())?;
            }
        }
        unlinkat(self.root, &*name, AtFlags::REMOVEDIR)?;
        attributes::set_times(self.root, &fstat(from)?)
    }
}

/// Copies the entry `name` of `source`, no directory, to `target`.
pub(crate) fn file(source: &OwnedFd, target: &OwnedFd, name: &CStr, content: Content) -> io::Result<()> {
    let kind = FileType::from_raw_mode(statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    Entry::open(source, name, kind)?.copy(source, target, name, content)
}

/// An entry that is no directory.
struct Entry {
    /// A regular file is open for reading, all else with `O_PATH`.
    handle: OwnedFd,
    kind: FileType,
    stat: Stat,
}

const NOT_FOLLOWED: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

impl Entry {
    fn open(source: &OwnedFd, name: &CStr, kind: FileType) -> io::Result<Self> {
        let access = if kind == FileType::RegularFile { OFlags::RDONLY } else { OFlags::PATH };
        let handle = openat(source, name, NOT_FOLLOWED | access, Mode::empty())?;
        let stat = fstat(&handle)?;
        Ok(Self { handle, kind, stat })
    }

    fn copy(&self, source: &OwnedFd, target: &OwnedFd, name: &CStr, content: Content) -> io::Result<()> {
        let Self { handle, kind, stat } = self;
        let mode = Mode::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                // Nobody but the owner gets into a store, so what others may do before the owner is right does not matter.
                let to = openat(target, name, NOT_FOLLOWED | create, mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO))?;
                copy_content(handle, &to, stat, content)?;
                return attributes::copy_as(handle, stat, &to, Marks::Kept);
            }
            FileType::Symlink => symlinkat(readlinkat(source, name, Vec::new())?, target, name)?,
            kind => mknodat(target, name, *kind, mode, stat.st_rdev)?,
        }
        let to = openat(target, name, NOT_FOLLOWED | OFlags::PATH, Mode::empty())?;
        chownat(
            target,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if *kind != FileType::Symlink {
            // Not a link, as it was just made.
            chmodat(target, name, mode, AtFlags::empty())?;
        }
        attributes::copy_extended(handle, &to, Marks::Kept)?;
        attributes::set_times_at(target, name, stat)
    }
}

fn copy_content(from: &OwnedFd, to: &OwnedFd, stat: &Stat, content: Content) -> io::Result<()> {
    if stat.st_size == 0 {
        return Ok(());
    }
    if content == Content::Shared {
        match ioctl_ficlone(to, from) {
            // Files in use as swap, or of another filesystem, or (on btrfs) with other flags.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::XDEV | Errno::TXTBSY | Errno::NOTTY) => {}
            done => return done,
        }
    }
    const BLOCK: u64 = 512; // st_blocks, stat(2)
    let size = stat.st_size.cast_unsigned();
    if stat.st_blocks.cast_unsigned() * BLOCK >= size {
        return copy_range(from, to, 0, size);
    }
    let mut end = 0;
    loop {
        // The end of the file is a hole, or the data ends there.
        let start = match seek(from, SeekFrom::Data(end)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        end = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end)?;
    }
    ftruncate(to, size)
}

/// Copies what `from` has between two offsets.
fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 128 << 10]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = start;
        while at < end {
            let length = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let length = match pread(from, &mut buffer[..length], at)? {
                0 => return Ok(()),
                length => length,
            };
            let mut written = 0;
            while written < length {
                written += pwrite(to, &buffer[written..length], at + written as u64)?;
            }
            at += length as u64;
        }
        Ok(())
    })
}
