//! What is kept, by either engine.

mod both;
mod copied;
mod shared;

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;
use crate::pool::Effect;

impl State {
    fn add_client(&mut self, name: &BStr, id: &[u8]) -> Result<(), StateError> {
        self.apply(&[Change::AddClient { name: name.into(), id: id.into() }], true).map(drop)
    }

    fn remove_client(&mut self, name: &BStr) -> Result<bool, StateError> {
        Ok(self.apply(&[Change::RemoveClient { name: name.into() }], true)? == [true])
    }

    fn save(&mut self, pool: &BStr, effects: &[Effect]) -> Result<(), StateError> {
        let change = |effect: &Effect| Change::Pool { pool: pool.into(), effect: effect.clone() };
        self.apply(&effects.iter().map(change).collect::<Vec<_>>(), false).map(drop)
    }
}

fn b(text: &str) -> &BStr {
    BStr::new(text)
}

/// Returns the service id that a capability file of OCluster's ends in.
fn service_id(file: &str) -> Vec<u8> {
    let (_, id) = file.trim().rsplit_once('/').expect("a URI");
    URL_SAFE_NO_PAD.decode(id).expect("base64")
}

#[test]
fn a_state_of_oclusters_goes_on_here() {
    let directory = tempfile::tempdir().unwrap();
    let old = include_bytes!("../../tests/vectors/migration/scheduler.db");
    fs::write(directory.path().join("scheduler.db"), old).unwrap();
    let mut state = State::open(directory.path()).unwrap();
    assert_eq!(state.clients().unwrap(), ["alice", "carol"]);
    let alice = service_id(include_str!("../../tests/vectors/migration/submit-alice.cap"));
    let carol = service_id(include_str!("../../tests/vectors/migration/submit-carol.cap"));
    assert_eq!(state.find_client(&alice).unwrap(), Some("alice".into()));
    assert_eq!(state.find_client(&carol).unwrap(), Some("carol".into()));
    let saved = Saved {
        workers: vec![("w1".into(), false)],
        hints: vec![("h1".into(), "w1".into()), ("".into(), "w1".into())],
        rates: vec![],
    };
    assert_eq!(state.load(b("linux-x86_64")).unwrap(), saved);
    // What we write has the types that they expect: they stop at others.
    state.save(b("linux-x86_64"), &[Effect::SaveWorker { worker: "w1".into(), paused: true }]).unwrap();
    state.save(b("linux-x86_64"), &[Effect::SaveHint { hint: "h".into(), worker: "w1".into() }]).unwrap();
    state.save(b("linux-x86_64"), &[Effect::SaveRate { client: "alice".into(), rate: Some(2.0) }]).unwrap();
    state.add_client(b("bob"), b"id").unwrap();
    for (query, types) in [
        ("SELECT typeof(id) || typeof(paused) || paused FROM workers", "textinteger1"),
        ("SELECT DISTINCT typeof(pool) || typeof(cache_hint) || typeof(worker) FROM cached", "texttexttext"),
        ("SELECT typeof(user) || typeof(rate) FROM pool_user_rate", "textreal"),
        ("SELECT DISTINCT typeof(hash) || typeof(type) || typeof(args) FROM sturdy_refs", "blobtextblob"),
    ] {
        let found = state.database.rows(query, &[]).unwrap();
        let found: Vec<_> = found.iter().map(|row| row.name(0).unwrap()).collect();
        assert_eq!(found, [types], "{query}");
    }
    let schema = "SELECT name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
    let tables = state.database.rows(schema, &[]).unwrap();
    let tables: Vec<_> = tables.iter().map(|row| row.name(0).unwrap()).collect();
    assert_eq!(
        tables,
        [
            "cached",
            "kiln_jobs",
            "kiln_jobs_client",
            "kiln_jobs_ended",
            "kiln_schema",
            "pool_user_rate",
            "sturdy_refs",
            "sturdy_refs_rev",
            "workers"
        ]
    );
}

#[test]
fn two_schedulers_do_not_share_a_state() {
    let directory = tempfile::tempdir().unwrap();
    let first = State::open(directory.path()).unwrap();
    let error = State::open(directory.path()).unwrap_err().to_string();
    let pid = std::process::id();
    let said = format!("the state {} is in use by another scheduler, process {pid}", directory.path().display());
    assert_eq!(error, said);
    drop(first);
    State::open(directory.path()).unwrap();
}

#[test]
fn what_is_no_database_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scheduler.db");
    fs::write(&path, "something else, long enough to be looked at").unwrap();
    let error = State::open(directory.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot open the scheduler's state {}", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "something else, long enough to be looked at");
    let error = State::open(&directory.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, StateError::Lock { .. }), "{error:?}");
}
