//! The bare clone of one URL.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::error::At;
use super::git::{self, Failure, Git};
use super::repository::{Commit, Ids, Repository};
use super::{ContextError, contexts};
use crate::command::{Command, CommandError};
use kiln_api::JobLog;

/// With more packs than this, finding an object takes noticeably longer.
const MANY_PACKS: usize = 50;
/// In a clone: it has all references of the remote as of some fetch.
const ALL_REFERENCES: &str = "all-references";
/// In a clone: its modification time is when it was last used.
pub(super) const USED: &str = "used";
/// What git says when a server does not give single commits, but may have them.
const ONLY_BY_NAME: &[&str] =
    &["unadvertised object", "not advertised", "couldn't find remote ref", "allow request for"];
/// What it says when the server does not have one.
const UNKNOWN: &[&str] = &["not our ref"];

/// What did not work on a clone.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The clone is not whole. A new one may be.
    Damaged(Failure),
    /// What the job has to be told.
    Told(ContextError),
}

impl From<ContextError> for Trouble {
    fn from(error: ContextError) -> Self {
        Self::Told(error)
    }
}

/// What a job needs of a clone.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) commits: &'a [Commit],
    /// The branches and tags, too.
    pub(super) references: bool,
    pub(super) log: &'a JobLog,
    pub(super) cancel: &'a CancellationToken,
}

/// The bare clone of one URL, or where it will be.
#[derive(Debug)]
pub(super) struct Clone {
    git: Git,
    repository: Repository,
    ids: Ids,
    /// Its repository.
    pub(super) directory: PathBuf,
    trash: PathBuf,
    /// Held by the job that fetches. It is held while git runs: that is what it is for, and only who needs what is not there waits.
    fetching: Mutex<()>,
    /// Written by who repacks, which removes files that a reader may be copying.
    pub(super) packs: RwLock<()>,
    /// How often it was made anew.
    generation: AtomicU64,
}

impl Clone {
    pub(super) fn new(git: Git, repository: Repository, ids: Ids, directory: PathBuf, trash: PathBuf) -> Self {
        let (fetching, packs) = (Mutex::default(), RwLock::default());
        Self { git, repository, ids, directory, trash, fetching, packs, generation: AtomicU64::new(0) }
    }

    /// Returns how often it was made anew, for [`renew`](Self::renew).
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes sure that it has what is wanted: fetches what is missing, or waits for the job that does.
    pub(super) async fn ensure(&self, wanted: Wanted<'_>) -> Result<(), Trouble> {
        if self.missing(wanted).await?.is_empty() {
            return self.touch().map_err(Trouble::Told);
        }
        let _fetching = tokio::select! {
            fetching = self.fetching.lock() => fetching,
            () = wanted.cancel.cancelled() => return Err(ContextError::Cancelled.into()),
        };
        let missing = self.missing(wanted).await?;
        if !missing.is_empty() {
            self.make(wanted).await?;
            self.fetch(wanted, &missing).await?;
            self.repack_if_many(wanted).await;
        }
        self.touch().map_err(Trouble::Told)
    }

