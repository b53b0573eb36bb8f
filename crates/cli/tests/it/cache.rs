//! When a step is found and when it is made anew; caches and secrets.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use crate::env::{Gate, TestEnv};
use crate::needs_builds;

#[test]
fn what_was_built_is_found_and_its_log_told_again() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "content");
    let spec = r#"(copy (src file) (dst /file)) (run (shell "echo one; cat /file; cat /proc/sys/kernel/random/uuid"))"#;
    let first = env.build(spec).ok();
    let second = env.build(spec).ok();
    assert_eq!(first.made_and_found(), (3, 0));
    assert_eq!(second.made_and_found(), (0, 3));
    assert_eq!(first.stdout, second.stdout);
    let log = |stderr: &str| {
        stderr
            .lines()
            .filter(|line| !line.contains("-->") && !line.contains("iB of"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(log(&first.stderr), log(&second.stderr));
}

#[test]
fn a_copy_is_made_again_when_what_it_takes_has_changed() {
    needs_builds!();
    let env = TestEnv::new();
    let file = env.write("src/d/file", "content");
    symlink("file", env.at("src/d/link")).unwrap();
    let spec = "(copy (src d) (dst /d))";
    let made = |why: &str, expected| {
        let built = env.build(spec).ok();
        assert_eq!(built.made_and_found().0, expected, "{why}: {}", built.stderr);
    };
    made("the first time", 2);
    made("nothing", 0);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(100))
        .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    made("times and permissions", 0);
    fs::write(&file, "CONTENT").unwrap();
    made("content of the same length", 1);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
    made("the x bit", 1);
    fs::remove_file(env.at("src/d/link")).unwrap();
    symlink("elsewhere", env.at("src/d/link")).unwrap();
    made("a link's target", 1);
    env.write("src/d/new", "");
    made("a new file", 1);
    env.write("src/other", "not copied");
    made("another file", 0);
    fs::remove_file(env.at("src/d/new")).unwrap();
    made("back to what was there before", 0);
}

#[test]
fn a_secret_is_seen_by_its_step_and_by_nobody_else() {
    needs_builds!();
    let env = TestEnv::new();
    let value = format!("hunter2-{}", env.marker());
    env.write("token", &value);
    let spec = |secrets: &str| {
        format!(
            r#"(workdir /w) (user (uid 1000) (gid 1000))
               (run (secrets {secrets}) (shell "for f in /run/secrets/token /w/key; do stat -c '%n %a %u' $f && md5sum < $f; done; ls /run > /tmp/seen; true"))
               (run (shell "ls -la /run /run/secrets /w; test ! -s /run/secrets/token; test ! -s key"))"#
        )
    };
    let spec_two = spec("(token (target /run/secrets/token)) (token (target key))");
    let built = env.build_with(&["--secret", "token:token"], &spec_two).ok();
    assert_eq!(built.stderr.matches(" 400 1000\n").count(), 2, "{}", built.stderr);
    let stored = std::process::Command::new("grep").arg("-rF").arg(&value).arg(env.at("store")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&stored.stdout), "");
    assert!(!built.stderr.contains(&value));
    // The value does not count, from wherever it comes; name and target do.
    env.write("token", "another");
    assert_eq!(env.build_with(&["--secret", "token:token"], &spec_two).ok().made_and_found().0, 0);
    let mut from_env = env.kiln(&["build", "-f", "spec", "--secret", "token=env:TOKEN", "src"]);
    assert_eq!(env.ran(from_env.env("TOKEN", "a third")).ok().made_and_found().0, 0);
    let moved = spec("(token (target /elsewhere))");
    assert_eq!(env.build_with(&["--secret", "token:token"], &moved).ok().made_and_found().0, 2);
    let renamed = spec("(other (target /elsewhere))");
    assert_eq!(env.build_with(&["--secret", "other:token"], &renamed).ok().made_and_found().0, 2);
    // By default it is where Docker puts it.
    let default = env.build_with(
        &["--secret", "token:token"],
        r#"(run (secrets (token)) (shell "cat /run/secrets/token | md5sum"))"#,
    );
    assert!(default.ok().stderr.contains("b32d73e56ec99bc5ec8f83871cde708a"));
}

