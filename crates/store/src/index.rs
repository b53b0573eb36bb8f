//! `state/index.sqlite`: what would be slow to find out again. Nothing here is the truth: a lost or
//! damaged index is made anew.

mod results;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use rustix::fs::{FlockOperation, flock};

pub(crate) use results::{Place, Row};

use crate::error::At;
use crate::{StoreError, filesystem};

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

/// The open database.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    database: Connection,
}

/// Another version's index is not read but made anew.
const VERSION: i64 = 3;

const SCHEMA: &str = "
    CREATE TABLE digests (
        dev INTEGER, ino INTEGER, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL, digest BLOB NOT NULL, UNIQUE (dev, ino));
    CREATE TABLE facts (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;";

/// Digests that are kept: 100 MB of them.
const DIGESTS_KEPT: u32 = 1_000_000;

/// Half of what the log of the database grows to before it is written back. Whoever does that waits for the disk, so it is
/// done by [`Index::tidy`], and by a builder only where nobody ever tidies: then at 64 MiB, which is so many pages.
const LOG_BYTES: u64 = 4 << 20;
const LOG_PAGES_AT_MOST: u32 = 16_384;

impl Index {
    /// Opens the index at `path`. One that is damaged or of another version is replaced by an empty one.
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Index { path: path.clone(), source };
        // SQLite refuses all but one of those that make a new database keep a log, without letting them wait:
        // <https://sqlite.org/c3ref/busy_handler.html>. Nor may one delete what another has just opened. A full disk may have no
        // room for the file: there, an index that exists can still be used.
        let opening = File::options().create(true).truncate(false).write(true).open(path.with_extension("lock")).ok();
        if let Some(opening) = &opening {
            flock(opening, FlockOperation::LockExclusive).at("lock", &path)?;
        }
        let database = match connect(&path) {
            Ok(Some(database)) => database,
            Err(error) if !is_unfit(&error) => return Err(failed(error)),
            unfit => {
                let reason =
                    unfit.err().map_or_else(|| "another version made it".to_owned(), |error| error.to_string());
                tracing::warn!(path = %path.display(), %reason, "making a new index");
                Self::delete(&path);
                connect(&path).map_err(failed)?.ok_or_else(|| failed(rusqlite::Error::InvalidQuery))?
            }
        };
        Ok(Self { path, database })
    }

    /// Returns an empty index that is gone with this value: for when there can be no other.
    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        let path = PathBuf::from(":memory:");
        let database = Connection::open_in_memory().and_then(|database| create(&database).map(|()| database));
        database
            .map(|database| Self { path: path.clone(), database })
            .map_err(|source| StoreError::Index { path, source })
    }

    /// Deletes the index at `path`.
    pub(crate) fn delete(path: &Path) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut file = path.to_owned().into_os_string();
            file.push(suffix);
            let _ = fs::remove_file(file);
        }
    }

    /// Returns whether all parts of the database fit together. Reads all of it.
    pub(crate) fn is_whole(&self) -> bool {
        let checked = self.database.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        checked.is_ok_and(|answer| answer == "ok")
    }

    /// Forgets what there is too much of, and writes back the database's log. May wait for the disk; others can read and
    /// write meanwhile.
    pub(crate) fn tidy(&self) -> Result<(), StoreError> {
        self.run(|database| {
            // Rows are numbered as they are added.
            let old = "DELETE FROM digests WHERE rowid <= (SELECT max(rowid) FROM digests) - ?";
            database.execute(old, [DIGESTS_KEPT])?;
            let log = self.path.with_file_name("index.sqlite-wal");
            // The first to write after this waits for the disk once: not for every handful of commits.
            if fs::metadata(log).is_ok_and(|log| log.len() > LOG_BYTES) {
                database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            }
            database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(|_| ())
        })
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Index { path: path.clone(), source }
    }

    fn run<'a, T>(&'a self, act: impl FnOnce(&'a Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        act(&self.database).map_err(self.failed())
    }

    /// Returns the remembered digest of each file version, in order.
    pub(crate) fn digests(&self, files: &[FileVersion]) -> Result<Vec<Option<Digest>>, StoreError> {
        self.run(|database| {
            // One read transaction: without it each query takes and drops a lock.
            let _transaction = database.unchecked_transaction()?;
            let mut select = database.prepare_cached(
                "SELECT digest FROM digests WHERE dev = ? AND ino = ? AND size_bytes = ? AND mtime_ns = ? AND ctime_ns = ?",
            )?;
            let mut look = |file: &FileVersion| {
                let (dev, ino, size) = (file.dev.cast_signed(), file.ino.cast_signed(), file.size_bytes.cast_signed());
                select.query_row(params![dev, ino, size, file.mtime_ns, file.ctime_ns], |row| row.get(0)).optional()
            };
            files.iter().map(&mut look).collect()
        })
    }

    /// Returns what was remembered under `question`.
    pub(crate) fn fact(&self, question: &str) -> Result<Option<String>, StoreError> {
        self.run(|database| {
            let mut select = database.prepare_cached("SELECT answer FROM facts WHERE question = ?")?;
            select.query_row([question], |row| row.get(0)).optional()
        })
    }

    /// Remembers `answer` under `question`.
    pub(crate) fn set_fact(&self, question: &str, answer: &str) -> Result<(), StoreError> {
        let write = "INSERT OR REPLACE INTO facts VALUES (?, ?)";
        self.run(|database| database.execute(write, [question, answer])).map(|_| ())
    }

    /// Remembers digests.
    pub(crate) fn remember(&self, files: &[(FileVersion, Digest)]) -> Result<(), StoreError> {
        self.run(|database| {
            let transaction = database.unchecked_transaction()?;
            let mut insert = database.prepare_cached(
                "INSERT OR REPLACE INTO digests (dev, ino, size_bytes, mtime_ns, ctime_ns, digest) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            for (file, digest) in files {
                let (dev, ino, size) = (file.dev.cast_signed(), file.ino.cast_signed(), file.size_bytes.cast_signed());
                insert.execute(params![dev, ino, size, file.mtime_ns, file.ctime_ns, digest])?;
            }
            transaction.commit()
        })
    }
}