    /// Removes it, unless it was made anew since `generation`. The next who needs it fetches all again. Returns whether it did.
    pub(super) async fn renew(&self, generation: u64, log: &JobLog) -> Result<bool, ContextError> {
        let _fetching = self.fetching.lock().await;
        let ours = self.generation() == generation;
        if ours {
            let url = self.repository.url();
            log.append(format!("The worker's clone of {url} is damaged: cloning anew.\n").as_bytes())
                .at("write", "the log")?;
            let removed = contexts::unique(&self.trash);
            match fs::rename(&self.directory, &removed) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => moved.at("remove", &self.directory)?,
            }
            self.generation.fetch_add(1, Ordering::AcqRel);
            contexts::remove(removed).await?;
        }
        Ok(ours)
    }

    /// Tells a failure of git on this clone from damage.
    pub(super) fn trouble(&self, failure: Failure) -> Trouble {
        if failure.is_damage() {
            return Trouble::Damaged(failure);
        }
        Trouble::Told(self.told(failure.error))
    }

    /// Says of git's failure where it was.
    pub(super) fn told(&self, error: CommandError) -> ContextError {
        match error {
            CommandError::Cancelled => ContextError::Cancelled,
            source => ContextError::Clone { url: self.repository.url().to_owned(), source },
        }
    }

    /// Returns the commits that have to be fetched; all of them if it is the references that are missing.
    async fn missing(&self, wanted: Wanted<'_>) -> Result<Vec<Commit>, Trouble> {
        let here = self.directory.exists();
        if !here || (wanted.references && !self.directory.join(ALL_REFERENCES).exists()) {
            return Ok(wanted.commits.to_vec());
        }
        let asked: String = wanted.commits.iter().map(|commit| format!("{}^{{commit}}\n", commit.as_str())).collect();
        let command = self.git.at(&self.directory, "cat-file").arg("--batch-check").input(asked);
        let output = self.output(&command, wanted).await?;
        let lines = output.split(|&byte| byte == b'\n');
        Ok(wanted
            .commits
            .iter()
            .zip(lines)
            .filter(|(_, line)| line.ends_with(b" missing"))
            .map(|(commit, _)| commit.clone())
            .collect())
    }

    /// Makes the repository if there is none, and removes what a killed git left.
    async fn make(&self, wanted: Wanted<'_>) -> Result<(), Trouble> {
        if self.directory.exists() {
            tidy(&self.directory).at("tidy", &self.directory)?;
            return Ok(());
        }
        // It appears whole: others look at it without a lock.
        let made = contexts::unique(&self.trash);
        let init = self.git.init(self.ids.name()).arg("--bare").arg(git::path(&made));
        self.output(&init, wanted).await?;
        fs::rename(&made, &self.directory).at("make", &self.directory).map_err(Trouble::Told)
    }

    async fn fetch(&self, wanted: Wanted<'_>, missing: &[Commit]) -> Result<(), Trouble> {
        let url = self.repository.url();
        let all = wanted.references;
        let names = missing.iter().map(Commit::as_str).collect::<Vec<_>>().join(" ");
        wanted.log.append(format!("Fetching {names} from {url}\n").as_bytes()).at("write", "the log")?;
        let named = self.call().args(missing.iter().map(|commit| format!("+{0}:refs/kiln/{0}", commit.as_str())));
        let named = if all { named.arg("+refs/*:refs/remote/*") } else { named };
        match git::output(&named, wanted.log, wanted.cancel).await {
            Ok(_) if all => return self.note_references().map_err(Trouble::Told),
            Ok(_) => return Ok(()),
            Err(failure) if failure.is_damage() => return Err(Trouble::Damaged(failure)),
            Err(failure) if failure.says(UNKNOWN) => return Err(self.unknown(missing).into()),
            Err(failure) if failure.says(ONLY_BY_NAME) => {}
            Err(failure) => return Err(self.unfetched(failure.error).into()),
        }
        wanted.log.append(b"The server gives no single commits: fetching all that it has.\n").at("write", "the log")?;
        match git::output(&self.call().arg("+refs/*:refs/remote/*"), wanted.log, wanted.cancel).await {
            Ok(_) => self.note_references()?,
            Err(failure) if failure.is_damage() => return Err(Trouble::Damaged(failure)),
            Err(failure) => return Err(self.unfetched(failure.error).into()),
        }
        let still = self.missing(wanted).await?;
        if still.is_empty() { Ok(()) } else { Err(self.unknown(&still).into()) }
    }

    fn call(&self) -> Command {
        self.git
            .remote(&self.directory, "fetch", self.repository.login())
            .args(["--progress", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--prune"])
            .args(["--", self.repository.url()])
    }

    fn note_references(&self) -> Result<(), ContextError> {
        let note = self.directory.join(ALL_REFERENCES);
        File::create(&note).at("write", note).map(drop)
    }

    fn unknown(&self, missing: &[Commit]) -> ContextError {
        let commit = missing.iter().map(Commit::as_str).collect::<Vec<_>>().join(" or ");
        ContextError::NoCommit { url: self.repository.url().to_owned(), commit }
    }

    fn unfetched(&self, error: CommandError) -> ContextError {
        match error {
            CommandError::Cancelled => ContextError::Cancelled,
            source => ContextError::Fetch { url: self.repository.url().to_owned(), source },
        }
    }

    /// Joins packs by sizes that grow, if nobody copies them now. The job does not fail by it.
    async fn repack_if_many(&self, wanted: Wanted<'_>) {
        let packs = fs::read_dir(self.directory.join("objects/pack")).map_or(0, |entries| {
            entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "pack")).count()
        });
        if packs <= MANY_PACKS {
            return;
        }
        let Ok(_alone) = self.packs.try_write() else { return };
        let repack = self.git.at(&self.directory, "repack").args(["-d", "--quiet", "--geometric=2"]);
        let pack_references = self.git.at(&self.directory, "pack-refs").arg("--all");
        for command in [repack, pack_references] {
            if let Err(failure) = git::output(&command, wanted.log, wanted.cancel).await {
                tracing::warn!(url = self.repository.url(), error = %failure.error, "cannot repack a clone");
            }
        }
    }

    fn touch(&self) -> Result<(), ContextError> {
        let used = self.directory.join(USED);
        File::create(&used).and_then(|file| file.set_modified(SystemTime::now())).at("write", used)
    }

    async fn output(&self, command: &Command, wanted: Wanted<'_>) -> Result<Vec<u8>, Trouble> {
        git::output(command, wanted.log, wanted.cancel).await.map_err(|failure| self.trouble(failure))
    }
}

/// Removes locks and half-written files. The caller holds the only right to write to the clone.
fn tidy(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            tidy(&entry.path())?;
        } else if name.ends_with(".lock") || name.starts_with("tmp_") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
