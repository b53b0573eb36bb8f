//! The logs of jobs, which outlive workers, and those of kept jobs the scheduler.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use kiln_api::{JobKey, JobLog};

/// A directory of logs: those of kept jobs have the job's id as name, others none.
#[derive(Clone, Debug)]
pub(super) struct Logs {
    directory: PathBuf,
    /// The same. It stays open: an error of its filesystem is told once for each that is.
    opened: Arc<fs::File>,
    /// How long one may be, in bytes.
    limit: u64,
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
        Ok(Self { directory, opened, limit })
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
