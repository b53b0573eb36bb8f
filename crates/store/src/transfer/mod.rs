//! Everything of one store to another, of whatever kinds they are.
//!
//! Each result is made in the other store as a step's is: a draft on its parent, then a commit. So a copy can be
//! interrupted and run again, by several at once and beside builds. What is there is left alone.

mod sides;
mod write;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::At;
use crate::layout::log_in;
use crate::meta::Meta;
use crate::store::{ids_in, set_last_used};
use crate::{Changes, Id, Lease, Listed, LogFollower, Name, Quota, Snapshot, Store, StoreError};

/// What a copy came to.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Results that were copied.
    pub results: usize,
    /// Results that were there already.
    pub there: usize,
    /// Results that were not copied: damaged, or on one that was not copied.
    pub skipped: usize,
    /// Caches that were copied.
    pub caches: usize,
    /// Logs of failed steps that were copied.
    pub failures: usize,
    /// Bytes of files that were written, logs left out.
    pub bytes: u64,
}

/// What happens while a store is copied.
#[derive(Debug)]
pub enum TransferEvent<'a> {
    /// A result is there now.
    Copied {
        /// The result.
        result: &'a Listed,
        /// How many bytes of files were written.
        bytes: u64,
        /// How many results were looked at, this one included.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// Another process makes this result in the store that is copied to; its end is waited for.
    Waiting {
        /// The result.
        id: Id,
        /// The process.
        pid: Option<u32>,
    },
    /// Something was not copied: a result, with those that stand on it, a cache or the log of a failed step.
    Skipped {
        /// A result's id, or what it is.
        what: String,
        /// How many results stand on it.
        children: usize,
        /// Why.
        why: &'a StoreError,
    },
}

/// Hears of each event.
type Hear<'a> = dyn FnMut(TransferEvent<'_>) + 'a;

/// What became of one result.
enum Fate {
    Copied(u64),
    There,
    /// It was pruned meanwhile.
    Gone,
}

impl Store {
    /// Copies all results of `from` that are not here, parents first, with their logs, descriptions, pins and times of last
    /// use; then the latest generation of each cache and the log of each failed step that is not here. Waits until all of it is
    /// on the disk. A result that has a digest is compared with it.
    ///
    /// What cannot be read is told and left out, with what stands on it. `from` is only read; what is pruned there
    /// meanwhile is not copied.
    ///
    /// # Errors
    ///
    /// Both stores are one; the disk is full; a store fails as a whole. What was copied until then stays.
    pub fn copy_from(&self, from: &Self, hear: &mut Hear<'_>) -> Result<Transfer, StoreError> {
        self.refuse_itself(from)?;
        let all = from.list()?;
        let mut transfer = Transfer::default();
        let mut copied: Vec<&Listed> = Vec::new();
        let known: HashSet<Id> = all.iter().map(|result| result.id).collect();
        let mut children: HashMap<Id, Vec<&Listed>> = HashMap::new();
        // The next at the end: those used longest ago first.
        let mut ready: Vec<&Listed> = Vec::new();
        for result in all.iter().rev() {
            match result.parent {
                Some(parent) if known.contains(&parent) => children.entry(parent).or_default().push(result),
                _ => ready.push(result),
            }
        }
        let mut done = 0;
        while let Some(result) = ready.pop() {
            done += 1;
            match self.copy_and_pin(from, result, hear) {
                Ok(Fate::Copied(bytes)) => {
                    transfer.results += 1;
                    transfer.bytes += bytes;
                    copied.push(result);
                    hear(TransferEvent::Copied { result, bytes, done, total: all.len() });
                }
                Ok(Fate::There) => transfer.there += 1,
                Ok(Fate::Gone) => {}
                Err(error @ StoreError::DiskFull { .. }) => return Err(error),
                Err(error) => {
                    let above = take_children(&mut children, result.id);
                    done += above;
                    transfer.skipped += 1 + above;
                    hear(TransferEvent::Skipped { what: result.id.to_string(), children: above, why: &error });
                }
            }
            ready.extend(children.remove(&result.id).unwrap_or_default());
        }
        // Only now: a child's commit is a use of its parent.
        for result in copied {
            set_last_used(&self.layout.result(&result.id), result.last_used)?;
        }
        // It knows the times of the commits.
        self.rebuild_index()?;
        self.copy_caches(from, &mut transfer, hear)?;
        self.copy_failures(from, &mut transfer, hear)?;
        self.mark_durable()?;
        Ok(transfer)
    }

