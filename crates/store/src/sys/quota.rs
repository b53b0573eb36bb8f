//! Project quotas: calls of quotactl(2), and the project of an entry.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::{self, Errno};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `PRJQUOTA` of `<linux/quota.h>`.
const PROJECTS: u32 = 2;

/// `struct if_dqblk` of `<linux/quota.h>`: what a project uses and may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProjectUsage {
    /// In [`ProjectUsage::UNIT`]s; 0: any number.
    pub(crate) most_units: u64,
    soft_units: u64,
    /// In bytes.
    pub(crate) bytes: u64,
    /// 0: any number.
    pub(crate) most_files: u64,
    soft_files: u64,
    pub(crate) files: u64,
    times: [u64; 2],
    valid: u32,
}

impl ProjectUsage {
    /// `QIF_DQBLKSIZE`: of what the kernel counts limits in, in bytes.
    pub(crate) const UNIT: u64 = 1 << 10;
}

/// Returns whether the filesystem of `entry` keeps projects to their limits.
pub(crate) fn limits_projects(entry: &OwnedFd) -> io::Result<bool> {
    /// `Q_XGETQSTAT` of `<linux/dqblk_xfs.h>`, which every kind of filesystem understands.
    const GET_STATE: u32 = 0x5805;
    const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
    /// `struct fs_quota_stat` up to the flags, and more room than the kernel has to say.
    #[repr(C)]
    #[derive(Default)]
    struct State {
        version: i8,
        flags: u16,
        rest: [u64; 16],
    }
    let mut state = State::default();
    // SAFETY: Q_XGETQSTAT writes one `fs_quota_stat`, 80 bytes of integers, which there is room for.
    unsafe { quotactl(entry, GET_STATE, 0, (&raw mut state).cast()) }?;
    Ok(state.flags & FS_QUOTA_PDQ_ENFD != 0)
}

/// Returns what a project uses and may use on the filesystem of `entry`.
pub(crate) fn project_usage(entry: &OwnedFd, project: u32) -> io::Result<ProjectUsage> {
    const Q_GETQUOTA: u32 = 0x80_0007;
    let mut usage = ProjectUsage::default();
    // SAFETY: Q_GETQUOTA writes one `if_dqblk`, which is integers.
    match unsafe { quotactl(entry, Q_GETQUOTA, project, (&raw mut usage).cast()) } {
        // Nobody ever used it: xfs.
        Err(Errno::NOENT) => Ok(ProjectUsage::default()),
        got => got.map(|()| usage),
    }
}

/// Sets what a project may use on the filesystem of `entry`: units of [`ProjectUsage::UNIT`], and files; 0: any number.
pub(crate) fn limit_project(entry: &OwnedFd, project: u32, most_units: u64, most_files: u64) -> io::Result<()> {
    const Q_SETQUOTA: u32 = 0x80_0008;
    const QIF_BLIMITS: u32 = 1;
    const QIF_ILIMITS: u32 = 4;
    let mut limits = ProjectUsage { most_units, most_files, valid: QIF_BLIMITS | QIF_ILIMITS, ..Default::default() };
    // SAFETY: Q_SETQUOTA reads one `if_dqblk`.
    unsafe { quotactl(entry, Q_SETQUOTA, project, (&raw mut limits).cast()) }
}

/// # Safety
///
/// `argument` points to what the command reads and writes.
unsafe fn quotactl(entry: &OwnedFd, command: u32, project: u32, argument: *mut libc::c_void) -> io::Result<()> {
    // QCMD of `<linux/quota.h>`.
    let command = command << 8 | PROJECTS;
    // SAFETY: the caller's, and quotactl_fd(2) keeps no pointer.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, entry.as_raw_fd(), command, project, argument) };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// `struct fsxattr` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// Returns the project that `entry` counts for; 0 by default.
pub(crate) fn project(entry: &OwnedFd) -> io::Result<u32> {
    attributes(entry).map(|attributes| attributes.project)
}

/// Makes the directory `entry`, and all that will be made in it, count for a project.
pub(crate) fn set_project(entry: &OwnedFd, project: u32) -> io::Result<()> {
    const OPCODE: Opcode = opcode::write::<Attributes>(b'X', 32);
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    let before = attributes(entry)?;
    let attributes = Attributes { project, flags: before.flags | FS_XFLAG_PROJINHERIT, ..before };
    // SAFETY: FS_IOC_FSSETXATTR reads one `fsxattr`.
    unsafe { ioctl(entry, Setter::<OPCODE, _>::new(attributes)) }
}

fn attributes(entry: &OwnedFd) -> io::Result<Attributes> {
    const OPCODE: Opcode = opcode::read::<Attributes>(b'X', 31);
    // SAFETY: FS_IOC_FSGETXATTR writes one `fsxattr`, which is integers.
    unsafe { ioctl(entry, Getter::<OPCODE, Attributes>::new()) }
}
