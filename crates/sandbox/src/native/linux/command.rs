//! From init's child to the command: gives up everything, then executes.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Resource, Rlimit, fchdir, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_thread_res_gid, set_thread_res_uid,
};

use super::init::open_inside;
use super::mknod;
use super::sys::{self, Words};
use super::user_namespace;
use super::wire::{self, At, Failure, Report};
use crate::error::Step;
use crate::plan::{Command, Plan};

/// The shell's exit codes for a command that cannot be executed, or not be found.
pub(super) const CANNOT_EXECUTE: i32 = 126;
pub(super) const NOT_FOUND: i32 = 127;

/// All that is needed after the fork, made before it.
pub(super) struct Prepared<'a> {
    command: &'a Command,
    /// The user, by the host's ids.
    owner: (u32, u32),
    /// The user namespace, and where the filter's listener goes.
    inside: Option<(&'a OwnedFd, &'a OwnedFd)>,
    argv: Words<'a>,
    env: Words<'a>,
    stdio: Stdio,
    cwd: OwnedFd,
}

/// What becomes stdin, stdout and stderr.
pub(super) struct Stdio {
    descriptors: [OwnedFd; 3],
    /// They are a terminal, to be the command's controlling one.
    is_terminal: bool,
}

impl Stdio {
    /// Three descriptors as they are; one is the output.
    pub(super) fn of(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let descriptors = match <[OwnedFd; 3]>::try_from(descriptors) {
            Ok(all) => all,
            Err(one) => {
                let output = one.into_iter().next().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
                // The sandbox's own, so that no path of the host shows through /proc/self/fd/0.
                [open_inside(c"/dev/null", OFlags::RDONLY)?, output.try_clone()?, output]
            }
        };
        Ok(Self { descriptors, is_terminal: false })
    }

    /// The command's end of its terminal.
    pub(super) fn terminal(slave: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptors: [slave.try_clone()?, slave.try_clone()?, slave], is_terminal: true })
    }
}

impl<'a> Prepared<'a> {
    pub(super) fn new(plan: &'a Plan, stdio: Stdio, inside: Option<(&'a OwnedFd, &'a OwnedFd)>, cwd: OwnedFd) -> Self {
        let command = &plan.command;
        let (argv, env) = (Words::new(&command.argv), Words::new(&command.env));
        Self { command, owner: plan.owner, inside, argv, env, stdio, cwd }
    }

    /// Becomes the command.
    pub(super) fn run(&self, link: &OwnedFd) -> ! {
        match self.give_up_everything() {
            Ok(()) => self.execute(),
            Err(failure) => wire::report(link, &Report::Failed(failure)),
        }
        sys::exit_now(CANNOT_EXECUTE)
    }

    fn give_up_everything(&self) -> Result<(), Failure> {
        // A session of its own, without a controlling terminal so far.
        setsid().at(Step::SetLimits)?;
        self.connect_stdio().at(Step::ConnectStdio)?;
        sys::reset_signals().at(Step::SetLimits)?;
        self.set_limits().at(Step::SetLimits)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        // Still as root: a working directory may lie where its user cannot go.
        fchdir(&self.cwd).at(Step::EnterDirectory)?;
        // Descriptors 0, 1, 2 and no others (CVE-2024-21626).
        sys::close_on_exec_from(3).at(Step::ConnectStdio)?;
        // All above takes the host's root: limits may be raised, and the output is the caller's.
        if let Some((namespace, _)) = self.inside {
            user_namespace::enter(namespace).at(Step::EnterUserNamespace)?;
        }
        // Before CAP_SYS_ADMIN goes: without it the kernel wants no_new_privs, which would disable sudo.
        if !self.command.filter.is_empty() {
            let listener = sys::load_filter(&self.command.filter, self.inside.is_some()).at(Step::LoadFilter)?;
            if let (Some(listener), Some((_, link))) = (listener, self.inside) {
                mknod::send(link, &listener).at(Step::LoadFilter)?;
            }
        }
        self.drop_privileges().at(Step::DropPrivileges)
    }

    fn connect_stdio(&self) -> io::Result<()> {
        let Stdio { descriptors: [stdin, stdout, stderr], is_terminal } = &self.stdio;
        if *is_terminal {
            // Of the session that was just made.
            rustix::process::ioctl_tiocsctty(stdin)?;
        }
        for descriptor in [stdin, stdout, stderr] {
            // Or the user could write to stdout, but not open /dev/stdout. Only a pipe: that has no other owner.
            if FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode) == FileType::Fifo {
                rustix::fs::fchown(descriptor, Some(Uid::from_raw(self.owner.0)), None)?;
            }
        }
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        Ok(())
    }

    fn set_limits(&self) -> io::Result<()> {
        let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(Resource::Nofile, both(self.command.open_files))?;
        // No core files. 1 and not 0: with 0 the kernel still starts the host's crash handler if `core_pattern`
        // is a pipe, and feeds it what a step wrote (core(5)).
        setrlimit(Resource::Core, both(1))?;
        Ok(())
    }

    fn drop_privileges(&self) -> io::Result<()> {
        let Command { uid, gid, capabilities, .. } = *self.command;
        for capability in (0..64).filter(|capability| capabilities & (1 << capability) == 0) {
            match sys::drop_from_bounding_set(capability) {
                // Past the last one that this kernel knows.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                done => done?,
            }
        }
        sys::clear_groups()?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let kept = if uid.is_root() { CapabilitySet::from_bits_retain(capabilities) } else { CapabilitySet::empty() };
        // An empty inheritable set empties the ambient set too. It must be empty: otherwise unprivileged
        // users inside could gain what a file's capabilities allow (CVE-2022-24769).
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        Ok(set_capabilities(None, sets)?)
    }

    /// Tries the candidates as execvp(3) does: what is not there or may not be executed is passed over.
    fn execute(&self) {
        let mut refused: Option<io::Error> = None;
        for program in &self.command.candidates {
            let error = sys::execute(program, &self.argv, &self.env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => refused = Some(error),
                _ => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let name = self.command.argv.first().map_or(c"", |name| name.as_c_str());
        let (reason, code) = match refused {
            Some(error) => (error.to_string(), CANNOT_EXECUTE),
            None => ("not found".to_owned(), NOT_FOUND),
        };
        complain(name, &reason);
        sys::exit_now(code)
    }
}

/// Says on the step's own output why its command did not start.
fn complain(name: &CStr, reason: &str) {
    let message = format!("kiln: {}: {reason}\n", name.to_string_lossy());
    let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
}
