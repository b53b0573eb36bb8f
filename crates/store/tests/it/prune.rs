//! Making room: what goes, what stays, and who is in the way.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use kiln_store::{Id, Limits, Pruned, Store, StoreError};
use kiln_testkit::{Need, need};

use crate::fixture::{Helper, TempStore, begin, commit, id, make, open, view};

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

#[test]
fn a_result_that_the_index_does_not_know_keeps_its_parent() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    assert_eq!(store.list().expect("readable").len(), 1);
    // As if another process had committed it, and could not write the index.
    let index = store.path().join("state/index.sqlite");
    let other = open(store.path());
    drop(make(&other, 2, Some(&base)));
    drop((base, other));
    sqlite(&index, &format!("DELETE FROM results WHERE id = x'{}'", id(2)));
    assert!(matches!(store.remove(&id(1), false), Err(StoreError::HasChildren { children: 1, .. })));
    sqlite(&index, &format!("DELETE FROM results WHERE id = x'{}'", id(2)));
    assert_eq!(removed(&prune(&store, at_most(0))), [id(2), id(1)]);
    let base = make(&store, 1, None);
    drop(make(&store, 2, Some(&base)));
    drop(base);
    sqlite(&index, &format!("DELETE FROM results WHERE id = x'{}'", id(2)));
    assert_eq!(removed(&store.remove(&id(1), true).expect("nobody uses it")), [id(2), id(1)]);
}

#[test]
fn a_result_that_only_the_index_knows_is_forgotten() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    drop(make(&store, 2, Some(&base)));
    drop(base);
    std::fs::remove_dir_all(store.path().join(format!("result/{}", id(2)))).expect("it is there");
    assert_eq!(removed(&prune(&store, at_most(0))), [id(1)]);
    assert!(store.list().expect("readable").is_empty());
    drop(make(&store, 1, None));
    assert_eq!(removed(&prune(&store, at_most(0))), [id(1)], "and one that is made again is known again");
}

fn sqlite(index: &std::path::Path, statement: &str) {
    let connection = rusqlite::Connection::open(index).expect("a database");
    assert_eq!(connection.execute(statement, []).expect("a statement"), 1);
}

#[test]
fn a_parent_of_more_children_than_a_file_can_have_links_is_kept() {
    need!(Need::Root, Need::Tool("mkfs.ext4", "e2fsprogs"));
    // On ext4 a file has 65 000 names at most.
    let filesystem = kiln_testkit::LoopFs::new("ext4", 64).expect("a filesystem");
    let store = open(&filesystem.path().join("store"));
    let base = make(&store, 1, None);
    let meta = store.path().join(format!("result/{}/meta.json", id(1)));
    // In several directories, as ext4 is slow in large ones.
    let links = filesystem.path().join("links");
    let names = (0..280).flat_map(|directory| (0..250).map(move |name| (directory, name)));
    let all = names.take_while(|(directory, name)| {
        let directory = links.join(directory.to_string());
        std::fs::create_dir_all(&directory).expect("writable");
        std::fs::hard_link(&meta, directory.join(name.to_string())).is_ok()
    });
    assert!((60_000..69_000).contains(&all.count()));
    drop(make(&store, 2, Some(&base)));
    drop(base);
    std::fs::remove_dir_all(&links).expect("they are there");
    sqlite(&store.path().join("state/index.sqlite"), &format!("DELETE FROM results WHERE id = x'{}'", id(2)));
    assert!(matches!(store.remove(&id(1), false), Err(StoreError::HasChildren { children: 1, .. })));
    assert_eq!(removed(&prune(&store, at_most(0))), [id(2), id(1)]);
}

#[test]
fn what_is_pinned_stays_with_its_parents() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let middle = make(&store, 2, Some(&base));
    drop(make(&store, 3, Some(&middle)));
    drop((base, middle));
    store.pin(&id(2)).expect("it is there");
    store.pin(&id(2)).expect("once is enough");
    assert!(matches!(store.pin(&id(9)), Err(StoreError::NoSuchResult(_))));
    assert_eq!(store.list().expect("readable").iter().filter(|result| result.is_pinned).count(), 1);
    assert!(matches!(store.remove(&id(1), true), Err(StoreError::Pinned(pinned)) if pinned == id(2)));
    let pruned = prune(&store, at_most(0));
    assert_eq!((removed(&pruned), pruned.pinned), (vec![id(3)], 1));
    assert!(matches!(store.remove(&id(2), false), Err(StoreError::Pinned(_))));
    store.unpin(&id(2)).expect("it is there");
    store.unpin(&id(2)).expect("once is enough");
    assert_eq!(removed(&prune(&store, at_most(0))), [id(2), id(1)]);
}

