//! `kiln run` and `kiln shell` without a terminal.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::env::{Ran, TestEnv};
use crate::needs_builds;

/// Runs kiln with something on its stdin.
fn with_input(env: &TestEnv, arguments: &[&str], input: &str) -> Ran {
    let mut command = env.kiln(arguments);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(input.as_bytes()).unwrap();
    drop(writer);
    env.ran(command.stdin(Stdio::from(reader)))
}

#[test]
fn a_command_in_a_base_image_has_stdin_and_two_outputs() {
    needs_builds!();
    let env = TestEnv::new();
    let arguments = ["run", "--quiet", "rootfs:base.tar", "--", "sh", "-c", "cat; echo error >&2; id -u; pwd"];
    let ran = with_input(&env, &arguments, "given\n").ok();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("given\n0\n/\n", "error\n"));
    env.assert_clean();
}

#[test]
fn the_exit_code_is_the_commands_or_that_of_wrong_usage_or_125() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build(r#"(run (shell "echo built"))"#).ok();
    let id = built.id();
    let code = |arguments: &[&str]| env.run(&[&["run", "--quiet"], arguments].concat()).code;
    for (command, expected) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["nonesuch"], 127),
        (&["/etc/passwd"], 126),
    ] {
        assert_eq!(code(&[&[id, "--"], command].concat()), expected, "{command:?}");
    }
    let failed = env.build(r#"(run (shell "exit 7"))"#).fails_with(1);
    let failed = failed.stderr.split("kiln log ").nth(1).unwrap().trim_end_matches(['`', '\n']).to_owned();
    for (code, arguments, error) in [
        (2, &["run", "0123456789", "--", "true"][..], "no result"),
        (2, &["run", &failed, "--", "true"], "only its log was kept"),
        (2, &["run", "rootfs:nonesuch.tar", "--", "true"], "cannot import the base image"),
        (2, &["run", "--user", "1000", id, "--", "true"], "expected a name, or UID:GID"),
        (2, &["run", "--secret", "token", id, "--", "true"], "expected ID:FILE or ID=env:VAR"),
        (2, &["run", "--secret", "token:nonesuch", id, "--", "true"], "cannot read nonesuch"),
        (2, &["run", "--log-limit", "1G", id, "--", "true"], "unexpected argument '--log-limit'"),
        (2, &["shell", "--no-mask", id], "unexpected argument '--no-mask'"),
        (2, &["shell", "0123456789"], "no result"),
        (2, &["shell", "--secret", "=x", id], "expected ID:FILE or ID=env:VAR"),
        (2, &["run", "--store", "nonsense", id, "--", "true"], "is not a store"),
        (125, &["run", "--user", "nobody-here", id, "--", "true"], "who is not in the image's /etc/passwd"),
        (125, &["run", "--store", "overlayfs:src/..", id, "--", "true"], "the directory is not empty"),
    ] {
        let ran = env.run(arguments).fails_with(code);
        assert!(ran.stderr.contains(error), "{}", ran.stderr);
    }
    env.assert_clean();
}

#[test]
fn what_people_talk_to_needs_the_native_sandbox_and_that_is_wrong_usage() {
    needs_builds!();
    let env = TestEnv::new();
    let config = env.write("config.toml", "[sandbox]\nsandbox = \"runc\"");
    let config = config.to_str().unwrap();
    env.spec("(run (shell true))");
    for (arguments, wanted) in [
        (&["run", "--sandbox", "crun", "rootfs:base.tar", "--", "true"][..], "kiln run"),
        (&["run", "--config", config, "rootfs:base.tar", "--", "true"], "kiln run"),
        (&["shell", "--config", config, "0123456789"], "kiln shell"),
        (&["build", "-f", "spec", "--sandbox", "runc", "--shell-on-failure", "src"], "--shell-on-failure"),
    ] {
        let ran = env.run(arguments).fails_with(2);
        assert!(ran.stderr.contains(&format!("`{wanted}` needs the native sandbox")), "{}", ran.stderr);
    }
}

#[test]
fn nothing_of_a_run_is_kept() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build(r#"(run (cache (c (target /c))) (shell "echo one > /c/one; echo kept > /kept"))"#).ok();
    // Those used last are at the end: an order that looking changes.
    let listed = || env.run(&["ls"]).ok().stdout.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let before = listed();
    let script = "cat /kept /c/one; touch /mine /c/mine; ls / /c | grep -c mine";
    for _ in 0..2 {
        let cache = ["--cache", "id=c,target=/c"];
        let ran = env.run(&[&["run"], &cache[..], &[built.id(), "--", "sh", "-c", script]].concat()).ok();
        assert_eq!(ran.stdout, "kept\none\n2\n");
    }
    assert_eq!(listed(), before);
    env.assert_clean();
}

#[test]
fn options_say_what_a_command_has() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("token", "hunter2");
    let spec = r#"(workdir /work) (env A a) (env B b) (user (uid 1000) (gid 1000))
                  (run (network host) (cache (c (target /c))) (shell "echo built"))"#;
    let built = env.build(spec).ok();
    let script = "echo $A $B; id -u; id -g; pwd; ls -d /c; ls /sys/class/net; cat /run/secrets/token";
    let run = |options: &[&str]| {
        let ran = env.run(&[&["run"], options, &[built.id(), "--", "sh", "-c", script]].concat());
        (ran.stdout, ran.stderr.contains("/c"))
    };
    // As the step had it, but for what it asked for alone. The place of its cache stays, as an empty directory.
    assert_eq!(run(&[]).0, "a b\n1000\n1000\n/work\n/c\nlo\n");
    let options = ["--env", "B=c", "--user", "5:6", "--workdir", "sub", "--secret", "token:token"];
    assert_eq!(run(&options).0, "a c\n5\n6\n/work/sub\n/c\nlo\nhunter2");
    let host = fs::read_dir("/sys/class/net").unwrap().count();
    let seen = run(&["--network", "host"]).0;
    assert_eq!(seen.lines().count(), 5 + host, "{seen}");
    assert_eq!(run(&["--user", "root"]).0.lines().nth(1), Some("0"));
}

