//! What goes when room is needed, and what must stay.
//!
//! The index says which result was used longest ago. Whether it may go is decided by its directory alone, while nobody else can
//! reach it: so an index that is wrong costs time or room, and never a result that others stand on.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::At;
use crate::index::{Index, Place, Row};
use crate::layout::PINNED;
use crate::lease::InUse;
use crate::list::{read_row, without_index};
use crate::{Id, Listed, Name, Store, StoreError};

/// How much may stay. What is not given does not limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all results together.
    pub max_size_bytes: Option<u64>,
    /// Bytes that the filesystem should have free.
    pub keep_free_bytes: Option<u64>,
    /// Results and caches unused for longer go.
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
    /// How many results were too old or too many but are pinned.
    pub pinned: usize,
    /// The caches removed, named as by [`Store::caches`]. What they occupied is not known.
    pub caches: Vec<String>,
    /// Whether the caller ended it before the limits held.
    pub is_interrupted: bool,
}

impl Pruned {
    fn add(&mut self, id: Id, row: &Row) {
        let listed = Listed::new(id, row, false);
        self.freed_bytes += listed.size_bytes;
        self.removed.push(listed);
    }
}

/// Why a result that nobody uses must stay.
enum Hindrance {
    Pinned,
    HasChildren,
}

