//! `kiln prune`: makes room.

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use kiln_store::Listed;

use super::{cancel_on_signals, size};
use crate::args;
use crate::config::Policy;
use crate::exit::Failure;
use crate::render::{one_line, tell};
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Prune) -> Result<(), Failure> {
    let policy = match arguments.limits.policy() {
        none if none == Policy::default() => Policy::read(arguments.config.config.as_deref())?,
        given => given,
    };
    if policy == Policy::default() {
        return Err(Failure::NoPolicy);
    }
    let store = open_store(&arguments.store)?;
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    super::step_back();
    let bar = bar();
    let mut freed_bytes = 0;
    let mut removed = |result: &Listed| {
        freed_bytes += result.size_bytes;
        bar.set_message(size(freed_bytes));
        bar.inc(1);
        if arguments.dry_run {
            let (id, size, step) = (result.id.short(), size(result.size_bytes), one_line(&result.summary));
            bar.suspend(|| tell(format_args!("would remove {id} ({size}) {step}")));
        }
        if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let pruned = store.prune_while(&policy.limits(&store)?, SystemTime::now(), arguments.dry_run, &mut removed);
    bar.finish_and_clear();
    let pruned = pruned?;
    let did = if arguments.dry_run { "would free" } else { "freed" };
    tell(format_args!("{did} {} of {} results", size(pruned.freed_bytes), pruned.removed.len()));
    if !pruned.caches.is_empty() {
        let did = if arguments.dry_run { "would remove" } else { "removed" };
        tell(format_args!("{did} unused caches: {}", pruned.caches.join(", ")));
    }
    if pruned.in_use > 0 {
        tell(format_args!("{} more are in use by builds", pruned.in_use));
    }
    if pruned.pinned > 0 {
        tell(format_args!("{} more are pinned", pruned.pinned));
    }
    if pruned.is_interrupted { Err(Failure::Cancelled) } else { Ok(()) }
}

/// Shows on a terminal how far it is.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {elapsed:>4.dim} {pos} results, {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
