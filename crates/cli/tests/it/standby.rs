//! Schedulers that share a PostgreSQL, with the real programs: one is killed, or stopped and continued, and another goes on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::process::Command;

use kiln_testkit::{Need, Postgres, need};
use rustix::process::Signal;

use crate::env::{Running, TestEnv};
use crate::marked::{Marked, Service, marks, prepare, scheduler, worker};

/// How many jobs run at once.
const SLOTS: usize = 6;

/// Two schedulers, two workers, and jobs that are half done or wait.
struct World {
    env: TestEnv,
    postgres: Postgres,
    ports: [u16; 2],
    schedulers: BTreeMap<usize, Service>,
    workers: Vec<Service>,
    attached: Vec<(Marked, Running)>,
    detached: Vec<(Marked, String)>,
    /// Whether the schedulers that are started share the database.
    is_shared: bool,
}

impl World {
    /// Starts all: the first scheduler serves. Returns when as many jobs as there is room for are half done, and `queued` more wait.
    fn start(queued: usize) -> Self {
        Self::start_with(queued, true)
    }

    /// The same, perhaps with one scheduler alone, that shares nothing.
    fn start_with(queued: usize, is_shared: bool) -> Self {
        let env = TestEnv::without_base();
        prepare(&env);
        assert!(Command::new("mkfifo").arg(env.at("gate")).status().unwrap().success());
        let mut world = Self {
            env,
            postgres: Postgres::start().expect("a PostgreSQL"),
            ports: [free_port(), free_port()],
            schedulers: BTreeMap::new(),
            workers: Vec::new(),
            attached: Vec::new(),
            detached: Vec::new(),
            is_shared,
        };
        world.start_scheduler(0);
        assert!(world.schedulers[&0].says("listening at"));
        if is_shared {
            world.start_scheduler(1);
            assert!(world.schedulers[&1].says("standing by: the scheduler at"));
        }
        world.start_workers();
        for number in 0..SLOTS {
            world.attach(number);
        }
        for (_, client) in &mut world.attached {
            client.wait_until_printed("line 6");
        }
        for number in SLOTS..SLOTS + queued {
            match number % 3 {
                0 => world.attach(number),
                _ => world.detach(number),
            }
        }
        world
    }

    fn start_workers(&mut self) {
        for name in ["w1", "w2"] {
            let log = self.env.at(&format!("{name}.log"));
            let started = Service::start(&mut worker(&self.env, name, SLOTS / 2), &log);
            assert!(started.says("registered"));
            self.workers.push(started);
        }
    }

    fn start_scheduler(&mut self, at: usize) {
        let addresses = self.ports.map(|port| format!("127.0.0.1:{port}"));
        let mut scheduler = scheduler(&self.env, &addresses[at], &addresses, &format!("state-{at}"));
        if self.is_shared {
            scheduler.env("KILN_STATE", self.postgres.uri());
        }
        let started = Service::start(&mut scheduler, &self.env.at(&format!("scheduler-{at}.log")));
        self.schedulers.insert(at, started);
    }

    fn job(number: usize) -> Marked {
        Marked { name: format!("j{number}"), kind: "count", lines: 12, pause: "0.01", status: 0 }
    }

    fn attach(&mut self, number: usize) {
        let job = Self::job(number);
        let client = self.env.spawn(&mut job.submit(&self.env, &[]));
        self.attached.push((job, client));
    }

    fn detach(&mut self, number: usize) {
        let job = Self::job(number);
        let id = self.env.ran(&mut job.submit(&self.env, &["--detach"])).ok().stdout.trim().to_owned();
        self.detached.push((job, id));
    }

    /// Lets all jobs go on, as long as the file is open.
    fn open_gate(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.env.at("gate")).unwrap()
    }

    fn of_alice(&self, arguments: &[&str]) -> String {
        self.env.run(&[&["job", "-c", "caps/submit-alice.cap"], arguments].concat()).ok().stdout
    }

    /// Checks that all jobs end well, each begun once, and with its whole log.
    fn all_end_well(&mut self) {
        let mut names = Vec::new();
        for (job, client) in self.attached.drain(..) {
            let ran = client.end().ok();
            let result = format!("Result: \"of {}\"\n", job.name);
            let log = ran.stdout.strip_suffix(&result).unwrap_or_else(|| panic!("no {result} in {}", ran.stdout));
            assert_eq!(job.check_log(log), Ok(0));
            names.push(job.name);
        }
        for (job, id) in &self.detached {
            assert_eq!(job.check_log(&self.of_alice(&["log", id])), Ok(0));
            assert_eq!(self.of_alice(&["wait", id]), format!("Result: \"of {}\"\n", job.name));
            names.push(job.name.clone());
        }
        let marks = marks(&self.env);
        for name in names {
            let count = |what: &str| marks.iter().filter(|mark| mark[0] == what && mark[1] == name).count();
            assert_eq!((count("begin"), count("end")), (1, 1), "{name}");
        }
    }
}

