//! OCluster's programs. Their flags are ours.

use std::ffi::OsString;

use clap::Parser;

use super::{Common, Voice};
use crate::args::{Admin, Command, Kiln, Scheduler, Submit};

/// Manages build workers
#[derive(Debug, Parser)]
#[command(name = "ocluster-scheduler", version, infer_long_args = true)]
struct SchedulerProgram {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    scheduler: Scheduler,
}

/// Submits jobs
#[derive(Debug, Parser)]
#[command(name = "ocluster-client", version, infer_long_args = true, infer_subcommands = true)]
struct ClientProgram {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    submit: Submit,
}

/// Administrates a scheduler
#[derive(Debug, Parser)]
#[command(name = "ocluster-admin", version, infer_long_args = true, infer_subcommands = true)]
struct AdminProgram {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    admin: Admin,
}

pub(super) fn scheduler(given: Vec<OsString>) -> Result<Kiln, clap::Error> {
    let SchedulerProgram { common, scheduler } = SchedulerProgram::try_parse_from(given)?;
    Ok(common.kiln(Voice::OCluster, Command::Scheduler(Box::new(scheduler))))
}

pub(super) fn client(given: Vec<OsString>) -> Result<Kiln, clap::Error> {
    let ClientProgram { common, submit } = ClientProgram::try_parse_from(given)?;
    Ok(common.kiln(Voice::OCluster, Command::Submit(submit)))
}

pub(super) fn admin(given: Vec<OsString>) -> Result<Kiln, clap::Error> {
    let AdminProgram { common, admin } = AdminProgram::try_parse_from(given)?;
    Ok(common.kiln(Voice::OCluster, Command::Admin(admin)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_lines_are_consistent() {
        SchedulerProgram::command().debug_assert();
        ClientProgram::command().debug_assert();
        AdminProgram::command().debug_assert();
    }
}
