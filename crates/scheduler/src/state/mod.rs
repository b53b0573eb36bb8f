//! What a scheduler keeps: who may submit, what pools know, jobs.
//!
//! `STATE/scheduler.db` is an SQLite database with OCluster's tables, as its scheduler leaves and expects them. So a state
//! directory may be handed from one program to the other and back. Or it is a PostgreSQL database with the same tables, which
//! several schedulers share: one of them serves, whose [`lease`] it is.
//!
//! ```text
//! sturdy_refs     hash, type, args, created        the clients: SHA-256 of the service id, `ocluster-client`, name
//! cached          pool, cache_hint, worker, created     which worker ran which hint
//! workers         pool, id, paused                 the known workers, and which of them administrators paused
//! pool_user_rate  pool, user, rate                 the clients whose rate was set
//! kiln_…                                           tables that OCluster's scheduler does not know:
//!   jobs          (see [`jobs`])                   jobs that outlive the scheduler
//!   schema        version                          how many migrations there were
//!   logs, lease, terms                             (see `logs.rs`, [`lease`]) only where it is shared
//! ```
//!
//! `STATE/scheduler.lock` is locked (`flock`) by the scheduler that runs: two would give out the same workers' places.
//! OCluster's scheduler does not know that lock.
//!
//! Names are stored as text, whatever their bytes. Service ids are secrets and not stored: who reads this can list
//! clients, but not be one.

mod change;
pub mod copy;
mod database;
pub mod jobs;
pub mod lease;
pub mod logs;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bstr::{BStr, BString};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::change::Applied;
pub use self::change::Change;
pub use self::database::DatabaseError;
use self::database::postgres::Postgres;
pub use self::database::postgres::{PostgresServer, ServerError};
use self::database::sqlite::{Flush, Sqlite};
use self::database::{Database, Parameter};
pub use self::jobs::{KeptJob, Outcome, Secrets};
use self::lease::Tenure;
use crate::pool::Saved;

/// How many rows of hints of a pool are read at start-up, and kept: the latest.
pub const HINTS: u32 = 500_000;

