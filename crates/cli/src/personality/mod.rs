//! The programs that this one stands for. Called by the name of one of them, it takes that program's arguments, says what that
//! program says, and exits as it exits; so a link is all that a script or unit file needs.
//!
//! What their arguments mean is said by turning them into ours; nothing is done here.

mod obuilder;
mod ocluster;
mod ocluster_worker;
mod words;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Kiln;

pub(crate) use words::{quoted, quoted_path, report};

/// Whose words and exit codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Voice {
    #[default]
    Kiln,
    OBuilder,
    OCluster,
}

type Parse = fn(Vec<OsString>) -> Result<Kiln, clap::Error>;

/// Who we can be called as.
const PROGRAMS: [(&str, Parse); 5] = [
    ("obuilder", obuilder::parse),
    ("ocluster-scheduler", ocluster::scheduler),
    ("ocluster-worker", ocluster_worker::parse),
    ("ocluster-client", ocluster::client),
    ("ocluster-admin", ocluster::admin),
];

/// Wrong usage, as the library says it that those programs read their arguments with (Cmdliner's `Exit.cli_error`).
const USAGE: u8 = 124;

/// Reads the arguments. If there is nothing to do but to exit, as after `--help`, returns how.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Result<Kiln, ExitCode> {
    let given: Vec<_> = given.into_iter().collect();
    let called = given.first().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    let Some((name, parse)) = PROGRAMS.into_iter().find(|(name, _)| Some(*name) == called) else {
        return Ok(Kiln::try_parse_from(given).unwrap_or_else(|error| crate::exit::refuse(error)));
    };
    parse(given).map_err(|error| {
        if !error.use_stderr() {
            // Nobody is left to tell.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let text = error.render().to_string();
        crate::render::tell(format_args!("{name}: {}", text.trim_start_matches("error: ").trim_end()));
        ExitCode::from(USAGE)
    })
}

/// What all of these programs take.
#[derive(Debug, clap::Args)]
struct Common {
    /// Says more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Says only as much
    #[arg(long, value_name = "LEVEL", global = true, value_parser = ["quiet", "error", "warning", "info", "debug"])]
    verbosity: Option<String>,
    /// Says nothing
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to use colours
    #[arg(long, value_name = "WHEN", global = true, value_parser = ["auto", "always", "never"])]
    color: Option<String>,
}

/// Returns `NAME=VALUE`, whatever the value begins with.
fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(value.into());
    flag
}

impl Common {
    fn kiln(&self, voice: Voice, command: crate::args::Command) -> Kiln {
        let is_debug = matches!(self.verbosity.as_deref(), Some("info" | "debug"));
        match self.color.as_deref() {
            Some("always") => [console::set_colors_enabled, console::set_colors_enabled_stderr].map(|set| set(true)),
            Some("never") => [console::set_colors_enabled, console::set_colors_enabled_stderr].map(|set| set(false)),
            _ => [(); 2],
        };
        Kiln { verbose: !self.quiet && (self.verbose > 0 || is_debug), command, voice }
    }
}
