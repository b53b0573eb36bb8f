//! Programs of the host, run for a job.
//!
//! A program gets only what it is given: an environment, a directory, an input, and an output that goes where it is told to as it
//! comes. It leads a process group of its own, which ends with it and when the job is cancelled. What leaves that group is beyond
//! reach; such programs are no sandbox.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::process::ChildStdin;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long a program has for its end after it was asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// As much as a pipe of Linux holds.
const PIPE: usize = 64 << 10;
/// What is read at most of what a program left in its pipes: more than fits into them is being written by something that outlived it.
const LEFT: usize = 4 * PIPE;

/// The environment of a program: all of it.
pub type Environment = Vec<(OsString, OsString)>;

/// Why a program did not run to its end, or not well.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The job is no longer wanted. Everything of the program is killed.
    #[error("cancelled")]
    Cancelled,
    /// Not installed, or not in `PATH`.
    #[error("`{program}` is not installed on this worker")]
    Missing {
        /// What was looked for.
        program: String,
    },
    /// It did not start, or cannot be watched.
    #[error("cannot run `{program}`")]
    Run {
        /// What was run.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Where its output goes takes no more.
    #[error("cannot keep what `{program}` prints")]
    Output {
        /// What was run.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said nothing for too long.
    #[error("`{program}` got nowhere for {seconds} s")]
    Stalled {
        /// What was run.
        program: String,
        /// How long it was silent.
        seconds: u64,
    },
    /// It ended with an error, which it told in its output.
    #[error("`{program}` failed: {status}")]
    Failed {
        /// What was run.
        program: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// A program and what it gets.
#[derive(Clone, Debug)]
pub struct Command {
    program: OsString,
    /// Its name in errors.
    name: String,
    arguments: Vec<OsString>,
    environment: Environment,
    directory: Option<PathBuf>,
    input: Vec<u8>,
    patience: Option<Duration>,
}

impl Command {
    /// Makes one of `program` without arguments, in this process's directory, which reads nothing. The program is looked for in the
    /// `PATH` of `environment`.
    pub fn new(program: impl AsRef<OsStr>, environment: &Environment) -> Self {
        let program = program.as_ref().to_owned();
        let name = program.to_string_lossy().into_owned();
        let environment = environment.clone();
        Self { program, name, arguments: Vec::new(), environment, directory: None, input: Vec::new(), patience: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds a variable to the environment, or changes it.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in `directory`.
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Gives it `input` to read. What it does not read is lost.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Gives it up when it has printed nothing for `patience`.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Calls it `name` in errors.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Returns its environment; of two variables of a name the last counts.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns its arguments, without the program.
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Runs it and returns how it ended. Everything that it prints goes to `output`, in its order.
    ///
    /// When it has ended or `cancel` fires, so do all processes of its group, first asked and then killed. If the future is
    /// dropped they are killed.
    ///
    /// # Errors
    ///
    /// It does not start, or does not run to its end. That it fails is no error here.
    pub async fn status(
        &self,
        output: &mut (dyn Write + Send),
        cancel: &CancellationToken,
    ) -> Result<ExitStatus, CommandError> {
        self.run_with(output, None, cancel).await
    }

    /// Like [`status`](Self::status), but what it prints to standard output goes to `output`, and its errors to `errors`.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn status_apart(
        &self,
        output: &mut (dyn Write + Send),
        errors: &mut (dyn Write + Send),
        cancel: &CancellationToken,
    ) -> Result<ExitStatus, CommandError> {
        self.run_with(output, Some(errors), cancel).await
    }

    /// Like [`status`](Self::status), but it must succeed.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status), and when it fails.
    pub async fn run(&self, output: &mut (dyn Write + Send), cancel: &CancellationToken) -> Result<(), CommandError> {
        let status = self.status(output, cancel).await?;
        self.succeeded(status)
    }

    /// Runs it, which must succeed, and returns what it prints to standard output. Its errors go to `errors`.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub async fn capture(
        &self,
        errors: &mut (dyn Write + Send),
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, CommandError> {
        let mut output = Vec::new();
        let status = self.status_apart(&mut output, errors, cancel).await?;
        self.succeeded(status).map(|()| output)
    }

    /// Returns the error if `status` is one.
    ///
    /// # Errors
    ///
    /// [`CommandError::Failed`].
    pub fn succeeded(&self, status: ExitStatus) -> Result<(), CommandError> {
        if status.success() { Ok(()) } else { Err(CommandError::Failed { program: self.name.clone(), status }) }
    }

    async fn run_with(
        &self,
        output: &mut (dyn Write + Send),
        errors: Option<&mut (dyn Write + Send)>,
        cancel: &CancellationToken,
    ) -> Result<ExitStatus, CommandError> {
        if cancel.is_cancelled() {
            return Err(CommandError::Cancelled);
        }
        let broken = |source| self.broken(source);
        let (mut output, writer) = Pump::new(Some(output)).map_err(broken)?;
        let (mut errors, error_writer) = match errors {
            Some(errors) => Pump::new(Some(errors)).map_err(broken)?,
            // One pipe for both keeps their order. The second pump has nothing to read.
            None => (Pump::closed(), writer.try_clone().map_err(broken)?),
        };
        let (mut process, input) = self.start(writer, error_writer)?;
        let feed = feed(input, &self.input);
        tokio::pin!(feed);
        let mut fed = false;
        let mut stop: Option<(CommandError, Instant)> = None;
        let mut heard = Instant::now();
        let patience = self.patience.unwrap_or_default();
        loop {
            let running = stop.is_none();
            tokio::select! {
                exited = process.exited() => break exited.map_err(broken)?,
                read = output.ready(), if !output.closed => {
                    read.and_then(|()| output.pass(PIPE)).map_err(|error| self.unkept(error))?;
                    heard = Instant::now();
                }
                read = errors.ready(), if !errors.closed => {
                    read.and_then(|()| errors.pass(PIPE)).map_err(|error| self.unkept(error))?;
                    heard = Instant::now();
                }
                () = &mut feed, if !fed => fed = true,
                () = cancel.cancelled(), if running => {
                    process.signal(Signal::TERM);
                    stop = Some((CommandError::Cancelled, Instant::now() + GRACE));
                }
                () = sleep_until(heard + patience), if running && self.patience.is_some() => {
                    process.signal(Signal::TERM);
                    let error = CommandError::Stalled { program: self.name.clone(), seconds: patience.as_secs() };
                    stop = Some((error, Instant::now() + GRACE));
                }
                () = sleep_until(stop.as_ref().map_or(heard, |(_, killed)| *killed)), if !running => {
                    process.signal(Signal::KILL);
                    // It ends now, unless the kernel itself waits for something.
                    if let Some((_, killed)) = &mut stop {
                        *killed += GRACE;
                    }
                }
            }
        }
        let status = process.reap().await.map_err(broken)?;
        // What it wrote last. A process that left its group may hold the pipes open for ever, and nobody waits for that.
        let passed = output.pass(LEFT).and_then(|()| errors.pass(LEFT));
        if let Some((error, _)) = stop {
            return Err(error);
        }
        passed.map_err(|error| self.unkept(error))?;
        Ok(status)
    }

    fn start(&self, output: PipeWriter, errors: PipeWriter) -> Result<(Process, Option<ChildStdin>), CommandError> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(output).stderr(errors).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing { program: self.name.clone() },
            _ => self.broken(source),
        })?;
        let input = child.stdin.take();
        let process = Process::new(child).map_err(|source| self.broken(source))?;
        Ok((process, input))
    }

    fn broken(&self, source: io::Error) -> CommandError {
        CommandError::Run { program: self.name.clone(), source }
    }

    fn unkept(&self, source: io::Error) -> CommandError {
        CommandError::Output { program: self.name.clone(), source }
    }
}

/// Writes `bytes` and closes. A program that does not read them is free not to.
async fn feed(input: Option<ChildStdin>, bytes: &[u8]) {
    if let Some(mut input) = input {
        let _ = input.write_all(bytes).await;
    }
}

/// A pipe from a program, and where to its bytes go.
struct Pump<'a> {
    pipe: Option<pipe::Receiver>,
    sink: Option<&'a mut (dyn Write + Send)>,
    closed: bool,
    buffer: Vec<u8>,
}

