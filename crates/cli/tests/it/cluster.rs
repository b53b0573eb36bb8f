//! A cluster for tests: the real scheduler, and workers that do as a test says; and `kiln cluster`.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use bstr::{BString, ByteSlice as _};
use kiln_api::{
    Action, Answer, Connection, Error, Job, JobDescription, JobServer, Key, Limits, LogChunk, Metric, MetricsSource,
    Registration, WorkerServer, answer, cap_file,
};
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::env::{Ran, Running, TestEnv};
use crate::needs_builds;

/// A scheduler with the pools `linux` and `windows`, that knows the client `alice`. Its files are in `caps` and `state`.
pub(crate) struct Cluster {
    pub(crate) env: TestEnv,
    pub(crate) scheduler: Running,
}

/// What starts such a scheduler.
pub(crate) const SCHEDULER: [&str; 6] = [
    "--capnp-secret-key-file=caps/key.pem",
    "--capnp-listen-address=tcp:127.0.0.1:0",
    "--state-dir=state",
    "--secrets-dir=caps",
    "--pools=linux,windows",
    "--default-clients=alice",
];

impl Cluster {
    pub(crate) fn start() -> Self {
        let env = TestEnv::without_base();
        std::fs::create_dir(env.at("caps")).unwrap();
        let mut scheduler = env.spawn(&mut env.kiln(&[&["scheduler"], &SCHEDULER[..]].concat()));
        scheduler.wait_for("listening at");
        Self { env, scheduler }
    }

    /// Starts a worker of the pool `linux`, and returns when it is registered.
    pub(crate) fn worker(&self, name: &str, script: fn(&str) -> Script) -> ScriptedWorker {
        ScriptedWorker::start(&self.env.at("caps/pool-linux.cap"), name, script)
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Ran {
        self.env.run(&[&["admin", "--connect", "caps/admin.cap"], arguments].concat())
    }

    /// Submits a text as the spec of a job, to the pool `linux`.
    pub(crate) fn submit(&self, spec: &str) -> Running {
        self.env.write("job.spec", spec);
        let arguments = ["submit", "obuilder", "-c", "caps/submit-alice.cap", "--pool=linux", "--local-file=job.spec"];
        self.env.spawn(&mut self.env.kiln(&arguments))
    }
}

/// What a worker does with a job.
#[derive(Clone)]
pub(crate) enum Script {
    Succeeds(&'static str),
    Fails(&'static str),
    /// Goes on until it is cancelled.
    Runs,
}

/// A worker that does as told.
pub(crate) struct ScriptedWorker {
    /// The jobs that it was given.
    pub(crate) jobs: Receiver<JobDescription>,
    /// One for each job that nobody wants any more.
    pub(crate) dropped: Receiver<()>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedWorker {
    fn start(cap: &Path, name: &str, script: fn(&str) -> Script) -> Self {
        let uri = cap_file::load(cap).unwrap();
        let (given, jobs) = channel();
        let (ended, dropped) = channel();
        let (ready, is_ready) = channel();
        let stop = CancellationToken::new();
        let (name, stopped) = (BString::from(name), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let works = async {
                    loop {
                        let (key, _) = Key::generate().unwrap();
                        // A test may have ended the scheduler.
                        let Ok(connection) = Connection::open(&uri, &key, Limits::default()).await else { return };
                        let restart = Rc::new(Notify::new());
                        let served = kiln_api::Worker::serve(Restarting(Rc::clone(&restart)));
                        let registration: Registration = connection.bootstrap(&uri.service);
                        // After a restart it may be too early: the scheduler still has the connection before.
                        let Ok(queue) = registration.register(&name, served, 2).await else { continue };
                        queue.set_active(true).await.unwrap();
                        // Nobody waits for it after a restart.
                        let _ = ready.send(());
                        let pops = async {
                            loop {
                                let (script_of, known) = watch::channel(None);
                                let job = Job::serve(Scripted {
                                    known,
                                    wanted: watch::Sender::new(()),
                                    _dropped: OnDrop(ended.clone()),
                                });
                                let Ok(description) = queue.pop(job).await else { return };
                                let spec = match &description.action {
                                    Action::OBuilder(spec) => spec.to_string(),
                                    _ => String::new(),
                                };
                                script_of.send_replace(Some(script(&spec)));
                                let _ = given.send(description);
                            }
                        };
                        tokio::select! {
                            () = pops => {}
                            () = connection.closed() => {}
                            () = restart.notified() => {}
                        }
                        connection.close().await;
                    }
                };
                tokio::select! {
                    () = works => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { jobs, dropped, stop, thread: Some(thread) }
    }
}

impl Drop for ScriptedWorker {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // The scheduler may have gone first.
            let _ = thread.join();
        }
    }
}

/// Restarts at once when it is told to.
struct Restarting(Rc<Notify>);

impl WorkerServer for Restarting {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        answer(Err(Error::failed("no metrics")))
    }

    fn self_update(&self) -> Answer<()> {
        self.0.notify_one();
        Box::pin(std::future::pending())
    }

    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}

struct OnDrop(Sender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        // The test may have ended.
        let _ = self.0.send(());
    }
}

struct Scripted {
    known: watch::Receiver<Option<Script>>,
    /// Calls that wait learn of its end.
    wanted: watch::Sender<()>,
    _dropped: OnDrop,
}

impl JobServer for Scripted {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let (mut known, mut wanted) = (self.known.clone(), self.wanted.subscribe());
        Box::pin(async move {
            let script = known.wait_for(Option::is_some).await.map(|script| script.clone());
            let log = match script.ok().flatten() {
                Some(Script::Runs) if start > 0 => {
                    let _ = wanted.changed().await;
                    return Ok(LogChunk { next: start, bytes: Vec::new() });
                }
                Some(Script::Runs) => "Building\n",
                Some(Script::Succeeds(_)) => "Building\nJob succeeded\n",
                _ => "Building\nJob failed: it is so\n",
            };
            let bytes = log.as_bytes()[usize::try_from(start).unwrap()..].to_vec();
            Ok(LogChunk { next: i64::try_from(log.len()).unwrap(), bytes })
        })
    }