const CLIENT: Parameter<'_> = Parameter::Text(b"ocluster-client");

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
    #[error("cannot open the scheduler's state {place}")]
    Open {
        /// The database.
        place: String,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// Something cannot be read.
    #[error("cannot read {what} from the scheduler's state {place}")]
    Read {
        /// What.
        what: &'static str,
        /// The database.
        place: String,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// What was written cannot be made to survive the machine.
    #[error("cannot flush the scheduler's state {place} to its disk")]
    Flush {
        /// The database.
        place: String,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// Something cannot be written. Nothing has changed.
    #[error("cannot write the scheduler's state {place}")]
    Write {
        /// The database.
        place: String,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// It is shared by schedulers that have another key.
    #[error("the schedulers that share {place} are known by {theirs}, and this one is by {ours}")]
    OtherKey {
        /// The database.
        place: String,
        /// What they are known by.
        theirs: String,
        /// What this one is known by.
        ours: String,
    },
    /// There is a client of this name. OCluster's text.
    #[error("Client {0:?} already registered!")]
    ClientExists(BString),
    /// The scheduler has stopped.
    #[error("the scheduler is stopping")]
    Closed,
}

impl StateError {
    /// Returns whether this scheduler is none any more. Another may be.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Open { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Flush { source, .. } => matches!(source, DatabaseError::Deposed),
            Self::InUse { .. } | Self::Lock { .. } | Self::OtherKey { .. } | Self::ClientExists(_) => false,
        }
    }
}

/// The open database. Its methods wait for it.
pub struct State {
    place: String,
    database: Box<dyn Database>,
    _lock: Option<DirectoryLock>,
}

/// A state directory that no other scheduler uses, until this is dropped or the process ends, however that ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
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
        let place = path.display().to_string();
        match Sqlite::open(&path) {
            Ok(database) => Ok(State { place, database: Box::new(database), _lock: Some(lock) }),
            Err(source) => Err(StateError::Open { place, source }),
        }
    }

    /// Opens the database of a lease, for as long as that is held. Not to be called by a task, nor any method of what it
    /// returns: they block.
    ///
    /// # Errors
    ///
    /// The database refuses. One that is not reached is waited for, until the lease is lost.
    pub fn open_shared(tenure: Tenure) -> Result<State, StateError> {
        let Tenure { server, fence } = tenure;
        let place = server.to_string();
        match Postgres::open(server, fence) {
            Ok(database) => Ok(State { place, database: Box::new(database), _lock: None }),
            Err(source) => Err(StateError::Open { place, source }),
        }
    }

    /// Returns whether other schedulers, on other machines, go on with what is here, and with nothing else.
    pub fn is_shared(&self) -> bool {
        self.database.is_shared()
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
        let mut applied = Vec::new();
        let mut refused = None;
        let done = self.database.transact(through, &mut |transaction| {
            (applied, refused) = (Vec::with_capacity(changes.len()), None);
            for change in changes {
                match change.apply(transaction)? {
                    Applied::Changed => applied.push(true),
                    Applied::Nothing => applied.push(false),
                    Applied::ClientExists(name) => {
                        refused = Some(name);
                        return Err(DatabaseError::Strange("a client of that name".to_owned()));
                    }
                }
            }
            Ok(())
        });
        match (done, refused) {
            (Ok(()), _) => Ok(applied),
            (Err(_), Some(name)) => Err(StateError::ClientExists(name)),
            (Err(source), None) => Err(StateError::Write { place: self.place.clone(), source }),
        }
    }

    /// Returns the client whose service id this is.
    ///
    /// Only digests are compared, so how long it takes says nothing of the ids that there are.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn find_client(&mut self, service_id: &[u8]) -> Result<Option<BString>, StateError> {
        let query = "SELECT args FROM sturdy_refs WHERE hash = $1 AND type = $2";
        let found = self.database.row(query, &[Parameter::Blob(&hash(service_id)), CLIENT]);
        let found = found.and_then(|row| row.map(|row| row.name(0)).transpose());
        found.map_err(|source| self.cannot_read("a client", source))
    }

    /// Returns the names of all clients, sorted.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn clients(&mut self) -> Result<Vec<BString>, StateError> {
        let rows = self.database.rows("SELECT DISTINCT args FROM sturdy_refs WHERE type = $1 ORDER BY args", &[CLIENT]);
        let found = rows.and_then(|rows| rows.iter().map(|row| row.name(0)).collect());
        found.map_err(|source| self.cannot_read("the clients", source))
    }

    /// Returns what is known of a pool.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn load(&mut self, pool: &BStr) -> Result<Saved, StateError> {
        let mut load = || -> Result<_, DatabaseError> {
            let pool = Parameter::Text(pool);
            let hints =
                "SELECT cache_hint, worker FROM cached WHERE pool = $1 ORDER BY created DESC, rowid DESC LIMIT $2";
            let hints = self.database.rows(hints, &[pool, Parameter::Int(HINTS.into())])?;
            let workers = self.database.rows("SELECT id, paused FROM workers WHERE pool = $1 ORDER BY id", &[pool])?;
            let rates = self.database.rows("SELECT \"user\", rate FROM pool_user_rate WHERE pool = $1", &[pool])?;
            let mut saved = Saved::default();
            for row in hints.iter().rev() {
                saved.hints.push((row.name(0)?, row.name(1)?));
            }
            for row in &workers {
                // OCluster lets it be absent.
                saved.workers.push((row.name(0)?, !row.is_null(1) && row.int(1)? != 0));
            }
            for row in &rates {
                saved.rates.push((row.name(0)?, row.real(1)?));
            }
            Ok(saved)
        };
        load().map_err(|source| self.cannot_read("a pool", source))
    }

    /// Returns who has what was written survive the machine. It may be used on another thread.
    ///
    /// # Errors
    ///
    /// The database cannot be opened once more.
    pub fn flusher(&self) -> Result<Flusher, StateError> {
        let place = self.place.clone();
        match self.database.flusher() {
            Ok(of) => Ok(Flusher { place, of }),
            Err(source) => Err(StateError::Open { place, source }),
        }
    }

    fn cannot_read(&self, what: &'static str, source: DatabaseError) -> StateError {
        StateError::Read { what, place: self.place.clone(), source }
    }
}

/// Who flushes a state, beside who writes it.
pub struct Flusher {
    place: String,
    /// `None`: what was committed has been.
    of: Option<Flush>,
}

impl Flusher {
    /// Waits until all that was committed before survives the machine.
    ///
    /// # Errors
    ///
    /// The disk is full or broken.
    pub fn flush(&mut self) -> Result<(), StateError> {
        let flushed = self.of.as_mut().map_or(Ok(()), Flush::flush);
        flushed.map_err(|source| StateError::Flush { place: self.place.clone(), source: source.into() })
    }

    /// Tidies up, as far as nobody has to wait for it.
    ///
    /// # Errors
    ///
    /// The database cannot be written. Then it stays as it is.
    pub fn tidy(&self) -> Result<(), StateError> {
        let tidied = self.of.as_ref().map_or(Ok(()), Flush::tidy);
        tidied.map_err(|source| StateError::Write { place: self.place.clone(), source })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({})", self.place)
    }
}

/// Locks a state directory, with our process in the lock's file for whoever comes second.
///
/// # Errors
///
/// Another scheduler has it, or it cannot be written.
pub fn lock(directory: &Path) -> Result<DirectoryLock, StateError> {
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
    Ok(DirectoryLock { _file: file })
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid}"))
}

fn hash(service_id: &[u8]) -> [u8; 32] {
    Sha256::digest(service_id).into()
}

#[cfg(test)]
mod tests;
