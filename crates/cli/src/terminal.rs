//! The user's terminal, or what stands in its place, lent to a command in a sandbox.
//!
//! The command never gets a descriptor of ours: it has a terminal, or pipes, of its own, and bytes are carried between.
//! While a terminal is lent ours is raw: keys go inside as they are, Ctrl-C too.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kiln_engine::Visitor;
use kiln_sandbox::{Io, Terminal, TerminalSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::settings;

/// How the terminal was before it was made raw: it is so now.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Gives the terminal back as it was. For an end of the program that runs no destructors, too.
pub(crate) fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // What is left is the user's `reset`.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &saved);
    }
}

/// The terminal is raw while this lives.
struct Raw;

impl Raw {
    fn enter() -> io::Result<Self> {
        let saved = tcgetattr(stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        let entered = Self;
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(entered)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Where a user sees what a command prints.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Screen {
    Stdout,
    /// Of a command whose result goes to stdout.
    Stderr,
}

impl Screen {
    /// Whether there is a user with a terminal: a keyboard and this screen.
    pub(crate) fn has_user(self) -> bool {
        isatty(stdin()) && isatty(self.descriptor())
    }

    fn descriptor(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdout => stdout(),
            Self::Stderr => stderr(),
        }
    }

    /// Lends the terminal to one command.
    pub(crate) fn lend(self) -> (Visitor, Lent) {
        let (sender, master) = oneshot::channel();
        let size = tcgetwinsize(self.descriptor()).map_or(TerminalSize { rows: 24, columns: 80 }, |size| {
            TerminalSize { rows: size.ws_row, columns: size.ws_col }
        });
        let io = Io::Terminal(Terminal { size, master: sender });
        (Visitor { io, term: settings::term(), timeout: None }, Lent { screen: self, master })
    }
}

/// A terminal that is lent.
#[derive(Debug)]
pub(crate) struct Lent {
    screen: Screen,
    master: oneshot::Receiver<OwnedFd>,
}

impl Lent {
    /// Carries keys in and output out until the command, and all that it started, has let go of its terminal. If ours is
    /// hung up, so is the command's, and `cancel` fires.
    pub(crate) async fn until_end(self, cancel: &CancellationToken) -> io::Result<()> {
        // Or it was never started: that error is told elsewhere.
        let Ok(master) = self.master.await else { return Ok(()) };
        let screen = self.screen.descriptor();
        let mut resized = signal(SignalKind::window_change())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        let _raw = Raw::enter()?;
        let relayed = master.try_clone()?;
        let mut relay = tokio::task::spawn_blocking(move || relay(stdin(), screen, &relayed));
        loop {
            // Also at first: it may have changed since the command got its own. Without it all works, too.
            let _ = tcgetwinsize(screen).and_then(|size| tcsetwinsize(&master, size));
            tokio::select! {
                _ = resized.recv() => {}
                _ = hung_up.recv() => {
                    cancel.cancel();
                    return Ok(());
                }
                ended = &mut relay => return ended.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            }
        }
    }
}

/// Carries bytes from `keyboard` to `master`, and from `master` to `screen`, until everyone at the other end of `master`
/// is gone.
///
/// In one thread that waits for all three: were it to wait for the command to take what is typed, a command that waits for its
/// output to be taken would wait for ever. Only `master` does not block: the others may be shared with our parent, whose
/// reads must not begin to fail.
fn relay(keyboard: impl AsFd, screen: impl AsFd, master: &OwnedFd) -> io::Result<()> {
    ioctl_fionbio(master, true)?;
    let mut screen = File::from(screen.as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; 16 << 10];
    let mut typed = Vec::new();
    let mut has_keyboard = true;
    loop {
        let wants = if typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut watched = vec![PollFd::new(master, wants)];
        if has_keyboard && typed.is_empty() {
            watched.push(PollFd::new(&keyboard, PollFlags::IN));
        }
        retry_on_intr(|| poll(&mut watched, None))?;
        let is_ready = |at: usize, flags| watched.get(at).is_some_and(|fd: &PollFd<'_>| fd.revents().intersects(flags));
        let (readable, writable) = (PollFlags::IN | PollFlags::HUP | PollFlags::ERR, PollFlags::OUT);
        if is_ready(0, readable) {
            match rustix::io::read(master, &mut buffer) {
                Ok(0) | Err(Errno::IO) => return Ok(()),
                Ok(length) => screen.write_all(&buffer[..length])?,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if is_ready(0, writable) {
            match rustix::io::write(master, &typed) {
                Ok(length) => drop(typed.drain(..length)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Nobody is left to type to; what was printed is read above.
                Err(_) => typed.clear(),
            }
        }
        if is_ready(1, readable) {
            match rustix::io::read(&keyboard, &mut buffer) {
                Ok(0) | Err(Errno::IO) => has_keyboard = false,
                Ok(length) => typed.extend_from_slice(&buffer[..length]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Pipes in the place of a terminal: our stdin, stdout and stderr, carried.
#[derive(Debug)]
pub(crate) struct Piped {
    outputs: [(io::PipeReader, OwnedFd); 2],
}

impl Piped {
    /// Makes the pipes. Our stdin is read from now on, to its end.
    pub(crate) fn new() -> io::Result<(Visitor, Self)> {
        let (stdin_reader, mut stdin_writer) = io::pipe()?;
        let ((from_stdout, stdout_writer), (from_stderr, stderr_writer)) = (io::pipe()?, io::pipe()?);
        let mut input = File::from(stdin().try_clone_to_owned()?);
        // Ends with stdin or, as nobody can end a read of that, with the program.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            // A command that reads no further has had enough.
            let _ = io::copy(&mut input, &mut stdin_writer);
        })?;
        let outputs = [(from_stdout, stdout().try_clone_to_owned()?), (from_stderr, stderr().try_clone_to_owned()?)];
        let io = Io::Streams { stdin: stdin_reader.into(), stdout: stdout_writer.into(), stderr: stderr_writer.into() };
        Ok((Visitor { io, term: None, timeout: None }, Self { outputs }))
    }

    /// Carries the output until its end.
    pub(crate) async fn until_end(self) {
        let copies = self.outputs.map(|(mut from, to)| {
            // Whoever reads our output may stop; then the command's cannot be written to either.
            tokio::task::spawn_blocking(move || io::copy(&mut from, &mut File::from(to)).map(drop))
        });
        for copy in copies {
            let _ = copy.await;
        }
    }
}
