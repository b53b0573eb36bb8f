//! How one scheduler becomes several: all that is in `scheduler.db` and beside it goes into a database that they share.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use kiln_api::JobKey;
use thiserror::Error;

use super::database::sqlite::Sqlite;
use super::database::{DatabaseError, Parameter, Queries, Row, Value};
use super::lease::Tenure;
use super::logs::PART;
use super::{State, StateError, lock, logs};

/// The tables, and their columns but those that number the rows. Rows are copied in their order, by which hints and jobs go.
const TABLES: [(&str, &str); 5] = [
    ("sturdy_refs", "hash, type, args, created"),
    ("workers", "pool, id, paused"),
    ("pool_user_rate", "pool, \"user\", rate"),
    ("cached", "pool, cache_hint, worker, created"),
    (
        JOBS,
        "id, pool, client, urgent, detached, submitted, description, secrets, runs, worker, log_start, ended, outcome, output",
    ),
];
const JOBS: &str = "kiln_jobs";

/// How many rows are read at once.
const ROWS: i64 = 500;

/// How much of a log is read at once, in bytes.
const PIECE: u64 = 32 * PART;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Clients.
    pub clients: u64,
    /// Workers that pools know.
    pub workers: u64,
    /// Rates that were set.
    pub rates: u64,
    /// Pairs of a hint and a worker that ran it.
    pub hints: u64,
    /// Kept jobs.
    pub jobs: u64,
    /// How many of them have not ended.
    pub unfinished: u64,
    /// Their logs.
    pub logs: u64,
    /// How long these are together, in bytes.
    pub log_bytes: u64,
}

/// Why a state is not copied. No row was written then.
#[derive(Debug, Error)]
pub enum CopyError {
    /// One of the two cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is nothing to copy.
    #[error("there is no scheduler.db in {}", .0.display())]
    NoDatabase(PathBuf),
    /// Others' would be mixed with it.
    #[error("the database {place} is not empty: it has {rows} rows in its table {table}")]
    NotEmpty {
        /// The database.
        place: String,
        /// A table with something in it.
        table: &'static str,
        /// How much.
        rows: i64,
    },
    /// What is to be copied cannot be read.
    #[error("cannot read the scheduler's state {place}")]
    Read {
        /// The file.
        place: String,
        /// Why.
        #[source]
        source: DatabaseError,
    },
    /// A log cannot be read.
    #[error("cannot read the log {}", path.display())]
    Log {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Copies what a scheduler has in its state directory into the empty database of a lease: all or nothing. The directory stays
/// as it is. `progress` is called after each job, with what was copied so far; it begins anew if the connection is lost. Blocks.
///
/// # Errors
///
/// A scheduler runs on the directory, there is none of its databases, something cannot be read; or the database is not empty,
/// or refuses.
pub fn copy(directory: &Path, to: Tenure, progress: &mut dyn FnMut(&Copied)) -> Result<Copied, CopyError> {
    let path = directory.join("scheduler.db");
    if !path.is_file() {
        return Err(CopyError::NoDatabase(directory.to_owned()));
    }
    let _lock = lock(directory)?;
    let failed = |source| CopyError::Read { place: path.display().to_string(), source };
    let mut to = State::open_shared(to)?;
    let place = to.place.clone();
    let mut copied = Ok(Copied::default());
    Sqlite::look(&path, &mut |from| {
        copied = Ok(Copied::default());
        let mut why = None;
        let done = to.database.transact(true, &mut |to| {
            // It may be the second time, if the connection was lost.
            let logs = directory.join("logs");
            let mut copy = Copy { from, to, logs, place: &place, copied: Copied::default(), progress };
            copy.all().map(|()| copied = Ok(copy.copied)).map_err(|failure| match failure {
                Failure::Writing(error) => error,
                Failure::Other(error) => {
                    why = Some(error);
                    DatabaseError::Strange("nothing that could be copied".to_owned())
                }
            })
        });
        if let Err(source) = done {
            copied = Err(why.unwrap_or(StateError::Write { place: place.clone(), source }.into()));
        }
        Ok(())
    })
    .map_err(failed)?;
    copied
}

/// Why a copy stopped.
enum Failure {
    /// The database into which it goes says so, and may have it tried again.
    Writing(DatabaseError),
    Other(CopyError),
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::Other(error)
    }
}

struct Copy<'a> {
    from: &'a mut dyn Queries,
    to: &'a mut dyn Queries,
    logs: PathBuf,
    place: &'a str,
    copied: Copied,
    progress: &'a mut dyn FnMut(&Copied),
}

