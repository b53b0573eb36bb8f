//! The network of a sandbox that has one of its own with a way out.
//!
//! ```text
//! helper ──fork──► companion        stays in the host's network namespace, as nobody
//!    │                 ╎            private: becomes `pasta`, which has the other end of the sandbox's interface
//!    │                 ╎            proxy: copies bytes between the sandbox's listening socket and the proxy
//!    └─unshare, fork─► init          in the sandbox's network namespace
//! ```
//!
//! The companion is forked before the helper makes the namespaces, so it sees none of them, and the sandbox does not see it. It
//! waits until the network namespace is there and the packet filter in it. The kernel kills it with the helper.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::helper::Descriptors;
use super::netlink::{self, Netlink};
use super::sys::{self, SingleThread, Words};
use super::wire::{self, At, Failure};
use super::{firewall, relay};
use crate::error::Step;
use crate::network::{Cidr, Network, Proxy};
use crate::plan::Plan;
use crate::reach::{self, Family};

/// The largest packet of `pasta`, which has no wire to respect.
const MTU: u32 = 65520;
/// Most bytes of what a companion says before it serves.
const MAX_MESSAGE: u64 = 4 << 10;
/// The exit code of a companion that did not find its program, as in a shell.
const NOT_FOUND: i32 = 127;
/// The user whom every system has for what needs no rights.
const NOBODY: u32 = 65534;

/// The process that stands between the sandbox's network and the host's. Dies when dropped.
pub(super) struct Companion {
    process: OwnedFd,
    task: Task,
    /// A byte in it lets the companion begin.
    go: OwnedFd,
    /// What it says when it serves, and what goes wrong before.
    ready: OwnedFd,
    complaint: OwnedFd,
}

enum Task {
    Private { allow: Vec<Cidr>, host: Vec<IpAddr>, families: Vec<Family> },
    Proxy,
}

impl Companion {
    /// Forks the companion of `plan`'s network, in the host's namespaces; `None` if that needs none. Gives the descriptors back,
    /// of which it keeps none.
    pub(super) fn start(
        plan: &Plan,
        descriptors: Descriptors,
        thread: &SingleThread,
    ) -> Result<(Descriptors, Option<Self>), Failure> {
        let task = match &plan.network {
            Network::None | Network::Host => return Ok((descriptors, None)),
            Network::Private { allow } => {
                let host = sys::own_addresses().at(Step::StartNetwork)?;
                Task::Private { allow: allow.clone(), host, families: ways_out()? }
            }
            Network::Proxy(_) => Task::Proxy,
        };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).at(Step::StartNetwork);
        let ((go_end, go), (ready, ready_end), (complaint, complaint_end)) = (pipe()?, pipe()?, pipe()?);
        let parent = getpid();
        let Some(pid) = sys::fork(thread).at(Step::Fork)? else {
            drop((go, ready, complaint, descriptors));
            let ends = Ends { parent, go: go_end, ready: ready_end, complaint: complaint_end };
            let failed = match (&task, &plan.network) {
                (Task::Private { families, .. }, _) => ends.become_pasta(families),
                (Task::Proxy, Network::Proxy(proxy)) => ends.relay(proxy, thread),
                (Task::Proxy, _) => Ok(()),
            };
            if let Err(error) = failed {
                let _ = rustix::io::write(&ends.complaint, error.to_string().as_bytes());
            }
            sys::exit_now(1)
        };
        let process = pidfd_open(pid, PidfdFlags::empty()).at(Step::Fork)?;
        Ok((descriptors, Some(Self { process, task, go, ready, complaint })))
    }

    /// Connects this process's network namespace, which is the sandbox's by now.
    pub(super) fn connect(&self) -> Result<(), Failure> {
        if let Task::Private { allow, host, .. } = &self.task {
            let rules = |family| reach::rules(family, allow, host);
            firewall::install(&rules(reach::V4), &rules(reach::V6)).at(Step::FilterNetwork)?;
        }
        rustix::io::write(&self.go, b"g").at(Step::StartNetwork)?;
        // A byte when it serves, the end when it does not. What it says later goes nowhere.
        if rustix::io::retry_on_intr(|| rustix::io::read(&self.ready, &mut [0])).at(Step::StartNetwork)? == 0 {
            return Err(self.why());
        }
        if let Task::Private { families, .. } = &self.task {
            configure(families).at(Step::StartNetwork)?;
        }
        Ok(())
    }

    /// Says why it does not serve; it has ended.
    fn why(&self) -> Failure {
        let mut said = Vec::new();
        let complaint = self.complaint.as_fd().try_clone_to_owned().map(File::from);
        let _ = complaint.and_then(|complaint| complaint.take(MAX_MESSAGE).read_to_end(&mut said));
        let status = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let code = status.ok().flatten().and_then(|status| status.exit_status());
        Failure::explained(Step::StartNetwork, match (&self.task, code) {
            (Task::Private { .. }, Some(NOT_FOUND)) => {
                "the program `pasta` is not installed; install it with `apt-get install passt`, or use another network \
                 with --network-host".to_owned()
            }
            (Task::Private { .. }, _) => format!("pasta: {}", String::from_utf8_lossy(&said).trim()),
            (Task::Proxy, _) => String::from_utf8_lossy(&said).trim().to_owned(),
        })
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED));
    }
}

