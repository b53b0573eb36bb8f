//! What a build looks like, and `kiln log`.

use std::process::Command;

use rustix::process::Signal;

use crate::env::{Gate, TestEnv};
use crate::needs_builds;

#[test]
fn one_stage_reads_as_in_obuilder() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "x");
    let spec = r#"(comment "a\nremark") (workdir /w) (env A "b c") (copy (src file) (dst ./)) (run (network host) (shell "echo one; printf two"))"#;
    let built = env.build(spec).ok();
    assert_eq!(built.printed(), "[ID]\n");
    insta::assert_snapshot!(built.told(), @r#"
    (from rootfs:base.tar)
    ---> saved as "[ID]"
    /: (comment "a\
              \nremark")
    /: (workdir /w)
    /w: (env A "b c")
    /w: (copy (src file) (dst ./))
    ---> saved as "[ID]"
    /w: (run (network host)
         (shell "echo one; printf two"))
    one
    two
    ---> saved as "[ID]"
    "#);
    let again = env.build(spec).ok();
    assert_eq!(again.told(), built.told().replace("saved as \"[ID]\"", "using \"[ID]\" from cache"));
    let failed = env.build(r#"(run (shell "echo why; exit 2"))"#).fails_with(1);
    insta::assert_snapshot!(failed.told(), @r#"
    (from rootfs:base.tar)
    ---> using "[ID]" from cache
    /: (run (shell "echo why; exit 2"))
    why
    ---> failed
    error: step `/: (run (shell "echo why; exit 2"))` exited with status 2

    hint: the log is kept; see it with `kiln log [SHORT ID]`
    "#);
}

#[test]
fn lines_of_several_stages_carry_their_names() {
    needs_builds!();
    let env = TestEnv::new();
    // One after the other, so that the order is known.
    let spec = r#"((build one ((from rootfs:base.tar) (run (shell "echo a; printf b"))))
                   (from rootfs:base.tar) (copy (from (build one)) (src etc/passwd) (dst /x)) (run (shell "echo \"c\nd\"")))"#;
    env.build("(comment x)").ok();
    let built = env.build(spec).ok();
    let of = |is_one: bool| -> String {
        built.told().split_inclusive('\n').filter(|line| line.starts_with("[one] ") == is_one).collect()
    };
    insta::assert_snapshot!(of(true), @r#"
    [one] (from rootfs:base.tar)
    [one] ---> using "[ID]" from cache
    [one] /: (run (shell "echo a; printf b"))
    [one] a
    [one] b
    [one] ---> saved as "[ID]"
    "#);
    insta::assert_snapshot!(of(false), @r#"
    (from rootfs:base.tar)
    ---> using "[ID]" from cache
    /: (copy (from (build one)) (src etc/passwd) (dst /x))
    ---> saved as "[ID]"
    /: (run (shell "echo \"c\
                 \nd\""))
    c
    d
    ---> saved as "[ID]"
    "#);
}

#[test]
fn json_is_an_object_a_line() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = r#"(comment x) (run (shell "echo '✓'")) (run (shell "exit 3"))"#;
    let failed = env.build_with(&["--progress", "json"], spec);
    assert_eq!(failed.code, 1);
    let mut events = String::new();
    for line in failed.stderr.lines().take_while(|line| !line.starts_with("error:")) {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let event = object["event"].as_str().unwrap();
        if event == "progress" {
            continue;
        }
        let more = ["text", "data", "code", "steps"]
            .map(|field| object.get(field).map(ToString::to_string))
            .into_iter()
            .flatten();
        let more: Vec<String> = more.collect();
        events.push_str(&format!("{event} {} {}\n", object["step"], more.join(" ")));
    }
    insta::assert_snapshot!(events, @r#"
    planned null 3
    started 0 "(from rootfs:base.tar)"
    saved 0 "(from rootfs:base.tar)"
    noted 1 "/: (comment x)"
    started 2 "/: (run (shell \"echo '\\226\\156\\147'\"))"
    output 2 "✓\n"
    used 2 "/: (run (shell \"echo '\\226\\156\\147'\"))"
    saved 2 "/: (run (shell \"echo '\\226\\156\\147'\"))"
    started 3 "/: (run (shell \"exit 3\"))"
    used 3 "/: (run (shell \"exit 3\"))"
    failed 3 "/: (run (shell \"exit 3\"))" 3
    "#);
}

#[test]
fn quiet_shows_nothing_but_errors() {
    needs_builds!();
    let env = TestEnv::new();
    let built = env.build_with(&["-q"], r#"(run (shell "echo noise"))"#).ok();
    assert_eq!(built.stderr, "");
    assert_eq!(built.printed(), "[ID]\n");
    let failed = env.build_with(&["-q"], r#"(run (shell "echo why; exit 1"))"#).fails_with(1);
    assert!(failed.stderr.contains("\nwhy\nerror: step"), "{}", failed.stderr);
    let both = env.build_with(&["-q", "--progress", "plain"], "(comment x)").fails_with(2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[test]
fn a_terminal_shows_the_whole_log_of_what_failed_and_how_to_see_it_again() {
    needs_builds!();
    kiln_testkit::need!(kiln_testkit::Need::Tool("script", "bsdutils"));
    let env = TestEnv::new();
    env.spec(r#"(run (shell "echo fine")) (run (shell "seq 1 100; printf '\\033[2Jred\\n'; exit 4"))"#);
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("{} build -f spec src", env!("CARGO_BIN_EXE_kiln")), "/dev/null"]);
    env.set_up(&mut terminal);
    let shown = env.ran(terminal.env("TERM", "xterm"));
    assert_eq!(shown.code, 1, "{}", shown.stdout);
    let text = console::strip_ansi_codes(&shown.stdout).replace('\r', "");
    let all: String = (1..=100).map(|line| format!("{line}\n")).collect();
    assert!(text.contains(&all), "the whole log: {text}");
    assert!(!shown.stdout.contains("\x1b[2J"), "what a step prints does not clear the screen");
    assert!(text.contains("✓ [2/3] /: (run (shell \"echo fine\"))"), "{text}");
    assert!(text.contains("✗ [3/3]"), "{text}");
    assert!(text.contains("exited with status 4"), "{text}");
    let hint = text.split("see it with `kiln log ").nth(1).unwrap();
    let log = env.run(&["log", hint.split('`').next().unwrap()]).ok();
    assert!(log.stdout.starts_with(&all) && log.stdout.ends_with("\x1b[2Jred\n"), "a log is what the step printed");
}

#[test]
fn a_log_is_followed_while_its_step_runs() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let mut building = env.start(&format!(r#"(run (network host) (shell "echo begun; {}; echo ended"))"#, gate.wait()));
    let waiting = gate.arrival();
    building.wait_for("begun");
    let id = std::fs::read_dir(env.at("store/draft")).unwrap().next().unwrap().unwrap().file_name();
    let mut log = env.kiln(&["log", &id.to_str().unwrap()[..12]]);
    let following = std::thread::scope(|scope| {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut child = log.stdout(writer).spawn().unwrap();
        drop(log);
        let follower = scope.spawn(move || {
            let mut reader = std::io::BufReader::new(reader);
            let mut text = String::new();
            std::io::BufRead::read_line(&mut reader, &mut text).unwrap();
            assert_eq!(text, "begun\n");
            // Seen before the step can go on.
            waiting.pass("");
            std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
            text
        });
        let text = follower.join().unwrap();
        assert!(child.wait().unwrap().success());
        text
    });
    assert_eq!(following, "begun\nended\n");
    assert_eq!(building.end().ok().id(), id.to_str().unwrap());
    assert_eq!(env.run(&["log", id.to_str().unwrap()]).ok().stdout, "begun\nended\n");
}

#[test]
fn a_log_that_is_followed_ends_when_its_builder_is_killed() {
    needs_builds!();
    let env = TestEnv::new();
    let gate = Gate::new();
    let mut building = env.start(&format!(r#"(run (network host) (shell "echo begun; {}"))"#, gate.wait()));
    let waiting = gate.arrival();
    building.wait_for("begun");
    let id = std::fs::read_dir(env.at("store/draft")).unwrap().next().unwrap().unwrap().file_name();
    let mut log = env.kiln(&["log", id.to_str().unwrap()]);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = log.stdout(writer).spawn().unwrap();
    drop(log);
    let mut reader = std::io::BufReader::new(reader);
    let mut text = String::new();
    std::io::BufRead::read_line(&mut reader, &mut text).unwrap();
    building.signal(Signal::KILL);
    waiting.death();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    assert_eq!(text, "begun\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn closed_pipes_are_quiet() {
    needs_builds!();
    let env = TestEnv::new();
    let id = env.build(r#"(run (shell "seq 1 100000"))"#).ok().id().to_owned();
    let pipeline = |command: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("K={}; {command}; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_kiln"))]);
        env.set_up(&mut shell);
        env.ran(&mut shell)
    };
    let log = pipeline(&format!("$K log {id} | head -1"));
    assert_eq!((log.stdout.as_str(), log.stderr.as_str()), ("1\n0\n", ""));
    assert_eq!(pipeline("$K ls --json | true").stderr, "");
    // Without stderr the work is done and the exit code tells.
    assert_eq!(pipeline("$K build -f spec --no-cache src 2>&1 >/dev/null | true").stdout, "0\n");
    assert_eq!(pipeline("$K build -f none src 2>&1 | true").stdout, "2\n");
    assert_eq!(pipeline("$K prune --max-items 0 2>/dev/full").stdout, "0\n");
    assert_eq!(pipeline("$K ls >/dev/full").stdout, "3\n");
}
