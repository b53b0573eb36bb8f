//! The logs of jobs, which outlive workers, and those of kept jobs the scheduler.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use kiln_api::{JobKey, JobLog};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use super::keeper::Keeper;
use crate::state::StateError;

/// Why a log cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the job was forgotten while its log was read")]
    Forgotten,
}

impl From<tokio::task::JoinError> for LogError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Io(error.into())
    }
}

/// A directory of logs: those of kept jobs have the job's id as name, others none.
#[derive(Clone)]
pub(super) struct Logs {
    directory: PathBuf,
    /// The same. It stays open: an error of its filesystem is told once for each that is.
    opened: Arc<fs::File>,
    /// How long one may be, in bytes.
    limit: u64,
    /// Locked by who copies the log of a job that has ended: these may be long, and whoever asks may ask often.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Taken by who copies the log of a job that goes on.
    reopening: Arc<tokio::sync::Semaphore>,
    /// Where the logs of kept jobs are, if other schedulers go on with them. Then these here are copies.
    archive: Option<Keeper>,
}

/// How many logs are flushed each by itself.
const ONE_BY_ONE: usize = 8;

/// How many logs of jobs that go on are copied at once: after a take-over all workers want theirs, and what is read of each is
/// in memory.
const REOPENED: usize = 4;

/// Where copies are, below the state directory.
pub(super) const COPIES: &str = "log-copies";

