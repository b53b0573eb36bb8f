//! What either engine does.

use std::fs;
use std::path::PathBuf;

use bstr::{BString, ByteSlice as _};
use kiln_api::{Action, JobDescription, JobKey};
use tempfile::TempDir;

use super::shared::{Server, acquire, release};
use super::*;
use crate::state::lease::Lease;

/// What a scheduler is started with, again and again.
struct Fixture {
    directory: TempDir,
    shared: Option<Server>,
    held: Option<Lease>,
}

impl Fixture {
    fn new(shared: Option<Server>) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), shared, held: None }
    }

    fn open(&mut self) -> State {
        let Some(server) = &self.shared else { return State::open(self.directory.path()).unwrap() };
        // As when a scheduler ends: the next one has it at once.
        if let Some(lease) = self.held.take() {
            release(lease);
        }
        let lease = self.held.insert(acquire(server, "a test"));
        State::open_shared(lease.tenure()).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().path()).collect()
    }
}

#[test]
fn sqlite_keeps_what_a_scheduler_wants_kept() {
    for check in ALL {
        check(&mut Fixture::new(None));
    }
}

#[test]
fn postgresql_keeps_what_a_scheduler_wants_kept() {
    kiln_testkit::need!(kiln_testkit::Need::Postgres);
    for check in ALL {
        check(&mut Fixture::new(Some(Server::start())));
    }
}

const ALL: [fn(&mut Fixture); 5] = [
    clients_are_found_by_their_service_id_also_after_a_restart,
    what_a_pool_wants_kept_is_kept_for_that_pool,
    the_latest_hints_of_each_pool_are_kept,
    a_job_is_kept_from_its_submission_until_it_is_forgotten,
    what_fails_changes_nothing,
];

fn clients_are_found_by_their_service_id_also_after_a_restart(fixture: &mut Fixture) {
    let mut state = fixture.open();
    state.add_client(b("bob"), b"\xff\x00id").unwrap();
    state.add_client(b("alice"), b"another").unwrap();
    let again = state.add_client(b("bob"), b"other").unwrap_err();
    assert_eq!(again.to_string(), "Client \"bob\" already registered!");
    assert_eq!(state.find_client(b"other").unwrap(), None);
    drop(state);
    let mut state = fixture.open();
    assert_eq!(state.find_client(b"\xff\x00id").unwrap(), Some("bob".into()));
    assert_eq!(state.find_client(b"").unwrap(), None);
    assert_eq!(state.clients().unwrap(), ["alice", "bob"]);
    assert!(state.remove_client(b("bob")).unwrap());
    assert!(!state.remove_client(b("bob")).unwrap());
    assert_eq!(state.find_client(b"\xff\x00id").unwrap(), None);
    // The id itself is in no file: neither the database nor its log.
    for file in fixture.files() {
        assert!(fs::read(file).unwrap().find("another").is_none());
    }
}

fn what_a_pool_wants_kept_is_kept_for_that_pool(fixture: &mut Fixture) {
    let mut state = fixture.open();
    let odd = BString::from(b"\xff'\0".as_slice());
    let hint = |hint: &BString, worker: &str| Effect::SaveHint { hint: hint.clone(), worker: worker.into() };
    let worker = |worker: &str, paused| Effect::SaveWorker { worker: worker.into(), paused };
    let rate = |client: &str, rate| Effect::SaveRate { client: client.into(), rate };
    let effects = [
        hint(&odd, "w1"),
        hint(&"a".into(), "w1"),
        hint(&odd, "w2"),
        // The same again: now it is the latest.
        hint(&odd, "w1"),
        worker("w1", false),
        worker("w2", false),
        worker("w2", true),
        worker("w3", true),
        Effect::ForgetWorker { worker: "w3".into() },
        rate("bob", Some(2.5)),
        rate("alice", Some(1.0)),
        rate("alice", None),
    ];
    state.save(b("p"), &effects).unwrap();
    state.save(b("q"), &[rate("bob", Some(7.0))]).unwrap();
    drop(state);
    let mut state = fixture.open();
    let saved = Saved {
        workers: vec![("w1".into(), false), ("w2".into(), true)],
        hints: vec![("a".into(), "w1".into()), (odd.clone(), "w2".into()), (odd, "w1".into())],
        rates: vec![("bob".into(), 2.5)],
    };
    assert_eq!(state.load(b("p")).unwrap(), saved);
    assert_eq!(state.load(b("nope")).unwrap(), Saved::default());
    state.remove_client(b("bob")).unwrap();
    assert_eq!((state.load(b("p")).unwrap().rates, state.load(b("q")).unwrap().rates), (vec![], vec![]));
}

