//! The command line of the cluster. The flags are those of OCluster's programs, so that unit files and scripts stay as they are.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_api::{Address, Addresses, UriError};
use kiln_scheduler::state::PostgresServer;

use super::size;
use crate::settings::KILN_CAP;

/// It ends with SIGTERM or Ctrl-C, and then exits with 0.
#[derive(Debug, Args)]
pub(crate) struct Scheduler {
    /// The private key that others know it by, made if there is none; "" for one that is forgotten at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) capnp_secret_key_file: OsString,
    /// Where it listens, as tcp:0.0.0.0:9000 or unix:/run/kiln.sock
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) capnp_listen_address: Address,
    /// Where others reach it, which is what the capability files say; of several addresses, as tcp:a:9000,b:9000, the one that serves
    /// [default: where it listens]
    #[arg(long, value_name = "ADDRESS", value_parser = addresses)]
    pub(crate) capnp_public_address: Option<Addresses>,
    /// Does not encrypt: whoever is on the way can do all that clients, workers and administrators can
    #[arg(long)]
    pub(crate) capnp_disable_tls: bool,
    /// What it keeps: clients, workers, which of them has what cached, jobs and their logs; with --state, copies of logs
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Keeps all that in a PostgreSQL database, as postgres://USER@HOST/DATABASE, which other schedulers share: one serves, and the
    /// others stand by
    #[arg(long, value_name = "URI", env = "KILN_STATE", hide_env_values = true)]
    pub(crate) state: Option<PostgresServer>,
    /// The names of its pools, as linux-x86_64,linux-arm64
    #[arg(long, value_name = "NAMES", required = true, value_delimiter = ',', value_parser = name)]
    pub(crate) pools: Vec<String>,
    /// Where admin.cap and pool-NAME.cap are written
    #[arg(long, value_name = "DIR", default_value = "./capnp-secrets")]
    pub(crate) secrets_dir: PathBuf,
    /// Clients that there are from the start; submit-NAME.cap is written beside the others
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = name)]
    pub(crate) default_clients: Vec<String>,
    /// Where metrics are served over HTTP, to whoever asks
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = web)]
    pub(crate) listen_prometheus: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) keeping: Keeping,
}

/// All is copied or nothing: clients, rates, workers, hints, jobs and their logs. Capability files stay good, with the same key.
#[derive(Debug, Args)]
pub(crate) struct CopyState {
    /// What a scheduler keeps that does not run now; it stays as it is
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// The PostgreSQL database, as postgres://USER@HOST/DATABASE, which is empty and which no scheduler serves with
    #[arg(long, value_name = "URI", env = "KILN_STATE", hide_env_values = true)]
    pub(crate) state: PostgresServer,
}

/// What becomes of jobs.
#[derive(Debug, Args)]
pub(crate) struct Keeping {
    /// How often a job is begun again elsewhere when its worker is lost
    #[arg(long, value_name = "N", default_value_t = Keeping::default().retries)]
    pub(crate) retries: u32,
    /// How long a worker of Kiln's that is lost may take to come back for its jobs
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub(crate) worker_grace: Duration,
    /// How long a worker may not answer, though it is connected, until it is lost; 0s is for ever
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = silence)]
    pub(crate) worker_silence: Duration,
    /// How long a client that is not heard of any more may take to come back for its jobs
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub(crate) client_grace: Duration,
    /// Stores the secrets of jobs too, so that those with secrets can be begun after a restart
    #[arg(long)]
    pub(crate) store_secrets: bool,
    /// How long a job's log may be
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = size)]
    pub(crate) job_log_limit: u64,
    /// Forgets the jobs that ended first when the logs of all have more
    #[arg(long, value_name = "SIZE", default_value = "20G", value_parser = size)]
    pub(crate) logs_size: u64,
    /// Forgets jobs that ended so long ago
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    pub(crate) keep_jobs: Duration,
}

impl Default for Keeping {
    fn default() -> Self {
        let kiln_scheduler::Keeping {
            retries,
            worker_grace,
            worker_silence,
            client_grace,
            store_secrets,
            log_limit,
            logs_size,
            ended,
        } = kiln_scheduler::Keeping::default();
        Self {
            retries,
            worker_grace,
            worker_silence,
            client_grace,
            store_secrets,
            job_log_limit: log_limit,
            logs_size,
            keep_jobs: ended,
        }
    }
}

