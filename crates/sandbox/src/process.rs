//! What to run: plain data, and the [`Sandbox`] trait that runs it.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{Ended, Io, Limits, MappedIds, Network, Profile, SandboxError};

/// Runs processes, each in its own isolation.
///
/// The caller guarantees that nothing else writes to the root while a process runs in it. Several
/// processes may run at once, in different roots.
#[async_trait]
pub trait Sandbox: Send + Sync + fmt::Debug {
    /// Runs `process` in `root` until its main process ends or `cancel` fires; then every process of
    /// it is gone and everything is unmounted.
    ///
    /// `io` says where it reads and writes. Dropping the future kills the process too, but then nobody waits for the end.
    ///
    /// A command that cannot be found or executed is the command's own failure and follows the
    /// shell's convention: a message on its stderr, and [`ExitStatus::Code`] 127 or 126.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Cancelled`] if `cancel` fired first. Otherwise what could not be set up, limits among it; the
    /// command was then not started.
    async fn run(
        &self,
        root: Root,
        process: &Process,
        io: Io,
        cancel: &CancellationToken,
    ) -> Result<Ended, SandboxError>;

    /// Returns a user namespace for one run, or for several one after another: with ids of its own if this sandbox can
    /// have that. May take as long as starting a process does.
    ///
    /// Mounts that the caller hands over must be id-mapped to it, or their files belong to nobody inside.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Host`] if this host has none to give.
    fn user_namespace(&self) -> Result<UserNamespace, SandboxError> {
        Ok(UserNamespace::Host)
    }
}

/// What becomes `/` in the sandbox.
#[derive(Debug)]
pub enum Root {
    /// A directory of the host. Mounts below it are not seen inside.
    Dir(PathBuf),
    /// A detached mount (from `fsmount(2)`, or `open_tree(2)` with `OPEN_TREE_CLONE`), for instance an
    /// overlayfs that the caller made; moved into the sandbox's mount namespace and gone with it.
    Mount(OwnedFd),
}

/// One process to run.
#[derive(Clone, Debug)]
pub struct Process {
    /// The command and its arguments. A first word without a slash is looked up, inside the root, in
    /// the `PATH` of [`Process::env`].
    pub argv: Vec<OsString>,
    /// The whole environment; nothing is added.
    pub env: Vec<(OsString, OsString)>,
    /// Absolute working directory; made (0755, owned by the user) if missing.
    pub cwd: PathBuf,
    /// Who runs it.
    pub user: User,
    /// Host name inside.
    pub hostname: String,
    /// What network it sees.
    pub network: Network,
    /// Trees and secrets, mounted in this order.
    pub mounts: Vec<Mount>,
    /// Resource limits.
    pub limits: Limits,
    /// Which user namespace it is in.
    pub user_namespace: UserNamespace,
    /// Whether it may make namespaces, with a user namespace below its own, and mount what it likes in there. Only with
    /// [`UserNamespace::Mapped`].
    pub allow_namespaces: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Whether `fsync(2)` and its like succeed without doing anything.
    pub fast_sync: bool,
    /// Descriptors kept open while any part of the sandbox lives (for instance a lock), even if the caller is
    /// killed; never visible to the command.
    pub held: Vec<Arc<OwnedFd>>,
}

/// Numeric owner. Names are the caller's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Which system calls a process may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// Those that builds need and that act on nothing but the sandbox.
    #[default]
    Default,
    /// All. What then holds it are namespaces, mounts and capabilities.
    Unconfined,
    /// Those of a profile.
    Profile(Arc<Profile>),
}

/// Which user namespace a process is in.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum UserNamespace {
    /// The host's: root inside is root outside, held back by capabilities, seccomp and namespaces.
    #[default]
    Host,
    /// One of its own: root inside is nobody outside. Of [`Root::Mount`] and [`Source::Tree`] the caller sees to it that
    /// they are id-mapped; directories of the host are, here.
    Mapped(Arc<MappedIds>),
}

impl UserNamespace {
    /// Returns the ids that it has of its own.
    pub fn mapped(&self) -> Option<&MappedIds> {
        match self {
            Self::Host => None,
            Self::Mapped(ids) => Some(ids),
        }
    }
}

/// Something mounted over the root.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Absolute path inside. Made if missing, with parents (0755, owned by the user). Symbolic links are followed inside
    /// the root only; a target in `/proc` or `/sys` is refused.
    pub target: PathBuf,
    /// What is mounted.
    pub source: Source,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug)]
pub enum Source {
    /// A writable tree: a detached mount, as for [`Root::Mount`]. It is moved, so each serves one run; drop it after the run, since
    /// the filesystem stays busy until then.
    Tree(Arc<OwnedFd>),
    /// A directory of the host, writable. Mounts below it are not seen inside.
    Dir(PathBuf),
    /// The bytes of a secret: a read-only file in memory that is never swapped, owned by the user, mode 0400.
    Secret(SecretBytes),
}

/// Bytes that are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Arc<[u8]>);

impl SecretBytes {
    /// Wraps `bytes`.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// Returns the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// Returns whether the process ended well: exit code 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let mount = Mount { target: "/s".into(), source: Source::Secret(SecretBytes::new(*b"hunter2")) };
        assert_eq!(format!("{mount:?}"), r#"Mount { target: "/s", source: Secret(***) }"#);
    }
}
