//! Init, PID 1 of the sandbox: puts the root together, starts the command, reaps, and reports.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Signal, WaitOptions, fchdir, pivot_root, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};

use super::cgroup::Joins;
use super::command::{Prepared, Stdio};
use super::helper::Descriptors;
use super::mounts::{self, Staging};
use super::runtime;
use super::sys::{self, SingleThread};
use super::terminal::{self, Terminal};
use super::user_namespace;
use super::walk::{Missing, walk, walk_without_links};
use super::wire::{self, At, Failure, Report};
use crate::error::Step;
use crate::plan::{Attributes, Bind, BindSource, Plan, RootPlan};

/// A directory that every host has, covered in our mount namespace by what we put together.
const STAGING_PLACE: &CStr = c"/proc";
const ROOT_OWNED: Missing = Missing::MakeDirectories { owner: (0, 0) };

/// Plays init and never returns.
pub(super) fn run(
    plan: &Plan,
    mut descriptors: Descriptors,
    listens: Option<OwnedFd>,
    cgroups: &Joins,
    link: &OwnedFd,
    helper: OwnedFd,
    thread: &SingleThread,
) -> ! {
    let ended = tie_to_helper(&helper)
        .at(Step::ProtectInit)
        .and_then(|()| join_cgroups(cgroups, plan))
        .and_then(|()| set_up(plan, &mut descriptors, thread))
        .and_then(|inside| match &plan.runtime {
            Some(runtime) => {
                let place = (inside.root.as_fd(), inside.cwd.as_fd());
                runtime::start_and_reap(runtime, plan, (descriptors, listens), place, thread)
            }
            None => start_and_reap(plan, (descriptors, listens), link, inside, &helper, thread),
        });
    wire::report(link, &ended.unwrap_or_else(Report::Failed));
    // The kernel kills every other process of the namespace, and waits for it.
    sys::exit_now(0)
}

/// What was made for the command.
struct Inside {
    root: OwnedFd,
    cwd: OwnedFd,
    terminal: Option<Terminal>,
}

/// Makes everything that the command will see.
fn set_up(plan: &Plan, descriptors: &mut Descriptors, thread: &SingleThread) -> Result<Inside, Failure> {
    leave_low_oom_score().at(Step::SetLimits)?;
    leave_session_keyring().at(Step::LeaveKeyring)?;
    if plan.runtime.is_none() {
        rustix::system::sethostname(&plan.hostname).at(Step::SetHostname)?;
    }
    if plan.own_network {
        start_loopback().at(Step::StartLoopback)?;
        let_everybody_ping();
    }

    mounts::cut_propagation().at(Step::PrepareMounts)?;
    let place = if plan.runtime.is_some() { runtime::STAGING_PLACE } else { STAGING_PLACE };
    if let Some(runtime) = &plan.runtime {
        runtime::prepare(runtime)?;
    }
    let mut staging = Staging::new(place).at_path(Step::PrepareMounts, place)?;
    let root = mount_root(&plan.root, descriptors, &staging)?;
    let root_fd = root.as_fd();
    for filesystem in &plan.filesystems {
        let mount = match mounts::make(filesystem) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && filesystem.kind.as_bytes() == b"sysfs" => {
                mounts::make_in_an_empty_network(filesystem, thread)
            }
            made => made,
        };
        let mount = mount.at_path(Step::MountFilesystem, &filesystem.target)?;
        if filesystem.target.as_bytes() == b"/dev" {
            fill_dev(plan, mount.as_fd()).at_path(Step::MountFilesystem, &filesystem.target)?;
        }
        walk_without_links(root_fd, &filesystem.target, ROOT_OWNED)
            .and_then(|target| mounts::attach(mount.as_fd(), target.as_fd()))
            .at_path(Step::MountFilesystem, &filesystem.target)?;
    }
    for name in &plan.devices {
        bind_device(root_fd, name).at_path(Step::BindDevice, name)?;
    }
    let terminal = terminal::make(root_fd, plan.stdio, plan.owner.0).at(Step::MakeTerminal)?;
    for path in &plan.masked {
        mask(root_fd, path, &staging).at_path(Step::Mask, path)?;
    }
    for path in &plan.read_only {
        make_read_only(root_fd, path).at_path(Step::MakeReadOnly, path)?;
    }
    for bind in &plan.binds {
        mount_bind(root_fd, bind, descriptors, &mut staging)?;
    }
    let cwd = walk(root_fd, &plan.cwd, Missing::MakeDirectories { owner: plan.owner })
        .at_path(Step::EnterDirectory, &plan.cwd)?;
    drop(staging);
    if plan.runtime.is_none() {
        switch_root(root_fd).at(Step::SwitchRoot)?;
    }
    Ok(Inside { root, cwd, terminal })
}