#[test]
fn a_missing_secret_is_told_before_anything_runs() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = r#"(run (shell "echo ran")) (run (secrets (token (target /t))) (shell true))"#;
    let failed = env.build(spec).fails_with(2);
    assert_eq!(failed.told(), "error: the spec needs the secret `token`; give it with --secret token:FILE\n");
    let failed = env.build_with(&["--secret", "token:no-such-file"], spec).fails_with(2);
    insta::assert_snapshot!(failed.told(), @"
    error: cannot read no-such-file
      caused by: No such file or directory (os error 2)
    ");
    let failed = env.build_with(&["--secret", "token=hunter2"], spec).fails_with(2);
    assert_eq!(failed.told(), "error: cannot use --secret token…: expected ID=env:VAR\n", "the value may be a secret");
}

#[test]
fn a_cache_outlives_its_steps_even_failed_ones() {
    needs_builds!();
    let env = TestEnv::new();
    let run = |name: &str, script: &str| {
        format!(r#"(user (uid 1000) (gid 1000)) (run (cache ("{name}" (target /cache))) (shell "{script}"))"#)
    };
    env.build(&run("c/1", "stat -c '%a %u:%g' /cache; echo one > /cache/file; exit 1")).fails_with(1);
    let log = env.log(&run("c/1", "cat /cache/file; echo two >> /cache/file"));
    assert_eq!(log, "one\n");
    assert_eq!(env.log(&run("c/1", "cat /cache/file")), "one\ntwo\n");
    assert_eq!(env.log(&run("c/2", "ls -A /cache; stat -c '%a %u:%g' /cache")), "755 1000:1000\n");
    // The result has the empty place only.
    let after = format!(r#"{} (run (shell "ls -A /cache; stat -c '%a %u:%g' /cache"))"#, run("c/1", "true"));
    assert_eq!(env.log(&after), "755 1000:1000\n");
    // A cancelled step changes nothing.
    let gate = Gate::new();
    let script = format!("echo three >> /cache/file; {}", gate.wait());
    let building = env.start(&format!(r#"(run (cache ("c/1" (target /cache))) (network host) (shell "{script}"))"#));
    let waiting = gate.arrival();
    building.signal(rustix::process::Signal::INT);
    building.end().fails_with(130);
    waiting.death();
    assert_eq!(env.log(&run("c/1", "cat /cache/file #")), "one\ntwo\n");
    env.assert_clean();
}

#[test]
fn steps_at_the_same_time_do_not_see_each_others_half_of_a_cache() {
    needs_builds!();
    let env = TestEnv::new();
    env.build(r#"(run (cache (c (target /c))) (shell "echo old > /c/file"))"#).ok();
    let gate = Gate::new();
    let stage = |name: &str| {
        format!(
            r#"(build {name} ((from rootfs:base.tar)
                 (run (cache (c (target /c))) (network host) (shell "echo {name} >> /c/file; {}; cat /c/file"))))"#,
            gate.wait()
        )
    };
    let spec = format!("({} {} (from rootfs:base.tar))", stage("a"), stage("b"));
    env.spec(&spec);
    let building = env.spawn(&mut env.kiln(&["build", "-f", "spec", "-j", "2", "src"]));
    // Both have written, neither has ended.
    let waiting = [gate.arrival(), gate.arrival()];
    waiting.into_iter().for_each(|step| step.pass(""));
    let built = building.end().ok();
    for name in ["a", "b"] {
        assert!(built.stderr.contains(&format!("[{name}] old\n")), "{}", built.stderr);
        assert_eq!(built.stderr.matches(&format!("[{name}] {name}\n")).count(), 1, "{}", built.stderr);
    }
    assert!(!built.stderr.contains("[a] b\n") && !built.stderr.contains("[b] a\n"), "{}", built.stderr);
    let log = env.log(r#"(run (cache (c (target /c))) (shell "cat /c/file"))"#);
    assert!(log == "old\na\n" || log == "old\nb\n", "the first to end is kept: {log}");
}
