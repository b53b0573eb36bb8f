//! The command line.

mod cluster;
mod job;
mod simulate;
mod stored;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use kiln_image::{ImageName, Platform};
use kiln_store::CopyMode;
use serde::Deserialize;

use crate::config::SandboxPolicy;
use crate::limits::{self, Limits, Most};
use crate::network;
use crate::output::{self, OutputTo};
use crate::personality::Voice;
use crate::sandbox;
use crate::settings::{KILN_CONFIG, KILN_REGISTRIES, KILN_STORE, REGISTRY_AUTH_FILE};

pub(crate) use cluster::*;
pub(crate) use job::*;
pub(crate) use simulate::{PolicyOf, Simulate};
pub(crate) use stored::*;
pub(crate) use worker::Worker;

/// Sandboxed, cached builds.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Kiln {
    /// Says more on stderr
    #[arg(short, long, global = true, display_order = 1_000)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How it says what it has to say.
    #[arg(skip)]
    pub(crate) voice: Voice,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the build failed by its own fault, or a check found something; \
    2 wrong usage or a bad spec; 3 this host or kiln failed; 130 cancelled. `run` and `shell` end as their command does.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Builds a spec and prints the id of the result
    Build(Box<Build>),
    /// Runs a command in a copy of a result or base image
    Run(Box<Run>),
    /// Opens a shell in a copy of a result, where the step that made it ran
    Shell(Box<Shell>),
    /// Writes a result as an image, an archive or a directory, or pushes it to a registry
    Export(Export),
    /// Prints the log of a step, also while it runs
    Log(Log),
    /// Lists results, those used last at the end
    Ls(Ls),
    /// Removes results
    Rm(Rm),
    /// Removes results until limits hold, those used longest ago first
    Prune(Prune),
    /// Keeps results, and what they stand on, from being removed
    Pin(Pin),
    /// Takes a pin back
    Unpin(Pin),
    /// Copies, checks and repairs whole stores
    #[command(subcommand)]
    Store(StoreCommand),
    /// Says what this host can do, what would mend what it cannot, and runs a build to try
    Doctor(Doctor),
    /// Tries whether the store opens and a build runs; prints `ok`
    Healthcheck(Doctor),
    /// Prints a spec in canonical form
    Fmt(Fmt),
    /// Checks specs without building them
    Check(Check),
    /// Prints the Dockerfile that does what a spec does
    Dockerfile(Dockerfile),
    /// Runs a scheduler: takes clients' jobs, and gives them to workers
    Scheduler(Box<Scheduler>),
    /// Copies what one scheduler keeps into an empty database, to be shared by several
    CopyState(CopyState),
    /// Runs a worker: takes jobs of a pool, and does them
    Worker(Box<Worker>),
    /// Submits a job to a scheduler, and follows it
    Submit(Submit),
    /// Looks after jobs that were submitted
    Job(JobOf),
    /// Administrates a scheduler
    Admin(Admin),
    /// Runs a scheduler and a worker on this machine, and prints how to use them
    Cluster(Cluster),
    /// Plays what happens to a pool to the scheduler, in no time, and says how it goes
    Simulate(Box<Simulate>),
    /// Marks what is stored as safely on the disk and prunes; `build` starts this by itself
    #[command(hide = true)]
    Maintain(Maintain),
    /// Says where it runs; what `doctor` builds runs this
    #[command(hide = true)]
    SelfTest,
}

impl Command {
    /// Whether it runs until it is told to end, for others.
    pub(crate) fn serves(&self) -> bool {
        matches!(self, Self::Scheduler(_) | Self::Worker(_))
    }
}

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where results are kept: `auto`, `auto:PATH`, `overlayfs:PATH`, `btrfs:PATH`, `zfs:POOL/DATASET`, `xfs:PATH` or
    /// `copy:PATH`; `auto` is /var/lib/kiln for root, else in the home directory
    #[arg(long, value_name = "KIND:PATH", env = KILN_STORE, default_value = "auto", hide_default_value = true)]
    pub(crate) store: String,
    /// What the trees of a `copy:` store share; `rsync:` is another name of such stores
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) rsync_mode: Option<RsyncMode>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum RsyncMode {
    /// Nothing
    Copy,
    /// Files that a step did not change
    Hardlink,
    /// The same: here it is as safe
    HardlinkUnsafe,
}

impl From<RsyncMode> for CopyMode {
    fn from(mode: RsyncMode) -> Self {
        match mode {
            RsyncMode::Copy => Self::Copy,
            RsyncMode::Hardlink | RsyncMode::HardlinkUnsafe => Self::Hardlink,
        }
    }
}

