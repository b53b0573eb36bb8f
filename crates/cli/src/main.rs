//! The `kiln` program: parses arguments, starts the runtime, renders events, picks the exit code.
#![forbid(unsafe_code)]

mod args;
mod command;
mod config;
mod exit;
mod limits;
mod network;
mod output;
mod peer;
mod personality;
mod render;
mod rootless;
mod sandbox;
mod seccomp;
mod service;
mod settings;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    // This program is its own sandbox helper; that must be decided before any thread exists.
    kiln_sandbox::run_helper_if_asked();
    let arguments = match personality::arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    start_tracing(arguments.verbose, arguments.command.serves());
    let voice = arguments.voice;
    exit::report(rootless::enter(&arguments.command).and_then(|()| command::run(arguments)), voice)
}

/// Diagnostics go to stderr: warnings, of what serves others also who comes and goes, or what `KILN_TRACE` selects.
fn start_tracing(verbose: bool, serves: bool) {
    use tracing_subscriber::EnvFilter;
    let default = match (verbose, serves) {
        (true, _) => "kiln=debug,info",
        (false, true) => "kiln_scheduler=info,kiln_worker=info,warn",
        (false, false) => "warn",
    };
    let filter = EnvFilter::try_from_env(settings::KILN_TRACE).unwrap_or_else(|_| EnvFilter::new(default));
    // Without stderr there is nobody to tell, least of all that.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .log_internal_errors(false)
        .init();
}