impl From<&Keeping> for kiln_scheduler::Keeping {
    fn from(keeping: &Keeping) -> Self {
        Self {
            retries: keeping.retries,
            worker_grace: keeping.worker_grace,
            worker_silence: keeping.worker_silence,
            client_grace: keeping.client_grace,
            store_secrets: keeping.store_secrets,
            log_limit: keeping.job_log_limit,
            logs_size: keeping.logs_size,
            ended: keeping.keep_jobs,
        }
    }
}

/// As long as an answer takes, at least.
fn silence(text: &str) -> Result<Duration, String> {
    let silence = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match silence.as_secs() {
        0 if silence.is_zero() => Ok(silence),
        5..=86_400 => Ok(silence),
        _ => Err("expected 5s to 1day, or 0s for ever".to_owned()),
    }
}

/// A name that is part of a file's name.
fn name(text: &str) -> Result<String, &'static str> {
    match text.is_empty() || text.contains('/') {
        true => Err("a name of a pool or client here is not empty, and without `/`"),
        false => Ok(text.to_owned()),
    }
}

fn address(text: &str) -> Result<Address, &'static str> {
    text.parse().map_err(|error| match error {
        UriError::SeveralAddresses => "it listens at one address; --capnp-public-address may have several",
        _ => "expected tcp:HOST:PORT or unix:PATH",
    })
}

fn addresses(text: &str) -> Result<Addresses, &'static str> {
    text.parse().map_err(|_| "expected tcp:HOST:PORT, up to 8 of them as tcp:HOST:PORT,HOST:PORT, or unix:PATH")
}

/// A port alone is one of all addresses, as OCluster has it.
fn web(text: &str) -> Result<SocketAddr, &'static str> {
    match text.parse() {
        Ok(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
        Err(_) => text.parse().map_err(|_| "expected a port, or an address and a port, as 127.0.0.1:9100"),
    }
}

/// How to reach a scheduler.
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The capability file
    #[arg(short, long, value_name = "CAP", env = KILN_CAP, hide_env_values = true, global = true)]
    pub(crate) connect: Option<PathBuf>,
}

/// The log goes to standard output as it comes, then what the job returned. Ctrl-C cancels the job. If the connection is lost, it is opened
/// again, and the log goes on.
#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) connect: Connect,
    #[command(subcommand)]
    pub(crate) what: SubmitWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SubmitWhat {
    /// Builds a spec
    #[command(alias = "submit-obuilder")]
    Obuilder(SubmitObuilder),
    /// Builds a Dockerfile
    #[command(alias = "submit-docker")]
    Docker(Box<SubmitDocker>),
    /// Does what only some workers can
    Custom(SubmitCustom),
}

