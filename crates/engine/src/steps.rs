//! The three kinds of step: the import of a base, a command, a copy. Each is named by what it is made of, then found or
//! made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bstr::BString;
use kiln_store::{Description, Id, Snapshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::base::Base;
use crate::build::{Build, blocking};
use crate::copy::{self, Target};
use crate::engine::Shared;
use crate::error::{At, BuildError, CopyError, Stopped, describe};
use crate::events::{Event, StepInfo};
use crate::export::StepDetail;
use crate::import::Import;
use crate::key::{Encoder, StepKey};
use crate::manifest::{Manifest, Tree, Wanted};
use crate::plan::{self, Action, Context, Item, Stage};
use crate::run::{self, Command, RunEnd};

/// Reading for a copy that was begun ahead of its use.
pub(crate) type Hashing = AbortOnDropHandle<Result<Manifest, BuildError>>;

impl Build {
    pub(crate) async fn import(
        self: &Arc<Self>,
        stage: &Stage,
        step: Arc<StepInfo>,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>> {
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
            Import { shared, base, publisher, cancel }.run(lease, text).await
        })
        .await
    }

    pub(crate) async fn run(
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
        let isolation = self.shared.settings.isolation.clone();
        let build = Arc::clone(self);
        let command = Command { step: Arc::clone(&step), run: run.clone(), context, secrets, isolation };
        let failures = self.request.failures.clone();
        self.step(step, id, true, move |shared, publisher, cancel, lease| async move {
            let started = Instant::now();
            let draft = shared.begin_limited(lease, parent).await?;
            publisher.log(draft.log(), 0);
            let place = shared.enter(|map| draft.root().mount_mapped(map), |why| build.notice(why)).await;
            let ended = match place {
                Ok(place) => command.run(&shared.store, &*shared.sandbox, &draft, place, &publisher, &cancel).await,
                Err(error) => Err(error),
            };
            let summary = command.step.text.clone();
            match ended {
                Ok(RunEnd { status, limit, usage }) if !status.success() => {
                    let how = describe(status, limit);
                    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let detail = serde_json::json!({ "failure": how, "took_ms": took_ms, "usage": usage });
                    let id = *draft.id();
                    if let Some(failures) = failures {
                        command.show_failure(&failures, &shared, &draft, &how, &cancel).await;
                    }
                    shared.fail(draft, Description { summary, detail }).await?;
                    Err(BuildError::StepFailed { step: command.step, id, status, limit, usage: Box::new(usage) })
                }
                ended => {
                    let detail = |end: RunEnd| StepDetail::of_run(&command.context, &command.run, end.usage).to_json();
                    let description = ended.map(|end| Description { summary, detail: detail(end) });
                    shared.finish(draft, description).await
                }
            }
        })
        .await
    }

    pub(crate) async fn copy(
        self: &Arc<Self>,
        step: Arc<StepInfo>,
        copy: &kiln_spec::Copy,
        from_stage: Option<usize>,
        context: &Context,
        parent: Arc<Snapshot>,
        hashed: Option<Hashing>,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        self.events.event(Event::Started(Arc::clone(&step)));
        let copying = Copying::new(&step, copy, context);
        if !copying.wanted.into_directory && copy.src.len() != 1 {
            let (dst, count) = (copy.dst.to_string(), copy.src.len());
            return Err(Arc::new(copying.failed(CopyError::SeveralForOne { dst, count }.into())));
        }
        let source = match from_stage {
            Some(stage) => Some(self.end_of(stage).await?),
            None => None,
        };
        let digest = match (&source, hashed) {
            // What a result holds never changes: ask once.
            (Some(source), _) => {
                let question = copying.question(source);
                match self.shared.store.recall(&question).map_err(BuildError::from)?.and_then(|hex| hex.parse().ok()) {
                    Some(digest) => digest,
                    None => {
                        let (manifest, _) = self.manifest(Some(source), &copying, &self.cancel).await?;
                        let digest = Id::new(manifest.digest());
                        self.shared.store.remember(&question, &digest.to_string()).map_err(BuildError::from)?;
                        digest
                    }
                }
            }
            (None, Some(hashed)) => {
                let read = hashed.await.unwrap_or_else(|panic| Err(BuildError::Bug(panic.to_string())));
                Id::new(read?.digest())
            }
            (None, None) => return Err(Arc::new(BuildError::Bug("a copy was not hashed".to_owned()))),
        };
        let manifest = *digest.as_bytes();
        let id =
            StepKey::Copy { parent: parent.id(), user: &context.user, dst: &copying.dst, manifest: &manifest }.id();
        let build = Arc::clone(self);
        let user = context.user.clone();
        let detail = StepDetail::of(context).to_json();
        let text = step.text.clone();
        self.step(step, id, true, move |shared, _, cancel, lease| async move {
            let draft = shared.begin(lease, Some(parent)).await?;
            let written = async {
                // Read again, or for the first time: from the remembered digests, this costs little.
                let (manifest, tree) = build.manifest(source.as_ref(), &copying, &cancel).await?;
                if manifest.digest() != *digest.as_bytes() {
                    return Err(copying.failed(CopyError::Changed(".".to_owned()).into()));
                }
                let root = draft.root().mount().at("mount", shared.store.path())?;
                let user = run::resolve_user(&user, &root, &copying.step)?;
                blocking(move || {
                    let tree = tree.as_ref().unwrap_or(&build.source);
                    let target = Target { root: &root, dst: &copying.dst, owner: (user.uid, user.gid) };
                    copy::into(&target, tree, &manifest, &cancel).map_err(|stopped| copying.failed(stopped))
                })
                .await
            };
            let written = written.await;
            let description = written.map(|()| Description { summary: text, detail });
            shared.finish(draft, description).await
        })
        .await
    }

    /// Reads what a copy takes: from a stage's result, or from the source directory. Returns the tree of a result along.
    async fn manifest(
        self: &Arc<Self>,
        source: Option<&Arc<Snapshot>>,
        copying: &Copying,
        cancel: &CancellationToken,
    ) -> Result<(Manifest, Option<Tree>), BuildError> {
        let build = Arc::clone(self);
        let (source, copying, cancel) = (source.cloned(), copying.clone(), cancel.clone());
        blocking(move || {
            let store = &build.shared.store;
            let tree = match source {
                None => None,
                Some(snapshot) => {
                    let root = store.root(&snapshot)?.mount().at("mount", store.path())?;
                    Some(Tree::of_result(root, copying.place.clone()))
                }
            };
            let from = tree.as_ref().unwrap_or(&build.source);
            let manifest = from.manifest(&copying.wanted, store, &cancel);
            Ok((manifest.map_err(|stopped| copying.failed(stopped))?, tree))
        })
        .await
    }

    /// Starts to read what the copies of a stage take from the source directory, while its base is imported and its first
    /// steps run.
    pub(crate) fn hash_ahead(self: &Arc<Self>, stage: &Stage, steps: &[Arc<StepInfo>]) -> HashMap<usize, Hashing> {
        let mut hashing = HashMap::new();
        for (at, (item, step)) in stage.items.iter().zip(steps).enumerate() {
            if let Item { action: Action::Copy { copy, from_stage: None, context }, .. } = item {
                let (build, copying) = (Arc::clone(self), Copying::new(step, copy, context));
                let task = tokio::spawn(async move {
                    let (manifest, _) = build.manifest(None, &copying, &build.cancel).await?;
                    Ok(manifest)
                });
                hashing.insert(at, AbortOnDropHandle::new(task));
            }
        }
        hashing
    }
}

