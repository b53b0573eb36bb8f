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
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::cgroup::Joins;
use super::init;
use super::mknod::{Home, Nodes};
use super::network::Companion;
use super::sys::{self, SingleThread};
use super::user_namespace;
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
    let Some(name) = std::env::args_os().next().filter(|name| name == NAME || name == user_namespace::NAME) else {
        return;
    };
    // The caller's socket comes as stdin, the one descriptor that needs no agreement.
    let Ok(link) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { exit(2) };
    if name == user_namespace::NAME {
        user_namespace::hold(link);
    }
    if let Err(failure) = help(&link) {
        wire::report(&link, &Report::Failed(failure));
    }
    exit(0);
}

fn help(link: &OwnedFd) -> Result<(), Failure> {
    let thread = SingleThread::check().at(Step::ReceivePlan)?;
    // Only the caller ends a run, by closing the socket: a Ctrl-C or a service manager's SIGTERM reaches the caller too.
    sys::ignore_signals(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE]);
    hide().at(Step::ProtectInit)?;
    rustix::process::umask(Mode::empty());
    rustix::process::chdir(c"/").at(Step::ReceivePlan)?;

    let (plan, descriptors) = wire::receive(link.as_fd()).at(Step::ReceivePlan)?;
    let descriptors = Descriptors::new(descriptors, &plan).at(Step::ReceivePlan)?;
    // Both before the namespaces, since they are to be outside of them; and the companion inherits no way into the groups.
    let (descriptors, companion) = Companion::start(&plan, descriptors, &thread)?;
    let mut cgroups = Joins::open(&plan.cgroups, plan.cgroup.as_deref())?;
    if let Some(ids) = plan.ids {
        // What init puts into the sandbox belongs to the root inside. To the sandbox's namespaces and mounts it has no
        // right at all: they are all made, and owned, by the host's user namespace.
        sys::make_files_as(ids.first, ids.first).at(Step::ProtectInit)?;
        // The kernel decides anew for who changes.
        hide().at(Step::ProtectInit)?;
    }
    let nodes = descriptors
        .namespace
        .as_ref()
        .map(|namespace| {
            let home = match plan.runtime {
                None => Home::Namespace(namespace.try_clone()?),
                Some(_) => Home::ChildOf(std::fs::File::open("/proc/self/ns/user")?.into()),
            };
            Nodes::new(home, descriptors.are_ids_mapped)
        })
        .transpose();
    let (mut nodes, listens) = nodes.at(Step::LoadFilter)?.unzip();
    let own_pids = std::fs::File::open("/proc/self/ns/pid").at(Step::MakeNamespaces)?;
    make_namespaces(&plan).at(Step::MakeNamespaces)?;
    companion.as_ref().map_or(Ok(()), Companion::connect)?;
    let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).at(Step::Fork)?;
    match cgroups.fork(&thread).at(Step::Fork)? {
        None => {
            drop((nodes, own_pids));
            init::run(&plan, descriptors, listens, &cgroups, link, myself, &thread)
        }
        Some(init) => {
            // Init has its copies. Held ones stay open here too: we are the last to go.
            let are_ids_mapped = descriptors.are_ids_mapped;
            let _held = descriptors.held;
            drop((descriptors.io, descriptors.namespace, descriptors.mounts, listens, cgroups, plan));
            // What we start from now on is none of the sandbox's processes. Without the host's root there is no way back, and
            // nothing is started.
            if are_ids_mapped {
                move_into_link_name_space(own_pids.as_fd(), Some(LinkNameSpaceType::ProcessID)).at(Step::Fork)?;
            }
            let init = pidfd_open(init, PidfdFlags::empty()).at(Step::Wait)?;
            watch(init.as_fd(), link.as_fd(), nodes.as_mut(), &thread).at(Step::Wait)
        }
    }
}

/// Makes this process one that is not dumpable. Init inherits that. The command cannot look into such a process, nor,
/// through its /proc/PID/exe, at the host's binary (CVE-2019-5736); and secrets do not end up in a core file.
pub(super) fn hide() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// All but the cgroup namespace, which init makes. The pid namespace takes effect for the next child.
fn make_namespaces(plan: &Plan) -> io::Result<()> {
    let mut namespaces = UnshareFlags::NEWPID | UnshareFlags::NEWNS;
    // A runtime makes the others itself.
    if plan.runtime.is_none() {
        namespaces |= UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    }
    if plan.own_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces)
}

/// Waits for init to end, and kills it, with all in its pid namespace, once the caller closes the socket. Makes device nodes
/// meanwhile.
fn watch(
    init: BorrowedFd<'_>,
    link: BorrowedFd<'_>,
    mut nodes: Option<&mut Nodes>,
    thread: &SingleThread,
) -> io::Result<()> {
    let mut is_wanted = true;
    loop {
        // What is no longer watched is replaced by what is watched anyway.
        let third = nodes.as_ref().filter(|_| is_wanted).map_or(init, |nodes| nodes.watched());
        let second = if is_wanted { link } else { init };
        let mut watched = [init, second, third].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        retry_on_intr(|| poll(&mut watched, None))?;
        let [ended, closed, asked] = watched.map(|fd| fd.revents());
        if !ended.is_empty() {
            break;
        }
        if !closed.is_empty() {
            // The caller says nothing after the plan, so this is its end.
            pidfd_send_signal(init, Signal::KILL)?;
            is_wanted = false;
        } else if !asked.is_empty() {
            nodes = nodes.and_then(|nodes| nodes.answer(asked, thread).then_some(nodes));
        }
    }
    // Init is reaped only after every process of its namespace: nothing is left once this returns.
    retry_on_intr(|| waitid(WaitId::PidFd(init), WaitIdOptions::EXITED))?;
    Ok(())
}

/// The descriptors that came with the plan.
pub(super) struct Descriptors {
    /// Those of the plan's `stdio`.
    pub(super) io: Vec<OwnedFd>,
    /// The user namespace of the command.
    pub(super) namespace: Option<OwnedFd>,
    /// Whether ids in there are others than ours.
    pub(super) are_ids_mapped: bool,
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
        let are_ids_mapped = plan.ids.is_some_and(|ids| ids.first != 0);
        let namespace = plan.ids.map(|ids| ids.namespace);
        let io_end = plan.stdio.descriptors();
        let mounts_end = named.chain(namespace).max().map_or(io_end, |last| last + 1).max(io_end);
        if received.len() < mounts_end {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut mounts: Vec<_> = received.into_iter().map(Some).collect();
        let held = mounts.split_off(mounts_end).into_iter().flatten().collect();
        let io = mounts[..io_end].iter_mut().filter_map(Option::take).collect();
        let namespace = namespace.and_then(|index| mounts[index].take());
        Ok(Self { io, namespace, are_ids_mapped, mounts, held })
    }

    /// Takes the mount with this index.
    pub(super) fn take(&mut self, index: usize) -> io::Result<OwnedFd> {
        self.mounts.get_mut(index).and_then(Option::take).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}
