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

use super::change::{Applied, execute};
use super::database::{DatabaseError, Parameter, Queries, Row};
use super::{State, StateError};

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
    pub fn unfinished(&mut self) -> Result<Vec<KeptJob>, StateError> {
        self.jobs("WHERE ended IS NULL ORDER BY number", &[]).map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns one job.
    pub fn find_job(&mut self, key: JobKey) -> Result<Option<KeptJob>, StateError> {
        let found = self.jobs("WHERE id = $1", &[Parameter::Blob(&key.0)]);
        found.map(|jobs| jobs.into_iter().next()).map_err(|source| self.cannot_read("a job", source))
    }

    /// Returns those of these jobs that there are not.
    pub fn unknown_jobs(&mut self, keys: &[JobKey]) -> Result<Vec<JobKey>, StateError> {
        let mut unknown = || {
            let mut unknown = Vec::new();
            for key in keys {
                if self.database.row("SELECT 1 FROM kiln_jobs WHERE id = $1", &[Parameter::Blob(&key.0)])?.is_none() {
                    unknown.push(*key);
                }
            }
            Ok(unknown)
        };
        unknown().map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns the jobs of a client that have not ended and those that ended last, `most` in all, the newest first.
    pub fn jobs_of(&mut self, client: &bstr::BStr, most: u32) -> Result<Vec<KeptJob>, StateError> {
        // Not what they are to do, which is long, and of results the beginning.
        let columns = COLUMNS.replace("description", "NULL");
        let columns = columns.replace("output", "substr(output, 1, 1000)");
        let mut both = || {
            let waiting = "client = $1 AND ended IS NULL ORDER BY number DESC";
            let ended = "client = $1 AND ended IS NOT NULL ORDER BY ended DESC, number DESC";
            let mut jobs = Vec::new();
            for those in [waiting, ended] {
                let left = i64::from(most) - i64::try_from(jobs.len()).unwrap_or(i64::MAX);
                let query = format!("SELECT {columns} FROM kiln_jobs WHERE {those} LIMIT $2");
                let rows = self.database.rows(&query, &[Parameter::Text(client), Parameter::Int(left.max(0))])?;
                for row in &rows {
                    jobs.push(read(row)?);
                }
            }
            Ok(jobs)
        };
        both().map_err(|source| self.cannot_read("the jobs", source))
    }

    /// Returns jobs that ended before a time in seconds since 1970, the longest ago first.
    pub fn ended_before(&mut self, time: i64, most: u32) -> Result<Vec<JobKey>, StateError> {
        let query = "SELECT id FROM kiln_jobs WHERE ended < $1 ORDER BY ended LIMIT $2";
        let rows = self.database.rows(query, &[Parameter::Int(time), Parameter::Int(most.into())]);
        let keys = rows.and_then(|rows| rows.iter().map(key).collect());
        keys.map_err(|source| self.cannot_read("the jobs", source))
    }

    fn jobs(&mut self, those: &str, parameters: &[Parameter<'_>]) -> Result<Vec<KeptJob>, DatabaseError> {
        let rows = self.database.rows(&format!("SELECT {COLUMNS} FROM kiln_jobs {those}"), parameters)?;
        rows.iter().map(read).collect()
    }
}

/// Adds a job, if there is none of that key.
pub(super) fn insert(transaction: &mut dyn Queries, job: &KeptJob) -> Result<Applied, DatabaseError> {
    let description = match &job.description {
        None => Vec::new(),
        Some(description) => {
            description.to_bytes().map_err(|error| DatabaseError::Strange(format!("no message: {error}")))?
        }
    };
    let secrets = match job.secrets {
        Secrets::None => 0,
        Secrets::Stored => 1,
        Secrets::LeftOut => 2,
    };
    let query = "INSERT INTO kiln_jobs \
                 (id, pool, client, urgent, detached, submitted, description, secrets, runs, log_start) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0) ON CONFLICT (id) DO NOTHING";
    let parameters = [
        Parameter::Blob(&job.key.0),
        Parameter::text(&job.pool),
        Parameter::text(&job.client),
        Parameter::Int(job.urgent.into()),
        Parameter::Int(job.detached.into()),
        Parameter::Int(job.submitted),
        Parameter::Blob(&description),
        Parameter::Int(secrets),
    ];
    execute(transaction, query, &parameters)
}

/// Returns a number as databases have them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn key(row: &Row) -> Result<JobKey, DatabaseError> {
    let bytes = row.bytes(0)?;
    bytes.try_into().map(JobKey).map_err(|_| DatabaseError::Strange(format!("a job's id of {} bytes", bytes.len())))
}

fn read(row: &Row) -> Result<KeptJob, DatabaseError> {
    let description = match if row.is_null(6) { &[] } else { row.bytes(6)? } {
        [] => None,
        bytes => Some(
            JobDescription::from_bytes(bytes)
                .map_err(|error| DatabaseError::Strange(format!("a job's description that is none: {error}")))?,
        ),
    };
    let optional = |column| if row.is_null(column) { Ok(None) } else { row.name(column).map(Some) };
    let outcome = match row.is_null(11) {
        true => None,
        false => {
            let text = optional(13)?.unwrap_or_default();
            Some(match if row.is_null(12) { 0 } else { row.int(12)? } {
                1 => Outcome::Succeeded(text),
                2 => Outcome::Abandoned(text),
                _ => Outcome::Failed(text),
            })
        }
    };
    Ok(KeptJob {
        key: key(row)?,
        pool: row.name(1)?,
        client: row.name(2)?,
        urgent: row.int(3)? != 0,
        detached: row.int(4)? != 0,
        submitted: row.int(5)?,
        description,
        secrets: match row.int(7)? {
            0 => Secrets::None,
            1 => Secrets::Stored,
            _ => Secrets::LeftOut,
        },
        runs: u32::try_from(row.int(8)?).unwrap_or(u32::MAX),
        worker: optional(9)?,
        log_start: u64::try_from(row.int(10)?).unwrap_or_default(),
        outcome,
    })
}
