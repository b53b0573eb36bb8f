//! The policy above every backend: results and drafts. Inside: logs of failures, durable marks, the index.

mod durable;
mod failure;
mod remembered;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_OMIT, flock};
use rustix::io::Errno;

use crate::boot::{self, Stamp};
use crate::error::At;
use crate::index::{Index, Row};
use crate::layout::{LOG, Layout, MANY_CHILDREN, META, PARENT, log_in};
use crate::lease::{self, InUse, Lease};
use crate::list::{DAMAGED, without_index};
use crate::meta::{Description, Meta};
use crate::{
    Backend, Id, Location, LogFollower, Name, Quota, Root, Space, StoreError, TreeDigest, open, recover, remove,
};

/// Results, caches and drafts in one directory, shared with every other process that opens it.
///
/// All methods block. Methods may be called from several threads.
#[derive(Debug)]
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) backend: Box<dyn Backend>,
    boot_id: String,
    index: Mutex<Option<Index>>,
    pub(crate) has_unmarked: AtomicBool,
    /// Whether the index is known to have been told of all results once.
    index_is_filled: AtomicBool,
    takes_digests: bool,
}

/// A committed result. It is not removed while this value lives, whoever prunes.
#[derive(Debug)]
pub struct Snapshot {
    id: Id,
    in_use: InUse,
    meta: Meta,
}

/// A tree being written by the holder of a lease. Invisible until committed.
#[derive(Debug)]
pub struct Draft {
    lease: Lease,
    parent: Option<Arc<Snapshot>>,
    root: Root,
    log: Arc<File>,
}

/// What the start of an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The whole id.
    pub id: Id,
    /// Where its log is.
    pub state: State,
}

/// The state of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Committed.
    Result,
    /// Running now.
    Running,
    /// Its last run failed.
    Failed,
}

impl Snapshot {
    /// Returns the result's id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Returns the result's description.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Opens the log of the step that made it, for reading.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn log(&self) -> Result<File, StoreError> {
        self.in_use.open(LOG).at("open the log of", Path::new(&self.id.to_string()))
    }
}

impl Draft {
    /// Returns the id that is being built.
    pub fn id(&self) -> &Id {
        self.lease.id()
    }

    /// Returns the writable tree.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the log, open for appending and reading.
    pub fn log(&self) -> &Arc<File> {
        &self.log
    }

    /// Returns the lease that this draft is written under.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Store {
    /// Opens the store at `location`, made if it does not exist. Drafts of dead processes are swept;
    /// after a crash of the machine, so are results that may not have reached the disk.
    ///
    /// # Errors
    ///
    /// The directory cannot be used; the error says why.
    pub fn open(location: &Location) -> Result<Self, StoreError> {
        Self::open_in_boot(location, boot::current_id()?)
    }

