//! What opening a store puts right.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::boot::Durable;
use crate::error::At;
use crate::layout::META;
use crate::lease::{InUse, Lease};
use crate::list::without_index;
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
            said("a draft", store.remove_draft(&id));
        }
    }
    for id in failures_begun(&layout.failures())? {
        if let Some(_lease) = Lease::try_take(layout, &id)? {
            said("the log of a failure", remove::tree(layout, &layout.new_failure(&id)));
        }
    }
    cache::sweep(store)?;
    for id in ids_in(&layout.leases())? {
        // Taking and dropping a dead holder's lease removes its file.
        drop(Lease::try_take(layout, &id)?);
    }
    said("the trash", remove::empty_trash(store));
    Ok(())
}

/// Returns the ids of failures that are being kept now, or were when their process died.
fn failures_begun(failures: &Path) -> Result<Vec<Id>, StoreError> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(failures).at("read", failures)? {
        let name = entry.at("read", failures)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_prefix('.')).and_then(|id| id.parse::<Id>().ok()));
    }
    Ok(ids)
}

/// What cannot be deleted does no harm but take room: it is no reason to refuse the store.
pub(crate) fn said(what: &str, deleted: Result<(), StoreError>) {
    if let Err(error) = deleted {
        tracing::warn!(%error, "cannot delete {what}");
    }
}

/// In the first open after a boot, drops what the last boot committed and never marked as durable.
pub(crate) fn after_reboot(store: &Store) -> Result<(), StoreError> {
    let is_known = |mark: &Result<Option<Durable>, StoreError>| matches!(mark, Ok(Some(durable)) if durable.is_of_boot(store.boot_id()));
    if is_known(&Durable::read(&store.layout)) {
        return Ok(());
    }
    let _lock = store.lock_state()?;
    let mark = Durable::read(&store.layout);
    if is_known(&mark) {
        return Ok(());
    }
    let mark = match mark {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(error = %source, "the durable mark is damaged");
            guess(store)?
        }
        mark => mark?,
    };
    if let Some(durable) = mark {
        // Nothing was flushed for it, and nobody uses it before the mark is written.
        without_index(store.drop_damaged_index());
        drop_results(store, &durable)?;
        cache::drop_generations(store, &durable)?;
        // The next mark says that everything older is safe, so none of this may come back.
        store.flush()?;
    }
    Durable::none(store.boot_id()).write(&store.layout)
}

/// Returns the mark that stands for one that cannot be read: nothing of the last boot that committed is
/// marked, unless that is this one. What it found when it began was whole.
fn guess(store: &Store) -> Result<Option<Durable>, StoreError> {
    let metas = ids_in(&store.layout.results())?.into_iter().filter_map(|id| read_meta(store, &id));
    let last = metas.max_by_key(|meta| meta.created_ms).map(|meta| meta.stamp.boot_id);
    Ok(last.filter(|boot_id| boot_id != store.boot_id()).map(|boot_id| Durable::none(&boot_id)))
}

fn read_meta(store: &Store, id: &Id) -> Option<Meta> {
    fs::read(store.layout.result(id).join(META)).ok().and_then(|bytes| Meta::parse(&bytes).ok())
}

fn drop_results(store: &Store, durable: &Durable) -> Result<(), StoreError> {
    let results = store.layout.results();
    let mut parents: HashMap<Id, Option<Id>> = HashMap::new();
    let mut parent_of: HashMap<Id, Id> = HashMap::new();
    let mut doubtful = Vec::new();
    for id in ids_in(&results)? {
        let meta = read_meta(store, &id);
        parent_of.extend(meta.as_ref().and_then(|meta| meta.parent).map(|parent| (id, parent)));
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
    // Children before parents. Not by the time of day, which is too coarse, and can go back.
    let ancestors =
        |id: &Id| std::iter::successors(parent_of.get(id), |id| parent_of.get(*id)).take(parent_of.len()).count();
    doubtful.sort_by_cached_key(|id| std::cmp::Reverse(ancestors(id)));
    for id in &doubtful {
        if InUse::claim(&store.layout.result(id))?.is_some() {
            store.backend.remove(&store.vanish(&Name::result(id))?)?;
        }
    }
    if !doubtful.is_empty() {
        tracing::warn!(count = doubtful.len(), "dropped results that the last crash may have damaged");
    }
    Ok(())
}
