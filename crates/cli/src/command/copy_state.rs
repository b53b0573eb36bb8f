//! `kiln copy-state`.

use kiln_scheduler::SchedulerError;
use kiln_scheduler::state::copy::{self, Copied};
use kiln_scheduler::state::lease::{Lease, Standing};
use tokio::sync::mpsc::unbounded_channel;

use super::size;
use crate::args;
use crate::exit::Failure;
use crate::peer::on_one_thread;
use crate::render::tell;

pub(super) fn run(arguments: &args::CopyState) -> Result<(), Failure> {
    let (from, server) = (&arguments.state_dir, &arguments.state);
    // Whoever has the lease serves. While it is ours, nobody begins to.
    let lease = on_one_thread(async {
        let name = format!("kiln copy-state, process {}", std::process::id());
        let (sender, mut serves) = unbounded_channel();
        let acquiring = Lease::acquire(server.clone(), name, None, |standing| match standing {
            // Whoever is told of it has gone otherwise.
            Standing::By { holder, .. } => _ = sender.send(holder.clone()),
            Standing::Blind(why) => tell(format_args!("waiting for {server}: {why}")),
        });
        tokio::select! {
            lease = acquiring => lease.map_err(|error| SchedulerError::from(error).into()),
            Some(holder) = serves.recv() => Err(Failure::Serves { place: server.to_string(), holder }),
        }
    })??;
    let copied = copy::copy(from, lease.tenure());
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