/// A copy, its paths resolved.
#[derive(Clone)]
struct Copying {
    step: Arc<StepInfo>,
    wanted: Wanted,
    /// Absolute; ends in `/` if the copies go into it.
    dst: BString,
    /// Where the files come from, for messages.
    place: String,
}

impl Copying {
    fn new(step: &Arc<StepInfo>, copy: &kiln_spec::Copy, context: &Context) -> Self {
        let dst = plan::join(&context.workdir, &copy.dst);
        let wanted =
            Wanted { src: copy.src.clone(), exclude: copy.exclude.clone(), into_directory: dst.ends_with(b"/") };
        let place = match &copy.source {
            kiln_spec::Source::Build(name) => format!("the build `{name}`"),
            kiln_spec::Source::Context => "the source directory".to_owned(),
        };
        Self { step: Arc::clone(step), wanted, dst, place }
    }

    fn failed(&self, stopped: Stopped) -> BuildError {
        match stopped {
            Stopped::Cancelled => BuildError::Cancelled,
            Stopped::Failed(source) => BuildError::Copy { step: Arc::clone(&self.step), source },
        }
    }

    /// The question under which the digest of a copy from a result is remembered. A result that is made anew has the same
    /// id and may hold something else, so its time counts too.
    fn question(&self, source: &Snapshot) -> String {
        let mut encoder = Encoder::new("kiln copy 1");
        encoder.bytes(source.id().to_string().as_bytes()).bytes(&source.meta().created_ms.to_le_bytes());
        encoder.bytes(&[u8::from(self.wanted.into_directory)]);
        for list in [&self.wanted.src, &self.wanted.exclude] {
            encoder.count(list.len());
            for name in list {
                encoder.bytes(name);
            }
        }
        format!("copy {}", Id::new(encoder.finish()))
    }
}
