//! `kiln maintain`, which is not for people: `build` starts it by itself.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use kiln_store::Store;
use tokio::time::{Instant, interval_at};

use crate::args;
use crate::config::Policy;
use crate::exit::Failure;
use crate::settings::open_store;

/// How often a build that runs has its results marked as durable. With the time that the disk takes, a power cut costs the
/// work of the last half minute.
const EVERY: Duration = Duration::from_secs(20);

/// Marks the results as durable, then tidies up behind everyone else.
pub(super) fn run(arguments: &args::Maintain) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    store.mark_durable()?;
    super::step_back();
    store.maintain(&arguments.limits.policy().limits(&store)?, SystemTime::now())?;
    Ok(())
}

/// Starts a maintainer now and then, while there is something to mark.
pub(super) async fn now_and_then(store: &Store, policy: &Policy) -> Infallible {
    let mut running: Vec<Child> = Vec::new();
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    loop {
        ticks.tick().await;
        running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        // One may be pruning for long, and another waiting for the disk.
        if running.len() < 2 {
            running.extend(start(store, policy));
        }
    }
}

/// Starts a maintainer, if there is something to mark: this process need not wait for the disk.
pub(super) fn start(store: &Store, policy: &Policy) -> Option<Child> {
    if !store.hand_over_marking() {
        return None;
    }
    let started = Command::new("/proc/self/exe")
        .arg0("kiln")
        // By its directory, not its name: if it is deleted meanwhile, there is no store to make there.
        .args(["maintain", "--store", "auto:."])
        .args(policy.flags())
        .current_dir(store.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started
        .inspect_err(|error| tracing::warn!(%error, "cannot mark results as durable; a power cut would lose them"))
        .ok()
}
