//! `kiln prune`: makes room.

use std::time::SystemTime;

use kiln_store::Limits;

use super::size;
use crate::args::{self, Free};
use crate::exit::Failure;
use crate::render::{one_line, tell};
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Prune) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    let given = &arguments.limits;
    let keep_free_bytes = match given.keep_free {
        Some(Free::Bytes(bytes)) => Some(bytes),
        Some(Free::Percent(percent)) => Some(store.space()?.total_bytes / 100 * u64::from(percent)),
        None => None,
    };
    let limits = Limits {
        max_size_bytes: given.max_size,
        keep_free_bytes,
        max_age: given.max_age,
        max_items: if given.all { Some(0) } else { given.max_items },
    };
    let pruned = store.prune(&limits, SystemTime::now(), arguments.dry_run)?;
    for result in pruned.removed.iter().filter(|_| arguments.dry_run) {
        let (id, size, step) = (result.id.short(), size(result.size_bytes), one_line(&result.summary));
        tell(format_args!("would remove {id} ({size}) {step}"));
    }
    let did = if arguments.dry_run { "would free" } else { "freed" };
    tell(format_args!("{did} {} of {} results", size(pruned.freed_bytes), pruned.removed.len()));
    if pruned.in_use > 0 {
        tell(format_args!("{} more are in use by builds", pruned.in_use));
    }
    Ok(())
}
