//! Where a process reads and writes.

use std::io::PipeWriter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::sync::oneshot;

/// Where stdin, stdout and stderr of a process lead. Never to a terminal of the caller's: who has a terminal can make it
/// type (CVE-2017-5226), in the caller's shell.
#[derive(Debug)]
pub enum Io {
    /// stdin is empty; stdout and stderr go to the write end of a pipe.
    Output(OwnedFd),
    /// Three pipes, or files that the process may have.
    Streams {
        /// The read end of a pipe.
        stdin: OwnedFd,
        /// The write end of a pipe.
        stdout: OwnedFd,
        /// The write end of a pipe.
        stderr: OwnedFd,
    },
    /// A terminal of the sandbox's own.
    Terminal(Terminal),
}

/// A terminal that is made in the sandbox, as its controlling terminal and `/dev/console`.
#[derive(Debug)]
pub struct Terminal {
    /// How large it is at first.
    pub size: TerminalSize,
    /// Gets the terminal's other end before the command starts: what is written there is typed, what is read was printed.
    /// Reading fails with `EIO` when the process, and all that it started, is gone. Once it is closed, the process is hung
    /// up.
    pub master: oneshot::Sender<OwnedFd>,
}

/// How many characters a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl Io {
    /// Returns the descriptors that the process gets: none, for a terminal, which does not exist yet.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Output(output) => vec![output.as_fd()],
            Self::Streams { stdin, stdout, stderr } => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Terminal(_) => Vec::new(),
        }
    }
}

impl From<PipeWriter> for Io {
    fn from(output: PipeWriter) -> Self {
        Self::Output(output.into())
    }
}