fn the_latest_hints_of_each_pool_are_kept(fixture: &mut Fixture) {
    let mut state = fixture.open();
    let ran = |hint: &str| Effect::SaveHint { hint: hint.into(), worker: "w".into() };
    let all: Vec<_> = (0..12).map(|number| ran(&format!("h{number:02}"))).collect();
    state.save(b("linux"), &all).unwrap();
    state.save(b("arm"), &all).unwrap();
    // As if they had run on other days than those before and after them.
    for (hint, day) in [("h00", "2999-01-01"), ("h11", "2020-01-01")] {
        let row = [Parameter::text(day), Parameter::text(hint)];
        state.database.execute("UPDATE cached SET created = $1 WHERE cache_hint = $2", &row).unwrap();
    }
    let prune = |most| [Change::PruneHints { pool: "linux".into(), most }];
    // Not for a few.
    assert_eq!(state.apply(&prune(10), false).unwrap(), [false]);
    assert_eq!(state.apply(&prune(5), false).unwrap(), [true]);
    let mut hints = |pool| -> Vec<_> { state.load(b(pool)).unwrap().hints.into_iter().map(|(hint, _)| hint).collect() };
    assert_eq!(hints("linux"), ["h07", "h08", "h09", "h10", "h00"]);
    assert_eq!(hints("arm").len(), 12);
}

pub(super) fn job(number: u8, client: &str) -> KeptJob {
    KeptJob {
        key: JobKey([number; 10]),
        pool: "p".into(),
        client: client.into(),
        urgent: number.is_multiple_of(2),
        detached: !number.is_multiple_of(2),
        submitted: 1_000 + i64::from(number),
        description: Some(JobDescription {
            action: Action::OBuilder("((from x))".into()),
            cache_hint: "hint".into(),
            repository: "".into(),
            commits: Vec::new(),
            secrets: Vec::new(),
        }),
        secrets: Secrets::LeftOut,
        runs: 0,
        worker: None,
        log_start: 0,
        outcome: None,
    }
}

fn a_job_is_kept_from_its_submission_until_it_is_forgotten(fixture: &mut Fixture) {
    let mut state = fixture.open();
    let odd = BString::from(b"w\xff\0".as_slice());
    let submit = |job: &KeptJob| Change::Submit(Box::new(job.clone()));
    let all: Vec<_> = (1..=4).map(|number| job(number, if number < 4 { "bob" } else { "carol" })).collect();
    let changes: Vec<_> = all.iter().map(submit).collect();
    assert_eq!(state.apply(&changes, false).unwrap(), [true; 4]);
    // The same again changes nothing.
    assert_eq!(state.apply(&[submit(&all[0])], true).unwrap(), [false]);
    let begin = |run| Change::Begin { job: all[0].key, run, worker: odd.clone(), log_start: 7 };
    state.apply(&[begin(1), begin(2)], false).unwrap();
    drop(state);

    let mut state = fixture.open();
    let begun = KeptJob { runs: 2, worker: Some(odd), log_start: 7, ..all[0].clone() };
    assert_eq!(state.unfinished().unwrap(), [&begun, &all[1], &all[2], &all[3]].map(KeptJob::clone));
    assert_eq!(state.find_job(all[2].key).unwrap(), Some(all[2].clone()));
    let end = |job: &KeptJob, outcome, ended| Change::End { job: job.key, outcome, ended };
    let changes = [
        end(&all[0], Outcome::Succeeded("x".repeat(2_000).into()), 2_000),
        end(&all[1], Outcome::Failed("why".into()), 1_999),
        // It has ended: that stays.
        end(&all[1], Outcome::Abandoned("again".into()), 3_000),
        Change::Forget { job: all[2].key },
    ];
    assert_eq!(state.apply(&changes, true).unwrap(), [true, true, false, false]);
    state.flusher().unwrap().flush().unwrap();
    let found = state.find_job(all[0].key).unwrap().unwrap();
    assert_eq!((found.description, found.outcome), (None, Some(Outcome::Succeeded("x".repeat(2_000).into()))));
    // What waits, then what ended last; of results the beginning.
    let of = state.jobs_of(b("bob"), 10).unwrap();
    assert_eq!(of.iter().map(|job| job.key).collect::<Vec<_>>(), [all[2].key, all[0].key, all[1].key]);
    assert_eq!(of[1].outcome, Some(Outcome::Succeeded("x".repeat(1_000).into())));
    assert_eq!(state.jobs_of(b("bob"), 2).unwrap().len(), 2);
    assert_eq!(state.ended_before(2_000, 10).unwrap(), [all[1].key]);
    assert_eq!(state.ended_before(9_000, 1).unwrap(), [all[1].key]);
    assert_eq!(state.apply(&[Change::Forget { job: all[1].key }], false).unwrap(), [true]);
    assert_eq!(state.find_job(all[1].key).unwrap(), None);
}

fn what_fails_changes_nothing(fixture: &mut Fixture) {
    let mut state = fixture.open();
    let client = |name: &str| Change::AddClient { name: name.into(), id: name.into() };
    let error = state.apply(&[client("bob"), client("carol"), client("bob")], true).unwrap_err();
    assert_eq!(error.to_string(), "Client \"bob\" already registered!");
    assert_eq!(state.clients().unwrap(), Vec::<BString>::new());
}
