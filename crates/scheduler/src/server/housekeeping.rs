//! What has ended is kept for a while, and then not.

use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::JobKey;
use tokio::task::spawn_blocking;

use super::jobs::now;
use super::keeper::Keeper;
use super::logs::Logs;
use super::scheduler::Keeping;
use crate::state::{Change, HINTS};

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(600);

/// How long a job is kept after its end though there is no room: its client may be about to come back, and would have it done again.
const RECENT: Duration = Duration::from_secs(3600);

/// How many jobs are looked at for each look at the size of all.
const AT_ONCE: u32 = 100;

/// Removes jobs that ended long ago, and the longest ended of more than there is room for, and hints of the pools that are of no use any more,
/// for ever.
pub(super) async fn keep_house(keeper: Keeper, logs: Logs, keeping: Rc<Keeping>, pools: Vec<BString>) {
    loop {
        for pool in &pools {
            // Clients choose them, and each that ran somewhere is a row.
            let prune = Change::PruneHints { pool: pool.clone(), most: HINTS };
            if let Err(error) = keeper.write(prune, false).await {
                warn(&error, "cannot forget old hints");
            }
        }
        tidy(&keeper, &logs, &keeping).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// Does it once.
async fn tidy(keeper: &Keeper, logs: &Logs, keeping: &Keeping) {
    let oldest = now().saturating_sub(i64::try_from(keeping.ended.as_secs()).unwrap_or(i64::MAX));
    loop {
        match keeper.ended_before(oldest, AT_ONCE).await {
            Ok(old) if old.is_empty() => break,
            Ok(old) => {
                if !forget(keeper, logs, old).await {
                    return;
                }
            }
            Err(error) => return warn(&error, JOBS),
        }
    }
    while size(keeper, logs).await > keeping.logs_size {
        let before = now().saturating_sub(i64::try_from(RECENT.as_secs()).unwrap_or(i64::MAX));
        match keeper.ended_before(before, AT_ONCE).await {
            // What is left is of jobs that run, or have just ended.
            Ok(oldest) if oldest.is_empty() => return,
            Ok(oldest) => {
                if !forget(keeper, logs, oldest).await {
                    return;
                }
            }
            Err(error) => return warn(&error, JOBS),
        }
    }
}

/// Forgets jobs that have ended. Returns whether that was possible.
async fn forget(keeper: &Keeper, logs: &Logs, jobs: Vec<JobKey>) -> bool {
    for job in jobs {
        if let Err(error) = keeper.write(Change::Forget { job }, false).await {
            warn(&error, JOBS);
            return false;
        }
        let logs = logs.clone();
        // One that stays is removed at the next start.
        let _ = spawn_blocking(move || logs.remove(job)).await;
    }
    true
}

/// Returns how long all logs are together, in bytes.
async fn size(keeper: &Keeper, logs: &Logs) -> u64 {
    if keeper.is_shared() {
        return keeper.logs_size().await.inspect_err(|error| warn(error, JOBS)).unwrap_or_default();
    }
    let logs = logs.clone();
    spawn_blocking(move || logs.size()).await.unwrap_or_default()
}

const JOBS: &str = "cannot forget jobs that ended";

fn warn(error: &(dyn std::error::Error + 'static), what: &str) {
    tracing::warn!(error, "{what}");
}
