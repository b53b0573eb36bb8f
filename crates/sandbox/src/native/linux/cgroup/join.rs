//! How init gets into its control groups: the helper's part.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::process::Pid;

use super::super::sys::{self, SingleThread};
use super::super::wire::{At, Failure};
use crate::error::Step;

/// The ways in, opened while the process still is in the host's namespaces, so that the kernel sees who opened them.
pub(in super::super) struct Joins {
    /// `tasks` of v1, not `cgroup.procs`: a thread that moves itself alone need not wait until no process on the machine forks.
    files: Vec<OwnedFd>,
    /// The directory and the `cgroup.procs` of v2.
    unified: Option<(OwnedFd, OwnedFd)>,
}

impl Joins {
    pub(in super::super) fn open(files: &[CString], unified: Option<&CStr>) -> Result<Self, Failure> {
        let write = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = |path: &CString| open(path.as_c_str(), write, Mode::empty()).at_path(Step::JoinCgroup, path);
        let directory = |path: &CStr| {
            let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let file = openat(&dir, c"cgroup.procs", write, Mode::empty())?;
            Ok::<_, rustix::io::Errno>((dir, file))
        };
        let unified = unified.map(|path| directory(path).at_path(Step::JoinCgroup, path)).transpose()?;
        Ok(Self { files: files.iter().map(file).collect::<Result<_, _>>()?, unified })
    }

    /// Forks, the child into the group of v2 if possible.
    pub(in super::super) fn fork(&mut self, thread: &SingleThread) -> io::Result<Option<Pid>> {
        if let Some((dir, _)) = &self.unified {
            match sys::fork_into(thread, dir.as_fd()) {
                // A filter around us that hides clone3(2), or other rights than those of who opened the directory.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) => {}
                forked => {
                    self.unified = None;
                    return forked;
                }
            }
        }
        sys::fork(thread)
    }

    /// Moves this process where it is not yet.
    pub(in super::super) fn join(&self) -> io::Result<()> {
        for file in self.files.iter().chain(self.unified.iter().map(|(_, procs)| procs)) {
            rustix::io::write(file, b"0")?;
        }
        Ok(())
    }
}