/// Starts the command and reaps whatever ends until the command does.
fn start_and_reap(
    plan: &Plan,
    (descriptors, listens): (Descriptors, Option<OwnedFd>),
    link: &OwnedFd,
    inside: Inside,
    helper: &OwnedFd,
    thread: &SingleThread,
) -> Result<Report, Failure> {
    let Descriptors { io, namespace, mounts, held: _held, .. } = descriptors;
    let Inside { root, cwd, terminal } = inside;
    let stdio = match terminal {
        Some(Terminal { master, slave }) => {
            // Its only copy from now on is the caller's: once that is closed, the command is hung up.
            wire::hand_over(link, &master).at(Step::ConnectStdio)?;
            Stdio::terminal(slave)
        }
        None => Stdio::of(io),
    };
    let ids = namespace.as_ref().zip(listens.as_ref());
    let command = Prepared::new(plan, stdio.at(Step::ConnectStdio)?, ids, cwd);
    let Some(pid) = sys::fork(thread).at(Step::Fork)? else { command.run(link) };
    // Of what came with the plan only the held descriptors stay open here.
    drop(command);
    drop((listens, mounts, root));
    if let Some(namespace) = namespace {
        become_nobody(&namespace).and_then(|()| tie_to_helper(helper)).at(Step::EnterUserNamespace)?;
    }
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((reaped, status))) if reaped == pid => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Report::Exited(code),
                    (None, signal) => Report::Killed(signal.unwrap_or(libc::SIGKILL)),
                });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).at(Step::Wait),
        }
    }
}

/// Makes the kernel kill us when the helper ends. If it ended just before, we notice by its descriptor.
fn tie_to_helper(helper: &OwnedFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(helper, PollFlags::IN)], Some(&now))? {
        0 => Ok(()),
        _ => sys::exit_now(0),
    }
}

/// Leaves the host's root behind for the user namespace, where nothing is left to do but to reap. The kernel forgets on the
/// way whom we are tied to, and whether we may be looked at. (Until we are hidden again, our capabilities hold off the
/// command, which has fewer: `ptrace(2)`.)
fn become_nobody(namespace: &OwnedFd) -> io::Result<()> {
    user_namespace::enter(namespace)?;
    super::helper::hide()?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// From here on we are counted and limited. Then the namespace, whose root is the group that we are in.
fn join_cgroups(cgroups: &Joins, plan: &Plan) -> Result<(), Failure> {
    cgroups.join().at(Step::JoinCgroup)?;
    // A runtime makes groups below, and then the namespace.
    if plan.runtime.is_some() { Ok(()) } else { sys::unshare(UnshareFlags::NEWCGROUP).at(Step::MakeNamespaces) }
}

/// A service manager may protect the caller from being killed when memory is short; a step must not be.
fn leave_low_oom_score() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(FILE)?.starts_with('-') {
        std::fs::write(FILE, "0")?;
    }
    Ok(())
}

fn leave_session_keyring() -> io::Result<()> {
    match sys::join_new_session_keyring() {
        // A kernel without keys.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        done => done,
    }
}

fn start_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(socket.as_fd())
}

/// Lets every group make the sockets of `ping`, which take no capability (`icmp(7)`). A new network namespace has them for
/// nobody. The host's `/proc` is still there; where it is read-only, as in a container, a step only lacks `ping`.
fn let_everybody_ping() {
    // The highest group that the kernel takes here. The ids of user namespaces lie below it.
    let allow = |groups| std::fs::write("/proc/sys/net/ipv4/ping_group_range", groups);
    // Without root, the kernel takes only groups that our user namespace has.
    let _ = allow("0 2147483647").or_else(|_| allow("0 65535")).or_else(|_| allow("0 0"));
}

