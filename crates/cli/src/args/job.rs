//! The command line of jobs that were submitted.

use clap::{Args, Subcommand};
use kiln_api::JobKey;

use super::cluster::Connect;

/// Only the client that submitted a job can do something with it. A scheduler keeps jobs for some time after their end.
#[derive(Debug, Args)]
pub(crate) struct JobOf {
    #[command(flatten)]
    pub(crate) connect: Connect,
    #[command(subcommand)]
    pub(crate) what: JobWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobWhat {
    /// Lists the jobs of this client, the newest first
    List,
    /// Prints a job's log, to its end
    Log(OneJob),
    /// Waits for a job's end, and prints its result
    Wait(OneJob),
    /// Cancels a job
    Cancel(OneJob),
}

#[derive(Debug, Args)]
pub(crate) struct OneJob {
    /// What `kiln submit --detach` printed
    #[arg(value_name = "ID")]
    pub(crate) id: JobKey,
}
