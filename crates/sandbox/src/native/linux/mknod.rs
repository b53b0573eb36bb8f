//! Makes device nodes for root in a user namespace, to whom the kernel refuses all of them.
//!
//! Package managers and `debootstrap` make `/dev/null` and its like. Such a node is inert: every mount of the sandbox is
//! `nodev`. So the filter sends `mknod(2)` of devices here, to the helper, which makes what the caller could have made
//! with its rights if it were root of the host, with the path and the rights looked up once:
//!
//! * The path is copied from the caller's memory, and what is looked up of the caller is known to be its own, because the call
//!   still waits afterwards (`seccomp_unotify(2)`). The call itself is never let through, as its caller could have changed the
//!   path by then.
//! * A child of the helper's goes where the caller is (same root, same directory), becomes whoever the caller is, and lets the kernel
//!   follow the path there. So it comes no further than the caller does. The magic links of `/proc` are not followed:
//!   those of init's are closed to the caller.
//!
//! An OCI runtime loads the filter itself, and sends the listener to a socket that init made.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{WaitOptions, chroot, fchdir, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, set_capabilities, set_thread_groups};

use super::sys::{self, Notification, SingleThread};
use super::wire;
use crate::filter;

const PATH_MAX: usize = 4096;
/// Over files: what of these the caller has, it has for this too.
const OVER_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// The helper's end.
pub(super) struct Nodes {
    /// The host's `/proc`, which this process can no longer reach by its name.
    proc: OwnedFd,
    home: Home,
    may_make: bool,
    from: From,
}

/// The one user namespace whose root may make nodes.
pub(super) enum Home {
    Namespace(OwnedFd),
    /// The one that an OCI runtime makes below this one.
    ChildOf(OwnedFd),
}

impl Home {
    fn is(&self, namespace: OwnedFd) -> io::Result<bool> {
        let (ours, theirs) = match self {
            Self::Namespace(ours) => (ours, namespace),
            Self::ChildOf(ours) => (ours, sys::parent_namespace(namespace.as_fd())?),
        };
        let (ours, theirs) = (rustix::fs::fstat(ours)?, rustix::fs::fstat(theirs)?);
        Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
    }
}

/// Where calls come from.
enum From {
    /// The command sends the listener when it has loaded the filter; or init, before that, a socket.
    Inside(OwnedFd),
    /// To which an OCI runtime connects.
    Socket(OwnedFd),
    /// It sends the listener.
    Runtime(OwnedFd),
    Listener(OwnedFd),
}

impl Nodes {
    /// Returns it and the end of the command, which is to [`send`] the listener there.
    ///
    /// `may_make`: we are the host's root. Nobody else can make a device node.
    pub(super) fn new(home: Home, may_make: bool) -> io::Result<(Self, OwnedFd)> {
        let proc = rustix::fs::open(c"/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (ours, theirs) = wire::pair()?;
        Ok((Self { proc, home, may_make, from: From::Inside(ours) }, theirs))
    }

    /// Returns what to wait for.
    pub(super) fn watched(&self) -> BorrowedFd<'_> {
        match &self.from {
            From::Inside(fd) | From::Socket(fd) | From::Runtime(fd) | From::Listener(fd) => fd.as_fd(),
        }
    }

