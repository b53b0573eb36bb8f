//! Profiles of system calls.

use kiln_testkit::Need;

use crate::env::TestEnv;
use crate::needs_builds;

const DUMB: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
 "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;

#[test]
fn a_profile_of_the_users_own_is_a_flag_and_a_setting() {
    needs_builds!();
    let env = TestEnv::new();
    let step = |more: &str| format!("(run (shell \"mkdir /d 2>&1; {more} true\"))");
    let profile = env.write("profile.json", DUMB);
    let profile = profile.to_str().unwrap();
    env.build_with(&["--seccomp", profile], &step("")).ok();
    assert!(env.log(&step("")).contains("No space left on device"));
    let config = env.write("config.toml", format!("[sandbox]\nseccomp = {profile:?}"));
    env.build_with(&["--config", config.to_str().unwrap()], &step(":;")).ok();
    assert!(env.log(&step(":;")).contains("No space left on device"));
    let flags = ["--config", config.to_str().unwrap(), "--seccomp", "unconfined"];
    let look = "(run (shell \"grep Seccomp: /proc/self/status\"))";
    // With users of its own, a filter hands device nodes to kiln.
    env.build_with(&[&flags[..], &["--no-fast-sync", "--userns", "host"]].concat(), look).ok();
    assert_eq!(env.log(look), "Seccomp:\t0\n");
}

#[test]
fn a_profile_that_is_none_is_wrong_usage_and_the_place_is_named() {
    needs_builds!();
    let env = TestEnv::new();
    let profile = env.write("profile.json", DUMB.replace("SCMP_ACT_ERRNO", "SCMP_ACT_NO"));
    let failed = env.build_with(&["--seccomp", profile.to_str().unwrap()], "(run (shell true))").fails_with(2);
    assert!(failed.stderr.contains("profile.json:2:"), "{}", failed.stderr);
    assert!(failed.stderr.contains("unknown action `SCMP_ACT_NO`"), "{}", failed.stderr);
    let missing = env.build_with(&["--seccomp", "/nonesuch.json"], "(run (shell true))").fails_with(2);
    assert!(missing.stderr.contains("/nonesuch.json"), "{}", missing.stderr);
}

#[test]
fn a_runtime_keeps_a_profile_and_one_that_it_cannot_is_wrong_usage() {
    needs_builds!();
    let env = TestEnv::new();
    let profile = env.write("profile.json", DUMB);
    let entry = |value: u32, action: &str| {
        format!(
            r#"{{"name": "dup3", "action": "SCMP_ACT_{action}", "args": [{{"index": 2, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#
        )
    };
    let two_answers =
        format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}, {}]}}"#, entry(1, "ERRNO"), entry(2, "KILL"));
    let two_answers = env.write("two-answers.json", two_answers);
    for runtime in ["runc", "crun"].into_iter().filter(|runtime| kiln_testkit::have(&[Need::Tool(runtime, runtime)])) {
        let step = format!("(run (shell \"mkdir /d 2>&1; : {runtime}; true\"))");
        let build = |seccomp: &str| env.build_with(&["--sandbox", runtime, "--no-cache", "--seccomp", seccomp], &step);
        build(profile.to_str().unwrap()).ok();
        assert!(env.log(&step).contains("No space left on device"));
        build("unconfined").ok();
        assert_eq!(env.log(&step), "");
        let refused = build(two_answers.to_str().unwrap()).fails_with(2);
        let error = format!("`{runtime}` cannot keep the seccomp profile: `dup3` gets different answers");
        assert!(refused.stderr.contains(&error) && refused.stderr.contains("--sandbox native"), "{}", refused.stderr);
    }
    env.assert_clean();
}
