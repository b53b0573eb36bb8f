//! The seccomp program: which system calls a step may make. Pure; the helper only loads the result.
//!
//! `table` says what is allowed and why; `arch` gives each architecture's numbers; `bpf` turns
//! rules into a program and is tested by running it. `profile` reads rules of the user's own instead, and `conditions` are
//! what those ask about arguments. `oci` says the rules in the words of OCI runtimes, and `oci_profile` those of profiles.
//!
//! What it answers (`seccomp(2)`):
//! * listed calls are allowed, a few after a look at an argument;
//! * unlisted calls fail with `EPERM`;
//! * calls newer than our tables fail with `ENOSYS`, so that programs fall back to what they used before;
//!   so does `clone3(2)`, whose flags lie in memory where a filter cannot look, and the whole x32 ABI;
//! * foreign architectures that this kernel could run but that have no table fail with `ENOSYS`.
//!
//! Known gap: on 32-bit x86 and s390x `socketcall(2)` makes sockets with arguments in memory. It must be allowed,
//! since Debian's 32-bit C library uses nothing else, so the limit on address families does not hold there.

mod arch;
mod bpf;
mod conditions;
mod oci;
mod oci_profile;
mod profile;
mod table;

use std::borrow::Cow;
use std::sync::OnceLock;

pub(crate) use bpf::Instruction;
pub(crate) use profile::{Host, version};
pub use profile::{Profile, ProfileError};

use arch::Arch;
use bpf::Body;

use crate::{Process, SandboxError, Seccomp};

/// Longest program that the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// What becomes of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It happens.
    Allow,
    /// It fails with this errno; 0 is success without effect.
    Errno(u16),
    /// It depends on an argument.
    Check(Check),
    /// Another answer of `linux/seccomp.h`, which only profiles give.
    Other(u32),
    /// It depends on arguments in a profile's way.
    Cases(conditions::Cases),
}

/// A look at arguments. Only the low 32 bits are compared: the kernel itself ignores the others for these
/// (comparing all 64 let `TIOCSTI` through, CVE-2019-10063).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// `clone(2)`: no new namespaces.
    Clone,
    /// `ioctl(2)`: nothing that types into the caller's terminal, or destroys other trees.
    Ioctl,
    /// `mknod(2)`, whose argument `mode` tells the kind of file: devices are left to the helper.
    Node { mode: u8 },
    /// `personality(2)`: only what changes no protection.
    Personality,
    /// `socket(2)` and `socketpair(2)`: ordinary address families.
    Socket,
}

/// Returns whether this kind of processor has a table.
pub(crate) fn supported() -> bool {
    !arch::NATIVE.is_empty()
}

/// What a program depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// Whether nobody waits for the disk.
    pub(crate) fast_sync: bool,
    /// Whether its root has no right to device nodes, and the helper makes them.
    pub(crate) asks_for_nodes: bool,
    /// Whether it may make namespaces.
    pub(crate) allows_namespaces: bool,
    /// Whether there is one user and no other.
    pub(crate) has_one_user: bool,
}

impl Asked {
    /// Returns what makes the longest program.
    fn all() -> Self {
        Self { fast_sync: true, asks_for_nodes: true, allows_namespaces: true, has_one_user: true }
    }

    /// Returns what a process asks for.
    pub(crate) fn by(process: &Process) -> Self {
        Self {
            fast_sync: process.fast_sync,
            asks_for_nodes: process.user_namespace.mapped().is_some(),
            allows_namespaces: process.allow_namespaces,
            has_one_user: process.user_namespace.mapped().is_some_and(|ids| ids.count() == 1),
        }
    }
}

/// The programs for this machine's architectures as the kernel's `struct sock_filter[]`, each made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Filters([OnceLock<Vec<u8>>; 16]);

