//! The command line of `kiln simulate`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kiln_scheduler::simulate::Workload;

/// Time in a simulation is not this machine's: a day passes in a second. The scheduler's part is played by its own code; its clients
/// and workers are made up, or a trace's. The same arguments give the same figures.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(crate) struct Simulate {
    /// Plays what is in this file, instead of making something up
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Writes what is played to a file, which `--trace` reads
    #[arg(long, value_name = "FILE")]
    pub(crate) write_trace: Option<PathBuf>,
    /// Whose policies are played: kiln's is the scheduler's own code, ocluster's a model of it after its description
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHOSE", default_values = ["kiln", "ocluster"])]
    pub(crate) policy: Vec<PolicyOf>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Measures instead what the scheduler's operations cost this machine while so many jobs wait for `--workers` (5000 unless given)
    #[arg(
        long,
        value_name = "JOBS,…",
        value_delimiter = ',',
        num_args = 0..=1,
        default_missing_value = "1000,10000,100000,1000000",
        conflicts_with_all = ["trace", "write_trace", "made_up", "policy"]
    )]
    pub(crate) sizes: Option<Vec<usize>>,
    /// How many workers there are [default: 100]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        help_heading = HEADING,
        conflicts_with = "trace"
    )]
    pub(crate) workers: Option<u32>,
    #[command(flatten)]
    pub(crate) made_up: MadeUp,
}

const HEADING: &str = "What is made up, if there is no --trace";

const AFTER: &str = "\
A trace is a file of lines, each a JSON object. Times are in seconds from its beginning, in any order:

  {\"event\":\"client\",\"client\":\"alice\",\"rate\":2}
  {\"event\":\"connect\",\"at_s\":0,\"worker\":\"w1\",\"capacity\":4}
  {\"event\":\"disconnect\",\"at_s\":3600,\"worker\":\"w1\"}
  {\"event\":\"job\",\"at_s\":5,\"client\":\"alice\",\"hint\":\"zlib\",\"warm_s\":40,\"cold_s\":300}
  {\"event\":\"job\",\"at_s\":6,\"client\":\"bob\",\"urgent\":true,\"warm_s\":1,\"cold_s\":1,\"cancel_after_s\":60}

A job takes `warm_s` on a worker that has done one of its hint, else `cold_s`; it is cancelled after a time, if that is given. Rates and
capacities are 1 unless given. A worker that disconnects loses what it does, which is begun again, and keeps what it has cached.

Exit codes: 0 done; 1 a policy lost a job, or ran one twice; 2 wrong usage, or a trace that cannot be; 3 this host or kiln failed.";

/// Whose policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyOf {
    Kiln,
    Ocluster,
}

#[derive(Debug, Args)]
#[group(id = "made_up", multiple = true, conflicts_with = "trace")]
#[command(next_help_heading = HEADING)]
pub(crate) struct MadeUp {
    /// Chooses one of all traces that are alike
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many jobs are submitted
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    jobs: u32,
    /// How many jobs a worker does at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// A client for each of these, with that rate
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', default_value = "1,1,2,4", value_parser = rate)]
    rates: Vec<f64>,
    /// How many cache hints there are
    #[arg(long, value_name = "N", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    hints: u32,
    /// How much some hints are used more than others: the exponent of Zipf's law
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = number)]
    zipf: f64,
    /// Over how long jobs are submitted; with 1s, all are there from the beginning
    #[arg(long, value_name = "DURATION", default_value = "1day", value_parser = humantime::parse_duration)]
    span: Duration,
    /// How many jobs come together, on average: those of a commit
    #[arg(long, value_name = "X", default_value_t = 30.0, value_parser = number)]
    burst: f64,
    /// What a job takes on a worker that has not done one of its hint: the median
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    cold: Duration,
    /// What it takes on one that has
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    warm: Duration,
    /// The share of bursts that are urgent
    #[arg(long, value_name = "0…1", default_value_t = 0.02, value_parser = share)]
    urgent: f64,
    /// The share of bursts that are cancelled
    #[arg(long, value_name = "0…1", default_value_t = 0.03, value_parser = share)]
    cancelled: f64,
    /// How often a worker is lost in a day
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = number)]
    outages: f64,
    /// For how long it is gone then, on average
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    outage: Duration,
}

impl Simulate {
    /// Returns what is to be made up.
    pub(crate) fn workload(&self) -> Workload {
        let it = &self.made_up;
        Workload {
            seed: it.seed,
            jobs: it.jobs,
            workers: self.workers.unwrap_or(100),
            capacity: it.capacity,
            rates: it.rates.clone(),
            hints: it.hints,
            zipf: it.zipf,
            span: it.span,
            burst: it.burst,
            cold: it.cold,
            warm: it.warm,
            urgent: it.urgent,
            cancelled: it.cancelled,
            outages: it.outages,
            outage: it.outage,
        }
    }
}

fn number(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or("expected a number, 0 or more")
}

fn rate(text: &str) -> Result<f64, &'static str> {
    number(text).ok().filter(|rate| *rate > 0.0).ok_or("expected a number above 0")
}

fn share(text: &str) -> Result<f64, &'static str> {
    number(text).ok().filter(|share| *share <= 1.0).ok_or("expected a number from 0 to 1")
}
