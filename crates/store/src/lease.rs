//! Who may build a result now, and who is using one.
//!
//! Both are `flock(2)` locks: the kernel frees them when their holder dies, however it dies. The
//! lock belongs to the open file, so a sandbox that holds a duplicate keeps the lease until it too
//! is gone.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, FlockOperation, flock};
use rustix::io::Errno;

use crate::error::At;
use crate::layout::{Layout, MANY_CHILDREN, META};
use crate::{Id, StoreError};

/// The right to build one id. Dropping it gives the right back.
#[derive(Debug)]
pub struct Lease {
    pub(crate) id: Id,
    pub(crate) renews: Option<Id>,
    path: PathBuf,
    file: File,
}

impl Lease {
    /// Takes the lease of `id`, or returns `None` when another process or task has it.
    pub(crate) fn try_take(layout: &Layout, id: &Id) -> Result<Option<Self>, StoreError> {
        let path = layout.lease(id);
        loop {
            if is_held(&path)? {
                return Ok(None);
            }
            let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = open.at("open", &path)?;
            // Not free after all: taken just now, or someone else is looking, as above. Look again.
            if !try_lock(&file, FlockOperation::NonBlockingLockExclusive).at("lock", &path)? {
                std::thread::yield_now();
                continue;
            }
            // Its last holder may have removed the name between our open and our lock.
            if is_still_at(&file, &path) {
                file.set_len(0).at("write", &path)?;
                let lease = Self { id: *id, renews: None, path, file };
                lease.announce()?;
                return Ok(Some(lease));
            }
        }
    }

    /// Returns the id that may be built.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Says that what is built is to be found in the place of the result `of`, and of what renewed that before: see
    /// [`Store::renewals`](crate::Store::renewals).
    #[must_use]
    pub fn renewing(mut self, of: Id) -> Self {
        self.renews = Some(of);
        self
    }

    /// Writes the holder's pid, once more when there is a log to follow: whoever waits wakes by it.
    pub(crate) fn announce(&self) -> Result<(), StoreError> {
        let pid = format!("{:<10}", std::process::id());
        rustix::io::pwrite(&self.file, pid.as_bytes(), 0).at("write", &self.path).map(|_| ())
    }

    /// Returns a duplicate of the lock's descriptor. The lease stays taken until this `Lease` is
    /// dropped or, if the process dies, until every duplicate is closed.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // While still locked, so that whoever opens the path next makes a new file. Followers
        // wake by its going.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a lease");
        }
        // Closing is not enough: a sandbox may hold a duplicate for a moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Returns true if the lease at `path` is taken. The file is opened for reading only: closing one that
/// was open for writing wakes all who wait, and they would look in turn and so wake each other for ever.
fn is_held(path: &Path) -> Result<bool, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.at("open", path)?,
    };
    let is_free = try_lock(&file, FlockOperation::NonBlockingLockShared).at("lock", path)?;
    // Closing is not enough: a child being forked right now has a duplicate until it executes.
    let _ = flock(&file, FlockOperation::Unlock);
    Ok(!is_free)
}

/// Returns the pid that holds the lease of `id`, if it can be read.
pub(crate) fn holder(layout: &Layout, id: &Id) -> Option<u32> {
    fs::read_to_string(layout.lease(id)).ok()?.trim().parse().ok()
}

