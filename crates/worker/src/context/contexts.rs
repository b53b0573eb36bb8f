//! The directory of clones, and the contexts made out of it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bstr::BString;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::ContextError;
use super::checkout::Filler;
use super::clone::Clone;
use super::error::At;
use super::git::Git;
use super::repository::{Commit, Ids, Repository};
use crate::command::Environment;
use kiln_api::JobLog;

/// How sources are fetched.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What git gets of the worker's environment: `PATH`, proxies. Variables that configure git are left out.
    pub environment: Environment,
    /// Lets `file://` URLs in. Whoever may submit jobs can read every repository of this machine then.
    pub files: bool,
    /// A fetch that says nothing for so long is given up. Git reports its progress every second, but checks silently what it got.
    pub patience: Duration,
}

impl Default for Settings {
    /// Nothing of the environment but a usual `PATH`, no `file://`, ten minutes.
    fn default() -> Self {
        let environment = vec![("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())];
        Self { environment, files: false, patience: Duration::from_secs(600) }
    }
}

/// A directory of clones.
#[derive(Debug)]
pub struct Contexts {
    pub(super) directory: PathBuf,
    pub(super) git: Git,
    files: bool,
    /// Those that were used since the start, by the name of their directory. One that somebody uses has more owners than this.
    clones: Mutex<HashMap<String, Arc<Clone>>>,
}

impl Contexts {
    /// Opens `directory`, which is made if it is not there, and removes what a crash left in it.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub fn open(directory: &Path, settings: &Settings) -> Result<Self, ContextError> {
        fs::create_dir_all(directory).at("make", directory)?;
        // Git does not run where we are, so it needs whole paths.
        let directory = directory.canonicalize().at("find", directory)?;
        for left in ["contexts", "trash"] {
            let left = directory.join(left);
            match fs::remove_dir_all(&left) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.at("remove", left)?,
            }
        }
        for part in ["clones", "contexts", "trash"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).at("make", part)?;
        }
        let git = Git::new(&settings.environment, settings.files, settings.patience);
        Ok(Self { directory, git, files: settings.files, clones: Mutex::default() })
    }

    /// Returns a directory with the first of `commits` of `repository` checked out and the others merged into it, submodules
    /// included; with `include_git` there is `.git` too, with the branches and tags of the remote. Without commits it is empty.
    ///
    /// What git says goes to `log`.
    ///
    /// # Errors
    ///
    /// [`ContextError`]. Nothing is left behind but what was fetched.
    pub async fn fetch(
        &self,
        repository: &[u8],
        commits: &[BString],
        include_git: bool,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<Context, ContextError> {
        let contexts = self.directory.join("contexts");
        let directory = tempfile::tempdir_in(&contexts).at("make a directory in", contexts)?;
        let source = directory.path().join("source");
        fs::create_dir(&source).at("make", &source)?;
        let context = Context { directory, source };
        if !commits.is_empty() {
            let repository = Repository::parse(repository, self.files)?;
            let commits = Commit::parse_all(commits)?;
            let filler = Filler::new(self, context.directory.path(), include_git, log, cancel);
            if let Err(error) = filler.fill(&repository, &commits, &context.source).await {
                context.remove().await?;
                return Err(error);
            }
        }
        Ok(context)
    }

    /// Returns the clone of `repository`, which is not removed as long as somebody has it.
    pub(super) fn clone_of(&self, repository: &Repository, ids: Ids) -> Arc<Clone> {
        let name = repository.directory_name(ids);
        let directory = self.directory.join("clones").join(&name);
        let trash = self.directory.join("trash");
        let mut clones = self.clones();
        let made = clones
            .entry(name)
            .or_insert_with(|| Arc::new(Clone::new(self.git.clone(), repository.clone(), ids, directory, trash)));
        Arc::clone(made)
    }

    pub(super) fn clones(&self) -> MutexGuard<'_, HashMap<String, Arc<Clone>>> {
        self.clones.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sources of one job, in a directory that is gone with this value.
#[derive(Debug)]
pub struct Context {
    directory: TempDir,
    source: PathBuf,
}

impl Context {
    /// Returns the directory. Nothing but the job writes in it.
    pub fn path(&self) -> &Path {
        &self.source
    }

    /// Removes it without holding up others, which dropping would with a large tree.
    ///
    /// # Errors
    ///
    /// Something cannot be removed.
    pub async fn remove(self) -> Result<(), ContextError> {
        remove(self.directory.keep()).await
    }
}

/// Removes a directory on a thread that may wait.
pub(super) async fn remove(directory: PathBuf) -> Result<(), ContextError> {
    let path = directory.clone();
    let removed = tokio::task::spawn_blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    });
    removed.await.map_err(io::Error::from).and_then(|removed| removed).at("remove", directory)
}

/// Returns a path in `directory` that nothing has yet.
pub(super) fn unique(directory: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    directory.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}
