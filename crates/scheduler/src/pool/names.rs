//! Rows that are found by name too.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bstr::BStr;

use super::rows::Rows;

/// A table in which each row has a name. A million jobs refer to rows by number, and keep no names.
///
/// Ordered maps throughout the pool, not hashed ones: no operation stops to move a million entries, names that strangers choose
/// do no harm, and lists come out sorted.
pub(super) struct Names<T> {
    by_name: BTreeMap<Arc<[u8]>, Row<T>>,
    rows: Rows<(Arc<[u8]>, T)>,
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
        Names { by_name: BTreeMap::new(), rows: Rows::default() }
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
        let row = Row(self.rows.add((name.clone(), make())), PhantomData);
        self.by_name.insert(name, row);
        row
    }

    /// Removes a row; its number may be used again.
    pub(super) fn remove(&mut self, row: Row<T>) {
        if let Some((name, _)) = self.rows.remove(row.0) {
            self.by_name.remove(&name);
        }
    }

    /// Returns how many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the name of a row.
    pub(super) fn name(&self, row: Row<T>) -> &BStr {
        BStr::new(&self.rows.get(row.0).expect(REFERRED_TO).0)
    }

    pub(super) fn get(&self, row: Row<T>) -> &T {
        &self.rows.get(row.0).expect(REFERRED_TO).1
    }

    pub(super) fn get_mut(&mut self, row: Row<T>) -> &mut T {
        &mut self.rows.get_mut(row.0).expect(REFERRED_TO).1
    }

    /// Returns names and rows, sorted by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BStr, Row<T>, &T)> {
        self.by_name.iter().map(|(name, &row)| (BStr::new(name), row, self.get(row)))
    }
}

const REFERRED_TO: &str = "rows are removed when nothing refers to them";
