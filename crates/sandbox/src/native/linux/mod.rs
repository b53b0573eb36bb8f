//! Linux: namespaces, mounts, capabilities, seccomp. The parent module draws the processes.
//!
//! `sandbox` is the caller's side and `wire` what goes over the socket. `helper`, `init` and `command` are the three
//! processes, each a list of steps; `runtime` is what init does where an OCI runtime starts the command; `mounts`, `walk` and
//! `terminal` help init; `network` and what it uses connect a network of the sandbox's own, `tun` being the device for that;
//! `cgroup` limits and counts; `user_namespace` gives the users inside ids of their own, and `mknod` device nodes; `rootless`
//! makes the caller root of a namespace; `sys` holds every unsafe line.

mod cgroup;
mod command;
mod firewall;
mod helper;
mod init;
mod mknod;
mod mounts;
mod netlink;
mod network;
mod relay;
mod rootless;
mod runtime;
mod sandbox;
mod sys;
mod terminal;
mod tun;
mod user_namespace;
mod walk;
mod wire;

pub use helper::run_helper_if_asked;
pub use rootless::{become_root_in_a_namespace, settings_against_user_namespaces};
pub use sandbox::NativeSandbox;
pub use tun::check_tun;
