//! Named directories that outlive steps.
//!
//! A cache is a row of generations, each an immutable tree. A step works on a copy of the latest
//! one. Afterwards its copy becomes the next generation, unless another step made one meanwhile:
//! then it is dropped. So no step ever sees another's half-written files.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FlockOperation, Gid, Uid, chownat, flock};

use crate::boot::{Durable, Stamp};
use crate::error::At;
use crate::layout::{META, escape};
use crate::lease::InUse;
use crate::store::{lock, touch};
use crate::{Name, Quota, Root, Store, StoreError, recover, remove};

/// A step's own copy of a cache.
#[derive(Debug)]
pub struct CacheDraft {
    cache: String,
    name: Name,
    /// The generation that it is a copy of, kept from removal.
    base: Option<(u64, InUse)>,
    lock: File,
    root: Root,
}

impl CacheDraft {
    /// Returns the writable tree.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns a duplicate of the descriptor whose lock says that this copy is alive.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn hold(&self) -> std::io::Result<OwnedFd> {
        self.lock.as_fd().try_clone_to_owned()
    }
}

impl Store {
    /// Starts a writable copy of the latest generation of the cache `name`. A cache that does not
    /// exist yet is an empty directory owned by `owner` (uid, gid).
    ///
    /// # Errors
    ///
    /// The filesystem fails; nothing is left then.
    pub fn begin_cache(&self, name: &[u8], owner: (u32, u32)) -> Result<CacheDraft, StoreError> {
        self.begin_cache_as(escape(name), owner, &Quota::NONE)
    }

    /// As [`Store::begin_cache`], of a copy that can take `quota` beside what it starts with, until it is committed.
    ///
    /// # Errors
    ///
    /// As there, and for [`Store::check_quota`].
    pub fn begin_limited_cache(&self, name: &[u8], owner: (u32, u32), quota: &Quota) -> Result<CacheDraft, StoreError> {
        self.begin_cache_as(escape(name), owner, quota)
    }

    /// As [`Store::begin_limited_cache`], by the name of the cache's directory.
    pub(crate) fn begin_cache_as(
        &self,
        cache: String,
        owner: (u32, u32),
        quota: &Quota,
    ) -> Result<CacheDraft, StoreError> {
        let draft = Name::cache_draft(&remove::unique());
        let base = self.latest_in_use(&cache)?;
        // Whoever sweeps waits here, so that it never sees the copy before its lock is taken.
        let drafts = self.layout.drafts();
        let creating = lock(&drafts, FlockOperation::LockShared)?;
        let from = base.as_ref().map(|(generation, _)| Name::cache(&cache, *generation));
        let begun = self.begin_tree(from.as_ref(), &draft, quota);
        let dir = self.layout.tree(&draft);
        let finish = |root: Root| -> Result<(Root, File), StoreError> {
            let lock = lock(&dir, FlockOperation::LockExclusive)?;
            if base.is_none() {
                let tree = root.mount().at("mount", &dir)?;
                let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
                chownat(&tree, c".", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).at("chown", &dir)?;
            }
            Ok((root, lock))
        };
        match begun.and_then(finish) {
            Ok((root, lock)) => {
                drop(creating);
                Ok(CacheDraft { cache, name: draft, base, lock, root })
            }
            Err(error) => {
                if let Err(left) = self.backend.remove(&draft) {
                    tracing::warn!(error = %left, "cannot discard a copy of a cache");
                }
                Err(error)
            }
        }
    }

    /// Makes the copy the latest generation, or drops it if there is a newer one than it was copied
    /// from. Returns true if it was kept. No process may write to it any more.
    ///
    /// # Errors
    ///
    /// The filesystem fails; the copy is dropped then.
    pub fn commit_cache(&self, draft: CacheDraft) -> Result<bool, StoreError> {
        match self.try_commit_cache(&draft) {
            Ok(true) => Ok(true),
            Ok(false) => self.discard_cache(draft).map(|()| false),
            Err(error) => {
                if let Err(left) = self.discard_cache(draft) {
                    tracing::warn!(error = %left, "cannot discard a copy of a cache");
                }
                Err(error)
            }
        }
    }

