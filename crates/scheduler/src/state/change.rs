//! What changes in what a scheduler keeps.

use std::time::SystemTime;

use bstr::{BStr, BString};

use super::database::{DatabaseError, Parameter, Queries};
use super::jobs::{self, KeptJob, Outcome};
use super::{CLIENT, hash, logs};
use crate::pool::Effect;
use kiln_api::JobKey;

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// A pool wants something kept. Effects that are not of this kind change nothing.
    Pool {
        /// The pool.
        pool: BString,
        /// What it wants.
        effect: Effect,
    },
    /// Of the hints that ran in a pool, the latest are enough.
    PruneHints {
        /// The pool.
        pool: BString,
        /// How many rows stay. Nothing is done before there are a fifth more.
        most: u32,
    },
    /// There is a client: whoever knows the service id may submit in its name.
    AddClient {
        /// What it is called.
        name: BString,
        /// The service id. It is not stored.
        id: Vec<u8>,
    },
    /// There is no such client any more: its service ids and rates are forgotten.
    RemoveClient {
        /// What it is called.
        name: BString,
    },
    /// There is a job.
    Submit(Box<KeptJob>),
    /// A worker begins a job, perhaps not for the first time.
    Begin {
        /// Which job.
        job: JobKey,
        /// Which of its runs.
        run: u32,
        /// The worker.
        worker: BString,
        /// Where the run's log begins in the job's.
        log_start: u64,
    },
    /// A job has ended. What it was to do is forgotten.
    End {
        /// Which job.
        job: JobKey,
        /// How it ended.
        outcome: Outcome,
        /// When, in seconds since 1970.
        ended: i64,
    },
    /// More of a job's log is kept for other schedulers.
    Log {
        /// Which job.
        job: JobKey,
        /// Where it stands in the log: a multiple of [`PART`](super::logs::PART).
        start: u64,
        /// What stands there, of which the beginning may be kept already.
        bytes: Vec<u8>,
    },
    /// A job that has ended is forgotten.
    Forget {
        /// Which job.
        job: JobKey,
    },
}

/// What became of a change.
pub(super) enum Applied {
    Changed,
    /// There was nothing to change.
    Nothing,
    /// Another client has that name.
    ClientExists(BString),
}

