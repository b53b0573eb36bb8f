//! The logs of jobs, which outlive workers, and those of kept jobs the scheduler.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use kiln_api::{JobKey, JobLog};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use super::keeper::Keeper;
use crate::state::{State, StateError};

/// Why the logs of an earlier scheduler are not here.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A directory of logs: those of kept jobs have the job's id as name, others none.
#[derive(Clone)]
pub(super) struct Logs {
    directory: PathBuf,
    /// The same. It stays open: an error of its filesystem is told once for each that is.
    opened: Arc<fs::File>,
    /// How long one may be, in bytes.
    limit: u64,
    /// Locked by who makes a copy.
    fetching: Arc<tokio::sync::Mutex<()>>,
    /// Where the logs of kept jobs are, if other schedulers go on with them. Then these here are copies.
    archive: Option<Keeper>,
}

/// How many logs are flushed each by itself.
const ONE_BY_ONE: usize = 8;

impl Logs {
    /// Makes the directory if there is none.
    pub(super) fn new(directory: PathBuf, limit: u64) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        // What jobs print is for their clients.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let opened = Arc::new(fs::File::open(&directory)?);
        // A scheduler that died while it made a copy left that: nobody else is here.
        for entry in fs::read_dir(&directory)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { directory, opened, limit, fetching: Arc::default(), archive: None })
    }

    /// Has logs that are not here looked for in the database, if that is shared.
    pub(super) fn with_archive(self, keeper: &Keeper) -> Self {
        Self { archive: keeper.is_shared().then(|| keeper.clone()), ..self }
    }

    /// Makes copies of what a shared database has of these logs, and removes all others. Blocks.
    pub(super) fn restore(&self, state: &mut State, jobs: &[JobKey]) -> Result<(), RestoreError> {
        self.remove(&self.all()?);
        for &job in jobs {
            let mut file = NamedTempFile::new_in(&self.directory)?;
            let mut length = 0;
            loop {
                let parts = state.log_parts(job, length)?;
                if parts.is_empty() {
                    break;
                }
                length += append(&mut file, &parts)?;
            }
            file.persist(self.of(job)).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Returns the log to which a job's workers add. Blocks.
    pub(super) fn open(&self, kept: Option<JobKey>) -> io::Result<JobLog> {
        match kept {
            Some(key) => JobLog::open(&self.of(key), self.limit),
            None => JobLog::new(&self.directory, self.limit),
        }
    }

    /// Returns the log of a kept job that has ended; nothing if there is none.
    pub(super) async fn complete(&self, key: JobKey) -> Option<JobLog> {
        let path = self.of(key);
        let here = spawn_blocking(move || JobLog::complete(&path)).await.ok()?;
        match (here, &self.archive) {
            (Err(error), Some(keeper)) if error.kind() == io::ErrorKind::NotFound => {
                let fetched = self.fetch(keeper, key).await;
                let is_none = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
                fetched
                    .inspect_err(|error| {
                        if !is_none(error) {
                            tracing::warn!(job = %key, %error, "cannot copy a log");
                        }
                    })
                    .ok()
            }
            (here, _) => here.ok(),
        }
    }

    /// Makes a copy of the log of a kept job that has ended. One at a time: they may be long, and whoever asks may ask often.
    async fn fetch(&self, keeper: &Keeper, key: JobKey) -> io::Result<JobLog> {
        let _turn = self.fetching.lock().await;
        let path = self.of(key);
        let here = path.clone();
        if let Ok(log) = spawn_blocking(move || JobLog::complete(&here)).await? {
            return Ok(log);
        }
        let (directory, mut length) = (self.directory.clone(), 0);
        let mut file = spawn_blocking(move || NamedTempFile::new_in(directory)).await??;
        loop {
            let parts = keeper.log_parts(key, length).await.map_err(io::Error::other)?;
            if parts.is_empty() {
                break;
            }
            let added;
            (file, added) = spawn_blocking(move || append(&mut file, &parts).map(|added| (file, added))).await??;
            length += added;
        }
        if length == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        spawn_blocking(move || {
            file.persist(&path)?;
            JobLog::complete(&path)
        })
        .await?
    }

    /// Waits until these logs survive the machine, and their names. Blocks.
    pub(super) fn sync(&self, logs: &[JobLog]) -> io::Result<()> {
        if logs.len() > ONE_BY_ONE {
            // Each flush takes a few milliseconds, also of a log of one line: a disk has no time for hundreds in a second. What others have
            // written to its filesystem is flushed too, and they would have waited for that in turn.
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

/// Returns how much of the disk a file takes, in bytes. A short one takes a block; what is not written yet has none.
fn on_disk(file: &fs::Metadata) -> u64 {
    file.len().max(file.blocks() * 512)
}

/// Adds parts to a file. Returns how long they are together.
fn append(file: &mut NamedTempFile, parts: &[Vec<u8>]) -> io::Result<u64> {
    parts.iter().try_for_each(|part| file.write_all(part))?;
    Ok(parts.iter().map(|part| part.len() as u64).sum())
}
