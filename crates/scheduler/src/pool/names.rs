//! Rows that are found by name, or at once by a small number.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bstr::BStr;

/// A table in which each row has a name. A million jobs refer to rows by number, and keep no names.
///
/// Ordered maps throughout the pool, not hashed ones: no operation stops to move a million entries, names that
/// strangers choose do no harm, and lists come out sorted.
pub(super) struct Names<T> {
    by_name: BTreeMap<Arc<[u8]>, Row<T>>,
    rows: Vec<Option<(Arc<[u8]>, T)>>,
    free: Vec<Row<T>>,
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

impl<T> Default for Names<T> {
    fn default() -> Self {
        Names { by_name: BTreeMap::new(), rows: Vec::new(), free: Vec::new() }
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
        let content = Some((name.clone(), make()));
        let row = match self.free.pop() {
            Some(row) => {
                self.rows[row.0 as usize] = content;
                row
            }
            None => {
                let number =
                    u32::try_from(self.rows.len()).expect("four thousand million names do not fit into memory");
                self.rows.push(content);
                Row(number, PhantomData)
            }
        };
        self.by_name.insert(name, row);
        row
    }

    /// Removes a row; its number may be used again.
    pub(super) fn remove(&mut self, row: Row<T>) {
        if let Some((name, _)) = self.rows[row.0 as usize].take() {
            self.by_name.remove(&name);
            self.free.push(row);
        }
    }

    /// Returns how many rows there are.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns the name of a row.
    pub(super) fn name(&self, row: Row<T>) -> &BStr {
        BStr::new(&self.filled(row).0)
    }

    pub(super) fn get(&self, row: Row<T>) -> &T {
        &self.filled(row).1
    }

    pub(super) fn get_mut(&mut self, row: Row<T>) -> &mut T {
        let content = self.rows[row.0 as usize].as_mut();
        &mut content.expect("rows are removed when nothing refers to them").1
    }

    /// Returns names and rows, sorted by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BStr, Row<T>, &T)> {
        self.by_name.iter().map(|(name, &row)| (BStr::new(name), row, self.get(row)))
    }

    fn filled(&self, row: Row<T>) -> &(Arc<[u8]>, T) {
        self.rows[row.0 as usize].as_ref().expect("rows are removed when nothing refers to them")
    }
}