impl Logs {
    /// Makes the directory if there is none.
    pub(super) fn new(directory: PathBuf, limit: u64) -> io::Result<Self> {
        make(&directory)?;
        // A scheduler that died while it made a copy left that: nobody else is here.
        for entry in fs::read_dir(&directory)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
                fs::remove_file(entry.path())?;
            }
        }
        Self::within(directory, limit)
    }

    /// Begins a directory of copies below this one. What is there already was copied in an earlier turn, and others have gone
    /// on with those jobs since. It stays until [`remove_old`](Self::remove_old): there may be millions, and nobody is to wait
    /// for that.
    pub(super) fn of_a_turn(copies: &Path, limit: u64) -> io::Result<Self> {
        make(copies)?;
        Self::within(tempfile::Builder::new().prefix("turn-").tempdir_in(copies)?.keep(), limit)
    }

    fn within(directory: PathBuf, limit: u64) -> io::Result<Self> {
        let opened = Arc::new(fs::File::open(&directory)?);
        let reopening = Arc::new(tokio::sync::Semaphore::new(REOPENED));
        Ok(Self { directory, opened, limit, looking: Arc::default(), reopening, archive: None })
    }

    /// Has logs that are not here looked for in the database, if that is shared.
    pub(super) fn with_archive(self, keeper: &Keeper) -> Self {
        Self { archive: keeper.is_shared().then(|| keeper.clone()), ..self }
    }

    /// Removes what earlier turns copied, `most` files of it. Returns whether there may be more. Blocks.
    pub(super) fn remove_old(&self, mut most: usize) -> io::Result<bool> {
        let Some(copies) = self.archive.as_ref().and(self.directory.parent()) else { return Ok(false) };
        for turn in fs::read_dir(copies)? {
            let turn = turn?.path();
            if turn == self.directory {
                continue;
            }
            for file in fs::read_dir(&turn)? {
                if most == 0 {
                    return Ok(true);
                }
                fs::remove_file(file?.path())?;
                most -= 1;
            }
            fs::remove_dir(turn)?;
        }
        Ok(false)
    }

    /// Opens the log of a kept job that an earlier scheduler had begun, to go on with it. Nobody else may have it open.
    pub(super) async fn reopen(&self, key: JobKey) -> Result<JobLog, LogError> {
        let turn = match &self.archive {
            Some(keeper) => {
                let turn = self.reopening.acquire().await;
                let (copy, _) = self.copy(keeper, key).await?;
                self.place(copy, key).await?;
                Some(turn)
            }
            None => None,
        };
        let logs = self.clone();
        let opened = spawn_blocking(move || logs.open(Some(key))).await?;
        drop(turn);
        Ok(opened?)
    }

    /// Returns the log to which a job's workers add. Blocks.
    pub(super) fn open(&self, kept: Option<JobKey>) -> io::Result<JobLog> {
        match kept {
            // What others would not find has not been read by anybody.
            Some(key) if self.archive.is_some() => JobLog::open_held_back(&self.of(key), self.limit),
            Some(key) => JobLog::open(&self.of(key), self.limit),
            None => JobLog::new(&self.directory, self.limit),
        }
    }

    /// Returns the log of a kept job that has ended; nothing if it printed nothing.
    pub(super) async fn complete(&self, key: JobKey) -> Result<Option<JobLog>, LogError> {
        if let Some(here) = self.here(key).await? {
            return Ok(Some(here));
        }
        let Some(keeper) = &self.archive else { return Ok(None) };
        let _turn = self.looking.lock().await;
        if let Some(here) = self.here(key).await? {
            return Ok(Some(here));
        }
        let (copy, length) = self.copy(keeper, key).await?;
        if length == 0 {
            return Ok(None);
        }
        self.place(copy, key).await?;
        self.here(key).await
    }

    /// Returns the log of a kept job that has ended, if it is here.
    async fn here(&self, key: JobKey) -> Result<Option<JobLog>, LogError> {
        let path = self.of(key);
        match spawn_blocking(move || JobLog::complete(&path)).await? {
            Ok(log) => Ok(Some(log)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies what a shared database has of a log into a file that has no name yet. Returns it, and its length in bytes.
    async fn copy(&self, keeper: &Keeper, key: JobKey) -> Result<(NamedTempFile, u64), LogError> {
        let (directory, mut length) = (self.directory.clone(), 0);
        let mut file = spawn_blocking(move || NamedTempFile::new_in(directory)).await??;
        loop {
            let parts = keeper.log_parts(key, length).await?;
            if parts.is_empty() {
                // The log of a job that is forgotten meanwhile seems to end here.
                let is_known = keeper.unknown_jobs(vec![key]).await?.is_empty();
                return if is_known { Ok((file, length)) } else { Err(LogError::Forgotten) };
            }
            let added;
            (file, added) = spawn_blocking(move || append(&mut file, &parts).map(|added| (file, added))).await??;
            length += added;
        }
    }

    /// Gives a copy its name. One that is there stays: whoever wanted this one may have gone before it got its name, and the next one adds to
    /// that already.
    async fn place(&self, copy: NamedTempFile, key: JobKey) -> Result<(), LogError> {
        let path = self.of(key);
        match spawn_blocking(move || copy.persist_noclobber(path)).await? {
            Ok(_) => Ok(()),
            Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(refused) => Err(refused.error.into()),
        }
    }

    /// Waits until these logs survive the machine, and their names. Blocks.
    pub(super) fn sync(&self, logs: &[JobLog]) -> io::Result<()> {
        if logs.len() > ONE_BY_ONE {
            // Each flush takes a few milliseconds, also of a log of one line: a disk has no time for hundreds in a second. What
            // others have written to its filesystem is flushed too, and they would have waited for that in turn.
            return Ok(rustix::fs::syncfs(&*self.opened)?);
        }
        logs.iter().try_for_each(JobLog::sync)?;
        self.opened.sync_all()
    }

    /// Returns how much of the disk the logs of kept jobs take together, in bytes. Blocks.
    pub(super) fn size(&self) -> u64 {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| on_disk(&file)).sum()
    }

    /// Removes the logs of kept jobs. Whoever reads one reads on. Returns how much of the disk they took, in bytes. Blocks.
    pub(super) fn remove(&self, keys: &[JobKey]) -> u64 {
        let mut freed = 0;
        for key in keys {
            let path = self.of(*key);
            let size = path.metadata().map_or(0, |file| on_disk(&file));
            match fs::remove_file(path) {
                Ok(()) => freed += size,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(job = %key, %error, "cannot remove a log"),
            }
        }
        freed
    }

    /// Returns whose logs there are. Blocks.
    pub(super) fn all(&self) -> io::Result<Vec<JobKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            keys.extend(entry?.file_name().to_str().and_then(|name| name.parse::<JobKey>().ok()));
        }
        Ok(keys)
    }

    fn of(&self, key: JobKey) -> PathBuf {
        self.directory.join(key.to_string())
    }
}

/// Makes a directory of logs if there is none. What jobs print is for their clients.
fn make(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Returns how much of the disk a file takes, in bytes. A short one takes a block; what is not written yet has none.
fn on_disk(file: &fs::Metadata) -> u64 {
    file.len().max(file.blocks() * 512)
}

/// Adds parts to a file. Returns how long they are together.
fn append(file: &mut NamedTempFile, parts: &[Vec<u8>]) -> io::Result<u64> {
    parts.iter().try_for_each(|part| file.write_all(part))?;
    Ok(parts.iter().map(|part| part.len() as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_that_comes_late_does_not_replace_a_log_that_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned(), 1 << 20).unwrap();
        let key = JobKey::random();
        let copy = || {
            let mut copy = NamedTempFile::new_in(directory.path()).unwrap();
            copy.write_all(b"one\n").unwrap();
            copy
        };
        let late = copy();
        logs.place(copy(), key).await.unwrap();
        logs.open(Some(key)).unwrap().append(b"two\n").unwrap();
        logs.place(late, key).await.unwrap();
        assert_eq!(fs::read(logs.of(key)).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
