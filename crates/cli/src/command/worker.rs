//! `kiln worker`: does the jobs of a pool.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kiln_api::{CapabilityUri, Limits, cap_file};
use kiln_engine::{Engine, Settings as EngineSettings};
use kiln_image::{Images, ImagesSettings, Notices};
use kiln_store::Store;
use kiln_worker::agent::{self, Ended, Settings};
use kiln_worker::builds::Builds;
use kiln_worker::command::{Command, Environment};
use kiln_worker::context::{self, Contexts};
use kiln_worker::docker::{self, Docker};
use kiln_worker::{Clones, DockerPrune, Hands, HealthCheck, Others};
use tokio_util::sync::CancellationToken;

use super::{cancel_on_signals, maintain};
use crate::args;
use crate::config::Policy;
use crate::exit::Failure;
use crate::peer::{PeerError, on_one_thread};
use crate::render::tell;
use crate::settings::{open_store, registries};

/// How old Docker's images are before they are pruned, and how often to look.
const DOCKER_HOURS: u64 = 1;
const DOCKER_EVERY: Duration = Duration::from_secs(600);

/// What programs that a worker runs get of its environment.
const PASSED_ON: [&str; 13] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "XDG_RUNTIME_DIR",
];

pub(super) fn run(arguments: &args::Worker) -> Result<ExitCode, Failure> {
    let file = arguments.connect.connect.as_deref().ok_or(PeerError::NoCapability)?;
    let pool = cap_file::load(file).map_err(PeerError::from)?;
    let stop = cancel_on_signals().map_err(Failure::Runtime)?;
    match work(arguments, pool, stop)? {
        Ended::Stopped => Ok(ExitCode::SUCCESS),
        Ended::Update => restart(),
    }
}

/// A worker for trying out.
pub(super) struct Local {
    /// The pool that it is of.
    pub(super) pool: CapabilityUri,
    pub(super) name: String,
    /// How many jobs it does at once.
    pub(super) capacity: usize,
    /// What it keeps.
    pub(super) state: PathBuf,
}

/// Does jobs until `stop`.
pub(super) async fn run_local(worker: Local, stop: CancellationToken) -> Result<(), Failure> {
    let Local { pool, name, capacity, state } = worker;
    let capacity = capacity.to_string();
    let line: [OsString; 8] = [
        "kiln".into(),
        "worker".into(),
        "--name".into(),
        name.into(),
        "--capacity".into(),
        capacity.into(),
        "--no-healthcheck".into(),
        "--state-dir".into(),
    ];
    let parsed = <args::Kiln as clap::Parser>::try_parse_from(line.into_iter().chain([state.into_os_string()]));
    let Ok(args::Kiln { command: args::Command::Worker(arguments), .. }) = parsed else {
        unreachable!("this is a command line of ours");
    };
    let builds = super::runtime()?;
    let result = Prepared::new(&arguments, pool, builds.handle())?.work(stop, builds.handle()).await;
    // What was cancelled may still be on its way out, which is not to be waited for in here.
    builds.shutdown_background();
    result.map(|_| ())
}

fn work(arguments: &args::Worker, pool: CapabilityUri, stop: CancellationToken) -> Result<Ended, Failure> {
    let builds = super::runtime()?;
    let prepared = Prepared::new(arguments, pool, builds.handle())?;
    on_one_thread(prepared.work(stop, builds.handle()))?
}

/// A worker that has all it needs.
struct Prepared {
    settings: Settings,
    store: Arc<Store>,
    policy: Policy,
}

