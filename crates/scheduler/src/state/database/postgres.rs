//! PostgreSQL: one database for several schedulers, of which the one with the [lease](crate::state::lease) writes.

mod server;
mod types;

use std::collections::HashMap;

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use super::sqlite::Flush;
use super::{Changes, Database, DatabaseError, Parameter, Queries, Row, migrate};
pub use server::{PostgresServer, ServerError};

/// How often something is tried of which each time the connection is lost: it may be what it is that ends it.
const TRIES: u32 = 5;

/// How long to wait before connecting again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// What shows that we may write.
#[derive(Debug, Clone)]
pub(in crate::state) struct Fence {
    /// The number of our lease. Each has a higher one.
    pub(in crate::state) epoch: i64,
    /// Cancelled when it is known that we have lost it; also by whoever finds it out here.
    pub(in crate::state) lost: CancellationToken,
}

/// A connection that is made again when it is lost, for as long as we may write.
///
/// A server that restarts, or is replaced by its own stand-by, is waited for: callers are told of nothing but of the lease's
/// loss.
pub(in crate::state) struct Postgres {
    server: PostgresServer,
    runtime: Runtime,
    session: Option<Session>,
    fence: Fence,
}

impl Postgres {
    /// Connects, and brings the database up to date. Blocks; not to be called by a task.
    pub(in crate::state) fn open(server: PostgresServer, fence: Fence) -> Result<Self, DatabaseError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| DatabaseError::Strange(format!("no event loop: {error}")))?;
        let mut database = Self { server, runtime, session: None, fence };
        let mut missing = Vec::new();
        database.transact(true, &mut |transaction| {
            missing = migrate(transaction, |migration| migration.postgres)?;
            for statement in missing.iter().flat_map(|step| step.split_inclusive(';')) {
                transaction.execute(statement, &[])?;
            }
            Ok(())
        })?;
        Ok(database)
    }

    /// Does `act` with a connection, again if that is lost. Returns [`DatabaseError::Deposed`] once the lease is.
    fn with<T>(
        &mut self,
        mut act: impl FnMut(&mut Connected<'_>) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let mut tries = 0;
        loop {
            let session = match &mut self.session {
                Some(session) => session,
                none => none.insert(connect(&self.runtime, &self.server, &self.fence.lost)?),
            };
            let mut connected = Connected { runtime: &self.runtime, session, lost: &self.fence.lost };
            match act(&mut connected) {
                Err(DatabaseError::Postgres(error)) if is_lost(&error) => {
                    self.session = None;
                    tries += 1;
                    if tries == TRIES {
                        return Err(error.into());
                    }
                    tracing::warn!(error = &error as &dyn std::error::Error, server = %self.server, "connecting again");
                    let pause = async { self.fence.lost.run_until_cancelled(tokio::time::sleep(PAUSE)).await };
                    self.runtime.block_on(pause).ok_or(DatabaseError::Deposed)?;
                }
                Err(DatabaseError::Deposed) => {
                    self.fence.lost.cancel();
                    return Err(DatabaseError::Deposed);
                }
                done => return done,
            }
        }
    }
}

impl Database for Postgres {
    /// With `through` or without, what the server promises of a commit holds: whoever takes over finds it.
    fn transact(&mut self, _: bool, changes: Changes<'_>) -> Result<(), DatabaseError> {
        let epoch = self.fence.epoch;
        // A transaction of which it is not known whether it was committed.
        let mut unknown = None;
        self.with(|connected| {
            if let Some(number) = unknown {
                if connected.has_committed(number)? {
                    return Ok(());
                }
                unknown = None;
            }
            connected.batch("BEGIN")?;
            match connected.fenced(epoch).and_then(|number| changes(connected).map(|()| number)) {
                Ok(number) => {
                    unknown = Some(number);
                    connected.batch("COMMIT")
                }
                Err(error) => {
                    // It goes with the connection otherwise.
                    let _ = connected.batch("ROLLBACK");
                    Err(error)
                }
            }
        })
    }

    fn flusher(&self) -> Result<Option<Flush>, DatabaseError> {
        Ok(None)
    }

    fn is_shared(&self) -> bool {
        true
    }
}