/// Returns a port that nobody listens on. Somebody else may have it by the time it is used; of the range that the system gives out, it is the
/// last to be given again.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn one_scheduler_becomes_several_with_all_that_it_keeps() {
    need!(Need::Postgres);
    let mut world = World::start_with(4, false);
    // One job has ended.
    world.detach(90);
    world.of_alice(&["cancel", &world.detached.last().unwrap().1]);
    let (_, ended) = world.detached.pop().unwrap();
    let copy = |world: &World| {
        let mut copy = world.env.kiln(&["copy-state", "--state-dir=state-0"]);
        copy.env("KILN_STATE", world.postgres.uri());
        world.env.ran(&mut copy)
    };
    let told = copy(&world).fails_with(3).told();
    assert!(told.contains("error: the state state-0 is in use by another scheduler"), "{told}");
    let first = world.schedulers.remove(&0).unwrap();
    first.signal(Signal::TERM);
    // It has ended.
    assert!(!first.says("nothing more"));
    let nowhere = ["copy-state", "--state-dir=state-0", "--state=postgres://kiln@127.0.0.1:1/kiln"];
    let told = world.env.run(&nowhere).fails_with(3).told();
    assert!(told.contains("error: cannot use the database postgres://"), "{told}");
    // One that was killed while it copied has kept the lease, and nobody renews it.
    world.postgres.query("UPDATE kiln_lease SET holder = 'kiln copy-state, process 1 of a-host'").unwrap();
    let told = copy(&world).ok().told();
    assert!(told.contains(": 1 clients, 2 workers, 0 rates, "), "{told}");
    assert!(
        told.contains(&format!(" {} jobs of which {} have not ended, {SLOTS} logs (", SLOTS + 5, SLOTS + 4)),
        "{told}"
    );
    let told = copy(&world).fails_with(2).told();
    assert!(told.contains("is not empty: it has 1 rows in its table sturdy_refs"), "{told}");
    world.is_shared = true;
    world.start_scheduler(1);
    assert!(world.schedulers[&1].says("listening at"));
    let told = copy(&world).fails_with(2).told();
    assert!(told.contains("error: the scheduler at 127.0.0.1:"), "{told}");
    // All goes on, for whom it went before.
    let _open = world.open_gate();
    world.all_end_well();
    assert!(world.of_alice(&["list"]).contains(&ended));
}

#[test]
fn a_scheduler_that_could_not_take_over_says_so_when_it_starts() {
    need!(Need::Postgres);
    let env = TestEnv::without_base();
    let postgres = Postgres::start().expect("a PostgreSQL");
    let scheduler = |port: u16, state: &str, key: &str, pools: &str| {
        let listen = format!("--capnp-listen-address=tcp:127.0.0.1:{port}");
        let (state, key, pools) =
            (format!("--state-dir={state}"), format!("--capnp-secret-key-file={key}"), format!("--pools={pools}"));
        let mut command = env.kiln(&["scheduler", &key, &listen, &state, "--secrets-dir=caps", &pools]);
        command.env("KILN_STATE", postgres.uri());
        command
    };
    let ports = [free_port(), free_port()];
    let serving = Service::start(&mut scheduler(ports[0], "one", "key.pem", "linux"), &env.at("one.log"));
    assert!(serving.says("listening at"));

    let told = env.ran(&mut scheduler(ports[1], "two", "other.pem", "linux")).fails_with(2).told();
    assert!(told.contains("error: with the key other.pem this scheduler is known by sha-256:"), "{told}");
    assert!(told.contains("hint: give all the same `--capnp-secret-key-file`"), "{told}");
    let mut unencrypted = scheduler(ports[1], "two", "key.pem", "linux");
    let told = env.ran(unencrypted.arg("--capnp-disable-tls")).fails_with(2).told();
    assert!(told.contains(", without encryption, and those that share postgres://"), "{told}");
    let told = env.ran(&mut scheduler(ports[1], "one", "key.pem", "linux")).fails_with(3).told();
    assert!(told.contains("error: the state one is in use by another scheduler, process"), "{told}");
    let told = env.ran(scheduler(ports[1], "two", "key.pem", "linux").arg("--listen-prometheus=192.0.2.1:1"));
    let told = told.fails_with(3).told();
    assert!(told.contains("error: cannot listen on 192.0.2.1:1 for HTTP"), "{told}");

    // What may be right is only noted: pools that are about to change, and a port of the same machine.
    let other = Service::start(&mut scheduler(ports[0], "two", "key.pem", "linux,arm"), &env.at("two.log"));
    assert!(other.says("standing by: the scheduler at"));
    assert!(other.says("note: its pools are linux, and here arm,linux: jobs for a pool wait where there is none"));
    assert!(other.says("is in use: this scheduler cannot take over unless it is free then"));
    // It is free when the other has ended.
    serving.signal(Signal::TERM);
    assert!(other.says("listening at"));

    // One that was updated has migrated the database.
    let version = postgres.query("SELECT version FROM kiln_schema").unwrap();
    postgres.query("UPDATE kiln_schema SET version = 1000").unwrap();
    let told = env.ran(&mut scheduler(ports[1], "three", "key.pem", "linux")).fails_with(2).told();
    assert!(told.contains("it has schema 1000, and this version of kiln knows"), "{told}");
    postgres.query(&format!("UPDATE kiln_schema SET version = {version}")).unwrap();

    // All are given another key when none of them runs.
    drop(other);
    postgres.query("DELETE FROM kiln_terms").unwrap();
    let other_key = Service::start(&mut scheduler(ports[1], "two", "other.pem", "linux"), &env.at("two.log"));
    assert!(other_key.says("listening at"));
}

