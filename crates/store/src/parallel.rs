//! Walking trees on all processors: several trees side by side, as layers lie on each other, or as a copy beside what it is
//! copied from.
//!
//! What holds for [`walk`](crate::walk) holds here: no name is followed, no depth overflows a stack, and few
//! descriptors are open. A few directories wait, open, for a thread that has nothing to do; all others are visited by the
//! thread that met them, which goes down by their names and up by `..`.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use rustix::io;

use crate::walk::open;

/// How many descriptors the waiting directories of one walk may hold.
const WAITING_DESCRIPTORS: usize = 64;
/// A tree of fewer directories is walked by one thread: starting another takes as long.
const FEW_DIRECTORIES: usize = 16;

/// A directory that some of the trees have, all of them at the same place.
#[derive(Clone)]
pub(crate) struct Place(Vec<Slot>);

/// A directory of one tree; where the tree has none at this place, the last one above, and how many levels above.
#[derive(Clone)]
struct Slot {
    directory: Arc<OwnedFd>,
    levels_above: usize,
}

/// A directory to visit.
pub(crate) struct Below<S> {
    /// Its name in the directory that was visited.
    pub(crate) name: CString,
    /// Which of the trees have it.
    pub(crate) is_in: Vec<bool>,
    /// What its visit is told.
    pub(crate) state: S,
}

impl Place {
    /// Returns the directory of the tree with this number, if that has it.
    pub(crate) fn directory(&self, tree: usize) -> Option<&OwnedFd> {
        let slot = &self.0[tree];
        (slot.levels_above == 0).then_some(&*slot.directory)
    }

    fn down(&self, name: &CStr, is_in: &[bool]) -> io::Result<Self> {
        let down = |(slot, is_in): (&Slot, &bool)| match is_in {
            true => Ok(Slot { directory: Arc::new(open(&slot.directory, name)?), levels_above: 0 }),
            false => Ok(Slot { levels_above: slot.levels_above + 1, ..slot.clone() }),
        };
        self.0.iter().zip(is_in).map(down).collect::<io::Result<_>>().map(Self)
    }

    fn up(&self) -> io::Result<Self> {
        let up = |slot: &Slot| match slot.levels_above {
            0 => Ok(Slot { directory: Arc::new(open(&slot.directory, c"..")?), levels_above: 0 }),
            levels => Ok(Slot { levels_above: levels - 1, ..slot.clone() }),
        };
        self.0.iter().map(up).collect::<io::Result<_>>().map(Self)
    }
}

/// Calls `visit` for every directory of `trees`, each after the one that it is in: first for their roots, with `state`.
/// A visit returns the subdirectories to visit, each of which must be in all the trees that it names. Nobody else may
/// move directories meanwhile. After an error no visits begin; the first one is returned.
pub(crate) fn walk<S: Send>(
    trees: Vec<OwnedFd>,
    state: S,
    visit: impl Fn(&Place, S) -> io::Result<Vec<Below<S>>> + Sync,
) -> io::Result<()> {
    let room = WAITING_DESCRIPTORS / trees.len().max(1);
    let slots = trees.into_iter().map(|tree| Slot { directory: Arc::new(tree), levels_above: 0 }).collect();
    let waiting = Waiting { places: vec![(Place(slots), state)], busy: 0, visited: 0, error: None };
    let walk = Walk { visit, room: room.max(1), waiting: Mutex::new(waiting), changed: Condvar::new() };
    thread::scope(|scope| walk.work(Some(scope)));
    let Waiting { error, .. } = walk.waiting.into_inner().unwrap_or_else(PoisonError::into_inner);
    error.map_or(Ok(()), Err)
}

struct Walk<S, V> {
    visit: V,
    /// How many places may wait.
    room: usize,
    waiting: Mutex<Waiting<S>>,
    /// A place waits, or nothing is left to do.
    changed: Condvar,
}

struct Waiting<S> {
    places: Vec<(Place, S)>,
    /// How many threads visit something: more places may come as long as there is one.
    busy: usize,
    visited: usize,
    error: Option<io::Errno>,
}

impl<S: Send, V: Fn(&Place, S) -> io::Result<Vec<Below<S>>> + Sync> Walk<S, V> {
    /// Visits what waits until nothing is left. With a `scope`, others are called to help with a tree that is worth it.
    fn work<'scope>(&'scope self, mut scope: Option<&'scope Scope<'scope, '_>>) {
        while let Some((place, state)) = self.next() {
            let working = Working(self);
            if let Err(error) = self.below(place, state) {
                let mut waiting = self.waiting();
                waiting.error.get_or_insert(error);
                waiting.places.clear();
            }
            drop(working);
            if self.waiting().visited >= FEW_DIRECTORIES
                && let Some(scope) = scope.take()
            {
                let others = thread::available_parallelism().map_or(1, usize::from) - 1;
                (0..others).for_each(|_| drop(scope.spawn(|| self.work(None))));
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<S>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next place, and counts the caller as busy; `None`: all is done, or has failed.
    fn next(&self) -> Option<(Place, S)> {
        let waiting = self.waiting();
        let is_idle = |waiting: &mut Waiting<S>| waiting.places.is_empty() && waiting.busy > 0;
        let mut waiting = self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        let next = waiting.places.pop()?;
        waiting.busy += 1;
        waiting.visited += 1;
        Some(next)
    }

    /// Visits a place, and what is below it and cannot wait.
    fn below(&self, place: Place, state: S) -> io::Result<()> {
        let mut place = place;
        // The subdirectories still to be visited, one list a level.
        let mut levels = vec![self.visit(&place, state)?];
        while let Some(level) = levels.last_mut() {
            if let Some(Below { name, is_in, state }) = level.pop() {
                place = place.down(&name, &is_in)?;
                levels.push(self.visit(&place, state)?);
            } else {
                levels.pop();
                if !levels.is_empty() {
                    place = place.up()?;
                }
            }
        }
        Ok(())
    }

    /// Visits a place and returns the subdirectories that cannot wait.
    fn visit(&self, place: &Place, state: S) -> io::Result<Vec<Below<S>>> {
        let mut below = (self.visit)(place, state)?;
        let room = {
            let waiting = self.waiting();
            if waiting.error.is_some() {
                return Ok(Vec::new());
            }
            self.room.saturating_sub(waiting.places.len())
        };
        let kept = below.len().saturating_sub(room);
        for Below { name, is_in, state } in below.drain(kept..) {
            let place = place.down(&name, &is_in)?;
            self.waiting().places.push((place, state));
            self.changed.notify_one();
        }
        Ok(below)
    }
}

/// A thread that visits something. When it ends, even by a panic, the others need not wait for it.
struct Working<'a, S, V>(&'a Walk<S, V>);

impl<S, V> Drop for Working<'_, S, V> {
    fn drop(&mut self) {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).busy -= 1;
        self.0.changed.notify_all();
    }
}
