//! Files that are not what the store wrote: a clear error or recovery, never a panic.

use std::error::Error;
use std::fs;

use kiln_store::{Limits, Store, StoreError};
use kiln_testkit::{Need, need};

use crate::fixture::{TempStore, begin, description, id, location, make, names, open, view};

const GARBAGE: [&[u8]; 4] = [b"", b"{", b"\xff\0\xfe", b"null"];

#[test]
fn a_result_without_a_description_is_absent_and_can_be_made_again() {
    need!(Need::Root);
    for garbage in GARBAGE {
        let store = TempStore::new();
        let base = make(&store, 1, None);
        drop(make(&store, 2, Some(&make(&store, 3, Some(&base)))));
        fs::write(store.path().join(format!("result/{}/meta.json", id(3))), garbage).expect("writable");
        assert!(store.lookup(&id(3)).expect("readable").is_none());
        assert_eq!(names(&view(&store, &make(&store, 3, Some(&base))).path()), ["1", "3"]);
        // What stood on the damaged one is gone with it.
        assert!(store.lookup(&id(2)).expect("readable").is_none());
        assert_eq!(store.list().expect("readable").len(), 2);
    }
}

#[test]
fn a_damaged_result_is_listed_and_can_be_removed() {
    need!(Need::Root);
    let store = TempStore::new();
    for number in [1, 2] {
        drop(make(&store, number, None));
        fs::write(store.path().join(format!("result/{}/meta.json", id(number))), "?").expect("writable");
    }
    // Found by whoever reads it, and else when the index is made anew.
    assert!(store.lookup(&id(1)).expect("readable").is_none());
    assert_eq!(store.list().expect("readable").iter().filter(|result| result.summary == "(damaged)").count(), 1);
    assert_eq!(store.rebuild_index().expect("readable"), 2);
    assert_eq!(store.list().expect("readable").iter().filter(|result| result.summary == "(damaged)").count(), 2);
    store.remove(&id(1), false).expect("nobody uses it");
    let limits = Limits { max_items: Some(0), ..Limits::default() };
    assert_eq!(store.prune(&limits, std::time::SystemTime::now(), false).expect("it prunes").removed.len(), 1);
    assert_eq!(names(&store.path().join("result")), [""; 0]);
}

#[test]
fn a_damaged_chain_is_an_error_that_names_it() {
    need!(Need::Root);
    for garbage in GARBAGE.into_iter().chain([&b"1 result/../../etc\nx"[..]]) {
        let store = TempStore::new();
        let base = make(&store, 1, None);
        fs::write(store.path().join(format!("result/{}/chain", id(1))), garbage).expect("writable");
        let lease = store.lease(&id(2)).expect("a lease").expect("it is free");
        let error = store.begin(lease, Some(base)).expect_err("no layers");
        assert!(error.to_string().contains(&id(1).to_string()), "{error}");
        assert!(error.source().is_some());
        assert_eq!(names(&store.path().join("draft")), [""; 0]);
        store.remove(&id(1), false).expect("nobody uses it");
    }
}

#[test]
fn a_lost_or_damaged_index_is_made_anew() {
    need!(Need::Root);
    for garbage in [b"".as_slice(), b"not a database, but long enough to be one".repeat(100).as_slice()] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = open(dir.path());
        let base = make(&store, 1, None);
        make(&store, 2, Some(&base));
        assert_eq!(store.list().expect("readable").len(), 2);
        store.remember("question", "answer").expect("writable");
        drop((store, base));
        fs::remove_file(dir.path().join("state/index.sqlite-wal")).expect("it is there");
        fs::write(dir.path().join("state/index.sqlite"), garbage).expect("writable");
        let store = open(dir.path());
        let listed = store.list().expect("readable");
        assert_eq!(listed.iter().filter(|result| result.parent == Some(id(1))).count(), 1);
        assert_eq!(store.recall("question").expect("readable"), None);
        store.remember("question", "answer").expect("writable");
    }
}

#[test]
fn a_stale_index_is_put_right() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    assert_eq!(store.list().expect("readable").len(), 2);
    fs::remove_dir_all(store.path().join(format!("result/{}", id(2)))).expect("it is there");
    make(&store, 3, Some(&base));
    let ids: Vec<_> = store.list().expect("readable").into_iter().map(|result| result.id).collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.contains(&id(1)) && ids.contains(&id(3)));
    // Of a result made again under its id, nothing old is told.
    store.remove(&id(3), false).expect("nobody uses it");
    let draft = begin(&store, 3, Some(&base));
    store.commit(draft, description("made again")).expect("it commits");
    assert!(store.list().expect("readable").iter().any(|result| result.summary == "made again"));
}

#[test]
fn a_store_of_another_format_is_refused() {
    need!(Need::Root);
    for format in [&b"kiln-store 99\n"[..], b"", b"\xff"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(open(dir.path()));
        fs::write(dir.path().join("state/format"), format).expect("writable");
        let error = Store::open(&location(dir.path())).expect_err("unknown");
        assert!(matches!(&error, StoreError::Format { found, .. } if found.contains("format")), "{error}");
    }
}

#[test]
fn a_damaged_failure_is_an_error_and_can_be_forgotten() {
    need!(Need::Root);
    let store = TempStore::new();
    store.fail(begin(&store, 1, None), description("no")).expect("it is kept");
    fs::write(store.path().join(format!("failed/{}/meta.json", id(1))), "{}").expect("writable");
    assert!(matches!(store.failure(&id(1)), Err(StoreError::Meta { .. })));
    store.forget_failure(&id(1)).expect("it goes");
    assert!(store.failure(&id(1)).expect("readable").is_none());
}
