//! Running the command of a step.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bstr::{BString, ByteSlice};
use kiln_sandbox::{
    Ended, ExitStatus, Mount, Network, Process, Proxy, Root, Sandbox, SandboxError, SecretBytes, Source, UserNamespace,
};
use kiln_spec::User;
use kiln_store::{CacheDraft, Draft, Quota, Store, StoreError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::build::blocking;
use crate::engine::Isolation;
use crate::error::{At, BuildError};
use crate::events::StepInfo;
use crate::flight::Publisher;
use crate::ids;
use crate::limits::{Limit, StepUsage};
use crate::mask::Mask;
use crate::passwd;
use crate::plan::Context;

/// What `PATH` is for images that do not set it: as every distribution has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What OBuilder has always called the machine.
const HOSTNAME: &str = "builder";

/// How the command of a step ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunEnd {
    pub(crate) status: ExitStatus,
    /// What it came up against. If that killed it, the status is a signal.
    pub(crate) limit: Option<Limit>,
    pub(crate) usage: StepUsage,
}

impl RunEnd {
    fn was_killed_by_limit(&self) -> bool {
        self.limit.is_some_and(|limit| limit.has_killed(self.status))
    }

    /// Notes that the command left so much of its quota. What it came up against before counts more.
    fn note_left(&mut self, quota: &Quota, left: Result<Quota, StoreError>) -> Quota {
        let left = left.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell what a step took on the disk");
            Quota::NONE
        });
        self.limit = self.limit.or(Limit::of_quota(quota, &left));
        left
    }
}

/// A command with everything it needs.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) step: Arc<StepInfo>,
    pub(crate) run: kiln_spec::Run,
    /// The environment is complete: the image's and the spec's.
    pub(crate) context: Context,
    pub(crate) secrets: Vec<(PathBuf, SecretBytes)>,
    pub(crate) isolation: Isolation,
}

impl Command {
    /// Runs the command in the draft, which is mounted for a user namespace, its output into the draft's log. Caches are given
    /// back before this returns: as the latest generation if the command ended by itself, well or not. Who is killed, by a limit
    /// too, may have been at writing: what it made of its caches is dropped.
    pub(crate) async fn run(
        &self,
        store: &Arc<Store>,
        sandbox: &dyn Sandbox,
        draft: &Draft,
        (namespace, root): (UserNamespace, OwnedFd),
        publisher: &Publisher,
        cancel: &CancellationToken,
    ) -> Result<RunEnd, BuildError> {
        let user = self.user(&root)?;
        let mut process = self.process(&root, user, namespace)?;
        process.held.push(Arc::new(draft.lease().hold().at("hold the lease in", store.path())?));
        let caches = self.caches(store, user, &mut process).await?;
        let mut ended = self.run_in(sandbox, root, &process, draft.log(), publisher, cancel).await;
        // Its mounts of the caches must be gone before they are sealed.
        drop(process);
        let mut given_back = Ok(());
        let is_kept = ended.as_ref().is_ok_and(|end| !end.was_killed_by_limit());
        let quota = self.isolation.quota;
        if quota != Quota::NONE
            && let Ok(end) = &mut ended
        {
            let (asked, id) = (Arc::clone(store), *draft.id());
            let left = end.note_left(&quota, blocking(move || Ok(asked.left(&id))).await?);
            let took = |most: Option<u64>, left: Option<u64>| Some(most?.saturating_sub(left?));
            end.usage.disk_bytes = took(quota.bytes, left.bytes);
            end.usage.files = took(quota.files, left.files);
        }
        for cache in caches {
            let store = Arc::clone(store);
            let gave = blocking(move || {
                let left = (quota != Quota::NONE).then(|| store.left_in_cache(&cache));
                let gave = match is_kept {
                    true => store.commit_cache(cache).map(|_| ()),
                    false => store.discard_cache(cache),
                };
                Ok((left, gave))
            });
            let gave = gave.await.and_then(|(left, gave)| {
                if let (Some(left), Ok(end)) = (left, &mut ended) {
                    end.note_left(&quota, left);
                }
                Ok(gave?)
            });
            if let Err(error) = gave {
                match &given_back {
                    Ok(()) if is_kept => given_back = Err(error),
                    // The step's own end, or what went wrong first, matters more.
                    _ => tracing::warn!(%error, "cannot give back a cache"),
                }
            }
        }
        given_back?;
        ended
    }

