//! What the index knows of results.
//!
//! A row is written before its result becomes visible and deleted after it has vanished. So a visible result has a row, unless
//! the index could not be written then, and a row may be the ghost of a result: `list.rs` puts both right.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row as SqlRow, params};

use super::Index;
use crate::{Id, StoreError};

pub(super) const SCHEMA: &str = "
    CREATE TABLE results (
        id BLOB PRIMARY KEY, parent BLOB, created_ms INTEGER NOT NULL, last_used_ns INTEGER NOT NULL,
        size_bytes INTEGER, summary TEXT NOT NULL, renews BLOB) WITHOUT ROWID;
    CREATE INDEX children ON results (parent);
    CREATE INDEX renewals ON results (renews, created_ms) WHERE renews IS NOT NULL;
    CREATE INDEX oldest ON results (last_used_ns, id);
    CREATE INDEX not_measured ON results (id) WHERE size_bytes IS NULL;
    CREATE TABLE totals (results INTEGER NOT NULL, size_bytes INTEGER NOT NULL);
    INSERT INTO totals VALUES (0, 0);
    CREATE TRIGGER inserted AFTER INSERT ON results BEGIN
        UPDATE totals SET results = results + 1, size_bytes = size_bytes + ifnull(NEW.size_bytes, 0); END;
    CREATE TRIGGER deleted AFTER DELETE ON results BEGIN
        UPDATE totals SET results = results - 1, size_bytes = size_bytes - ifnull(OLD.size_bytes, 0); END;
    CREATE TRIGGER measured AFTER UPDATE OF size_bytes ON results BEGIN
        UPDATE totals SET size_bytes = size_bytes - ifnull(OLD.size_bytes, 0) + ifnull(NEW.size_bytes, 0); END;";

const COLUMNS: &str = "id, parent, created_ms, last_used_ns, size_bytes, summary, renews";

/// So many rows are written at once: builders that commit wait for no more.
const BATCH: usize = 500;

/// A result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) parent: Option<Id>,
    pub(crate) renews: Option<Id>,
    pub(crate) created_ms: u64,
    /// Not before this: a use is only noted in the directory.
    pub(crate) last_used_ns: i64,
    /// `None`: not known yet.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) summary: String,
}

/// Where in the order of their last use results stand.
pub(crate) type Place = (i64, Id);

