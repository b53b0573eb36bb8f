//! The logs of kept jobs, where schedulers share nothing but their database.
//!
//! ```text
//! kiln_logs   job     whose it is
//!             start   where this part stands in it: a multiple of [`PART`]
//!             size    how long the part is, in bytes: only the last one has less than [`PART`], and grows
//!             bytes   the part
//! ```
//!
//! It goes with its job. SQLite has no such table: logs are files beside it.

use kiln_api::JobKey;

use super::change::{Applied, execute};
use super::database::{DatabaseError, Parameter, Queries};
use super::jobs::signed;
use super::{State, StateError};

/// How long a part is, in bytes. The last one of a log that grows is written again each time.
pub const PART: u64 = 32 << 10;

/// How many are read at once. Whatever else is asked of the database waits for that.
const AT_ONCE: i64 = 32;

impl State {
    /// Returns the parts of a log from `start` on, a multiple of [`PART`], in order; none at its end. Not all of them, if they
    /// are many.
    ///
    /// # Errors
    ///
    /// The database cannot be read. This holds for all methods here.
    pub fn log_parts(&mut self, job: JobKey, start: u64) -> Result<Vec<Vec<u8>>, StateError> {
        let query = "SELECT bytes FROM kiln_logs WHERE job = $1 AND start >= $2 ORDER BY start LIMIT $3";
        let parameters = [Parameter::Blob(&job.0), Parameter::Int(signed(start)), Parameter::Int(AT_ONCE)];
        let rows = self.database.rows(query, &parameters);
        let parts = rows.and_then(|rows| rows.iter().map(|row| row.bytes(0).map(<[u8]>::to_vec)).collect());
        parts.map_err(|source| self.cannot_read("a log", source))
    }

    /// Returns how long all logs are together, in bytes.
    pub fn logs_size(&mut self) -> Result<u64, StateError> {
        let found = self.database.row("SELECT CAST(sum(size) AS BIGINT) FROM kiln_logs", &[]);
        let found = found.and_then(|row| row.filter(|row| !row.is_null(0)).map_or(Ok(0), |row| row.int(0)));
        found.map(i64::unsigned_abs).map_err(|source| self.cannot_read("the logs", source))
    }
}

/// Adds to a log: parts, or what these have more of one that is there.
pub(super) fn insert(
    transaction: &mut dyn Queries,
    job: JobKey,
    start: u64,
    bytes: &[u8],
) -> Result<Applied, DatabaseError> {
    let query = "INSERT INTO kiln_logs (job, start, size, bytes) VALUES ($1, $2, $3, $4) ON CONFLICT (job, start) \
                 DO UPDATE SET size = excluded.size, bytes = excluded.bytes WHERE kiln_logs.size < excluded.size";
    let mut applied = Applied::Nothing;
    for (start, part) in (start..).step_by(PART as usize).zip(bytes.chunks(PART as usize)) {
        let size = i64::try_from(part.len()).unwrap_or(i64::MAX);
        let parameters =
            [Parameter::Blob(&job.0), Parameter::Int(signed(start)), Parameter::Int(size), Parameter::Blob(part)];
        if let Applied::Changed = execute(transaction, query, &parameters)? {
            applied = Applied::Changed;
        }
    }
    Ok(applied)
}
