//! Running the command of a step.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use bstr::{BString, ByteSlice};
use kiln_sandbox::{ExitStatus, Limits, Mount, Network, Process, Root, Sandbox, SecretBytes, Source, UserNamespace};
use kiln_spec::User;
use kiln_store::{CacheDraft, Draft, Store};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::build::blocking;
use crate::engine::Isolation;
use crate::error::{At, BuildError};
use crate::events::StepInfo;
use crate::flight::Publisher;
use crate::mask::Mask;
use crate::passwd;
use crate::plan::Context;

/// What `PATH` is for images that do not set it: as every distribution has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What OBuilder has always called the machine.
const HOSTNAME: &str = "builder";

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
    /// Runs the command in the draft, its output into the draft's log. Caches are given back before this returns: as the latest
    /// generation if the command ended by itself, well or not.
    pub(crate) async fn run(
        &self,
        store: &Arc<Store>,
        sandbox: &dyn Sandbox,
        draft: &Draft,
        publisher: &Publisher,
        cancel: &CancellationToken,
    ) -> Result<ExitStatus, BuildError> {
        let root = draft.root().mount().at("mount", store.path())?;
        let user = self.user(&root)?;
        let mut process = self.process(&root, user)?;
        process.held.push(Arc::new(draft.lease().hold().at("hold the lease in", store.path())?));
        let caches = self.caches(store, user, &mut process).await?;
        let ended = self.run_in(sandbox, root, &process, draft.log(), publisher, cancel).await;
        // Its mounts of the caches must be gone before they are sealed.
        drop(process);
        let mut given_back = Ok(());
        for cache in caches {
            let (store, is_kept) = (Arc::clone(store), ended.is_ok());
            let gave = blocking(move || match is_kept {
                true => Ok(store.commit_cache(cache).map(|_| ())?),
                false => Ok(store.discard_cache(cache)?),
            });
            if let Err(error) = gave.await {
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
    ) -> Result<ExitStatus, BuildError> {
        let (reader, writer) = std::io::pipe().at("make", "a pipe")?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into()).at("read from", "a pipe")?;
        let stop = cancel.child_token();
        let run = sandbox.run(Root::Mount(root), process, writer.into(), &stop);
        tokio::pin!(run);
        let secrets = self.secrets.iter().map(|(_, value)| value).filter(|_| self.isolation.mask_secrets);
        let mask = Mask::new(secrets)?;
        let mut output = Output { log, publisher, mask, length: 0, buffer: vec![0; 64 << 10] };
        let ended = loop {
            let written = tokio::select! {
                biased;
                read = reader.read(&mut output.buffer) => match read.at("read from", "a pipe") {
                    // Everyone has closed it: only the end is left to wait for.
                    Ok(0) => break run.await,
                    read => read.and_then(|length| output.write(length)),
                },
                ended = &mut run => break ended,
            };
            if let Err(error) = written {
                // The draft is not to be discarded under a command that runs.
                stop.cancel();
                let _ = run.await;
                return Err(error);
            }
        };
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
        ended.map_err(|source| match source {
            kiln_sandbox::SandboxError::Cancelled => BuildError::Cancelled,
            source => BuildError::Sandbox { step: Arc::clone(&self.step), source },
        })
    }

    pub(crate) fn process(&self, root: &OwnedFd, user: kiln_sandbox::User) -> Result<Process, BuildError> {
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
        let network = if self.run.networks.is_empty() { Network::None } else { Network::Host };
        Ok(Process {
            argv: self.context.shell.iter().chain([&self.run.command]).map(os).collect(),
            env,
            cwd: path(&self.context.workdir),
            user,
            hostname: HOSTNAME.to_owned(),
            network,
            mounts: mounts.collect(),
            limits: Limits::default(),
            user_namespace: UserNamespace::Host,
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
            let begun = blocking(move || Ok(begun.begin_cache(&name, (user.uid, user.gid))?)).await;
            let mounted = begun.and_then(|draft| {
                let hold = draft.hold().at("hold a cache in", store.path());
                let tree = draft.root().mount().at("mount", store.path());
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

/// Where the output of a command goes.
struct Output<'a> {
    log: &'a Arc<File>,
    publisher: &'a Publisher,
    mask: Mask,
    length: u64,
    buffer: Vec<u8>,
}

impl Output<'_> {
    /// Appends the first `length` bytes of the buffer to the log, secrets masked.
    fn write(&mut self, length: usize) -> Result<(), BuildError> {
        let Self { log, publisher, .. } = *self;
        append(log, publisher, &mut self.length, self.mask.push(&self.buffer[..length]))
    }

    /// Appends what the mask held back.
    fn finish(&mut self) -> Result<(), BuildError> {
        let Self { log, publisher, .. } = *self;
        append(log, publisher, &mut self.length, self.mask.finish())
    }
}

fn append(log: &Arc<File>, publisher: &Publisher, written: &mut u64, bytes: &[u8]) -> Result<(), BuildError> {
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
