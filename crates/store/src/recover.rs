//! What opening a store puts right.

use std::collections::HashMap;
use std::fs;

use crate::boot::{Durable, Stamp};
use crate::error::At;
use crate::layout::META;
use crate::lease::{InUse, Lease};
use crate::meta::Meta;
use crate::store::ids_in;
use crate::{Id, Name, Store, StoreError, cache, remove};

/// Removes the drafts of processes that are gone, and what they had only begun to delete.
pub(crate) fn sweep(store: &Store) -> Result<(), StoreError> {
    let layout = &store.layout;
    let drafts = layout.drafts();
    for id in ids_in(&drafts)? {
        // Whoever has the lease is alive.
        if let Some(_lease) = Lease::try_take(layout, &id)? {
            store.backend.remove(&Name::draft(&id))?;
        }
    }
    cache::sweep(store)?;
    for id in ids_in(&layout.leases())? {
        // Taking and dropping a dead holder's lease removes its file.
        drop(Lease::try_take(layout, &id)?);
    }
    remove::empty_trash(layout)
}

/// In the first open after a boot, drops what the last boot committed and never marked as durable.
pub(crate) fn after_reboot(store: &Store) -> Result<(), StoreError> {
    let known = |store: &Store| -> Result<Option<Durable>, StoreError> {
        let durable = Durable::read(&store.layout)?;
        Ok(durable.filter(|durable| durable.is_of_boot(store.boot_id())))
    };
    if known(store)?.is_some() {
        return Ok(());
    }
    let _lock = store.lock_state()?;
    if known(store)?.is_some() {
        return Ok(());
    }
    if let Some(durable) = Durable::read(&store.layout)? {
        drop_results(store, &durable)?;
        cache::drop_generations(store, |stamp: &Stamp| durable.covers(stamp))?;
    }
    Durable::none(store.boot_id()).write(&store.layout)
}

fn drop_results(store: &Store, durable: &Durable) -> Result<(), StoreError> {
    let results = store.layout.results();
    let mut parents: HashMap<Id, Option<Id>> = HashMap::new();
    let mut doubtful = Vec::new();
    for id in ids_in(&results)? {
        let meta = fs::read(store.layout.result(&id).join(META)).ok().and_then(|bytes| Meta::parse(&bytes).ok());
        match meta {
            Some(meta) if durable.covers(&meta.stamp) => {
                parents.insert(id, meta.parent);
            }
            _ => doubtful.push(id),
        }
    }
    // A result is committed after its parent, so this finds nothing unless a description is damaged.
    let orphaned = |parents: &HashMap<Id, Option<Id>>| -> Vec<Id> {
        let is_orphan = |parent: &Option<Id>| parent.is_some_and(|parent| !parents.contains_key(&parent));
        parents.iter().filter(|(_, parent)| is_orphan(parent)).map(|(id, _)| *id).collect()
    };
    loop {
        let orphans = orphaned(&parents);
        if orphans.is_empty() {
            break;
        }
        for id in &orphans {
            parents.remove(id);
        }
        doubtful.extend(orphans);
    }
    for id in &doubtful {
        if InUse::claim(&store.layout.result(id))?.is_some() {
            store.backend.remove(&Name::result(id))?;
        }
    }
    if !doubtful.is_empty() {
        tracing::warn!(count = doubtful.len(), "dropped results that the last crash may have damaged");
    }
    fs::metadata(&results).at("read", &results).map(|_| ())
}
