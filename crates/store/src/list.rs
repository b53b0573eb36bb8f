//! What is in the store.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::index::{Index, Row};
use crate::layout::{META, PINNED};
use crate::lease::{Lease, last_used_ns};
use crate::meta::{Meta, unix_ms};
use crate::store::ids_in;
use crate::{Id, Name, Store, StoreError};

/// When all results were looked through, in milliseconds since 1970.
const LISTED: &str = "results listed at";
/// How long the index is believed after that: what it missed, because it could not be written, is found then.
const BELIEVED: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// What it alone occupies; 0 if that cannot be told.
    pub size_bytes: u64,
    /// Whether it was [pinned](Store::pin).
    pub is_pinned: bool,
}

impl Listed {
    pub(crate) fn new(id: Id, row: &Row, is_pinned: bool) -> Self {
        let Row { parent, created_ms, last_used_ns, size_bytes, summary, .. } = row.clone();
        let last_used = UNIX_EPOCH + Duration::from_nanos(last_used_ns.max(0).cast_unsigned());
        Self { id, parent, summary, created_ms, last_used, size_bytes: size_bytes.unwrap_or(0), is_pinned }
    }
}

impl Store {
    /// Returns all results, those used longest ago first. Looks at every one of them, and puts the index right.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let known = without_index(self.with_index(Index::results));
        self.look_through(known)
    }

    /// Reads all results' descriptions anew into the index, which is replaced first if it is damaged; what it knows of else
    /// is lost then. Returns how many results there are.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn rebuild_index(&self) -> Result<usize, StoreError> {
        {
            let _lock = self.lock_state()?;
            self.drop_damaged_index()?;
        }
        let known: HashMap<Id, Row> = self.with_index(Index::results)?;
        for id in known.keys() {
            self.drop_ghost(id);
        }
        Ok(self.look_through(HashMap::new())?.len())
    }

    /// Lists the results. What the index should know already is `known`.
    fn look_through(&self, mut known: HashMap<Id, Row>) -> Result<Vec<Listed>, StoreError> {
        let now_ms = unix_ms();
        let (mut added, mut listed) = (Vec::new(), Vec::new());
        for id in ids_in(&self.layout.results())? {
            let path = self.layout.result(&id);
            // Gone since we looked.
            let Ok(directory) = fs::metadata(&path) else { continue };
            let last_used_ns = last_used_ns(&directory);
            let row = match known.remove(&id) {
                Some(row) => row,
                None => match read_row(&path, last_used_ns) {
                    Some(row) => {
                        added.push((id, row.clone()));
                        row
                    }
                    None => continue,
                },
            };
            listed.push(Listed::new(id, &Row { last_used_ns, ..row }, path.join(PINNED).exists()));
        }
        for id in known.keys() {
            self.drop_ghost(id);
        }
        without_index(self.with_index(|index| {
            index.insert_all(&added)?;
            index.set_fact(LISTED, &now_ms.to_string())
        }));
        self.measure(&mut listed)?;
        listed.sort_by_key(|result| (result.last_used, result.created_ms, result.id));
        Ok(listed)
    }

    /// Sees to it that the index knows every result, as far as it was told of them.
    pub(crate) fn look_through_if_due(&self) -> Result<(), StoreError> {
        let listed_ms = self.recall(LISTED)?.and_then(|answer| answer.parse::<u64>().ok());
        let age_ms = listed_ms.and_then(|listed_ms| unix_ms().checked_sub(listed_ms));
        if age_ms.is_none_or(|age_ms| u128::from(age_ms) > BELIEVED.as_millis()) {
            self.list()?;
        }
        Ok(())
    }

    /// Sees to it that the index was told of every result at least once.
    pub(crate) fn look_through_if_never(&self) -> Result<(), StoreError> {
        match without_index(self.recall(LISTED)) {
            Some(_) => Ok(()),
            None => self.list().map(|_| ()),
        }
    }

    /// Asks for the sizes that nobody knew when the results were committed.
    pub(crate) fn measure_all(&self) -> Result<(), StoreError> {
        let ids = self.with_index(Index::not_measured)?;
        self.ask_sizes(&ids).map(|_| ())
    }

    fn measure(&self, listed: &mut [Listed]) -> Result<(), StoreError> {
        let ids = without_index(self.with_index(Index::not_measured));
        let sizes = self.ask_sizes(&ids)?;
        for result in listed.iter_mut().filter(|_| !sizes.is_empty()) {
            if let Some(size_bytes) = sizes.get(&result.id) {
                result.size_bytes = *size_bytes;
            }
        }
        Ok(())
    }

    fn ask_sizes(&self, ids: &[Id]) -> Result<HashMap<Id, u64>, StoreError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let names: Vec<Name> = ids.iter().map(Name::result).collect();
        let sizes = ids.iter().zip(self.backend.sizes(&names)?);
        let sizes: Vec<(Id, u64)> = sizes.filter_map(|(id, size)| Some((*id, size?))).collect();
        without_index(self.with_index(|index| index.set_sizes(&sizes)));
        Ok(sizes.into_iter().collect())
    }

    /// Forgets the row of a result that is not there.
    pub(crate) fn drop_ghost(&self, id: &Id) {
        // Whoever has the lease may be about to make it visible.
        let Ok(Some(_lease)) = Lease::try_take(&self.layout, id) else { return };
        if self.layout.result(id).exists() {
            return;
        }
        without_index(self.with_index(|index| match index.result(id)? {
            Some(row) => index.forget(id, row.created_ms),
            None => Ok(()),
        }));
    }
}

/// Goes on with nothing when the index fails: on a full disk it cannot be written, and pruning is what helps.
pub(crate) fn without_index<T: Default>(answer: Result<T, StoreError>) -> T {
    answer.unwrap_or_else(|error| {
        tracing::warn!(%error, "going on without the index");
        T::default()
    })
}

/// Reads what the index should know of the result at `path`; `None` if it is not there.
pub(crate) fn read_row(path: &Path, last_used_ns: i64) -> Option<Row> {
    match fs::read(path.join(META)).ok().and_then(|bytes| Meta::parse(&bytes).ok()) {
        Some(meta) => Some(Row::new(&meta, last_used_ns)),
        None if !path.exists() => None,
        // Listed, so that it can be removed and does not take room for ever.
        None => Some(Row {
            parent: None,
            renews: None,
            created_ms: 0,
            last_used_ns,
            size_bytes: Some(0),
            summary: DAMAGED.to_owned(),
        }),
    }
}

/// What is said of a result whose description cannot be read.
pub(crate) const DAMAGED: &str = "(damaged)";

impl Row {
    pub(crate) fn new(meta: &Meta, last_used_ns: i64) -> Self {
        let Meta { parent, renews, summary, created_ms, size_bytes, .. } = meta.clone();
        Self { parent, renews, created_ms, last_used_ns, size_bytes, summary }
    }
}
