//! A cluster on hosts of its own, with the real programs, and cables that are pulled.

use std::fs;
use std::process::Command;

use kiln_testkit::{Lan, Need, need};
use rustix::process::Signal;

use crate::env::{Ran, Running, TestEnv};
use crate::marked;

/// Which host is which.
const SCHEDULER: usize = 0;
const WORKER: usize = 1;
const CLIENT: usize = 2;
/// Where another scheduler may take over.
const STANDBY: usize = 3;

/// A scheduler, and a worker and a client on hosts of their own. They share files, so that a test can look at them.
struct Hosts {
    worker: Running,
    scheduler: Running,
    env: TestEnv,
    lan: Lan,
}

impl Hosts {
    fn start() -> Self {
        let (env, lan) = (TestEnv::new(), Lan::new(3).unwrap());
        let scheduler = Self::scheduler(&env, &lan, SCHEDULER, &[SCHEDULER]);
        let worker = Self::worker(&env, &lan, "w1");
        Self { worker, scheduler, env, lan }
    }

    /// The same, but the capabilities say that the scheduler may be on either of two hosts. On the other is what it knew at first.
    fn start_with_standby() -> Self {
        let (env, lan) = (TestEnv::new(), Lan::new(4).unwrap());
        let either = [SCHEDULER, STANDBY];
        let scheduler = Self::scheduler(&env, &lan, SCHEDULER, &either);
        scheduler.signal(Signal::TERM);
        scheduler.end().ok();
        let (from, to) = either.map(|host| env.at(&format!("state-{host}"))).into();
        assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
        let scheduler = Self::scheduler(&env, &lan, SCHEDULER, &either);
        let worker = Self::worker(&env, &lan, "w1");
        Self { worker, scheduler, env, lan }
    }

    /// Starts a scheduler on a host, which others are told to look for on `public`.
    fn scheduler(env: &TestEnv, lan: &Lan, host: usize, public: &[usize]) -> Running {
        let address = |host: &usize| format!("{}:9000", Lan::address(*host));
        let public: Vec<_> = public.iter().map(address).collect();
        let mut command = marked::scheduler(env, &address(&host), &public, &format!("state-{host}"));
        command.arg("--default-clients=bob");
        fs::create_dir_all(env.at("caps")).unwrap();
        let mut scheduler = env.spawn(&mut lan.on(host, &command));
        scheduler.wait_for("listening at");
        scheduler
    }

    fn worker(env: &TestEnv, lan: &Lan, name: &str) -> Running {
        let state = format!("--state-dir=worker-{name}");
        let arguments = [
            "worker",
            "-c",
            "caps/pool-linux.cap",
            "--name",
            name,
            "--capacity=2",
            &state,
            "--allow-local-bases",
            "--allow-local-repositories",
            "--no-docker",
            "--no-healthcheck",
        ];
        let mut worker = env.spawn(&mut lan.on(WORKER, &env.kiln(&arguments)));
        worker.wait_for("registered");
        worker
    }

    /// Submits operations on the base image, with other arguments, and returns when a worker has the job.
    fn submit(&self, client: &str, arguments: &[&str], operations: &str) -> Running {
        let base = self.env.at("base.tar");
        let spec = self.env.write("job.spec", format!("((from rootfs:{})\n{operations})", base.display()));
        let (file, capability) = (format!("--local-file={}", spec.display()), format!("caps/submit-{client}.cap"));
        let all = [&["submit", "obuilder", "-c", &capability, "--pool=linux", &file], arguments].concat();
        self.env.spawn(&mut self.lan.on(CLIENT, &self.env.kiln(&all)))
    }

    fn admin(&self, arguments: &[&str]) -> Ran {
        let all = [&["admin", "-c", "caps/admin.cap"], arguments].concat();
        self.env.ran(&mut self.lan.on(CLIENT, &self.env.kiln(&all)))
    }

    fn end(self) {
        self.worker.signal(Signal::TERM);
        self.worker.end().ok();
        self.scheduler.signal(Signal::TERM);
        self.scheduler.end().ok();
    }
}

macro_rules! needs_hosts {
    () => {
        need!(
            Need::Root,
            Need::Tool("ip", "iproute2"),
            Need::Tool("git", "git"),
            Need::Tool("busybox", "busybox-static")
        );
    };
}

