//! The device by which `pasta` makes the sandbox's interface.
//!
//! `pasta` runs as nobody and opens it by its name. Where udev made the node, everybody may; what the kernel makes by itself is
//! root's alone. The device does nothing for who has no right over a network (`drivers/net/tun.c`), so where we can make nodes,
//! `pasta` gets one of its own.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::{mounts, sys, walk};
use crate::error::TunError;
use crate::plan::{Attributes, Filesystem};

const DIRECTORY: &CStr = c"/dev/net";
const TUN: &CStr = c"/dev/net/tun";
/// Major and minor number (`Documentation/networking/tuntap.rst` of the kernel).
const DEVICE: (u32, u32) = (10, 200);
/// What everybody needs of it.
const OTHERS: u32 = 0o006;

/// Tells whether steps can have private networks, as far as `/dev/net/tun` is concerned.
///
/// # Errors
///
/// [`TunError`]: they cannot, and this is why.
pub fn check_tun() -> Result<(), TunError> {
    for_everybody().map(drop)
}

/// Returns a directory for the place of `/dev/net`, in which everybody may open `tun`, or `None` if everybody may as it is.
pub(super) fn for_everybody() -> Result<Option<OwnedFd>, TunError> {
    let found = rustix::fs::stat(TUN).map_err(told)?;
    let own = if found.st_mode & OTHERS == OTHERS { None } else { Some(make().map_err(refused)?) };
    // Root may open any; but the module may be missing, or a container's device controller forbid it.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match &own {
        Some(directory) => rustix::fs::openat(directory, c"tun", flags, Mode::empty()),
        None => rustix::fs::openat(CWD, TUN, flags, Mode::empty()),
    }
    .map_err(told)?;
    Ok(own)
}

/// Puts `directory` into the place of `/dev/net`, for this process and what it starts.
pub(super) fn put(directory: &OwnedFd) -> std::io::Result<()> {
    sys::unshare(UnshareFlags::NEWNS)?;
    mounts::cut_propagation()?;
    mounts::attach(directory.as_fd(), walk::open_on_host(DIRECTORY)?.as_fd())
}

/// Makes it, mounted nowhere. `EPERM`, unless this is the host's root.
fn make() -> Result<OwnedFd, Errno> {
    let filesystem = Filesystem {
        target: DIRECTORY.to_owned(),
        kind: c"tmpfs".to_owned(),
        options: vec![(c"mode".to_owned(), c"0755".to_owned())],
        attributes: Attributes::NOSUID.and(Attributes::NOEXEC),
    };
    let directory = mounts::make(&filesystem).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(&directory, c"tun", FileType::CharacterDevice, mode, rustix::fs::makedev(DEVICE.0, DEVICE.1))?;
    // Whatever the umask is.
    rustix::fs::chmodat(&directory, c"tun", mode, AtFlags::empty())?;
    Ok(directory)
}

fn told(errno: Errno) -> TunError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NXIO => TunError::Missing,
        other => TunError::Open(other.into()),
    }
}

/// As [`told`], of a node that we cannot make: the one that is there is not for us.
fn refused(errno: Errno) -> TunError {
    if errno == Errno::PERM { TunError::Closed } else { TunError::Open(errno.into()) }
}