/// How to reach registries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub(crate) struct RegistryArgs {
    /// Credentials, as `docker login` and `podman login` write them
    /// [default: those of Docker and Podman]
    #[arg(long, value_name = "FILE", env = REGISTRY_AUTH_FILE, hide_env_values = true)]
    pub(crate) auth_file: Option<PathBuf>,
    /// Mirrors, certificates and insecure registries, see docs/base-images.md [default: /etc/kiln/registries.toml and
    /// ~/.config/kiln/registries.toml]
    #[arg(long, value_name = "FILE", env = KILN_REGISTRIES, hide_env_values = true)]
    pub(crate) registries: Option<PathBuf>,
}

/// Which base images.
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    /// Asks again what references without a digest stand for
    #[arg(long)]
    pub(crate) pull: bool,
    /// Of base images for several platforms, takes those for this one, as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
}

/// Files of settings.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Settings, see docs/stores.md [default: /etc/kiln/config.toml and ~/.config/kiln/config.toml]
    #[arg(long, value_name = "FILE", env = KILN_CONFIG, hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

/// How steps are isolated. What is not given, the files of settings say.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub(crate) struct SandboxArgs {
    /// What isolates steps [default: native]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) sandbox: Option<sandbox::Kind>,
    /// Lets steps wait for the disk when they ask for it, with fsync and its like
    #[arg(long)]
    pub(crate) no_fast_sync: bool,
    /// Whose users those of steps are, to this machine
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub(crate) userns: Option<Userns>,
    /// Lets steps make user namespaces, as `unshare -r` and bubblewrap do, if they have users of their own
    #[arg(long)]
    pub(crate) allow_userns: bool,
    /// Which system calls steps may make: `default`, `unconfined` (all), or a profile in Docker's format
    #[arg(long, value_name = "FILE")]
    pub(crate) seccomp: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) network: network::Choice,
    #[command(flatten)]
    pub(crate) limits: Limits,
}

/// What becomes of the logs of steps. Who only looks into a result has none.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub(crate) struct LogArgs {
    /// Leaves the values of secrets in logs, where `***` would stand for them
    #[arg(long)]
    pub(crate) no_mask: bool,
    /// How long the log of a step may become [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = limits::log_size)]
    pub(crate) log_limit: Option<Most<u64>>,
}

/// Which user namespace steps are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Userns {
    /// Nobody's: ids of their own for each running step, where kernel and filesystem can do that
    Auto,
    /// Nobody's, or nothing runs
    Own,
    /// The machine's: root in a step is its root
    Host,
}

impl SandboxArgs {
    /// Returns how long a command may run that somebody starts to look into a result. The settings speak of steps only.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.limits.timeout.and_then(Most::value)
    }

    /// Returns what the flags say.
    pub(crate) fn policy(&self) -> SandboxPolicy {
        SandboxPolicy {
            sandbox: self.sandbox,
            fast_sync: self.no_fast_sync.then_some(false),
            userns: self.userns,
            allow_userns: self.allow_userns.then_some(true),
            seccomp: self.seccomp.clone(),
            mask_secrets: None,
            network: self.network.clone(),
            limits: self.limits.clone(),
        }
    }
}

/// Where a result goes besides the store.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Writes the result: TYPE is `oci`, `docker`, `tar` or `dir`; PATH may be `-` for standard output
    #[arg(short, long = "output", value_name = "type=TYPE,dest=PATH", value_parser = output::parse)]
    pub(crate) outputs: Vec<OutputTo>,
    /// A name for the image, as registry.example.com/app:1.0
    #[arg(short, long = "tag", value_name = "NAME", value_parser = output::parse_name)]
    pub(crate) tags: Vec<ImageName>,
    /// Pushes the image to the registries of its names
    #[arg(long, requires = "tags")]
    pub(crate) push: bool,
    /// Makes one layer of the whole tree, instead of one a step
    #[arg(long)]
    pub(crate) squash: bool,
    /// How layers and archives are packed
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) compression: Packing,
    /// A label for the image
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = output::parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Packing {
    /// With gzip, which everything reads; archives of type `docker` and `tar` not at all
    #[default]
    Auto,
    /// With gzip
    Gzip,
    /// With zstd: smaller and faster
    Zstd,
    /// Not at all
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The id, or how it starts
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How to show what happens.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// How to show what happens, on stderr
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) progress: Progress,
    /// Shows nothing but errors
    #[arg(short, long, conflicts_with = "progress")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The source directory, for `copy`
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// The spec; `-` for standard input [default: DIR/kiln.spec]
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// How many steps may run at once [default: the number of processors]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Gives a secret its value, from a file or an environment variable
    #[arg(long = "secret", value_name = "ID:FILE|ID=env:VAR")]
    pub(crate) secrets: Vec<OsString>,
    /// Makes every step anew; later builds find these results, the ones before stay until they are pruned
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// When a step fails, opens a shell where it ran, before what it left is thrown away; needs a terminal
    #[arg(long)]
    pub(crate) shell_on_failure: bool,
    /// Keeps a digest of the tree of every result that is made, for `kiln store verify --deep`
    #[arg(long)]
    pub(crate) verify: bool,
    /// Builds the stage of this name instead of the last one
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) base_images: BaseArgs,
    /// Leaves the store as it is after the build: it is thrown away at once
    #[arg(long, hide = true)]
    pub(crate) no_maintenance: bool,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    #[command(flatten)]
    pub(crate) logs: LogArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

