//! Schedulers and workers that die at once, with the real programs: no job is lost, and none is done more often than it must be.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::process::Command;

use rustix::process::Signal;

use crate::env::{Ran, Running, TestEnv};
use crate::marked::{Marked, Service, marks, prepare, worker};

/// How many jobs run at once: half of them on each worker.
const SLOTS: usize = 10;

/// A scheduler, two workers, and jobs that are all half done.
struct World {
    env: TestEnv,
    scheduler: Option<Service>,
    /// More arguments for the scheduler.
    keeping: &'static [&'static str],
    workers: BTreeMap<&'static str, Service>,
    /// Jobs with a client that waits for them.
    attached: Vec<(Marked, Running)>,
    /// Jobs without, by their ids.
    detached: Vec<(Marked, String)>,
}

impl World {
    /// Starts it all, and returns when as many jobs as there is room for are half done, and `queued` more wait.
    fn start(queued: usize) -> Self {
        Self::keeping(&[], queued)
    }

    /// The same with more arguments for the scheduler.
    fn keeping(keeping: &'static [&'static str], queued: usize) -> Self {
        let mut world = Self::idle(keeping);
        world.start_worker("w1", SLOTS / 2);
        world.start_worker("w2", SLOTS / 2);
        for number in 0..SLOTS {
            world.attach(Self::job(number));
        }
        for (_, client) in &mut world.attached {
            client.wait_until_printed("line 6");
        }
        for number in SLOTS..SLOTS + queued {
            match number % 3 {
                0 => world.attach(Self::job(number)),
                _ => world.detach(Self::job(number)),
            }
        }
        while world.count("waiting") < queued {}
        world
    }

    /// Starts a scheduler.
    fn idle(keeping: &'static [&'static str]) -> Self {
        let env = TestEnv::without_base();
        prepare(&env);
        assert!(Command::new("mkfifo").arg(env.at("gate")).status().unwrap().success());
        let mut world = Self {
            env,
            scheduler: None,
            keeping,
            workers: BTreeMap::new(),
            attached: Vec::new(),
            detached: Vec::new(),
        };
        world.start_scheduler();
        world
    }

    fn start_scheduler(&mut self) {
        let listen = format!("--capnp-listen-address=unix:{}", self.env.at("socket").display());
        let scheduler = Service::start(
            &mut self.env.kiln(
                &[
                    &[
                        "scheduler",
                        "--capnp-secret-key-file=caps/key.pem",
                        &listen,
                        "--state-dir=state",
                        "--secrets-dir=caps",
                        "--pools=linux",
                        "--default-clients=alice",
                    ],
                    self.keeping,
                ]
                .concat(),
            ),
            &self.env.at("scheduler.log"),
        );
        assert!(scheduler.says("listening at"));
        self.scheduler = Some(scheduler);
    }

    fn start_worker(&mut self, name: &'static str, capacity: usize) {
        let started = Service::start(&mut worker(&self.env, name, capacity), &self.env.at(&format!("{name}.log")));
        assert!(started.says("registered"));
        self.workers.insert(name, started);
    }

    fn kill_scheduler(&mut self) {
        self.scheduler.take().unwrap().kill();
    }

    fn kill_worker(&mut self, name: &str) {
        self.workers.remove(name).unwrap().kill();
    }

    fn job(number: usize) -> Marked {
        Marked { name: format!("j{number}"), kind: "count", lines: 12, pause: "0.01", status: 0 }
    }

    fn attach(&mut self, job: Marked) {
        let client = self.env.spawn(&mut job.submit(&self.env, &[]));
        self.attached.push((job, client));
    }

    fn detach(&mut self, job: Marked) {
        let id = self.env.ran(&mut job.submit(&self.env, &["--detach"])).ok().stdout.trim().to_owned();
        self.detached.push((job, id));
    }

    fn of_alice(&self, arguments: &[&str]) -> Ran {
        self.env.run(&[&["job", "-c", "caps/submit-alice.cap"], arguments].concat()).ok()
    }

    /// Returns how many jobs are `waiting`, for instance.
    fn count(&self, state: &str) -> usize {
        self.of_alice(&["list"]).stdout.matches(&format!("  {state}  ")).count()
    }

    /// Lets all jobs go on, as long as the file is open.
    fn open_gate(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.env.at("gate")).unwrap()
    }

    /// Checks that all jobs end well, that those of the first ones that `were_lost` were begun twice, and all others once.
    fn all_end_well(self, were_lost: impl Fn(&str) -> bool) {
        let mut losses = BTreeMap::new();
        let (attached, detached) = (self.attached, self.detached);
        let submitted = attached.len() + detached.len();
        for (job, client) in attached {
            let ran = client.end().ok();
            let result = format!("Result: \"of {}\"\n", job.name);
            let log = ran.stdout.strip_suffix(&result).unwrap_or_else(|| panic!("no {result} in {}", ran.stdout));
            losses.insert(job.name.clone(), job.check_log(log).unwrap());
        }
        let of_alice = |arguments: &[&str]| {
            self.env.run(&[&["job", "-c", "caps/submit-alice.cap"], arguments].concat()).ok().stdout
        };
        for (job, id) in &detached {
            let log = of_alice(&["log", id]);
            losses.insert(job.name.clone(), job.check_log(&log).unwrap());
        }
        for (job, id) in &detached {
            assert_eq!(of_alice(&["wait", id]), format!("Result: \"of {}\"\n", job.name));
        }
        assert_eq!(of_alice(&["list"]).matches("  succeeded  ").count(), submitted);
        let marks = marks(&self.env);
        let count = |what: &str, job: &str| marks.iter().filter(|mark| mark[0] == what && mark[1] == job).count();
        assert_eq!(losses.len(), submitted);
        for (job, losses) in losses {
            let expected = 1 + usize::from(were_lost(&job));
            assert_eq!((count("begin", &job), count("end", &job), losses + 1), (expected, 1, expected), "{job}");
        }
    }
}

