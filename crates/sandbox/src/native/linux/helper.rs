//! The helper: one thread, outside the pid namespace. It makes the namespaces, starts init, and watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::exit;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::retry_on_intr;
use rustix::process::{
    DumpableBehavior, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, set_dumpable_behavior,
    waitid,
};
use rustix::thread::UnshareFlags;

use super::cgroup::Joins;
use super::init;
use super::network::Companion;
use super::sys::{self, SingleThread};
use super::wire::{self, At, Failure, Report};
use crate::error::Step;
use crate::plan::{Plan, RootPlan};

/// The helper's `argv[0]`: what makes a start of the binary the helper's, and what `ps` shows.
pub(super) const NAME: &str = "kiln: sandbox";

/// Plays the sandbox's helper, and never returns, if this process was started as that.
///
/// To be called first in the binary's `main`, before any thread or runtime exists: the helper forks, which only a
/// process with one thread can do safely. (It checks.)
pub fn run_helper_if_asked() {
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        // The plan's socket comes as stdin, the one descriptor that needs no agreement.
        let Ok(link) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { exit(2) };
        if let Err(failure) = help(&link) {
            wire::report(&link, &Report::Failed(failure));
        }
        exit(0);
    }
}

fn help(link: &OwnedFd) -> Result<(), Failure> {
    let thread = SingleThread::check().at(Step::ReceivePlan)?;
    // Only the caller ends a run, by closing the socket: a Ctrl-C or a service manager's SIGTERM reaches the caller too.
    sys::ignore_signals(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE]);
    // Init inherits this. The command cannot look into a process that is not dumpable, nor, through its /proc/PID/exe,
    // at the host's binary (CVE-2019-5736); and secrets do not end up in a core file.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::ProtectInit)?;
    rustix::process::umask(Mode::empty());
    rustix::process::chdir(c"/").at(Step::ReceivePlan)?;

    let (plan, descriptors) = wire::receive(link.as_fd()).at(Step::ReceivePlan)?;
    let descriptors = Descriptors::new(descriptors, &plan).at(Step::ReceivePlan)?;
    // Both before the namespaces, since they are to be outside of them; and the companion inherits no way into the groups.
    let companion = Companion::start(&plan, &thread)?;
    let mut cgroups = Joins::open(&plan.cgroups, plan.cgroup.as_deref())?;
    make_namespaces(&plan).at(Step::MakeNamespaces)?;
    companion.as_ref().map_or(Ok(()), Companion::connect)?;
    let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).at(Step::Fork)?;
    match cgroups.fork(&thread).at(Step::Fork)? {
        None => init::run(&plan, descriptors, &cgroups, link, myself, &thread),
        Some(init) => {
            // Init has its copies. Held ones stay open here too: we are the last to go.
            let _held = descriptors.held;
            drop((descriptors.io, descriptors.mounts, cgroups, plan));
            let init = pidfd_open(init, PidfdFlags::empty()).at(Step::Wait)?;
            watch(init.as_fd(), link.as_fd()).at(Step::Wait)
        }
    }
}

/// All but the cgroup namespace, which init makes. The pid namespace takes effect for the next child.
fn make_namespaces(plan: &Plan) -> io::Result<()> {
    let mut namespaces = UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    if plan.own_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces)
}

/// Waits for init to end, and kills it, with all in its pid namespace, once the caller closes the socket.
fn watch(init: BorrowedFd<'_>, link: BorrowedFd<'_>) -> io::Result<()> {
    let mut watched = vec![PollFd::new(&init, PollFlags::IN), PollFd::new(&link, PollFlags::IN)];
    loop {
        retry_on_intr(|| poll(&mut watched, None))?;
        if !watched[0].revents().is_empty() {
            break;
        }
        // The caller says nothing after the plan, so this is its end.
        pidfd_send_signal(init, Signal::KILL)?;
        watched.truncate(1);
    }
    // Init is reaped only after every process of its namespace: nothing is left once this returns.
    retry_on_intr(|| waitid(WaitId::PidFd(init), WaitIdOptions::EXITED))?;
    Ok(())
}

/// The descriptors that came with the plan.
pub(super) struct Descriptors {
    /// Those of the plan's `stdio`.
    pub(super) io: Vec<OwnedFd>,
    /// By index in the plan; each is used once.
    pub(super) mounts: Vec<Option<OwnedFd>>,
    pub(super) held: Vec<OwnedFd>,
}

impl Descriptors {
    fn new(received: Vec<OwnedFd>, plan: &Plan) -> io::Result<Self> {
        let named = plan.trees().filter_map(|tree| match tree {
            RootPlan::Mount(index) => Some(*index),
            RootPlan::Dir(_) => None,
        });
        let io_end = plan.stdio.descriptors();
        let mounts_end = named.max().map_or(io_end, |last| last + 1).max(io_end);
        if received.len() < mounts_end {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut mounts: Vec<_> = received.into_iter().map(Some).collect();
        let held = mounts.split_off(mounts_end).into_iter().flatten().collect();
        let io = mounts[..io_end].iter_mut().filter_map(Option::take).collect();
        Ok(Self { io, mounts, held })
    }

    /// Takes the mount with this index.
    pub(super) fn take(&mut self, index: usize) -> io::Result<OwnedFd> {
        self.mounts.get_mut(index).and_then(Option::take).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}
