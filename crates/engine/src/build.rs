//! One build: stages side by side, each step found or made.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bstr::BString;
use kiln_image::Fetcher;
use kiln_sandbox::{Sandbox, SecretBytes};
use kiln_spec::Spec;
use kiln_store::{Description, Draft, Id, Snapshot, Store};
use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::base::{self, Base};
use crate::copy::{self, Stopped, Target};
use crate::error::{At, BuildError, CopyError, describe};
use crate::events::{Event, Events, StepInfo};
use crate::flight::{Claim, Flights, News, Outcome, Publisher, claim, read_between};
use crate::key::StepKey;
use crate::manifest::{Manifest, Tree};
use crate::plan::{self, Action, Context, Item, Plan, Stage};
use crate::run::{self, Command};

/// What an engine works with, for all its builds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many steps run at once, over all builds. At least 1.
    pub jobs: usize,
    /// Whether `fsync(2)` and its like do nothing in steps. A result is only offered again after a crash of the machine
    /// when it is known to be on the disk, so steps need not wait for the disk.
    pub fast_sync: bool,
}

/// Runs builds on one store. Cheap to share; builds that want the same step share it.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<Store>,
    sandbox: Arc<dyn Sandbox>,
    fetcher: Arc<dyn Fetcher>,
    settings: Settings,
    flights: Flights,
    jobs: Semaphore,
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
    /// Makes every step anew and replaces what was stored; bases stay.
    pub no_cache: bool,
    /// Asks again what references without a digest stand for.
    pub pull: bool,
    /// Builds this stage instead of the last one.
    pub target: Option<BString>,
}

/// What a build came to.
#[derive(Debug)]
pub struct Built {
    /// The result.
    pub snapshot: Arc<Snapshot>,
}

