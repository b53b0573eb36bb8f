//! A Debian suite, installed by `mmdebstrap` from its mirror.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::error::At;
use crate::fetch::Plan;
use crate::layers::Fetch;
use crate::{ImageError, Resolved};

const PROGRAM: &str = "mmdebstrap";
/// How long it may take to unmount what it mounted, when it is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How many lines of its output an error shows.
const LAST_LINES: usize = 10;

/// Names a tree that is yet to be made. What the mirror gives changes from day to day, so each is a new one.
pub(crate) fn resolve(suite: String) -> Result<Resolved, ImageError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let identity = format!("debootstrap {suite} {now}.{}", std::process::id());
    Ok(Resolved::tree(identity, Plan::Debootstrap { suite }))
}

/// Installs the suite.
pub(crate) async fn fetch(suite: &str, into: &Path, fetch: &Fetch) -> Result<(), ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NeedsRoot { reference: format!("debootstrap:{suite}") });
    }
    let mut command = Command::new(PROGRAM);
    command.args(["--variant=minbase", "--mode=root", "--format=directory", "--", suite]).arg(into);
    // A group of its own, so that apt and dpkg stop with it; messages that can be searched for.
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ImageError::NoProgram { program: PROGRAM, package: PROGRAM },
        _ => ImageError::Run { program: PROGRAM, source },
    })?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let (sender, mut lines) = mpsc::channel(64);
    let output = child.stdout.take().zip(child.stderr.take());
    let readers = async move {
        if let Some((stdout, stderr)) = output {
            tokio::join!(forward(stdout, sender.clone()), forward(stderr, sender));
        }
    };
    let mut last = VecDeque::new();
    let run = async {
        let relay = async {
            while let Some(line) = lines.recv().await {
                fetch.progress.line(&line);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
        };
        tokio::join!(readers, relay);
        child.wait().await
    };
    let ended = tokio::select! {
        ended = run => Some(ended),
        () = fetch.cancel.cancelled() => None,
    };
    let Some(ended) = ended else {
        if let Some(group) = group {
            stop(group).await;
        }
        // Its end is all that is wanted.
        let _ = child.wait().await;
        return Err(ImageError::Cancelled);
    };
    let status = ended.map_err(|source| ImageError::Run { program: PROGRAM, source })?;
    if !status.success() {
        let command = format!("{PROGRAM} {suite}");
        return Err(ImageError::Failed { command, status, last: last.into() });
    }
    // It leaves the directory as it was made, which may be closed to others.
    rustix::fs::chmod(into, rustix::fs::Mode::from_raw_mode(0o755)).at_write(into)?;
    Ok(())
}

/// Kills the program and what it started, after giving it time to clean up. It is not reaped meanwhile, so the
/// group's number cannot become another's.
async fn stop(group: Pid) {
    // Fails only for a group that is gone.
    let _ = rustix::process::kill_process_group(group, Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || {
        rustix::process::waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    });
    // If the grace is over first, the thread ends with the kill.
    let _ = tokio::time::timeout(GRACE, ended).await;
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
}

/// Sends each line of `from`.
async fn forward(from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut lines = BufReader::new(from).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(line).await.is_err() {
            return;
        }
    }
}
