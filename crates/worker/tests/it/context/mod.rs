//! The sources of jobs: real repositories, from real servers.

mod hostile;
mod origin;
mod shared;
mod sources;

use std::path::Path;

use kiln_api::JobLog;
use kiln_testkit::Need;
use kiln_worker::context::{Context, ContextError, Contexts, Settings};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const GIT: Need<'_> = Need::Tool("git", "git");

/// A worker's directory of clones, and a log.
struct Worker {
    state: TempDir,
    contexts: Contexts,
    log: JobLog,
    cancel: CancellationToken,
}

impl Worker {
    fn new() -> Self {
        Self::with(&Settings::default())
    }

    fn with(settings: &Settings) -> Self {
        let state = tempfile::tempdir().unwrap();
        let contexts = Contexts::open(state.path(), settings).unwrap();
        let log = JobLog::new(state.path(), 1 << 30).unwrap();
        Self { state, contexts, log, cancel: CancellationToken::new() }
    }

    async fn fetch(&self, url: &str, commits: &[&str]) -> Result<Context, ContextError> {
        self.fetch_as(url, commits, false).await
    }

    async fn fetch_as(&self, url: &str, commits: &[&str], include_git: bool) -> Result<Context, ContextError> {
        let commits: Vec<_> = commits.iter().map(|&commit| commit.into()).collect();
        self.contexts.fetch(url.as_bytes(), &commits, include_git, &self.log, &self.cancel).await
    }

    async fn error(&self, url: &str, commits: &[&str]) -> ContextError {
        self.fetch(url, commits).await.unwrap_err()
    }

    /// Returns the log so far.
    async fn log(&self) -> String {
        crate::text(&self.log).await
    }

    /// Returns the only clone.
    fn clone(&self) -> std::path::PathBuf {
        let clones: Vec<_> = self.clones();
        assert_eq!(clones.len(), 1, "{clones:?}");
        clones[0].clone()
    }

    fn clones(&self) -> Vec<std::path::PathBuf> {
        std::fs::read_dir(self.state.path().join("clones")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Whether nothing is left but clones.
    fn is_clean(&self) -> bool {
        ["contexts", "trash"].iter().all(|part| names(&self.state.path().join(part)).is_empty())
    }
}

/// Returns the names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(context: &Context, name: &str) -> String {
    std::fs::read_to_string(context.path().join(name)).unwrap()
}
