//! `kiln prune` by settings, pins, and what `kiln build` has done in the background.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::process::Signal;

use crate::env::{Gate, TestEnv};
use crate::needs_builds;

fn settings(env: &TestEnv, text: &str) {
    env.write("home/.config/kiln/config.toml", text);
}

/// What the results are, those used longest ago first.
fn steps(env: &TestEnv) -> Vec<String> {
    let listed = env.run(&["ls", "--json"]).ok().stdout;
    let rows = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| row["step"].as_str().unwrap().to_owned()).collect()
}

/// Sees what happens to files of `state/`.
struct Watch(OwnedFd);

impl Watch {
    fn start(env: &TestEnv) -> Self {
        // Makes the store.
        env.run(&["ls"]).ok();
        let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, env.at("store/state"), WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO).unwrap();
        Self(watch)
    }

    /// Waits until the file was written, or made by renaming.
    fn wait_for(&self, file: &str) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        loop {
            if reader.is_buffer_empty() {
                let patience = std::time::Duration::from_secs(120).try_into().unwrap();
                assert_eq!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)), Ok(1), "nothing happens");
            }
            let event = reader.next().unwrap();
            assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW));
            if event.file_name().is_some_and(|name| name.to_bytes() == file.as_bytes()) {
                return;
            }
        }
    }
}

