//! What a scheduler keeps on disk: who may submit, what pools know.
//!
//! `STATE/scheduler.db` is an SQLite database with OCluster's tables, as its scheduler leaves and expects them. So a
//! state directory may be handed from one program to the other and back.
//!
//! ```text
//! sturdy_refs     hash, type, args, created        the clients: SHA-256 of the service id, `ocluster-client`, name
//! cached          pool, cache_hint, worker, created     which worker ran which hint
//! workers         pool, id, paused                 the known workers, and which of them administrators paused
//! pool_user_rate  pool, user, rate                 the clients whose rate was set
//! kiln_jobs       (see [`jobs`])                   jobs that outlive the scheduler; OCluster's does not know this table
//! ```
//!
//! `STATE/scheduler.lock` beside it is locked (`flock`) by the scheduler that runs: two would give out the same workers' places.
//! OCluster's scheduler does not know that lock.
//!
//! Names are stored as text, whatever their bytes. Service ids are secrets and not stored: who reads this file can list
//! clients, but not be one.

mod change;
mod flush;
pub mod jobs;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bstr::{BStr, BString};
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::change::Applied;
pub use self::change::Change;
pub use self::flush::Flusher;
pub use self::jobs::{KeptJob, Outcome, Secrets};
use crate::pool::Saved;

/// How many rows of hints are read at start-up, the latest.
const HINTS: u32 = 500_000;

/// How long to wait for another program that uses the database: an administrator who looks into it.
const BUSY: Duration = Duration::from_secs(10);

