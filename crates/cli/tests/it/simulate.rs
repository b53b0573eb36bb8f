//! `kiln simulate`.

use std::fs;

use crate::env::TestEnv;

/// So few jobs that it takes a moment.
const SMALL: [&str; 5] = ["simulate", "--jobs=300", "--workers=4", "--span=1h", "--outages=20"];

#[test]
fn a_made_up_trace_is_played_to_both_policies_and_reads_as_it_was_written() {
    let env = TestEnv::without_base();
    let first = env.run(&[&SMALL[..], &["--write-trace=trace"]].concat()).ok();
    assert_eq!(first.stderr, "");
    let row = |name: &str| first.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(row("lost; run twice").ends_with("0; 0             0; 0"), "{}", first.stdout);
    assert!(row("jobs without a worker").split_whitespace().skip(4).eq(["0", "0"]), "{}", first.stdout);
    for name in ["cache hits", "off the promised share", "wait, mean", "turnaround, mean", "client-4, rate 4"] {
        assert_ne!(row(name), "", "{name}: {}", first.stdout);
    }
    let again = env.run(&SMALL).ok();
    let read = env.run(&["simulate", "--trace=trace"]).ok();
    // It tells of the hints that are used.
    let figures = |text: &str| text.split_once("\n\n").map(|(_, figures)| figures.to_owned());
    assert_eq!((&again.stdout, figures(&read.stdout)), (&first.stdout, figures(&first.stdout)));
    assert_ne!(env.run(&[&SMALL[..], &["--seed=2"]].concat()).ok().stdout, first.stdout);
}

#[test]
fn json_has_all_figures() {
    let env = TestEnv::without_base();
    let ran = env.run(&[&SMALL[..], &["--json", "--policy=kiln"]].concat()).ok();
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&json["trace"]["workers"], &json["trace"]["capacity"]), (&4.into(), &16.into()));
    let [outcome] = json["outcomes"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!(
        (&outcome["policy"], &outcome["lost"], &outcome["wrong_starts"]),
        (&"kiln".into(), &0.into(), &0.into())
    );
    let ended = outcome["finished"].as_u64().unwrap() + outcome["cancelled"].as_u64().unwrap();
    assert_eq!(Some(ended), json["trace"]["jobs"].as_u64());
    assert!(outcome["hit_rate"].as_f64().unwrap() > 0.0 && outcome["wait_s"]["p99"].is_f64());
    assert_eq!(outcome["clients"].as_array().unwrap().len(), 4);
}

#[test]
fn what_operations_cost_is_a_table_or_json() {
    let env = TestEnv::without_base();
    let table = env.run(&["simulate", "--sizes=20,10", "--workers=3"]).ok();
    assert_eq!(table.stderr, "measuring 10 jobs\nmeasuring 20 jobs\n");
    let rows: Vec<&str> = table.stdout.lines().skip(3).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(rows, ["10", "20"], "{}", table.stdout);
    let json = env.run(&["simulate", "--sizes=10", "--workers=3", "--json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json["costs"][0]["jobs"], &json["costs"][0]["workers"]), (&10.into(), &3.into()));
    assert!(json["costs"][0]["submit_us"]["p99"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_played_is_2_and_what_cannot_be_written_is_3() {
    let env = TestEnv::without_base();
    env.write("bad", "{\"event\":\"client\",\"client\":\"a\",\"rate\":1}\n{\"event\":\"job\",\"at_s\":\"soon\"}\n");
    let mut told = String::new();
    for (code, arguments) in [
        (2, &["--trace=bad"][..]),
        (2, &["--trace=missing"]),
        (2, &["--trace=src"]),
        (3, &["--jobs=1", "--write-trace=missing/trace"]),
    ] {
        let ran = env.run(&[&["simulate"], arguments].concat()).fails_with(code);
        told.push_str(&format!("$ kiln simulate {}\n{}{}", arguments.join(" "), ran.stdout, ran.told()));
    }
    insta::assert_snapshot!(told, @r#"
    $ kiln simulate --trace=bad
    error: bad:2: invalid type: string "soon", expected f64
    $ kiln simulate --trace=missing
    error: cannot read missing
      caused by: No such file or directory (os error 2)
    $ kiln simulate --trace=src
    error: cannot read src
      caused by: Is a directory (os error 21)
    $ kiln simulate --jobs=1 --write-trace=missing/trace
    error: cannot write missing/trace
      caused by: No such file or directory (os error 2)
    "#);
    for arguments in [
        &["--rates=0"][..],
        &["--urgent=2"],
        &["--zipf=-1"],
        &["--workers=0"],
        &["--capacity=0"],
        &["--span=long"],
        &["--trace=bad", "--jobs=1"],
        &["--sizes", "--trace=bad"],
        &["--policy=mine"],
    ] {
        assert_eq!(env.run(&[&["simulate"], arguments].concat()).fails_with(2).stdout, "");
    }
}

#[test]
fn the_example_of_the_help_is_a_trace() {
    let env = TestEnv::without_base();
    let help = env.run(&["simulate", "--help"]).ok().stdout;
    let example: Vec<&str> = help.lines().map(str::trim).filter(|line| line.starts_with("{\"event\"")).collect();
    assert_eq!(example.len(), 5, "{help}");
    fs::write(env.at("trace"), example.join("\n")).unwrap();
    let ran = env.run(&["simulate", "--trace=trace"]).ok();
    assert!(
        ran.stdout.starts_with("2 jobs of 2 clients, with 1 hints, on 1 workers that do 4 at once\n"),
        "{}",
        ran.stdout
    );
}