impl<'a> Pump<'a> {
    fn new(sink: Option<&'a mut (dyn Write + Send)>) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe()?;
        let pipe = pipe::Receiver::from_owned_fd(reader.into())?;
        Ok((Self { pipe: Some(pipe), sink, closed: false, buffer: vec![0; PIPE] }, writer))
    }

    fn closed() -> Self {
        Self { pipe: None, sink: None, closed: true, buffer: Vec::new() }
    }

    /// Waits until there is something to read.
    async fn ready(&mut self) -> io::Result<()> {
        match &self.pipe {
            Some(pipe) => pipe.readable().await,
            None => std::future::pending().await,
        }
    }

    /// Passes on what is there, up to about `most` bytes, without waiting for more.
    fn pass(&mut self, most: usize) -> io::Result<()> {
        let (Some(pipe), Some(sink)) = (&self.pipe, &mut self.sink) else { return Ok(()) };
        let mut passed = 0;
        while passed < most && !self.closed {
            match pipe.try_read(&mut self.buffer) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    sink.write_all(&self.buffer[..read])?;
                    passed += read;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A running program and its process group.
///
/// The group has the number of the program's process, which stays its until it is reaped; so it is signalled before that only.
struct Process {
    child: tokio::process::Child,
    group: Option<Pid>,
    /// Readable when the program has ended.
    exited: pipe::Receiver,
}

impl Process {
    fn new(child: tokio::process::Child) -> io::Result<Self> {
        let number = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = number.ok_or(io::ErrorKind::NotFound)?;
        // To wait on any descriptor, tokio has only `AsyncFd`, which is unsafe to make. Its pipes take any descriptor too.
        let exited = rustix::process::pidfd_open(group, PidfdFlags::NONBLOCK)?;
        let exited = pipe::Receiver::from_file_unchecked(exited.into())?;
        Ok(Self { child, group: Some(group), exited })
    }

    /// Waits for the end of the program, which leaves its number as it is.
    async fn exited(&self) -> io::Result<()> {
        self.exited.readable().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // There is nobody left to signal if this fails.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Kills what is left of the group, and returns how the program ended.
    async fn reap(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.group = None;
        self.child.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
