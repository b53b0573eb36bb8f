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

/// How long a job is kept after its end though there is no room: its client may be about to come back, and would have it done
/// again.
const RECENT: Duration = Duration::from_secs(3600);

/// How many jobs are forgotten at once: others wait for the database meanwhile.
const AT_ONCE: u32 = 1000;

/// Removes jobs that ended long ago, and the longest ended of more than there is room for, and hints of the pools that are of
/// no use any more, for ever; and first the logs that an earlier scheduler left: copies, and of jobs that it had forgotten when
/// it died.
pub(super) async fn keep_house(keeper: Keeper, logs: Logs, keeping: Rc<Keeping>, pools: Vec<BString>) {
    remove_old(&logs).await;
    remove_strays(&keeper, &logs).await;
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
                if forget(keeper, logs, old).await.is_none() {
                    return;
                }
            }
            Err(error) => return warn(&error, JOBS),
        }
    }
    // There may be millions, so they are looked at once.
    let mut taken = size(keeper, logs).await;
    while taken > keeping.logs_size {
        let before = now().saturating_sub(i64::try_from(RECENT.as_secs()).unwrap_or(i64::MAX));
        match keeper.ended_before(before, AT_ONCE).await {
            // What is left is of jobs that run, or have just ended.
            Ok(oldest) if oldest.is_empty() => return,
            Ok(oldest) => match forget(keeper, logs, oldest).await {
                // What is here is not what a shared database has.
                Some(_) if keeper.is_shared() => taken = size(keeper, logs).await,
                Some(freed) => taken = taken.saturating_sub(freed),
                None => return,
            },
            Err(error) => return warn(&error, JOBS),
        }
    }
}

/// Forgets jobs that have ended. Returns how much of the disk their logs took, in bytes, if that was possible.
async fn forget(keeper: &Keeper, logs: &Logs, jobs: Vec<JobKey>) -> Option<u64> {
    // All are asked for before any is waited for, so that they are one change of the database.
    let written: Vec<_> = jobs.iter().map(|&job| keeper.write(Change::Forget { job }, false)).collect();
    if let Err(error) = futures::future::try_join_all(written).await {
        warn(&error, JOBS);
        return None;
    }
    Some(remove(logs, jobs).await)
}

/// Removes what an earlier turn of this scheduler copied.
async fn remove_old(logs: &Logs) {
    loop {
        let logs = logs.clone();
        match spawn_blocking(move || logs.remove_old(AT_ONCE as usize)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return,
            Ok(Err(error)) => return warn(&error, COPIES),
            Err(error) => return warn(&error, COPIES),
        }
    }
}

/// Removes logs of which no job is known any more.
async fn remove_strays(keeper: &Keeper, logs: &Logs) {
    let there = {
        let logs = logs.clone();
        spawn_blocking(move || logs.all()).await
    };
    let there = match there {
        Ok(Ok(there)) => there,
        Ok(Err(error)) => return warn(&error, JOBS),
        Err(error) => return warn(&error, JOBS),
    };
    // A job is in the database before its log is there, so these stay without one.
    for some in there.chunks(AT_ONCE as usize) {
        match keeper.unknown_jobs(some.to_vec()).await {
            Ok(strays) if strays.is_empty() => {}
            Ok(strays) => _ = remove(logs, strays).await,
            Err(error) => return warn(&error, JOBS),
        }
    }
}

/// Returns how much of the disk these logs took, in bytes, which are gone then. One that stays is removed after the next start.
async fn remove(logs: &Logs, jobs: Vec<JobKey>) -> u64 {
    let logs = logs.clone();
    spawn_blocking(move || logs.remove(&jobs)).await.unwrap_or_default()
}

/// Returns how much of the disk all logs take, in bytes.
async fn size(keeper: &Keeper, logs: &Logs) -> u64 {
    if keeper.is_shared() {
        return keeper.logs_size().await.inspect_err(|error| warn(error, JOBS)).unwrap_or_default();
    }
    let logs = logs.clone();
    spawn_blocking(move || logs.size()).await.unwrap_or_default()
}

const JOBS: &str = "cannot forget jobs that ended";
const COPIES: &str = "cannot remove copies of logs";

fn warn(error: &(dyn std::error::Error + 'static), what: &str) {
    tracing::warn!(error, "{what}");
}
