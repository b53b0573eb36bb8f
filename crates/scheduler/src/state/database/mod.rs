//! Two engines behind one language: SQLite, and PostgreSQL.
//!
//! Queries are written in what both understand, with parameters `$1`, `$2`, … in the order in which they first appear. What the
//! engines do not share is in their own files: how they are opened, how they commit, and the [migrations](Migration).

pub(super) mod postgres;
pub(super) mod sqlite;

use bstr::BString;
use thiserror::Error;

/// Why a database does not do what it was asked to.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// SQLite says so.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The disk is full or broken.
    #[error(transparent)]
    Disk(#[from] std::io::Error),
    /// PostgreSQL says so, or is not reached.
    #[error("{}", said(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// PostgreSQL does not answer.
    #[error("the database does not answer")]
    Silent,
    /// Another scheduler has taken over: nothing was written, and nothing will be.
    #[error("another scheduler has taken over")]
    Deposed,
    /// It holds what no scheduler wrote.
    #[error("there is {0}")]
    Strange(String),
    /// A later version of Kiln made it.
    #[error(
        "it has schema {found}, and this version of kiln knows {known}; use the version that made it, or a later one"
    )]
    Newer {
        /// Its version.
        found: i64,
        /// The latest that is known.
        known: i64,
    },
}

