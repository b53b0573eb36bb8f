//! The engine: what all builds share, and how one is started.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bstr::BString;
use kiln_image::Fetcher;
use kiln_sandbox::{Limits, Network, Sandbox, Seccomp, SecretBytes};
use kiln_spec::Spec;
use kiln_store::{Quota, Snapshot, Store};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::build::Build;
use crate::error::BuildError;
use crate::events::{Event, Events};
use crate::export::RunsAs;
use crate::flight::Flights;
use crate::key::random;
use crate::manifest::Tree;
use crate::plan::Plan;
use crate::visit::FailedStep;

/// What an engine works with, for all its builds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many steps run at once, over all builds. At least 1.
    pub jobs: usize,
    /// How every step is isolated.
    pub isolation: Isolation,
}

/// How every step is isolated, whatever its spec says. No part of a step's identity: a result is the same however well
/// its maker was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Isolation {
    /// Whether `fsync(2)` and its like do nothing in steps. A result is only offered again after a crash of the machine
    /// when it is known to be on the disk, so steps need not wait for the disk.
    pub fast_sync: bool,
    /// Whose users those of steps are.
    pub user_ids: UserIds,
    /// Whether steps with ids of their own may make namespaces, as `unshare -r` and bubblewrap do.
    pub allow_namespaces: bool,
    /// Which system calls a step may make.
    pub seccomp: Seccomp,
    /// Whether the values of a step's secrets are hidden in its log.
    pub mask_secrets: bool,
    /// What network a step sees that asks for the host's.
    pub network_host: Network,
    /// What the processes of a step may use together.
    pub limits: Limits,
    /// What a step's tree, and each of its caches, may take on the disk beside what it starts with. A store that cannot
    /// limit that fails the step: ask [`Store::check_quota`] first.
    pub quota: Quota,
    /// How long a step may run. Waiting for its turn, or for another process that makes it, does not count.
    pub timeout: Option<Duration>,
    /// How long its log may become.
    pub log_limit_bytes: Option<u64>,
}

impl Default for Isolation {
    /// No limits but for the log, whose default is longer than what anybody reads and shorter than a disk.
    fn default() -> Self {
        Self {
            fast_sync: true,
            user_ids: UserIds::Auto,
            allow_namespaces: false,
            seccomp: Seccomp::Default,
            mask_secrets: true,
            network_host: Network::Host,
            limits: Limits::default(),
            quota: Quota::NONE,
            timeout: None,
            log_limit_bytes: Some(1 << 30),
        }
    }
}

/// Whose users those of a step are, to the host. The files of results belong to the same ids either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserIds {
    /// Nobody's: each running step has ids of its own. The host's where that cannot be.
    Auto,
    /// Nobody's. Where that cannot be, nothing runs.
    Own,
    /// The host's, number by number.
    Host,
}

/// Runs builds on one store. Cheap to share; builds that want the same step share it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
}

/// What all builds of an engine share.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    pub(crate) fetcher: Arc<dyn Fetcher>,
    pub(crate) settings: Settings,
    /// Why no step can have ids of its own, once one could not.
    pub(crate) no_own_ids: OnceLock<String>,
    pub(crate) flights: Flights,
    pub(crate) jobs: Semaphore,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Request {
    /// The spec.
    pub spec: Spec,
    /// References to files in the spec are relative to this directory.
    pub spec_dir: PathBuf,
    /// The source directory, for copies.
    pub source: PathBuf,
    /// Values of secrets by name.
    pub secrets: HashMap<BString, SecretBytes>,
    /// Makes every step anew, whatever is stored; bases stay. Each is another result, with another id, which later builds find in
    /// the place of the one before.
    pub no_cache: bool,
    /// Asks again what references without a digest stand for.
    pub pull: bool,
    /// Builds this stage instead of the last one.
    pub target: Option<BString>,
    /// Hears of steps that fail, and may look into what they left, before the build goes on to fail.
    pub failures: Option<mpsc::UnboundedSender<FailedStep>>,
}

/// What a build came to.
#[derive(Debug)]
pub struct Built {
    /// The result.
    pub snapshot: Arc<Snapshot>,
    /// How the spec says that it is to be run.
    pub runs_as: RunsAs,
}

impl Engine {
    /// Makes an engine. Store, sandbox and fetcher must fit together.
    pub fn new(store: Arc<Store>, sandbox: Arc<dyn Sandbox>, fetcher: Arc<dyn Fetcher>, settings: Settings) -> Self {
        let jobs = Semaphore::new(settings.jobs.max(1));
        let (no_own_ids, flights) = (OnceLock::new(), Flights::default());
        Self { shared: Arc::new(Shared { store, sandbox, fetcher, settings, no_own_ids, flights, jobs }) }
    }

    /// Builds `request`. What happens is told to `events`.
    ///
    /// When `cancel` fires, this returns soon; steps that no other build wants are killed in the background, see
    /// [`Engine::idle`].
    ///
    /// # Errors
    ///
    /// The first failure; the other stages are cancelled then.
    pub async fn build(
        &self,
        request: Request,
        events: Arc<dyn Events>,
        cancel: &CancellationToken,
    ) -> Result<Built, Arc<BuildError>> {
        let plan = Plan::new(&request.spec, request.target.as_ref()).map_err(BuildError::from)?;
        plan.check(|secret| request.secrets.contains_key(secret)).map_err(BuildError::from)?;
        events.event(Event::Planned { steps: plan.steps(), stages: plan.stages.len() });
        let source = Tree::open_source(&request.source)?;
        let runs_as = plan.stages.last().map(|stage| RunsAs::new(&stage.end)).unwrap_or_default();
        // Steps are numbered in the order of the spec, a stage's import first.
        let mut number = 0;
        let mut firsts = Vec::new();
        for stage in &plan.stages {
            firsts.push(number);
            number += 1 + stage.items.len();
        }
        let (ends, watches): (Vec<_>, Vec<_>) = plan.stages.iter().map(|_| watch::channel(None)).unzip();
        let renewal = request.no_cache.then(random).transpose()?;
        let build = Arc::new(Build {
            shared: Arc::clone(&self.shared),
            source,
            request,
            events,
            cancel: cancel.child_token(),
            ends: watches,
            renewal,
            noticed: Mutex::default(),
        });
        let mut stages = JoinSet::new();
        for ((stage, end), first) in plan.stages.into_iter().zip(ends).zip(firsts) {
            let build = Arc::clone(&build);
            stages.spawn(async move {
                let snapshot = build.stage(stage, first).await?;
                end.send_replace(Some(snapshot));
                Ok::<_, Arc<BuildError>>(())
            });
        }
        let mut failure = None;
        while let Some(ended) = stages.join_next().await {
            let ended = ended.unwrap_or_else(|panic| Err(Arc::new(BuildError::Bug(panic.to_string()))));
            if let Err(error) = ended {
                // What follows the first failure is its consequence.
                failure.get_or_insert(error);
                build.cancel.cancel();
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let last = build.ends.last().and_then(|end| end.borrow().clone());
        match last {
            Some(snapshot) => Ok(Built { snapshot, runs_as }),
            None => Err(Arc::new(BuildError::Bug("no stage ended".to_owned()))),
        }
    }

    /// Waits until nothing runs any more, not even what was cancelled. No build may be started meanwhile.
    pub async fn idle(&self) {
        self.shared.flights.tasks.close();
        self.shared.flights.tasks.wait().await;
    }
}