    /// As [`Store::open`] in a boot with this id: for tests of what a reboot does.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open_in_boot(location: &Location, boot_id: String) -> Result<Self, StoreError> {
        let (layout, backend) = open::open(location)?;
        Self::with_backend(layout, backend, boot_id)
    }

    /// As [`Store::open_in_boot`], on a backend of the caller's in a store that was made before: for tests of this
    /// policy and of backends.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    #[doc(hidden)]
    pub fn open_with_backend(root: &Path, backend: Box<dyn Backend>, boot_id: String) -> Result<Self, StoreError> {
        Self::with_backend(Layout { root: root.to_owned() }, backend, boot_id)
    }

    fn with_backend(layout: Layout, backend: Box<dyn Backend>, boot_id: String) -> Result<Self, StoreError> {
        let (index, has_unmarked, index_is_filled) = (Mutex::new(None), AtomicBool::new(false), AtomicBool::new(false));
        let store = Self { layout, backend, boot_id, index, has_unmarked, index_is_filled, takes_digests: false };
        recover::after_reboot(&store)?;
        recover::sweep(&store)?;
        Ok(store)
    }

    /// Takes a digest of every tree that is committed (`true`), so that `verify` can tell later whether it is
    /// still the same, or does not (the default). It reads the whole tree.
    #[must_use]
    pub fn with_digests(self, takes_digests: bool) -> Self {
        Self { takes_digests, ..self }
    }

    /// Returns the store's directory, absolute.
    pub fn path(&self) -> &Path {
        &self.layout.root
    }

    /// Returns a directory on the store's filesystem for files that never get a name to keep: what lies in there is removed
    /// when the store is opened next.
    pub fn scratch_dir(&self) -> PathBuf {
        self.layout.trash()
    }

    /// Returns the result `id`, or `None` if it was never built or is no longer there. Counts as a use.
    ///
    /// # Errors
    ///
    /// The store cannot be read. A damaged description is not an error: the result is treated as absent.
    pub fn lookup(&self, id: &Id) -> Result<Option<Snapshot>, StoreError> {
        match self.look_at(id) {
            Ok(Some(snapshot)) => touch(&self.layout.result(id)).map(|()| Some(snapshot)),
            Err(error @ StoreError::Meta { .. }) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "ignoring a damaged result");
                self.note_damage(id);
                Ok(None)
            }
            other => other,
        }
    }

    /// As [`Store::lookup`], but it does not count as a use, and a damaged description is an error.
    pub(crate) fn look_at(&self, id: &Id) -> Result<Option<Snapshot>, StoreError> {
        let Some(in_use) = InUse::share(&self.layout.result(id))? else { return Ok(None) };
        let meta = in_use.read(META).map_err(serde_json::Error::io).and_then(|bytes| Meta::parse(&bytes));
        let meta = meta.map_err(|source| StoreError::Meta { id: *id, source })?;
        Ok(Some(Snapshot { id: *id, in_use, meta }))
    }

    /// Returns the results that were made to be found in the place of `id`, the last one first.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn renewals(&self, id: &Id) -> Result<Vec<Id>, StoreError> {
        // An index that is new knows of nothing yet.
        if !self.index_is_filled.load(Ordering::Relaxed) {
            self.look_through_if_never()?;
            self.index_is_filled.store(true, Ordering::Relaxed);
        }
        Ok(without_index(self.with_index(|index| index.renewals(id))))
    }

    /// Returns how to reach a result's tree.
    ///
    /// # Errors
    ///
    /// The tree is damaged.
    pub fn root(&self, snapshot: &Snapshot) -> Result<Root, StoreError> {
        self.backend.open(&Name::result(&snapshot.id))
    }

    /// Returns what the result's tree is now. It was something else before if the digest of its
    /// [description](Meta::tree_digest) is another.
    ///
    /// # Errors
    ///
    /// The tree is damaged.
    pub fn tree_digest(&self, snapshot: &Snapshot) -> Result<TreeDigest, StoreError> {
        TreeDigest::of(&self.root(snapshot)?, &self.layout.result(&snapshot.id))
    }

    /// Takes the lease of `id`; `None` if it is being built. Look the result up again after
    /// taking it: it may have been committed just before.
    ///
    /// # Errors
    ///
    /// The lease file cannot be written.
    pub fn lease(&self, id: &Id) -> Result<Option<Lease>, StoreError> {
        Lease::try_take(&self.layout, id)
    }

    /// Returns the pid of the process that builds `id` now, if there is one.
    pub fn holder(&self, id: &Id) -> Option<u32> {
        lease::holder(&self.layout, id)
    }

    /// Follows the step that builds `id` now. Without one, the follower has nothing to read.
    ///
    /// # Errors
    ///
    /// The system has no more inotify instances (`fs.inotify.max_user_instances`).
    pub fn follow(&self, id: &Id) -> Result<LogFollower, StoreError> {
        LogFollower::start(&self.layout, id)
    }

    /// Starts a draft: a writable copy of `parent`, or an empty tree.
    ///
    /// # Errors
    ///
    /// The filesystem fails; nothing is left then.
    pub fn begin(&self, lease: Lease, parent: Option<Arc<Snapshot>>) -> Result<Draft, StoreError> {
        self.begin_limited(lease, parent, &Quota::NONE)
    }

    /// As [`Store::begin`], of a draft that can take `quota` beside what it starts with, until it is committed.
    ///
    /// # Errors
    ///
    /// As there, and for [`Store::check_quota`].
    pub fn begin_limited(
        &self,
        lease: Lease,
        parent: Option<Arc<Snapshot>>,
        quota: &Quota,
    ) -> Result<Draft, StoreError> {
        let id = *lease.id();
        let name = Name::draft(&id);
        // Whoever has the lease has looked: what is there cannot be read.
        if self.layout.result(&id).exists() {
            self.remove_damaged(&id)?;
        }
        // A dead process may have left one; the lease says that no live one has.
        self.remove_draft(&id)?;
        let from = parent.as_ref().map(|parent| Name::result(parent.id()));
        let started = self.begin_tree(from.as_ref(), &name, quota);
        let path = log_in(&self.layout.draft(&id));
        let open = |root| {
            if let Some(parent) = &parent {
                self.count_child(parent.id(), &self.layout.draft(&id))?;
            }
            let log = File::options().create_new(true).append(true).read(true).open(&path).at("create", &path)?;
            lease.announce()?;
            Ok((root, log))
        };
        match started.and_then(open) {
            Ok((root, log)) => Ok(Draft { lease, parent, root, log: Arc::new(log) }),
            Err(error) => {
                self.clean_up(&id);
                Err(error)
            }
        }
    }

    pub(crate) fn begin_tree(&self, from: Option<&Name>, name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        match from {
            _ if *quota != Quota::NONE => self.backend.begin_limited(from, name, quota),
            Some(from) => self.backend.clone_tree(from, name),
            None => self.backend.create(name),
        }
    }

    /// Looks whether drafts can be kept to `quota` on this store.
    ///
    /// # Errors
    ///
    /// [`StoreError::CannotLimit`], which says what would help.
    pub fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        if *quota == Quota::NONE { Ok(()) } else { self.backend.check_quota(quota) }
    }

    /// Returns what the limited draft of `id` may still take, when nobody writes to it. May wait for the disk.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    pub fn left(&self, id: &Id) -> Result<Quota, StoreError> {
        self.backend.left(&Name::draft(id))
    }

    /// Counts the draft or result in `child` among the children of `parent`, by a link to its description.
    pub(crate) fn count_child(&self, parent: &Id, child: &Path) -> Result<(), StoreError> {
        let parent = self.layout.result(parent);
        let meta = parent.join(META);
        match rustix::fs::linkat(CWD, &meta, CWD, child.join(PARENT), AtFlags::empty()) {
            // 65 000 on ext4.
            Err(Errno::MLINK) => fs::write(parent.join(MANY_CHILDREN), "").at("write", &parent),
            linked => linked.at("link", &meta),
        }
    }

    /// Takes a sealed tree that nobody uses out of sight. Returns the name by which the backend is to remove it, without a
    /// lock that others wait for.
    pub(crate) fn vanish(&self, name: &Name) -> Result<Name, StoreError> {
        let gone = Name::trash(&remove::unique());
        let (from, to) = (self.layout.tree(name), self.layout.tree(&gone));
        fs::rename(&from, &to).at("remove", &from)?;
        self.uncount_child(&to);
        Ok(gone)
    }

    /// Takes back [`Store::count_child`]. Not before a child has vanished: a parent goes once it has none.
    pub(crate) fn uncount_child(&self, child: &Path) {
        // If it fails, the link goes with the rest, and until then the parent stays.
        let _ = fs::remove_file(child.join(PARENT));
    }

    /// Removes a draft.
    pub(crate) fn remove_draft(&self, id: &Id) -> Result<(), StoreError> {
        let name = Name::draft(id);
        self.uncount_child(&self.layout.tree(&name));
        self.backend.remove(&name)
    }

    /// Tells the index that a result cannot be read, for whoever lists it.
    fn note_damage(&self, id: &Id) {
        without_index(self.with_index(|index| match index.result(id)? {
            Some(row) => index.insert(id, &Row { summary: DAMAGED.to_owned(), ..row }),
            None => Ok(()),
        }));
    }

    /// Removes a result whose description is damaged, and what stands on it, so that it can be made again.
    fn remove_damaged(&self, id: &Id) -> Result<(), StoreError> {
        if self.lookup(id)?.is_some() {
            return Err(StoreError::InUse(*id));
        }
        self.remove(id, true).map(|_| ())
    }

    /// Makes the draft a result: immutable, and visible to all at once. No process may write to the
    /// tree any more. On failure the draft is discarded.
    ///
    /// # Errors
    ///
    /// The filesystem fails.
    pub fn commit(&self, draft: Draft, description: Description) -> Result<Snapshot, StoreError> {
        let parent = draft.parent.as_ref().map(|parent| *parent.id());
        let renews = draft.lease.renews;
        let meta = Meta { renews, ..Meta::new(description, parent, None, Stamp::now(&self.boot_id)) };
        self.commit_meta(draft, meta)
    }

    /// As [`Store::commit`], with a description that may be another store's. If that has a digest, it is an error if the
    /// tree has another.
    pub(crate) fn commit_meta(&self, draft: Draft, meta: Meta) -> Result<Snapshot, StoreError> {
        let committed = self.try_commit(&draft, meta);
        if committed.is_err() {
            self.clean_up(draft.id());
        }
        committed
    }

    fn try_commit(&self, draft: &Draft, mut meta: Meta) -> Result<Snapshot, StoreError> {
        let id = *draft.id();
        let name = Name::draft(&id);
        let dir = self.layout.tree(&name);
        meta.size_bytes = self.backend.size_bytes(&name)?;
        if self.takes_digests || meta.tree_digest.is_some() {
            let digest = TreeDigest::of(&draft.root, &dir)?;
            if meta.tree_digest.replace(digest).is_some_and(|expected| expected != digest) {
                return Err(StoreError::TreeChanged(id));
            }
        }
        // Before it can be seen, so that all that can be seen is known.
        let row = Row::new(&meta, unix_ns());
        if let Err(error) = self.with_index(|index| index.insert(&id, &row)) {
            tracing::warn!(%id, %error, "cannot note a result in the index");
        }
        let _unmarked = self.begin_commit()?;
        meta.stamp = Stamp::now(&self.boot_id);
        let path = dir.join(META);
        fs::write(&path, meta.to_json()).at("write", &path)?;
        // Locked before it can be seen, so that no one prunes it under our feet.
        let in_use = InUse::share(&dir)?.ok_or(StoreError::InUse(id))?;
        self.backend.seal(&name, &Name::result(&id))?;
        self.has_unmarked.store(true, Ordering::Relaxed);
        if let Err(error) = self.forget_failure(&id) {
            tracing::warn!(%id, %error, "cannot remove the log of an earlier failure");
        }
        Ok(Snapshot { id, in_use, meta })
    }

    /// Discards the draft.
    ///
    /// # Errors
    ///
    /// The filesystem fails; the draft is swept when the store is opened next.
    pub fn discard(&self, draft: Draft) -> Result<(), StoreError> {
        self.remove_draft(draft.id())
    }

    fn clean_up(&self, draft: &Id) {
        if let Err(error) = self.remove_draft(draft) {
            tracing::warn!(id = %draft, %error, "cannot discard a draft");
        }
    }

    /// Returns what the start of an id stands for: a result first, then a running step, then a failed one.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchResult`], or [`StoreError::Ambiguous`] if several ids begin so.
    pub fn find(&self, prefix: &str) -> Result<Found, StoreError> {
        let starts = |dir: &Path| -> Result<Vec<Id>, StoreError> {
            // A whole id needs no search.
            if let Ok(id) = prefix.parse::<Id>() {
                return Ok(if dir.join(prefix).exists() { vec![id] } else { Vec::new() });
            }
            let ids = ids_in(dir)?;
            Ok(ids.into_iter().filter(|id| id.to_string().starts_with(prefix)).collect())
        };
        let places = [
            (self.layout.results(), State::Result),
            (self.layout.drafts(), State::Running),
            (self.layout.failures(), State::Failed),
        ];
        let mut found: Vec<Found> = Vec::new();
        for (dir, state) in places {
            for id in starts(&dir)? {
                if found.iter().all(|known| known.id != id) {
                    found.push(Found { id, state });
                }
            }
        }
        match &*found {
            [] => Err(StoreError::NoSuchResult(prefix.to_owned())),
            [only] => Ok(*only),
            _ => {
                let ids = found.iter().take(5).map(|found| found.id.short()).collect();
                Err(StoreError::Ambiguous { prefix: prefix.to_owned(), ids })
            }
        }
    }

    /// Returns the space of the store's filesystem.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    pub fn space(&self) -> Result<Space, StoreError> {
        self.backend.space()
    }

    /// Serialises rare changes of `state/` between processes.
    pub(crate) fn lock_state(&self) -> Result<File, StoreError> {
        lock(&self.layout.root.join("state"), FlockOperation::LockExclusive)
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

/// Returns the ids that name entries of `dir`.
pub(crate) fn ids_in(dir: &Path) -> Result<Vec<Id>, StoreError> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let name = entry.at("read", dir)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<Id>().ok()));
    }
    Ok(ids)
}

/// The time of day in nanoseconds since 1970.
fn unix_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Sets the time of last use to now.
pub(crate) fn touch(path: &Path) -> Result<(), StoreError> {
    // Not `UTIME_NOW`, the time of the kernel's last tick: a pruner tells by this time whether a result was
    // used since it looked.
    set_modified(path, rustix::time::clock_gettime(rustix::time::ClockId::Realtime)).at("touch", path)
}

/// Sets the time of last use, the modification time of a result's directory. Success if that is gone.
pub(crate) fn set_last_used(path: &Path, time: SystemTime) -> Result<(), StoreError> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().try_into().unwrap_or(i64::MAX);
    match set_modified(path, Timespec { tv_sec: seconds, tv_nsec: since.subsec_nanos().into() }) {
        Err(Errno::NOENT) => Ok(()),
        set => set.at("touch", path),
    }
}

fn set_modified(path: &Path, time: Timespec) -> Result<(), Errno> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())
}

/// Opens and locks a directory, or waits for it.
pub(crate) fn lock(path: &Path, operation: FlockOperation) -> Result<File, StoreError> {
    let directory = File::open(path).at("open", path)?;
    flock(&directory, operation).at("lock", path)?;
    Ok(directory)
}