impl Prepared {
    fn new(arguments: &args::Worker, pool: CapabilityUri, builds: &tokio::runtime::Handle) -> Result<Self, Failure> {
        let state = make(&arguments.state_dir)?;
        let (logs, scratch) = (make(&state.join("logs"))?, make(&state.join("scratch"))?);
        let environment = environment();
        let git = context::Settings {
            environment: environment.clone(),
            files: arguments.allow_local_repositories,
            ..context::Settings::default()
        };
        let contexts = Contexts::open(&state.join("git"), &git)?;
        let policy = Policy::read(arguments.config.config.as_deref())?;
        let store = Arc::new(open_store(&arguments.store)?);
        let _inside = builds.enter();
        let builds = Builds::new(engine(arguments, &store)?, arguments.allow_local_bases);
        let docker = (!arguments.no_docker).then(|| {
            let settings = docker::Settings::new(environment.clone(), scratch.clone());
            Docker::new(docker::Settings { allow_push: arguments.allow_push.clone(), ..settings })
        });
        let hands = Hands {
            contexts,
            builds: Some(builds),
            docker,
            custom: arguments.custom.clone(),
            scratch,
            environment: environment.clone(),
        };
        let settings = Settings {
            name: arguments.name.clone().map_or_else(machine, Into::into),
            capacity: arguments.capacity,
            weights: arguments.weights.clone(),
            pool,
            hands: Arc::new(hands),
            logs,
            log_limit: arguments.job_log_limit,
            health: health(arguments, &environment),
            docker_prune: arguments.prune_threshold.map(|free_percent| DockerPrune {
                free_percent,
                hours: DOCKER_HOURS,
                every: DOCKER_EVERY,
            }),
            clones: Clones { unused: arguments.clones_unused, most_bytes: arguments.clones_size },
            metrics: Others {
                host: Some(arguments.host_metrics.clone()),
                additional: arguments
                    .additional_metrics
                    .iter()
                    .map(|(name, url)| (name.as_str().into(), url.clone()))
                    .collect(),
            },
            limits: Limits::default(),
        };
        Ok(Self { settings, store, policy })
    }

    /// Works until `stop`, and keeps the store tidy meanwhile.
    async fn work(self, stop: CancellationToken, builds: &tokio::runtime::Handle) -> Result<Ended, Failure> {
        let Self { settings, store, policy } = self;
        let ended = tokio::select! {
            ended = agent::run(settings, stop, builds.clone()) => ended.map_err(Failure::from),
            never = maintain::now_and_then(&store, &policy) => match never {},
            never = crate::service::alive() => match never {},
        };
        maintain::start(&store, &policy);
        ended
    }
}

fn engine(arguments: &args::Worker, store: &Arc<Store>) -> Result<Engine, Failure> {
    let images = Images::new(ImagesSettings {
        registry: registries(&arguments.registry, Notices::default())?,
        ..ImagesSettings::default()
    });
    let steps = arguments.sandbox.policy().with_files(arguments.config.config.as_deref())?;
    let mut isolation = steps.isolation()?;
    let kind = steps.sandbox.unwrap_or_default();
    let sandbox = kind.open(&steps.limits, &mut isolation, |text| tell(format_args!("note: {text}")))?;
    // Jobs are as many as the worker's capacity allows, and each of them may have several stages.
    let jobs = usize::try_from(arguments.capacity).unwrap_or(usize::MAX).max(crate::settings::default_jobs());
    Ok(Engine::new(Arc::clone(store), sandbox, Arc::new(images), EngineSettings { jobs, isolation }))
}

fn health(arguments: &args::Worker, environment: &Environment) -> Option<HealthCheck> {
    if arguments.no_healthcheck {
        return None;
    }
    let command = match &arguments.healthcheck {
        Some(line) => Command::new("sh", environment).args(["-c", line]).named(line.clone()),
        None => {
            let check = Command::new("/proc/self/exe", environment).arg("healthcheck");
            check.args(["--store", &arguments.store.store]).named("kiln healthcheck")
        }
    };
    Some(HealthCheck { command, every: arguments.healthcheck_every })
}

fn environment() -> Environment {
    let passed_on = PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    passed_on.collect()
}

/// Returns the name of this machine.
fn machine() -> bstr::BString {
    rustix::system::uname().nodename().to_bytes().into()
}

/// Makes a directory, unless it is there, that only we can look into.
fn make(path: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Failure::Write { path: path.to_owned(), source })?;
    Ok(path.to_owned())
}

/// Becomes the program that is installed now, with the same arguments.
fn restart() -> Result<ExitCode, Failure> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "kiln".into());
    let program = std::env::current_exe().map_err(Failure::Runtime)?;
    // So the kernel says that it was replaced.
    let program = match program.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => program,
    };
    tell(format_args!("note: starting {} again", program.display()));
    Err(Failure::Runtime(std::process::Command::new(program).arg0(name).args(arguments).exec()))
}
