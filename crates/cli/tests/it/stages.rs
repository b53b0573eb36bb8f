//! Builds of several stages.

use crate::env::{Gate, TestEnv};
use crate::needs_builds;

const RANDOM: &str = "cat /proc/sys/kernel/random/uuid | tee /out";

fn stage(name: &str, ops: &str) -> String {
    format!("(build {name} ((from rootfs:base.tar) {ops}))")
}

#[test]
fn no_cache_makes_every_step_anew_once() {
    needs_builds!();
    let env = TestEnv::new();
    let shared = format!(r#"(run (shell "{RANDOM}"))"#);
    let spec = format!(
        r#"({} {} {} (from rootfs:base.tar) (copy (from (build a)) (src out) (dst a)) (copy (from (build b)) (src out) (dst b))
            (run (shell "cat a b; cmp a b")))"#,
        stage("a", &shared),
        stage("b", &shared),
        stage("c", &format!(r#"{shared} (run (shell "cat /out"))"#)),
    );
    let spec = spec.replace("cmp a b", "test $(cat a) = $(cat b)");
    let first = env.build(&spec).ok();
    let mut logs = vec![env.run(&["log", first.id()]).ok().stdout];
    assert_eq!(env.build(&spec).ok().made_and_found().0, 0);
    for _ in 0..3 {
        let again = env.build_with(&["--no-cache"], &spec).ok();
        assert_eq!(again.code, 0);
        logs.push(env.run(&["log", again.id()]).ok().stdout);
        // The base stays.
        let ids = env.run(&["ls", "--json"]).ok().stdout;
        assert!(ids.contains("(from rootfs:base.tar)"));
    }
    logs.sort();
    logs.dedup();
    assert_eq!(logs.len(), 4, "each build made its own");
    assert_eq!(env.build(&spec).ok().made_and_found().0, 0, "what was made last is found");
    env.assert_clean();
}

#[test]
fn what_stands_on_a_step_that_was_made_anew_is_made_anew_too() {
    needs_builds!();
    let env = TestEnv::new();
    let base = format!(r#"(run (shell "{RANDOM}"))"#);
    let child = format!(r#"{base} (run (shell "cat /out"))"#);
    let before = env.build(&child).ok();
    let log = env.run(&["log", before.id()]).ok().stdout;
    env.build_with(&["--no-cache"], &base).ok();
    let built = env.build(&child).ok();
    assert_eq!(built.made_and_found(), (1, 2));
    assert_ne!(env.run(&["log", built.id()]).stdout, log);
    assert_eq!(env.run(&["run", before.id(), "--", "cat", "/out"]).ok().stdout, log, "the one before is as it was");
}

/// Steps that go as their secret, which is no part of what they are, says: done, failed, or waiting at the gate.
fn as_told(gate: &Gate) -> String {
    let told = format!(
        "case $(cat /run/secrets/how) in bad) exit 7;; wait) {};; esac; cat /proc/sys/kernel/random/uuid > /out",
        gate.wait()
    );
    format!(
        r#"(run (shell "{RANDOM}")) (run (network host) (secrets (how)) (shell "{told}")) (run (shell "cat /out"))"#
    )
}

#[test]
fn what_was_there_stays_when_making_it_anew_fails_or_is_ended() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let spec = as_told(&gate);
    let build = |how: &str, flags: &[&str]| {
        env.write("how", how);
        env.build_with(&[&["--secret", "how:how"], flags].concat(), &spec)
    };
    let first = build("good", &[]).ok();
    env.run(&["pin", first.id()]).ok();
    let is_there = || {
        assert_eq!(
            env.run(&["log", first.id()]).ok().stdout,
            env.run(&["run", first.id(), "--", "cat", "/out"]).ok().stdout
        );
    };
    build("bad", &["--no-cache"]).fails_with(1);
    is_there();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        env.write("how", "wait");
        env.spec(&spec);
        let arguments = ["build", "-f", "spec", "src", "--secret", "how:how", "--no-cache"];
        let building = env.spawn(&mut env.kiln(&arguments));
        let waiting = gate.arrival();
        is_there();
        building.signal(signal);
        building.end();
        waiting.death();
        is_there();
    }
    // The first step was made anew each time, so what stands on it is not what stood on the one before.
    let last = build("good", &[]).ok();
    assert_eq!(last.made_and_found(), (2, 2));
    is_there();
    env.assert_clean();
}

#[test]
fn what_was_made_anew_is_found_without_the_index_and_the_one_before_once_it_is_removed() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = format!(r#"(run (shell "{RANDOM}"))"#);
    let first = env.build(&spec).ok();
    let second = env.build_with(&["--no-cache"], &spec).ok();
    assert_ne!(first.id(), second.id());
    assert_eq!(env.build(&spec).ok().id(), second.id());
    for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(env.at("store/state").join(file));
    }
    assert_eq!(env.build(&spec).ok().id(), second.id());
    env.run(&["rm", second.id()]).ok();
    assert_eq!(env.build(&spec).ok().id(), first.id());
    env.assert_clean();
}

#[test]
fn a_target_is_built_with_what_it_needs() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = format!(
        r#"({} {} {} (from rootfs:base.tar) (run (shell "echo last")))"#,
        stage("a", r#"(run (shell "echo in a > /out"))"#),
        stage("b", r#"(copy (from (build a)) (src out) (dst /got)) (run (shell "cat /got"))"#),
        stage("c", r#"(run (shell "exit 1"))"#)
    );
    let built = env.build_with(&["--target", "b"], &spec).ok();
    assert_eq!(env.run(&["log", built.id()]).stdout, "in a\n");
    assert!(!built.stderr.contains("echo last"));
    env.build(&spec).fails_with(1);
    let unknown = env.build_with(&["--target", "d"], &spec).fails_with(2);
    assert_eq!(unknown.told(), "error: there is no stage `d`; there are: a, b, c\n");
}

#[test]
fn one_job_is_enough_for_any_number_of_stages() {
    needs_builds!();
    let env = TestEnv::new();
    let inner = |name: &str, from: Option<&str>| {
        let copy = from.map_or(String::new(), |from| format!("(copy (from (build {from})) (src out) (dst in))"));
        stage(name, &format!(r#"{copy} (run (shell "cat in; echo {name} > /out; true"))"#))
    };
    let spec = format!(
        "({} {} {} {} (from rootfs:base.tar) (copy (from (build d)) (src in) (dst /)) (run (shell \"cat /in\")))",
        inner("a", None),
        inner("b", Some("a")),
        inner("c", Some("a")),
        inner("d", Some("c")),
    );
    let built = env.build_with(&["--jobs", "1"], &spec).ok();
    assert_eq!(env.run(&["log", built.id()]).stdout, "c\n");
}

#[test]
fn builds_nest_and_the_nearest_of_a_name_counts() {
    needs_builds!();
    let env = TestEnv::new();
    let mut spec = r#"((from rootfs:base.tar) (run (shell "echo 0 > /out")))"#.to_owned();
    for depth in 1..20 {
        spec = format!(
            r#"((build x {spec}) (from rootfs:base.tar) (copy (from (build x)) (src out) (dst /)) (run (shell "echo {depth} >> /out")))"#
        );
    }
    let log = env.log(&format!(r#"((build x {spec}) (from rootfs:base.tar) (copy (from (build x)) (src out) (dst /)) (run (shell "wc -l < /out")))"#));
    assert_eq!(log, "20\n");
    let twice = format!(
        r#"({} {} (from rootfs:base.tar) (copy (from (build x)) (src out) (dst /)) (run (shell "cat /out")))"#,
        stage("x", r#"(run (shell "echo first > /out"))"#),
        stage("x", r#"(run (shell "echo second > /out"))"#)
    );
    assert_eq!(env.log(&twice), "second\n");
}

#[test]
fn the_first_failure_ends_the_other_stages() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let marker = env.marker();
    let wait =
        format!(r#"(env M {marker}) (run (network host) (shell "trap '' INT TERM; {}; sleep 1000"))"#, gate.wait());
    let fail = format!(r#"(run (network host) (shell "{}; exit 3"))"#, gate.wait());
    env.spec(&format!("({} {} {} (from rootfs:base.tar))", stage("a", &wait), stage("b", &fail), stage("c", "")));
    let building = env.spawn(&mut env.kiln(&["build", "-f", "spec", "-j", "2", "src"]));
    let (one, two) = (gate.arrival(), gate.arrival());
    // One of them fails now, the other would run for long.
    drop((one, two));
    let failed = building.end().fails_with(1);
    assert!(failed.stderr.contains("exited with status 3"), "{}", failed.stderr);
    env.assert_clean();
}

#[test]
fn stages_with_the_same_steps_share_them() {
    needs_builds!();
    let env = TestEnv::new();
    let same = r#"(run (shell "cat /proc/sys/kernel/random/uuid"))"#;
    let spec =
        format!("({} {} {} (from rootfs:base.tar) {same})", stage("a", same), stage("b", same), stage("c", same));
    let built = env.build(&spec).ok();
    let mut lines: Vec<&str> =
        built.stderr.lines().map(|line| line.rsplit(' ').next().unwrap()).filter(|word| word.len() == 36).collect();
    assert_eq!(lines.len(), 4, "{}", built.stderr);
    lines.dedup();
    assert_eq!(lines.len(), 1, "{}", built.stderr);
}
