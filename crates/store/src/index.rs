//! `state/index.sqlite`: what would be slow to find out again. Nothing here is the truth: a lost or
//! damaged index is made anew.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::{Id, StoreError};

/// What identifies one version of a file's content, `stat(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileVersion {
    /// Device and inode.
    pub dev: u64,
    /// Inode on the device.
    pub ino: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Status change time, nanoseconds since 1970. No program can set it.
    pub ctime_ns: i64,
}

/// A blake3 digest of a file's content.
pub type Digest = [u8; 32];

/// What the index keeps of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) parent: Option<Id>,
    pub(crate) created_ms: u64,
    pub(crate) size_bytes: u64,
    pub(crate) summary: String,
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    database: Connection,
}

const SCHEMA: &str = "
    CREATE TABLE results (
        id TEXT PRIMARY KEY, parent TEXT, created_ms INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        summary TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE digests (
        dev INTEGER, ino INTEGER, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (dev, ino)) WITHOUT ROWID;
    CREATE TABLE facts (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 1;";

impl Index {
    /// Opens the index at `path`. One that is damaged or of another version is replaced by an empty one.
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        match Self::connect(&path) {
            Ok(database) => Ok(Self { path, database }),
            Err(first) => {
                // Busy, full or read-only: another file would be no better, and this one is in use.
                let is_at_fault = matches!(
                    first.sqlite_error_code(),
                    Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::Unknown)
                );
                if !is_at_fault {
                    return Err(StoreError::Index { path, source: first });
                }
                tracing::warn!(path = %path.display(), error = %first, "making a new index");
                Self::delete(&path);
                let database = Self::connect(&path);
                database
                    .map_err(|source| StoreError::Index { path: path.clone(), source })
                    .map(|database| Self { path, database })
            }
        }
    }

    /// Deletes the index at `path`.
    pub(crate) fn delete(path: &Path) {
        for suffix in ["", "-wal", "-shm"] {
            let mut file = path.to_owned().into_os_string();
            file.push(suffix);
            let _ = fs::remove_file(file);
        }
    }

    fn connect(path: &PathBuf) -> rusqlite::Result<Connection> {
        let mut database = Connection::open(path)?;
        database.busy_timeout(std::time::Duration::from_secs(60))?;
        // No flush at a commit: what a power cut takes is found out again.
        database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
        let version = |database: &Connection| database.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        if version(&database)? == 0 {
            let transaction = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            if version(&transaction)? == 0 {
                transaction.execute_batch(SCHEMA)?;
            }
            transaction.commit()?;
        }
        database.prepare("SELECT id, parent, created_ms, size_bytes, summary FROM results")?;
        Ok(database)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Index { path: path.clone(), source }
    }

    /// Returns every known result.
    pub(crate) fn results(&self) -> Result<HashMap<Id, Row>, StoreError> {
        let read = || -> rusqlite::Result<HashMap<Id, Row>> {
            let mut select =
                self.database.prepare_cached("SELECT id, parent, created_ms, size_bytes, summary FROM results")?;
            let mut rows = select.query([])?;
            let mut results = HashMap::new();
            while let Some(row) = rows.next()? {
                let parent = row.get_ref(1)?.as_str_or_null()?.and_then(|text| text.parse().ok());
                let Ok(id) = row.get_ref(0)?.as_str()?.parse() else { continue };
                let row = Row {
                    parent,
                    created_ms: row.get::<_, i64>(2)?.cast_unsigned(),
                    size_bytes: row.get::<_, i64>(3)?.cast_unsigned(),
                    summary: row.get(4)?,
                };
                results.insert(id, row);
            }
            Ok(results)
        };
        read().map_err(self.failed())
    }

    /// Forgets all results.
    pub(crate) fn forget_results(&self) -> Result<(), StoreError> {
        self.database.execute("DELETE FROM results", []).map(|_| ()).map_err(self.failed())
    }

    /// Adds and removes results, all at once.
    pub(crate) fn update(&mut self, added: &[(Id, Row)], removed: &[Id]) -> Result<(), StoreError> {
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let failed = self.failed();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.database.transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)")?;
                for (id, row) in added {
                    let parent = row.parent.map(|parent| parent.to_string());
                    let (created, size) = (row.created_ms.cast_signed(), row.size_bytes.cast_signed());
                    insert.execute(params![id.to_string(), parent, created, size, row.summary])?;
                }
                let mut delete = transaction.prepare_cached("DELETE FROM results WHERE id = ?")?;
                for id in removed {
                    delete.execute([id.to_string()])?;
                }
            }
            transaction.commit()
        };
        write().map_err(failed)
    }

    /// Returns the remembered digest of each file version, in order.
    pub(crate) fn digests(&self, files: &[FileVersion]) -> Result<Vec<Option<Digest>>, StoreError> {
        let read = || -> rusqlite::Result<Vec<Option<Digest>>> {
            // One read transaction: without it each query takes and drops a lock.
            let _transaction = self.database.unchecked_transaction()?;
            let mut select = self.database.prepare_cached(
                "SELECT digest FROM digests WHERE dev = ? AND ino = ? AND size_bytes = ? AND mtime_ns = ? AND ctime_ns = ?",
            )?;
            let mut look = |file: &FileVersion| {
                let (dev, ino, size) = (file.dev.cast_signed(), file.ino.cast_signed(), file.size_bytes.cast_signed());
                select.query_row(params![dev, ino, size, file.mtime_ns, file.ctime_ns], |row| row.get(0)).optional()
            };
            files.iter().map(&mut look).collect()
        };
        read().map_err(self.failed())
    }

    /// Returns what was remembered under `question`.
    pub(crate) fn fact(&self, question: &str) -> Result<Option<String>, StoreError> {
        let read = || {
            let mut select = self.database.prepare_cached("SELECT answer FROM facts WHERE question = ?")?;
            select.query_row([question], |row| row.get(0)).optional()
        };
        read().map_err(self.failed())
    }

    /// Remembers `answer` under `question`.
    pub(crate) fn set_fact(&self, question: &str, answer: &str) -> Result<(), StoreError> {
        let write = || self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", [question, answer]);
        write().map(|_| ()).map_err(self.failed())
    }

    /// Remembers digests.
    pub(crate) fn remember(&mut self, files: &[(FileVersion, Digest)]) -> Result<(), StoreError> {
        let failed = self.failed();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.database.transaction()?;
            {
                let mut insert =
                    transaction.prepare_cached("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)")?;
                for (file, digest) in files {
                    let (dev, ino, size) =
                        (file.dev.cast_signed(), file.ino.cast_signed(), file.size_bytes.cast_signed());
                    insert.execute(params![dev, ino, size, file.mtime_ns, file.ctime_ns, digest])?;
                }
            }
            transaction.commit()
        };
        write().map_err(failed)
    }
}
