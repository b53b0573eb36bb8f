//! `kiln copy-state`.

use std::time::{Duration, Instant};

use kiln_scheduler::SchedulerError;
use kiln_scheduler::state::copy::{self, Copied};
use kiln_scheduler::state::lease::{Lease, Standing};
use rustix::system::uname;

use super::size;
use crate::args;
use crate::exit::Failure;
use crate::peer::on_one_thread;
use crate::render::tell;

/// How often it says how far it has come.
const TOLD: Duration = Duration::from_secs(5);

pub(super) fn run(arguments: &args::CopyState) -> Result<(), Failure> {
    let (from, server) = (&arguments.state_dir, &arguments.state);
    let name = format!("kiln copy-state, process {} of {}", std::process::id(), uname().nodename().to_string_lossy());
    // Whoever has the lease serves. While it is ours, nobody begins to.
    let lease = on_one_thread(Lease::acquire_now(server.clone(), name))?.map_err(SchedulerError::from)?;
    let lease = lease.map_err(|standing| match standing {
        Standing::By { holder, .. } => Failure::Serves { place: server.to_string(), holder },
        Standing::Blind(why) => Failure::NoDatabase { place: server.to_string(), why },
    })?;
    let mut told = Instant::now();
    let copied = copy::copy(from, lease.tenure(), &mut |Copied { jobs, log_bytes, .. }| {
        if told.elapsed() >= TOLD {
            told = Instant::now();
            tell(format_args!("{jobs} jobs and {} of logs so far", size(*log_bytes)));
        }
    });
    on_one_thread(lease.release())?;
    let Copied { clients, workers, rates, hints, jobs, unfinished, logs, log_bytes } = copied?;
    let log_bytes = size(log_bytes);
    tell(format_args!(
        "copied to {server}: {clients} clients, {workers} workers, {rates} rates, {hints} hints, {jobs} jobs of which {unfinished} have not \
         ended, {logs} logs ({log_bytes})"
    ));
    tell(format_args!("{} is as it was; start the schedulers with the same key, and `--state`", from.display()));
    Ok(())
}
