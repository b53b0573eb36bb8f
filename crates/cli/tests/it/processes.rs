//! Several kiln at once, and what is left of one that is stopped or killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::env::{Gate, Ran, TestEnv};
use crate::needs_builds;

const RANDOM: &str = "cat /proc/sys/kernel/random/uuid";

#[test]
fn builds_of_one_spec_at_once_make_each_step_once() {
    needs_builds!();
    let env = TestEnv::new();
    let steps: String = (0..5).map(|at| format!(r#"(run (shell "echo {at}; {RANDOM}"))"#)).collect();
    env.spec(&format!(
        "((build a ((from rootfs:base.tar) {steps})) (build b ((from rootfs:base.tar) (env B b) {steps})) (from rootfs:base.tar) {steps})"
    ));
    let builds: Vec<_> = (0..4).map(|_| env.spawn(&mut env.kiln(&["build", "-f", "spec", "src"]))).collect();
    let built: Vec<Ran> = builds.into_iter().map(|build| build.end().ok()).collect();
    // Each id is saved by one build alone; its own stages that share it all say so. The stage `a` and the last are the same:
    // two chains of five, and the base.
    let saved = |built: &Ran| -> BTreeSet<String> {
        let lines = built.stderr.lines().filter(|line| line.contains("---> saved as"));
        lines.map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    };
    let told: Vec<&str> = built.iter().map(|built| built.stderr.as_str()).collect();
    assert_eq!(built.iter().map(|built| saved(built).len()).sum::<usize>(), 11, "{told:#?}");
    assert_eq!(built.iter().flat_map(saved).collect::<BTreeSet<_>>().len(), 11, "{told:#?}");
    let logs = |built: &Ran| -> BTreeSet<String> {
        let lines = built.stderr.lines().filter(|line| line.matches('-').count() == 4 && !line.contains("--->"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(logs(&built[0]).len(), 15);
    for other in &built {
        assert_eq!(other.stdout, built[0].stdout);
        assert_eq!(logs(other), logs(&built[0]));
    }
    env.assert_clean();
}

#[test]
fn whoever_waits_takes_over_from_one_that_is_killed() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let spec =
        format!(r#"(run (shell "echo first")) (run (network host) (shell "echo begun; {}; echo ended"))"#, gate.wait());
    let mut one = env.start(&spec);
    let in_one = gate.arrival();
    one.wait_for("begun");
    let mut two = env.start(&spec);
    two.wait_for("being made by process");
    two.wait_for("begun");
    one.signal(Signal::KILL);
    in_one.death();
    assert_eq!(one.end().code, 137);
    let in_two = gate.arrival();
    in_two.pass("");
    let built = two.end().ok();
    assert_eq!(built.made_and_found(), (1, 2));
    assert_eq!(env.run(&["log", built.id()]).stdout, "begun\nended\n");
    env.assert_clean();
}

#[test]
fn ctrl_c_ends_everything_at_once() {
    needs_builds!();
    let env = TestEnv::new();
    for signal in [Signal::INT, Signal::TERM] {
        let gate = Gate::new();
        let (marker, wait) = (env.marker(), gate.wait());
        let script = format!(
            "trap '' INT TERM HUP QUIT; (while true; do sleep 1000; done) & (setsid sh -c 'sleep 1000' &); echo begun; {wait}; while true; do sleep 1000; done"
        );
        let building = env.start(&format!(r#"(env MARKER {marker}) (run (network host) (shell "{script}"))"#));
        let waiting = gate.arrival();
        building.signal(signal);
        let ended = building.end().fails_with(130);
        assert!(ended.stderr.ends_with("cancelled\n"), "{}", ended.stderr);
        waiting.death();
        env.assert_clean();
    }
}

#[test]
fn ctrl_c_works_in_every_kind_of_step() {
    needs_builds!();
    let env = TestEnv::new();
    // Output without end, faster than anyone reads it.
    let mut building = env.start(r#"(run (shell "yes and no"))"#);
    building.wait_for("and no");
    building.signal(Signal::INT);
    building.end().fails_with(130);
    // Reading a source that takes minutes: a sparse file.
    std::fs::File::create(env.at("src/large")).unwrap().set_len(1 << 42).unwrap();
    let mut building = env.start("(copy (src large) (dst /large))");
    building.wait_for("(copy");
    building.signal(Signal::INT);
    building.end().fails_with(130);
    env.assert_clean();
}

#[test]
fn what_a_command_leaves_behind_does_not_hold_up_the_build() {
    needs_builds!();
    let env = TestEnv::new();
    let marker = env.marker();
    let log = env.log(&format!(
        r#"(env MARKER {marker}) (run (shell "setsid sh -c 'trap \"\" HUP TERM; while true; do sleep 1000; done' & echo done"))"#
    ));
    assert_eq!(log, "done\n");
    env.assert_clean();
}

/// Kills kiln at random moments, `KILN_TEST_KILLS` times (20 by default).
#[test]
fn a_killed_build_leaves_nothing_and_the_next_one_goes_on() {
    needs_builds!();
    let kills = std::env::var("KILN_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20);
    let env = TestEnv::new();
    for file in 0..200 {
        env.write(&format!("src/{file}"), vec![1; 10_000]);
    }
    let marker = env.marker();
    let spec = |round: u32| {
        let step = |at: u32| {
            format!(r#"(run (cache (c (target /c))) (shell "date > /c/{at}; seq 1 500; cp -r /w /w{at}; : {round}"))"#)
        };
        let steps: String = (0..4).map(step).collect();
        format!(
            r#"((build side ((from rootfs:base.tar) (env MARKER {marker}) (env ROUND {round}) (run (shell "echo x > /out; sleep 0.1"))))
                (from rootfs:base.tar) (env MARKER {marker}) (env ROUND {round})
                (copy (src .) (dst /w)) {steps} (copy (from (build side)) (src out) (dst /w/)))"#
        )
    };
    // How long a build takes here and now, to kill within.
    let started = Instant::now();
    env.build(&spec(0)).ok();
    let whole = started.elapsed();
    for round in 1..=kills {
        let building = env.start(&spec(round));
        // Spread over the build, in an order without a pattern. Not a wait for anything: the moment shall be any.
        let share = (round * 7919 % 100) as f64 / 100.0;
        std::thread::sleep(whole.mul_f64(share));
        building.signal(Signal::KILL);
        let killed = building.end();
        assert!(matches!(killed.code, 0 | 137), "{}", killed.stderr);
        let (made, _) = killed.made_and_found();
        env.run(&["ls"]).ok();
        let next = env.build(&spec(round)).ok();
        let (made_next, found) = next.made_and_found();
        assert_eq!(made_next + found, 9, "{}", next.stderr);
        assert!(found >= made, "round {round}: {}\nthen: {}", killed.stderr, next.stderr);
        // The step that ran may need a moment to die where nothing waited for it: one that was not built again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !env.processes().is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        env.assert_clean();
    }
}