impl Engine {
    /// Makes an engine. Store, sandbox and fetcher must fit together.
    pub fn new(store: Arc<Store>, sandbox: Arc<dyn Sandbox>, fetcher: Arc<dyn Fetcher>, settings: Settings) -> Self {
        let jobs = Semaphore::new(settings.jobs.max(1));
        Self { shared: Arc::new(Shared { store, sandbox, fetcher, settings, flights: Flights::default(), jobs }) }
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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = rustix::fs::openat(CWD, &request.source, flags, Mode::empty());
        let source = source.at("open the source directory", &request.source)?;
        // Steps are numbered in the order of the spec, a stage's import first.
        let mut number = 0;
        let mut firsts = Vec::new();
        for stage in &plan.stages {
            firsts.push(number);
            number += 1 + stage.items.len();
        }
        let (ends, watches): (Vec<_>, Vec<_>) = plan.stages.iter().map(|_| watch::channel(None)).unzip();
        let build = Arc::new(Build {
            shared: Arc::clone(&self.shared),
            source: Tree::new(source, "the source directory".to_owned(), true),
            request,
            events,
            cancel: cancel.child_token(),
            ends: watches,
            fresh: Mutex::default(),
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
        last.map(|snapshot| Built { snapshot }).ok_or_else(|| Arc::new(BuildError::Bug("no stage ended".to_owned())))
    }

    /// Waits until nothing runs any more, not even what was cancelled. No build may be started meanwhile.
    pub async fn idle(&self) {
        self.shared.flights.tasks.close();
        self.shared.flights.tasks.wait().await;
    }
}

/// A build that runs.
struct Build {
    shared: Arc<Shared>,
    request: Request,
    source: Tree,
    events: Arc<dyn Events>,
    cancel: CancellationToken,
    /// The result of each stage, once it is there.
    ends: Vec<watch::Receiver<Option<Arc<Snapshot>>>>,
    /// With `no_cache`: the steps that this build has made itself.
    fresh: Mutex<HashSet<Id>>,
}

impl Build {
    /// Runs one stage to its end.
    async fn stage(self: &Arc<Self>, stage: Stage, first: usize) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        let name = stage.name.as_ref().map(BString::to_string);
        let info = |at: usize, text: String| Arc::new(StepInfo { number: first + at, stage: name.clone(), text });
        let hashing = self.hash_ahead(&stage);
        let import = info(0, format!("(from {})", stage.from));
        let mut snapshot = self.import(&stage, import).await?;
        let image_env = base::env(&snapshot.meta().detail)?;
        for (at, item) in stage.items.iter().enumerate() {
            let step = info(1 + at, item.text.clone());
            snapshot = match &item.action {
                Action::Note => {
                    self.events.event(Event::Noted(step));
                    continue;
                }
                Action::Run { run, context } => self.run(step, run, context, &image_env, snapshot).await?,
                Action::Copy { copy, from_stage, context } => {
                    let hashed = hashing.get(&at).cloned();
                    self.copy(step, copy, *from_stage, context, snapshot, hashed).await?
                }
            };
        }
        // Builds that nothing is copied from have to succeed too.
        for needed in stage.needs() {
            self.end_of(needed).await?;
        }
        Ok(snapshot)
    }

    /// Waits for the result of another stage. If that fails, so does the build, and this is cancelled.
    async fn end_of(&self, stage: usize) -> Result<Arc<Snapshot>, BuildError> {
        let mut end = self.ends[stage].clone();
        let ended = tokio::select! {
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            ended = end.wait_for(Option::is_some) => ended.ok().and_then(|snapshot| snapshot.clone()),
        };
        match ended {
            Some(snapshot) => Ok(snapshot),
            // It failed; its error is on its way.
            None => {
                self.cancel.cancelled().await;
                Err(BuildError::Cancelled)
            }
        }
    }

    async fn import(self: &Arc<Self>, stage: &Stage, step: Arc<StepInfo>) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        self.events.event(Event::Started(Arc::clone(&step)));
        let Shared { store, fetcher, .. } = &*self.shared;
        let relative_to = &self.request.spec_dir;
        let base = tokio::select! {
            () = self.cancel.cancelled() => return Err(Arc::new(BuildError::Cancelled)),
            base = Base::resolve(&stage.from, relative_to, store, &**fetcher, self.request.pull) => Arc::new(base?),
        };
        let id = StepKey::Base { identity: &base.identity }.id();
        let text = step.text.clone();
        self.step(step, id, false, move |shared, publisher, cancel, lease| async move {
            let draft = shared.store.begin(lease, None)?;
            let fetched = base.fetch(&shared.store, &*shared.fetcher, &draft, &publisher, &cancel).await;
            let description = fetched.map(|config| Description { summary: text, detail: base::detail(&base, &config) });
            shared.finish(draft, description)
        })
        .await
    }

