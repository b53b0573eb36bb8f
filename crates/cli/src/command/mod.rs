//! One file a subcommand. Each takes its arguments and returns why it failed.

mod admin;
mod build;
mod cluster;
mod copy_state;
mod doctor;
mod export;
mod failure;
mod job;
mod log;
mod ls;
mod maintain;
mod pin;
mod prune;
mod rm;
mod run;
mod scheduler;
mod shell;
mod simulate;
mod spec;
mod store;
mod submit;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Command, Kiln};
use crate::exit::Failure;
use crate::terminal;

/// Does what the arguments ask for.
pub(crate) fn run(arguments: Kiln) -> Result<ExitCode, Failure> {
    let voice = arguments.voice;
    let done = match arguments.command {
        Command::Run(run) => return run::run(&run, arguments.verbose),
        Command::Shell(shell) => return shell::run(&shell),
        Command::Build(build) => build::run(*build, arguments.verbose, voice),
        Command::Export(export) => export::run(&export, arguments.verbose),
        Command::Log(log) => log::run(&log),
        Command::Ls(ls) => ls::run(&ls),
        Command::Rm(rm) => rm::run(&rm, voice),
        Command::Prune(prune) => prune::run(&prune),
        Command::Pin(pin) => pin::pin(&pin),
        Command::Unpin(pin) => pin::unpin(&pin),
        Command::Store(store) => store::run(&store),
        Command::Fmt(fmt) => spec::fmt(&fmt),
        Command::Check(check) => spec::check(&check),
        Command::Dockerfile(dockerfile) => spec::dockerfile(&dockerfile),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Healthcheck(doctor) => doctor::healthcheck(&doctor, voice),
        Command::Worker(worker) => return worker::run(&worker),
        Command::Scheduler(scheduler) => scheduler::run(&scheduler, voice),
        Command::CopyState(copy) => copy_state::run(&copy),
        Command::Submit(submit) => submit::run(&submit, voice),
        Command::Job(job) => job::run(&job),
        Command::Admin(admin) => admin::run(&admin, voice),
        Command::Cluster(cluster) => cluster::run(&cluster),
        Command::Simulate(simulate) => simulate::run(&simulate),
        Command::Maintain(maintain) => maintain::run(&maintain),
        Command::SelfTest => doctor::inside(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Returns the runtime of commands that build or write. Two threads carry the events and the logs; what blocks has threads
/// of its own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::Runtime)
}

/// Returns a token that fires at the first Ctrl-C or `SIGTERM`. The second ends the program at once; its sandboxes
/// go with it.
fn cancel_on_signals() -> std::io::Result<CancellationToken> {
    // Its own thread: all those of the build may be waiting for a terminal that has stopped to read.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _in_runtime = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let cancel = CancellationToken::new();
    let fired = cancel.clone();
    // Ends with the program.
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if fired.is_cancelled() {
                    terminal::restore();
                    std::process::exit(130);
                }
                fired.cancel();
            }
        })
    })?;
    Ok(cancel)
}

/// Lets builds go first from now on. The priority for the disk follows from that for processors, ioprio_set(2).
fn step_back() {
    // Without it everything works, too.
    let _ = rustix::process::nice(19);
}

/// Writes a result to stdout.
pub(crate) fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush()).map_err(Failure::Stdout)
}

/// A size for people: `1.2 MiB`.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}
