//! The native sandbox of this operating system.
//!
//! On Linux, three processes stand between the caller and the command:
//!
//! ```text
//! caller ──socket──► helper ──fork──► init (PID 1 inside) ──fork──► command
//! (many threads)     host's pids      mounts, masks, limits         privileges, exec
//! ```
//!
//! * The caller never forks: with its threads that is unsafe, and with its size slow. It starts the
//!   helper by `posix_spawn(3)` and sends it the plan, with descriptors, over a socket.
//! * The helper makes the namespaces, then only watches: if its socket closes (cancelled, or the caller died) it kills init.
//!   It is the last to leave the mount namespace, so when it has been reaped everything is unmounted.
//! * Init sets everything up, reaps orphans, reports how the command ended, and exits; the kernel then
//!   kills whatever else lives in the pid namespace. If the helper dies, so does init.
//! * The command gives up its privileges and executes.
//!
//! Every failure goes back over the socket as a report. No report means no success.

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;

#[cfg(not(target_os = "linux"))]
#[path = "other.rs"]
mod os;

pub use os::{
    NativeSandbox, become_root_in_a_namespace, check_tun, run_helper_if_asked, settings_against_user_namespaces,
};
