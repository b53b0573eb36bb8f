//! Stores that lost a part.

use std::fs;

use kiln_store::{Kind, Location, Store, StoreError};
use kiln_testkit::{Need, need};

use crate::fixture::{TempStore, id, location, make, names, open, view};

#[test]
fn directories_and_the_index_are_made_anew() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    for place in ["draft", "trash", "state/leases", "failed"] {
        fs::remove_dir(store.path().join(place)).expect("it is empty");
    }
    fs::write(store.path().join("state/index.sqlite"), "no database").expect("writable");
    Store::open(&location(store.path())).expect_err("it is not whole");
    let repaired = Store::repair(&location(store.path())).expect("it can be");
    assert_eq!((repaired.directories.len(), repaired.wrote_format, repaired.results), (4, false, 2));
    let repaired = Store::repair(&location(store.path())).expect("it is whole");
    assert_eq!((repaired.directories.len(), repaired.drafts, repaired.trash, repaired.results), (0, 0, 0, 2));
    make(&open(store.path()), 3, Some(&base));
}

#[test]
fn a_store_copied_without_hard_links_counts_children_again() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    drop(base);
    let copied = store.path().with_extension("copied");
    let copying = std::process::Command::new("cp")
        .args(["-r", "--preserve=mode,timestamps,ownership,xattr"])
        .arg(store.path())
        .arg(&copied)
        .status();
    assert!(copying.expect("it runs").success());
    assert_eq!(Store::repair(&location(&copied)).expect("it can be").linked, 1);
    assert_eq!(Store::repair(&location(&copied)).expect("it can be").linked, 0);
    let error = open(&copied).remove(&id(1), false).expect_err("it has a child");
    assert!(matches!(error, StoreError::HasChildren { children: 1, .. }), "{error}");
}

#[test]
fn what_dead_processes_left_is_counted_and_gone() {
    need!(Need::Root);
    let store = TempStore::new();
    for place in [format!("draft/{}/layer", id(1)), "draft/cache-1/layer".to_owned(), "trash/1/x".to_owned()] {
        fs::create_dir_all(store.path().join(place)).expect("writable");
    }
    let repaired = Store::repair(&location(store.path())).expect("it can be");
    assert_eq!((repaired.drafts, repaired.trash), (2, 1));
    assert_eq!(names(&store.path().join("draft")), [""; 0]);
}

#[test]
fn a_store_whose_kind_is_lost_is_refused_until_someone_tells_it() {
    need!(Need::Root);
    let store = TempStore::new();
    make(&store, 1, None);
    let format = store.path().join("state/format");
    let was = fs::read(&format).expect("it is there");
    fs::remove_file(&format).expect("it is there");
    let auto = Location { kind: Kind::Auto, ..location(store.path()) };
    for refused in [Store::open(&auto).err(), Store::repair(&auto).err()] {
        let error = refused.expect("it is not known");
        assert!(error.to_string().contains("kiln store repair KIND:"), "{error}");
    }
    assert!(Store::open(&location(store.path())).is_err(), "not even with the kind: it could be another");
    assert!(Store::repair(&location(store.path())).expect("it can be").wrote_format);
    assert_eq!(fs::read(&format).expect("it is there"), was);
    let store = open(store.path());
    let found = store.lookup(&id(1)).expect("readable").expect("it is there");
    assert_eq!(names(&view(&store, &found).path()), ["1"]);
}

#[test]
fn a_kind_that_the_trees_are_not_of_is_not_written_down() {
    need!(Need::Root);
    let store = TempStore::new();
    make(&store, 1, None);
    fs::remove_file(store.path().join("state/format")).expect("it is there");
    fs::remove_file(store.path().join(format!("result/{}/chain", id(1)))).expect("it is there");
    Store::repair(&location(store.path())).expect_err("no tree of overlayfs");
    assert!(!store.path().join("state/format").exists());
}

#[test]
fn where_there_is_no_store_nothing_is_made() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = location(&dir.path().join("store"));
    for error in [Store::repair(&place).err(), Store::open_existing(&place).err()] {
        let error = error.expect("there is none");
        assert!(matches!(&error, StoreError::Format { found, .. } if found == "there is no store"), "{error}");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}