/// Returns the kinds of addresses by which the host has a way out.
fn ways_out() -> Result<Vec<Family>, Failure> {
    // The second is missing where the kernel has no IPv6.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = reach::default_routes(&read("/proc/self/net/route"), &read("/proc/self/net/ipv6_route"));
    let families = [(v4, reach::V4), (v6, reach::V6)].into_iter().filter_map(|(has, family)| has.then_some(family));
    match families.collect::<Vec<_>>() {
        none if none.is_empty() => Err(Failure::explained(
            Step::StartNetwork,
            "this host has no default route, so there is no way out; use another network with --network-host"
                .to_owned(),
        )),
        families => Ok(families),
    }
}

/// Gives the interface its addresses and routes.
fn configure(families: &[Family]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let index = netdevice::name_to_index(&socket, reach::INTERFACE)?;
    let netlink = Netlink::route()?;
    netlink.send(&netlink::link_up(index, MTU))?;
    let bytes = |address| Cidr::single(address).bytes();
    families.iter().try_for_each(|family| {
        netlink.send(&netlink::address_and_gateway(index, &bytes(family.own), &bytes(family.gateway)))
    })
}

/// What the companion has.
struct Ends {
    parent: Pid,
    go: OwnedFd,
    ready: OwnedFd,
    complaint: OwnedFd,
}

impl Ends {
    /// Waits for the sandbox's network namespace and returns it.
    fn wait(&self) -> io::Result<OwnedFd> {
        self.tie_to_helper()?;
        if rustix::io::retry_on_intr(|| rustix::io::read(&self.go, &mut [0]))? == 0 {
            // The helper failed before there was anything to connect.
            sys::exit_now(0)
        }
        let path = format!("/proc/{}/ns/net", self.parent.as_raw_nonzero());
        Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The kernel forgets this when the user changes.
    fn tie_to_helper(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(self.parent) { Ok(()) } else { sys::exit_now(0) }
    }

    /// Becomes `pasta`, with the two capabilities that it needs to make its interface in the namespace. It gives up one of
    /// them, its view of the filesystem, and most system calls before it serves.
    fn become_pasta(&self, families: &[Family]) -> io::Result<()> {
        let namespace = self.wait()?;
        let arguments = reach::pasta(families);
        let arguments = Words::new(&arguments);
        let environment = Words::new(&[]);
        // It opens the pipe anew by its path.
        rustix::fs::fchown(&self.ready, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?;
        rustix::stdio::dup2_stdin(&namespace)?;
        rustix::stdio::dup2_stdout(&self.ready)?;
        rustix::stdio::dup2_stderr(&self.complaint)?;
        sys::close_on_exec_from(3)?;
        // It takes a signal that is ignored already for an error.
        sys::reset_signals()?;
        sys::become_user(NOBODY, &[libc_capability::SYS_ADMIN, libc_capability::NET_ADMIN])?;
        self.tie_to_helper()?;
        for program in reach::PASTA {
            let error = sys::execute(program, &arguments, &environment);
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
        }
        sys::exit_now(NOT_FOUND)
    }

    /// Listens in the sandbox, then serves as nobody, without any capability.
    fn relay(&self, proxy: &Proxy, thread: &SingleThread) -> io::Result<()> {
        let listener = listen_in(&self.wait()?, thread)?;
        sys::become_user(NOBODY, &[])?;
        self.tie_to_helper()?;
        rustix::io::write(&self.ready, b"r")?;
        Err(relay::serve(&listener, proxy))
    }
}

/// Returns a socket that listens in a network namespace. A child makes it: without the host's root there is no way back from there.
fn listen_in(namespace: &OwnedFd, thread: &SingleThread) -> io::Result<TcpListener> {
    let listener = wire::made_by_a_child(thread, || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        relay::listen().map(OwnedFd::from)
    })?;
    Ok(listener.into())
}

/// Numbers of `capabilities(7)`.
mod libc_capability {
    pub(super) const NET_ADMIN: u32 = 12;
    pub(super) const SYS_ADMIN: u32 = 21;
}