impl Filters {
    /// Returns the program for `process`, empty for none.
    pub(crate) fn program(&self, process: &Process) -> Result<Cow<'_, [u8]>, SandboxError> {
        let asked = Asked::by(process);
        let program = match &process.seccomp {
            Seccomp::Default => return Ok(Cow::Borrowed(self.get(asked))),
            Seccomp::Unconfined => unconfined(asked),
            Seccomp::Profile(profile) => of_profile(profile, host().kernel, asked).ok_or(SandboxError::Invalid {
                what: "the seccomp profile compares more arguments than the kernel's 4096 instructions can",
            })?,
        };
        Ok(Cow::Owned(to_bytes(&program)))
    }

    fn get(&self, asked: Asked) -> &[u8] {
        let bits = [asked.fast_sync, asked.asks_for_nodes, asked.allows_namespaces, asked.has_one_user];
        let index = bits.into_iter().fold(0, |index, bit| 2 * index + usize::from(bit));
        self.0[index].get_or_init(|| to_bytes(&bpf::generate(arch::NATIVE, asked)))
    }
}

/// Returns what the system call with this number is called on one of this machine's architectures (`AUDIT_ARCH_*`).
pub(crate) fn name(arch: u32, number: u32) -> Option<&'static str> {
    arch::NATIVE.iter().find(|native| native.audit == arch)?.name(number)
}

/// Returns `linux.seccomp` for an OCI runtime, which does not say where to send the listener; `None` if no filter is needed.
///
/// # Errors
///
/// What a profile says and a runtime cannot do.
pub(crate) fn oci_seccomp(seccomp: &Seccomp, asked: Asked) -> Result<Option<serde_json::Value>, String> {
    Ok(match seccomp {
        Seccomp::Default => Some(oci::of_default(asked)),
        Seccomp::Unconfined => oci_profile::unconfined(arch::NATIVE, asked),
        Seccomp::Profile(profile) => Some(oci_profile::of_profile(arch::NATIVE, profile, host(), asked)?),
    })
}

/// Returns the program that refuses nothing; there is none unless something is to be answered for the kernel.
fn unconfined(asked: Asked) -> Vec<Instruction> {
    if !asked.fast_sync && !asked.asks_for_nodes && !asked.has_one_user {
        return Vec::new();
    }
    let bodies = arch::NATIVE.iter().map(|arch| {
        let mut rules = vec![Action::Allow; arch.newest as usize + 1];
        answer_ourselves(arch, &mut rules, asked);
        Body { arch, rules, newer: Action::Allow, x32: Action::Allow }
    });
    bpf::assemble(bodies, &Action::Allow)
}

/// Returns what profiles ask about this machine.
fn host() -> Host {
    let release = rustix::system::uname();
    let kernel = release.release().to_str().ok().and_then(version).unwrap_or_default();
    host_with(kernel)
}

fn host_with(kernel: (u32, u32)) -> Host {
    Host { arch: arch::GO, kernel, capabilities: crate::plan::CAPABILITIES }
}

/// Returns the program of a profile, or `None` if it is longer than the kernel takes.
fn of_profile(profile: &Profile, kernel: (u32, u32), asked: Asked) -> Option<Vec<Instruction>> {
    let program = assemble_profile(arch::NATIVE, profile, kernel, asked);
    (program.len() <= MAX_INSTRUCTIONS).then_some(program)
}

fn assemble_profile(arches: &[Arch], profile: &Profile, kernel: (u32, u32), asked: Asked) -> Vec<Instruction> {
    let host = host_with(kernel);
    let bodies = profile.covered(arches).map(|arch| {
        let mut rules = profile.rules(arch, host);
        answer_ourselves(arch, &mut rules, asked);
        Body { arch, rules, newer: profile.newer(), x32: Action::Errno(table::ENOSYS) }
    });
    bpf::assemble(bodies, &Action::Errno(table::ENOSYS))
}

