//! A state that goes from SQLite to PostgreSQL.

use std::fs;
use std::path::Path;

use kiln_api::JobKey;

use super::shared::{Server, acquire, release};
use super::*;
use crate::state::copy::{Copied, CopyError, copy};
use crate::state::logs::PART;

/// Copies into the server's database, as the program does.
fn copy_to(server: &Server, from: &Path) -> Result<Copied, CopyError> {
    let lease = acquire(server, "copy");
    let copied = copy(from, lease.tenure(), &mut |_| {});
    release(lease);
    copied
}

/// Makes what a scheduler leaves that was used for a while. Returns the jobs, the first one first, and the log of the first.
fn used(directory: &Path) -> (Vec<JobKey>, Vec<u8>) {
    let mut state = State::open(directory).unwrap();
    state.add_client(b("alice"), b"1").unwrap();
    state.add_client(b("bob"), b"2").unwrap();
    let odd = BString::from(b"h\xff\0".as_slice());
    let ran = |hint: &BString, worker: &str| Effect::SaveHint { hint: hint.clone(), worker: worker.into() };
    let effects = [
        ran(&"b".into(), "w1"),
        ran(&odd, "w2"),
        ran(&"a".into(), "w1"),
        Effect::SaveWorker { worker: "w1".into(), paused: false },
        Effect::SaveWorker { worker: "w2".into(), paused: true },
        Effect::SaveRate { client: "bob".into(), rate: Some(2.5) },
    ];
    state.save(b("p"), &effects).unwrap();
    // Not in the order of their keys.
    let jobs: Vec<_> = [3, 1, 2].into_iter().map(|number| both::job(number, "bob")).collect();
    let keys: Vec<_> = jobs.iter().map(|job| job.key).collect();
    let mut changes: Vec<_> = jobs.into_iter().map(|job| Change::Submit(Box::new(job))).collect();
    let begin = |job| Change::Begin { job, run: 1, worker: "w1".into(), log_start: 7 };
    let end = Change::End { job: keys[1], outcome: Outcome::Succeeded("fine".into()), ended: 2_000 };
    changes.extend([begin(keys[0]), begin(keys[1]), end]);
    state.apply(&changes, true).unwrap();
    let logs = directory.join("logs");
    fs::create_dir(&logs).unwrap();
    // Longer than what is copied at once, and with something else in each place.
    let long: Vec<u8> = (0..40 * PART / 8 + 1).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
    fs::write(logs.join(keys[0].to_string()), &long).unwrap();
    fs::write(logs.join(keys[1].to_string()), "short\n").unwrap();
    // Of a job that was forgotten.
    fs::write(logs.join(JobKey([9; 10]).to_string()), "stray\n").unwrap();
    (keys, long)
}

/// Returns the whole log of a job.
fn log(state: &mut State, job: JobKey) -> Vec<u8> {
    let mut log = Vec::new();
    loop {
        let parts = state.log_parts(job, log.len() as u64).unwrap();
        if parts.is_empty() {
            return log;
        }
        log.extend(parts.concat());
    }
}

#[test]
fn all_that_a_scheduler_keeps_goes_along() {
    kiln_testkit::need!(kiln_testkit::Need::Postgres);
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let (keys, long) = used(directory.path());
    let file = directory.path().join("scheduler.db");
    let before = fs::read(&file).unwrap();
    let copied = copy_to(&server, directory.path()).unwrap();
    let log_bytes = long.len() as u64 + 6;
    let expected = Copied { clients: 2, workers: 2, rates: 1, hints: 3, jobs: 3, unfinished: 2, logs: 2, log_bytes };
    assert_eq!(copied, expected);
    // What it was copied from is as it was.
    assert!(fs::read(&file).unwrap() == before);
    assert!(fs::read(directory.path().join("logs").join(keys[0].to_string())).unwrap() == long);

    let lease = acquire(&server, "first");
    let mut to = State::open_shared(lease.tenure()).unwrap();
    let mut from = State::open(directory.path()).unwrap();
    assert_eq!(to.clients().unwrap(), ["alice", "bob"]);
    assert_eq!(to.find_client(b"2").unwrap(), Some("bob".into()));
    let saved = to.load(b("p")).unwrap();
    assert_eq!((saved.hints.len(), saved.workers.len(), saved.rates.len()), (3, 2, 1));
    assert_eq!(saved, from.load(b("p")).unwrap());
    let unfinished = to.unfinished().unwrap();
    assert_eq!(unfinished.iter().map(|job| job.key).collect::<Vec<_>>(), [keys[0], keys[2]]);
    assert_eq!(unfinished, from.unfinished().unwrap());
    for key in &keys {
        assert_eq!(to.find_job(*key).unwrap(), from.find_job(*key).unwrap());
    }
    assert!(log(&mut to, keys[0]) == long);
    assert_eq!(log(&mut to, keys[1]), b"short\n");
    // It goes on: jobs come after those that there are.
    to.apply(&[Change::Submit(Box::new(both::job(4, "bob")))], false).unwrap();
    assert_eq!(to.unfinished().unwrap().last().unwrap().key, JobKey([4; 10]));
}

#[test]
fn a_state_is_copied_whole_or_not_at_all() {
    kiln_testkit::need!(kiln_testkit::Need::Postgres);
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(copy_to(&server, directory.path()), Err(CopyError::NoDatabase(_))));
    let (keys, long) = used(directory.path());
    let running = State::open(directory.path()).unwrap();
    assert!(matches!(copy_to(&server, directory.path()), Err(CopyError::State(StateError::InUse { .. }))));
    drop(running);
    // The log of the second job cannot be read.
    let log = directory.path().join("logs").join(keys[1].to_string());
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let error = copy_to(&server, directory.path()).unwrap_err();
    assert!(matches!(&error, CopyError::Log { path, .. } if *path == log), "{error:?}");
    for table in ["sturdy_refs", "workers", "pool_user_rate", "cached", "kiln_jobs", "kiln_logs"] {
        assert_eq!(server.query(&format!("SELECT count(*) FROM {table}")), "0", "{table}");
    }
    fs::remove_dir(&log).unwrap();
    let copied = copy_to(&server, directory.path()).unwrap();
    assert_eq!((copied.jobs, copied.logs, copied.log_bytes), (3, 1, long.len() as u64));
    let error = copy_to(&server, directory.path()).unwrap_err();
    assert!(matches!(error, CopyError::NotEmpty { table: "sturdy_refs", rows: 2, .. }), "{error:?}");
}

#[test]
fn a_state_of_oclusters_is_copied_too() {
    kiln_testkit::need!(kiln_testkit::Need::Postgres);
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let old = include_bytes!("../../../tests/vectors/migration/scheduler.db");
    let file = directory.path().join("scheduler.db");
    fs::write(&file, old).unwrap();
    let copied = copy_to(&server, directory.path()).unwrap();
    assert_eq!(copied, Copied { clients: 2, workers: 1, hints: 2, ..Copied::default() });
    assert!(fs::read(&file).unwrap() == old);
    let lease = acquire(&server, "first");
    let mut to = State::open_shared(lease.tenure()).unwrap();
    let alice = service_id(include_str!("../../../tests/vectors/migration/submit-alice.cap"));
    assert_eq!(to.find_client(&alice).unwrap(), Some("alice".into()));
    let hints = to.load(b("linux-x86_64")).unwrap().hints;
    assert_eq!(hints, [("h1".into(), "w1".into()), ("".into(), "w1".into())]);
}