const CLIENT: &str = "ocluster-client";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS sturdy_refs (
        hash BLOB NOT NULL, type TEXT NOT NULL, args BLOB NOT NULL, created DATETIME NOT NULL, PRIMARY KEY (hash));
    CREATE INDEX IF NOT EXISTS sturdy_refs_rev ON sturdy_refs (type, args);
    CREATE TABLE IF NOT EXISTS cached (
        pool TEXT NOT NULL, cache_hint TEXT NOT NULL, worker TEXT NOT NULL, created DATETIME NOT NULL,
        PRIMARY KEY (pool, cache_hint, worker));
    CREATE TABLE IF NOT EXISTS pool_user_rate (
        pool TEXT NOT NULL, user TEXT NOT NULL, rate REAL NOT NULL, PRIMARY KEY (pool, user));
    CREATE TABLE IF NOT EXISTS workers (
        pool TEXT NOT NULL, id TEXT NOT NULL, paused BOOLEAN DEFAULT 0, PRIMARY KEY (pool, id));";

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another scheduler runs on it.
    #[error("the state {} is in use by another scheduler{}", .directory.display(), process(.pid))]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// That scheduler's process, if it can be told.
        pid: Option<u32>,
    },
    /// It cannot be found out whether another scheduler runs on it.
    #[error("cannot lock {}", .path.display())]
    Lock {
        /// The file of the lock.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database cannot be opened, or is none.
    #[error("cannot open the scheduler's state {}", .path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Something cannot be read.
    #[error("cannot read {what} from the scheduler's state {}", .path.display())]
    Read {
        /// What.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// What was written cannot be made to survive the machine.
    #[error("cannot flush the scheduler's state {} to its disk", .path.display())]
    Flush {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something cannot be written. Nothing has changed.
    #[error("cannot write the scheduler's state {}", .path.display())]
    Write {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// There is a client of this name. OCluster's text.
    #[error("Client {0:?} already registered!")]
    ClientExists(BString),
    /// The scheduler has stopped.
    #[error("the scheduler is stopping")]
    Closed,
}

/// The open database. Its methods wait for the disk.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    database: Connection,
    /// Unlocked when it is closed, however the process ends.
    _lock: File,
}

impl State {
    /// Opens `scheduler.db` in the directory, which must exist. Makes an empty one if there is none.
    ///
    /// # Errors
    ///
    /// It cannot be opened or written, or is no database, or not a scheduler's, or another scheduler runs on it.
    pub fn open(directory: &Path) -> Result<State, StateError> {
        let lock = lock(directory)?;
        let path = directory.join("scheduler.db");
        let open = || {
            let database = Connection::open(&path)?;
            database.busy_timeout(BUSY)?;
            database.pragma_update(None, "journal_mode", "WAL")?;
            database.pragma_update(None, "wal_autocheckpoint", flush::LOG_PAGES)?;
            database.execute_batch(SCHEMA)?;
            database.execute_batch(jobs::SCHEMA)?;
            Ok(database)
        };
        match open() {
            Ok(database) => Ok(State { path, database, _lock: lock }),
            Err(source) => Err(StateError::Open { path, source }),
        }
    }

    /// Makes these changes, all or none, and returns for each whether there was something to change.
    ///
    /// They survive the end of this process. With `through`, they and all before them survive the machine's too: that takes a few
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// One is not possible, or the database cannot be written.
    pub fn apply(&mut self, changes: &[Change], through: bool) -> Result<Vec<bool>, StateError> {
        let failed = |source| StateError::Write { path: self.path.clone(), source };
        // What SQLite waits for when it commits, in this journal mode: <https://sqlite.org/pragma.html#pragma_synchronous>.
        let how = if through { "FULL" } else { "NORMAL" };
        self.database.pragma_update(None, "synchronous", how).map_err(failed)?;
        // Not begun as a reader: one that turns writer is refused, without waiting, if another wrote meanwhile.
        let begun = self.database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let transaction = begun.map_err(failed)?;
        let mut applied = Vec::with_capacity(changes.len());
        for change in changes {
            match change.apply(&transaction).map_err(failed)? {
                Applied::Changed => applied.push(true),
                Applied::Nothing => applied.push(false),
                Applied::ClientExists => {
                    let Change::AddClient { name, .. } = change else { continue };
                    return Err(StateError::ClientExists(name.clone()));
                }
            }
        }
        transaction.commit().map_err(failed)?;
        Ok(applied)
    }

    /// Returns the client whose service id this is.
    ///
    /// Only digests are compared, so how long it takes says nothing of the ids that there are.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn find_client(&self, service_id: &[u8]) -> Result<Option<BString>, StateError> {
        let query = "SELECT args FROM sturdy_refs WHERE hash = ? AND type = ?";
        let found = self.database.query_row(query, params![hash(service_id), CLIENT], |row| name(row, 0)).optional();
        found.map_err(|source| self.cannot_read("a client", source))
    }

    /// Returns the names of all clients, sorted.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn clients(&self) -> Result<Vec<BString>, StateError> {
        let query = "SELECT DISTINCT args FROM sturdy_refs WHERE type = ? ORDER BY args";
        let found = self.rows(query, &[&CLIENT], |row| name(row, 0));
        found.map_err(|source| self.cannot_read("the clients", source))
    }

    /// Returns what is known of a pool.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn load(&self, pool: &BStr) -> Result<Saved, StateError> {
        let load = || {
            let pool = Text(pool);
            let hints =
                "SELECT cache_hint, worker FROM cached WHERE pool = ? ORDER BY created DESC, rowid DESC LIMIT ?";
            let mut hints = self.rows(hints, &[&pool, &HINTS], |row| Ok((name(row, 0)?, name(row, 1)?)))?;
            hints.reverse();
            Ok(Saved {
                hints,
                workers: self.rows("SELECT id, paused FROM workers WHERE pool = ?", &[&pool], |row| {
                    // OCluster lets it be absent.
                    Ok((name(row, 0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0) != 0))
                })?,
                rates: self.rows("SELECT user, rate FROM pool_user_rate WHERE pool = ?", &[&pool], |row| {
                    Ok((name(row, 0)?, row.get(1)?))
                })?,
            })
        };
        load().map_err(|source| self.cannot_read("a pool", source))
    }

    fn rows<T>(
        &self,
        query: &str,
        parameters: &[&dyn ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.database.prepare_cached(query)?.query_map(parameters, read)?.collect()
    }

    fn cannot_read(&self, what: &'static str, source: rusqlite::Error) -> StateError {
        StateError::Read { what, path: self.path.clone(), source }
    }
}

