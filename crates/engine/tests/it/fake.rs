//! A sandbox in memory, an image that is empty, and events in a list.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kiln_engine::{Engine, Event, Events, Isolation, Request, Settings};
use kiln_image::Images;
use kiln_sandbox::{Ended, ExitStatus, Io, Process, Root, Sandbox, SandboxError, Usage};
use kiln_store::{Location, Store};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Runs nothing: hands each command to the test, which says how it ends.
#[derive(Debug)]
pub(crate) struct FakeSandbox {
    started: mpsc::UnboundedSender<Command>,
}

/// A command that runs, as far as anyone can see.
#[derive(Debug)]
pub(crate) struct Command {
    /// The last word of its argv.
    pub(crate) text: String,
    end: oneshot::Sender<(String, ExitStatus)>,
    output: OwnedFd,
    /// Fires when the engine has the command killed.
    pub(crate) killed: CancellationToken,
}

impl Command {
    /// Has it write to its output. Nobody may be left to read it.
    pub(crate) fn write(&self, text: &str) {
        let mut output = std::fs::File::from(self.output.try_clone().expect("a descriptor"));
        let _ = std::io::Write::write_all(&mut output, text.as_bytes());
    }

    /// Ends it.
    pub(crate) fn end(self, output: &str, status: i32) {
        self.end.send((output.to_owned(), ExitStatus::Code(status))).expect("the command runs");
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn run(
        &self,
        root: Root,
        process: &Process,
        io: Io,
        cancel: &CancellationToken,
    ) -> Result<Ended, SandboxError> {
        let Io::Output(output) = io else { panic!("a step writes to its log") };
        // Stricter than the real one: what it would refuse, and what only it could hide.
        assert!(matches!(root, Root::Mount(_)), "the root is handed over mounted");
        assert!(process.cwd.is_absolute() && !process.argv.is_empty());
        assert!(process.env.iter().any(|(name, _)| name == "PATH"));
        assert_eq!(process.held.len(), 1, "the lease outlives the engine");
        let (end, ended) = oneshot::channel();
        let killed = CancellationToken::new();
        let handed = output.try_clone().expect("a descriptor");
        let text = process.argv.last().expect("not empty").to_str().expect("written by the test").to_owned();
        self.started.send(Command { text, end, output: handed, killed: killed.clone() }).expect("the test receives");
        tokio::select! {
            () = cancel.cancelled() => {
                killed.cancel();
                Err(SandboxError::Cancelled(Usage::default()))
            }
            ended = ended => {
                let (text, status) = ended.expect("a test ends its commands");
                std::io::Write::write_all(&mut std::fs::File::from(output), text.as_bytes()).expect("it fits into a pipe");
                Ok(status.into())
            }
        }
    }
}

/// Events as lines: what, and the step's number.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Vec<String>>);

impl Heard {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panics in here").clone()
    }
}

impl Events for Heard {
    fn event(&self, event: Event) {
        let line = match event {
            Event::Started(step) => format!("started {}", step.number),
            Event::Output(step, bytes) => format!("output {} {}", step.number, String::from_utf8_lossy(&bytes)),
            Event::Cached(step, _) => format!("cached {}", step.number),
            Event::Saved(step, ..) => format!("saved {}", step.number),
            Event::Failed(step, _, status, _) => format!("failed {} {status:?}", step.number),
            _ => return,
        };
        self.0.lock().expect("no test panics in here").push(line);
    }
}

fn store(dir: &Path) -> Store {
    let location = format!("overlayfs:{}", dir.join("store").display());
    let store = Store::open(&Location::parse(&location, Path::new("/")).expect("it is a location"));
    store.expect("root can have a store")
}

fn engine(dir: &Path, jobs: usize, isolation: Isolation, started: mpsc::UnboundedSender<Command>) -> Arc<Engine> {
    let sandbox = Arc::new(FakeSandbox { started });
    let settings = Settings { jobs, isolation };
    Arc::new(Engine::new(Arc::new(store(dir)), sandbox, Arc::new(Images::default()), settings))
}

/// An engine on a store of its own.
pub(crate) struct World {
    pub(crate) engine: Arc<Engine>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(jobs: usize) -> Self {
        Self::isolated(jobs, Isolation::default())
    }

    pub(crate) fn isolated(jobs: usize, isolation: Isolation) -> Self {
        let dir = tempfile::tempdir().expect("the system has a temporary directory");
        let (started, commands) = mpsc::unbounded_channel();
        let engine = engine(dir.path(), jobs, isolation, started);
        Self { engine, commands, dir }
    }

    /// Returns a directory that goes with the world.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Opens the store once more.
    pub(crate) fn store(&self) -> Store {
        store(self.dir.path())
    }

    /// Returns another engine on the same store, which runs no commands.
    pub(crate) fn another(&self) -> Arc<Engine> {
        engine(self.dir.path(), 8, Isolation::default(), mpsc::unbounded_channel().0)
    }

    /// Returns a request for operations on an empty image.
    pub(crate) fn request(&self, ops: &str) -> Request {
        Request {
            spec: kiln_spec::parse(format!("((from scratch) {ops})").as_bytes()).expect("the test's spec is right"),
            spec_dir: self.dir.path().to_owned(),
            source: self.dir.path().to_owned(),
            secrets: HashMap::new(),
            no_cache: false,
            pull: false,
            target: None,
            failures: None,
        }
    }

    /// Starts a build.
    pub(crate) fn start(&self, request: Request) -> Building {
        self.start_on(&self.engine, request)
    }

    /// Starts a build on this engine.
    pub(crate) fn start_on(&self, engine: &Arc<Engine>, request: Request) -> Building {
        let (engine, heard, cancel) = (Arc::clone(engine), Arc::new(Heard::default()), CancellationToken::new());
        let (events, token) = (Arc::clone(&heard), cancel.clone());
        let task = tokio::spawn(async move {
            let built = engine.build(request, events, &token).await;
            built.map(|built| built.snapshot.id().to_string()).map_err(|error| error.to_string())
        });
        Building { task, heard, cancel }
    }

    /// Waits until a command runs.
    pub(crate) async fn command(&mut self) -> Command {
        self.commands.recv().await.expect("the engine lives")
    }

    /// Nothing runs any more, and nothing half-made is left.
    pub(crate) async fn end(mut self) {
        self.engine.idle().await;
        assert!(self.commands.try_recv().is_err(), "a command that no test expected");
        for place in ["draft", "trash", "state/leases"] {
            let left = std::fs::read_dir(self.dir.path().join("store").join(place)).expect("a store has it").count();
            assert_eq!(left, 0, "{place}");
        }
    }
}

/// A build that runs.
pub(crate) struct Building {
    pub(crate) task: tokio::task::JoinHandle<Result<String, String>>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) cancel: CancellationToken,
}

impl Building {
    pub(crate) async fn end(self) -> Result<String, String> {
        self.task.await.expect("no bug")
    }

    /// Waits until it has begun its step `number` and waits for it.
    pub(crate) async fn reached(&self, number: usize) {
        let line = format!("started {number}");
        while !self.heard.lines().contains(&line) {
            tokio::task::yield_now().await;
        }
    }
}
