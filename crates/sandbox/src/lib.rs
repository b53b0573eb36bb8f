//! Runs one process in one root filesystem, isolated from the host and from other builds.
//!
//! This room knows nothing of build steps, caches' names or stores: it is handed a [`Root`] and a
//! [`Process`] and gives back how it [`Ended`]. It refuses to run anything that it could not
//! isolate as asked: every failure to set up is a [`SandboxError`], and the command was not started.
//!
//! * [`Sandbox`]: the seam. [`NativeSandbox`] is Linux namespaces, mounts, capabilities and seccomp,
//!   set up by a small helper process. [`OciSandbox`] leaves the last part of that to runc, crun or youki.
//! * [`run_helper_if_asked`]: what the binary's `main` calls first, so that it can be that helper.
//! * [`become_root_in_a_namespace`]: what it calls next if a user without root's rights runs it.
//!   [`settings_against_user_namespaces`] says what of the host forbids that; [`check_tun`], what forbids private networks.
//! * [`Process`], [`Root`], [`Mount`], [`Limits`] …: plain data, what to run. [`Io`]: where it reads and writes.
//!
//! Inside: `process`, `io`, `network` and `limits` (the data), `ids` (whose users the sandbox's are), `error`, `plan` (pure:
//! what the helper shall do), `filter` (pure: the seccomp program), `reach` (pure: what a private network reaches), `native`
//! (the effects; its `mod.rs` draws the processes), `oci` (what a runtime is told),
//! `subordinate` (pure: a user's own ids) and `owners`.

mod error;
mod filter;
mod ids;
mod io;
mod limits;
mod native;
mod network;
mod oci;
mod owners;
mod plan;
mod process;
mod reach;
mod subordinate;

pub use error::{SandboxError, Step, TunError};
pub use filter::{Profile, ProfileError};
pub use ids::MappedIds;
pub use io::{Io, Terminal, TerminalSize};
pub use limits::{Ended, Limit, Limits, Usage};
pub use native::{
    NativeSandbox, become_root_in_a_namespace, check_tun, run_helper_if_asked, settings_against_user_namespaces,
};
pub use network::{Cidr, Network, PROXY_PORT, ParseNetworkError, Proxy};
pub use oci::{OciSandbox, Runtime};
pub use owners::{Owners, RootlessError};
pub use process::{ExitStatus, Mount, Process, Root, Sandbox, Seccomp, SecretBytes, Source, User, UserNamespace};
