//! Sandboxes made by an OCI runtime: `runc`, `crun` or `youki`.
//!
//! ```text
//! caller ──socket──► helper ──fork──► init (PID 1 of its own) ──► runtime ──► command (PID 1 inside)
//!                    watches          root, mounts, bundle        namespaces, masks, capabilities, seccomp
//! ```
//!
//! The helper and init are the native sandbox's (see `native/mod.rs`), with the same plan. Init puts the whole tree together as
//! ever, in a mount namespace and a pid namespace of its own; then, instead of becoming the command, it writes a bundle
//! into memory and starts the runtime, which sees the tree, the bundle and the host. So
//!
//! * whatever the image does with links, the runtime mounts only `/proc`, `/dev/mqueue` and what lies in them;
//! * where users are the sandbox's own, the runtime makes the user namespace, with the ids for which init has mounted the tree, and
//!   sends the filter's listener to the helper (`native/linux/mknod.rs`);
//! * secrets, the bundle and the runtime's state are on no disk and in no namespace but this one;
//! * when init or the helper dies, the kernel kills the runtime and all of the container, and nothing is mounted any
//!   more. Control groups are all that can be left: `groups` removes them.
//!
//! `config` is pure: the bundle's `config.json`. `runtime` knows the runtimes' command lines and what they say.

mod config;
mod groups;
mod runtime;

use std::ffi::OsStr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) use self::groups::{RunGroups, until_left};
pub use self::runtime::Runtime;
pub(crate) use self::runtime::{Found, Said, said};

use crate::filter::Asked;
use crate::plan::{Plan, RuntimeGroups, RuntimePlan};
use crate::{Ended, Io, NativeSandbox, Process, Root, Sandbox, SandboxError, Seccomp, UserNamespace, filter};

/// Where init gathers the tree, the bundle and the runtime's state: a directory that is empty for everyone else.
pub(crate) const PLACE: &str = "/run/kiln/oci";

/// Where init listens for the runtime, which sends the filter's listener there.
pub(crate) const LISTENER: &str = "/run/kiln/oci/listener";

/// Runs processes by an OCI runtime. Needs what [`NativeSandbox`] needs, since that prepares the tree.
#[derive(Debug)]
pub struct OciSandbox {
    native: NativeSandbox,
    runtime: Found,
}

impl OciSandbox {
    /// Looks for `runtime` in `path` (as `$PATH` has it), asks for its version, and removes what runs that were killed
    /// have left. `helper` is as for [`NativeSandbox::new`].
    ///
    /// # Errors
    ///
    /// [`SandboxError::NoRuntime`] if it is missing or too old; those of [`NativeSandbox::new`].
    pub fn new(helper: impl Into<PathBuf>, runtime: Runtime, path: &OsStr) -> Result<Self, SandboxError> {
        // Before the native sandbox removes the groups above them.
        groups::sweep();
        let native = NativeSandbox::new(helper)?;
        let runtime = Found::find(runtime, path)?;
        Ok(Self { native, runtime })
    }

    /// Looks whether the runtime can keep what is said of system calls.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Profile`] with what of a profile it cannot.
    pub fn check(&self, seccomp: &Seccomp) -> Result<(), SandboxError> {
        self.runtime.seccomp(seccomp, Asked::default()).map(drop)
    }

    /// Returns the sandbox that prepares each run, and whose control groups keep its limits.
    pub fn native(&self) -> &NativeSandbox {
        &self.native
    }
}

#[async_trait]
impl Sandbox for OciSandbox {
    async fn run(
        &self,
        root: Root,
        process: &Process,
        io: Io,
        cancel: &CancellationToken,
    ) -> Result<Ended, SandboxError> {
        if !matches!(io, Io::Output(_)) {
            return Err(SandboxError::Invalid {
                what: "a runtime's process has no terminal and reads nothing; `--sandbox native` has both",
            });
        }
        self.native.run_by(Some(&self.runtime), root, process, io, cancel).await
    }

    fn user_namespace(&self) -> Result<UserNamespace, SandboxError> {
        self.native.user_namespace()
    }
}

impl Found {
    fn seccomp(&self, seccomp: &Seccomp, asked: Asked) -> Result<Option<Value>, SandboxError> {
        let profile = |why| SandboxError::Profile { runtime: self.kind.to_string(), why };
        filter::oci_seccomp(seccomp, asked).map_err(profile)
    }

    /// Changes a plan of the native sandbox so that this runtime starts the command.
    pub(crate) fn take_over(&self, plan: &mut Plan, process: &Process, groups: &RunGroups) -> Result<(), SandboxError> {
        let remounted = config::remounted();
        let group = self.kind.uses_groups().then(|| groups.path());
        let mut config = config::config(self.kind, plan, group, self.seccomp(&process.seccomp, Asked::by(process))?)?;
        if self.kind.clears_nodev() {
            config["hooks"] = config::hooks();
        }
        plan.masked.clear();
        plan.read_only.clear();
        plan.command.filter.clear();
        plan.runtime = Some(RuntimePlan {
            name: self.kind.to_string(),
            program: self.program.clone(),
            arguments: self.kind.arguments(),
            config: config.to_string().into_bytes(),
            remounted,
            groups: if self.kind.uses_groups() { groups.seen() } else { RuntimeGroups::None },
        });
        Ok(())
    }
}