/// Wakes when a lease may have become free, or a log has grown.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// Starts to watch all leases. Look at yours after this: a change before it is not seen.
    ///
    /// All, because a lease's file is gone with its holder. The next holder has another, and whoever
    /// would begin to watch that one only after a look at it could miss its end.
    pub(crate) fn start(layout: &Layout) -> Result<Self, StoreError> {
        let leases = layout.leases();
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).at("watch", &leases)?;
        // CLOSE_WRITE comes when a holder dies, DELETE when it gives back, MODIFY when it announces a log.
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::MODIFY;
        inotify::add_watch(&inotify, &leases, flags).at("watch", &leases)?;
        Ok(Self { inotify })
    }

    /// Watches a file too.
    pub(crate) fn add(&self, path: &Path) -> Result<(), StoreError> {
        match inotify::add_watch(&self.inotify, path, WatchFlags::MODIFY) {
            // Whoever removed it gives the lease back next.
            Err(Errno::NOENT) => Ok(()),
            watch => watch.at("watch", path).map(|_| ()),
        }
    }

    /// Forgets what has happened so far. Call when the descriptor is readable, then look.
    pub(crate) fn drain(&self) {
        let mut buffer = [0_u8; 4096];
        while matches!(rustix::io::read(&self.inotify, &mut buffer), Ok(1..)) {}
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// A shared lock on a directory: it is not removed while this lives.
#[derive(Debug)]
pub(crate) struct InUse {
    pub(crate) directory: File,
}

impl InUse {
    /// Locks `path`; `None` if it does not exist or is just being removed.
    pub(crate) fn share(path: &Path) -> Result<Option<Self>, StoreError> {
        let directory = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.at("open", path)?,
        };
        // Waits only for a remover, which renames first of all.
        flock(&directory, FlockOperation::LockShared).at("lock", path)?;
        Ok(is_still_at(&directory, path).then_some(Self { directory }))
    }

    /// Locks `path` against everyone else; `None` if someone uses it or it does not exist.
    pub(crate) fn claim(path: &Path) -> Result<Option<Self>, StoreError> {
        let directory = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.at("open", path)?,
        };
        let locked = try_lock(&directory, FlockOperation::NonBlockingLockExclusive).at("lock", path)?;
        Ok((locked && is_still_at(&directory, path)).then_some(Self { directory }))
    }

    /// Returns whether the directory has a file of this name.
    pub(crate) fn has(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(false),
            stat => Ok(stat.map(|_| true)?),
        }
    }

    /// Of a result: returns how many children and drafts count themselves by a link; `None` if they cannot all do so.
    pub(crate) fn links(&self) -> io::Result<Option<usize>> {
        if self.has(MANY_CHILDREN)? {
            return Ok(None);
        }
        match rustix::fs::statat(&self.directory, META, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => Ok(usize::try_from(stat?.st_nlink.saturating_sub(1)).ok()),
        }
    }

    /// Of a result: returns when it was used last, in nanoseconds since 1970.
    pub(crate) fn last_used_ns(&self) -> io::Result<i64> {
        self.directory.metadata().map(|meta| last_used_ns(&meta))
    }

    /// Unlocks, however many duplicates of the descriptor there are.
    pub(crate) fn give_up(&self) {
        let _ = flock(&self.directory, FlockOperation::Unlock);
    }

    /// Returns a file's whole content, by its name in the directory.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens a file for reading, by its name in the directory.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, name, flags, rustix::fs::Mode::empty())?.into())
    }
}

/// Returns when a result was used last: the modification time of its directory, in nanoseconds since 1970.
pub(crate) fn last_used_ns(directory: &fs::Metadata) -> i64 {
    directory.mtime() * 1_000_000_000 + directory.mtime_nsec()
}

pub(crate) fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        locked => Ok(locked.map(|()| true)?),
    }
}

/// Returns true if `path` still names the open `file`.
pub(crate) fn is_still_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> Layout {
        let layout = Layout { root: dir.to_owned() };
        fs::create_dir_all(layout.leases()).unwrap();
        layout
    }

    #[test]
    fn a_lease_is_held_once_and_freed_by_drop() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let id = Id::new([1; 32]);
        let lease = Lease::try_take(&layout, &id).unwrap().unwrap();
        assert!(Lease::try_take(&layout, &id).unwrap().is_none());
        assert_eq!(holder(&layout, &id), Some(std::process::id()));
        let sandbox = lease.hold().unwrap();
        drop(lease);
        assert!(Lease::try_take(&layout, &id).unwrap().is_some());
        assert!(!layout.lease(&id).exists());
        drop(sandbox);
    }

    #[test]
    fn a_watch_wakes_when_the_lease_is_given_back() {
        use rustix::event::{PollFd, PollFlags, poll};
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let id = Id::new([2; 32]);
        let lease = Lease::try_take(&layout, &id).unwrap().unwrap();
        let watch = Watch::start(&layout).unwrap();
        assert!(Lease::try_take(&layout, &id).unwrap().is_none());
        drop(lease);
        // Blocks for ever if the wake-up is missing.
        poll(&mut [PollFd::new(&watch, PollFlags::IN)], None).unwrap();
        watch.drain();
        assert!(Lease::try_take(&layout, &id).unwrap().is_some());
    }

    #[test]
    fn what_is_in_use_cannot_be_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result");
        fs::create_dir(&path).unwrap();
        let user = InUse::share(&path).unwrap().unwrap();
        assert!(InUse::share(&path).unwrap().is_some(), "several may use it");
        assert!(InUse::claim(&path).unwrap().is_none());
        drop(user);
        let claimed = InUse::claim(&path).unwrap().unwrap();
        fs::remove_dir(&path).unwrap();
        drop(claimed);
        assert!(InUse::share(&path).unwrap().is_none());
    }
}