/// Returns what PostgreSQL says, which the error's own text leaves to its source.
fn said(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(said), _) => said.message().to_owned(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// What a query is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Parameter<'a> {
    Int(i64),
    Real(f64),
    Blob(&'a [u8]),
    Null,
    /// A name, which need not be UTF-8: OCluster stores any bytes as SQLite's text, and there text equals no blob.
    Text(&'a [u8]),
}

impl<'a> Parameter<'a> {
    pub(super) fn text(text: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self::Text(text.as_ref())
    }
}

/// What a query returns.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Real(f64),
    /// Also text.
    Bytes(Vec<u8>),
}

/// A row of what a query returns.
#[derive(Debug)]
pub(super) struct Row(Vec<Value>);

impl Row {
    pub(super) fn values(&self) -> &[Value] {
        &self.0
    }

    pub(super) fn is_null(&self, column: usize) -> bool {
        matches!(self.0.get(column), Some(Value::Null))
    }

    pub(super) fn int(&self, column: usize) -> Result<i64, DatabaseError> {
        match self.0.get(column) {
            Some(Value::Int(number)) => Ok(*number),
            other => Err(self.strange(column, "a number", other)),
        }
    }

    pub(super) fn real(&self, column: usize) -> Result<f64, DatabaseError> {
        match self.0.get(column) {
            Some(Value::Real(number)) => Ok(*number),
            // SQLite's columns take either.
            #[expect(clippy::cast_precision_loss, reason = "rates are small")]
            Some(Value::Int(number)) => Ok(*number as f64),
            other => Err(self.strange(column, "a number", other)),
        }
    }

    pub(super) fn bytes(&self, column: usize) -> Result<&[u8], DatabaseError> {
        match self.0.get(column) {
            Some(Value::Bytes(bytes)) => Ok(bytes),
            other => Err(self.strange(column, "text", other)),
        }
    }

    pub(super) fn name(&self, column: usize) -> Result<BString, DatabaseError> {
        self.bytes(column).map(BString::from)
    }

    fn strange(&self, column: usize, wanted: &str, found: Option<&Value>) -> DatabaseError {
        let found = match found {
            None => "nothing",
            Some(Value::Null) => "null",
            Some(Value::Int(_) | Value::Real(_)) => "a number",
            Some(Value::Bytes(_)) => "text",
        };
        DatabaseError::Strange(format!("{found} in column {column} instead of {wanted}"))
    }
}

/// What can be asked and changed.
pub(super) trait Queries {
    fn rows(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, DatabaseError>;

    /// Returns how many rows it changed.
    fn execute(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<u64, DatabaseError>;

    fn row(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Option<Row>, DatabaseError> {
        Ok(self.rows(query, parameters)?.into_iter().next())
    }
}

/// Changes that are made together or not at all. They may be made twice if the first time came to nothing.
pub(super) type Changes<'a> = &'a mut dyn FnMut(&mut dyn Queries) -> Result<(), DatabaseError>;

/// An open database. Its methods wait for it.
pub(super) trait Database: Queries + Send {
    /// Makes changes. They survive the end of this process; with `through` they and all before them survive the machine's too.
    fn transact(&mut self, through: bool, changes: Changes<'_>) -> Result<(), DatabaseError>;

    /// Returns who has what was changed survive the machine, unless it does anyway.
    fn flusher(&self) -> Result<Option<sqlite::Flush>, DatabaseError>;

    /// Returns whether other schedulers on other machines work on it in turn: then it is the only thing that they share.
    fn is_shared(&self) -> bool;
}

/// One step from what an earlier version made to what this one knows.
struct Migration {
    sqlite: &'static str,
    postgres: &'static str,
}

/// All of them, the oldest first. `kiln_schema` says how many a database has had. One that was released is not changed: another
/// is added.
///
/// SQLite's first leaves alone what is there, which may be OCluster's. PostgreSQL has no text of any bytes, so names are
/// `BYTEA` there. Hints are found by age and then by `rowid`, which every table of SQLite has.
const MIGRATIONS: &[Migration] = &[
    Migration {
        sqlite: "
    CREATE TABLE IF NOT EXISTS sturdy_refs (
        hash BLOB NOT NULL, type TEXT NOT NULL, args BLOB NOT NULL, created DATETIME NOT NULL, PRIMARY KEY (hash));
    CREATE INDEX IF NOT EXISTS sturdy_refs_rev ON sturdy_refs (type, args);
    CREATE TABLE IF NOT EXISTS cached (
        pool TEXT NOT NULL, cache_hint TEXT NOT NULL, worker TEXT NOT NULL, created DATETIME NOT NULL,
        PRIMARY KEY (pool, cache_hint, worker));
    CREATE TABLE IF NOT EXISTS pool_user_rate (
        pool TEXT NOT NULL, user TEXT NOT NULL, rate REAL NOT NULL, PRIMARY KEY (pool, user));
    CREATE TABLE IF NOT EXISTS workers (
        pool TEXT NOT NULL, id TEXT NOT NULL, paused BOOLEAN DEFAULT 0, PRIMARY KEY (pool, id));
    CREATE TABLE IF NOT EXISTS kiln_jobs (
        number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, pool TEXT NOT NULL, client TEXT NOT NULL,
        urgent INTEGER NOT NULL, detached INTEGER NOT NULL, submitted INTEGER NOT NULL, description BLOB NOT NULL,
        secrets INTEGER NOT NULL, runs INTEGER NOT NULL, worker TEXT, log_start INTEGER NOT NULL, ended INTEGER,
        outcome INTEGER, output TEXT);
    CREATE INDEX IF NOT EXISTS kiln_jobs_client ON kiln_jobs (client, ended, number);
    CREATE INDEX IF NOT EXISTS kiln_jobs_ended ON kiln_jobs (ended);",
        postgres: "
    CREATE TABLE sturdy_refs (
        hash BYTEA PRIMARY KEY, type BYTEA NOT NULL, args BYTEA NOT NULL, created BYTEA NOT NULL);
    CREATE INDEX sturdy_refs_rev ON sturdy_refs (type, args);
    CREATE TABLE cached (
        rowid BIGINT GENERATED ALWAYS AS IDENTITY, pool BYTEA NOT NULL, cache_hint BYTEA NOT NULL, worker BYTEA NOT NULL,
        created BYTEA NOT NULL, PRIMARY KEY (pool, cache_hint, worker));
    CREATE INDEX cached_newest ON cached (pool, created, rowid);
    CREATE TABLE pool_user_rate (
        pool BYTEA NOT NULL, \"user\" BYTEA NOT NULL, rate DOUBLE PRECISION NOT NULL, PRIMARY KEY (pool, \"user\"));
    CREATE TABLE workers (
        pool BYTEA NOT NULL, id BYTEA NOT NULL, paused BIGINT, PRIMARY KEY (pool, id));
    CREATE TABLE kiln_jobs (
        number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id BYTEA NOT NULL UNIQUE, pool BYTEA NOT NULL,
        client BYTEA NOT NULL, urgent BIGINT NOT NULL, detached BIGINT NOT NULL, submitted BIGINT NOT NULL,
        description BYTEA NOT NULL, secrets BIGINT NOT NULL, runs BIGINT NOT NULL, worker BYTEA, log_start BIGINT NOT NULL,
        ended BIGINT, outcome BIGINT, output BYTEA);
    CREATE INDEX kiln_jobs_client ON kiln_jobs (client, ended, number);
    CREATE INDEX kiln_jobs_ended ON kiln_jobs (ended);
    CREATE TABLE kiln_logs (
        job BYTEA NOT NULL REFERENCES kiln_jobs (id) ON DELETE CASCADE, start BIGINT NOT NULL, size BIGINT NOT NULL,
        bytes BYTEA NOT NULL, PRIMARY KEY (job, start));",
    },
];

/// Returns the number of the newest schema that this version knows.
pub(super) fn newest_schema() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Brings a database up to what this version knows. The caller has a transaction, and keeps others out.
fn migrate(
    database: &mut dyn Queries,
    engine: fn(&Migration) -> &'static str,
) -> Result<Vec<&'static str>, DatabaseError> {
    database.execute("CREATE TABLE IF NOT EXISTS kiln_schema (version BIGINT NOT NULL)", &[])?;
    let found = database.row("SELECT max(version) FROM kiln_schema", &[])?;
    let found = found.filter(|row| !row.is_null(0)).map_or(Ok(0), |row| row.int(0))?;
    let known = newest_schema();
    if found > known {
        return Err(DatabaseError::Newer { found, known });
    }
    if found < known {
        database.execute("DELETE FROM kiln_schema", &[])?;
        database.execute("INSERT INTO kiln_schema (version) VALUES ($1)", &[Parameter::Int(known)])?;
    }
    let missing = MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0));
    Ok(missing.map(engine).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_another_kind_are_told() {
        let row = Row(vec![Value::Int(1), Value::Null, Value::Bytes(b"x".to_vec())]);
        assert_eq!(row.int(0).unwrap(), 1);
        assert_eq!(row.real(0).unwrap(), 1.0);
        assert!(row.is_null(1));
        assert_eq!(row.int(1).unwrap_err().to_string(), "there is null in column 1 instead of a number");
        assert_eq!(row.bytes(0).unwrap_err().to_string(), "there is a number in column 0 instead of text");
        assert_eq!(row.name(3).unwrap_err().to_string(), "there is nothing in column 3 instead of text");
    }
}
