//! `kiln admin`.

use crate::cluster::{Cluster, Script};

/// Runs commands one after the other, each with the exit code that it must have, and returns what they print.
fn transcript(cluster: &Cluster, commands: &[(i32, &[&str])]) -> String {
    let mut text = String::new();
    for (code, arguments) in commands {
        let ran = cluster.admin(arguments).fails_with(*code);
        text.push_str(&format!("$ kiln admin {}\n{}{}", arguments.join(" "), ran.printed(), ran.told()));
    }
    text
}

#[test]
fn clients_come_and_go() {
    let cluster = Cluster::start();
    let added = cluster.admin(&["add-client", "bob"]).ok();
    assert!(added.stdout.starts_with("capnp://sha-256:") && added.stdout.ends_with('\n'), "{}", added.stdout);
    cluster.env.write("bob.cap", &added.stdout);
    let _worker = cluster.worker("w1", |_| Script::Succeeds(""));
    cluster.env.write("job.spec", "((from x))");
    let submit = ["submit", "obuilder", "-c", "bob.cap", "--pool=linux", "--local-file=job.spec"];
    cluster.env.run(&submit).ok();
    let text = transcript(
        &cluster,
        &[
            (2, &["add-client", "bob"]),
            (0, &["list-clients"]),
            (0, &["set-rate", "linux", "bob", "2.5"]),
            (2, &["set-rate", "linux", "bob", "0"]),
            (2, &["set-rate", "linux", "carol", "2"]),
            (2, &["set-rate", "nowhere", "bob", "2"]),
            (0, &["remove-client", "bob"]),
            (2, &["remove-client", "bob"]),
            (0, &["remove-client", "alice"]),
            (0, &["list-clients"]),
        ],
    );
    insta::assert_snapshot!(text, @r#"
    $ kiln admin add-client bob
    error: the scheduler refuses: Client "bob" already registered!
    $ kiln admin list-clients
    alice
    bob
    $ kiln admin set-rate linux bob 2.5
    $ kiln admin set-rate linux bob 0
    error: the scheduler refuses: a rate must be a number above 0, not 0
    $ kiln admin set-rate linux carol 2
    error: the scheduler refuses: No such user
    $ kiln admin set-rate nowhere bob 2
    error: the scheduler refuses: No such pool
    $ kiln admin remove-client bob
    $ kiln admin remove-client bob
    error: the scheduler refuses: No such user
    $ kiln admin remove-client alice
    $ kiln admin list-clients
    No clients.
    "#);
    cluster.env.run(&submit).fails_with(2);
}

#[test]
fn pools_and_workers_are_shown_paused_and_forgotten() {
    let cluster = Cluster::start();
    let worker = cluster.worker("w1", |_| Script::Runs);
    let mut text = transcript(
        &cluster,
        &[
            (0, &["show"]),
            (0, &["show", "linux"]),
            (2, &["show", "nowhere"]),
            (2, &["pause", "linux"]),
            (2, &["pause", "linux", "w2"]),
            (0, &["pause", "--auto-create", "linux", "w2"]),
            (0, &["show", "--terse", "linux"]),
            (0, &["show", "linux", "w2"]),
            (0, &["show", "--terse", "linux", "w1"]),
            (2, &["show", "linux", "w3"]),
            (0, &["pause", "--all", "linux"]),
            (0, &["pause", "--all", "linux"]),
            (0, &["drain", "linux", "w1"]),
            (0, &["unpause", "linux", "w1"]),
            (2, &["forget", "linux"]),
            (2, &["forget", "linux", "w1"]),
            (0, &["forget", "linux", "w2"]),
            (0, &["pause", "windows", "--all"]),
            (3, &["update", "windows"]),
        ],
    );
    drop(worker);
    text.push_str(&transcript(&cluster, &[(0, &["show", "linux"])]));
    insta::assert_snapshot!(text, @r#"
    $ kiln admin show
    linux
    windows
    $ kiln admin show linux
    capacity: 2
    queue: (ready) [w1]
    registered:
      w1 (0): [] (0 running)
    disconnected:
    clients:
    $ kiln admin show nowhere
    error: the scheduler refuses: No such pool
    $ kiln admin pause linux
    error: which worker? Give its name or --all; there are w1
    $ kiln admin pause linux w2
    error: the scheduler refuses: Unknown worker
    $ kiln admin pause --auto-create linux w2
    Success.
    $ kiln admin show --terse linux
    w1
    w2
    $ kiln admin show linux w2
    w2: Paused
    $ kiln admin show --terse linux w1
    Running
    $ kiln admin show linux w3
    error: the pool has no worker w3
    $ kiln admin pause --all linux
    (worker "w2" is already done)
    Updating w1…
    Success.
    $ kiln admin pause --all linux
    (worker "w1" is already done)
    (worker "w2" is already done)
    Nothing to do.
    $ kiln admin drain linux w1
    Waiting for jobs to finish…
    w1: Running jobs: 0
    Success.
    $ kiln admin unpause linux w1
    Success.
    $ kiln admin forget linux
    error: which worker? Give its name; there are w2 (disconnected, paused)
    $ kiln admin forget linux w1
    error: the scheduler refuses: Worker "w1" is still connected!
    $ kiln admin forget linux w2
    $ kiln admin pause windows --all
    No workers connected to pool (nothing to do).
    $ kiln admin update windows
    error: no worker of the pool is connected
    $ kiln admin show linux
    capacity: 0
    queue: (ready) []
    registered:
    disconnected:
      w1
    clients:
    "#);
}

#[test]
fn a_drain_waits_for_what_runs_and_tells_of_it() {
    let cluster = Cluster::start();
    let worker = cluster.worker("w1", |_| Script::Runs);
    let submitted = cluster.submit("((from x))");
    worker.jobs.recv().unwrap();
    let mut command = cluster.env.kiln(&["admin", "-c", "caps/admin.cap", "pause", "--wait", "linux", "w1"]);
    let mut pausing = cluster.env.spawn(&mut command);
    pausing.wait_until_printed("w1: Running jobs: 1");
    assert!(cluster.admin(&["show", "linux"]).ok().stdout.contains("admin pause"));
    submitted.signal(rustix::process::Signal::INT);
    submitted.end().fails_with(130);
    insta::assert_snapshot!(pausing.end().ok().printed(), @"
    Waiting for jobs to finish…
    w1: Running jobs: 1
    w1: Running jobs: 0
    Success.
    ");
}

#[test]
fn workers_are_updated_one_first_then_the_others() {
    let cluster = Cluster::start();
    let _one = cluster.worker("w1", |_| Script::Runs);
    let _other = cluster.worker("w2", |_| Script::Runs);
    drop(cluster.worker("w3", |_| Script::Runs));
    while !cluster.admin(&["show", "linux"]).ok().stdout.contains("disconnected:\n  w3") {}
    let text = transcript(
        &cluster,
        &[(0, &["update", "linux"]), (0, &["update", "linux", "w1"]), (3, &["update", "linux", "w4"])],
    );
    insta::assert_snapshot!(text, @r#"
    $ kiln admin update linux
    Testing update on first worker in pool: "w1"
    w1: Running jobs: 0
    Canary updated OK. Updating the others: [w2]
    w2: Running jobs: 0
    "w2" restarted OK.
    All pool workers restarted.
    WARNING: disconnected workers not updated:
      w3
    $ kiln admin update linux w1
    w1: Running jobs: 0
    Restarted
    $ kiln admin update linux w4
    error: worker w4 is not updated: Unknown worker
    "#);
}

#[test]
fn a_command_is_run_for_each_worker() {
    let cluster = Cluster::start();
    for worker in ["w1", "w2"] {
        cluster.admin(&["pause", "--auto-create", "linux", worker]).ok();
    }
    let ran = cluster.admin(&["exec", "linux", "--", "touch", "{}"]).ok();
    assert_eq!(ran.stdout, "");
    assert!(cluster.env.at("w1").exists() && cluster.env.at("w2").exists());
    // Without `--`, too; and what looks like a flag is the command's.
    let ran = cluster.admin(&["exec", "linux", "sh", "-c", "test $0 = w1", "{}"]).fails_with(1);
    insta::assert_snapshot!(ran.told(), @"
    w2: exit status: 1
    error: the command for 1 of 2 workers failed
    ");
}
