//! A terminal inside, its other end outside: made by init in the sandbox's own devpts, so that no terminal of the host is ever
//! within the command's reach (CVE-2017-5226), and sent to the caller over the socket, as runc sends its console.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::mounts;
use super::walk::{Missing, walk_without_links};
use crate::plan::{Attributes, Stdio};

/// Both ends of a terminal.
pub(super) struct Terminal {
    /// The caller's.
    pub(super) master: OwnedFd,
    /// The command's.
    pub(super) slave: OwnedFd,
}

/// Makes the terminal, if there is to be one, and binds it to `/dev/console`. Nothing but the kernel's filesystems may be mounted
/// below `root` yet.
pub(super) fn make(root: BorrowedFd<'_>, stdio: Stdio, uid: u32) -> io::Result<Option<Terminal>> {
    let Stdio::Terminal { rows, columns } = stdio else { return Ok(None) };
    let pts = walk_without_links(root, c"/dev/pts", Missing::Fail)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&pts, c"ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    // By the master and by no name.
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    // As login(1) does: its user opens it by name too. The group stays `tty`.
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    tcsetwinsize(&slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let mut attributes = tcgetattr(&slave)?;
    // Erase whole characters.
    attributes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &attributes)?;

    let name = ptsname(&master, Vec::new())?;
    let node = mounts::copy(pts.as_fd(), &last(&name), Attributes::NOSUID.and(Attributes::NOEXEC))?;
    let console = walk_without_links(root, c"/dev/console", Missing::MakeFile { owner: (0, 0) })?;
    mounts::attach(node.as_fd(), console.as_fd())?;
    Ok(Some(Terminal { master, slave }))
}

/// Returns the number at the end of `/dev/pts/0`.
fn last(name: &CStr) -> CString {
    let name = name.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    CString::new(name).expect("part of a C string")
}
