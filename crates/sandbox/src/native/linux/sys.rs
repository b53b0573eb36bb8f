//! System calls that have no safe wrapper elsewhere. Each function does one thing and returns `io::Result`.
#![expect(unsafe_code, reason = "the one place of this crate for it")]

use std::ffi::{CStr, CString, c_char, c_int, c_ulong};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, set_capabilities, set_keep_capabilities, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::plan::Attributes;

/// Proof that this process had one thread when asked. The helper makes no others.
pub(super) struct SingleThread(());

impl SingleThread {
    /// Counts the threads: `/proc/self/task` is a directory with one subdirectory each.
    pub(super) fn check() -> io::Result<Self> {
        let links = rustix::fs::stat("/proc/self/task")?.st_nlink;
        if links == 3 { Ok(Self(())) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks. Returns the child's process id in the parent and `None` in the child.
pub(super) fn fork(_: &SingleThread) -> io::Result<Option<Pid>> {
    // SAFETY: the child of a process with several threads may only call async-signal-safe
    // functions, as locks of other threads stay locked. There are no others: see `SingleThread`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// As [`fork`], with the child in the control group (v2) of this directory from its beginning. Moving it there later takes
/// milliseconds: the kernel then waits for every fork and exit on the machine to pause.
pub(super) fn fork_into(_: &SingleThread, group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: `clone_args` is integers; all zeroes are valid for it, and ask for what fork(2) does.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.as_raw_fd() as u64;
    // SAFETY: clone3(2) reads `size_of` bytes at `arguments` and keeps no pointer. Without `CLONE_VM` the child has a copy of
    // everything. That the C library does not know of it is harmless where there is one thread, so that no lock of its is
    // held: see `SingleThread`.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// Moves the calling thread into new namespaces (children, for the pid namespace).
pub(super) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    assert!(!namespaces.contains(UnshareFlags::FILES), "only namespaces are unshared");
    // SAFETY: only `FILES` is unsafe, since it takes descriptors away from values that own them; just excluded.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Adds `attributes` to a detached mount and makes it private, so that nothing mounted below it later
/// shows up in the tree it was copied from. With a user namespace, the ids of its files are that one's.
pub(super) fn mount_set_private(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    ids: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let (mapped, user_namespace) = match ids {
        Some(namespace) => (libc::MOUNT_ATTR_IDMAP, namespace.as_raw_fd() as u64),
        None => (0, 0),
    };
    let attr = MountAttr { set: attributes.0 | mapped, clear: 0, propagation: libc::MS_PRIVATE, user_namespace };
    // SAFETY: mount_setattr(2) reads an empty C string and `size_of` bytes at `attr`, which is the kernel's
    // `struct mount_attr`, and keeps neither pointer.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
}

/// Brings up the interface `lo` of this network namespace.
pub(super) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `ifreq` is integers, byte arrays and raw pointers; all zeroes are valid for it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` at the pointer, a live local, and keeps nothing.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
}

/// Joins a new, empty session keyring, so that keys of the caller's session are out of reach.
pub(super) fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; the call touches no memory of ours.
    check_long(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<c_char>()) })
}

/// Ignores `signals`.
pub(super) fn ignore_signals(signals: &[c_int]) {
    for signal in signals {
        // SAFETY: `SIG_IGN` is no function, so no code of ours can run at a wrong time.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Gives every signal its default effect and unblocks it, whatever the caller's parents ignored.
pub(super) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // The kernel's `struct sigaction`, all zeroes: SIG_DFL, no flags, empty mask. Not signal(3): the C library
        // keeps two signals for itself and would leave them ignored.
        let default = [0_u64; 4];
        let mask_size = 8_usize;
        // SAFETY: rt_sigaction(2) reads a `struct sigaction`, which is no longer than `default`, and SIG_DFL is no
        // function. SIGKILL and SIGSTOP give an error, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, ptr::null::<u64>(), mask_size) };
    }
    // SAFETY: `sigset_t` is an array of integers; sigemptyset(3) initialises it and sigprocmask(2) reads it.
    check(unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    })
}

/// Marks every descriptor from `first` on to be closed by `execve(2)` (Linux 5.11).
pub(super) fn close_on_exec_from(first: c_int) -> io::Result<()> {
    // SAFETY: takes three integers and touches no memory; descriptors stay open, so no owner is deceived.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Loads a seccomp program, given as `struct sock_filter[]`, for this thread and its children. Needs `CAP_SYS_ADMIN`,
/// or `no_new_privs`, which would disable `sudo`. With `listens`, returns a descriptor for calls that the program leaves to
/// whoever has it.
pub(super) fn load_filter(program: &[u8], listens: bool) -> io::Result<Option<OwnedFd>> {
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let load = |flags: c_ulong| {
        // SAFETY: the kernel copies `len` instructions from `filter`, which has just that many and lives until the end
        // of this function, and verifies them.
        match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    };
    if !listens {
        return load(0).map(|_| None);
    }
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Signals wait until the call is answered, or it could be made twice. Linux before 5.19 cannot do that.
    let listener = match load(listen | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => load(listen)?,
        loaded => loaded?,
    };
    let listener = c_int::try_from(listener).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: with this flag a success is a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }))
}

/// A system call that waits for an answer.
pub(super) struct Notification {
    pub(super) id: u64,
    pub(super) pid: u32,
    pub(super) arch: u32,
    pub(super) number: u32,
    pub(super) arguments: [u64; 6],
}

/// Returns a call that waits, or waits for one.
pub(super) fn receive_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: `seccomp_notif` is integers; all zeroes are valid for it, and what the kernel wants.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `seccomp_notif` at the pointer, a live local. (A newer kernel's may be longer only if the
    // request's number, which holds the size, is another.)
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) })?;
    let libc::seccomp_data { nr, arch, args, .. } = call.data;
    Ok(Notification { id: call.id, pid: call.pid, arch, number: nr.cast_unsigned(), arguments: args })
}

/// Fails if the call with this id no longer waits.
pub(super) fn notification_is_valid(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    // SAFETY: the kernel reads eight bytes at the pointer, a live local.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) })
}

/// Returns the parent of a user namespace (`ioctl_ns(2)`). `EPERM`: it is none that we may know.
pub(super) fn parent_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // linux/nsfs.h.
    const NS_GET_PARENT: c_ulong = 0xb702;
    // SAFETY: takes no argument and touches no memory.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the call with this id return `errno`, or success if that is 0.
pub(super) fn answer_notification(listener: BorrowedFd<'_>, id: u64, errno: c_int) -> io::Result<()> {
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 };
    // SAFETY: the kernel reads a `seccomp_notif_resp` at the pointer, a live local.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) })
}

/// Removes capability number `capability` from the bounding set. `EINVAL`: this kernel has no such capability.
pub(super) fn drop_from_bounding_set(capability: u32) -> io::Result<()> {
    // SAFETY: takes integers and touches no memory.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0, 0, 0) })
}

/// Makes what this process makes from now on belong to these users of the host. Its rights stay as they are.
pub(super) fn make_files_as(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: both take an integer and touch no memory.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        // Neither call tells whether it failed. An invalid id changes nothing and returns the one that is.
        (libc::setfsgid(u32::MAX).cast_unsigned(), libc::setfsuid(u32::MAX).cast_unsigned())
    };
    if now != (gid, uid) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // The kernel took the capabilities over files away with the 0; they are still permitted.
    let sets = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets { effective: sets.permitted, ..sets };
    Ok(set_capabilities(None, sets)?)
}

/// Becomes user and group `id`, with no capabilities but `kept`, which a program that is executed keeps too.
pub(super) fn become_user(id: u32, kept: &[u32]) -> io::Result<()> {
    let bits = kept.iter().fold(0, |bits, capability| bits | 1_u64 << capability);
    let set = CapabilitySet::from_bits_retain(bits);
    clear_groups()?;
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(None, CapabilitySets { effective: set, permitted: set, inheritable: set })?;
    for capability in kept {
        // SAFETY: takes integers and touches no memory.
        check(unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, c_ulong::from(*capability), 0, 0)
        })?;
    }
    // The change of user may have made us readable for others of that user.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Returns the addresses of this network namespace's interfaces.
pub(super) fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = ptr::null_mut();
    // SAFETY: getifaddrs(3) stores at the pointer, a live local, a list that is ours until freeifaddrs(3).
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut addresses = Vec::new();
    let mut next = first.cast_const();
    // SAFETY: `next` is null or points to an item of the list, which is freed below only.
    while let Some(item) = unsafe { next.as_ref() } {
        // SAFETY: `ifa_addr` is null or points to an address of the family that it names, in the same list. `sockaddr_in` and
        // `sockaddr_in6` are what the two families have.
        unsafe {
            match item.ifa_addr.as_ref().map(|address| c_int::from(address.sa_family)) {
                Some(libc::AF_INET) => {
                    let address = (*item.ifa_addr.cast::<libc::sockaddr_in>()).sin_addr.s_addr;
                    addresses.push(IpAddr::from(address.to_ne_bytes()));
                }
                Some(libc::AF_INET6) => {
                    addresses.push(IpAddr::from((*item.ifa_addr.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr));
                }
                _ => {}
            }
        }
        next = item.ifa_next;
    }
    // SAFETY: `first` came from getifaddrs(3), is freed once, and nothing refers to the list any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// Clears the supplementary groups.
pub(super) fn clear_groups() -> io::Result<()> {
    // SAFETY: a length of 0 means that the pointer is not read.
    check(unsafe { libc::setgroups(0, ptr::null()) })
}

/// Arguments in the form that `execve(2)` takes, made before the fork.
pub(super) struct Words<'a> {
    pointers: Vec<*const c_char>,
    _words: &'a [CString],
}

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [CString]) -> Self {
        let pointers = words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _words: words }
    }
}

/// Executes `program`. Returns only if that fails.
pub(super) fn execute(program: &CStr, argv: &Words<'_>, env: &Words<'_>) -> io::Error {
    // SAFETY: both arrays end in a null pointer and hold pointers to C strings, which `Words` borrows.
    unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once: nothing of its copy of the parent's state may run, such as flushing buffers.
pub(super) fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit(2) may be called at any time; it runs no destructors.
    unsafe { libc::_exit(code) }
}