impl Store {
    /// Removes one result.
    ///
    /// # Errors
    ///
    /// [`StoreError::HasChildren`] unless `recursive`, which removes those first; [`StoreError::Pinned`] if it, or one of
    /// them, is; [`StoreError::InUse`]; [`StoreError::NoSuchResult`].
    pub fn remove(&self, id: &Id, recursive: bool) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        self.despite_index(|| match recursive {
            true => self.remove_with_descendants(id, &mut pruned),
            false => self.remove_leaf(id, &mut pruned),
        })?;
        Ok(pruned)
    }

    fn remove_leaf(&self, id: &Id, pruned: &mut Pruned) -> Result<(), StoreError> {
        let path = self.layout.result(id);
        let Some(claim) = InUse::claim(&path)? else {
            return Err(if path.exists() { StoreError::InUse(*id) } else { StoreError::NoSuchResult(id.to_string()) });
        };
        match self.hindrance(id, &claim, 0)? {
            Some(Hindrance::Pinned) => return Err(StoreError::Pinned(*id)),
            Some(Hindrance::HasChildren) => {
                let children = self.with_index(|index| index.with_descendants(id))?.len().saturating_sub(1);
                return Err(StoreError::HasChildren { id: *id, children });
            }
            None => {}
        }
        if let Some(row) = self.row(id)? {
            self.take_away(id, &row, claim)?;
            pruned.add(*id, &row);
        }
        Ok(())
    }

    fn remove_with_descendants(&self, id: &Id, pruned: &mut Pruned) -> Result<(), StoreError> {
        if !self.layout.result(id).exists() {
            return Err(StoreError::NoSuchResult(id.to_string()));
        }
        self.look_through_if_due()?;
        'again: loop {
            let mut doomed = self.with_index(|index| index.with_descendants(id))?;
            if doomed.is_empty() {
                doomed.extend(self.row(id)?.map(|row| (*id, row)));
            }
            if let Some((pinned, _)) = doomed.iter().find(|(id, _)| self.layout.result(id).join(PINNED).exists()) {
                return Err(StoreError::Pinned(*pinned));
            }
            for (id, row) in doomed.iter().rev() {
                let path = self.layout.result(id);
                let Some(claim) = InUse::claim(&path)? else {
                    if path.exists() {
                        return Err(StoreError::InUse(*id));
                    }
                    self.drop_ghost(id);
                    continue;
                };
                if self.hindrance(id, &claim, 0)?.is_some() {
                    // The index did not know of some child, and does now.
                    continue 'again;
                }
                self.take_away(id, row, claim)?;
                pruned.add(*id, row);
            }
            return Ok(());
        }
    }

    fn row(&self, id: &Id) -> Result<Option<Row>, StoreError> {
        let path = self.layout.result(id);
        Ok(self.with_index(|index| index.result(id))?.or_else(|| read_row(&path, 0)))
    }

    /// Returns why a claimed result must stay. Of its children, so many count as gone.
    fn hindrance(&self, id: &Id, claim: &InUse, gone: usize) -> Result<Option<Hindrance>, StoreError> {
        let path = self.layout.result(id);
        if claim.has(PINNED).at("read", &path)? {
            return Ok(Some(Hindrance::Pinned));
        }
        // Nobody begins a draft on it while it is claimed.
        if claim.links().at("read", &path)?.is_some_and(|links| links <= gone) {
            return Ok(None);
        }
        // A link may also be left of a draft, or of a child in the trash, whose process died.
        let has_children = || self.with_index(|index| Ok(index.children(id)? > gone));
        let has_children = has_children()? || {
            self.list()?;
            has_children()?
        };
        Ok(has_children.then_some(Hindrance::HasChildren))
    }

    /// Removes a claimed result that nothing hinders. The slow part, deleting, is done while nobody waits.
    fn take_away(&self, id: &Id, row: &Row, claim: InUse) -> Result<(), StoreError> {
        let gone = self.vanish(&Name::result(id))?;
        drop(claim);
        // If this fails, a ghost is left.
        without_index(self.with_index(|index| index.forget(id, row.created_ms)));
        self.backend.remove(&gone)
    }

    /// Removes results, and with [`Limits::max_age`] caches, until `limits` hold: those used longest ago first, children
    /// before parents, never one that is pinned or in use. With `dry_run` only says which. A result that a running build
    /// stands on, and its parents, stay.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written; what was removed until then is gone.
    pub fn prune(&self, limits: &Limits, now: SystemTime, dry_run: bool) -> Result<Pruned, StoreError> {
        self.prune_while(limits, now, dry_run, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Store::prune`], and tells `removed` of each result when it is gone. If that breaks, this ends. Builds go on
    /// meanwhile: nothing is held that they wait for.
    ///
    /// # Errors
    ///
    /// As [`Store::prune`].
    pub fn prune_while(
        &self,
        limits: &Limits,
        now: SystemTime,
        dry_run: bool,
        removed: &mut dyn FnMut(&Listed) -> ControlFlow<()>,
    ) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        let done = self.despite_index(|| {
            if dry_run {
                pruned = Pruned::default();
            }
            (pruned.in_use, pruned.pinned) = (0, 0);
            Pruning::new(self, limits, now, dry_run, &mut pruned)?.run(removed)
        })?;
        pruned.is_interrupted = done.is_break();
        let since = limits.max_age.and_then(|age| now.checked_sub(age));
        if let (Some(since), false) = (since, pruned.is_interrupted) {
            pruned.caches = self.prune_caches(since, dry_run)?;
        }
        Ok(pruned)
    }

    /// Does something by the index. If that fails, does it once more by one in memory, made of what is there: on a full
    /// disk nothing can be written, and pruning is what helps.
    fn despite_index<T>(&self, mut act: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match act() {
            Err(error @ StoreError::Index { .. }) => {
                tracing::warn!(%error, "going on without the index");
                self.set_index(Some(Index::in_memory()?));
                let done = act();
                self.set_index(None);
                done
            }
            done => done,
        }
    }
}

/// One run of [`Store::prune`].
struct Pruning<'a> {
    store: &'a Store,
    limits: &'a Limits,
    now_ns: i64,
    dry_run: bool,
    pruned: &'a mut Pruned,
    /// What the filesystem had free at the beginning.
    free_bytes: u64,
    /// How far the index has been read, and what was found there.
    place: Place,
    ahead: Option<(Id, Row)>,
    /// What was passed by and is to be looked at once more: parents whose last child is gone, for instance.
    again: BTreeSet<Place>,
    /// Of a dry run: how many children of a result would be gone.
    gone: HashMap<Id, usize>,
}

impl<'a> Pruning<'a> {
    fn new(
        store: &'a Store,
        limits: &'a Limits,
        now: SystemTime,
        dry_run: bool,
        pruned: &'a mut Pruned,
    ) -> Result<Self, StoreError> {
        let now_ns = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        store.look_through_if_due()?;
        store.measure_all()?;
        Ok(Self {
            store,
            limits,
            now_ns: i64::try_from(now_ns).unwrap_or(i64::MAX),
            dry_run,
            pruned,
            free_bytes: store.backend.space()?.free_bytes,
            place: (i64::MIN, Id::new([0; 32])),
            ahead: None,
            again: BTreeSet::new(),
            gone: HashMap::new(),
        })
    }

    fn run(&mut self, removed: &mut dyn FnMut(&Listed) -> ControlFlow<()>) -> Result<ControlFlow<()>, StoreError> {
        while let Some((id, row)) = self.next()? {
            if !self.is_called_for(&row)? {
                break;
            }
            if self.visit(&id, &row)?
                && let Some(last) = self.pruned.removed.last()
                && removed(last).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns the result that none stands on and that was, as far as is known, used longest ago.
    fn next(&mut self) -> Result<Option<(Id, Row)>, StoreError> {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.store.with_index(|index| index.leaf_behind(self.place))?;
                if let Some((id, row)) = &self.ahead {
                    self.place = (row.last_used_ns, *id);
                }
            }
            match self.again.first().copied() {
                Some((last_used_ns, id)) if self.ahead.is_none() || (last_used_ns, id) <= self.place => {
                    self.again.pop_first();
                    if let Some(row) = self.store.with_index(|index| index.result(&id))? {
                        return Ok(Some((id, row)));
                    }
                }
                _ => return Ok(self.ahead.take()),
            }
        }
    }

    fn is_called_for(&self, row: &Row) -> Result<bool, StoreError> {
        let (mut items, mut size_bytes) = self.store.with_index(Index::totals)?;
        if self.dry_run {
            items = items.saturating_sub(self.pruned.removed.len());
            size_bytes = size_bytes.saturating_sub(self.pruned.freed_bytes);
        }
        let Limits { max_size_bytes, keep_free_bytes, max_age, max_items } = *self.limits;
        let age_ns = self.now_ns.saturating_sub(row.last_used_ns).max(0).cast_unsigned();
        Ok(max_age.is_some_and(|max| u128::from(age_ns) > max.as_nanos())
            || max_size_bytes.is_some_and(|max| size_bytes > max)
            || max_items.is_some_and(|max| items > max)
            || keep_free_bytes.is_some_and(|keep| self.free_bytes.saturating_add(self.pruned.freed_bytes) < keep))
    }

    /// Removes the result, if it may go. Returns whether it is gone.
    fn visit(&mut self, id: &Id, row: &Row) -> Result<bool, StoreError> {
        let path = self.store.layout.result(id);
        let Some(claim) = InUse::claim(&path)? else {
            if path.exists() {
                self.pruned.in_use += 1;
            } else {
                self.store.drop_ghost(id);
                self.is_without(row)?;
            }
            return Ok(false);
        };
        let gone = self.gone.get(id).copied();
        let last_used_ns = claim.last_used_ns().at("read", &path)?;
        if last_used_ns > row.last_used_ns {
            drop(claim);
            self.store.with_index(|index| index.set_last_used(id, last_used_ns))?;
            self.look_again(gone.is_none(), (last_used_ns, *id));
            return Ok(false);
        }
        match self.store.hindrance(id, &claim, gone.unwrap_or(0))? {
            Some(Hindrance::Pinned) => {
                self.pruned.pinned += 1;
                return Ok(false);
            }
            // It is looked at when they are gone.
            Some(Hindrance::HasChildren) => return Ok(false),
            None => {}
        }
        if !self.dry_run {
            self.store.take_away(id, row, claim)?;
        } else if let Some(parent) = row.parent {
            *self.gone.entry(parent).or_default() += 1;
        }
        self.pruned.add(*id, row);
        self.is_without(row)?;
        Ok(true)
    }

    /// Queues the parent of a result that is gone, if that was its last child.
    fn is_without(&mut self, row: &Row) -> Result<(), StoreError> {
        let Some(parent) = row.parent else { return Ok(()) };
        let gone = self.gone.get(&parent).copied();
        let (children, row) = self.store.with_index(|index| Ok((index.children(&parent)?, index.result(&parent)?)))?;
        if let (Some(row), true) = (row, children <= gone.unwrap_or(0)) {
            self.look_again(gone.is_none(), (row.last_used_ns, parent));
        }
        Ok(())
    }

    /// Sees to it that the result at `place` has its turn. In the index it is found only if that knows it as one that none
    /// stands on, and behind where it was read.
    fn look_again(&mut self, is_leaf: bool, place: Place) {
        if !is_leaf || place <= self.place {
            self.again.insert(place);
        }
    }
}
