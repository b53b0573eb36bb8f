//! The command line of workers.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kiln_worker::agent::Weight;
use kiln_worker::custom::CustomKind;

use super::cluster::Connect;
use super::{ConfigArgs, RegistryArgs, SandboxArgs, StoreArgs, size};

/// It takes jobs until SIGTERM or Ctrl-C, and ends when those that run are done; a second signal ends it at once.
#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// What it is called in its pool [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How many jobs it does at once
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) capacity: u32,
    /// Jobs whose spec or Dockerfile matches the regular expression count for N jobs
    #[arg(long = "weight", value_name = "PATTERN=N", value_parser = weight)]
    pub(crate) weights: Vec<Weight>,
    /// Clones of repositories, and the sources and logs of jobs that run
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kiln-worker")]
    pub(crate) state_dir: PathBuf,
    /// Where results are
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// Removes clones of repositories that no job used for so long
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    pub(crate) clones_unused: Duration,
    /// Removes the longest unused clones when all of them have more
    #[arg(long, value_name = "SIZE", default_value = "50G", value_parser = size)]
    pub(crate) clones_size: u64,
    /// Lets specs start from files and images of this machine, which whoever may submit can read then
    #[arg(long)]
    pub(crate) allow_local_bases: bool,
    /// Lets jobs name repositories of this machine, by file://
    #[arg(long)]
    pub(crate) allow_local_repositories: bool,
    /// Does no Docker builds. Whoever may submit one has root's rights on this machine
    #[arg(long)]
    pub(crate) no_docker: bool,
    /// Where Docker builds may push to
    #[arg(long, value_name = "REPOSITORIES", value_delimiter = ',')]
    pub(crate) allow_push: Vec<String>,
    /// Prunes Docker's images when less than this is free, in percent
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) prune_threshold: Option<f64>,
    /// Does jobs of a kind of its own by a shell command, see docs/cluster.md
    #[arg(long = "custom", value_name = "KIND=COMMAND", value_parser = custom)]
    pub(crate) custom: Vec<CustomKind>,
    /// Takes no jobs while this shell command fails [default: `kiln healthcheck` on its store]
    #[arg(long, value_name = "COMMAND")]
    pub(crate) healthcheck: Option<String>,
    /// How often to check
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) healthcheck_every: Duration,
    /// Checks nothing
    #[arg(long, conflicts_with = "healthcheck")]
    pub(crate) no_healthcheck: bool,
    /// How long a job's log may be
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    pub(crate) job_log_limit: u64,
    /// Metrics of this machine, from its node exporter
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9100/metrics")]
    pub(crate) host_metrics: String,
    /// Other metrics that the scheduler may ask for
    #[arg(long = "additional-metric", value_name = "NAME=URL", value_parser = additional)]
    pub(crate) additional_metrics: Vec<(String, String)>,
}

fn weight(text: &str) -> Result<Weight, String> {
    // The pattern may have the sign too.
    let (pattern, weight) = text.rsplit_once('=').ok_or("expected PATTERN=N")?;
    let weight = weight.parse().ok().filter(|weight| *weight > 0).ok_or("N is a number of jobs, 1 or more")?;
    let pattern = regex::bytes::Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok(Weight { pattern, weight })
}

fn custom(text: &str) -> Result<CustomKind, &'static str> {
    CustomKind::parse(text).ok_or("expected KIND=COMMAND")
}

fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|number| (0.0..=100.0).contains(number)).ok_or("expected a number from 0 to 100")
}

fn additional(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && url.starts_with("http://") => Ok((name.to_owned(), url.to_owned())),
        _ => Err("expected NAME=http://…"),
    }
}
