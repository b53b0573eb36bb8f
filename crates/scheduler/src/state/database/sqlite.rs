//! SQLite: one file, for one scheduler.

mod flush;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, TransactionBehavior, params_from_iter};

pub(in crate::state) use flush::Flush;

use super::{Changes, Database, DatabaseError, Parameter, Queries, Row, Value, migrate};

/// How long to wait for another program that uses the database: an administrator who looks into it.
const BUSY: Duration = Duration::from_secs(10);

/// An open file.
pub(in crate::state) struct Sqlite(Connection, PathBuf);

impl Sqlite {
    /// Opens the database at `path`, makes it if there is none, and brings it up to date.
    pub(in crate::state) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let connection = Connection::open_with_flags(path, OpenFlags::default())?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", flush::LOG_PAGES)?;
        let mut database = Self(connection, path.to_owned());
        let transaction = database.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in migrate(&mut &*transaction, |migration| migration.sqlite)? {
            transaction.execute_batch(step)?;
        }
        transaction.commit()?;
        Ok(database)
    }

    /// Shows the database at `path` as this version would have it, and leaves it as it is. Nobody writes to it meanwhile.
    pub(in crate::state) fn look(
        path: &Path,
        see: &mut dyn FnMut(&mut dyn Queries) -> Result<(), DatabaseError>,
    ) -> Result<(), DatabaseError> {
        let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in migrate(&mut &*transaction, |migration| migration.sqlite)? {
            transaction.execute_batch(step)?;
        }
        see(&mut &*transaction)?;
        Ok(transaction.rollback()?)
    }

    fn synchronous(&self, how: &str) -> rusqlite::Result<()> {
        // What SQLite waits for when it commits, in this journal mode: <https://sqlite.org/pragma.html#pragma_synchronous>.
        self.0.pragma_update(None, "synchronous", how)
    }
}

impl Database for Sqlite {
    fn transact(&mut self, through: bool, changes: Changes<'_>) -> Result<(), DatabaseError> {
        self.synchronous(if through { "FULL" } else { "NORMAL" })?;
        // Not begun as a reader: one that turns writer is refused, without waiting, if another wrote meanwhile.
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        changes(&mut &*transaction)?;
        Ok(transaction.commit()?)
    }

    fn flusher(&self) -> Result<Option<Flush>, DatabaseError> {
        Ok(Some(Flush::open(&self.1)?))
    }

    fn is_shared(&self) -> bool {
        false
    }
}

impl Queries for Sqlite {
    fn rows(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, DatabaseError> {
        Queries::rows(&mut &self.0, query, parameters)
    }

    fn execute(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<u64, DatabaseError> {
        Queries::execute(&mut &self.0, query, parameters)
    }
}

/// A connection, also as a transaction.
impl Queries for &Connection {
    fn rows(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, DatabaseError> {
        let mut statement = self.prepare_cached(query)?;
        let columns = statement.column_count();
        let read =
            |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get_ref(at).map(value)).collect::<Result<_, _>>();
        let rows = statement.query_map(params_from_iter(parameters), |row| read(row).map(Row))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn execute(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<u64, DatabaseError> {
        Ok(self.prepare_cached(query)?.execute(params_from_iter(parameters))? as u64)
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Parameter::Int(number) => ValueRef::Integer(*number),
            Parameter::Real(number) => ValueRef::Real(*number),
            Parameter::Blob(bytes) => ValueRef::Blob(bytes),
            Parameter::Null => ValueRef::Null,
            Parameter::Text(text) => ValueRef::Text(text),
        }))
    }
}
