//! `kiln ls`, `kiln rm`, `kiln prune`.

use crate::env::{Gate, TestEnv};
use crate::needs_builds;

/// Builds a chain of three and another that shares its first; returns the ids from `ls --json`, by what the step is.
fn filled(env: &TestEnv) -> impl Fn(&str) -> String + use<> {
    env.build(r#"(run (shell "echo one > /1")) (run (shell "echo two > /2"))"#).ok();
    env.build(r#"(run (shell "echo three > /3"))"#).ok();
    let listed = env.run(&["ls", "--json"]).ok().stdout;
    let rows: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4);
    move |step| {
        let row = rows.iter().find(|row| row["step"].as_str().unwrap().contains(step)).unwrap();
        row["id"].as_str().unwrap().to_owned()
    }
}

#[test]
fn results_are_listed_and_removed() {
    needs_builds!();
    let env = TestEnv::new();
    assert_eq!(env.run(&["ls"]).ok().stdout.lines().count(), 1);
    let id = filled(&env);
    let listed = env.run(&["ls"]).ok().stdout;
    assert!(listed.starts_with("ID            SIZE        USED       STEP\n"), "{listed}");
    assert_eq!(listed.lines().count(), 5, "{listed}");
    assert!(listed.contains(&format!("{}  ", &id("one")[..12])), "{listed}");
    for row in env.run(&["ls", "--json"]).ok().stdout.lines() {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        assert!(row["size_bytes"].as_u64().unwrap() > 0 && row["created_ms"].as_u64().unwrap() > 0, "{row}");
        assert_eq!(row["parent"].is_null(), row["step"] == "(from rootfs:base.tar)");
    }
    // A parent stays unless its children may go too.
    let refused = env.run(&["rm", &id("one")]).fails_with(1);
    assert!(refused.told().starts_with("error: result [ID] is the parent of 1 other results"), "{}", refused.told());
    let removed = env.run(&["rm", "--recursive", &id("one")[..20]]).ok();
    assert_eq!(removed.stdout, "");
    assert_eq!(env.run(&["ls"]).ok().stdout.lines().count(), 3);
    env.run(&["rm", &id("one")]).fails_with(2);
    env.run(&["rm", &id("three"), &id("(from")]).ok();
    assert_eq!(env.run(&["ls"]).ok().stdout.lines().count(), 1);
    env.assert_clean();
}

#[test]
fn a_prefix_names_one_result_or_none() {
    needs_builds!();
    let env = TestEnv::new();
    let _ids = filled(&env);
    // Enough results for two to begin alike.
    let steps: String = (0..16).map(|at| format!("(shell /bin/true {at}) (run (shell x))")).collect();
    env.build(&steps).ok();
    let ids: Vec<String> = env.run(&["ls"]).ok().stdout.lines().skip(1).map(|line| line[..1].to_owned()).collect();
    let first = ids.iter().find(|id| ids.iter().filter(|other| other == id).count() > 1).unwrap();
    for command in ["log", "rm"] {
        let failed = env.run(&[command, first]).fails_with(2);
        assert!(failed.stderr.contains(&format!("`{first}` is the start of ")), "{}", failed.stderr);
    }
}

#[test]
fn a_failed_step_has_its_log_until_it_is_removed() {
    needs_builds!();
    let env = TestEnv::new();
    let failed = env.build(r#"(run (shell "echo why; exit 1"))"#).fails_with(1);
    let id = failed.stderr.split("`kiln log ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    assert_eq!(env.run(&["log", &id]).ok().stdout, "why\n");
    env.run(&["rm", &id]).ok();
    env.run(&["log", &id]).fails_with(2);
}

#[test]
fn pruning_keeps_to_its_limits() {
    needs_builds!();
    let env = TestEnv::new();
    let _ids = filled(&env);
    let count = || env.run(&["ls"]).ok().stdout.lines().count() - 1;
    let told = env.run(&["prune", "--max-items", "2", "--dry-run"]).ok().told();
    assert_eq!(told.matches("would remove").count(), 2, "{told}");
    assert_eq!(count(), 4);
    let told = env.run(&["prune", "--max-items", "3"]).ok().told();
    assert!(told.contains(" of 1 results"), "{told}");
    assert_eq!(count(), 3);
    env.run(&["prune", "--max-age", "1000d", "--max-size", "1T", "--keep-free", "1k"]).ok();
    assert_eq!(count(), 3);
    env.run(&["prune", "--max-size", "0"]).ok();
    assert_eq!(count(), 0);
    let _ids = filled(&env);
    env.run(&["prune", "--all"]).ok();
    assert_eq!(count(), 0);
    env.assert_clean();
}

#[test]
fn what_a_build_stands_on_is_not_removed() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let building =
        env.start(&format!(r#"(run (shell "echo one > /1")) (run (network host) (shell "{}; cat /1"))"#, gate.wait()));
    let waiting = gate.arrival();
    let told = env.run(&["prune", "--all"]).ok().told();
    assert!(told.contains("in use by builds"), "{told}");
    let ids = env.run(&["ls"]).ok().stdout;
    assert_eq!(ids.lines().count(), 3, "{ids}");
    for id in ids.lines().skip(1).map(|line| &line[..12]) {
        env.run(&["rm", "--recursive", id]).fails_with(1);
    }
    let running = std::fs::read_dir(env.at("store/draft")).unwrap().next().unwrap().unwrap().file_name();
    env.run(&["rm", running.to_str().unwrap()]).fails_with(1);
    waiting.pass("");
    assert!(building.end().ok().stderr.contains("\none\n"));
}