#[test]
fn a_build_prunes_by_the_settings_when_it_has_ended() {
    needs_builds!();
    let env = TestEnv::new();
    settings(&env, "[prune]\nmax_items = 2\nmax_age = \"1000d\"\n");
    let watch = Watch::start(&env);
    env.build(r#"(run (shell "echo one > /1"))"#).ok();
    watch.wait_for("maintainer");
    env.build(r#"(run (shell "echo two > /2"))"#).ok();
    watch.wait_for("maintainer");
    assert_eq!(steps(&env), ["(from rootfs:base.tar)", r#"/: (run (shell "echo two > /2"))"#]);
    env.assert_clean();
}

#[test]
fn results_of_a_build_are_marked_as_durable_while_it_runs() {
    needs_builds!();
    let env = TestEnv::new();
    let watch = Watch::start(&env);
    let gate = Gate::new();
    let building =
        env.start(&format!(r#"(run (shell "echo one > /1")) (run (network host) (shell "{}"))"#, gate.wait()));
    let waiting = gate.arrival();
    watch.wait_for("boot.json");
    waiting.pass("");
    building.end().ok();
}

#[test]
fn without_limits_the_settings_say_how_much_may_stay() {
    needs_builds!();
    let env = TestEnv::new();
    env.build(r#"(run (shell "echo one > /1"))"#).ok();
    let told = env.run(&["prune"]).fails_with(2).told();
    assert!(told.starts_with("error: no limit is given, and no settings say one\n"), "{told}");
    settings(&env, "[prune]\nmax_items = 1\nkeep_free = \"0%\"\n");
    assert!(env.run(&["prune", "--dry-run"]).ok().told().contains("would free"));
    env.write("other.toml", "[prune]\nmax_items = 2\n");
    assert!(env.run(&["prune", "--config", "other.toml"]).ok().told().contains(" of 0 results"));
    assert!(env.run(&["prune", "--max-size", "1T"]).ok().told().contains(" of 0 results"), "flags replace settings");
    assert!(env.run(&["prune"]).ok().told().contains(" of 1 results"));
    assert_eq!(steps(&env), ["(from rootfs:base.tar)"]);
}

#[test]
fn a_mistake_in_the_settings_is_told_with_its_place() {
    needs_builds!();
    let env = TestEnv::new();
    env.spec("");
    let mut told = String::new();
    for text in ["[prune]\nmax_size = \"many\"\n", "[prune]\nmax_itmes = 1\n", "[prune]\nmax_size = 5\n", "prune"] {
        settings(&env, text);
        for arguments in [&["prune"][..], &["build", "-f", "spec", "src"]] {
            let failed = env.run(arguments).fails_with(2).told();
            assert!(arguments.len() == 1 || told.ends_with(&failed), "{failed}");
            told.push_str(if arguments.len() == 1 { &failed } else { "" });
        }
    }
    insta::assert_snapshot!(told, @"
    error: [DIR]/home/.config/kiln/config.toml:2:12: `many` is not a size, as 20G is
    error: [DIR]/home/.config/kiln/config.toml:2:1: unknown field `max_itmes`, expected one of `keep_free`, `max_size`, `max_age`, `max_items`
    error: [DIR]/home/.config/kiln/config.toml:2:12: invalid type: integer `5`, expected a string
    error: [DIR]/home/.config/kiln/config.toml:1:6: key with no value, expected `=`
    ");
    settings(&env, "");
    env.run(&["prune", "--config", "missing.toml"]).fails_with(2);
}

#[test]
fn what_is_pinned_is_neither_removed_nor_pruned() {
    needs_builds!();
    let env = TestEnv::new();
    let id = env.build(r#"(run (shell "echo one > /1")) (run (shell "echo two > /2"))"#).ok().id().to_owned();
    let one = env.build(r#"(run (shell "echo one > /1"))"#).ok().id().to_owned();
    env.run(&["pin", &one[..20]]).ok();
    let listed = env.run(&["ls"]).ok().stdout;
    assert!(listed.contains(&format!("{}* ", &one[..12])) && listed.contains(&format!("{}  ", &id[..12])), "{listed}");
    assert_eq!(env.run(&["ls", "--json"]).ok().stdout.matches(r#""pinned":true"#).count(), 1);
    let refused = env.run(&["rm", &one]).fails_with(1).told();
    assert!(refused.contains("[ID] is pinned; to remove it, take that back with `kiln unpin`"), "{refused}");
    let from = fs::read_dir(env.at("store/result")).unwrap().map(|entry| entry.unwrap().file_name());
    let from = from.map(|name| name.into_string().unwrap()).find(|name| *name != id && *name != one).unwrap();
    env.run(&["rm", "-r", &from]).fails_with(1);
    assert_eq!(steps(&env).len(), 3);
    assert!(env.run(&["prune", "--all"]).ok().told().ends_with("1 more are pinned\n"));
    assert_eq!(steps(&env).len(), 2);
    env.run(&["unpin", &one]).ok();
    env.run(&["prune", "--all"]).ok();
    assert!(steps(&env).is_empty());
    env.run(&["pin", &one]).fails_with(2);
}

#[test]
fn everything_includes_the_caches_that_no_step_uses() {
    needs_builds!();
    let env = TestEnv::new();
    env.build(r#"(run (cache (one (target /c))) (shell "echo one > /c/1"))"#).ok();
    let told = env.run(&["prune", "--all"]).ok().told();
    assert!(told.contains("removed unused caches: one\n"), "{told}");
    assert_eq!(kiln_testkit::listing(&env.at("store/cache/one")).unwrap(), [""; 0]);
    env.assert_clean();
}

#[test]
fn an_interrupted_prune_says_what_it_did() {
    needs_builds!();
    let env = TestEnv::new();
    env.build("").ok();
    let store = env.at("store/result");
    let from = fs::read_dir(&store).unwrap().next().unwrap().unwrap().path();
    // Many, with so much to be said of each that it has to wait for us.
    for number in 0..400 {
        copy(&from, &store.join(format!("{number:064x}")));
    }
    let mut pruning = env.spawn(&mut env.kiln(&["prune", "--all", "--dry-run"]));
    pruning.wait_for("would remove");
    pruning.signal(Signal::INT);
    let told = pruning.end().fails_with(130).told();
    assert!(told.contains("\nwould free") && told.ends_with("\ncancelled\n"), "{}", &told[told.len() - 200..]);
}

/// Copies a result, but for its tree, as one of a long step.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    let mut meta: serde_json::Value = serde_json::from_slice(&fs::read(from.join("meta.json")).unwrap()).unwrap();
    meta["summary"] = "x".repeat(60_000).into();
    fs::write(to.join("meta.json"), meta.to_string()).unwrap();
}