/// Mounts the root, without device nodes, on a place that only we see.
fn mount_root(root: &RootPlan, descriptors: &mut Descriptors, staging: &Staging) -> Result<OwnedFd, Failure> {
    let (mount, path) = detached(root, Attributes::NODEV, descriptors);
    let attached = mount.and_then(|mount| {
        mounts::attach(mount.as_fd(), staging.root_place()?.as_fd())?;
        Ok(mount)
    });
    match path {
        Some(path) => attached.at_path(Step::MountRoot, path),
        None => attached.at(Step::MountRoot),
    }
}

/// Returns a tree as a detached mount, and its path on the host if it has one.
fn detached<'a>(
    tree: &'a RootPlan,
    attributes: Attributes,
    descriptors: &mut Descriptors,
) -> (io::Result<OwnedFd>, Option<&'a CStr>) {
    match tree {
        RootPlan::Dir(path) => {
            let copy = match &descriptors.namespace {
                Some(ids) if descriptors.are_ids_mapped => mounts::copy_mapped(path, attributes, ids.as_fd()),
                _ => mounts::copy_from_host(path, attributes),
            };
            (copy, Some(path))
        }
        RootPlan::Mount(index) => {
            let mount = descriptors.take(*index).and_then(|mount| {
                sys::mount_set_private(mount.as_fd(), attributes, None)?;
                Ok(mount)
            });
            (mount, None)
        }
    }
}

/// Makes the links, and empty files for the devices.
fn fill_dev(plan: &Plan, dev: BorrowedFd<'_>) -> io::Result<()> {
    for name in &plan.devices {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    }
    for (name, target) in &plan.links {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    Ok(())
}

fn bind_device(root: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let path = std::ffi::CString::new([b"/dev/", name.to_bytes()].concat()).expect("parts of C strings");
    let device = mounts::copy_from_host(&path, Attributes::NOSUID)?;
    mounts::attach(device.as_fd(), walk_without_links(root, &path, Missing::Fail)?.as_fd())
}

/// Covers a directory with an empty one, anything else with `/dev/null`.
fn mask(root: BorrowedFd<'_>, path: &CStr, staging: &Staging) -> io::Result<()> {
    let Some(target) = if_exists(walk_without_links(root, path, Missing::Fail))? else { return Ok(()) };
    let cover = match FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode) {
        FileType::Directory => staging.empty_directory()?,
        _ => mounts::copy_from_host(c"/dev/null", Attributes::NOSUID)?,
    };
    mounts::attach(cover.as_fd(), target.as_fd())
}

fn make_read_only(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    let Some(target) = if_exists(walk_without_links(root, path, Missing::Fail))? else { return Ok(()) };
    let attributes = Attributes::READ_ONLY.and(Attributes::NOSUID).and(Attributes::NODEV).and(Attributes::NOEXEC);
    let copy = mounts::copy(target.as_fd(), c"", attributes)?;
    mounts::attach(copy.as_fd(), target.as_fd())
}

/// A kernel lacks what it was built without.
fn if_exists(found: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn mount_bind(
    root: BorrowedFd<'_>,
    bind: &Bind,
    descriptors: &mut Descriptors,
    staging: &mut Staging,
) -> Result<(), Failure> {
    let owner = bind.parents;
    let (step, mount, missing) = match &bind.source {
        BindSource::Tree(tree, attributes) => {
            let (mount, path) = detached(tree, *attributes, descriptors);
            let mount = mount.at_path(Step::MountTree, path.unwrap_or(&bind.target))?;
            (Step::MountTree, Some(mount), Missing::MakeDirectories { owner })
        }
        BindSource::File { content, mode, owner: file_owner } => {
            let mount = staging.file(content, *mode, *file_owner).at_path(Step::MountFile, &bind.target)?;
            (Step::MountFile, mount, Missing::MakeFile { owner })
        }
    };
    let Some(mount) = mount else { return Ok(()) };
    walk(root, &bind.target, missing)
        .and_then(|target| {
            mounts::refuse_target(root, target.as_fd())?;
            mounts::attach(mount.as_fd(), target.as_fd())
        })
        .at_path(step, &bind.target)
}

/// Makes `root` this namespace's root and lets go of the host's tree, as pivot_root(2) describes: with
/// `.` for both places the old root ends up on top of the new one, from where it is unmounted.
fn switch_root(root: BorrowedFd<'_>) -> io::Result<()> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    Ok(())
}

/// Opens a path of the sandbox, once inside.
pub(super) fn open_inside(path: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())?)
}
