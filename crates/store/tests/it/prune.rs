//! Making room: what goes, what stays, and who is in the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use kiln_store::{Id, Limits, Pruned, Store, StoreError};
use kiln_testkit::{Need, need};

use crate::fixture::{Helper, TempStore, begin, commit, id, make, view};

fn prune(store: &Store, limits: Limits) -> Pruned {
    store.prune(&limits, SystemTime::now(), false).expect("it prunes")
}

fn at_most(items: usize) -> Limits {
    Limits { max_items: Some(items), ..Limits::default() }
}

fn removed(pruned: &Pruned) -> Vec<Id> {
    pruned.removed.iter().map(|result| result.id).collect()
}

#[test]
fn what_was_used_longest_ago_goes_first_and_children_before_parents() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let old = make(&store, 2, Some(&base));
    make(&store, 3, Some(&old));
    make(&store, 4, Some(&base));
    drop((base, old));
    // A use makes it young again.
    store.lookup(&id(3)).expect("readable");
    assert_eq!(removed(&prune(&store, at_most(3))), [id(4)]);
    assert_eq!(removed(&prune(&store, at_most(0))), [id(3), id(2), id(1)]);
    assert!(prune(&store, at_most(0)).removed.is_empty());
}

#[test]
fn a_dry_run_says_what_would_go_and_takes_nothing() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    let used = make(&store, 3, None);
    drop(base);
    let dry = store.prune(&at_most(0), SystemTime::now(), true).expect("it looks");
    assert_eq!((removed(&dry), dry.in_use), (vec![id(2), id(1)], 1));
    assert_eq!(store.list().expect("readable").len(), 3);
    assert_eq!(removed(&prune(&store, at_most(0))), removed(&dry));
    drop(used);
}

#[test]
fn what_is_in_use_stays_with_its_parents() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    drop(make(&store, 2, Some(&base)));
    drop(base);
    let used = store.lookup(&id(2)).expect("readable").expect("it is there");
    let pruned = prune(&store, at_most(0));
    assert_eq!((pruned.removed.len(), pruned.in_use), (0, 1));
    assert!(matches!(store.remove(&id(2), false), Err(StoreError::InUse(_))));
    assert!(matches!(store.remove(&id(1), true), Err(StoreError::InUse(_))));
    drop(used);
    assert_eq!(prune(&store, at_most(0)).removed.len(), 2);
}

#[test]
fn what_another_process_uses_stays_until_it_dies() {
    need!(Need::Root);
    let store = TempStore::new();
    drop(make(&store, 1, None));
    let mut helper = Helper::start("use", store.path());
    assert_eq!(helper.hear().as_deref(), Some("using"));
    assert_eq!(prune(&store, at_most(0)).in_use, 1);
    helper.kill();
    assert_eq!(prune(&store, at_most(0)).removed.len(), 1);
}

#[test]
fn what_a_draft_stands_on_stays() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let draft = begin(&store, 2, Some(&base));
    drop(base);
    assert_eq!(prune(&store, at_most(0)).in_use, 1);
    let child = commit(&store, draft);
    assert_eq!(crate::fixture::names(&view(&store, &child).path()), ["1"]);
}

#[test]
fn limits_of_size_age_and_free_space_hold() {
    need!(Need::Root);
    let store = TempStore::new();
    for number in 1..=4 {
        let draft = begin(&store, number, None);
        std::fs::write(kiln_testkit::Tree::mount(draft.root()).join("file"), vec![1; 1 << 20]).expect("writable");
        drop(commit(&store, draft));
    }
    assert!(prune(&store, Limits::default()).removed.is_empty());
    let limits = Limits { max_size_bytes: Some(5 << 19), ..Limits::default() };
    let pruned = prune(&store, limits);
    assert_eq!(removed(&pruned), [id(1), id(2)]);
    assert!(pruned.freed_bytes >= 2 << 20);
    let limits = Limits { max_age: Some(Duration::from_secs(3600)), ..Limits::default() };
    assert!(prune(&store, limits).removed.is_empty());
    let later = SystemTime::now() + Duration::from_secs(7200);
    assert_eq!(store.prune(&limits, later, true).expect("it looks").removed.len(), 2);
    let enough = Limits { keep_free_bytes: Some(1), ..Limits::default() };
    assert!(prune(&store, enough).removed.is_empty());
    let never = Limits { keep_free_bytes: Some(u64::MAX), ..Limits::default() };
    assert_eq!(prune(&store, never).removed.len(), 2);
}

#[test]
fn a_parent_is_removed_with_its_children_or_not_at_all() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let middle = make(&store, 2, Some(&base));
    make(&store, 3, Some(&middle));
    make(&store, 4, Some(&base));
    drop((base, middle));
    assert!(matches!(store.remove(&id(1), false), Err(StoreError::HasChildren { children: 3, .. })));
    assert!(matches!(store.remove(&id(9), true), Err(StoreError::NoSuchResult(_))));
    let pruned = store.remove(&id(2), true).expect("nobody uses it");
    assert_eq!(removed(&pruned), [id(3), id(2)]);
    assert_eq!(store.remove(&id(1), true).expect("nobody uses it").removed.len(), 2);
    assert!(store.list().expect("readable").is_empty());
}

#[test]
fn a_parent_is_never_pruned_under_a_child_that_is_being_made() {
    need!(Need::Root);
    let store = Arc::new(TempStore::new());
    let is_done = Arc::new(AtomicBool::new(false));
    let pruners: Vec<_> = (0..2)
        .map(|_| {
            let (store, is_done) = (Arc::clone(&store), Arc::clone(&is_done));
            thread::spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    prune(&store, at_most(0));
                }
            })
        })
        .collect();
    let builders: Vec<_> = (0..2_u64)
        .map(|builder| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                let mut survived = 0;
                for number in 0..60 {
                    let number = 1000 * (builder + 1) + 2 * number;
                    drop(make(&store, number, None));
                    let Some(base) = store.lookup(&id(number)).expect("readable") else { continue };
                    drop(make(&store, number + 1, Some(&Arc::new(base))));
                    // It may be gone by now; while it is there, so is all that it stands on.
                    if let Some(child) = store.lookup(&id(number + 1)).expect("readable") {
                        let names = crate::fixture::names(&view(&store, &child).path());
                        assert_eq!(names, [number.to_string(), (number + 1).to_string()]);
                        survived += 1;
                    }
                }
                survived
            })
        })
        .collect();
    for builder in builders {
        builder.join().expect("no panic");
    }
    is_done.store(true, Ordering::Relaxed);
    for pruner in pruners {
        pruner.join().expect("no panic");
    }
}

/// `cargo test --release -p kiln-store --test it ten_thousand -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn ten_thousand_results_are_opened_listed_and_pruned() {
    need!(Need::Root);
    let store = TempStore::new();
    drop(make(&store, 0, None));
    let result = |number| store.path().join(format!("result/{}", id(number)));
    for number in 1..10_000 {
        std::fs::create_dir(result(number)).expect("writable");
        for file in ["meta.json", "log", "chain"] {
            std::fs::copy(result(0).join(file), result(number).join(file)).expect("writable");
        }
    }
    let measure = |what: &str, act: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        act();
        println!("{what}: {:?}", start.elapsed());
    };
    measure("open", &mut || drop(crate::fixture::open(store.path())));
    measure("list, without an index", &mut || assert_eq!(store.list().expect("readable").len(), 10_000));
    measure("list", &mut || assert_eq!(store.list().expect("readable").len(), 10_000));
    measure("prune of 9 000", &mut || assert_eq!(prune(&store, at_most(1_000)).removed.len(), 9_000));
}
