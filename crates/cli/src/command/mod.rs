//! One file a subcommand. Each takes its arguments and returns why it failed.

mod build;
mod log;
mod ls;
mod prune;
mod rm;
mod spec;

use std::io::{self, Write};

use crate::args::{Command, Kiln};
use crate::exit::Failure;

/// Does what the arguments ask for.
pub(crate) fn run(arguments: Kiln) -> Result<(), Failure> {
    match arguments.command {
        Command::Build(build) => build::run(build, arguments.verbose),
        Command::Log(log) => log::run(&log),
        Command::Ls(ls) => ls::run(&ls),
        Command::Rm(rm) => rm::run(&rm),
        Command::Prune(prune) => prune::run(&prune),
        Command::Fmt(fmt) => spec::fmt(&fmt),
        Command::Check(check) => spec::check(&check),
        Command::Dockerfile(dockerfile) => spec::dockerfile(&dockerfile),
        Command::MarkDurable(store) => Ok(crate::settings::open_store(&store.store)?.mark_durable()?),
    }
}

/// Writes a result to stdout.
fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush()).map_err(Failure::Stdout)
}

/// A size for people: `1.2 MiB`.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}