    fn refuse_itself(&self, from: &Self) -> Result<(), StoreError> {
        let identity = |store: &Self| fs::metadata(store.path()).map(|meta| (meta.dev(), meta.ino()));
        if identity(self).at("read", self.path())? == identity(from).at("read", from.path())? {
            let reason = "it is the store that is to be copied".to_owned();
            return Err(StoreError::BadLocation { text: self.path().display().to_string(), reason });
        }
        Ok(())
    }

    fn copy_and_pin(&self, from: &Self, result: &Listed, hear: &mut Hear<'_>) -> Result<Fate, StoreError> {
        let fate = self.copy_result(from, &result.id, hear)?;
        if result.is_pinned && !matches!(fate, Fate::Gone) {
            self.pin(&result.id)?;
        }
        Ok(fate)
    }

    fn copy_result(&self, from: &Self, id: &Id, hear: &mut Hear<'_>) -> Result<Fate, StoreError> {
        // Kept from removal while this lives, and with it all that it stands on.
        let Some(original) = from.look_at(id)? else { return Ok(Fate::Gone) };
        let Some(lease) = self.wait_for_lease(id, hear)? else { return Ok(Fate::There) };
        let meta = original.meta();
        let parent = match meta.parent {
            Some(parent) => Some(self.lookup(&parent)?.ok_or(StoreError::NoParent { id: *id, parent })?),
            None => None,
        };
        let changes = match &parent {
            Some(parent) => self.changes_against(from, &original, parent)?,
            None => from.changes(&original)?,
        };
        let draft = self.begin(lease, parent.map(Arc::new))?;
        let write = || -> Result<u64, StoreError> {
            io::copy(&mut original.log()?, &mut &**draft.log()).at("copy", &log_in(&from.layout.result(id)))?;
            write::write(&changes, draft.root(), &from.layout.result(id))
        };
        match write() {
            Ok(bytes) => self.commit_meta(draft, meta.clone()).map(|_| Fate::Copied(bytes)),
            Err(error) => {
                if let Err(left) = self.discard(draft) {
                    tracing::warn!(%id, error = %left, "cannot discard a draft");
                }
                Err(error)
            }
        }
    }

    /// Returns what makes a copy of `parent`, here, into a copy of `original`.
    fn changes_against(&self, from: &Self, original: &Snapshot, parent: &Snapshot) -> Result<Changes, StoreError> {
        let theirs = from.look_at(parent.id())?.map(|theirs| theirs.meta().created_ms);
        if theirs == Some(parent.meta().created_ms) {
            return from.changes(original);
        }
        // Made here, and no copy: a step need not do the same each time, so all is compared.
        Ok(Changes { below: Some(self.root(parent)?), tree: from.root(original)?, own: None })
    }

    /// Returns the lease of a result, once nobody has it; `None` once the result is there.
    fn wait_for_lease(&self, id: &Id, hear: &mut Hear<'_>) -> Result<Option<Lease>, StoreError> {
        let is_there = || self.look_at(id).is_ok_and(|found| found.is_some());
        if is_there() {
            return Ok(None);
        }
        let follower = self.follow(id)?;
        let patience = LogFollower::PATIENCE.try_into().expect("a second is a time");
        let mut has_said = false;
        loop {
            follower.drain();
            let lease = self.lease(id)?;
            if is_there() {
                return Ok(None);
            }
            if lease.is_some() {
                return Ok(lease);
            }
            if !std::mem::replace(&mut has_said, true) {
                hear(TransferEvent::Waiting { id: *id, pid: self.holder(id) });
            }
            match poll(&mut [PollFd::new(&follower, PollFlags::IN)], Some(&patience)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(StoreError::disk("watch", self.layout.leases(), error.into())),
            }
        }
    }

