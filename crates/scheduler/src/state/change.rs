//! What changes in what a scheduler keeps.

use bstr::{BStr, BString, ByteSlice as _};
use rusqlite::types::ToSql;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::jobs::{self, KeptJob, Outcome};
use super::{CLIENT, Text, hash};
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
    ClientExists,
}

impl Change {
    pub(super) fn apply(&self, transaction: &Transaction<'_>) -> rusqlite::Result<Applied> {
        let execute = |query: &str, parameters: &[&dyn ToSql]| execute(transaction, query, parameters);
        match self {
            Self::Pool { pool, effect } => keep(transaction, pool.as_ref(), effect),
            Self::PruneHints { pool, most } => {
                let pool = Text(pool.as_ref());
                let count = "SELECT count(*) FROM cached WHERE pool = ?";
                let rows: u32 = transaction.query_row(count, params![pool], |row| row.get(0))?;
                if rows <= most.saturating_add(most / 5) {
                    return Ok(Applied::Nothing);
                }
                let latest = "SELECT rowid FROM cached WHERE pool = ?1 ORDER BY created DESC, rowid DESC LIMIT ?2";
                execute(&format!("DELETE FROM cached WHERE pool = ?1 AND rowid NOT IN ({latest})"), &[&pool, most])
            }
            Self::AddClient { name, id } => {
                let there = "SELECT 1 FROM sturdy_refs WHERE type = ? AND args = ?";
                let name = name.as_bytes();
                if transaction.query_row(there, params![CLIENT, name], |_| Ok(())).optional()?.is_some() {
                    return Ok(Applied::ClientExists);
                }
                let insert = "INSERT INTO sturdy_refs (hash, type, args, created) VALUES (?, ?, ?, date('now'))";
                execute(insert, &[&hash(id), &CLIENT, &name])
            }
            Self::RemoveClient { name } => {
                execute("DELETE FROM pool_user_rate WHERE user = ?", &[&Text(name.as_ref())])?;
                execute("DELETE FROM sturdy_refs WHERE type = ? AND args = ?", &[&CLIENT, &name.as_bytes()])
            }
            Self::Submit(job) => jobs::insert(transaction, job),
            Self::Begin { job, run, worker, log_start } => execute(
                "UPDATE kiln_jobs SET runs = ?, worker = ?, log_start = ? WHERE id = ? AND ended IS NULL",
                &[run, &Text(worker.as_ref()), &jobs::signed(*log_start), &job.0],
            ),
            Self::End { job, outcome, ended } => {
                let (how, text) = match outcome {
                    Outcome::Failed(why) => (0, why),
                    Outcome::Succeeded(output) => (1, output),
                    Outcome::Abandoned(why) => (2, why),
                };
                execute(
                    "UPDATE kiln_jobs SET ended = ?, outcome = ?, output = ?, description = x'' WHERE id = ? AND ended IS NULL",
                    &[ended, &how, &Text(text.as_ref()), &job.0],
                )
            }
            Self::Forget { job } => execute("DELETE FROM kiln_jobs WHERE id = ? AND ended IS NOT NULL", &[&job.0]),
        }
    }
}

/// Makes a change by a query with parameters.
fn execute(transaction: &Transaction<'_>, query: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<Applied> {
    let rows = transaction.prepare_cached(query)?.execute(parameters)?;
    Ok(if rows > 0 { Applied::Changed } else { Applied::Nothing })
}

/// Keeps one thing that a pool wants kept.
fn keep(transaction: &Transaction<'_>, pool: &BStr, effect: &Effect) -> rusqlite::Result<Applied> {
    let execute = |query: &str, parameters: &[&dyn ToSql]| execute(transaction, query, parameters);
    let pool = Text(pool);
    match effect {
        Effect::SaveHint { hint, worker } => execute(
            "INSERT OR REPLACE INTO cached (pool, cache_hint, worker, created) VALUES (?, ?, ?, date('now'))",
            &[&pool, &Text(hint.as_ref()), &Text(worker.as_ref())],
        ),
        Effect::SaveWorker { worker, paused } => execute(
            "INSERT OR REPLACE INTO workers (pool, id, paused) VALUES (?, ?, ?)",
            &[&pool, &Text(worker.as_ref()), paused],
        ),
        Effect::ForgetWorker { worker } => {
            execute("DELETE FROM workers WHERE pool = ? AND id = ?", &[&pool, &Text(worker.as_ref())])
        }
        Effect::SaveRate { client, rate: Some(rate) } => execute(
            "INSERT OR REPLACE INTO pool_user_rate (pool, user, rate) VALUES (?, ?, ?)",
            &[&pool, &Text(client.as_ref()), rate],
        ),
        Effect::SaveRate { client, rate: None } => {
            execute("DELETE FROM pool_user_rate WHERE pool = ? AND user = ?", &[&pool, &Text(client.as_ref())])
        }
        Effect::Start { .. } | Effect::Lost { .. } | Effect::Running { .. } => Ok(Applied::Nothing),
    }
}
