//! What came of all jobs, as it is seen from outside: by their clients, and by the marks that they made.

use std::collections::HashMap;

use kiln_testkit::Lan;

use super::{Submitted, client};
use crate::env::{Ran, TestEnv};
use crate::marked::marks;

/// What there was to count.
#[derive(Default, Debug)]
pub(super) struct Count {
    pub(super) succeeded: usize,
    failed_as_meant: usize,
    refused: usize,
    lost_workers: usize,
}

/// Asks for something of a job until the scheduler is there, and says it.
fn ask(env: &TestEnv, lan: &Lan, what: &str, id: &str) -> Ran {
    loop {
        let ran = client(env, lan, &env.kiln(&["job", "-c", "caps/submit-alice.cap", what, id]));
        if !(ran.code == 3 && ran.stderr.contains("cannot connect")) {
            return ran;
        }
    }
}

/// Checks what came of all jobs.
pub(super) fn check(env: &TestEnv, lan: &Lan, all: Vec<Submitted>) -> Count {
    let mut count = Count::default();
    let mut wrong = Vec::new();
    let mut known = HashMap::new();
    for submitted in all {
        let is_refused = submitted.is_refused();
        let Submitted { job, ran, detached } = submitted;
        if is_refused {
            count.refused += 1;
            // Whoever left it to itself may have been cut off before the answer came.
            known.insert(job.name.clone(), detached && !ran.stderr.contains("cannot connect"));
            continue;
        }
        known.insert(job.name.clone(), true);
        let (log, code, stdout) = match detached {
            false => {
                let result = format!("Result: \"of {}\"\n", job.name);
                let log = ran.stdout.strip_suffix(&result).unwrap_or(&ran.stdout).to_owned();
                (log, ran.code, ran.stdout)
            }
            true => {
                let id = ran.stdout.trim();
                let log = ask(env, lan, "log", id).stdout;
                let ran = ask(env, lan, "wait", id);
                (log, ran.code, ran.stdout)
            }
        };
        match (job.status, code) {
            (0, 0) if stdout.ends_with(&format!("Result: \"of {}\"\n", job.name)) => count.succeeded += 1,
            (1, 1) => count.failed_as_meant += 1,
            _ => wrong.push(format!("{job:?} ended with {code}: {}{stdout}", ran.stderr)),
        }
        match job.check_log(&log) {
            Ok(losses) => count.lost_workers += losses,
            Err(error) => wrong.push(error),
        }
    }
    let marks = marks(env);
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut seen = HashMap::new();
    for (index, mark) in marks.iter().enumerate() {
        match mark.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["begin", job, worker] => {
                if seen.contains_key(job) {
                    wrong.push(format!("{job} was begun on {worker} after its client had its end"));
                }
                if known.get(job) != Some(&true) {
                    wrong.push(format!(
                        "{job} was begun on {worker}, and its client had been told that it was not submitted"
                    ));
                }
                if let Some((since, before)) = begun.insert(job, (index, worker)) {
                    let is_lost = |at: usize, mark: &[String]| match mark[0].as_str() {
                        "killed" => at > since && mark[1] == before,
                        "gone" => mark[1] == before,
                        _ => false,
                    };
                    if !marks[..index].iter().enumerate().any(|(at, mark)| is_lost(at, mark)) {
                        wrong.push(format!("{job} was begun on {worker} though {before} was not lost"));
                    }
                }
            }
            ["seen", job] => _ = seen.insert(job, ()),
            _ => {}
        }
    }
    println!("{} jobs were begun, {} times", begun.len(), marks.iter().filter(|mark| mark[0] == "begin").count());
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    count
}
