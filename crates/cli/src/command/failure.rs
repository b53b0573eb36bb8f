//! `kiln build --shell-on-failure`: a shell in what the failed step left.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiln_engine::FailedStep;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::render::{Pausable, harmless, tell};
use crate::terminal::Screen;

/// How much of the log is shown before the shell.
const TAIL_LINES: usize = 10;
const TAIL_BYTES: u64 = 8 << 10;

/// The screen: stdout is for the result.
const SCREEN: Screen = Screen::Stderr;

/// Returns what a build tells of failed steps to, if that is wanted and there is somebody to look into them; and what hears it.
pub(super) fn channel(is_wanted: bool) -> (Option<UnboundedSender<FailedStep>>, UnboundedReceiver<FailedStep>) {
    let (failures, failed) = unbounded_channel();
    let has_user = SCREEN.has_user();
    if is_wanted && !has_user {
        tell("note: --shell-on-failure does nothing: stdin and stderr are no terminal");
    }
    ((is_wanted && has_user).then_some(failures), failed)
}

/// Opens a shell in the first step that fails. Returns when the build has ended.
pub(super) async fn shell(
    mut failed: UnboundedReceiver<FailedStep>,
    screen: &Arc<Pausable>,
    cancel: &CancellationToken,
) {
    let Some(step) = failed.recv().await else { return };
    {
        let _paused = screen.pause();
        introduce(&step);
        let (visitor, lent) = SCREEN.lend();
        if step.visitor.send(visitor).is_ok()
            && let Err(error) = lent.until_end(cancel).await
        {
            tracing::warn!(%error, "cannot use the terminal");
        }
    }
    // The build fails with this step. Others that failed side by side with it are held until they are cancelled.
    let mut others = Vec::new();
    while let Some(other) = failed.recv().await {
        others.push(other);
    }
}

/// Says where the user is about to be.
fn introduce(failed: &FailedStep) {
    let mut text = Vec::new();
    for line in tail(failed) {
        let _ = writeln!(text, "{line}");
    }
    let bold = console::Style::new().for_stderr().bold();
    let _ = writeln!(text, "\n{}", bold.apply_to(format!("A command {}:", failed.how)));
    for line in failed.command.split(|byte| *byte == b'\n') {
        let _ = writeln!(text, "  {}", harmless(line));
    }
    let _ = write!(text, "This is a shell where it ran. Nothing that you change is kept; `exit` lets the build fail.");
    tell(String::from_utf8_lossy(&text));
}

/// Returns the last lines of what a step printed.
fn tail(failed: &FailedStep) -> Vec<String> {
    let length = failed.log.metadata().map_or(0, |meta| meta.len());
    let start = length.saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(0)];
    let read = failed.log.read_at(&mut bytes, start).unwrap_or(0);
    let text = bytes[..read].strip_suffix(b"\n").unwrap_or(&bytes[..read]);
    let mut lines: Vec<String> =
        text.rsplit(|byte| *byte == b'\n').filter(|_| read > 0).take(TAIL_LINES).map(harmless).collect();
    lines.reverse();
    lines
}
