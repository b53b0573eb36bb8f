//! Rows that are found at once by a small number, or by a key that nothing else ever has.

use std::marker::PhantomData;

/// A table whose rows are numbered. Numbers of rows that were removed are used again.
///
/// In blocks, so that no operation stops to move a million rows. What was needed once is kept for others.
pub(super) struct Rows<T> {
    /// All but the last are full, and none is ever moved.
    blocks: Vec<Vec<Slot<T>>>,
    /// The first of the rows that were removed.
    free: Option<u32>,
    len: usize,
}

/// How many rows a block has.
const BLOCK: usize = 256;

enum Slot<T> {
    Filled(T),
    /// Removed, and so was the next one before.
    Free(Option<u32>),
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Rows { blocks: Vec::new(), free: None, len: 0 }
    }
}

impl<T> Rows<T> {
    /// Adds a row. Returns its number.
    pub(super) fn add(&mut self, content: T) -> u32 {
        self.len += 1;
        if let Some(row) = self.free
            && let Some(slot) = self.slot_mut(row)
        {
            let before = std::mem::replace(slot, Slot::Filled(content));
            self.free = if let Slot::Free(next) = before { next } else { None };
            return row;
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let index = self.blocks.len() - 1;
        let row = index * BLOCK + self.blocks[index].len();
        self.blocks[index].push(Slot::Filled(content));
        u32::try_from(row).expect("four thousand million rows do not fit into memory")
    }

    /// Removes a row, if it is there. Its number may be used again.
    pub(super) fn remove(&mut self, row: u32) -> Option<T> {
        self.get(row)?;
        let next = self.free.replace(row);
        self.len -= 1;
        match std::mem::replace(self.slot_mut(row)?, Slot::Free(next)) {
            Slot::Filled(content) => Some(content),
            Slot::Free(_) => None,
        }
    }

    /// Returns how many rows there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, row: u32) -> Option<&T> {
        let row = row as usize;
        match self.blocks.get(row / BLOCK)?.get(row % BLOCK)? {
            Slot::Filled(content) => Some(content),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn get_mut(&mut self, row: u32) -> Option<&mut T> {
        match self.slot_mut(row)? {
            Slot::Filled(content) => Some(content),
            Slot::Free(_) => None,
        }
    }

    /// Returns numbers and rows.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = (0..).zip(self.blocks.iter().flatten());
        slots.filter_map(|(row, slot)| if let Slot::Filled(content) = slot { Some((row, content)) } else { None })
    }

    fn slot_mut(&mut self, row: u32) -> Option<&mut Slot<T>> {
        let row = row as usize;
        self.blocks.get_mut(row / BLOCK)?.get_mut(row % BLOCK)
    }
}

/// Where something is, and which of all that were ever there it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Counts up. First, since it orders keys.
    pub(super) number: u64,
    row: u32,
}

impl Key {
    /// Returns the key of something that is in no table.
    pub(super) fn of_none(number: u64) -> Key {
        Key { number, row: u32::MAX }
    }
}

/// A table whose rows have keys of type `K`. Later ones have greater keys.
pub(super) struct Keyed<K, T> {
    rows: Rows<(u64, T)>,
    next: u64,
    key: PhantomData<K>,
}

impl<K, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Keyed { rows: Rows::default(), next: 0, key: PhantomData }
    }
}

impl<K: From<Key> + Into<Key>, T> Keyed<K, T> {
    /// Adds a row. Returns its key.
    pub(super) fn add(&mut self, content: T) -> K {
        let number = self.next;
        self.next += 1;
        K::from(Key { number, row: self.rows.add((number, content)) })
    }

    /// Removes a row, if it is there.
    pub(super) fn remove(&mut self, key: K) -> Option<T> {
        let key = key.into();
        self.rows.get(key.row).filter(|(number, _)| *number == key.number)?;
        self.rows.remove(key.row).map(|(_, content)| content)
    }

    /// Returns keys and rows, in any order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.rows.iter().map(|(row, (number, content))| (K::from(Key { number: *number, row }), content))
    }

    pub(super) fn get(&self, key: K) -> Option<&T> {
        let key = key.into();
        self.rows.get(key.row).filter(|(number, _)| *number == key.number).map(|(_, content)| content)
    }

    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let key = key.into();
        self.rows.get_mut(key.row).filter(|(number, _)| *number == key.number).map(|(_, content)| content)
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Key, Keyed};

    #[test]
    fn a_key_finds_nothing_when_its_row_is_used_again() {
        let mut table: Keyed<Key, usize> = Keyed::default();
        let keys: Vec<Key> = (0..2 * BLOCK + 1).map(|content| table.add(content)).collect();
        let (gone, kept): (Vec<Key>, Vec<Key>) = keys.iter().partition(|key| key.number % 3 == 0);
        assert!(gone.iter().all(|&key| table.remove(key).is_some() && table.remove(key).is_none()));
        let again: Vec<Key> = gone.iter().map(|_| table.add(7)).collect();
        assert!(again.iter().all(|new| gone.iter().any(|old| old.row == new.row && old.number < new.number)));
        assert!(gone.iter().all(|&key| table.get(key).is_none() && table.get_mut(key).is_none()));
        assert!(gone.iter().all(|&key| table.remove(key).is_none()));
        assert!(kept.iter().all(|&key| table.get(key).is_some_and(|&content| content as u64 == key.number)));
        assert_eq!(table.iter().count(), keys.len());
        assert_eq!(table.get(Key::of_none(0)), None);
    }
}