    async fn run_in(
        &self,
        sandbox: &dyn Sandbox,
        root: OwnedFd,
        process: &Process,
        log: &Arc<File>,
        publisher: &Publisher,
        cancel: &CancellationToken,
    ) -> Result<RunEnd, BuildError> {
        let (reader, writer) = std::io::pipe().at("make", "a pipe")?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into()).at("read from", "a pipe")?;
        let stop = cancel.child_token();
        let started = Instant::now();
        let run = sandbox.run(Root::Mount(root), process, writer.into(), &stop);
        tokio::pin!(run);
        let secrets = self.secrets.iter().map(|(_, value)| value).filter(|_| self.isolation.mask_secrets);
        let mask = Mask::new(secrets)?;
        let limit = self.isolation.log_limit_bytes.unwrap_or(u64::MAX);
        let mut output = Output { log, publisher, mask, length: 0, limit, buffer: vec![0; 64 << 10] };
        let timeout = time_of(self.isolation.timeout);
        tokio::pin!(timeout);
        let mut killed = None;
        let mut is_open = true;
        let ended = loop {
            // In this order: whoever writes without end must neither outlive its time nor hide that it ended.
            let written = tokio::select! {
                biased;
                ended = &mut run => break ended,
                limit = &mut timeout, if killed.is_none() => {
                    killed = Some(limit);
                    stop.cancel();
                    continue;
                }
                read = reader.read(&mut output.buffer), if is_open => match read.at("read from", "a pipe") {
                    // Everyone has closed it: only the end is left to wait for.
                    Ok(0) => {
                        is_open = false;
                        continue;
                    }
                    read => read.and_then(|length| output.write(length)),
                },
            };
            match written {
                Ok(()) if output.is_full() && killed.is_none() => {
                    killed = Some(Limit::Log(limit));
                    stop.cancel();
                }
                Ok(()) => {}
                Err(error) => {
                    // The draft is not to be discarded under a command that runs.
                    stop.cancel();
                    let _ = run.await;
                    return Err(error);
                }
            }
        };
        let wall = started.elapsed();
        // All writers are dead; what they wrote last is in the pipe. Tokio may not know it yet, so it is not asked.
        let mut rest = File::from(reader.into_nonblocking_fd().at("read from", "a pipe")?);
        loop {
            match rest.read(&mut output.buffer) {
                Ok(0) => break,
                Ok(length) => output.write(length)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).at("read from", "a pipe"),
            }
        }
        output.finish()?;
        // Too much is too much, also if the command ended before it could be killed for it.
        let killed = killed.or_else(|| output.is_full().then_some(Limit::Log(limit)));
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        let usage = |sandbox| StepUsage { wall_ms, sandbox, ..StepUsage::default() };
        match (ended, killed) {
            (Ok(Ended { status, usage: used, hit }), None) => {
                Ok(RunEnd { status, limit: hit.map(Limit::Sandbox), usage: usage(used) })
            }
            (Ok(Ended { usage: used, .. }), Some(_)) | (Err(SandboxError::Cancelled(used)), Some(_))
                if !cancel.is_cancelled() =>
            {
                Ok(RunEnd { status: ExitStatus::Signal(SIGKILL), limit: killed, usage: usage(used) })
            }
            (Ok(_) | Err(SandboxError::Cancelled(_)), _) => Err(BuildError::Cancelled),
            (Err(source), _) => Err(BuildError::Sandbox { step: Arc::clone(&self.step), source }),
        }
    }

    pub(crate) fn process(
        &self,
        root: &OwnedFd,
        user: kiln_sandbox::User,
        user_namespace: UserNamespace,
    ) -> Result<Process, BuildError> {
        let mut env: Vec<(OsString, OsString)> =
            self.context.env.iter().map(|(name, value)| (os(name), os(value))).collect();
        let has = |env: &[(OsString, OsString)], wanted: &str| env.iter().any(|(name, _)| name == wanted);
        if !has(&env, "PATH") {
            env.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        if !has(&env, "HOME") {
            let users = passwd::read(root).at("read", "the image's /etc/passwd")?;
            let home = users.into_iter().find(|entry| entry.uid == user.uid).map(|entry| os(&entry.home));
            env.push(("HOME".into(), home.unwrap_or_else(|| "/".into())));
        }
        let mounts = self
            .secrets
            .iter()
            .map(|(target, value)| Mount { target: target.clone(), source: Source::Secret(value.clone()) });
        let network = if self.run.networks.is_empty() { Network::None } else { self.isolation.network_host.clone() };
        if let Network::Proxy(_) = network {
            for (name, value) in Proxy::variables() {
                if !has(&env, name) {
                    env.push((name.into(), value.into()));
                }
            }
        }
        Ok(Process {
            argv: self.context.shell.iter().chain([&self.run.command]).map(os).collect(),
            env,
            cwd: path(&self.context.workdir),
            user,
            hostname: HOSTNAME.to_owned(),
            network,
            mounts: mounts.collect(),
            limits: self.isolation.limits.clone(),
            allow_namespaces: self.isolation.allow_namespaces && user_namespace.mapped().is_some(),
            user_namespace,
            seccomp: self.isolation.seccomp.clone(),
            fast_sync: self.isolation.fast_sync,
            held: Vec::new(),
        })
    }

    pub(crate) fn user(&self, root: &OwnedFd) -> Result<kiln_sandbox::User, BuildError> {
        resolve_user(&self.context.user, root, &self.step)
    }

    /// Starts a copy of every cache and mounts it.
    pub(crate) async fn caches(
        &self,
        store: &Arc<Store>,
        user: kiln_sandbox::User,
        process: &mut Process,
    ) -> Result<Vec<CacheDraft>, BuildError> {
        let mut drafts = Vec::new();
        for cache in &self.run.caches {
            let (begun, name) = (Arc::clone(store), cache.name.clone());
            let quota = self.isolation.quota;
            let owner = (user.uid, user.gid);
            let begun = blocking(move || Ok(begun.begin_limited_cache(&name, owner, &quota)?)).await;
            let mounted = begun.and_then(|draft| {
                let hold = draft.hold().at("hold a cache in", store.path());
                let tree = ids::mount(draft.root(), &process.user_namespace).at("mount", store.path());
                drafts.push(draft);
                let target = path(&crate::plan::join(&self.context.workdir, &cache.target));
                process.mounts.push(Mount { target, source: Source::Tree(Arc::new(tree?)) });
                process.held.push(Arc::new(hold?));
                Ok(())
            });
            if let Err(error) = mounted {
                process.mounts.clear();
                for draft in drafts {
                    if let Err(error) = store.discard_cache(draft) {
                        tracing::warn!(%error, "cannot discard a copy of a cache");
                    }
                }
                return Err(error);
            }
        }
        Ok(drafts)
    }
}