/// What all jobs have.
#[derive(Debug, Args)]
pub(crate) struct Job {
    /// The pool that does it
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: String,
    /// Jobs of the same hint go where one of them ran before
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) cache_hint: String,
    /// Goes before all jobs that are not urgent
    #[arg(long)]
    pub(crate) urgent: bool,
    /// Prints the job's id once the scheduler has stored it, and leaves it to `kiln job`
    #[arg(long)]
    pub(crate) detach: bool,
    /// Gives the job a secret, from a file or an environment variable
    #[arg(long = "secret", value_name = "ID:FILE|ID=env:VAR")]
    pub(crate) secrets: Vec<OsString>,
    /// The URL of a git repository with the sources
    #[arg(value_name = "URL", requires = "commits")]
    pub(crate) repository: Option<String>,
    /// Full hashes of commits: the first is checked out, and the others are merged into it
    #[arg(value_name = "COMMIT")]
    pub(crate) commits: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitObuilder {
    /// The spec
    #[arg(long, value_name = "SPEC", alias = "file")]
    pub(crate) local_file: PathBuf,
    #[command(flatten)]
    pub(crate) job: Job,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitDocker {
    /// A Dockerfile here
    #[arg(long, value_name = "FILE", conflicts_with = "context_dockerfile")]
    pub(crate) local_dockerfile: Option<PathBuf>,
    /// A Dockerfile in the commit [default: Dockerfile]
    #[arg(long, value_name = "PATH")]
    pub(crate) context_dockerfile: Option<String>,
    /// Where the worker pushes the image
    #[arg(long, value_name = "REPOSITORY:TAG", value_parser = target)]
    pub(crate) push_to: Option<String>,
    /// Who pushes
    #[arg(long, value_name = "USER", requires = "push_to", requires = "push_password")]
    pub(crate) push_user: Option<String>,
    /// The file whose first line is that user's password
    #[arg(long, value_name = "FILE", requires = "push_to", requires = "push_user")]
    pub(crate) push_password: Option<PathBuf>,
    /// An argument of the build, as NAME=VALUE
    #[arg(long = "build-arg", value_name = "ARGUMENT")]
    pub(crate) build_args: Vec<String>,
    /// Makes one layer of all
    #[arg(long)]
    pub(crate) squash: bool,
    /// Builds with BuildKit
    #[arg(long)]
    pub(crate) buildkit: bool,
    /// Leaves .git in the sources
    #[arg(long)]
    pub(crate) include_git: bool,
    #[command(flatten)]
    pub(crate) job: Job,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitCustom {
    /// What kind of job it is
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: String,
    /// What the worker is told: a Cap'n Proto message, as `capnp encode` writes it [default: nothing]
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) job: Job,
}

fn target(text: &str) -> Result<String, &'static str> {
    match text.rsplit_once(':') {
        Some((repository, tag)) if !repository.is_empty() && !tag.is_empty() => Ok(text.to_owned()),
        _ => Err("expected REPOSITORY:TAG"),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Admin {
    #[command(flatten)]
    pub(crate) connect: Connect,
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Shows the pools, or a pool, or whether a worker is paused
    Show(Show),
    /// Allows another client, and prints its capability: put it into a file that only the client can read
    AddClient(Client),
    /// Allows a client no longer
    RemoveClient(Client),
    /// Lists the clients
    ListClients,
    /// Sets a client's share of a pool, beside those of others who have jobs waiting
    SetRate(SetRate),
    /// Gives workers no more jobs
    Pause(Pause),
    /// Gives paused workers jobs again
    Unpause(Unpause),
    /// Pauses workers, and waits until they do nothing
    Drain(Drain),
    /// Lets workers finish what they do and restart, and waits until they are back: one first, then the others
    Update(PoolAndWorker),
    /// Forgets a worker that is gone
    Forget(PoolAndWorker),
    /// Runs a command here for each worker of a pool, all at once
    Exec(Exec),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Prints names only, or the state of the worker only
    #[arg(long)]
    pub(crate) terse: bool,
    /// The pool
    pub(crate) pool: Option<String>,
    /// The worker
    pub(crate) worker: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Client {
    /// The client's name, which is any text
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SetRate {
    /// The pool
    pub(crate) pool: String,
    /// The client
    pub(crate) client: String,
    /// Its share, 1 unless set
    pub(crate) rate: f64,
}

/// Some of the workers of a pool.
#[derive(Debug, Args)]
pub(crate) struct Workers {
    /// All workers of the pool
    #[arg(long, conflicts_with = "worker")]
    pub(crate) all: bool,
    /// The pool
    pub(crate) pool: String,
    /// The worker
    pub(crate) worker: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Waits until they do nothing
    #[arg(long)]
    pub(crate) wait: bool,
    /// Also if it has never been seen
    #[arg(long)]
    pub(crate) auto_create: bool,
    #[command(flatten)]
    pub(crate) workers: Workers,
}

#[derive(Debug, Args)]
pub(crate) struct Unpause {
    /// Also if it has never been seen
    #[arg(long)]
    pub(crate) auto_create: bool,
    #[command(flatten)]
    pub(crate) workers: Workers,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub(crate) workers: Workers,
}

#[derive(Debug, Args)]
pub(crate) struct PoolAndWorker {
    /// The pool
    pub(crate) pool: String,
    /// The worker
    pub(crate) worker: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The pool
    pub(crate) pool: String,
    /// The command and its arguments, where `{}` stands for the worker's name
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// For trying out. Ctrl-C ends it.
#[derive(Debug, Args)]
pub(crate) struct Cluster {
    /// Where all that is kept is [default: kiln/cluster in $XDG_STATE_HOME or ~/.local/state]
    #[arg(value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Where the scheduler listens
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "tcp:127.0.0.1:0", hide_default_value = true)]
    pub(crate) listen: Address,
    /// How many jobs the worker does at once [default: the number of processors]
    #[arg(long, value_name = "N")]
    pub(crate) capacity: Option<u16>,
}
