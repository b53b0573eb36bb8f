//! Looking into a result, or into what a failed step left: a command of the user's, where a step's command would run.
//!
//! Nothing of it is kept, neither the tree nor what it writes to caches, so no later build is another one for it.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bstr::{BString, ByteSlice};
use kiln_sandbox::{Ended, ExitStatus, Io, Root, SandboxError, SecretBytes};
use kiln_spec::{Cache, Run, Secret, User};
use kiln_store::{Draft, Id, Snapshot, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::base;
use crate::build::blocking;
use crate::engine::{Engine, Shared};
use crate::error::{At, BuildError, describe};
use crate::events::StepInfo;
use crate::export;
use crate::key::random;
use crate::limits::Limit;
use crate::plan::{self, Context};
use crate::run::{self, Command, SIGKILL, time_of};

/// What a step's command has around it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The whole environment, the image's included.
    pub env: Vec<(BString, BString)>,
    /// Who runs it.
    pub user: User,
    /// Absolute.
    pub workdir: BString,
    /// What a command is given to as its last word; `None` for the default.
    pub shell: Option<Vec<BString>>,
    /// `host`, or none.
    pub networks: Vec<BString>,
    /// Copies of these are mounted.
    pub caches: Vec<Cache>,
    /// Those that have a value are mounted.
    pub secrets: Vec<Secret>,
}

/// Somebody who looks into a result.
#[derive(Debug)]
pub struct Visitor {
    /// Where the command reads and writes.
    pub io: Io,
    /// The kind of terminal that this is, for a `TERM` that nothing else sets.
    pub term: Option<BString>,
    /// How long the command may run. The time that steps have is not a user's.
    pub timeout: Option<Duration>,
}

/// How a visitor's command ended.
#[derive(Clone, Copy, Debug)]
pub struct Visited {
    /// How it ended: by a signal, if a limit killed it.
    pub status: ExitStatus,
    /// The limit that it came up against.
    pub limit: Option<Limit>,
}

impl Visited {
    /// Returns how it ended, to follow the command's name: `was killed: ran longer than 10s`.
    pub fn describe(&self) -> String {
        describe(self.status, self.limit)
    }
}

/// A step whose command has just failed. Its tree is kept until `visitor` is dropped, or the visit is over.
#[derive(Debug)]
pub struct FailedStep {
    /// The step.
    pub step: Arc<StepInfo>,
    /// Its command.
    pub command: BString,
    /// How that ended, to follow its name: `exited with status 2`.
    pub how: String,
    /// What it printed.
    pub log: Arc<File>,
    /// Takes who wants to look: a shell is started for them where the command ran.
    pub visitor: oneshot::Sender<Visitor>,
}

/// What a step's result tells of its command, besides how it is to be run.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct RunDetail {
    networks: Vec<String>,
    caches: Vec<Mounted>,
    secrets: Vec<Mounted>,
}

#[derive(Deserialize, Serialize)]
struct Mounted {
    name: String,
    target: String,
}

impl RunDetail {
    pub(crate) fn new(run: &Run) -> Self {
        let text = |bytes: &BString| bytes.to_str_lossy().into_owned();
        let mounted = |name, target| Mounted { name: text(name), target: text(target) };
        Self {
            networks: run.networks.iter().map(text).collect(),
            caches: run.caches.iter().map(|cache| mounted(&cache.name, &cache.target)).collect(),
            secrets: run.secrets.iter().map(|secret| mounted(&secret.name, &secret.target)).collect(),
        }
    }
}

impl Surroundings {
    /// Returns what the step had that made `snapshot`. Base images and copies have no networks, caches and secrets.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or a description is damaged.
    pub fn of(store: &Store, snapshot: &Arc<Snapshot>) -> Result<Self, BuildError> {
        let export::StepDetail { runs_as, run, .. } = export::detail(snapshot)?;
        let run = run.unwrap_or_default();
        let mut env: Vec<(BString, BString)> = Vec::new();
        for (name, value) in image_env(store, snapshot)?.iter().chain(&runs_as.env) {
            plan::set(&mut env, name.as_str().into(), value.as_str().into());
        }
        let Context { user, workdir, .. } = Context::default();
        Ok(Self {
            env,
            user: runs_as.user.map_or(user, |user| parse_user(&user)),
            workdir: runs_as.workdir.map_or(workdir, BString::from),
            shell: runs_as.shell.map(|words| words.into_iter().map(BString::from).collect()),
            networks: run.networks.into_iter().map(BString::from).collect(),
            caches: run.caches.into_iter().map(|Mounted { name, target }| cache(name.into(), target.into())).collect(),
            secrets: run
                .secrets
                .into_iter()
                .map(|Mounted { name, target }| secret(name.into(), target.into()))
                .collect(),
        })
    }