    fn copy_caches(&self, from: &Self, transfer: &mut Transfer, hear: &mut Hear<'_>) -> Result<(), StoreError> {
        for (cache, _) in from.caches()? {
            match self.copy_cache(from, &cache) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    transfer.caches += 1;
                    transfer.bytes += bytes;
                }
                Err(error @ StoreError::DiskFull { .. }) => return Err(error),
                Err(error) => {
                    transfer.skipped += 1;
                    hear(TransferEvent::Skipped { what: format!("cache {cache}"), children: 0, why: &error });
                }
            }
        }
        Ok(())
    }

    /// Returns how many bytes were written; `None` if there is nothing to do.
    fn copy_cache(&self, from: &Self, cache: &str) -> Result<Option<u64>, StoreError> {
        if self.latest(cache)?.is_some() {
            return Ok(None);
        }
        let Some((generation, _in_use)) = from.latest_in_use(cache)? else { return Ok(None) };
        let name = Name::cache(cache, generation);
        let changes = Changes { below: None, tree: from.backend.open(&name)?, own: None };
        let draft = self.begin_cache_as(cache.to_owned(), (0, 0), &Quota::NONE)?;
        match write::write(&changes, draft.root(), &from.layout.tree(&name)) {
            Ok(bytes) => Ok(self.commit_cache(draft)?.then_some(bytes)),
            Err(error) => {
                if let Err(left) = self.discard_cache(draft) {
                    tracing::warn!(error = %left, "cannot discard a copy of a cache");
                }
                Err(error)
            }
        }
    }

    fn copy_failures(&self, from: &Self, transfer: &mut Transfer, hear: &mut Hear<'_>) -> Result<(), StoreError> {
        for id in ids_in(&from.layout.failures())? {
            let copied = match from.failure(&id) {
                Ok(Some((meta, log))) => self.copy_failure(from, &id, &meta, log),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            match copied {
                Ok(is_copied) => transfer.failures += usize::from(is_copied),
                Err(error @ StoreError::DiskFull { .. }) => return Err(error),
                Err(error) => {
                    transfer.skipped += 1;
                    hear(TransferEvent::Skipped {
                        what: format!("the log of failed step {id}"),
                        children: 0,
                        why: &error,
                    });
                }
            }
        }
        Ok(())
    }

    /// Returns false if there is nothing to do: what is known of the step here is at least as good, or about to be.
    fn copy_failure(&self, from: &Self, id: &Id, meta: &Meta, mut log: File) -> Result<bool, StoreError> {
        let Some(_lease) = self.lease(id)? else { return Ok(false) };
        if self.layout.result(id).exists() || self.layout.failed(id).exists() {
            return Ok(false);
        }
        let new = self.layout.new_failure(id);
        fs::create_dir_all(&new).at("create", &new)?;
        let path = log_in(&new);
        File::create(&path).and_then(|mut to| io::copy(&mut log, &mut to)).at("write", &path)?;
        let modified = fs::metadata(from.layout.failed(id)).and_then(|meta| meta.modified());
        self.keep_failure(id, meta)?;
        if let Ok(modified) = modified {
            set_last_used(&self.layout.failed(id), modified)?;
        }
        self.forget_old_failures()?;
        Ok(true)
    }
}

/// Takes all that stands on a result, and returns how many there are.
fn take_children(children: &mut HashMap<Id, Vec<&Listed>>, id: Id) -> usize {
    let mut found = vec![id];
    let mut next = 0;
    while let Some(id) = found.get(next) {
        found.extend(children.remove(id).unwrap_or_default().iter().map(|child| child.id));
        next += 1;
    }
    found.len() - 1
}