    fn try_commit_cache(&self, draft: &CacheDraft) -> Result<bool, StoreError> {
        let cache = &draft.cache;
        let directory = self.layout.cache(cache);
        fs::create_dir_all(&directory).at("create", &directory)?;
        let lock = lock(&directory, FlockOperation::LockExclusive)?;
        let base = draft.base.as_ref().map(|(generation, _)| *generation);
        if self.latest(cache)? != base {
            return Ok(false);
        }
        let next = base.map_or(1, |generation| generation + 1);
        let unmarked = self.begin_commit()?;
        let path = self.layout.tree(&draft.name).join(META);
        let stamp = serde_json::to_vec(&Stamp::now(self.boot_id())).expect("a stamp has string keys only");
        fs::write(&path, stamp).at("write", &path)?;
        self.backend.seal(&draft.name, &Name::cache(cache, next))?;
        drop(unmarked);
        self.has_unmarked.store(true, Ordering::Relaxed);
        // Closing is not enough: a sandbox may hold a duplicate for a moment, and would keep others from the cache.
        let _ = flock(&draft.lock, FlockOperation::Unlock);
        if let Some((_, base)) = &draft.base {
            base.give_up();
        }
        let gone = self.drop_old_generations(cache, next);
        drop(lock);
        if let Err(error) = gone.and_then(|gone| gone.iter().try_for_each(|name| self.backend.remove(name))) {
            tracing::warn!(%cache, %error, "cannot remove old generations of a cache");
        }
        Ok(true)
    }

    /// Returns what a limited copy may still take, when nobody writes to it. May wait for the disk.
    ///
    /// # Errors
    ///
    /// The filesystem cannot be asked.
    pub fn left_in_cache(&self, draft: &CacheDraft) -> Result<Quota, StoreError> {
        self.backend.left(&draft.name)
    }

    /// Drops the copy.
    ///
    /// # Errors
    ///
    /// The filesystem fails; the copy is swept when the store is opened next.
    pub fn discard_cache(&self, draft: CacheDraft) -> Result<(), StoreError> {
        self.backend.remove(&draft.name)
    }