    /// Sets a variable.
    pub fn set_env(&mut self, name: BString, value: BString) {
        plan::set(&mut self.env, name, value);
    }

    /// Changes the working directory, as `workdir` in a spec does.
    pub fn enter(&mut self, dir: &[u8]) {
        self.workdir = plan::join(&self.workdir, &dir.into());
    }

    /// Mounts a copy of the cache `name` at `target`.
    pub fn add_cache(&mut self, name: BString, target: BString) {
        self.caches.push(cache(name, target));
    }

    /// Mounts the secret `name` where a spec has it by default.
    pub fn add_secret(&mut self, name: BString) {
        let target = [b"/run/secrets/", &**name].concat().into();
        self.secrets.push(secret(name, target));
    }
}

fn cache(name: BString, target: BString) -> Cache {
    Cache { name, target, buildkit_options: Vec::new() }
}

fn secret(name: BString, target: BString) -> Secret {
    Secret { name, target, buildkit_options: Vec::new() }
}

/// As [`export::RunsAs`] writes it.
fn parse_user(text: &str) -> User {
    let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    match numbers {
        Some((uid, gid)) => User::Unix { uid, gid },
        None => User::Named(text.into()),
    }
}

/// Returns the environment of the base image that a result stands on.
fn image_env(store: &Store, snapshot: &Arc<Snapshot>) -> Result<Vec<(String, String)>, BuildError> {
    let mut next = Some(Arc::clone(snapshot));
    while let Some(snapshot) = next {
        let config = base::config(&snapshot.meta().detail);
        if let Some(config) = config.map_err(|source| BuildError::Description { id: *snapshot.id(), source })? {
            return Ok(config.env);
        }
        next = export::parent(store, &snapshot)?;
    }
    Ok(Vec::new())
}

impl Engine {
    /// Runs a command, or without one a shell, in a copy of `snapshot`, which is gone afterwards. `secret` returns their
    /// values by name.
    ///
    /// # Errors
    ///
    /// The command could not be started. How it ended is no error, by a limit neither.
    pub async fn visit(
        &self,
        snapshot: Arc<Snapshot>,
        surroundings: Surroundings,
        argv: Option<Vec<OsString>>,
        secret: impl Fn(&BString) -> Option<SecretBytes>,
        visitor: Visitor,
        cancel: &CancellationToken,
    ) -> Result<Visited, BuildError> {
        let shared = &self.shared;
        let Surroundings { env, user, workdir, shell, networks, caches, secrets } = surroundings;
        let argv = argv.unwrap_or_else(|| interactive(shell.as_deref()));
        let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
        let values = secrets
            .iter()
            .filter_map(|wanted| Some((run::path(&plan::join(&workdir, &wanted.target)), secret(&wanted.name)?)));
        let command = Command {
            step: Arc::new(StepInfo { number: 0, stage: None, text: words.join(" ") }),
            secrets: values.collect(),
            run: Run { caches, networks, secrets: Vec::new(), command: BString::default() },
            context: Context { env, user, workdir, ..Context::default() },
            isolation: shared.settings.isolation.clone(),
        };
        // A draft like a step's, of an id that nobody else can want: it is swept if we die.
        let lease = shared.store.lease(&Id::new(random()?))?;
        let lease = lease.ok_or_else(|| BuildError::Bug("a random id is not new".to_owned()))?;
        let draft = shared.begin_limited(lease, snapshot).await?;
        let ended = command.visit(shared, &draft, argv, visitor, cancel).await;
        let store = Arc::clone(&shared.store);
        let discarded = blocking(move || Ok(store.discard(draft)?)).await;
        if let Err(error) = discarded {
            tracing::warn!(%error, "cannot discard a copy of a result");
        }
        ended
    }
}