    fn result(&self) -> Answer<BString> {
        let (mut known, mut wanted) = (self.known.clone(), self.wanted.subscribe());
        Box::pin(async move {
            let script = known.wait_for(Option::is_some).await.map(|script| script.clone());
            match script.ok().flatten() {
                Some(Script::Succeeds(result)) => Ok(result.into()),
                Some(Script::Runs) => {
                    let _ = wanted.changed().await;
                    Err(Error::failed("Build cancelled"))
                }
                Some(Script::Fails(why)) => Err(Error::failed(why)),
                None => Err(Error::failed("no job")),
            }
        })
    }

    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

/// Puts a word for the ports that the system chose.
pub(crate) fn without_ports(text: &str) -> String {
    let mut parts = text.split("127.0.0.1:");
    let mut shown = parts.next().unwrap().to_owned();
    for part in parts {
        shown.push_str("127.0.0.1:[PORT]");
        shown.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    shown
}

#[test]
fn a_cluster_to_try_out_says_how_to_use_it_and_ends_with_ctrl_c() {
    needs_builds!();
    let env = TestEnv::new();
    let mut running = env.spawn(&mut env.kiln(&["cluster", "try it", "--capacity=2"]));
    running.wait_for("Ctrl-C");
    let admin = |arguments: &[&str]| env.run(&[&["admin", "--connect", "try it/admin.cap"], arguments].concat()).ok();
    while !admin(&["show", "local"]).stdout.contains("capacity: 2") {}
    // A base image that only this machine has is not for clients; that it is refused shows that a worker has the job.
    env.write("job.spec", "((from rootfs:base.tar))");
    let cap = "try it/submit-me.cap";
    let ran = env.run(&["submit", "obuilder", "--connect", cap, "--pool=local", "--local-file=job.spec"]);
    assert!(ran.fails_with(1).stdout.starts_with("Building on local\n"));
    running.signal(Signal::INT);
    let ran = running.end().ok();
    insta::assert_snapshot!(format!("{}{}", without_ports(&ran.told()), ran.printed()), @"
    made the key [DIR]/try it/key.pem
    wrote [DIR]/try it/admin.cap
    wrote [DIR]/try it/pool-local.cap
    wrote [DIR]/try it/submit-me.cap
    listening at 127.0.0.1:[PORT]

    In another terminal, submit a job and look at the pool; Ctrl-C here ends all when what runs is done, twice at once:
    kiln submit obuilder --connect '[DIR]/try it/submit-me.cap' --pool local --local-file SPEC
    kiln admin --connect '[DIR]/try it/admin.cap' show local
    ");
}

#[test]
fn scripts_of_workers_reach_clients() {
    let cluster = Cluster::start();
    let worker = cluster.worker("w1", |_| Script::Succeeds("done"));
    let ran = cluster.submit("((from x))").end().ok();
    assert_eq!(ran.stdout.as_bytes().as_bstr(), "Building\nJob succeeded\nResult: \"done\"\n");
    drop(worker);
}
