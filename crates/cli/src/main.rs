//! The `kiln` program: parses arguments, starts the runtime, renders events, picks the exit code.
#![forbid(unsafe_code)]

mod args;
mod command;
mod config;
mod exit;
mod limits;
mod network;
mod output;
mod render;
mod rootless;
mod sandbox;
mod seccomp;
mod settings;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // This program is its own sandbox helper; that must be decided before any thread exists.
    kiln_sandbox::run_helper_if_asked();
    let arguments = args::Kiln::try_parse().unwrap_or_else(|error| exit::refuse(error));
    start_tracing(arguments.verbose);
    exit::report(rootless::enter(&arguments.command).and_then(|()| command::run(arguments)))
}

/// Diagnostics go to stderr: warnings, or what `KILN_TRACE` selects.
fn start_tracing(verbose: bool) {
    use tracing_subscriber::EnvFilter;
    let default = if verbose { "kiln=debug,info" } else { "warn" };
    let filter = EnvFilter::try_from_env(settings::KILN_TRACE).unwrap_or_else(|_| EnvFilter::new(default));
    // Without stderr there is nobody to tell, least of all that.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .log_internal_errors(false)
        .init();
}
