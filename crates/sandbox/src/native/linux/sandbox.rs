//! The caller's side: starts a helper for each run and waits for its report.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::cgroup::Cgroups;
use super::{helper, mounts, user_namespace, wire};
use crate::ids::Pool;
use crate::plan::{self, Attributes};
use crate::{
    Ended, ExitStatus, Io, Limit, Limits, Process, Root, Sandbox, SandboxError, Usage, UserNamespace, filter, oci,
};

/// Most bytes of reports; one takes a few dozen and a path.
const MAX_REPORTS: usize = 64 << 10;

/// Runs processes by Linux namespaces, mounts, capabilities and seccomp. Needs root and Linux 5.12.
#[derive(Debug)]
pub struct NativeSandbox {
    /// The helper's binary, on a read-only mount that no process can find: a command that gets hold of it
    /// through `/proc/PID/exe` cannot open it for writing (CVE-2019-5736).
    helper: OwnedFd,
    filters: filter::Filters,
    user_namespaces: Arc<Pool>,
    cgroups: Cgroups,
}

impl NativeSandbox {
    /// Checks what this host can do. `helper` is a binary whose `main` begins with
    /// [`run_helper_if_asked`](crate::run_helper_if_asked), commonly `/proc/self/exe`.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Host`] with what is missing; [`SandboxError::StartHelper`] if `helper` is not there.
    pub fn new(helper: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        let missing = |what| SandboxError::Host { what, source: None };
        if !rustix::process::geteuid().is_root() {
            return Err(missing("it needs root"));
        }
        if ["pid", "mnt", "uts", "ipc", "cgroup", "net"]
            .iter()
            .any(|kind| !PathBuf::from("/proc/self/ns").join(kind).exists())
        {
            return Err(missing("this kernel lacks a kind of namespace (pid, mnt, uts, ipc, cgroup, net)"));
        }
        if !filter::supported() {
            return Err(missing("there is no system call table for this kind of processor"));
        }
        if !PathBuf::from("/proc/sys/kernel/seccomp/actions_avail").exists() {
            return Err(missing("this kernel lacks seccomp filters"));
        }
        let path = plan::host_path(&helper.into())?;
        std::fs::metadata(plan::to_path(&path)).map_err(SandboxError::StartHelper)?;
        let attributes = Attributes::READ_ONLY.and(Attributes::NOSUID).and(Attributes::NODEV);
        let helper = mounts::copy_from_host(&path, attributes).map_err(|source| SandboxError::Host {
            what: "cannot make mounts; it needs CAP_SYS_ADMIN and Linux 5.12",
            source: Some(source),
        })?;
        let (filters, user_namespaces) = (filter::Filters::default(), Arc::default());
        Ok(Self { helper, filters, user_namespaces, cgroups: Cgroups::of_this_host() })
    }

    /// Looks whether this host can keep `limits`, by making the control groups of a run and removing them.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Limit`] with the first that it cannot.
    pub fn check(&self, limits: &Limits) -> Result<(), SandboxError> {
        self.cgroups.group(limits).map(drop)
    }

    fn start_helper(&self, link: OwnedFd) -> io::Result<Child> {
        tokio::process::Command::from(helper_command(&self.helper, helper::NAME, link)).spawn()
    }
}

/// Returns how to start the helper's binary by one of its names. Its environment is empty, its signals are not the
/// terminal's.
pub(super) fn helper_command(helper: &OwnedFd, name: &str, link: OwnedFd) -> Command {
    let mut command = Command::new(format!("/proc/self/fd/{}", helper.as_raw_fd()));
    command.arg0(name).env_clear().process_group(0);
    command.stdin(link).stdout(Stdio::null());
    command
}

#[async_trait]
impl Sandbox for NativeSandbox {
    async fn run(
        &self,
        root: Root,
        process: &Process,
        io: Io,
        cancel: &CancellationToken,
    ) -> Result<Ended, SandboxError> {
        self.run_by(None, root, process, io, cancel).await
    }

    fn user_namespace(&self) -> Result<UserNamespace, SandboxError> {
        let ids = self.user_namespaces.take(|| user_namespace::make(&self.helper)).map_err(|source| {
            SandboxError::Host { what: "cannot make a user namespace with ids of its own", source: Some(source) }
        })?;
        Ok(UserNamespace::Mapped(Arc::new(ids)))
    }
}

