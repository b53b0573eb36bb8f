//! The seam between policy and filesystems.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::mount::{self, Access, IdMap};
use crate::{Name, Quota, StoreError};

/// Named trees on one filesystem. All policy (results, leases, caches, pruning) is in
/// [`Store`](crate::Store), above.
///
/// A tree `name` has a directory of that name below the store's root, made and sealed by the
/// backend. The backend keeps what it needs there; the caller keeps files of its own beside it (`layout.rs`)
/// and touches nothing else. It locks the directory with `flock(2)`, so it must be one file from the draft to the
/// removal. The directory of a cache, `cache/NAME`, is the caller's. The caller may rename the directory of a sealed tree
/// into `trash/` in order to [`remove`](Backend::remove) it by that name.
///
/// A tree holds whatever a filesystem can: any name, owner, mode, time of modification to the nanosecond, extended
/// attribute, access control list, capability, hard link, hole, link, pipe, socket or device. All of that is the same in
/// the draft, the sealed tree and its clones. A kind of store that cannot keep something says so in its documentation.
///
/// Calls block, and may come from several threads and processes at once, also several clones of one tree. Callers
/// never use one draft from two threads, never create a name that exists, never seal twice, and never remove a tree while
/// a draft that was cloned from it, or a tree that [`needs`](Backend::needs) it, exists. But a process may die and
/// leave a draft that nobody goes on with: a tree under it can be removed.
pub trait Backend: Send + Sync + Debug {
    /// Starts an empty writable tree: a directory of mode 755 that belongs to the caller.
    ///
    /// # Errors
    ///
    /// The filesystem fails; nothing is left then.
    fn create(&self, name: &Name) -> Result<Root, StoreError>;

    /// Starts a writable copy of the sealed tree `from`, which stays as it is.
    ///
    /// # Errors
    ///
    /// The filesystem fails; nothing is left then.
    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError>;

    /// Looks whether drafts can be kept to `quota`.
    ///
    /// # Errors
    ///
    /// [`StoreError::CannotLimit`], which says what would help.
    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        Err(quota.refused("this kind of store has no quotas; those on overlayfs and ZFS have"))
    }

    /// Starts a draft as [`Backend::create`] or, with `from`, [`Backend::clone_tree`] does. It can take `quota` beside what it
    /// starts with, and no more: then writing fails with `EDQUOT` or `ENOSPC` for all without `CAP_SYS_RESOURCE`. Sealed, it
    /// counts no more.
    ///
    /// # Errors
    ///
    /// As for those, and for [`Backend::check_quota`].
    fn begin_limited(&self, _from: Option<&Name>, _name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        self.check_quota(quota)?;
        Err(quota.refused("this kind of store has no quotas; those on overlayfs and ZFS have"))
    }

    /// Returns what a draft may still take, when nobody writes to it. May wait for the disk.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    fn left(&self, _draft: &Name) -> Result<Quota, StoreError> {
        Ok(Quota::NONE)
    }

    /// Returns the bytes that the draft alone occupies: what removing it would free. `None` where the filesystem knows
    /// only some time after sealing; then [`Backend::sizes`] tells.
    ///
    /// # Errors
    ///
    /// The tree cannot be read.
    fn size_bytes(&self, draft: &Name) -> Result<Option<u64>, StoreError>;

    /// Returns what [`Backend::size_bytes`] could not: for each of these sealed trees the bytes that it alone occupies
    /// beside the one that it was cloned from, or `None` if it is gone. May wait for the disk.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    fn sizes(&self, names: &[Name]) -> Result<Vec<Option<u64>>, StoreError> {
        Ok(vec![None; names.len()])
    }

    /// Makes the draft immutable and visible as `name`, by one atomic step at the very end. No
    /// process may write to it any more.
    ///
    /// # Errors
    ///
    /// The filesystem fails; the draft is still there then, under its old name.
    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError>;

    /// Returns how to reach a sealed tree, for reading only.
    ///
    /// # Errors
    ///
    /// The tree is damaged, or there is none.
    fn open(&self, name: &Name) -> Result<Root, StoreError>;

    /// Returns the sealed trees that `name` needs in order to be readable, itself left out, and all that those need.
    /// Others that it was cloned from may be removed before it.
    ///
    /// # Errors
    ///
    /// The tree is damaged.
    fn needs(&self, name: &Name) -> Result<Vec<Name>, StoreError>;

    /// Returns a directory that names all that may differ between a sealed tree and the one that it was cloned
    /// from; see [`Changes::own`](crate::Changes::own). `None` where whole trees are kept.
    ///
    /// # Errors
    ///
    /// The tree is damaged.
    fn own(&self, _name: &Name) -> Result<Option<PathBuf>, StoreError> {
        Ok(None)
    }

    /// Makes a draft or sealed tree vanish at once, then frees its space. A tree that does not
    /// exist is success. A process may still hold a mount or files of it. A name in `trash/` is that of a tree which was
    /// sealed under another: all that tells about it is in its directory.
    ///
    /// # Errors
    ///
    /// The filesystem fails. The rest is deleted when the store is opened next.
    fn remove(&self, name: &Name) -> Result<(), StoreError>;

    /// Waits until all that is sealed is on the disk.
    ///
    /// # Errors
    ///
    /// The disk fails.
    fn flush(&self) -> Result<(), StoreError>;

    /// Returns the space of the filesystem.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    fn space(&self) -> Result<Space, StoreError>;
}