    /// Answers what waits. Returns false if nothing more will come.
    pub(super) fn answer(&mut self, events: PollFlags, thread: &SingleThread) -> bool {
        match &self.from {
            From::Inside(link) | From::Runtime(link) => match wire::receive_descriptor(link.as_fd()) {
                Ok(Some(socket)) if is_socket(&socket) => self.from = From::Socket(socket),
                Ok(Some(listener)) => self.from = From::Listener(listener),
                // It ended before.
                Ok(None) | Err(_) => return false,
            },
            From::Socket(socket) => match rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
                Ok(runtime) => self.from = From::Runtime(runtime),
                Err(_) => return false,
            },
            From::Listener(_) if !events.contains(PollFlags::IN) => return false,
            From::Listener(listener) => {
                // Whoever called may have been killed meanwhile; then there is nobody to answer.
                if let Ok(call) = sys::receive_notification(listener.as_fd()) {
                    let made = self.make(listener.as_fd(), &call, thread);
                    let errno = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                    let _ = sys::answer_notification(listener.as_fd(), call.id, errno);
                }
            }
        }
        true
    }

    fn make(&self, listener: BorrowedFd<'_>, call: &Notification, thread: &SingleThread) -> io::Result<()> {
        if !self.may_make {
            return Err(Errno::PERM.into());
        }
        let (dir, path, mode, device) = match filter::name(call.arch, call.number) {
            Some("mknod") => (None, call.arguments[0], call.arguments[1], call.arguments[2]),
            Some("mknodat") => {
                let dir = call.arguments[0] as i32;
                let dir = (dir != libc::AT_FDCWD).then_some(dir);
                (dir, call.arguments[1], call.arguments[2], call.arguments[3])
            }
            _ => return Err(Errno::NOSYS.into()),
        };
        let process = open_at(self.proc.as_fd(), &call.pid.to_string(), OFlags::DIRECTORY)?;
        let path = read_path(process.as_fd(), path)?;
        let root = open_at(process.as_fd(), "root", OFlags::DIRECTORY)?;
        let start = match dir {
            _ if path.to_bytes().starts_with(b"/") => open_at(process.as_fd(), "root", OFlags::DIRECTORY)?,
            None => open_at(process.as_fd(), "cwd", OFlags::DIRECTORY)?,
            Some(fd) => open_at(process.as_fd(), &format!("fd/{fd}"), OFlags::empty())
                .map_err(|error| if error == Errno::NOENT { Errno::BADF } else { error })?,
        };
        let caller = Caller::read(process.as_fd())?;
        let inside = rustix::fs::openat(&process, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // Until here the number could have become that of another process.
        sys::notification_is_valid(listener, call.id)?;
        // As the kernel has it: in a namespace within the sandbox's, nobody has the right.
        if !self.home.is(inside)? || !caller.capabilities.contains(CapabilitySet::MKNOD) {
            return Err(Errno::PERM.into());
        }
        // The kernel takes these arguments as `umode_t` and `unsigned int`.
        let node = Node { root, start, path, mode: u32::from(mode as u16), device: decode_device(device as u32) };
        let Some(child) = sys::fork(thread)? else {
            let errno = node.make(&caller).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            sys::exit_now(errno)
        };
        let status = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))?;
        match status.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(Errno::IO.into()),
        }
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

/// Sends the listener, in the command; or the socket, in init.
pub(super) fn send(link: &OwnedFd, listener: &OwnedFd) -> io::Result<()> {
    wire::send_with(link.as_fd(), &[0], &[listener.as_fd()]).map(drop)
}

/// What is to be made where.
struct Node {
    root: OwnedFd,
    start: OwnedFd,
    path: CString,
    mode: u32,
    device: u64,
}

impl Node {
    /// Makes it, in a process of its own.
    fn make(&self, caller: &Caller) -> io::Result<()> {
        fchdir(&self.root)?;
        chroot(c".")?;
        fchdir(&self.start)?;
        set_thread_groups(&caller.groups)?;
        sys::make_files_as(caller.uid, caller.gid)?;
        let kept = CapabilitySet::MKNOD | caller.capabilities.intersection(OVER_FILES);
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?;
        rustix::process::umask(Mode::from_raw_mode(caller.umask));

        let (parent, name) = split(&self.path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(rustix::fs::CWD, &parent, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
        let (kind, mode) = (FileType::from_raw_mode(self.mode), Mode::from_raw_mode(self.mode & 0o7777));
        Ok(rustix::fs::mknodat(dir, &name, kind, mode, self.device)?)
    }
}

/// Who calls, by the host's ids.
#[derive(Debug, PartialEq)]
struct Caller {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    capabilities: CapabilitySet,
}

impl Caller {
    fn read(process: BorrowedFd<'_>) -> io::Result<Self> {
        let file = rustix::fs::openat(process, "status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Self::parse(&io::read_to_string(std::fs::File::from(file))?).ok_or_else(|| Errno::IO.into())
    }

    /// Parses `/proc/PID/status`.
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // Real, effective, saved, and what counts for files.
        let fourth = |name| field(name)?.split_whitespace().nth(3)?.parse().ok();
        let groups = field("Groups")?.split_whitespace();
        Some(Self {
            uid: fourth("Uid")?,
            gid: fourth("Gid")?,
            groups: groups.map(|group| group.parse().ok().map(Gid::from_raw)).collect::<Option<_>>()?,
            umask: u32::from_str_radix(field("Umask")?.trim(), 8).ok()?,
            capabilities: CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?),
        })
    }
}

fn open_at(dir: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())
}

