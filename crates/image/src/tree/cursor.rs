//! Where in the tree we are: a stack of open directories, from the root down.
//!
//! Going from one directory to the next costs one `openat` for each component that differs. Nothing outside
//! the root can be reached: a component is never `.`, `..` or empty, holds no slash, and is opened
//! with `O_NOFOLLOW`; `..` in a link's target takes one off the stack, and at the root stays there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Directory, Found, IMPLIED, refused, write_error};
use crate::tar::Time;
use crate::unpack::UnpackError;

/// As many links as the kernel follows in one path.
const LINKS: usize = 40;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What to do about a directory that is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Missing {
    Make,
    Stop,
}

/// Hears of each directory that is opened, by its real path.
pub(super) type Notice<'a> = dyn FnMut(&[u8], Found) -> Result<(), UnpackError> + 'a;

pub(super) struct Cursor {
    /// The root, then directories inside each other by their real names. Those below `depth` are left from
    /// earlier walks, and still good.
    stack: Vec<Open>,
    depth: usize,
    max_depth: usize,
}

struct Open {
    name: Vec<u8>,
    fd: OwnedFd,
    inode: u64,
    /// New files take its group.
    set_gid: bool,
}

impl Cursor {
    pub(super) fn new(root: OwnedFd, max_depth: usize) -> io::Result<Self> {
        let (root, _) = Open::new(Vec::new(), root)?;
        Ok(Self { stack: vec![root], depth: 0, max_depth })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stack[self.depth].fd.as_fd()
    }

    pub(super) fn inode(&self) -> u64 {
        self.stack[self.depth].inode
    }

    pub(super) fn is_set_gid(&self) -> bool {
        self.stack[self.depth].set_gid
    }

    /// Returns the real path from the root.
    pub(super) fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.stack[1..=self.depth].iter().map(|open| &open.name[..]).collect();
        names.join(&b'/')
    }

    /// Returns the real path of `name` in this directory.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Returns mode, owner and time of this directory.
    pub(super) fn existing(&self) -> io::Result<Directory> {
        Ok(directory(&rustix::fs::fstat(self.fd())?))
    }

    /// Goes back to the root and forgets all else.
    pub(super) fn rewind(&mut self) {
        self.depth = 0;
        self.forget_below();
    }

    /// Forgets directories below this one: something in it is removed.
    pub(super) fn forget_below(&mut self) {
        self.stack.truncate(self.depth + 1);
    }

    /// Goes to the directory `path`, following links inside the root. Tells `found` of each directory that it
    /// opens. Returns false if one is missing and shall not be made, or is none.
    pub(super) fn walk(&mut self, path: &[u8], missing: Missing, found: &mut Notice<'_>) -> Result<bool, UnpackError> {
        self.depth = 0;
        let mut links = 0;
        let mut spliced: Vec<u8>;
        let mut rest = path;
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
            let name = &rest[..end];
            let after = rest.get(end + 1..).unwrap_or_default();
            match name {
                b"" | b"." => rest = after,
                b".." => {
                    self.depth = self.depth.saturating_sub(1);
                    rest = after;
                }
                _ if self.stack.get(self.depth + 1).is_some_and(|next| next.name == name) => {
                    self.depth += 1;
                    rest = after;
                }
                _ => match self.open(name, missing)? {
                    Step::Opened(directory) => {
                        found(&self.path(), directory)?;
                        rest = after;
                    }
                    Step::Link(target) => {
                        links += 1;
                        if links > LINKS {
                            return Err(refused(path, "there are too many symbolic links in its path"));
                        }
                        if target.first() == Some(&b'/') {
                            self.depth = 0;
                        }
                        spliced = [&target, &b"/"[..], after].concat();
                        rest = &spliced;
                    }
                    Step::Missing => return Ok(false),
                    Step::NotDirectory if missing == Missing::Stop => return Ok(false),
                    Step::NotDirectory => {
                        let reason = format!("`{}` above it is not a directory", super::shown(&self.path_of(name)));
                        return Err(refused(path, reason));
                    }
                },
            }
        }
        Ok(true)
    }

    /// Opens `name` in this directory and goes there, if it is a directory.
    fn open(&mut self, name: &[u8], missing: Missing) -> Result<Step, UnpackError> {
        if name.len() > 255 {
            return Err(refused(name, "a part of its path is longer than 255 bytes"));
        }
        if self.depth >= self.max_depth {
            let reason = format!("it lies deeper than {} directories", self.max_depth);
            return Err(refused(&self.path_of(name), reason));
        }
        let here = self.fd();
        let mut new = false;
        let mut closed = None;
        let fd = loop {
            match rustix::fs::openat(here, name, OPEN, Mode::empty()) {
                Ok(fd) => break fd,
                // A link gives either, by the kernel's mood.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return match rustix::fs::readlinkat(here, name, Vec::new()) {
                        Ok(target) => Ok(Step::Link(target.into_bytes())),
                        Err(Errno::INVAL) => Ok(Step::NotDirectory),
                        Err(error) => Err(write_error("read the link", &self.path_of(name), error)),
                    };
                }
                Err(Errno::NOENT) if missing == Missing::Stop => return Ok(Step::Missing),
                Err(Errno::NOENT) if !new => {
                    rustix::fs::mkdirat(here, name, Mode::RWXU)
                        .map_err(|error| write_error("make the directory", &self.path_of(name), error))?;
                    new = true;
                }
                // A lower layer closed it; without privilege, that holds for us too. It is no link: those
                // cannot be closed.
                Err(Errno::ACCESS) if closed.is_none() => {
                    let stat = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW);
                    closed =
                        Some(stat.map_err(|error| write_error("open", &self.path_of(name), error))?.st_mode & 0o7777);
                    rustix::fs::chmodat(here, name, Mode::RWXU, AtFlags::empty())
                        .map_err(|error| write_error("open", &self.path_of(name), error))?;
                }
                Err(error) => return Err(write_error("open", &self.path_of(name), error)),
            }
        };
        let opened = Open::new(name.to_vec(), fd);
        let (open, mut existing) = opened.map_err(|error| write_error("open", &self.path_of(name), error))?;
        existing.mode = closed.unwrap_or(existing.mode);
        self.forget_below();
        self.stack.push(open);
        self.depth += 1;
        Ok(Step::Opened(if new { Found::Made(IMPLIED) } else { Found::Existing(existing) }))
    }
}

enum Step {
    Opened(Found),
    Link(Vec<u8>),
    Missing,
    NotDirectory,
}

impl Open {
    fn new(name: Vec<u8>, fd: OwnedFd) -> io::Result<(Self, Directory)> {
        let stat = rustix::fs::fstat(&fd)?;
        let set_gid = stat.st_mode & 0o2000 != 0;
        Ok((Self { name, fd, inode: stat.st_ino, set_gid }, directory(&stat)))
    }
}

fn directory(stat: &Stat) -> Directory {
    debug_assert!(FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    Directory {
        mode: stat.st_mode & 0o7777,
        owner: None,
        mtime: Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() },
    }
}