impl Queries for Postgres {
    fn rows(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, DatabaseError> {
        self.fenced(|connected| connected.rows(query, parameters))
    }

    fn execute(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<u64, DatabaseError> {
        self.fenced(|connected| connected.execute(query, parameters))
    }
}

impl Postgres {
    /// Does `act` in a transaction, if the lease is ours. This holds for what only reads, too: what is not there, or is not so
    /// any more, is said by who serves.
    fn fenced<T>(
        &mut self,
        mut act: impl FnMut(&mut dyn Queries) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let mut answer = None;
        self.transact(false, &mut |queries| {
            answer = Some(act(queries)?);
            Ok(())
        })?;
        answer.ok_or(DatabaseError::Silent)
    }
}

/// A connection with the statements that were prepared on it.
struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

/// Connects, for as long as the lease is not lost.
fn connect(runtime: &Runtime, server: &PostgresServer, lost: &CancellationToken) -> Result<Session, DatabaseError> {
    let connecting = async {
        loop {
            match server.connect().await {
                Ok(client) => return client,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, %server, "cannot connect");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    let client = runtime.block_on(lost.run_until_cancelled(connecting)).ok_or(DatabaseError::Deposed)?;
    Ok(Session { client, statements: HashMap::new() })
}

/// A session that is used by a thread that waits for it.
struct Connected<'a> {
    runtime: &'a Runtime,
    session: &'a mut Session,
    lost: &'a CancellationToken,
}

impl Connected<'_> {
    /// Waits for an answer, for as long as the lease is not lost.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, DatabaseError> {
        let answered = self.runtime.block_on(self.lost.run_until_cancelled(answer));
        Ok(answered.ok_or(DatabaseError::Deposed)??)
    }

    fn batch(&self, statements: &str) -> Result<(), DatabaseError> {
        self.wait(self.session.client.batch_execute(statements))
    }

    /// Returns the number of the transaction, in which nobody can take over from now on; if somebody has, that is the error.
    fn fenced(&mut self, epoch: i64) -> Result<i64, DatabaseError> {
        // Taking over changes the key and waits for this lock; renewing a lease does not:
        // <https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS>.
        let ours = "SELECT txid_current() FROM kiln_lease WHERE epoch = $1 FOR KEY SHARE";
        self.row(ours, &[Parameter::Int(epoch)])?.ok_or(DatabaseError::Deposed)?.int(0)
    }

    /// Returns whether a transaction was committed whose connection was lost.
    fn has_committed(&mut self, number: i64) -> Result<bool, DatabaseError> {
        loop {
            let status = match self.row("SELECT txid_status($1)", &[Parameter::Int(number)]) {
                // A server that has taken over from the one that was asked, and had not heard of it.
                Err(DatabaseError::Postgres(error)) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
                    return Ok(false);
                }
                status => status?,
            };
            match status.filter(|row| !row.is_null(0)).map(|row| row.name(0)).transpose()? {
                // The server has not noticed yet.
                Some(status) if status == "in progress" => {
                    self.wait(async {
                        tokio::time::sleep(PAUSE).await;
                        Ok(())
                    })?;
                }
                Some(status) => return Ok(status == "committed"),
                None => return Ok(false),
            }
        }
    }

    fn prepared(&mut self, query: &str) -> Result<Statement, DatabaseError> {
        if let Some(statement) = self.session.statements.get(query) {
            return Ok(statement.clone());
        }
        let statement = self.wait(self.session.client.prepare(query))?;
        self.session.statements.insert(query.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Queries for Connected<'_> {
    fn rows(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, DatabaseError> {
        let statement = self.prepared(query)?;
        let rows = self.wait(self.session.client.query(&statement, &parameters_of(parameters)))?;
        rows.iter().map(types::row).collect()
    }

    fn execute(&mut self, query: &str, parameters: &[Parameter<'_>]) -> Result<u64, DatabaseError> {
        let statement = self.prepared(query)?;
        self.wait(self.session.client.execute(&statement, &parameters_of(parameters)))
    }
}

fn parameters_of<'a>(parameters: &'a [Parameter<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| parameter as &(dyn ToSql + Sync)).collect()
}

/// Returns whether it is the connection that failed. The server says so, too, when it ends one.
pub(in crate::state) fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // What is not of the server is of the connection, or of what was to be sent through it.
        None => {
            error.is_closed() || std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
        }
        Some(code) => {
            [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                // A server that has become, or is, another's stand-by.
                SqlState::READ_ONLY_SQL_TRANSACTION,
            ]
            .contains(code)
        }
    }
}