#[test]
fn pruning_ends_between_two_results_when_told_to() {
    need!(Need::Root);
    let store = TempStore::new();
    for number in 1..=5 {
        drop(make(&store, number, None));
    }
    let mut seen = 0;
    let mut until_two = |_: &kiln_store::Listed| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let pruned = store.prune_while(&at_most(0), SystemTime::now(), false, &mut until_two).expect("it prunes");
    assert_eq!((removed(&pruned), pruned.is_interrupted), (vec![id(1), id(2)], true));
    assert_eq!(store.list().expect("readable").len(), 3);
}

#[test]
fn caches_unused_for_long_go_unless_a_step_uses_them() {
    need!(Need::Root);
    let store = TempStore::new();
    for cache in [b"old", b"new"] {
        for _ in 0..3 {
            assert!(store.commit_cache(store.begin_cache(cache, (0, 0)).expect("a cache")).expect("it commits"));
        }
    }
    let limits = Limits { max_age: Some(Duration::from_secs(3600)), ..Limits::default() };
    let later = SystemTime::now() + Duration::from_secs(7200);
    assert!(prune(&store, limits).caches.is_empty());
    let used = store.begin_cache(b"new", (0, 0)).expect("a cache");
    assert_eq!(store.prune(&limits, later, true).expect("it looks").caches, ["old"]);
    assert_eq!(store.prune(&limits, later, false).expect("it prunes").caches, ["old"]);
    assert_eq!(store.caches().expect("readable"), [("new".to_owned(), 3)]);
    assert!(store.commit_cache(used).expect("it commits"));
    assert_eq!(store.prune(&limits, later, false).expect("it prunes").caches, ["new"]);
    // A cache can begin anew.
    assert!(store.commit_cache(store.begin_cache(b"new", (0, 0)).expect("a cache")).expect("it commits"));
    assert_eq!(store.caches().expect("readable"), [("new".to_owned(), 1)]);
}

#[test]
fn one_process_maintains_a_store_at_a_time() {
    need!(Need::Root);
    let store = TempStore::new();
    drop(make(&store, 1, None));
    let maintainer = std::fs::File::create(store.path().join("state/maintainer")).expect("writable");
    rustix::fs::flock(&maintainer, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    assert!(store.maintain(&at_most(0), SystemTime::now()).expect("it looks").is_none());
    drop(maintainer);
    std::fs::create_dir_all(store.path().join("trash/left/by a dead process")).expect("writable");
    let pruned = store.maintain(&at_most(0), SystemTime::now()).expect("it prunes").expect("nobody else is at it");
    assert_eq!(removed(&pruned), [id(1)]);
    assert!(crate::fixture::names(&store.path().join("trash")).is_empty());
}

#[test]
fn what_is_pruned_by_processes_that_are_killed_leaves_whole_results_only() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = open(dir.path());
    let mut random = kiln_testkit::Random::new(3);
    let mut builders: Vec<Helper> = (0..2).map(|_| Helper::start("build chains", dir.path())).collect();
    for _ in 0..15 {
        let mut pruner = Helper::start("prune", dir.path());
        for _ in 0..=random.below(20) {
            pruner.hear().expect("it goes on");
        }
        (0..random.below(200_000)).for_each(|_| std::hint::spin_loop());
        pruner.kill();
    }
    for builder in &mut builders {
        // It checks what it is offered, and says how often.
        assert!(builder.hear().is_some());
    }
    builders.into_iter().for_each(Helper::kill);
    drop(store);
    let store = open(dir.path());
    for listed in store.list().expect("readable") {
        let snapshot = store.lookup(&listed.id).expect("readable").expect("it is whole");
        view(&store, &snapshot);
        if let Some(parent) = listed.parent {
            assert!(store.lookup(&parent).expect("readable").is_some(), "a parent is gone before its child");
        }
    }
    assert!(store.list().expect("readable").len() > 1);
    // What a killed builder had just started can hold its locks for a moment. So a draft may stay for now, too.
    for listed in store.list().expect("readable") {
        let result = std::fs::File::open(store.path().join(format!("result/{}", listed.id))).expect("it is there");
        rustix::fs::flock(&result, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    }
    prune(&store, at_most(0));
    assert!(store.list().expect("readable").is_empty());
    for place in ["result", "trash"] {
        assert_eq!(crate::fixture::names(&store.path().join(place)), [""; 0], "{place}");
    }
}