/// Opens a database; `None` if another version made it.
fn connect(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let database = Connection::open(path)?;
    database.busy_timeout(Duration::from_secs(60))?;
    // No flush at a commit: what a power cut takes is found out again. SQLite maps a file that belongs to the log, and a write
    // to such a file kills the process where it needs new space on a full disk, as each one does on btrfs. Without the log, a power
    // cut can damage the database: `recover.rs` looks.
    database.execute_batch(&match is_on_btrfs(path) {
        true => "PRAGMA journal_mode = PERSIST; PRAGMA synchronous = OFF;".to_owned(),
        false => format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {LOG_PAGES_AT_MOST};
             PRAGMA journal_size_limit = {LOG_BYTES};"
        ),
    })?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let version = |database: &Connection| database.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    if version(&database)? == 0 {
        let transaction = rusqlite::Transaction::new_unchecked(&database, rusqlite::TransactionBehavior::Immediate)?;
        if version(&transaction)? == 0 {
            create(&transaction)?;
        }
        transaction.commit()?;
    }
    Ok((version(&database)? == VERSION).then_some(database))
}

fn is_on_btrfs(path: &Path) -> bool {
    path.parent().and_then(|state| rustix::fs::statfs(state).ok()).is_some_and(|stat| filesystem::is_btrfs(&stat))
}

fn create(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch(&format!("{SCHEMA}{} PRAGMA user_version = {VERSION};", results::SCHEMA))
}

/// Returns whether another file would be better. Not if this one is busy, full or read-only: it is in use.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// As [`is_damage`], of one that is just opened: there, any other error means that it holds something else.
fn is_unfit(error: &rusqlite::Error) -> bool {
    is_damage(error) || error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::Index;

    #[test]
    fn one_that_many_open_at_once_is_made_once() {
        const MANY: usize = 8;
        for _ in 0..50 {
            let directory = tempfile::tempdir().unwrap();
            let (path, start) = (directory.path().join("index.sqlite"), Barrier::new(MANY));
            std::thread::scope(|scope| {
                for at in 0..MANY {
                    let (path, start) = (path.clone(), &start);
                    scope.spawn(move || {
                        start.wait();
                        Index::open(path).unwrap().set_fact(&at.to_string(), "known").unwrap();
                    });
                }
            });
            let index = Index::open(path).unwrap();
            assert!((0..MANY).all(|at| index.fact(&at.to_string()).unwrap().is_some()));
        }
    }
}