/// Copies a path from the memory of a process.
fn read_path(process: BorrowedFd<'_>, address: u64) -> io::Result<CString> {
    const PAGE: u64 = 4096;
    let memory = rustix::fs::openat(process, "mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut path = Vec::with_capacity(256);
    while path.len() < PATH_MAX {
        let at = address.checked_add(path.len() as u64).ok_or(Errno::FAULT)?;
        // The next page may not be there.
        let mut piece = vec![0; ((PAGE - at % PAGE) as usize).min(PATH_MAX - path.len())];
        let read = rustix::io::pread(&memory, &mut piece[..], at).map_err(|_| Errno::FAULT)?;
        if read == 0 {
            return Err(Errno::FAULT.into());
        }
        path.extend_from_slice(&piece[..read]);
        if let Ok(whole) = CStr::from_bytes_until_nul(&path) {
            return if whole.is_empty() { Err(Errno::NOENT.into()) } else { Ok(whole.to_owned()) };
        }
    }
    Err(Errno::NAMETOOLONG.into())
}

/// Splits a path before its last name. Slashes after that stay with it: the kernel has an opinion on them.
fn split(path: &CStr) -> io::Result<(CString, CString)> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = match (&bytes[..start], &bytes[start..]) {
        (_, _) if end == 0 => return Err(Errno::EXIST.into()),
        (b"", name) => (&b"."[..], name),
        split => split,
    };
    let part = |bytes: &[u8]| CString::new(bytes).expect("part of a C string");
    Ok((part(parent), part(name)))
}

/// Returns what `mknod(2)` takes for a device as the C library has it (`new_decode_dev` of linux/kdev_t.h).
fn decode_device(device: u32) -> u64 {
    rustix::fs::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_before_its_last_name() {
        for (path, parent, name) in [
            (c"null", c".", c"null"),
            (c"/null", c"/", c"null"),
            (c"/a//b/../c", c"/a//b/../", c"c"),
            (c"a/b//", c"a/", c"b//"),
            (c"..", c".", c".."),
        ] {
            assert_eq!(split(path).unwrap(), (parent.to_owned(), name.to_owned()), "{path:?}");
        }
        assert_eq!(split(c"//").unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn the_callers_rights_are_those_that_count_for_files() {
        let status = "Name:\tUid:\t9 9 9 9\nUmask:\t0027\nUid:\t1\t2\t3\t1879048192\nGid:\t1\t2\t3\t1879048193\n\
                      Groups:\t1879048197 1879048198 \nCapEff:\t0000000008000002\n";
        let caller = Caller::parse(status).unwrap();
        let groups = [1_879_048_197, 1_879_048_198].map(Gid::from_raw).to_vec();
        let capabilities = CapabilitySet::MKNOD | CapabilitySet::DAC_OVERRIDE;
        assert_eq!(caller, Caller { uid: 1_879_048_192, gid: 1_879_048_193, groups, umask: 0o27, capabilities });
        assert_eq!(Caller::parse("Uid:\t1\n"), None);
    }

    #[test]
    fn devices_are_numbered_as_the_kernel_numbers_them() {
        assert_eq!(decode_device(0x0103), rustix::fs::makedev(1, 3));
        assert_eq!(decode_device(0xfff0_fff0), rustix::fs::makedev(0xff, 0xf_fff0));
    }
}
