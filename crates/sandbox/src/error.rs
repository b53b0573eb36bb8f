//! Why a process was not run to its end.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Usage;

/// Why a process was not run to its end.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The caller's token fired; every process is gone. Until then it had used so much.
    #[error("cancelled")]
    Cancelled(Usage),
    /// This host cannot keep a limit that was asked for.
    #[error("cannot limit {limit}: {what}")]
    Limit {
        /// Which one.
        limit: &'static str,
        /// What is missing, or could not be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: Option<io::Error>,
    },
    /// This host cannot isolate processes in this way.
    #[error("this host cannot run the native sandbox: {what}")]
    Host {
        /// What is missing.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Option<io::Error>,
    },
    /// The process as described cannot exist.
    #[error("invalid process: {what}")]
    Invalid {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The helper could not be started.
    #[error("cannot start the sandbox's helper")]
    StartHelper(#[source] io::Error),
    /// The helper could not be talked to.
    #[error("cannot talk to the sandbox's helper")]
    TalkToHelper(#[source] io::Error),
    /// The helper ended without saying how the process ended, for instance because it was killed.
    #[error("the sandbox's helper died ({status})")]
    HelperDied {
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// There is no such OCI runtime here, or not a usable one.
    #[error("cannot use `{runtime}`: {what} ({way_out})")]
    NoRuntime {
        /// What it is called.
        runtime: String,
        /// What is wrong with it.
        what: String,
        /// What gets it.
        way_out: &'static str,
    },
    /// The OCI runtime cannot keep the seccomp profile.
    #[error("`{runtime}` cannot keep the seccomp profile: {why}; the native sandbox can (`--sandbox native`)")]
    Profile {
        /// What it is called.
        runtime: String,
        /// What it cannot do.
        why: String,
    },
    /// The OCI runtime failed; the command was not started, or its end is not known.
    #[error("`{runtime}` cannot run the command: {message}")]
    Runtime {
        /// What it is called.
        runtime: String,
        /// What it says.
        message: String,
    },
    /// Runs of an OCI runtime cannot be noted.
    #[error("cannot note a run in {}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// One step of setting up the sandbox failed, for a reason that is no error of the kernel's.
    #[error("cannot {step}: {why}")]
    Explained {
        /// What was being done.
        step: Step,
        /// What stands in the way, and the way out.
        why: String,
    },
    /// One step of setting up the sandbox failed; the command was not started.
    #[error("cannot {step}{}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Setup {
        /// What was being done.
        step: Step,
        /// To what.
        path: Option<PathBuf>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why no private network can be made: `pasta` would not get its device.
#[derive(Debug, Error)]
pub enum TunError {
    /// Neither this user nor one without rights may open it, and nor can we make another node.
    #[error("only root may use /dev/net/tun")]
    Closed,
    /// The kernel has no such device, or a container was not given it.
    #[error("/dev/net/tun is not there")]
    Missing,
    /// It cannot be opened.
    #[error("cannot open /dev/net/tun")]
    Open(#[source] io::Error),
}

impl TunError {
    /// Returns the command that mends it, for root.
    #[must_use]
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            TunError::Closed => Some("chmod 666 /dev/net/tun"),
            TunError::Missing => Some("modprobe tun"),
            TunError::Open(_) => None,
        }
    }
}

/// A step of setting up the sandbox, as its helper reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// Read the plan, check that the helper has one thread.
    ReceivePlan,
    /// Move the init process into the control groups that limit it.
    JoinCgroup,
    /// `unshare(2)`.
    MakeNamespaces,
    /// `fork(2)` of the init process or the command.
    Fork,
    /// Tie the init process to its helper; hide it from the command.
    ProtectInit,
    /// Cut mount propagation, prepare the place where mounts are gathered.
    PrepareMounts,
    /// Mount the root.
    MountRoot,
    /// Mount `/proc`, `/sys`, `/dev` and what is below.
    MountFilesystem,
    /// Bind a device node.
    BindDevice,
    /// Hide a file or directory of `/proc` or `/sys`.
    Mask,
    /// Make a file or directory of `/proc` read-only.
    MakeReadOnly,
    /// Make a terminal.
    MakeTerminal,
    /// Mount a generated file such as `/etc/hosts`, or a secret.
    MountFile,
    /// Mount a tree or a host directory.
    MountTree,
    /// Find or make the working directory.
    EnterDirectory,
    /// `pivot_root(2)`, and unmount the host's tree.
    SwitchRoot,
    /// Set the host name.
    SetHostname,
    /// Bring up the loopback interface.
    StartLoopback,
    /// Start what connects the sandbox's own network.
    StartNetwork,
    /// Load the packet filter of the sandbox's own network.
    FilterNetwork,
    /// Leave the host's session keyring.
    LeaveKeyring,
    /// Resource limits, session, signals, out-of-memory score.
    SetLimits,
    /// Connect stdin, stdout and stderr; hand over the terminal.
    ConnectStdio,
    /// Load the seccomp filter.
    LoadFilter,
    /// Enter the user namespace.
    EnterUserNamespace,
    /// Drop capabilities and change user.
    DropPrivileges,
    /// Write the bundle of an OCI runtime.
    WriteBundle,
    /// Start an OCI runtime.
    StartRuntime,
    /// Wait for the command.
    Wait,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::ReceivePlan => "receive the plan",
            Step::JoinCgroup => "join the control group",
            Step::MakeNamespaces => "make namespaces",
            Step::Fork => "fork",
            Step::ProtectInit => "protect the init process",
            Step::PrepareMounts => "prepare a private mount tree at",
            Step::MountRoot => "mount the root",
            Step::MountFilesystem => "mount",
            Step::BindDevice => "bind the device",
            Step::Mask => "mask",
            Step::MakeReadOnly => "make read-only",
            Step::MakeTerminal => "make a terminal",
            Step::MountFile => "mount the file",
            Step::MountTree => "mount the tree",
            Step::EnterDirectory => "enter the directory",
            Step::SwitchRoot => "switch to the new root",
            Step::SetHostname => "set the host name",
            Step::StartLoopback => "start the loopback interface",
            Step::StartNetwork => "start the sandbox's network",
            Step::FilterNetwork => "filter the sandbox's network, which takes a kernel with nf_tables and nft_reject",
            Step::LeaveKeyring => "leave the session keyring",
            Step::SetLimits => "set limits",
            Step::ConnectStdio => "connect the output",
            Step::LoadFilter => "load the system call filter",
            Step::EnterUserNamespace => "enter the user namespace",
            Step::DropPrivileges => "drop privileges",
            Step::WriteBundle => "prepare the runtime's bundle at",
            Step::StartRuntime => "start the runtime",
            Step::Wait => "wait for the command",
        })
    }
}