/// Room on a filesystem, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What ordinary users may still fill.
    pub free_bytes: u64,
}

/// How to reach a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A plain directory, writable.
    Dir(PathBuf),
    /// A plain directory, for reading only.
    Sealed(PathBuf),
    /// Layers to be joined by overlayfs.
    Overlay {
        /// Read-only layers, the topmost first.
        lower: Vec<PathBuf>,
        /// The writable layer and its work directory; none for a sealed tree.
        writable: Option<(PathBuf, PathBuf)>,
    },
    /// A filesystem of its own.
    Filesystem {
        /// What the kernel calls it: `zfs`.
        kind: &'static str,
        /// What is to be mounted.
        source: String,
        /// For reading only.
        is_sealed: bool,
    },
}

impl Root {
    /// Returns how to read a draft that nobody writes to any more. As it is, it could not be mounted again.
    pub(crate) fn read_only(&self) -> Self {
        match self {
            Self::Overlay { lower, writable: Some((upper, _)) } => {
                let lower = std::iter::once(upper).chain(lower).cloned().collect();
                Self::Overlay { lower, writable: None }
            }
            whole => whole.clone(),
        }
    }

    /// As [`Root::mount_mapped`], of a draft that was mounted before and is mounted no more. The machine must not have crashed in
    /// between: no draft survives that.
    ///
    /// # Errors
    ///
    /// As for [`Root::mount`].
    pub fn mount_again(&self, map: Option<IdMap<'_>>) -> io::Result<OwnedFd> {
        if let Self::Overlay { writable: Some((_, work)), .. } = self {
            // The mark of a volatile overlay, as Documentation/filesystems/overlayfs.rst has it.
            match std::fs::remove_dir_all(work.join("work/incompat/volatile")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.mount_mapped(map)
    }

    /// Returns a mount of the tree that is attached nowhere: it can be walked through this
    /// descriptor, or attached in another mount namespace with `move_mount(2)`. It is gone with
    /// the last descriptor and the last namespace that hold it, so nothing is left after a crash.
    ///
    /// # Errors
    ///
    /// The kernel refuses; see `mount(2)`. Needs `CAP_SYS_ADMIN`.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        self.mount_mapped(None)
    }

    /// As [`Root::mount`], for users whose ids are others than those in the tree: what is id 0 in the tree is `map`'s first id
    /// there, and so on, in both directions. Ids that the map does not have can be seen, as those of nobody, and not be
    /// changed.
    ///
    /// # Errors
    ///
    /// The kernel refuses, among others where it cannot do that with this filesystem. The draft can be mounted without a
    /// map then.
    pub fn mount_mapped(&self, map: Option<IdMap<'_>>) -> io::Result<OwnedFd> {
        match self {
            Self::Dir(path) => mount::mapped(mount::directory(path, Access::Write)?, map),
            Self::Sealed(path) => mount::mapped(mount::directory(path, Access::Read)?, map),
            Self::Filesystem { kind, source, is_sealed } => {
                let access = if *is_sealed { Access::Read } else { Access::Write };
                mount::mapped(mount::filesystem(kind, source, access)?, map)
            }
            Self::Overlay { lower, writable } => {
                let writable = writable.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
                mount::overlay(lower, writable, map)
            }
        }
    }
}
