//! One member: a directory, a file, a link, a special file.
//!
//! What is in the way is removed, except a directory in the way of a directory.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::cursor::Missing;
use super::{Content, Directory, Tree, clean, refused, remove, shown, times, write_error};
use crate::tar::{Entry, Segment};
use crate::unpack::UnpackError;

/// For a while, only we can touch a new file.
const CLOSED: Mode = Mode::RUSR.union(Mode::WUSR);

pub(super) fn uid(id: u32) -> Uid {
    Uid::from_raw(id)
}

pub(super) fn gid(id: u32) -> Gid {
    Gid::from_raw(id)
}

impl Tree {
    /// The root itself, as the archive describes it.
    pub(super) fn root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.enter(b"")?;
        self.set_xattrs(self.cursor.fd(), entry)?;
        self.note(b"", listed(entry))
    }

    pub(super) fn directory(&mut self, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let make = |tree: &Self| rustix::fs::mkdirat(tree.cursor.fd(), name, Mode::RWXU);
        match make(self) {
            Err(Errno::EXIST) if self.is_directory(name)? => Ok(()),
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self)
            }
            made => made,
        }
        .map_err(|error| write_error("make the directory", &entry.name, error))?;
        if !entry.xattrs.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(self.cursor.fd(), name, flags, Mode::empty())
                .map_err(|error| write_error("open", &entry.name, error))?;
            self.set_xattrs(fd.as_fd(), entry)?;
        }
        self.note(&self.cursor.path_of(name), listed(entry))
    }

    pub(super) fn file(
        &mut self,
        name: &[u8],
        entry: &Entry,
        (size, segments): (u64, Option<&[Segment]>),
        content: &mut dyn Content,
        cancel: &CancellationToken,
    ) -> Result<(), UnpackError> {
        self.size = self.size.saturating_add(size);
        if self.size > self.limits.unpacked_bytes {
            return Err(UnpackError::TooLarge(self.limits.unpacked_bytes));
        }
        // `EXCL` neither follows a link nor opens what is there, a fifo for instance.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = |tree: &Self| rustix::fs::openat(tree.cursor.fd(), name, flags, CLOSED);
        let fd = match make(self) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self)
            }
            made => made,
        };
        let mut file = File::from(fd.map_err(|error| write_error("create", &entry.name, error))?);
        let failed = |error| write_error("write", &entry.name, error);
        match segments {
            None => loop {
                let part = content.part()?;
                if part.is_empty() {
                    break;
                }
                if cancel.is_cancelled() {
                    return Err(UnpackError::Cancelled);
                }
                file.write_all(part).map_err(failed)?;
                let length = part.len();
                content.consume(length);
            },
            Some(segments) => {
                for segment in segments {
                    let (mut offset, mut left) = (segment.offset, segment.length);
                    while left > 0 {
                        if cancel.is_cancelled() {
                            return Err(UnpackError::Cancelled);
                        }
                        let part = content.part()?;
                        if part.is_empty() {
                            return Err(refused(&entry.name, "less of it is stored than its map says"));
                        }
                        let length = usize::try_from(left).map_or(part.len(), |left| left.min(part.len()));
                        file.write_all_at(&part[..length], offset).map_err(failed)?;
                        content.consume(length);
                        offset += length as u64;
                        left -= length as u64;
                    }
                }
                file.set_len(size).map_err(failed)?;
            }
        }
        let failed = |error: Errno| write_error("set the mode of", &entry.name, error);
        // In this order: a change of owner takes the set-user-id bit and the capabilities away.
        if self.must_chown(entry) {
            rustix::fs::fchown(&file, Some(uid(entry.uid)), Some(gid(entry.gid)))
                .map_err(|error| owner_error(entry, error))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        self.set_xattrs(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(failed)
    }

    pub(super) fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let entry = self.cursor.path_of(name);
        let missing = || UnpackError::NoTarget { entry: shown(&entry), target: shown(target) };
        let target_path = clean(target)?;
        let (parent, target_name) = match target_path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&target_path[..slash], &target_path[slash + 1..]),
            None => (&b""[..], &target_path[..]),
        };
        if target_name.is_empty() {
            return Err(refused(&entry, "it is a hard link to a directory"));
        }
        if !self.targets.walk(parent, Missing::Stop, &mut |_, _| Ok(()))? {
            return Err(missing());
        }
        if self.targets.inode() == self.cursor.inode() && target_name == name {
            // Linked to itself; removing what is in the way would remove the file. It must be there, though.
            return match rustix::fs::statat(self.cursor.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                    Err(refused(&entry, "it is a hard link to a directory"))
                }
                Ok(_) => Ok(()),
                Err(_) => Err(missing()),
            };
        }
        let target_directory = self
            .targets
            .fd()
            .try_clone_to_owned()
            .map_err(|error| write_error("open the directory of", target, error))?;
        let link = |tree: &Self| {
            // Without flags, a link as the target is linked itself, not followed.
            rustix::fs::linkat(&target_directory, target_name, tree.cursor.fd(), name, AtFlags::empty())
        };
        match link(self) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                link(self)
            }
            linked => linked,
        }
        .map_err(|error| match error {
            Errno::NOENT | Errno::NAMETOOLONG => missing(),
            Errno::PERM => refused(&entry, "it is a hard link to a directory"),
            error => write_error("link", &entry, error),
        })
    }

    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if target.is_empty() {
            return Err(refused(&entry.name, "it is a symbolic link to nothing"));
        }
        let make = |tree: &Self| rustix::fs::symlinkat(target, tree.cursor.fd(), name);
        match make(self) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self)
            }
            made => made,
        }
        .map_err(|error| write_error("make the link", &entry.name, error))?;
        self.set_owner_and_time(name, entry)
    }

    pub(super) fn special(
        &mut self,
        name: &[u8],
        kind: FileType,
        (major, minor): (u32, u32),
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
            return Err(refused(&entry.name, "to overlayfs, a character device 0:0 means that the file is removed"));
        }
        let device = rustix::fs::makedev(major, minor);
        let make = |tree: &Self| rustix::fs::mknodat(tree.cursor.fd(), name, kind, CLOSED, device);
        let made = match make(self) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self)
            }
            made => made,
        };
        match made {
            // Without privilege, or in a user namespace. The sandbox brings its own /dev.
            Err(Errno::PERM) if kind != FileType::Fifo => {
                self.skipped_devices += 1;
                return Ok(());
            }
            made => made.map_err(|error| write_error("make the special file", &entry.name, error))?,
        }
        self.set_owner_and_time(name, entry)?;
        rustix::fs::chmodat(self.cursor.fd(), name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|error| write_error("set the mode of", &entry.name, error))?;
        self.set_time(name, entry)
    }

    fn set_owner_and_time(&self, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if self.must_chown(entry) {
            let (uid, gid) = (Some(uid(entry.uid)), Some(gid(entry.gid)));
            rustix::fs::chownat(self.cursor.fd(), name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| owner_error(entry, error))?;
        }
        self.set_time(name, entry)
    }

    fn set_time(&self, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        rustix::fs::utimensat(self.cursor.fd(), name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| write_error("set the time of", &entry.name, error))
    }

    /// Returns true if a new file does not get its owner by itself. Without privilege, all is ours.
    fn must_chown(&self, entry: &Entry) -> bool {
        self.gives_away() && ((entry.uid, entry.gid) != self.user || self.cursor.is_set_gid())
    }

    fn is_directory(&self, name: &[u8]) -> Result<bool, UnpackError> {
        let stat = rustix::fs::statat(self.cursor.fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| write_error("look at", &self.cursor.path_of(name), error))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Removes what is in the way of `name`.
    fn clear(&mut self, name: &[u8]) -> Result<(), UnpackError> {
        remove::remove(self.cursor.fd(), self.cursor.inode(), name, None)
            .map_err(|error| write_error("replace", &self.cursor.path_of(name), error))?;
        self.cursor.forget_below();
        self.targets.rewind();
        Ok(())
    }

    fn set_xattrs(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
        for (name, value) in &entry.xattrs {
            match attribute(name) {
                Attribute::Kept => {}
                Attribute::Privileged if self.is_root() => {}
                Attribute::Privileged | Attribute::OfAnotherHost => {
                    debug!(entry = %shown(&entry.name), attribute = %shown(name), "left out an attribute");
                    continue;
                }
                Attribute::Harmful => {
                    return Err(refused(&entry.name, format!("it has the attribute `{}`", shown(name))));
                }
            }
            match rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                // An ill-formed name or value; too long a name; too long a value.
                Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                    return Err(refused(&entry.name, format!("its attribute `{}` is not valid", shown(name))));
                }
                Err(error) => return Err(write_error("set an attribute of", &entry.name, error)),
            }
        }
        Ok(())
    }
}

/// Explains why an entry cannot get its owner.
fn owner_error(entry: &Entry, error: Errno) -> UnpackError {
    match error {
        // In a user namespace.
        Errno::INVAL => refused(
            &entry.name,
            format!("it belongs to {}:{}, and without root there are the ids 0 to 65535 only", entry.uid, entry.gid),
        ),
        error => write_error("set the owner of", &entry.name, error),
    }
}

/// What to do with an extended attribute.
enum Attribute {
    Kept,
    /// Kept if we may set it.
    Privileged,
    /// Labels that mean nothing here: SELinux, IMA, NFS.
    OfAnotherHost,
    /// It would change what overlayfs shows, or what only the host's root may say.
    Harmful,
}

fn attribute(name: &[u8]) -> Attribute {
    if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
        Attribute::Harmful
    } else if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") {
        Attribute::Kept
    } else if name == b"security.capability" {
        Attribute::Privileged
    } else {
        Attribute::OfAnotherHost
    }
}

/// Returns true if the attribute is part of a tree here.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    matches!(attribute(name), Attribute::Kept | Attribute::Privileged)
}

fn listed(entry: &Entry) -> Directory {
    Directory { mode: entry.mode, owner: Some((entry.uid, entry.gid)), mtime: entry.mtime }
}
