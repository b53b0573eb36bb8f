//! Jobs that outlive the scheduler.
//!
//! ```text
//! kiln_jobs   number       in the order in which they were submitted
//!             id           what the job is called, 10 bytes
//!             pool, client, urgent, detached
//!             submitted    seconds since 1970
//!             description  a message; empty once it has ended
//!             secrets      0: it has none, 1: they are in the description, 2: they were left out of it
//!             runs         how often a worker has begun it
//!             worker       the last one that has
//!             log_start    where that run's log begins in the job's
//!             ended        seconds since 1970; nothing until then
//!             outcome      0: it failed, 1: it succeeded, 2: it was abandoned
//!             output       the result, or why there is none
//! ```

use bstr::BString;
use kiln_api::{JobDescription, JobKey};
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::change::Applied;
use super::{State, StateError, Text, name};

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS kiln_jobs (
        number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, pool TEXT NOT NULL, client TEXT NOT NULL,
        urgent INTEGER NOT NULL, detached INTEGER NOT NULL, submitted INTEGER NOT NULL, description BLOB NOT NULL,
        secrets INTEGER NOT NULL, runs INTEGER NOT NULL, worker TEXT, log_start INTEGER NOT NULL, ended INTEGER,
        outcome INTEGER, output TEXT);
    CREATE INDEX IF NOT EXISTS kiln_jobs_client ON kiln_jobs (client, ended, number);
    CREATE INDEX IF NOT EXISTS kiln_jobs_ended ON kiln_jobs (ended);";

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With this result.
    Succeeded(BString),
    /// It was wrong or cancelled, for this reason.
    Failed(BString),
    /// The cluster could not do it, for this reason.
    Abandoned(BString),
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptJob {
    /// What it is called.
    pub key: JobKey,
    /// The pool that does it.
    pub pool: BString,
    /// Whose it is.
    pub client: BString,
    /// Goes before all that are not.
    pub urgent: bool,
    /// Goes on without its client.
    pub detached: bool,
    /// In seconds since 1970.
    pub submitted: i64,
    /// What it is to do; nothing once it has ended.
    pub description: Option<JobDescription>,
    /// Whether the description has all that it had.
    pub secrets: Secrets,
    /// How often a worker has begun it.
    pub runs: u32,
    /// The last one that has.
    pub worker: Option<BString>,
    /// Where that run's log begins in the job's.
    pub log_start: u64,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}

/// What has become of a job's secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// It has none.
    None,
    /// They are stored with it.
    Stored,
    /// They were left out.
    LeftOut,
}

const COLUMNS: &str = "id, pool, client, urgent, detached, submitted, description, secrets, runs, worker, log_start, ended, \
                       outcome, output";