    async fn run(
        self: &Arc<Self>,
        step: Arc<StepInfo>,
        run: &kiln_spec::Run,
        context: &Context,
        image_env: &[(String, String)],
        parent: Arc<Snapshot>,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        self.events.event(Event::Started(Arc::clone(&step)));
        let mut context = context.clone();
        let mut env: Vec<(BString, BString)> = Vec::new();
        let image_env = image_env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into()));
        for (name, value) in image_env.chain(std::mem::take(&mut context.env)) {
            plan::set(&mut env, name, value);
        }
        context.env = env;
        let caches: Vec<_> = run.caches.iter().map(|cache| (&cache.name, &cache.target)).collect();
        let secrets: Vec<_> = run.secrets.iter().map(|secret| (&secret.name, &secret.target)).collect();
        let id = StepKey::Run {
            parent: parent.id(),
            env: &context.env,
            user: &context.user,
            workdir: &context.workdir,
            shell: &context.shell,
            command: &run.command,
            networks: &run.networks,
            caches: &caches,
            secrets: &secrets,
        }
        .id();
        let secrets = run.secrets.iter().filter_map(|secret| {
            // The plan was checked: every secret has a value.
            let value = self.request.secrets.get(&secret.name)?.clone();
            Some((run::path(&plan::join(&context.workdir, &secret.target)), value))
        });
        let secrets = secrets.collect();
        let fast_sync = self.shared.settings.fast_sync;
        let command = Command { step: Arc::clone(&step), run: run.clone(), context, secrets, fast_sync };
        self.step(step, id, true, move |shared, publisher, cancel, lease| async move {
            let started = Instant::now();
            let draft = shared.store.begin(lease, Some(parent))?;
            publisher.log(draft.log(), 0);
            let ended = command.run(&shared.store, &*shared.sandbox, &draft, &publisher, &cancel).await;
            let summary = command.step.text.clone();
            match ended {
                Ok(status) if !status.success() => {
                    let how = describe(status);
                    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let detail = serde_json::json!({ "failure": how, "took_ms": took_ms });
                    let id = *draft.id();
                    shared.store.fail(draft, Description { summary, detail })?;
                    Err(BuildError::StepFailed { step: command.step, id, status })
                }
                ended => shared.finish(draft, ended.map(|_| Description { summary, detail: serde_json::Value::Null })),
            }
        })
        .await
    }

    async fn copy(
        self: &Arc<Self>,
        step: Arc<StepInfo>,
        copy: &kiln_spec::Copy,
        from_stage: Option<usize>,
        context: &Context,
        parent: Arc<Snapshot>,
        hashed: Option<Hashing>,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        self.events.event(Event::Started(Arc::clone(&step)));
        let dst = plan::join(&context.workdir, &copy.dst);
        let failed = |source| BuildError::Copy { step: Arc::clone(&step), source };
        if !dst.ends_with(b"/") && copy.src.len() != 1 {
            let (dst, count) = (copy.dst.to_string(), copy.src.len());
            return Err(Arc::new(failed(CopyError::SeveralForOne { dst, count })));
        }
        let source = match from_stage {
            Some(stage) => Some(self.end_of(stage).await?),
            None => None,
        };
        let digest = match (&source, hashed) {
            // What a result holds never changes: ask once.
            (Some(source), _) => {
                let question = copied(source.id(), copy);
                match self.shared.store.recall(&question).map_err(BuildError::from)?.and_then(|hex| hex.parse().ok()) {
                    Some(digest) => digest,
                    None => {
                        let (manifest, _) = self.manifest(Some(source), copy).await?.map_err(failed)?;
                        let digest = Id::new(manifest.digest());
                        self.shared.store.remember(&question, &digest.to_string()).map_err(BuildError::from)?;
                        digest
                    }
                }
            }
            (None, Some(hashed)) => Id::new(hashed.get().await?.map_err(failed)?.digest()),
            (None, None) => return Err(Arc::new(BuildError::Bug("a copy was not hashed".to_owned()))),
        };
        let manifest = *digest.as_bytes();
        let id = StepKey::Copy { parent: parent.id(), user: &context.user, dst: &dst, manifest: &manifest }.id();
        let build = Arc::clone(self);
        let copy = copy.clone();
        let user = context.user.clone();
        let text = step.text.clone();
        let making = Arc::clone(&step);
        self.step(step, id, true, move |shared, _, cancel, lease| async move {
            let draft = shared.store.begin(lease, Some(parent))?;
            let written = async {
                let failed = |source| BuildError::Copy { step: Arc::clone(&making), source };
                // Read again, or for the first time: from the remembered digests, this costs little.
                let (manifest, tree) = build.manifest(source.as_ref(), &copy).await?.map_err(failed)?;
                if manifest.digest() != *digest.as_bytes() {
                    return Err(failed(CopyError::Changed(".".to_owned())));
                }
                let root = draft.root().mount().at("mount", shared.store.path())?;
                let user = run::resolve_user(&user, &root, &making)?;
                let write = move || {
                    let tree = tree.as_ref().unwrap_or(&build.source);
                    let target = Target { root: &root, dst: &dst, owner: (user.uid, user.gid) };
                    copy::into(&target, tree, &manifest, &cancel)
                };
                match blocking(write).await? {
                    Ok(()) => Ok(()),
                    Err(Stopped::Cancelled) => Err(BuildError::Cancelled),
                    Err(Stopped::Failed(source)) => Err(failed(source)),
                }
            };
            let written = written.await;
            shared.finish(draft, written.map(|()| Description { summary: text, detail: serde_json::Value::Null }))
        })
        .await
    }

    /// Reads what a copy takes: from a stage's result, or from the source directory. Returns the tree of a result along.
    async fn manifest(
        self: &Arc<Self>,
        source: Option<&Arc<Snapshot>>,
        copy: &kiln_spec::Copy,
    ) -> Result<Result<(Manifest, Option<Tree>), CopyError>, BuildError> {
        let tree = match source {
            None => None,
            Some(snapshot) => {
                let root = self.shared.store.root(snapshot)?.mount().at("mount", self.shared.store.path())?;
                let place = match &copy.source {
                    kiln_spec::Source::Build(name) => format!("the build `{name}`"),
                    kiln_spec::Source::Context => "the source directory".to_owned(),
                };
                Some(Tree::new(root, place, false))
            }
        };
        let build = Arc::clone(self);
        let copy = copy.clone();
        blocking(move || {
            let is_directory = copy.dst.ends_with(b"/") || matches!(&**copy.dst, b"." | b"..");
            let from = tree.as_ref().unwrap_or(&build.source);
            let manifest = from.manifest(&copy.src, &copy.exclude, is_directory, &build.shared.store)?;
            Ok((manifest, tree))
        })
        .await
    }

    /// Starts to read what the copies of a stage take from the source directory, while its base is imported and its first
    /// steps run.
    fn hash_ahead(self: &Arc<Self>, stage: &Stage) -> HashMap<usize, Hashing> {
        let mut hashing = HashMap::new();
        for (at, item) in stage.items.iter().enumerate() {
            if let Item { action: Action::Copy { copy, from_stage: None, .. }, .. } = item {
                let (build, copy) = (Arc::clone(self), copy.clone());
                let task = tokio::spawn(async move { build.manifest(None, &copy).await });
                hashing.insert(at, Hashing(Arc::new(tokio::sync::Mutex::new(Some(task)))));
            }
        }
        hashing
    }

    /// Finds or makes the step `id`, and tells what happens. `make` is called with the lease if it is to be made here.
    async fn step<F>(
        self: &Arc<Self>,
        step: Arc<StepInfo>,
        id: Id,
        is_replaced: bool,
        make: impl FnOnce(Arc<Shared>, Publisher, CancellationToken, kiln_store::Lease) -> F + Send + 'static,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>>
    where
        F: Future<Output = Result<Snapshot, BuildError>> + Send + 'static,
    {
        let started = Instant::now();
        let is_stale = self.request.no_cache && is_replaced && !self.is_fresh(&id);
        let shared = Arc::clone(&self.shared);
        if !is_stale && let Some(snapshot) = shared.store.lookup(&id).map_err(BuildError::from)? {
            return Ok(self.found(&step, Arc::new(snapshot))?);
        }
        let flight = self.shared.flights.join(id, |publisher, cancel| async move {
            if is_stale {
                shared.forget(&id)?;
            }
            let lease = match claim(&shared.store, &id, &publisher, &cancel).await? {
                Claim::Found(snapshot) => return Ok(Outcome::Found(snapshot)),
                Claim::Ours(lease) => lease,
            };
            let _permit = tokio::select! {
                () = cancel.cancelled() => return Err(BuildError::Cancelled),
                permit = shared.jobs.acquire() => permit.expect("the semaphore is never closed"),
            };
            let started = Instant::now();
            let snapshot = make(Arc::clone(&shared), publisher, cancel, lease).await?;
            Ok(Outcome::Made(Arc::new(snapshot), started.elapsed()))
        });
        let mut has_told = false;
        let tell = |news| {
            let step = Arc::clone(&step);
            self.events.event(match news {
                News::Output(bytes) => {
                    has_told = true;
                    Event::Output(step, bytes)
                }
                News::Bytes(done, total) => Event::Progress(step, done, total),
                News::Holder(pid) => Event::Following(step, pid),
            });
        };
        let ended = tokio::select! {
            () = self.cancel.cancelled() => Err(Arc::new(BuildError::Cancelled)),
            ended = flight.follow(tell) => ended,
        };
        match ended {
            Ok(Outcome::Found(snapshot)) if !has_told => Ok(self.found(&step, snapshot)?),
            Ok(outcome) => {
                let snapshot = Arc::clone(outcome.snapshot());
                self.fresh.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                self.events.event(match outcome {
                    Outcome::Found(_) => Event::Cached(step, id),
                    Outcome::Made(_, took) => Event::Saved(step, id, took),
                });
                Ok(snapshot)
            }
            Err(error) => {
                if let BuildError::StepFailed { id, status, .. } = &*error {
                    self.events.event(Event::Failed(step, *id, *status, started.elapsed()));
                }
                Err(error)
            }
        }
    }

    fn is_fresh(&self, id: &Id) -> bool {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Tells of a step that was in the store: its log, then that it was.
    fn found(&self, step: &Arc<StepInfo>, snapshot: Arc<Snapshot>) -> Result<Arc<Snapshot>, BuildError> {
        let log = snapshot.log()?;
        let length = log.metadata().at("read", "the log")?.len();
        read_between(&log, 0, length, |bytes| self.events.event(Event::Output(Arc::clone(step), bytes)))?;
        self.events.event(Event::Cached(Arc::clone(step), *snapshot.id()));
        Ok(snapshot)
    }
}

impl Shared {
    /// Commits the draft with its description, or discards it and returns why there is none.
    fn finish(&self, draft: Draft, description: Result<Description, BuildError>) -> Result<Snapshot, BuildError> {
        match description {
            Ok(description) => Ok(self.store.commit(draft, description)?),
            Err(error) => {
                if let Err(left) = self.store.discard(draft) {
                    tracing::warn!(error = %left, "cannot discard a draft");
                }
                Err(error)
            }
        }
    }

    /// Removes the result `id` and what stands on it, if it is there, so that it is made anew.
    fn forget(&self, id: &Id) -> Result<(), BuildError> {
        if self.store.lookup(id)?.is_some() {
            self.store.remove(id, true)?;
        }
        Ok(())
    }
}

/// Reading that was begun ahead of its use. The first to ask takes it.
#[derive(Clone)]
struct Hashing(Arc<tokio::sync::Mutex<Option<tokio::task::JoinHandle<Read>>>>);

/// What [`Build::manifest`] returns.
type Read = Result<Result<(Manifest, Option<Tree>), CopyError>, BuildError>;

impl Hashing {
    async fn get(self) -> Result<Result<Manifest, CopyError>, BuildError> {
        let task = self.0.lock().await.take();
        let Some(task) = task else { return Err(BuildError::Bug("a copy was hashed once and used twice".to_owned())) };
        let read = task.await.map_err(|panic| BuildError::Bug(panic.to_string()))??;
        Ok(read.map(|(manifest, _)| manifest))
    }
}

/// The question under which the digest of a copy from a result is remembered.
fn copied(source: &Id, copy: &kiln_spec::Copy) -> String {
    let mut encoder = crate::key::Encoder::new("kiln copy 1");
    encoder.bytes(source.to_string().as_bytes()).bytes(&[u8::from(copy.dst.ends_with(b"/"))]);
    for list in [&copy.src, &copy.exclude] {
        encoder.count(list.len());
        for name in list {
            encoder.bytes(name);
        }
    }
    format!("copy {}", Id::new(encoder.finish()))
}

/// Runs something that blocks where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| BuildError::Bug(panic.to_string()))
}