/// Returns the lock of a state directory, with our process in it for whoever comes second.
fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("scheduler.lock");
    let failed = |source| StateError::Lock { path: path.clone(), source };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
    let mut file = options.map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let pid = io::read_to_string(file.take(20)).ok().and_then(|text| text.trim().parse().ok());
            return Err(StateError::InUse { directory: directory.to_owned(), pid });
        }
        Err(error) => return Err(failed(error.into())),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(file)
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid}"))
}

/// A name as SQLite's text, which need not be UTF-8: OCluster stores any bytes as text, and text equals no blob.
struct Text<'a>(&'a BStr);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<BString> {
    Ok(row.get_ref(column)?.as_bytes()?.into())
}

fn hash(service_id: &[u8]) -> [u8; 32] {
    Sha256::digest(service_id).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use bstr::ByteSlice as _;

    use super::*;
    use crate::pool::Effect;

    impl State {
        fn add_client(&mut self, name: &BStr, id: &[u8]) -> Result<(), StateError> {
            self.apply(&[Change::AddClient { name: name.into(), id: id.into() }], true).map(drop)
        }

        fn remove_client(&mut self, name: &BStr) -> Result<bool, StateError> {
            Ok(self.apply(&[Change::RemoveClient { name: name.into() }], true)? == [true])
        }

        fn save(&mut self, pool: &BStr, effects: &[Effect]) -> Result<(), StateError> {
            let change = |effect: &Effect| Change::Pool { pool: pool.into(), effect: effect.clone() };
            self.apply(&effects.iter().map(change).collect::<Vec<_>>(), false).map(drop)
        }
    }

    fn b(text: &str) -> &BStr {
        BStr::new(text)
    }

    /// Returns the service id that a capability file of OCluster's ends in.
    fn service_id(file: &str) -> Vec<u8> {
        let (_, id) = file.trim().rsplit_once('/').expect("a URI");
        URL_SAFE_NO_PAD.decode(id).expect("base64")
    }

    #[test]
    fn clients_are_found_by_their_service_id_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::open(directory.path()).unwrap();
        state.add_client(b("bob"), b"\xff\x00id").unwrap();
        state.add_client(b("alice"), b"another").unwrap();
        let again = state.add_client(b("bob"), b"other").unwrap_err();
        assert_eq!(again.to_string(), "Client \"bob\" already registered!");
        assert_eq!(state.find_client(b"other").unwrap(), None);
        drop(state);
        let mut state = State::open(directory.path()).unwrap();
        assert_eq!(state.find_client(b"\xff\x00id").unwrap(), Some("bob".into()));
        assert_eq!(state.find_client(b"").unwrap(), None);
        assert_eq!(state.clients().unwrap(), ["alice", "bob"]);
        assert!(state.remove_client(b("bob")).unwrap());
        assert!(!state.remove_client(b("bob")).unwrap());
        assert_eq!(state.find_client(b"\xff\x00id").unwrap(), None);
        // The id itself is in no file: neither the database nor its log.
        for file in fs::read_dir(directory.path()).unwrap() {
            assert!(fs::read(file.unwrap().path()).unwrap().find("another").is_none());
        }
    }

    #[test]
    fn what_a_pool_wants_kept_is_kept_for_that_pool() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::open(directory.path()).unwrap();
        let odd = BString::from(b"\xff'\0".as_slice());
        let hint = |hint: &BString, worker: &str| Effect::SaveHint { hint: hint.clone(), worker: worker.into() };
        let worker = |worker: &str, paused| Effect::SaveWorker { worker: worker.into(), paused };
        let rate = |client: &str, rate| Effect::SaveRate { client: client.into(), rate };
        let effects = [
            hint(&odd, "w1"),
            hint(&"a".into(), "w1"),
            hint(&odd, "w2"),
            // The same again: now it is the latest.
            hint(&odd, "w1"),
            worker("w1", false),
            worker("w2", false),
            worker("w2", true),
            worker("w3", true),
            Effect::ForgetWorker { worker: "w3".into() },
            rate("bob", Some(2.5)),
            rate("alice", Some(1.0)),
            rate("alice", None),
        ];
        state.save(b("p"), &effects).unwrap();
        state.save(b("q"), &[rate("bob", Some(7.0))]).unwrap();
        drop(state);
        let mut state = State::open(directory.path()).unwrap();
        let saved = Saved {
            workers: vec![("w1".into(), false), ("w2".into(), true)],
            hints: vec![("a".into(), "w1".into()), (odd.clone(), "w2".into()), (odd, "w1".into())],
            rates: vec![("bob".into(), 2.5)],
        };
        assert_eq!(state.load(b("p")).unwrap(), saved);
        assert_eq!(state.load(b("nope")).unwrap(), Saved::default());
        state.remove_client(b("bob")).unwrap();
        assert_eq!((state.load(b("p")).unwrap().rates, state.load(b("q")).unwrap().rates), (vec![], vec![]));
    }

    #[test]
    fn a_state_of_oclusters_goes_on_here() {
        let directory = tempfile::tempdir().unwrap();
        let old = include_bytes!("../../tests/vectors/migration/scheduler.db");
        fs::write(directory.path().join("scheduler.db"), old).unwrap();
        let mut state = State::open(directory.path()).unwrap();
        assert_eq!(state.clients().unwrap(), ["alice", "carol"]);
        let alice = service_id(include_str!("../../tests/vectors/migration/submit-alice.cap"));
        let carol = service_id(include_str!("../../tests/vectors/migration/submit-carol.cap"));
        assert_eq!(state.find_client(&alice).unwrap(), Some("alice".into()));
        assert_eq!(state.find_client(&carol).unwrap(), Some("carol".into()));
        let saved = Saved {
            workers: vec![("w1".into(), false)],
            hints: vec![("h1".into(), "w1".into()), ("".into(), "w1".into())],
            rates: vec![],
        };
        assert_eq!(state.load(b("linux-x86_64")).unwrap(), saved);
        // What we write has the types that they expect: they stop at others.
        state.save(b("linux-x86_64"), &[Effect::SaveWorker { worker: "w1".into(), paused: true }]).unwrap();
        state.save(b("linux-x86_64"), &[Effect::SaveHint { hint: "h".into(), worker: "w1".into() }]).unwrap();
        state.save(b("linux-x86_64"), &[Effect::SaveRate { client: "alice".into(), rate: Some(2.0) }]).unwrap();
        state.add_client(b("bob"), b"id").unwrap();
        for (query, types) in [
            ("SELECT typeof(id) || typeof(paused) || paused FROM workers", "textinteger1"),
            ("SELECT DISTINCT typeof(pool) || typeof(cache_hint) || typeof(worker) FROM cached", "texttexttext"),
            ("SELECT typeof(user) || typeof(rate) FROM pool_user_rate", "textreal"),
            ("SELECT DISTINCT typeof(hash) || typeof(type) || typeof(args) FROM sturdy_refs", "blobtextblob"),
        ] {
            let found: Vec<String> = state.rows(query, &[], |row| row.get(0)).unwrap();
            assert_eq!(found, [types], "{query}");
        }
        let schema = "SELECT name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let tables: Vec<String> = state.rows(schema, &[], |row| row.get(0)).unwrap();
        assert_eq!(
            tables,
            [
                "cached",
                "kiln_jobs",
                "kiln_jobs_client",
                "kiln_jobs_ended",
                "pool_user_rate",
                "sturdy_refs",
                "sturdy_refs_rev",
                "workers"
            ]
        );
    }

    #[test]
    fn two_schedulers_do_not_share_a_state() {
        let directory = tempfile::tempdir().unwrap();
        let first = State::open(directory.path()).unwrap();
        let error = State::open(directory.path()).unwrap_err().to_string();
        let pid = std::process::id();
        let said = format!("the state {} is in use by another scheduler, process {pid}", directory.path().display());
        assert_eq!(error, said);
        drop(first);
        State::open(directory.path()).unwrap();
    }

    #[test]
    fn what_is_no_database_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scheduler.db");
        fs::write(&path, "something else, long enough to be looked at").unwrap();
        let error = State::open(directory.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot open the scheduler's state {}", path.display()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else, long enough to be looked at");
        let error = State::open(&directory.path().join("nowhere")).unwrap_err();
        assert!(matches!(error, StateError::Lock { .. }), "{error:?}");
    }
}