impl Change {
    pub(super) fn apply(&self, transaction: &mut dyn Queries) -> Result<Applied, DatabaseError> {
        let mut execute = |query: &str, parameters: &[Parameter<'_>]| execute(transaction, query, parameters);
        match self {
            Self::Pool { pool, effect } => keep(transaction, pool.as_ref(), effect),
            Self::PruneHints { pool, most } => {
                let pool = Parameter::text(pool);
                let count = transaction.row("SELECT count(*) FROM cached WHERE pool = $1", &[pool])?;
                let rows = count.map_or(Ok(0), |row| row.int(0))?;
                if rows <= i64::from(*most) + i64::from(most / 5) {
                    return Ok(Applied::Nothing);
                }
                let latest = "SELECT rowid FROM cached WHERE pool = $1 ORDER BY created DESC, rowid DESC LIMIT $2";
                let others = format!("DELETE FROM cached WHERE pool = $1 AND rowid NOT IN ({latest})");
                self::execute(transaction, &others, &[pool, Parameter::Int((*most).into())])
            }
            Self::AddClient { name, id } => {
                let there = "SELECT 1 FROM sturdy_refs WHERE type = $1 AND args = $2";
                if transaction.row(there, &[CLIENT, Parameter::Blob(name)])?.is_some() {
                    return Ok(Applied::ClientExists(name.clone()));
                }
                let insert = "INSERT INTO sturdy_refs (hash, type, args, created) VALUES ($1, $2, $3, $4)";
                let (hash, today) = (hash(id), today());
                let row = [Parameter::Blob(&hash), CLIENT, Parameter::Blob(name), Parameter::text(&today)];
                self::execute(transaction, insert, &row)
            }
            Self::RemoveClient { name } => {
                execute("DELETE FROM pool_user_rate WHERE \"user\" = $1", &[Parameter::text(name)])?;
                execute("DELETE FROM sturdy_refs WHERE type = $1 AND args = $2", &[CLIENT, Parameter::Blob(name)])
            }
            Self::Submit(job) => jobs::insert(transaction, job),
            Self::Begin { job, run, worker, log_start } => execute(
                "UPDATE kiln_jobs SET runs = $1, worker = $2, log_start = $3 WHERE id = $4 AND ended IS NULL",
                &[
                    Parameter::Int((*run).into()),
                    Parameter::text(worker),
                    Parameter::Int(jobs::signed(*log_start)),
                    Parameter::Blob(&job.0),
                ],
            ),
            Self::End { job, outcome, ended } => {
                let (how, text) = match outcome {
                    Outcome::Failed(why) => (0, why),
                    Outcome::Succeeded(output) => (1, output),
                    Outcome::Abandoned(why) => (2, why),
                };
                execute(
                    "UPDATE kiln_jobs SET ended = $1, outcome = $2, output = $3, description = $4 \
                     WHERE id = $5 AND ended IS NULL",
                    &[
                        Parameter::Int(*ended),
                        Parameter::Int(how),
                        Parameter::text(text),
                        Parameter::Blob(b""),
                        Parameter::Blob(&job.0),
                    ],
                )
            }
            Self::Log { job, start, bytes } => logs::insert(transaction, *job, *start, bytes),
            Self::Forget { job } => {
                let ended = "DELETE FROM kiln_jobs WHERE id = $1 AND ended IS NOT NULL";
                execute(ended, &[Parameter::Blob(&job.0)])
            }
        }
    }
}

/// Makes a change by a query with parameters.
pub(super) fn execute(
    transaction: &mut dyn Queries,
    query: &str,
    parameters: &[Parameter<'_>],
) -> Result<Applied, DatabaseError> {
    Ok(if transaction.execute(query, parameters)? > 0 { Applied::Changed } else { Applied::Nothing })
}

/// Keeps one thing that a pool wants kept.
fn keep(transaction: &mut dyn Queries, pool: &BStr, effect: &Effect) -> Result<Applied, DatabaseError> {
    let mut execute = |query: &str, parameters: &[Parameter<'_>]| execute(transaction, query, parameters);
    let pool = Parameter::Text(pool);
    match effect {
        Effect::SaveHint { hint, worker } => {
            let today = today();
            let row = [pool, Parameter::text(hint), Parameter::text(worker), Parameter::text(&today)];
            // Anew, so that it is the newest.
            execute("DELETE FROM cached WHERE pool = $1 AND cache_hint = $2 AND worker = $3", &row[..3])?;
            execute("INSERT INTO cached (pool, cache_hint, worker, created) VALUES ($1, $2, $3, $4)", &row)
        }
        Effect::SaveWorker { worker, paused } => execute(
            "INSERT INTO workers (pool, id, paused) VALUES ($1, $2, $3) \
             ON CONFLICT (pool, id) DO UPDATE SET paused = excluded.paused",
            &[pool, Parameter::text(worker), Parameter::Int((*paused).into())],
        ),
        Effect::ForgetWorker { worker } => {
            execute("DELETE FROM workers WHERE pool = $1 AND id = $2", &[pool, Parameter::text(worker)])
        }
        Effect::SaveRate { client, rate: Some(rate) } => execute(
            "INSERT INTO pool_user_rate (pool, \"user\", rate) VALUES ($1, $2, $3) \
             ON CONFLICT (pool, \"user\") DO UPDATE SET rate = excluded.rate",
            &[pool, Parameter::text(client), Parameter::Real(*rate)],
        ),
        Effect::SaveRate { client, rate: None } => {
            let client = Parameter::text(client);
            execute("DELETE FROM pool_user_rate WHERE pool = $1 AND \"user\" = $2", &[pool, client])
        }
        Effect::Start { .. } | Effect::Lost { .. } | Effect::Running { .. } => Ok(Applied::Nothing),
    }
}

/// Returns the day, in UTC, as OCluster's scheduler writes it: `2026-01-31`.
fn today() -> String {
    let mut time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    time.truncate(10);
    time
}