impl Copy<'_> {
    fn all(&mut self) -> Result<(), Failure> {
        for (table, _) in TABLES {
            let count = self.to.row(&format!("SELECT count(*) FROM {table}"), &[]);
            let rows = count.and_then(|row| row.map_or(Ok(0), |row| row.int(0))).map_err(Failure::Writing)?;
            if rows > 0 {
                return Err(CopyError::NotEmpty { place: self.place.to_owned(), table, rows }.into());
            }
        }
        for (table, columns) in TABLES {
            self.table(table, columns)?;
        }
        Ok(())
    }

    /// Copies a table, and logs with their jobs.
    fn table(&mut self, table: &str, columns: &str) -> Result<(), Failure> {
        let number_of_columns = columns.split(',').count();
        let select = format!("SELECT {columns}, rowid FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT $2");
        let places: Vec<_> = (1..=number_of_columns).map(|place| format!("${place}")).collect();
        let insert = format!("INSERT INTO {table} ({columns}) VALUES ({})", places.join(", "));
        let mut last = i64::MIN;
        loop {
            let rows = self.from.rows(&select, &[Parameter::Int(last), Parameter::Int(ROWS)]);
            let rows = rows.map_err(|error| self.unread(error))?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in &rows {
                last = row.int(number_of_columns).map_err(|error| self.unread(error))?;
                let values = row.values().iter().take(number_of_columns).map(parameter).collect::<Vec<_>>();
                self.to.execute(&insert, &values).map_err(Failure::Writing)?;
                *match table {
                    "sturdy_refs" => &mut self.copied.clients,
                    "workers" => &mut self.copied.workers,
                    "pool_user_rate" => &mut self.copied.rates,
                    "cached" => &mut self.copied.hints,
                    _ => &mut self.copied.jobs,
                } += 1;
                if table == JOBS {
                    self.log_of(row)?;
                    (self.progress)(&self.copied);
                }
            }
        }
    }

    /// Copies the log of a job, if it has one.
    fn log_of(&mut self, job: &Row) -> Result<(), Failure> {
        let id = job.bytes(0).map_err(|error| self.unread(error))?;
        let strange = |_| DatabaseError::Strange(format!("a job's id of {} bytes", id.len()));
        let key = id.try_into().map(JobKey).map_err(strange).map_err(|error| self.unread(error))?;
        // `ended`, of the columns.
        self.copied.unfinished += u64::from(job.is_null(11));
        let path = self.logs.join(key.to_string());
        let failed = |source| Failure::Other(CopyError::Log { path: path.clone(), source });
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut start = 0;
        loop {
            let mut piece = Vec::new();
            (&mut file).take(PIECE).read_to_end(&mut piece).map_err(failed)?;
            if piece.is_empty() {
                break;
            }
            logs::insert(self.to, key, start, &piece).map_err(Failure::Writing)?;
            start += piece.len() as u64;
        }
        self.copied.logs += 1;
        self.copied.log_bytes += start;
        Ok(())
    }

    fn unread(&self, source: DatabaseError) -> Failure {
        let database = self.logs.with_file_name("scheduler.db");
        Failure::Other(CopyError::Read { place: database.display().to_string(), source })
    }
}

fn parameter(value: &Value) -> Parameter<'_> {
    match value {
        Value::Null => Parameter::Null,
        Value::Int(number) => Parameter::Int(*number),
        Value::Real(number) => Parameter::Real(*number),
        Value::Bytes(bytes) => Parameter::Blob(bytes),
    }
}
