//! What a worker does besides jobs: it looks whether it is well, and makes room.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::command::Command;
use crate::hands::Hands;
use crate::metrics::Metrics;
use kiln_api::JobLog;

/// How much of a program's output is kept, to say what is wrong.
const OUTPUT: u64 = 64 << 10;

/// How often to try again while something is wrong.
const RETRY: Duration = Duration::from_secs(30);

/// A program that says by its exit status whether the worker can work. While it cannot, no jobs are taken.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// The program.
    pub command: Command,
    /// How long from one check to the next.
    pub every: Duration,
}

/// When Docker's images are pruned.
#[derive(Debug, Clone, Copy)]
pub struct DockerPrune {
    /// When less than this is free, in percent of its disk.
    pub free_percent: f64,
    /// What is older than this goes.
    pub hours: u64,
    /// How often to look.
    pub every: Duration,
}

/// Which clones of repositories are kept.
#[derive(Debug, Clone, Copy)]
pub struct Clones {
    /// Those that were used within this time.
    pub unused: Duration,
    /// Of them, the latest used of so many bytes together.
    pub most_bytes: u64,
}

/// How often to look for clones that go.
const CLONES_EVERY: Duration = Duration::from_secs(3600);

/// Checks the worker's health for ever. What it finds is told to `healthy`.
pub(crate) async fn check(check: HealthCheck, logs: &Path, metrics: Arc<Metrics>, healthy: watch::Sender<bool>) {
    let cancel = CancellationToken::new();
    loop {
        let begun = Instant::now();
        let problem = match JobLog::new(logs, OUTPUT) {
            Err(error) => Some(format!("no file for its output: {error}")),
            Ok(log) => match check.command.run(&mut &log, &cancel).await {
                Ok(()) => None,
                Err(error) => Some(format!("{error}; it said: {}", said(&log).await)),
            },
        };
        metrics.health.observe(begun.elapsed().as_secs_f64());
        metrics.unhealthy.set(problem.is_some().into());
        let is_healthy = problem.is_none();
        let was_healthy = healthy.send_replace(is_healthy);
        match problem {
            Some(problem) => tracing::error!(problem, "this worker is not well, and takes no jobs"),
            None if !was_healthy => tracing::info!("this worker is well, and takes jobs"),
            None => {}
        }
        tokio::time::sleep(if is_healthy { check.every } else { RETRY.min(check.every) }).await;
    }
}

/// Makes room for Docker's images for ever. Jobs go on meanwhile.
pub(crate) async fn prune(prune: DockerPrune, hands: Arc<Hands>, logs: &Path, metrics: Arc<Metrics>) {
    let Some(docker) = &hands.docker else { return };
    let cancel = CancellationToken::new();
    loop {
        match JobLog::new(logs, OUTPUT) {
            Err(error) => tracing::warn!(%error, "cannot prune Docker's images: no file for its output"),
            Ok(log) => {
                let begun = Instant::now();
                match docker.prune(prune.free_percent, prune.hours, &log, &cancel).await {
                    Ok(false) => {}
                    Ok(true) => metrics.prune.observe(begun.elapsed().as_secs_f64()),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot prune Docker's images");
                    }
                }
            }
        }
        tokio::time::sleep(prune.every).await;
    }
}

/// Removes clones that nobody needs any more, for ever. Jobs go on meanwhile.
pub(crate) async fn prune_clones(keep: Clones, hands: Arc<Hands>) {
    loop {
        match hands.contexts.prune(keep.unused, keep.most_bytes).await {
            Ok(pruned) if pruned.clones > 0 => {
                tracing::info!(clones = pruned.clones, bytes = pruned.bytes, "clones were removed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove clones"),
        }
        tokio::time::sleep(CLONES_EVERY).await;
    }
}

/// Returns the end of a log, as one line.
async fn said(log: &JobLog) -> String {
    // What is there is there: there is no waiting.
    if log.end(b"").is_err() || log.length() == 0 {
        return "nothing".to_owned();
    }
    let (bytes, _) = log.read(-1000).await.unwrap_or_default();
    kiln_engine::one_line(&String::from_utf8_lossy(&bytes))
}