    /// Returns the names (escaped) of all caches and the number of their latest generation.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn caches(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let caches = self.layout.caches();
        let mut found = Vec::new();
        for entry in fs::read_dir(&caches).at("read", &caches)? {
            let name = entry.at("read", &caches)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(latest) = self.latest(name)? {
                found.push((name.to_owned(), latest));
            }
        }
        found.sort();
        Ok(found)
    }

    pub(crate) fn generations(&self, cache: &str) -> Result<Vec<u64>, StoreError> {
        let directory = self.layout.cache(cache);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &directory)?,
        };
        let mut generations = Vec::new();
        for entry in entries {
            let name = entry.at("read", &directory)?.file_name();
            generations.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        generations.sort_unstable();
        Ok(generations)
    }

    pub(crate) fn latest(&self, cache: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.generations(cache)?.pop())
    }

    /// Returns the latest generation, locked against removal.
    pub(crate) fn latest_in_use(&self, cache: &str) -> Result<Option<(u64, InUse)>, StoreError> {
        loop {
            let Some(latest) = self.latest(cache)? else { return Ok(None) };
            // Gone in between: then there is a newer one.
            let path = self.layout.tree(&Name::cache(cache, latest));
            if let Some(in_use) = InUse::share(&path)? {
                touch(&path)?;
                return Ok(Some((latest, in_use)));
            }
        }
    }

    /// Removes a generation and later ones, which may stand on it, until one is in use. Returns how many.
    pub(crate) fn drop_cache_from(&self, cache: &str, first: u64) -> Result<usize, StoreError> {
        let lock = lock(&self.layout.cache(cache), FlockOperation::LockExclusive)?;
        let mut gone = Vec::new();
        for generation in self.generations(cache)?.into_iter().rev().take_while(|generation| *generation >= first) {
            let name = Name::cache(cache, generation);
            let Some(_claim) = InUse::claim(&self.layout.tree(&name))? else { break };
            gone.push(self.vanish(&name)?);
        }
        drop(lock);
        gone.iter().try_for_each(|name| self.backend.remove(name))?;
        Ok(gone.len())
    }

    /// Takes the generations before `latest` that neither it nor a step that runs stands on out of sight, and returns
    /// what is to be deleted. The last one that is safe on the disk stays: a power cut takes what is not, and would leave
    /// nothing of the cache. The caller holds the cache's lock.
    fn drop_old_generations(&self, cache: &str, latest: u64) -> Result<Vec<Name>, StoreError> {
        let mut claimed = Vec::new();
        let mut needed = self.backend.needs(&Name::cache(cache, latest))?;
        let generations = self.generations(cache)?;
        let durable = Durable::read(&self.layout)?;
        let is_safe = |generation: &u64| durable.as_ref().is_some_and(|mark| self.is_covered(cache, *generation, mark));
        let safe = generations.iter().copied().rev().find(is_safe);
        for generation in generations {
            let name = Name::cache(cache, generation);
            match InUse::claim(&self.layout.tree(&name))? {
                Some(claim) if generation < latest && Some(generation) != safe => claimed.push((name, claim)),
                // It stays, or someone's copy stands on it; and so does all that it needs.
                _ => needed.extend(self.backend.needs(&name)?),
            }
        }
        claimed.retain(|(name, _claim)| !needed.contains(name));
        // Later ones first: they may need those before them.
        claimed.iter().rev().map(|(name, _claim)| self.vanish(name)).collect()
    }

    /// Returns true if a generation was committed before the mark was set.
    fn is_covered(&self, cache: &str, generation: u64, mark: &Durable) -> bool {
        let file = self.layout.tree(&Name::cache(cache, generation)).join(META);
        let stamp = fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Stamp>(&bytes).ok());
        stamp.is_some_and(|stamp| mark.covers(&stamp))
    }

    /// Removes the caches that no step has used since then and none uses now; with `dry_run` only says which. Returns their
    /// names.
    pub(crate) fn prune_caches(&self, since: SystemTime, dry_run: bool) -> Result<Vec<String>, StoreError> {
        let mut pruned = Vec::new();
        for (cache, latest) in self.caches()? {
            let lock = lock(&self.layout.cache(&cache), FlockOperation::LockExclusive)?;
            let used = fs::metadata(self.layout.tree(&Name::cache(&cache, latest))).and_then(|meta| meta.modified());
            // Gone: someone committed a newer one just now.
            if used.is_ok_and(|used| used < since)
                && let Some(gone) = self.drop_generations(&cache, dry_run)?
            {
                drop(lock);
                gone.iter().try_for_each(|name| self.backend.remove(name))?;
                pruned.push(cache);
            }
        }
        Ok(pruned)
    }

    /// Takes all generations of a cache out of sight and returns what is to be deleted; `None` if one is in use. The caller
    /// holds the cache's lock.
    fn drop_generations(&self, cache: &str, dry_run: bool) -> Result<Option<Vec<Name>>, StoreError> {
        let mut claimed = Vec::new();
        for generation in self.generations(cache)? {
            let name = Name::cache(cache, generation);
            let Some(claim) = InUse::claim(&self.layout.tree(&name))? else { return Ok(None) };
            claimed.push((name, claim));
        }
        if dry_run {
            return Ok(Some(Vec::new()));
        }
        // Later ones stand on earlier ones.
        claimed.iter().rev().map(|(name, _claim)| self.vanish(name)).collect::<Result<_, _>>().map(Some)
    }
}

/// Removes copies whose process is gone.
pub(crate) fn sweep(store: &Store) -> Result<(), StoreError> {
    let drafts = store.layout.drafts();
    let mut copies = Vec::new();
    for entry in fs::read_dir(&drafts).at("read", &drafts)? {
        let name = entry.at("read", &drafts)?.file_name();
        copies.extend(name.to_str().and_then(|name| name.strip_prefix("cache-")).map(Name::cache_draft));
    }
    if copies.is_empty() {
        return Ok(());
    }
    let _nobody_creates = lock(&drafts, FlockOperation::LockExclusive)?;
    for name in copies {
        if InUse::claim(&store.layout.tree(&name))?.is_some() {
            recover::said("a copy of a cache", store.backend.remove(&name));
        }
    }
    Ok(())
}

/// Drops the generations that `mark` does not cover, and later ones, which may stand on them. For the first open after a
/// boot.
pub(crate) fn drop_generations(store: &Store, mark: &Durable) -> Result<(), StoreError> {
    for (cache, _) in store.caches()? {
        let generations = store.generations(&cache)?;
        let whole = generations.iter().take_while(|generation| store.is_covered(&cache, **generation, mark)).count();
        for generation in generations[whole..].iter().rev() {
            store.backend.remove(&Name::cache(&cache, *generation))?;
        }
    }
    Ok(())
}
