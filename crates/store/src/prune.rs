//! What is in the store, and what goes when room is needed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::error::At;
use crate::index::Row;
use crate::layout::META;
use crate::lease::InUse;
use crate::meta::Meta;
use crate::store::ids_in;
use crate::{Id, Name, Store, StoreError};

/// A result in a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The result.
    pub id: Id,
    /// What it was cloned from.
    pub parent: Option<Id>,
    /// For people: the operation.
    pub summary: String,
    /// When it was committed, in milliseconds since 1970.
    pub created_ms: u64,
    /// When a build last used it.
    pub last_used: SystemTime,
    /// What it alone occupies.
    pub size_bytes: u64,
}

/// How much may stay. What is not given does not limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes of all results together.
    pub max_size_bytes: Option<u64>,
    /// Bytes that the filesystem should have free.
    pub keep_free_bytes: Option<u64>,
    /// Results unused for longer go.
    pub max_age: Option<Duration>,
    /// How many results.
    pub max_items: Option<usize>,
}

/// What pruning did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The results removed, in order.
    pub removed: Vec<Listed>,
    /// What they occupied.
    pub freed_bytes: u64,
    /// How many results were too old or too many but are in use.
    pub in_use: usize,
}

impl Store {
    /// Returns all results, those used longest ago first.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let results = self.layout.results();
        let mut known = without_index(self.index_rows());
        let mut seen = HashSet::new();
        let mut added = Vec::new();
        let mut listed = Vec::new();
        loop {
            // Until there are none that were committed meanwhile: a commit makes a child visible and then touches its
            // parent, so a parent that was seen touched would otherwise look like one that has no child.
            let mut new = ids_in(&results)?;
            new.retain(|id| seen.insert(*id));
            if new.is_empty() {
                break;
            }
            for id in new {
                let path = self.layout.result(&id);
                // Gone since we looked.
                let Ok(last_used) = fs::metadata(&path).and_then(|meta| meta.modified()) else { continue };
                let row = match known.remove(&id) {
                    Some(row) => row,
                    None => match read_row(&path) {
                        Some(row) => {
                            added.push((id, row.clone()));
                            row
                        }
                        None if !path.exists() => continue,
                        // Listed, so that it can be removed and does not take room for ever.
                        None => Row { parent: None, created_ms: 0, size_bytes: 0, summary: "(damaged)".to_owned() },
                    },
                };
                let Row { parent, created_ms, size_bytes, summary } = row;
                listed.push(Listed { id, parent, summary, created_ms, last_used, size_bytes });
            }
        }
        let gone: Vec<Id> = known.into_keys().filter(|id| !seen.contains(id)).collect();
        without_index(self.update_index(&added, &gone));
        listed.sort_by_key(|result| (result.last_used, result.created_ms, result.id));
        Ok(listed)
    }

    /// Reads all results' descriptions anew into the index. Returns how many results there are.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn rebuild_index(&self) -> Result<usize, StoreError> {
        self.index()?.as_ref().expect("just opened").forget_results()?;
        Ok(self.list()?.len())
    }

    fn index_rows(&self) -> Result<HashMap<Id, Row>, StoreError> {
        self.index()?.as_ref().expect("just opened").results()
    }

    fn update_index(&self, added: &[(Id, Row)], removed: &[Id]) -> Result<(), StoreError> {
        self.index()?.as_mut().expect("just opened").update(added, removed)
    }

    /// Removes one result.
    ///
    /// # Errors
    ///
    /// [`StoreError::HasChildren`] unless `recursive`, which removes those first;
    /// [`StoreError::InUse`]; [`StoreError::NoSuchResult`].
    pub fn remove(&self, id: &Id, recursive: bool) -> Result<Pruned, StoreError> {
        let all = self.list()?;
        let Some(result) = all.iter().find(|result| result.id == *id) else {
            return Err(StoreError::NoSuchResult(id.to_string()));
        };
        let children = children_of(&all);
        let mut doomed = vec![result];
        let mut next = 0;
        while let Some(result) = doomed.get(next) {
            doomed.extend(children.get(&result.id).into_iter().flatten());
            next += 1;
        }
        if doomed.len() > 1 && !recursive {
            return Err(StoreError::HasChildren { id: *id, children: doomed.len() - 1 });
        }
        let mut pruned = Pruned::default();
        for result in doomed.into_iter().rev() {
            if !self.remove_leaf(result)? {
                return Err(StoreError::InUse(result.id));
            }
            pruned.add(result);
        }
        self.forget_rows(&pruned);
        Ok(pruned)
    }

    /// Takes what was removed from the index, where it could stand for a later result of the same id.
    fn forget_rows(&self, pruned: &Pruned) {
        let ids: Vec<Id> = pruned.removed.iter().map(|result| result.id).collect();
        without_index(self.update_index(&[], &ids));
    }

    /// Removes results until `limits` hold: those used longest ago first, children before parents,
    /// never one in use. With `dry_run` only says which. A result that a running build stands on, and
    /// its parents, stay.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written; what was removed until then is gone.
    pub fn prune(&self, limits: &Limits, now: SystemTime, dry_run: bool) -> Result<Pruned, StoreError> {
        let all = self.list()?;
        let mut pruned = Pruned::default();
        let mut children: HashMap<Id, usize> =
            children_of(&all).into_iter().map(|(id, children)| (id, children.len())).collect();
        let by_id: HashMap<Id, &Listed> = all.iter().map(|result| (result.id, result)).collect();
        let mut size_bytes: u64 = all.iter().map(|result| result.size_bytes).sum();
        let mut items = all.len();
        let free_bytes = self.backend.space()?.free_bytes;
        // A parent counts as used when its child was: `list` is sorted by last use, and every use of
        // a child has used its parent before, so parents come first. Hence leaves are queued as
        // they appear, and a parent when its last child is gone.
        let mut leaves: std::collections::BTreeSet<(SystemTime, Id)> = all
            .iter()
            .filter(|result| !children.contains_key(&result.id))
            .map(|result| (result.last_used, result.id))
            .collect();
        while let Some((last_used, id)) = leaves.pop_first() {
            let is_too_old = limits.max_age.is_some_and(|age| now.duration_since(last_used).unwrap_or_default() > age);
            let are_too_big = limits.max_size_bytes.is_some_and(|max| size_bytes > max);
            let are_too_many = limits.max_items.is_some_and(|max| items > max);
            let is_too_full = limits.keep_free_bytes.is_some_and(|keep| free_bytes + pruned.freed_bytes < keep);
            if !(is_too_old || are_too_big || are_too_many || is_too_full) {
                break;
            }
            let result = by_id[&id];
            let is_removed = match dry_run {
                true => InUse::claim(&self.layout.result(&id))?.is_some(),
                false => self.remove_leaf(result)?,
            };
            if !is_removed {
                pruned.in_use += 1;
                continue;
            }
            pruned.add(result);
            size_bytes -= result.size_bytes;
            items -= 1;
            let Some(parent) = result.parent else { continue };
            if let (Some(count), Some(result)) = (children.get_mut(&parent), by_id.get(&parent)) {
                *count -= 1;
                if *count == 0 {
                    leaves.insert((result.last_used, parent));
                }
            }
        }
        if !dry_run {
            self.forget_rows(&pruned);
        }
        Ok(pruned)
    }

    /// Removes a result that had no children when it was listed. Returns false if it was used since, or is.
    fn remove_leaf(&self, result: &Listed) -> Result<bool, StoreError> {
        let path = self.layout.result(&result.id);
        let Some(_claim) = InUse::claim(&path)? else { return Ok(!path.exists()) };
        // Every use and every new child touches it (see `Store::lookup` and `Store::commit`).
        if fs::metadata(&path).and_then(|meta| meta.modified()).at("read", &path)? != result.last_used {
            return Ok(false);
        }
        self.backend.remove(&Name::result(&result.id))?;
        Ok(true)
    }
}

impl Pruned {
    fn add(&mut self, result: &Listed) {
        self.freed_bytes += result.size_bytes;
        self.removed.push(result.clone());
    }
}

/// Goes on with nothing when the index fails: on a full disk it cannot be written, and pruning is what helps.
fn without_index<T: Default>(answer: Result<T, StoreError>) -> T {
    answer.unwrap_or_else(|error| {
        tracing::warn!(%error, "going on without the index");
        T::default()
    })
}

/// Reads what the index should know of the result at `path`; `None` if its description is damaged.
fn read_row(path: &Path) -> Option<Row> {
    let meta = fs::read(path.join(META)).ok().and_then(|bytes| Meta::parse(&bytes).ok())?;
    let Meta { parent, summary, created_ms, size_bytes, .. } = meta;
    Some(Row { parent, created_ms, size_bytes: size_bytes.unwrap_or(0), summary })
}

fn children_of(all: &[Listed]) -> HashMap<Id, Vec<&Listed>> {
    let mut children: HashMap<Id, Vec<&Listed>> = HashMap::new();
    for result in all {
        if let Some(parent) = result.parent {
            children.entry(parent).or_default().push(result);
        }
    }
    children
}