impl State {
    /// Returns the jobs that have not ended, in the order in which they were submitted.
    ///
    /// # Errors
    ///
    /// The database cannot be read, or holds what no scheduler wrote. This holds for all methods here.
    pub fn unfinished(&self) -> Result<Vec<KeptJob>, StateError> {
        let query = format!("SELECT {COLUMNS} FROM kiln_jobs WHERE ended IS NULL ORDER BY number");
        self.rows(&query, &[], read).map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns one job.
    pub fn find_job(&self, key: JobKey) -> Result<Option<KeptJob>, StateError> {
        let query = format!("SELECT {COLUMNS} FROM kiln_jobs WHERE id = ?");
        let found = self.database.query_row(&query, params![key.0], read).optional();
        found.map_err(|source| self.cannot_read("a job", source))
    }

    /// Returns those of these jobs that there are not.
    pub fn unknown_jobs(&self, keys: &[JobKey]) -> Result<Vec<JobKey>, StateError> {
        let unknown = || {
            let mut find = self.database.prepare_cached("SELECT 1 FROM kiln_jobs WHERE id = ?")?;
            let mut unknown = Vec::new();
            for key in keys {
                if !find.exists(params![key.0])? {
                    unknown.push(*key);
                }
            }
            Ok(unknown)
        };
        unknown().map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns the jobs of a client that have not ended and those that ended last, `most` in all, the newest first.
    pub fn jobs_of(&self, client: &bstr::BStr, most: u32) -> Result<Vec<KeptJob>, StateError> {
        // Not what they are to do, which is long, and of results the beginning.
        let columns = COLUMNS.replace("description", "x''").replace("output", "substr(output, 1, 1000)");
        let both = || {
            let waiting = "client = ? AND ended IS NULL ORDER BY number DESC";
            let ended = "client = ? AND ended IS NOT NULL ORDER BY ended DESC, number DESC";
            let mut jobs = Vec::new();
            for those in [waiting, ended] {
                let left = i64::from(most) - i64::try_from(jobs.len()).unwrap_or(i64::MAX);
                let query = format!("SELECT {columns} FROM kiln_jobs WHERE {those} LIMIT ?");
                jobs.extend(self.rows(&query, &[&Text(client), &left.max(0)], read)?);
            }
            Ok(jobs)
        };
        both().map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns jobs that ended before a time in seconds since 1970, the longest ago first.
    pub fn ended_before(&self, time: i64, most: u32) -> Result<Vec<JobKey>, StateError> {
        let query = "SELECT id FROM kiln_jobs WHERE ended < ? ORDER BY ended LIMIT ?";
        self.rows(query, &[&time, &most], key).map_err(|source| self.cannot_read("the jobs", source))
    }
}

/// Adds a job, if there is none of that key.
pub(super) fn insert(transaction: &Transaction<'_>, job: &KeptJob) -> rusqlite::Result<Applied> {
    let description = match &job.description {
        None => Vec::new(),
        Some(description) => {
            description.to_bytes().map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?
        }
    };
    let secrets = match job.secrets {
        Secrets::None => 0,
        Secrets::Stored => 1,
        Secrets::LeftOut => 2,
    };
    let query = "INSERT OR IGNORE INTO kiln_jobs \
                 (id, pool, client, urgent, detached, submitted, description, secrets, runs, log_start) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0)";
    let rows = transaction.prepare_cached(query)?.execute(params![
        job.key.0,
        Text(job.pool.as_ref()),
        Text(job.client.as_ref()),
        job.urgent,
        job.detached,
        job.submitted,
        description,
        secrets
    ])?;
    Ok(if rows > 0 { Applied::Changed } else { Applied::Nothing })
}

/// Returns a number as SQLite has them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn key(row: &Row<'_>) -> rusqlite::Result<JobKey> {
    row.get(0).map(JobKey)
}

fn read(row: &Row<'_>) -> rusqlite::Result<KeptJob> {
    let description: Vec<u8> = row.get(6)?;
    let description = match description.as_slice() {
        [] => None,
        bytes => Some(
            JobDescription::from_bytes(bytes)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(6, Type::Blob, error.into()))?,
        ),
    };
    let optional = |column| match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok::<_, rusqlite::Error>(None),
        _ => name(row, column).map(Some),
    };
    let ended: Option<i64> = row.get(11)?;
    let text = optional(13)?.unwrap_or_default();
    let outcome = match row.get::<_, Option<i64>>(12)? {
        Some(1) => Outcome::Succeeded,
        Some(2) => Outcome::Abandoned,
        _ => Outcome::Failed,
    };
    Ok(KeptJob {
        key: key(row)?,
        pool: name(row, 1)?,
        client: name(row, 2)?,
        urgent: row.get(3)?,
        detached: row.get(4)?,
        submitted: row.get(5)?,
        description,
        secrets: match row.get(7)? {
            0 => Secrets::None,
            1 => Secrets::Stored,
            _ => Secrets::LeftOut,
        },
        runs: row.get(8)?,
        worker: optional(9)?,
        log_start: u64::try_from(row.get::<_, i64>(10)?).unwrap_or_default(),
        outcome: ended.map(|_| outcome(text)),
    })
}
