//! What a step prints of its secrets.

use crate::env::TestEnv;
use crate::needs_builds;

#[test]
fn the_value_of_a_secret_is_shown_nowhere() {
    needs_builds!();
    let env = TestEnv::new();
    let (first, second) = (format!("first-{}", env.marker()), format!("second-{}", env.marker()));
    env.write("key", format!("{first}\n{second}\n"));
    // As a whole, line by line, in two writes, without an end, and by a step that fails.
    let print = "cat /key; while read line; do echo \\\"<$line>\\\"; done < /key; head -c 9 /key; tail -c +10 /key; printf %s \\\"$(cat /key)\\\"";
    let log = "***\n<***>\n<***>\n***\n***";
    for progress in ["plain", "json", "tty"] {
        for (end, code) in [("exit 0", 0), ("exit 7", 1)] {
            let spec = format!(r#"(run (secrets (key (target /key))) (shell "{print}; {end}"))"#);
            let arguments = ["--secret", "key:key", "--no-cache", "--progress", progress];
            let built = env.build_with(&arguments, &spec).fails_with(code);
            assert!(!built.stderr.contains(&first) && !built.stderr.contains(&second), "{}", built.stderr);
            match progress {
                "json" => assert!(built.stderr.contains("***"), "{}", built.stderr),
                _ => assert!(built.stderr.contains(log), "{}", built.stderr),
            }
        }
    }
    let built = env.build_with(
        &["--secret", "key:key"],
        &format!(r#"(run (secrets (key (target /key))) (shell "{print}; exit 0"))"#),
    );
    assert_eq!(env.run(&["log", built.id()]).stdout, log);
    for value in [&first, &second] {
        let stored = std::process::Command::new("grep").arg("-rF").arg(value).arg(env.at("store")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&stored.stdout), "");
    }
    env.assert_clean();
}

#[test]
fn masking_can_be_turned_off() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("key", "hunter2\n");
    let spec = r#"(run (secrets (key (target /key))) (shell "cat /key"))"#;
    let arguments = ["--secret", "key:key", "--no-cache"];
    let printed = |log: &str| log.lines().any(|line| line == "hunter2");
    assert!(!printed(&env.build_with(&arguments, spec).ok().stderr));
    assert!(printed(&env.build_with(&[&arguments[..], &["--no-mask"]].concat(), spec).ok().stderr));
    env.write("home/.config/kiln/config.toml", "[sandbox]\nmask_secrets = false\n");
    assert!(printed(&env.build_with(&arguments, spec).ok().stderr));
}