#[test]
fn a_scheduler_that_is_killed_is_taken_over_from_and_no_job_is_lost_or_begun_twice() {
    need!(Need::Postgres);
    let mut world = World::start(30);
    world.schedulers.remove(&0).unwrap().kill();
    let _open = world.open_gate();
    assert!(world.schedulers[&1].says("listening at"));
    // The first one comes back, and stands by.
    world.start_scheduler(0);
    assert!(world.schedulers[&0].says("standing by: the scheduler at"));
    world.all_end_well();
    // Logs of jobs that ended under the one are there under the other.
    world.schedulers.remove(&1).unwrap().kill();
    assert!(world.schedulers[&0].says("listening at"));
    world.all_end_well();
    assert_eq!(world.of_alice(&["list"]).matches("  succeeded  ").count(), SLOTS + 30);
}

#[test]
fn a_scheduler_that_is_stopped_and_continued_does_no_harm() {
    need!(Need::Postgres);
    let mut world = World::start(20);
    world.schedulers[&0].signal(Signal::STOP);
    assert!(world.schedulers[&1].says("listening at"));
    // It goes on in the middle of what the other does.
    let open = world.open_gate();
    world.schedulers[&0].signal(Signal::CONT);
    assert!(world.schedulers[&0].says("standing by: the scheduler at"));
    world.all_end_well();
    // And back again, with other jobs.
    drop(open);
    for number in 100..100 + SLOTS {
        world.attach(number);
    }
    for (_, client) in &mut world.attached {
        client.wait_until_printed("line 6");
    }
    world.schedulers[&1].signal(Signal::STOP);
    assert!(world.schedulers[&0].says("listening at"));
    let _open = world.open_gate();
    world.all_end_well();
    world.schedulers[&1].signal(Signal::CONT);
    assert!(world.schedulers[&1].says("standing by: the scheduler at"));
}

#[test]
fn a_scheduler_that_is_told_to_end_hands_over_at_once() {
    need!(Need::Postgres);
    let mut world = World::start(4);
    world.schedulers[&0].signal(Signal::TERM);
    assert!(world.schedulers[&1].says("listening at"));
    let _open = world.open_gate();
    world.all_end_well();
}

#[test]
fn a_database_that_restarts_is_waited_for() {
    need!(Need::Postgres);
    let mut world = World::start(6);
    world.postgres.crash();
    let _open = world.open_gate();
    world.postgres.restart().unwrap();
    world.all_end_well();
}

#[test]
fn while_the_database_is_away_nobody_serves_and_then_all_goes_on() {
    need!(Need::Postgres);
    let mut world = World::start(6);
    world.postgres.crash();
    // Submitted to one that does not know yet that it cannot store them.
    for number in 100..106 {
        world.attach(number);
    }
    assert!(world.schedulers[&0].says("the lease is lost"));
    for number in 106..110 {
        world.attach(number);
    }
    let _open = world.open_gate();
    world.postgres.restart().unwrap();
    world.all_end_well();
    assert_eq!(world.of_alice(&["list"]).matches("  succeeded  ").count(), SLOTS + 6 + 10);
}

#[test]
fn what_was_read_of_a_log_is_so_still_when_the_database_is_away_and_workers_die() {
    need!(Need::Postgres);
    let mut world = World::start(0);
    world.postgres.crash();
    // All is printed while the database is away, and lost with the workers.
    let _open = world.open_gate();
    assert!(world.schedulers[&0].says("the lease is lost"));
    for worker in std::mem::take(&mut world.workers) {
        worker.kill();
    }
    world.postgres.restart().unwrap();
    world.start_workers();
    for (job, client) in world.attached.drain(..) {
        let ran = client.end().ok();
        let result = format!("Result: \"of {}\"\n", job.name);
        let log = ran.stdout.strip_suffix(&result).unwrap_or_else(|| panic!("no {result} in {}", ran.stdout));
        assert_eq!(job.check_log(log), Ok(1));
    }
}
