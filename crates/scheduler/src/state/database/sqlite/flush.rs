//! What was written is made to survive the machine, beside the thread that writes.
//!
//! A disk that is busy takes a second for that, and nobody may have to wait so long for a job to be stored. So this has a
//! connection and file descriptors of its own: SQLite's log, where all commits go, may be flushed while more is appended to it
//! (<https://sqlite.org/wal.html>), and moved into the database too, as long as nobody is made to wait (`PASSIVE`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::DatabaseError;
use super::BUSY;

/// How long SQLite's log gets, in pages, until who commits moves it into the database. Before that, this has moved most of it.
/// Only at such a moment the log begins anew.
pub(super) const LOG_PAGES: u32 = 16_000;

/// Who flushes a database.
pub(in crate::state) struct Flush {
    path: PathBuf,
    /// SQLite's log.
    log: PathBuf,
    database: Connection,
    /// The log's name is on disk.
    is_named: bool,
}

impl Flush {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let database = Connection::open(path)?;
        database.busy_timeout(BUSY)?;
        // With that, SQLite flushes its log before, and the database after, it moves what is in it.
        database.pragma_update(None, "synchronous", "NORMAL")?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self { path: path.to_owned(), log: log.into(), database, is_named: false })
    }

    /// Waits until all that was committed before survives the machine.
    pub(in crate::state) fn flush(&mut self) -> io::Result<()> {
        match File::open(&self.log) {
            Ok(log) => log.sync_data()?,
            // All is in the database already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if !self.is_named {
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Moves what is in SQLite's log into the database, as far as nobody has to wait for it. If that fails, it stays in the log.
    pub(in crate::state) fn tidy(&self) -> Result<(), DatabaseError> {
        Ok(self.database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }
}

#[cfg(test)]
mod tests {
    use bstr::BString;

    use crate::state::{Change, State};

    #[test]
    fn what_is_flushed_and_moved_by_another_stays_readable_and_the_log_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::open(directory.path()).unwrap();
        let mut flusher = state.flusher().unwrap();
        let add = |number: u32| Change::AddClient { name: number.to_string().into(), id: number.to_be_bytes().into() };
        let log = || std::fs::metadata(directory.path().join("scheduler.db-wal")).map_or(0, |file| file.len());
        for number in 0..40 {
            state.apply(&[add(number)], false).unwrap();
            if number % 10 == 9 {
                flusher.flush().unwrap();
                flusher.tidy().unwrap();
            }
        }
        let long = log();
        // Everything was moved, so what comes now is written over it.
        state.apply(&[add(40)], false).unwrap();
        assert_eq!(log(), long);
        assert_eq!(state.find_client(&40_u32.to_be_bytes()).unwrap(), Some(BString::from("40")));
        drop((state, flusher));
        assert_eq!(State::open(directory.path()).unwrap().clients().unwrap().len(), 41);
    }
}