impl Command {
    /// Runs `argv` where the command runs, or ran, in `draft`.
    async fn visit(
        &self,
        shared: &Shared,
        draft: &Draft,
        argv: Vec<OsString>,
        visitor: Visitor,
        cancel: &CancellationToken,
    ) -> Result<Visited, BuildError> {
        let Shared { store, sandbox, .. } = shared;
        let tell = |why: &str| tracing::warn!("{why}");
        let (namespace, root) = shared.enter(|map| draft.root().mount_again(map), tell).await?;
        let user = self.user(&root)?;
        let mut process = self.process(&root, user, namespace)?;
        process.argv = argv;
        if let Some(term) = visitor.term
            && process.env.iter().all(|(name, _)| name != "TERM")
        {
            process.env.push(("TERM".into(), run::os(&term)));
        }
        process.held.push(Arc::new(draft.lease().hold().at("hold the lease in", store.path())?));
        let caches = self.caches(store, user, &mut process).await?;
        let stop = cancel.child_token();
        let (ended, over) = {
            let run = sandbox.run(Root::Mount(root), &process, visitor.io, &stop);
            tokio::pin!(run);
            tokio::select! {
                ended = &mut run => (ended, None),
                limit = time_of(visitor.timeout) => {
                    stop.cancel();
                    (run.await, Some(limit))
                }
            }
        };
        // Its mounts of the caches must be gone before they are.
        drop(process);
        for cache in caches {
            let store = Arc::clone(store);
            if let Err(error) = blocking(move || Ok(store.discard_cache(cache)?)).await {
                tracing::warn!(%error, "cannot discard a copy of a cache");
            }
        }
        match (ended, over) {
            // Also if it ended by itself just then.
            (Ok(Ended { status, hit, .. }), _) => Ok(Visited { status, limit: hit.map(Limit::Sandbox) }),
            (Err(SandboxError::Cancelled(_)), Some(limit)) if !cancel.is_cancelled() => {
                Ok(Visited { status: ExitStatus::Signal(SIGKILL), limit: Some(limit) })
            }
            (Err(SandboxError::Cancelled(_)), _) => Err(BuildError::Cancelled),
            (Err(source), _) => Err(BuildError::Sandbox { step: Arc::clone(&self.step), source }),
        }
    }

    /// Lets whoever listens to `failures` look into the draft, which the command has just failed in.
    pub(crate) async fn show_failure(
        &self,
        failures: &mpsc::UnboundedSender<FailedStep>,
        shared: &Shared,
        draft: &Draft,
        how: &str,
        cancel: &CancellationToken,
    ) {
        let (visitor, visit) = oneshot::channel();
        let (step, command, log) = (Arc::clone(&self.step), self.run.command.clone(), Arc::clone(draft.log()));
        // If nobody listens, nobody wants to look.
        let _ = failures.send(FailedStep { step, command, how: how.to_owned(), log, visitor });
        let visitor = tokio::select! {
            () = cancel.cancelled() => return,
            visitor = visit => visitor,
        };
        let Ok(visitor) = visitor else { return };
        let shell = self.context.said.shell.then_some(&*self.context.shell);
        match self.visit(shared, draft, interactive(shell), visitor, cancel).await {
            Ok(_) | Err(BuildError::Cancelled) => {}
            // The step's own failure is what the build fails with.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot open a shell"),
        }
    }
}

/// Returns the command that is `shell` in front of a user. The default one is not in every image.
fn interactive(shell: Option<&[BString]>) -> Vec<OsString> {
    let words = match shell {
        Some([words @ .., last]) if last == "-c" && !words.is_empty() => words.to_vec(),
        Some(_) => vec!["/bin/sh".into()],
        None => ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec /bin/sh"].map(BString::from).to_vec(),
    };
    words.iter().map(run::os).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_read_as_it_is_written() {
        for user in [User::Unix { uid: 1000, gid: 5 }, User::Named("opam".into())] {
            let context = Context { user: user.clone(), ..Context::default() };
            let said = plan::Said { user: true, ..context.said };
            let written = export::RunsAs::new(&Context { said, ..context }).user.unwrap();
            assert_eq!(parse_user(&written), user);
        }
    }

    #[test]
    fn a_shell_for_users_is_that_of_commands() {
        let words = |words: &[&str]| words.iter().map(|word| BString::from(*word)).collect::<Vec<_>>();
        assert_eq!(interactive(Some(&words(&["/bin/zsh", "-c"]))), ["/bin/zsh"]);
        assert_eq!(interactive(Some(&words(&["/usr/bin/env", "bash", "-c"]))), ["/usr/bin/env", "bash"]);
        assert_eq!(interactive(Some(&words(&["/bin/make"]))), ["/bin/sh"]);
        assert!(interactive(None)[2].to_string_lossy().contains("exec bash"));
    }
}
