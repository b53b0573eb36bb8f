//! Rows that are found by name, or at once by a small number.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bstr::BStr;

/// A table in which each row has a name. A million jobs refer to rows by number, and keep no names.
///
/// Ordered maps throughout the pool, not hashed ones, and rows in blocks: no operation stops to move a million entries, names
/// that strangers choose do no harm, and lists come out sorted.
pub(super) struct Names<T> {
    by_name: BTreeMap<Arc<[u8]>, Row<T>>,
    /// All but the last are full, and none is ever moved.
    blocks: Vec<Vec<Slot<T>>>,
    /// The first of the rows that were removed.
    free: Option<Row<T>>,
}

/// How many rows a block has.
const BLOCK: usize = 256;

enum Slot<T> {
    Filled(Arc<[u8]>, T),
    /// Removed, and so was the next one before.
    Free(Option<Row<T>>),
}

/// The number of a row, good until the row is removed.
pub(super) struct Row<T>(u32, PhantomData<fn() -> T>);

impl<T> Clone for Row<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Row<T> {}

impl<T> PartialEq for Row<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Row<T> {}

impl<T> PartialOrd for Row<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Row<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Names { by_name: BTreeMap::new(), blocks: Vec::new(), free: None }
    }
}

impl<T> Names<T> {
    /// Returns the row of this name, if there is one.
    pub(super) fn find(&self, name: &BStr) -> Option<Row<T>> {
        self.by_name.get::<[u8]>(name.as_ref()).copied()
    }

    /// Returns the row of this name, made if need be.
    pub(super) fn find_or_add(&mut self, name: &BStr, make: impl FnOnce() -> T) -> Row<T> {
        if let Some(row) = self.find(name) {
            return row;
        }
        let name: Arc<[u8]> = Arc::from(name.as_ref() as &[u8]);
        let content = Slot::Filled(name.clone(), make());
        let row = match self.free {
            Some(row) => {
                let before = std::mem::replace(self.slot_mut(row), content);
                self.free = if let Slot::Free(next) = before { next } else { None };
                row
            }
            None => self.push(content),
        };
        self.by_name.insert(name, row);
        row
    }

    fn push(&mut self, content: Slot<T>) -> Row<T> {
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let index = self.blocks.len() - 1;
        let number = index * BLOCK + self.blocks[index].len();
        self.blocks[index].push(content);
        Row(u32::try_from(number).expect("four thousand million names do not fit into memory"), PhantomData)
    }

    /// Removes a row; its number may be used again.
    pub(super) fn remove(&mut self, row: Row<T>) {
        let next = self.free;
        let slot = self.slot_mut(row);
        if matches!(slot, Slot::Filled(..))
            && let Slot::Filled(name, _) = std::mem::replace(slot, Slot::Free(next))
        {
            self.free = Some(row);
            self.by_name.remove(&name);
        }
    }

    /// Returns how many rows there are.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns the name of a row.
    pub(super) fn name(&self, row: Row<T>) -> &BStr {
        BStr::new(self.filled(row).0)
    }

    pub(super) fn get(&self, row: Row<T>) -> &T {
        self.filled(row).1
    }

    pub(super) fn get_mut(&mut self, row: Row<T>) -> &mut T {
        match self.slot_mut(row) {
            Slot::Filled(_, content) => content,
            Slot::Free(_) => unreachable!("rows are removed when nothing refers to them"),
        }
    }

    /// Returns names and rows, sorted by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BStr, Row<T>, &T)> {
        self.by_name.iter().map(|(name, &row)| (BStr::new(name), row, self.get(row)))
    }

    fn filled(&self, row: Row<T>) -> (&Arc<[u8]>, &T) {
        match &self.blocks[row.0 as usize / BLOCK][row.0 as usize % BLOCK] {
            Slot::Filled(name, content) => (name, content),
            Slot::Free(_) => unreachable!("rows are removed when nothing refers to them"),
        }
    }

    fn slot_mut(&mut self, row: Row<T>) -> &mut Slot<T> {
        &mut self.blocks[row.0 as usize / BLOCK][row.0 as usize % BLOCK]
    }
}
