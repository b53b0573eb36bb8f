//! The logs of jobs, which outlive workers, and those of kept jobs the scheduler.

use std::collections::HashSet;
use std::path::PathBuf;
use std::{fs, io};

use kiln_api::{JobKey, JobLog};

/// A directory of logs: those of kept jobs have the job's id as name, others none.
#[derive(Clone, Debug)]
pub(super) struct Logs {
    directory: PathBuf,
    /// How long one may be, in bytes.
    limit: u64,
}

impl Logs {
    /// Makes the directory if there is none.
    pub(super) fn new(directory: PathBuf, limit: u64) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        // What jobs print is for their clients.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory, limit })
    }

    /// Returns the log to which a job's workers add. Blocks.
    pub(super) fn open(&self, kept: Option<JobKey>) -> io::Result<JobLog> {
        match kept {
            Some(key) => JobLog::open(&self.of(key), self.limit),
            None => JobLog::new(&self.directory, self.limit),
        }
    }

    /// Returns the log of a kept job that has ended; nothing if there is none.
    pub(super) fn complete(&self, key: JobKey) -> Option<JobLog> {
        JobLog::complete(&self.of(key)).ok()
    }

    /// Waits until these logs survive the machine, and their names. Blocks.
    pub(super) fn sync(&self, logs: &[JobLog]) -> io::Result<()> {
        logs.iter().try_for_each(JobLog::sync)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Returns how long the logs of kept jobs are together, in bytes. Blocks.
    pub(super) fn size(&self) -> u64 {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
    }

    /// Removes a kept job's log. Whoever reads it reads on. Blocks.
    pub(super) fn remove(&self, key: JobKey) {
        match fs::remove_file(self.of(key)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(job = %key, %error, "cannot remove a log"),
        }
    }

    /// Returns whose logs there are. Blocks.
    pub(super) fn all(&self) -> io::Result<HashSet<JobKey>> {
        let mut keys = HashSet::new();
        for entry in fs::read_dir(&self.directory)? {
            keys.extend(entry?.file_name().to_str().and_then(|name| name.parse::<JobKey>().ok()));
        }
        Ok(keys)
    }

    fn of(&self, key: JobKey) -> PathBuf {
        self.directory.join(key.to_string())
    }
}
