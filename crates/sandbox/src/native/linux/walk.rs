//! Finds and makes paths inside a root that its builder may have filled with traps.
//!
//! A tree can hold `/etc -> ../../etc`, `/dev -> /`, links in circles, and in shared caches other builds may rename
//! directories meanwhile. So the kernel never follows a link for us: each component is opened by itself relative to the
//! last one, link texts are read and walked here, `..` goes back along the descriptors that were passed,
//! and never above the root. The magic links of `/proc` lead nowhere, as only their text is used.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};

/// As many links as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: u32 = 40;
/// Descriptors stay open along the way; the default limit is 1024.
const MAX_DEPTH: usize = 256;

/// What may be made if it is missing, and what may be followed.
#[derive(Clone, Copy)]
pub(super) enum Missing {
    /// Nothing: `ENOENT`.
    Fail,
    /// Directories, all the way.
    MakeDirectories { owner: (u32, u32) },
    /// Directories, and an empty file at the end.
    MakeFile { owner: (u32, u32) },
}

/// Opens (`O_PATH`) what `path` names below `root`, following links as a process whose root is `root` would.
pub(super) fn walk(root: BorrowedFd<'_>, path: &CStr, missing: Missing) -> io::Result<OwnedFd> {
    Walk { root, passed: Vec::new(), links: Some(MAX_LINKS) }.run(path, missing)
}

/// As [`walk`], but a link anywhere in `path` fails with `ELOOP`: for mount points that must be what they seem.
pub(super) fn walk_without_links(root: BorrowedFd<'_>, path: &CStr, missing: Missing) -> io::Result<OwnedFd> {
    Walk { root, passed: Vec::new(), links: None }.run(path, missing)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// Directories from below the root to where we are.
    passed: Vec<OwnedFd>,
    /// How many more links may be followed; `None`: no links at all.
    links: Option<u32>,
}

impl Walk<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.passed.last().map_or(self.root, |fd| fd.as_fd())
    }

    fn run(mut self, path: &CStr, missing: Missing) -> io::Result<OwnedFd> {
        // Components still to go, the next one last.
        let mut to_go = components(path.to_bytes());
        while let Some(name) = to_go.pop() {
            if name.as_bytes() == b".." {
                self.passed.pop();
                continue;
            }
            let last = to_go.is_empty();
            let found = self.open_or_make(&name, last, missing)?;
            match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
                FileType::Symlink => {
                    self.links = self.links.and_then(|links| links.checked_sub(1));
                    if self.links.is_none() {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                    if target.as_bytes().starts_with(b"/") {
                        self.passed.clear();
                    }
                    to_go.extend(components(target.as_bytes()));
                }
                FileType::Directory if self.passed.len() >= MAX_DEPTH => {
                    return Err(rustix::io::Errno::NAMETOOLONG.into());
                }
                FileType::Directory => self.passed.push(found),
                _ if last => return Ok(found),
                _ => return Err(rustix::io::Errno::NOTDIR.into()),
            }
        }
        match self.passed.pop() {
            Some(fd) => Ok(fd),
            None => Ok(rustix::io::fcntl_dupfd_cloexec(self.root, 3)?),
        }
    }

    /// `last`: nothing is to go. A link may still add to that.
    fn open_or_make(&self, name: &CStr, last: bool, missing: Missing) -> io::Result<OwnedFd> {
        match open(self.here(), name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let (made, owner) = match missing {
            Missing::Fail => return Err(rustix::io::Errno::NOENT.into()),
            Missing::MakeFile { owner } if last => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                (rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(0o644)).map(drop), owner)
            }
            Missing::MakeFile { owner } | Missing::MakeDirectories { owner } => {
                (rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o755)), owner)
            }
        };
        match made {
            // In a shared cache another build was faster.
            Err(rustix::io::Errno::EXIST) => return open(self.here(), name),
            made => made?,
        }
        let made = open(self.here(), name)?;
        if owner != (0, 0) {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        Ok(made)
    }
}

fn open(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens (`O_PATH`) a path of the host.
pub(super) fn open_on_host(path: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Splits at slashes, last component first, without empty ones and `.`.
fn components(path: &[u8]) -> Vec<CString> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(|part| CString::new(part).expect("part of a C string")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::*;

    const NOBODY: Missing = Missing::Fail;

    fn inode_of(root: &Path, path: &CStr, missing: Missing) -> io::Result<u64> {
        let root = fs::File::open(root)?;
        Ok(rustix::fs::fstat(walk(root.as_fd(), path, missing)?)?.st_ino)
    }

    fn mine() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(dir.path().join("secret"), "").unwrap();
        symlink("../../../..", root.join("a/up")).unwrap();
        symlink("/", root.join("top")).unwrap();
        symlink("a/up", root.join("two")).unwrap();
        let top = fs::metadata(&root).unwrap().ino();
        for path in [c"/", c"/..", c"/../../..", c"/a/up", c"/top", c"/two", c"/a/b/../../..", c"/top/../two/.."] {
            assert_eq!(inode_of(&root, path, NOBODY).unwrap(), top, "{path:?}");
        }
        let error = inode_of(&root, c"/a/up/secret", NOBODY).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_missing_is_made_inside_even_through_a_dangling_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
        symlink("/../../outside", root.join("data")).unwrap();
        inode_of(&root, c"/etc/resolv.conf", Missing::MakeFile { owner: mine() }).unwrap();
        assert!(root.join("run/resolve/stub.conf").is_file());
        inode_of(&root, c"/data/x", Missing::MakeDirectories { owner: mine() }).unwrap();
        assert!(root.join("outside/x").is_dir());
        assert!(!dir.path().join("outside").exists());
    }

    #[test]
    fn circles_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let error = inode_of(dir.path(), c"/a/x", Missing::MakeDirectories { owner: mine() }).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_file_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        let error = inode_of(dir.path(), c"/f/x", Missing::MakeDirectories { owner: mine() }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn the_magic_links_of_proc_are_only_text() {
        let root = fs::File::open("/").unwrap();
        let exe = walk(root.as_fd(), c"/proc/self/fd/0", NOBODY);
        // Whatever stdin is, a pipe or terminal is not reached through its magic link unless a file has that name.
        if let Ok(found) = exe {
            assert_ne!(FileType::from_raw_mode(rustix::fs::fstat(found).unwrap().st_mode), FileType::Fifo);
        }
    }
}
