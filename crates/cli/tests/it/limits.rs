//! Limits of steps: what a build says, what it leaves, and what steps used.

use kiln_testkit::{Need, need};

use crate::env::{Ran, TestEnv};
use crate::needs_builds;

#[test]
fn a_limit_that_was_hit_is_named_and_the_fault_is_the_builds() {
    needs_builds!();
    let env = TestEnv::new();
    let mut told = String::new();
    for (flags, command) in [
        (&["--memory", "32M"][..], "dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null; kill -9 $$"),
        (&["--timeout", "10ms"], "trap '' TERM; while :; do :; done"),
        (&["--log-limit", "1M"], "exec cat /dev/zero"),
        (
            &["--pids", "16"],
            "(for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do sleep 1000 & done) 2>/dev/null; exit 7",
        ),
    ] {
        let flags: Vec<&str> = flags.iter().copied().chain(["-q"]).collect();
        let failed = env.build_with(&flags, &format!("(run (shell \"{command}\"))")).fails_with(1);
        let lines = failed.stderr.lines().filter(|line| line.starts_with("error: ") || line.starts_with("hint: "));
        let lines: Vec<_> = lines.map(|line| line.rsplit("` ").next().unwrap().to_owned()).collect();
        told.push_str(&format!("{}: {}; {}\n", flags[0], lines[0], lines[1].rsplit(", ").next().unwrap()));
        env.assert_clean();
    }
    insta::assert_snapshot!(told, @r#"
    --memory: was killed: memory limit 32 MiB reached; or allow more with `--memory`
    --timeout: was killed: ran longer than 10ms; or allow more with `--timeout`
    --log-limit: was killed: the log reached 1 MiB; or allow more with `--log-limit`
    --pids: exited with status 7; before that: limit of 16 processes reached; or allow more with `--pids`
    "#);
}

#[test]
fn whoever_is_killed_by_a_limit_leaves_its_cache_as_it_was() {
    needs_builds!();
    let env = TestEnv::new();
    let step = |command: &str| format!("(run (cache (c (target /c))) (shell \"{command}\"))");
    env.build(&step("echo good > /c/file")).ok();
    env.build_with(&["--log-limit", "10"], &step("echo half > /c/file; exec cat /dev/zero")).fails_with(1);
    assert_eq!(env.log(&step("cat /c/file")), "good\n");
}

#[test]
fn limits_are_no_part_of_a_steps_identity() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = "(run (shell \"echo done\"))";
    let first = env.build_with(&["--memory", "512M", "--timeout", "1h", "--pids", "100"], spec).ok();
    let second = env.build(spec).ok();
    assert_eq!(first.id(), second.id());
    assert_eq!(second.made_and_found().0, 0);
}

#[test]
fn settings_of_the_machine_and_the_user_limit_and_flags_win() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("home/.config/kiln/config.toml", "[sandbox]\nlog_limit = \"4\"\n");
    let spec = "(run (shell \"echo 12345\"))";
    let failed = env.build(spec).fails_with(1);
    assert!(failed.stderr.contains("was killed: the log reached 4 bytes"), "{}", failed.stderr);
    env.build_with(&["--log-limit", "none"], spec).ok();
}

#[test]
fn what_a_step_used_is_kept_also_of_one_that_failed() {
    needs_builds!();
    let env = TestEnv::new();
    let work = "dd if=/dev/zero of=/dev/shm/file bs=1M count=8 2>/dev/null";
    let built = env.build(&format!("(run (shell \"{work}\"))")).ok();
    let stats = env.run(&["log", "--stats", built.id()]).ok().stdout;
    assert!(stats.starts_with("time                 0."), "{stats}");
    for name in ["processor, own code", "processor, kernel", "most memory", "read from disks", "written to disks"] {
        assert!(stats.contains(name), "{stats}");
    }
    let failed = env.build_with(&["--progress", "json"], &format!("(run (shell \"{work}; exit 3\"))")).fails_with(1);
    let used: Vec<_> = failed.stderr.lines().filter(|line| line.contains("\"event\":\"used\"")).collect();
    assert!(used.len() == 1 && used[0].contains("\"peak_memory_bytes\":"), "{}", failed.stderr);
    let ended = failed.stderr.lines().find(|line| line.contains("\"event\":\"failed\"")).unwrap();
    let id = ended.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(env.run(&["log", "--stats", id]).ok().stdout.contains("most memory"));
}

#[test]
fn of_what_ran_no_command_nothing_is_kept() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "");
    let copied = env.build("(copy (src file) (dst /file))").ok();
    let none = env.run(&["log", "--stats", copied.id()]).fails_with(1);
    assert!(none.stderr.contains("nothing is kept of what"), "{}", none.stderr);
}

/// Builds in a mount namespace of its own, after `command` for each mount `$m` of control groups.
fn build_after(env: &TestEnv, command: &str, flags: &str) -> Ran {
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let mounts = "$(awk '$0 ~ / - cgroup/ { print $5 }' /proc/self/mountinfo | tac)";
    let mut unshare = std::process::Command::new("unshare");
    let script = format!("for m in {mounts}; do {command}; done; exec {kiln} build -f spec {flags} src");
    unshare.args(["-m", "sh", "-ec", &script]);
    env.set_up(&mut unshare);
    env.ran(&mut unshare)
}

#[test]
fn a_limit_that_cannot_be_kept_is_an_error_and_what_nobody_asked_for_a_remark() {
    needs_builds!();
    need!(Need::Tool("unshare", "util-linux"));
    for (command, said) in [
        ("umount $m", "this host has no control groups for `"),
        // As in a container.
        ("mount -o remount,bind,ro $m", "Read-only file system"),
    ] {
        let env = TestEnv::new();
        env.spec("(run (shell \"echo ran\"))");
        let failed = build_after(&env, command, "--memory 1G").fails_with(3);
        assert!(failed.stderr.contains("error: cannot limit memory: "), "{}", failed.stderr);
        assert!(failed.stderr.contains(said), "{}", failed.stderr);
        assert!(!failed.stderr.contains("ran\n"), "{}", failed.stderr);
        let built = build_after(&env, command, "").ok();
        let note = "note: steps may start any number of processes: cannot limit processes: ";
        assert!(built.stderr.contains(note), "{}", built.stderr);
        let silent = build_after(&env, command, "--pids none --no-cache").ok();
        assert!(!silent.stderr.contains("note:"), "{}", silent.stderr);
    }
}
