//! `kiln doctor` and `kiln healthcheck`.

use std::fs;

use crate::env::TestEnv;
use crate::needs_builds;

#[test]
fn doctor_judges_the_host_and_runs_a_build() {
    needs_builds!();
    let env = TestEnv::new();
    let before = fs::read_dir(env.path()).unwrap().count();
    let said = env.run(&["doctor"]).ok().stdout;
    for what in ["kernel", "isolation", "user namespaces", "limits", "store", "pasta", "tun", "kvm"] {
        assert!(said.lines().any(|line| line.contains(what)), "{what}: {said}");
    }
    let tested = said.lines().last().unwrap();
    assert!(tested.contains("self-test") && tested.contains("a build took") && tested.contains("outside"), "{said}");
    assert_eq!(fs::read_dir(env.path()).unwrap().count(), before, "it leaves nothing");
}

#[test]
fn healthcheck_is_short() {
    needs_builds!();
    let env = TestEnv::new();
    assert_eq!(env.run(&["healthcheck"]).ok().stdout, "ok\n");
    fs::write(env.path().join("file"), "").unwrap();
    let store = format!("overlayfs:{}/file/store", env.path().display());
    let sick = env.run(&["healthcheck", "--store", &store]).fails_with(3);
    assert!(sick.stderr.contains("/file"), "{}", sick.stderr);
    assert_eq!(sick.stdout, "");
}