impl NativeSandbox {
    /// Runs `process`, started by an OCI runtime or else by ourselves.
    pub(crate) async fn run_by(
        &self,
        runtime: Option<&oci::Found>,
        root: Root,
        process: &Process,
        io: Io,
        cancel: &CancellationToken,
    ) -> Result<Ended, SandboxError> {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled(Usage::default()));
        }
        let ids = process.user_namespace.mapped();
        let group = self.cgroups.group(&process.limits)?;
        let of_runtime = runtime.map(|_| oci::RunGroups::new(group.unified())).transpose()?;
        let (message, sent, mut link, mut child) = {
            let (mut plan, mut descriptors) = plan::plan(&root, process, &io, &self.filters.program(process)?)?;
            (plan.cgroups, plan.cgroup) = group.joins();
            if let (Some(runtime), Some(groups)) = (runtime, &of_runtime) {
                runtime.take_over(&mut plan, process, groups)?;
                descriptors.push(groups.lock());
            }
            let message = wire::encode(&plan)?;
            let (ours, theirs) = wire::pair().map_err(SandboxError::TalkToHelper)?;
            let ours = StdUnixStream::from(ours);
            ours.set_nonblocking(true).map_err(SandboxError::TalkToHelper)?;
            // Should this future be dropped, nobody will know when the last process is gone.
            if let Some(ids) = ids {
                ids.set_running(true);
            }
            let child = self.start_helper(theirs).map_err(SandboxError::StartHelper)?;
            let sent = wire::send_with(ours.as_fd(), &message, &descriptors).map_err(SandboxError::TalkToHelper)?;
            (message, sent, UnixStream::from_std(ours).map_err(SandboxError::TalkToHelper)?, child)
        };
        // The helper has them now. Kept here, the root would stay mounted and the output would never end.
        drop(root);
        let terminal = match io {
            Io::Terminal(terminal) => Some(terminal.master),
            Io::Output(_) | Io::Streams { .. } => None,
        };

        let conversation = async {
            // If the helper ended early, its report says why.
            let _ = link.write_all(&message[sent..]).await;
            receive_reports(&link, terminal).await
        };
        let reports = tokio::select! {
            reports = conversation => Some(reports),
            () = cancel.cancelled() => None,
        };
        // Whatever happened: the helper kills the rest when the socket closes, and ends when all is gone.
        drop(link);
        if reports.is_none() {
            group.kill().await;
        }
        let status = child.wait().await.map_err(SandboxError::TalkToHelper)?;
        // A helper that was killed may have left others to die after it.
        if let Some(ids) = ids.filter(|_| status.success()) {
            ids.set_running(false);
        }
        let (usage, hit) = (group.usage(), group.hit());
        if let Some(groups) = of_runtime {
            groups.remove().await;
        }
        group.remove().await;
        let Some(reports) = reports else { return Err(SandboxError::Cancelled(usage)) };
        let ended = match (wire::outcome(&reports.map_err(SandboxError::TalkToHelper)?), hit) {
            (Some(Ok(status)), _) => status,
            // Init itself was killed, or had no memory to set up the run.
            (None | Some(Err(_)), Some(Limit::Memory(_))) => ExitStatus::Signal(libc::SIGKILL),
            (Some(Err(error)), _) => return Err(error),
            (None, _) => return Err(SandboxError::HelperDied { status }),
        };
        Ok(Ended { status: ended, usage, hit })
    }
}

/// Receives all reports. A terminal that comes with one is passed on at once.
async fn receive_reports(link: &UnixStream, mut terminal: Option<oneshot::Sender<OwnedFd>>) -> io::Result<Vec<u8>> {
    let mut reports = Vec::new();
    while reports.len() < MAX_REPORTS {
        link.readable().await?;
        match link.try_io(Interest::READABLE, || wire::receive_reports(link.as_fd(), &mut reports)) {
            Ok((0, _)) => break,
            Ok((_, Some(master))) => {
                // Whoever does not want it any more has it closed, and so the command hung up.
                let _ = terminal.take().map(|terminal| terminal.send(master));
            }
            Ok((_, None)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reports)
}
