//! `kiln scheduler`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kiln_api::cap_file;
use rustix::process::Signal;

use crate::cluster::{Cluster, SCHEDULER, without_ports};
use crate::env::TestEnv;

#[test]
fn a_scheduler_makes_its_key_and_files_for_its_owner_only_and_ends_when_told_to() {
    let env = TestEnv::without_base();
    let mut scheduler =
        env.spawn(&mut env.kiln(&[&["scheduler", "--listen-prometheus=127.0.0.1:0"], &SCHEDULER[..]].concat()));
    scheduler.wait_for("listening at");
    let mut modes = String::new();
    for file in ["", "admin.cap", "key.pem", "pool-linux.cap", "pool-windows.cap", "submit-alice.cap"] {
        let mode = fs::metadata(env.at("caps").join(file)).unwrap().permissions().mode();
        modes.push_str(&format!("{:o} caps/{file}\n", mode & 0o777));
    }
    assert_eq!(fs::read_dir(env.at("caps")).unwrap().count(), 5);
    scheduler.signal(Signal::TERM);
    let ran = scheduler.end().ok();
    insta::assert_snapshot!(format!("{}{modes}", without_ports(&ran.told())), @"
    made the key caps/key.pem
    wrote caps/admin.cap
    wrote caps/pool-linux.cap
    wrote caps/pool-windows.cap
    wrote caps/submit-alice.cap
    metrics at http://127.0.0.1:[PORT]/metrics
    listening at 127.0.0.1:[PORT]
    700 caps/
    600 caps/admin.cap
    600 caps/key.pem
    600 caps/pool-linux.cap
    600 caps/pool-windows.cap
    600 caps/submit-alice.cap
    ");
}

#[test]
fn after_a_restart_everyone_is_known_who_was() {
    let Cluster { env, scheduler } = Cluster::start();
    let load = |name: &str| cap_file::load(&env.at(name)).unwrap();
    let names = ["caps/admin.cap", "caps/pool-linux.cap", "caps/submit-alice.cap"];
    let before = names.map(load);
    scheduler.signal(Signal::INT);
    scheduler.end().ok();
    let mut scheduler = env.spawn(&mut env.kiln(&[&["scheduler"], &SCHEDULER[..]].concat()));
    scheduler.wait_for("listening at");
    for (before, after) in before.into_iter().zip(names.map(load)) {
        assert_eq!((before.identity, before.service), (after.identity, after.service));
    }
    assert_eq!(env.run(&["admin", "-c", "caps/admin.cap", "list-clients"]).ok().stdout, "alice\n");
}

#[test]
fn a_scheduler_may_open_as_many_files_as_the_system_allows() {
    let env = TestEnv::without_base();
    let mut limited = std::process::Command::new("prlimit");
    let kiln = env.kiln(&[&["scheduler"], &SCHEDULER[..]].concat());
    limited.arg("--nofile=64:640").arg(kiln.get_program()).args(kiln.get_args());
    env.set_up(&mut limited);
    let mut scheduler = env.spawn(&mut limited);
    scheduler.wait_for("listening at");
    let limits = fs::read_to_string(format!("/proc/{}/limits", scheduler.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..], ["640", "640", "files"]);
    scheduler.signal(Signal::TERM);
    scheduler.end().ok();
}

#[test]
fn a_second_scheduler_on_the_same_state_is_refused() {
    let cluster = Cluster::start();
    let before = fs::read(cluster.env.at("caps/admin.cap")).unwrap();
    let told = cluster.env.run(&[&["scheduler"], &SCHEDULER[..]].concat()).fails_with(3).told();
    let start = told.find(", process ").unwrap();
    let end = start + told[start..].find('\n').unwrap();
    insta::assert_snapshot!(told.replace(&told[start..end], ", process [PID]"), @"
    error: the state state is in use by another scheduler, process [PID]

    hint: end that one first, or give this one a directory of its own with `--state-dir`
    ");
    assert_eq!(fs::read(cluster.env.at("caps/admin.cap")).unwrap(), before);
}

#[test]
fn capability_files_say_all_addresses_and_which_of_them_nobody_can_connect_to() {
    let env = TestEnv::without_base();
    let public = ["--capnp-public-address=tcp:0.0.0.0:9000,ci.example.org:9001"];
    let mut scheduler = env.spawn(&mut env.kiln(&[&["scheduler"], &SCHEDULER[..], &public].concat()));
    scheduler.wait_for("which others reach at 0.0.0.0:9000,ci.example.org:9001");
    scheduler.wait_for("note: nobody can connect to 0.0.0.0, which the capability files say");
    for file in ["admin.cap", "pool-linux.cap", "submit-alice.cap"] {
        let text = fs::read_to_string(env.at("caps").join(file)).unwrap();
        assert!(text.contains("@0.0.0.0:9000,ci.example.org:9001/"), "{file}");
    }
    scheduler.signal(Signal::TERM);
    scheduler.end().ok();
}

#[test]
fn a_client_whose_file_is_lost_is_said() {
    let Cluster { env, scheduler } = Cluster::start();
    fs::remove_file(env.at("caps/submit-alice.cap")).unwrap();
    scheduler.signal(Signal::TERM);
    scheduler.end().ok();
    let mut scheduler = env.spawn(&mut env.kiln(&[&["scheduler"], &SCHEDULER[..]].concat()));
    scheduler.wait_for("note: alice is a client, but its capability is not known any more");
}

#[test]
fn what_a_scheduler_cannot_do_is_said() {
    let env = TestEnv::without_base();
    env.write("caps/bad.pem", "no key");
    env.write("file", "");
    let mut told = String::new();
    let listen = "--capnp-listen-address=tcp:127.0.0.1:0";
    for (code, arguments) in [
        (2, &["--capnp-secret-key-file=caps/bad.pem", listen, "--state-dir=state", "--pools=a"][..]),
        (3, &["--capnp-secret-key-file=no/key.pem", listen, "--state-dir=state", "--pools=a"]),
        (3, &["--capnp-secret-key-file=", listen, "--state-dir=file/state", "--pools=a"]),
        (3, &["--capnp-secret-key-file=", "--capnp-listen-address=tcp:192.0.2.1:1", "--state-dir=state", "--pools=a"]),
        (3, &["--capnp-secret-key-file=", "--capnp-listen-address=unix:file", "--state-dir=state", "--pools=a"]),
        (2, &["--capnp-secret-key-file=", "--capnp-listen-address=9000", "--state-dir=state", "--pools=a"]),
        (2, &["--capnp-secret-key-file=", "--capnp-listen-address=tcp:a:1,b:1", "--state-dir=state", "--pools=a"]),
        (
            2,
            &["--capnp-secret-key-file=", listen, "--capnp-public-address=tcp:a:1,b", "--state-dir=state", "--pools=a"],
        ),
        (2, &["--capnp-secret-key-file=", listen, "--state-dir=state", "--pools=a/b"]),
        (2, &["--capnp-secret-key-file=", listen, "--state-dir=state"]),
    ] {
        let ran = env.run(&[&["scheduler", "--secrets-dir=caps"], arguments].concat()).fails_with(code);
        let usage = ran.told();
        told.push_str(usage.split("\nFor more").next().unwrap().split("\nUsage").next().unwrap().trim_end());
        told.push_str("\n\n");
    }
    insta::assert_snapshot!(told, @"
    error: caps/bad.pem is no key that can be used
      caused by: no private key in PEM format (`-----BEGIN PRIVATE KEY-----`)
      caused by: no items found

    error: cannot write no/key.pem
      caused by: No such file or directory (os error 2)

    error: cannot write file/state
      caused by: Not a directory (os error 20)

    error: cannot listen on 192.0.2.1:1
      caused by: Cannot assign requested address (os error 99)

    error: file is no socket, and is left alone

    error: invalid value '9000' for '--capnp-listen-address <ADDRESS>': expected tcp:HOST:PORT or unix:PATH

    error: invalid value 'tcp:a:1,b:1' for '--capnp-listen-address <ADDRESS>': it listens at one address; --capnp-public-address may have several

    error: invalid value 'tcp:a:1,b' for '--capnp-public-address <ADDRESS>': expected tcp:HOST:PORT, up to 8 of them as tcp:HOST:PORT,HOST:PORT, or unix:PATH

    error: invalid value 'a/b' for '--pools <NAMES>': a name of a pool or client here is not empty, and without `/`

    error: the following required arguments were not provided:
      --pools <NAMES>
    ");
}

#[test]
fn a_scheduler_of_oclusters_is_taken_over() {
    let env = TestEnv::without_base();
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/vectors/migration");
    let files = ["admin.cap", "pool-linux-arm64.cap", "pool-linux-x86_64.cap"];
    for (file, to) in [("key.pem", "caps/key.pem"), ("scheduler.db", "state/scheduler.db")] {
        env.write(to, fs::read(old.join(file)).unwrap());
    }
    let mut scheduler = env.spawn(&mut env.program(
        "ocluster-scheduler",
        &[
            "--capnp-secret-key-file=caps/key.pem",
            "--capnp-listen-address=unix:socket",
            "--capnp-public-address=tcp:ci.example.org:9000",
            "--state-dir=state",
            "--secrets-dir=caps",
            "--pools=linux-x86_64,linux-arm64",
        ],
    ));
    scheduler.wait_for("listening at");
    for file in files {
        assert_eq!(fs::read(env.at("caps").join(file)).unwrap(), fs::read(old.join(file)).unwrap(), "{file}");
    }
    // What clients have is of the same use, by whatever way they come.
    for (file, is_for) in [("submit-carol.cap", "submit"), ("submit-alice.cap", "submit"), ("admin.cap", "admin")] {
        let identity = cap_file::load(&old.join("admin.cap")).unwrap().identity;
        let uri = cap_file::load(&old.join(file)).unwrap();
        let address = kiln_api::Address::Unix(env.at("socket"));
        cap_file::save(&env.at(file), &kiln_api::CapabilityUri { identity, addresses: address.into(), ..uri }).unwrap();
        env.write("job.spec", "((from x))");
        let ran = match is_for {
            "admin" => env.run(&["admin", "-c", file, "show"]).ok(),
            // The capability is good if only the pool is wrong.
            _ => env.run(&["submit", "obuilder", "-c", file, "--pool=x", "--local-file=job.spec"]).fails_with(2),
        };
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("linux-arm64") && said.contains("linux-x86_64"), "{file}: {said}");
    }
}

#[test]
fn systemd_is_told_that_a_scheduler_is_ready_and_alive() {
    let env = TestEnv::without_base();
    let socket = std::os::unix::net::UnixDatagram::bind(env.at("notify")).unwrap();
    let mut command = env.kiln(&[&["scheduler"], &SCHEDULER[..]].concat());
    command.env("NOTIFY_SOCKET", env.at("notify")).env("WATCHDOG_USEC", "200000");
    let scheduler = env.spawn(&mut command);
    let told = || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!([told(), told(), told()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    scheduler.signal(Signal::TERM);
    scheduler.end().ok();
}