#[test]
fn a_shell_has_what_the_step_had() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("token", "hunter2");
    env.write("src/file", "");
    let spec = r#"(workdir /work) (env A a) (user (uid 1000) (gid 1000)) (shell /bin/ash -c)
                  (run (cache (c (target cached))) (secrets (token (target /t))) (shell "echo in > cached/in; cat /t"))"#;
    let built = env.build_with(&["--secret", "token:token"], spec).ok();
    let script =
        "echo $A; id -u; pwd; cat cached/in; echo x > cached/in; wc -c < /t; tr '\\0' ' ' < /proc/$$/cmdline\n";
    let ran = with_input(&env, &["shell", built.id(), "--secret", "token:token"], script).ok();
    assert_eq!(ran.stdout, "a\n1000\n/work\nin\n7\n/bin/ash ");
    let ran = with_input(&env, &["shell", built.id()], script).ok();
    assert_eq!(ran.stdout, "a\n1000\n/work\nin\n0\n/bin/ash ");
    let note = "note: the secret `token` of the step is not there; give it with --secret token:FILE\n";
    assert_eq!(ran.stderr, note);
    // Of a copy, and of a base image.
    let copied = env.build(r#"(env A a) (workdir /w) (copy (src file) (dst /f))"#).ok();
    assert_eq!(with_input(&env, &["shell", copied.id()], "echo $A; pwd; ls /f").ok().stdout, "a\n/w\n/f\n");
    let base = env.build("").ok();
    assert_eq!(with_input(&env, &["shell", base.id()], "pwd; id -u").ok().stdout, "/\n0\n");
    env.assert_clean();
}

#[test]
fn results_of_earlier_versions_can_be_looked_into() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build(r#"(env A a) (run (network host) (shell "echo built"))"#).ok();
    let path = env.at("store/result").join(built.id()).join("meta.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(meta["detail"].as_object_mut().unwrap().remove("run").is_some());
    fs::write(&path, meta.to_string()).unwrap();
    assert_eq!(with_input(&env, &["shell", built.id()], "echo $A; ls /sys/class/net").ok().stdout, "a\nlo\n");
}

#[test]
fn a_command_that_is_cancelled_or_outlived_leaves_nothing() {
    needs_builds!();
    let env = TestEnv::new();
    let marker = env.marker();
    let built = env.build(r#"(run (shell "echo built"))"#).ok();
    let variable = format!("MARKER={marker}");
    let script = "trap '' TERM HUP INT; echo ready >&2; while :; do sleep 1000; done";
    let arguments = ["run", "--env", &variable, built.id(), "--", "sh", "-c", script];
    let mut running = env.spawn(&mut env.kiln(&arguments));
    running.wait_for("ready");
    running.signal(rustix::process::Signal::TERM);
    running.end().fails_with(130);
    env.assert_clean();
    let mut running = env.spawn(&mut env.kiln(&arguments));
    running.wait_for("ready");
    running.signal(rustix::process::Signal::KILL);
    assert_eq!(running.end().code, 137);
    while !env.processes().is_empty() {
        std::thread::yield_now();
    }
    // Whoever opens the store next sweeps.
    env.run(&["ls"]).ok();
    env.assert_clean();
}

#[test]
fn a_command_has_the_time_that_it_is_given_and_the_settings_are_for_steps() {
    needs_builds!();
    let env = TestEnv::new();
    let marker = format!("MARKER={}", env.marker());
    let built = env.build(r#"(run (shell "echo built"))"#).ok();
    let script = "trap '' TERM HUP INT; echo begun; while :; do sleep 1000; done";
    let ran = env.run(&["run", "--timeout", "2s", "--env", &marker, built.id(), "--", "sh", "-c", script]);
    assert_eq!((ran.code, &*ran.stdout), (137, "begun\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "note: the command was killed: ran longer than 2s\n");
    let shell = with_input(&env, &["shell", "--timeout", "2s", built.id()], "sleep 1000\n");
    assert_eq!((shell.code, &*shell.stderr), (137, "note: the command was killed: ran longer than 2s\n"));
    env.assert_clean();
    env.write("home/.config/kiln/config.toml", "[sandbox]\ntimeout = \"1ms\"\nlog_limit = \"1\"\n");
    for arguments in [
        &["run", built.id(), "--", "sh", "-c", "sleep 0.1; echo long"][..],
        &["run", "--timeout", "1h", built.id(), "--", "echo", "long"],
    ] {
        assert_eq!(env.run(arguments).ok().stdout, "long\n");
    }
}

#[test]
fn whoever_stops_reading_stops_the_command() {
    needs_builds!();
    let env = TestEnv::new();
    let mut running = env.spawn(&mut env.kiln(&["run", "--quiet", "rootfs:base.tar", "--", "yes"]));
    running.close_stdout();
    // SIGPIPE.
    assert_eq!(running.end().code, 141);
    env.assert_clean();
}