/// How the kernel ends what is killed.
pub(crate) const SIGKILL: i32 = 9;

/// Waits until a step has had its time.
pub(crate) async fn time_of(timeout: Option<Duration>) -> Limit {
    match timeout {
        Some(timeout) => {
            tokio::time::sleep(timeout).await;
            Limit::Time(timeout)
        }
        None => std::future::pending().await,
    }
}

/// Where the output of a command goes.
struct Output<'a> {
    log: &'a Arc<File>,
    publisher: &'a Publisher,
    mask: Mask,
    length: u64,
    /// What comes after so many bytes is dropped.
    limit: u64,
    buffer: Vec<u8>,
}

impl Output<'_> {
    /// Returns whether the log has reached its limit: more would not be written.
    fn is_full(&self) -> bool {
        self.length >= self.limit
    }

    /// Appends the first `length` bytes of the buffer to the log, secrets masked.
    fn write(&mut self, length: usize) -> Result<(), BuildError> {
        let Self { log, publisher, limit, .. } = *self;
        append(log, publisher, limit, &mut self.length, self.mask.push(&self.buffer[..length]))
    }

    /// Appends what the mask held back.
    fn finish(&mut self) -> Result<(), BuildError> {
        let Self { log, publisher, limit, .. } = *self;
        append(log, publisher, limit, &mut self.length, self.mask.finish())
    }
}

/// Appends `bytes`, up to the limit of the log, of which so much is `written`.
fn append(
    log: &Arc<File>,
    publisher: &Publisher,
    limit: u64,
    written: &mut u64,
    bytes: &[u8],
) -> Result<(), BuildError> {
    let bytes = &bytes[..bytes.len().min(usize::try_from(limit - *written).unwrap_or(usize::MAX))];
    if bytes.is_empty() {
        return Ok(());
    }
    (&**log).write_all(bytes).map_err(|source| kiln_store::StoreError::disk("write", "the log of the step", source))?;
    *written += bytes.len() as u64;
    publisher.log(log, *written);
    Ok(())
}

/// Returns the numbers of a user; a name is looked up in the image.
pub(crate) fn resolve_user(
    user: &User,
    root: &OwnedFd,
    step: &Arc<StepInfo>,
) -> Result<kiln_sandbox::User, BuildError> {
    match user {
        User::Unix { uid, gid } => Ok(kiln_sandbox::User { uid: *uid, gid: *gid }),
        User::Named(name) => {
            let users = passwd::read(root).at("read", "the image's /etc/passwd")?;
            let found = users.into_iter().find(|entry| entry.name == *name);
            let none = || BuildError::NoSuchUser { step: Arc::clone(step), name: name.to_string() };
            found.map(|entry| kiln_sandbox::User { uid: entry.uid, gid: entry.gid }).ok_or_else(none)
        }
    }
}

/// Returns text of the spec as the system's.
pub(crate) fn os(bytes: &BString) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Returns a path of the spec as the system's.
pub(crate) fn path(bytes: &BString) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes.as_bytes()))
}