impl Index {
    /// Returns every known result.
    pub(crate) fn results(&self) -> Result<HashMap<Id, Row>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached(&format!("SELECT {COLUMNS} FROM results"))?;
            select.query_map([], read)?.collect()
        })
    }

    /// Returns what is known of a result.
    pub(crate) fn result(&self, id: &Id) -> Result<Option<Row>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached(&format!("SELECT {COLUMNS} FROM results WHERE id = ?"))?;
            Ok(select.query_row([id.as_bytes()], read).optional()?.map(|(_, row)| row))
        })
    }

    /// Writes down a result.
    pub(crate) fn insert(&self, id: &Id, row: &Row) -> Result<(), StoreError> {
        self.run(|database| {
            let mut insert = database.prepare_cached(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET parent = excluded.parent,
                    created_ms = excluded.created_ms, last_used_ns = excluded.last_used_ns,
                    size_bytes = excluded.size_bytes, summary = excluded.summary, renews = excluded.renews",
            )?;
            let Row { parent, renews, created_ms, last_used_ns, size_bytes, summary } = row;
            let [parent, renews] = [parent, renews].map(|id| id.as_ref().map(Id::as_bytes));
            let size = size_bytes.map(u64::cast_signed);
            let values = params![id.as_bytes(), parent, created_ms.cast_signed(), last_used_ns, size, summary, renews];
            insert.execute(values).map(|_| ())
        })
    }

    /// Writes down results.
    pub(crate) fn insert_all(&self, rows: &[(Id, Row)]) -> Result<(), StoreError> {
        self.in_batches(rows, |(id, row)| self.insert(id, row))
    }

    /// Forgets a result. One of the same id that was made since is another.
    pub(crate) fn forget(&self, id: &Id, created_ms: u64) -> Result<(), StoreError> {
        let values = params![id.as_bytes(), created_ms.cast_signed()];
        self.run(|database| {
            database.prepare_cached("DELETE FROM results WHERE id = ? AND created_ms = ?")?.execute(values).map(|_| ())
        })
    }

    /// Writes down sizes that were not known.
    pub(crate) fn set_sizes(&self, sizes: &[(Id, u64)]) -> Result<(), StoreError> {
        self.in_batches(sizes, |(id, size)| {
            let values = params![size.cast_signed(), id.as_bytes()];
            self.run(|database| {
                database.prepare_cached("UPDATE results SET size_bytes = ? WHERE id = ?")?.execute(values).map(|_| ())
            })
        })
    }

    /// Returns the results whose size is not known.
    pub(crate) fn not_measured(&self) -> Result<Vec<Id>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached("SELECT id FROM results WHERE size_bytes IS NULL")?;
            select.query_map([], |row| row.get(0).map(Id::new))?.collect()
        })
    }

    /// Writes down when a result was used last.
    pub(crate) fn set_last_used(&self, id: &Id, last_used_ns: i64) -> Result<(), StoreError> {
        let values = params![last_used_ns, id.as_bytes()];
        self.run(|database| {
            database.prepare_cached("UPDATE results SET last_used_ns = ? WHERE id = ?")?.execute(values).map(|_| ())
        })
    }

    /// Returns the first result behind `place`, in the order of their last use, that none stands on.
    pub(crate) fn leaf_behind(&self, place: Place) -> Result<Option<(Id, Row)>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM results AS leaf WHERE (last_used_ns, id) > (?, ?)
                    AND NOT EXISTS (SELECT 1 FROM results WHERE parent = leaf.id) ORDER BY last_used_ns, id LIMIT 1"
            ))?;
            select.query_row(params![place.0, place.1.as_bytes()], read).optional()
        })
    }

    /// Returns the results that renew one, the last one first.
    pub(crate) fn renewals(&self, id: &Id) -> Result<Vec<Id>, StoreError> {
        self.run(|database| {
            let mut select =
                database.prepare_cached("SELECT id FROM results WHERE renews = ? ORDER BY created_ms DESC, id")?;
            select.query_map([id.as_bytes()], |row| row.get(0).map(Id::new))?.collect()
        })
    }

    /// Returns how many results stand directly on one.
    pub(crate) fn children(&self, id: &Id) -> Result<usize, StoreError> {
        self.run(|database| {
            let mut count = database.prepare_cached("SELECT count(*) FROM results WHERE parent = ?")?;
            count.query_row([id.as_bytes()], |row| Ok(row.get::<_, u32>(0)? as usize))
        })
    }

    /// Returns a result and all that stand on it, each after what it stands on.
    pub(crate) fn with_descendants(&self, id: &Id) -> Result<Vec<(Id, Row)>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached(&format!(
                "WITH RECURSIVE doomed (doomed_id, depth) AS (SELECT ?, 0 UNION ALL
                    SELECT id, depth + 1 FROM doomed JOIN results ON parent = doomed_id)
                 SELECT {COLUMNS} FROM doomed JOIN results ON id = doomed_id ORDER BY depth, created_ms"
            ))?;
            select.query_map([id.as_bytes()], read)?.collect()
        })
    }

    /// Returns how many results there are, and the bytes of those that were measured.
    pub(crate) fn totals(&self) -> Result<(usize, u64), StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached("SELECT results, size_bytes FROM totals")?;
            select.query_row([], |row| Ok((row.get::<_, u32>(0)? as usize, row.get::<_, i64>(1)?.cast_unsigned())))
        })
    }

    fn in_batches<T>(&self, items: &[T], write: impl Fn(&T) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for batch in items.chunks(BATCH) {
            let transaction = self.run(rusqlite::Connection::unchecked_transaction)?;
            batch.iter().try_for_each(&write)?;
            transaction.commit().map_err(self.failed())?;
        }
        Ok(())
    }
}

fn read(row: &SqlRow<'_>) -> rusqlite::Result<(Id, Row)> {
    let read = Row {
        parent: row.get::<_, Option<[u8; 32]>>(1)?.map(Id::new),
        created_ms: row.get::<_, i64>(2)?.cast_unsigned(),
        last_used_ns: row.get(3)?,
        size_bytes: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
        summary: row.get(5)?,
        renews: row.get::<_, Option<[u8; 32]>>(6)?.map(Id::new),
    };
    Ok((Id::new(row.get(0)?), read))
}