fn git(directory: &std::path::Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(directory).args(["-c", "user.name=A", "-c", "user.email=a@example.org"]).args(arguments);
    let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn jobs_with_sources_secrets_and_hints_are_done_and_administrators_are_obeyed() {
    needs_hosts!();
    let hosts = Hosts::start();
    let repository = hosts.env.at("repository");
    fs::create_dir(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    fs::write(repository.join("hello"), "from git\n").unwrap();
    git(&repository, &["add", "hello"]);
    git(&repository, &["commit", "-q", "-m", "one"]);
    let commit = git(&repository, &["rev-parse", "HEAD"]);
    let url = format!("file://{}", repository.display());

    let operations = "(copy (src .) (dst /src/)) (run (shell \"cat /src/hello; ls -A /src\"))";
    let ran = hosts.submit("alice", &["--cache-hint=h", &url, &commit], operations).end().ok();
    assert!(ran.stdout.starts_with("Building on w1\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("\nfrom git\nhello\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("\nJob succeeded\n"), "{}", ran.stdout);

    hosts.env.write("token", "s3cret");
    let operations = "(run (secrets (tok (target /run/tok))) (shell \"wc -c < /run/tok; cat /run/tok\"))";
    let ran = hosts.submit("bob", &["--urgent", "--secret=tok:token"], operations).end().ok();
    assert!(ran.stdout.contains("\n6\n***"), "{}", ran.stdout);

    let ran = hosts.submit("bob", &[], "(run (shell \"echo bad; exit 3\"))").end().fails_with(1);
    assert!(ran.stdout.contains("\nbad\n") && ran.stdout.contains("exited with status 3"), "{}", ran.stdout);

    let bad = "000000000000000000000000000000000000dead";
    let ran = hosts.submit("bob", &[&url, bad], "(run (shell true))").end().fails_with(1);
    assert!(ran.stdout.contains("Job failed"), "{}", ran.stdout);

    hosts.admin(&["set-rate", "linux", "bob", "2"]).ok();
    hosts.admin(&["pause", "linux", "w1"]).ok();
    let waiting = hosts.submit("bob", &["--cache-hint=h"], "(run (shell \"echo at last\"))");
    hosts.admin(&["unpause", "linux", "w1"]).ok();
    assert!(waiting.end().ok().stdout.contains("\nat last\n"));
    hosts.admin(&["drain", "linux", "w1"]).ok();
    assert!(hosts.admin(&["show", "linux"]).ok().stdout.contains("w1 (0): (inactive: admin pause) (0 running)"));
    hosts.admin(&["forget", "linux", "w1"]).fails_with(2);
    hosts.admin(&["unpause", "linux", "w1"]).ok();

    let Hosts { worker, scheduler, env, lan } = hosts;
    worker.signal(Signal::TERM);
    worker.end().ok();
    let hosts = Hosts { worker: Hosts::worker(&env, &lan, "w2"), scheduler, env, lan };
    hosts.admin(&["forget", "linux", "w1"]).ok();
    hosts.end();
}

#[test]
fn a_worker_that_is_told_to_update_finishes_its_job_and_comes_back() {
    needs_hosts!();
    let mut hosts = Hosts::start();
    let updating = {
        let all = ["admin", "-c", "caps/admin.cap", "update", "linux", "w1"];
        hosts.env.spawn(&mut hosts.lan.on(CLIENT, &hosts.env.kiln(&all)))
    };
    updating.end().ok();
    hosts.worker.wait_for("starting");
    hosts.worker.wait_for("registered");
    assert!(hosts.submit("alice", &[], "(run (shell \"echo anew\"))").end().ok().stdout.contains("\nanew\n"));
    hosts.end();
}

#[test]
fn a_job_ends_with_its_client() {
    needs_hosts!();
    let mut hosts = Hosts::start();
    let mut client = hosts.submit("alice", &[], "(run (shell \"echo begun; sleep 100000\"))");
    client.wait_until_printed("begun");
    client.signal(Signal::KILL);
    hosts.worker.wait_for("cancelled");
    hosts.end();
}

/// Lasts until both ends of a cable that was pulled at its beginning have noticed.
const LONG: &str = "(run (shell \"for i in $(seq 40); do echo line $i; sleep 1; done\"))";

/// The log of [`LONG`] has each line once, in order.
fn has_every_line(ran: &Ran) {
    let lines: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<_> = (1..=40).map(|line| format!("line {line}")).collect();
    assert_eq!(lines, expected, "{}", ran.stdout);
    assert!(ran.stdout.contains("\nJob succeeded\n"), "{}", ran.stdout);
}

#[test]
fn a_client_that_is_cut_off_comes_back_and_misses_nothing() {
    needs_hosts!();
    let hosts = Hosts::start();
    let mut client = hosts.submit("alice", &[], LONG);
    client.wait_until_printed("line 2");
    hosts.lan.unplug(CLIENT).unwrap();
    client.wait_for("is lost; the job goes on");
    hosts.lan.plug(CLIENT).unwrap();
    has_every_line(&client.end().ok());
    hosts.end();
}

#[test]
fn a_worker_that_is_cut_off_connects_again_by_itself_and_goes_on_with_its_job() {
    needs_hosts!();
    let mut hosts = Hosts::start();
    let mut client = hosts.submit("alice", &[], LONG);
    client.wait_until_printed("line 2");
    hosts.lan.unplug(WORKER).unwrap();
    // Each side finds out by itself.
    hosts.scheduler.wait_for("waiting for a job's worker");
    hosts.worker.wait_for("no scheduler");
    hosts.lan.plug(WORKER).unwrap();
    hosts.worker.wait_for("handed a job over again");
    hosts.worker.wait_for("registered");
    has_every_line(&client.end().ok());
    hosts.end();
}

#[test]
fn a_short_cut_is_not_noticed() {
    needs_hosts!();
    let hosts = Hosts::start();
    let mut client = hosts.submit("alice", &[], "(run (shell \"echo before; sleep 6; echo after\"))");
    client.wait_until_printed("before");
    hosts.lan.unplug(WORKER).unwrap();
    // The cut itself takes time, and nothing says when it has been long enough.
    std::thread::sleep(std::time::Duration::from_secs(5));
    hosts.lan.plug(WORKER).unwrap();
    let ran = client.end().ok();
    assert!(ran.stdout.contains("\nbefore\nafter\n"), "{}", ran.stdout);
    hosts.end();
}

#[test]
fn a_scheduler_that_is_stopped_for_a_while_is_noticed_and_found_again() {
    needs_hosts!();
    let mut hosts = Hosts::start();
    let mut client = hosts.submit("alice", &[], LONG);
    client.wait_until_printed("line 2");
    // Its kernel goes on to acknowledge what it is sent, and to accept connections.
    hosts.scheduler.signal(Signal::STOP);
    client.wait_for("is lost; the job goes on");
    hosts.worker.wait_for("no scheduler");
    hosts.scheduler.signal(Signal::CONT);
    hosts.worker.wait_for("handed a job over again");
    has_every_line(&client.end().ok());
    hosts.end();
}

/// Makes the scheduler fail while a job runs, has another start on another host, and checks that workers and clients find it.
fn another_takes_over(fail: impl Fn(&Hosts)) {
    let mut hosts = Hosts::start_with_standby();
    let mut client = hosts.submit("alice", &[], "(run (shell \"echo begun; sleep 60; echo ended\"))");
    client.wait_until_printed("begun");
    fail(&hosts);
    hosts.worker.wait_for("no scheduler");
    let standby = Hosts::scheduler(&hosts.env, &hosts.lan, STANDBY, &[SCHEDULER, STANDBY]);
    hosts.worker.wait_for("registered");
    // The other scheduler has a state of its own, and does not know the job.
    client.wait_until_printed("begun");
    client.signal(Signal::KILL);
    assert!(hosts.submit("bob", &[], "(run (shell \"echo there\"))").end().ok().stdout.contains("\nthere\n"));
    let Hosts { worker, mut scheduler, env, lan } = hosts;
    scheduler.signal(Signal::KILL);
    scheduler = standby;
    Hosts { worker, scheduler, env, lan }.end();
}

#[test]
fn another_scheduler_is_found_when_one_is_stopped() {
    needs_hosts!();
    another_takes_over(|hosts| hosts.scheduler.signal(Signal::STOP));
}

#[test]
fn another_scheduler_is_found_when_one_is_cut_off() {
    needs_hosts!();
    another_takes_over(|hosts| hosts.lan.unplug(SCHEDULER).unwrap());
}

#[test]
fn another_scheduler_is_found_when_one_is_killed() {
    needs_hosts!();
    another_takes_over(|hosts| hosts.scheduler.signal(Signal::KILL));
}