/// Returns the jobs that were begun on a worker.
fn begun_on(env: &TestEnv, worker: &str) -> Vec<String> {
    let begun: Vec<_> = marks(env).into_iter().filter(|mark| mark[0] == "begin" && mark[2] == worker).collect();
    assert_eq!(begun.len(), SLOTS / 2);
    begun.into_iter().map(|mark| mark[1].clone()).collect()
}

#[test]
fn a_scheduler_that_is_killed_loses_none_of_a_hundred_jobs_and_has_none_begun_twice() {
    let mut world = World::start(100);
    world.kill_scheduler();
    // The jobs go on without it.
    let _open = world.open_gate();
    world.start_scheduler();
    world.all_end_well(|_| false);
}

#[test]
fn the_jobs_of_a_worker_that_is_killed_are_done_again() {
    let mut world = World::start(20);
    let lost = begun_on(&world.env, "w1");
    world.kill_worker("w1");
    world.start_worker("w1", SLOTS / 2);
    let _open = world.open_gate();
    world.all_end_well(|job| lost.iter().any(|lost| lost == job));
}

#[test]
fn the_jobs_of_a_worker_that_is_stopped_are_done_elsewhere_and_it_is_told_when_it_goes_on() {
    // Whoever is not stopped answers in less.
    let mut world = World::keeping(&["--worker-silence=5s", "--worker-grace=0s"], 0);
    let lost = begun_on(&world.env, "w1");
    world.workers["w1"].signal(Signal::STOP);
    world.start_worker("w3", SLOTS / 2);
    while marks(&world.env).iter().filter(|mark| mark[0] == "begin" && mark[2] == "w3").count() < SLOTS / 2 {}
    // What it has, it offers; and that is refused, so it is cancelled before it comes to an end.
    world.workers["w1"].signal(Signal::CONT);
    for _ in &lost {
        assert!(world.workers["w1"].says("a job has ended"));
    }
    let _open = world.open_gate();
    world.all_end_well(|job| lost.iter().any(|lost| lost == job));
}

#[test]
fn a_scheduler_and_a_worker_are_killed_at_once() {
    let mut world = World::start(20);
    let lost = begun_on(&world.env, "w2");
    world.kill_worker("w2");
    world.kill_scheduler();
    let _open = world.open_gate();
    world.start_scheduler();
    world.start_worker("w2", SLOTS / 2);
    world.all_end_well(|job| lost.iter().any(|lost| lost == job));
}

#[test]
fn a_job_that_waits_for_room_on_its_worker_when_the_scheduler_is_killed_is_done() {
    let mut world = World::idle(&[]);
    world.start_worker("w1", 2);
    world.attach(World::job(0));
    world.attached[0].1.wait_until_printed("line 6");
    world.attach(Marked { kind: "heavy", ..World::job(1) });
    while world.count("running  ") < 2 {}
    world.kill_scheduler();
    world.start_scheduler();
    let _open = world.open_gate();
    for (job, client) in world.attached {
        let ran = client.end().ok();
        assert!(
            ran.stdout.ends_with(&format!("line 12\nJob succeeded\nResult: \"of {}\"\n", job.name)),
            "{}",
            ran.stdout
        );
    }
    assert_eq!(marks(&world.env).len(), 4);
}