/// Takes from the kernel what it would do otherwise than asked: waiting for the disk, whatever the rules say; and, where they
/// allow them, device nodes and changes to another user, of whom there may be none.
fn answer_ourselves(arch: &Arch, rules: &mut [Action], asked: Asked) {
    if asked.asks_for_nodes {
        for (number, mode) in table::NODES.iter().filter_map(|(name, mode)| Some((arch.number(name)?, *mode))) {
            let rule = &mut rules[number as usize];
            if *rule == Action::Allow {
                *rule = Action::Check(Check::Node { mode });
            }
        }
    }
    if asked.has_one_user {
        for number in table::USERS.iter().filter_map(|name| arch.number(name)) {
            let rule = &mut rules[number as usize];
            if *rule == Action::Allow {
                *rule = Action::Errno(0);
            }
        }
    }
    if asked.fast_sync {
        for number in table::SYNC.iter().filter_map(|name| arch.number(name)) {
            rules[number as usize] = Action::Errno(0);
        }
    }
}

/// Returns `program` as the kernel's `struct sock_filter[]`.
fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    program.iter().flat_map(|instruction| instruction.to_bytes()).collect()
}

/// Returns what becomes of each system call number of `arch`, from 0 to the newest known.
fn rules(arch: &Arch, asked: Asked) -> Vec<Action> {
    let mut rules = vec![Action::Errno(table::ENOSYS); arch.newest as usize + 1];
    for number in 0..=arch.newest {
        if arch.name(number).is_some() {
            rules[number as usize] = Action::Errno(table::EPERM);
        }
    }
    let mut set = |name: &str, action| {
        if let Some(number) = arch.number(name) {
            rules[number as usize] = action;
        }
    };
    for (_, names) in table::ALLOWED {
        names.iter().for_each(|name| set(name, Action::Allow));
    }
    table::CHECKED.iter().for_each(|(name, check)| set(name, Action::Check(*check)));
    table::MISSING.iter().for_each(|name| set(name, Action::Errno(table::ENOSYS)));
    if asked.allows_namespaces {
        table::NAMESPACES.iter().for_each(|name| set(name, Action::Allow));
    }
    answer_ourselves(arch, &mut rules, asked);
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_table_is_a_system_call_somewhere() {
        let listed = table::ALLOWED.iter().flat_map(|(_, names)| *names);
        let listed = listed.chain(table::SYNC).chain(table::MISSING).chain(table::NAMESPACES);
        let unknown: Vec<_> = listed.filter(|name| arch::ALL.iter().all(|arch| arch.number(name).is_none())).collect();
        assert!(unknown.is_empty(), "misspelt: {unknown:?}");
    }

    #[test]
    fn no_name_is_listed_twice() {
        let mut names: Vec<_> = table::ALLOWED.iter().flat_map(|(_, names)| *names).collect();
        names.extend(table::CHECKED.iter().map(|(name, _)| name));
        names.extend(table::MISSING);
        names.sort();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn what_is_allowed_for_namespaces_is_refused_otherwise() {
        let allowed = Asked { allows_namespaces: true, ..Asked::default() };
        for arch in arch::ALL {
            for name in table::NAMESPACES {
                let Some(number) = arch.number(name) else { continue };
                let rule = |asked| rules(arch, asked)[number as usize].clone();
                assert_eq!(rule(allowed), Action::Allow, "{name} on {}", arch.label);
                assert_ne!(rule(Asked::default()), Action::Allow, "{name} on {}", arch.label);
            }
        }
    }

    #[test]
    fn what_reaches_the_host_is_refused_on_every_architecture() {
        let dangerous = [
            "acct",
            "add_key",
            "bpf",
            "clock_settime",
            "delete_module",
            "finit_module",
            "fsconfig",
            "fsmount",
            "fsopen",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "ioperm",
            "iopl",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_by_handle_at",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "request_key",
            "setns",
            "settimeofday",
            "stime",
            "swapoff",
            "swapon",
            "syslog",
            "umount",
            "umount2",
            "unshare",
            "userfaultfd",
            "vhangup",
        ];
        for arch in arch::ALL {
            let rules = rules(arch, Asked::default());
            for name in dangerous {
                if let Some(number) = arch.number(name) {
                    assert_eq!(rules[number as usize], Action::Errno(table::EPERM), "{name} on {}", arch.label);
                }
            }
        }
    }
}