impl Build {
    /// Returns what the flags say of isolation.
    pub(crate) fn policy(&self) -> SandboxPolicy {
        let mut policy = self.sandbox.policy();
        policy.mask_secrets = self.logs.no_mask.then_some(false);
        policy.limits.log_limit = self.logs.log_limit;
        policy
    }
}

/// Nothing of it is kept: neither what the command writes, nor what it writes to caches.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES_OF_COMMANDS)]
pub(crate) struct Run {
    /// An id, or how it starts: hex digits; or a base image, as after `from` in a spec
    #[arg(value_name = "ID|BASE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) base: String,
    /// The command and its arguments [default: a shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    /// Sets a variable
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = output::parse_label)]
    pub(crate) env: Vec<(String, String)>,
    /// Who runs it: a name of the image, or numbers [default: as the result's steps]
    #[arg(short, long, value_name = "NAME|UID:GID")]
    pub(crate) user: Option<String>,
    /// Where it runs [default: as the result's steps]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Which network it has; the host's is what `--network-host` or the settings make of it
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK")]
    pub(crate) network: Network,
    /// Mounts a copy of a cache
    #[arg(long = "cache", value_name = "id=NAME,target=DIR", value_parser = cache)]
    pub(crate) caches: Vec<(String, String)>,
    /// Mounts a secret, from a file or an environment variable, at /run/secrets/ID
    #[arg(long = "secret", value_name = "ID:FILE|ID=env:VAR")]
    pub(crate) secrets: Vec<OsString>,
    #[command(flatten)]
    pub(crate) base_images: BaseArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// It has the environment, user, directory, network and copies of the caches of the step that made the result. Nothing of it is
/// kept.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES_OF_COMMANDS)]
pub(crate) struct Shell {
    /// The id, or how it starts
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// Gives a secret of the step its value, from a file or an environment variable
    #[arg(long = "secret", value_name = "ID:FILE|ID=env:VAR")]
    pub(crate) secrets: Vec<OsString>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
}

const EXIT_CODES_OF_COMMANDS: &str = "Exit codes: the command's; 126 if it cannot be executed, 127 if it is not there, \
    128+N if signal N killed it, 137 by a limit too; 2 wrong usage, and 125 if kiln failed, with an `error:` on stderr; 130 cancelled.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Loopback only
    #[default]
    None,
    /// The host's
    Host,
}

fn cache(text: &str) -> Result<(String, String), String> {
    let (mut id, mut target) = (None, None);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("id", value)) if !value.is_empty() => id = Some(value.to_owned()),
            Some(("target", value)) if !value.is_empty() => target = Some(value.to_owned()),
            _ => return Err(format!("`{field}` is neither id=NAME nor target=DIR")),
        }
    }
    id.zip(target).ok_or_else(|| "both id=NAME and target=DIR are needed".to_owned())
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Progress {
    /// `tty` on a terminal, else `plain`
    #[default]
    Auto,
    /// The whole log of every step
    Plain,
    /// Running steps with the end of their logs, on a terminal
    Tty,
    /// An object a line for every event
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The id, or how it starts
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: String,
    /// Prints what the step used instead: time, memory, disk, processes
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Fmt {
    /// The spec; `-` for standard input
    pub(crate) spec: PathBuf,
    /// Prints nothing; exits with 1 if the spec is not in canonical form
    #[arg(long)]
    pub(crate) check: bool,
    /// Writes to the file instead of standard output
    #[arg(short, long, conflicts_with = "check")]
    pub(crate) write: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The specs; `-` for standard input
    #[arg(required = true)]
    pub(crate) specs: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Dockerfile {
    /// The spec; `-` for standard input
    #[arg(required_unless_present = "file")]
    pub(crate) spec: Option<PathBuf>,
    /// The spec, as OBuilder takes it
    #[arg(short, long, value_name = "SPEC", conflicts_with = "spec")]
    pub(crate) file: Option<PathBuf>,
    /// Uses what only BuildKit has: caches and secrets
    #[arg(long)]
    pub(crate) buildkit: bool,
    /// The style of the Dockerfile
    #[arg(long, value_enum, default_value_t)]
    pub(crate) escape: Escape,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Escape {
    /// Backslashes
    #[default]
    Unix,
    /// Backticks
    Windows,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Kiln::command().debug_assert();
    }
}
