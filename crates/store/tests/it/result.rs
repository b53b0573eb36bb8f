//! Results: begun, committed, looked up, failed.

use std::fs;
use std::io::{Read, Write};

use kiln_store::{State, StoreError};
use kiln_testkit::{Need, need};

use crate::fixture::{TempStore, begin, commit, description, id, make, names, view};

#[test]
fn a_result_is_found_with_its_tree_log_and_description() {
    need!(Need::Root);
    let store = TempStore::new();
    let draft = begin(&store, 1, None);
    (&**draft.log()).write_all(b"hello\n").expect("a log");
    assert!(store.lookup(&id(1)).expect("readable").is_none(), "a draft is invisible");
    let made = commit(&store, draft);
    let found = store.lookup(&id(1)).expect("readable").expect("committed");
    assert_eq!((found.id(), &*found.meta().summary), (made.id(), &*made.meta().summary));
    let mut log = String::new();
    found.log().expect("a log").read_to_string(&mut log).expect("text");
    assert_eq!(log, "hello\n");
    assert_eq!(names(&store.path().join("draft")), [""; 0]);
    assert_eq!(names(&store.path().join("state/leases")), [""; 0]);
}

#[test]
fn a_child_shows_what_its_parents_wrote() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let middle = make(&store, 2, Some(&base));
    let top = make(&store, 3, Some(&middle));
    assert_eq!(names(&view(&store, &top).path()), ["1", "2", "3"]);
    assert_eq!(names(&view(&store, &base).path()), ["1"]);
    assert_eq!(top.meta().parent, Some(id(2)));
}

#[test]
fn a_discarded_draft_leaves_nothing() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    store.discard(begin(&store, 2, Some(&base))).expect("it is ours");
    assert!(store.lookup(&id(2)).expect("readable").is_none());
    for place in ["draft", "trash", "state/leases"] {
        assert_eq!(names(&store.path().join(place)), [""; 0], "{place}");
    }
    make(&store, 2, Some(&base));
}

#[test]
fn a_failure_keeps_its_log_until_the_step_succeeds() {
    need!(Need::Root);
    let store = TempStore::new();
    for text in ["first\n", "second\n"] {
        let draft = begin(&store, 1, None);
        (&**draft.log()).write_all(text.as_bytes()).expect("a log");
        store.fail(draft, description("went wrong")).expect("it is kept");
    }
    assert_eq!(store.find(&id(1).short()).expect("kept").state, State::Failed);
    let (meta, mut log) = store.failure(&id(1)).expect("readable").expect("kept");
    let mut text = String::new();
    log.read_to_string(&mut text).expect("text");
    assert_eq!((&*meta.summary, &*text), ("went wrong", "second\n"));
    assert_eq!(names(&store.path().join("draft")), [""; 0]);
    make(&store, 1, None);
    assert!(store.failure(&id(1)).expect("readable").is_none());
    assert_eq!(names(&store.path().join("failed")), [""; 0]);
}

#[test]
fn only_the_last_hundred_failures_are_kept() {
    need!(Need::Root);
    let store = TempStore::new();
    for number in 0..105 {
        store.fail(begin(&store, number, None), description("no")).expect("it is kept");
    }
    assert_eq!(names(&store.path().join("failed")).len(), 100);
    assert!(store.failure(&id(104)).expect("readable").is_some());
}

#[test]
fn the_start_of_an_id_finds_it_unless_several_have_it() {
    need!(Need::Root);
    let store = TempStore::new();
    make(&store, 0x1100_0000_0000_0001, None);
    make(&store, 0x1200_0000_0000_0001, None);
    let draft = begin(&store, 0x2100_0000_0000_0001, None);
    assert_eq!(store.find("12").expect("one").state, State::Result);
    assert_eq!(store.find("2").expect("one").state, State::Running);
    assert!(matches!(store.find("1"), Err(StoreError::Ambiguous { ids, .. }) if ids.len() == 2));
    assert!(matches!(store.find("3"), Err(StoreError::NoSuchResult(_))));
    assert!(matches!(store.find("../"), Err(StoreError::NoSuchResult(_))));
    store.discard(draft).expect("it is ours");
}

#[test]
fn facts_and_digests_are_remembered() {
    need!(Need::Root);
    let store = TempStore::new();
    let file = kiln_store::FileVersion { dev: 1, ino: u64::MAX, size_bytes: 3, mtime_ns: -4, ctime_ns: 5 };
    assert_eq!(store.known_digests(&[file]).expect("readable"), [None]);
    store.remember_digests(&[(file, [7; 32])]).expect("writable");
    store.remember("question", "answer").expect("writable");
    let other = crate::fixture::open(store.path());
    let younger = kiln_store::FileVersion { ctime_ns: 6, ..file };
    assert_eq!(other.known_digests(&[younger, file]).expect("readable"), [None, Some([7; 32])]);
    assert_eq!(other.recall("question").expect("readable").as_deref(), Some("answer"));
    assert_eq!(other.recall("another").expect("readable"), None);
}

#[test]
fn strangers_reach_no_tree() {
    need!(Need::Root);
    use std::os::unix::fs::PermissionsExt;
    let dir = crate::temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let store = crate::fixture::open(dir.path());
    make(&store, 1, None);
    for place in names(dir.path()) {
        let mode = fs::metadata(dir.path().join(&place)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{place}");
    }
}
