//! What a crash of the machine, or of a process, takes and what it leaves.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kiln_store::Store;
use kiln_testkit::{Need, Random, need};

use crate::fixture::{Helper, id, location, make, names, open, view, write};

fn boot(path: &Path, boot_id: &str) -> Store {
    crate::open_in_boot(&location(path), boot_id).expect("the store opens")
}

fn has(store: &Store, number: u64) -> bool {
    store.lookup(&id(number)).expect("readable").is_some()
}

#[test]
fn a_reboot_drops_what_was_not_marked_and_nothing_else() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    assert!(store.has_unmarked_results());
    store.mark_durable().expect("the disk works");
    assert!(!store.has_unmarked_results());
    let doubtful = make(&store, 3, Some(&base));
    make(&store, 4, Some(&doubtful));
    drop((store, base, doubtful));
    let store = boot(dir.path(), "one");
    assert!((1..=4).all(|number| has(&store, number)), "the same boot takes nothing");
    drop(store);
    let store = boot(dir.path(), "two");
    assert_eq!([1, 2, 3, 4].map(|number| has(&store, number)), [true, true, false, false]);
    // They stay for good: what an earlier boot left was looked through.
    drop(store);
    let store = boot(dir.path(), "three");
    assert!(has(&store, 1) && has(&store, 2));
    assert!(names(&store.path().join("trash")).is_empty());
}

#[test]
fn a_reboot_drops_children_before_parents_whatever_the_clock_said() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    let mut last = make(&store, 0, None);
    for number in 1..12 {
        last = make(&store, number, Some(&last));
        let file = store.path().join(format!("result/{}/meta.json", id(number)));
        let mut meta: serde_json::Value =
            serde_json::from_slice(&fs::read(&file).expect("it is there")).expect("a description");
        meta["created_ms"] = (1_000_000 - number).into();
        fs::write(&file, meta.to_string()).expect("writable");
    }
    drop(last);
    store.mark_durable().expect("the disk works");
    drop(store);
    // Of another boot, so that nothing is marked in it.
    fs::write(dir.path().join("state/boot.json"), r#"{"boot_id":"one","boot_ns":0}"#).expect("writable");
    let store = boot(dir.path(), "two");
    assert_eq!(names(&store.path().join("result")), [""; 0]);
}

#[test]
fn a_reboot_drops_unmarked_generations_of_caches() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    let fill = |store: &Store, text: &str| {
        let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
        fs::write(kiln_testkit::Tree::mount(draft.root()).join(text), text).expect("writable");
        assert!(store.commit_cache(draft).expect("it commits"));
    };
    fill(&store, "marked");
    assert!(store.has_unmarked_results());
    store.mark_durable().expect("the disk works");
    // So many that the last one no longer stands on the one that is marked.
    for number in 0..10 {
        fill(&store, &format!("unmarked {number}"));
    }
    drop(store);
    let store = boot(dir.path(), "two");
    assert_eq!(store.caches().expect("readable"), [("cache".to_owned(), 1)]);
    let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    assert_eq!(names(&kiln_testkit::Tree::mount(draft.root()).path()), ["marked"]);
    store.discard_cache(draft).expect("it is ours");
}

#[test]
fn a_damaged_generation_takes_later_ones_along_but_not_the_cache() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    for _ in 0..4 {
        assert!(store.commit_cache(store.begin_cache(b"c", (0, 0)).expect("a cache")).expect("it commits"));
    }
    store.mark_durable().expect("the disk works");
    fs::write(store.path().join("cache/c/3/meta.json"), "").expect("writable");
    drop(store);
    let store = boot(dir.path(), "two");
    assert_eq!(store.caches().expect("readable"), [("c".to_owned(), 2)]);
    let draft = store.begin_cache(b"c", (0, 0)).expect("a cache");
    draft.root().mount().expect("its layers are there");
    assert!(store.commit_cache(draft).expect("it commits"));
}

#[test]
fn a_damaged_mark_costs_the_last_boots_results_but_not_this_ones() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    make(&store, 1, None);
    store.mark_durable().expect("the disk works");
    drop(store);
    let store = boot(dir.path(), "two");
    make(&store, 2, None);
    store.mark_durable().expect("the disk works");
    drop(store);
    let mark = dir.path().join("state/boot.json");
    fs::write(&mark, "{").expect("writable");
    let store = boot(dir.path(), "two");
    assert!(has(&store, 1) && has(&store, 2));
    drop(store);
    fs::write(&mark, "").expect("writable");
    let store = boot(dir.path(), "three");
    assert!(has(&store, 1) && !has(&store, 2));
}

#[test]
fn a_killed_process_loses_nothing_that_it_committed_and_leaves_nothing_else() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    drop(open(dir.path()));
    let mut random = Random::new(1);
    for _ in 0..12 {
        let mut helper = Helper::start("commit", dir.path());
        let mut last = 0;
        // Killed at some moment of what comes after so many.
        for _ in 0..=random.below(8) {
            last = helper.hear().expect("it goes on").parse().expect("a number");
        }
        for _ in 0..random.below(200_000) {
            std::hint::spin_loop();
        }
        helper.kill();
        for lease in names(&dir.path().join("state/leases")) {
            // What it had just started may hold its locks for a moment.
            let lease = fs::File::open(dir.path().join("state/leases").join(lease)).expect("nobody removes it");
            rustix::fs::flock(&lease, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
        }
        let store = open(dir.path());
        for place in ["draft", "trash", "state/leases"] {
            assert_eq!(names(&store.path().join(place)), [""; 0], "{place}");
        }
        for number in 1..=last {
            assert!(has(&store, number), "{number} of {last}");
        }
        // Whatever else got in is whole.
        for result in store.list().expect("readable") {
            let snapshot = store.lookup(&result.id).expect("readable").expect("whole");
            let mut log = String::new();
            snapshot.log().expect("a log").read_to_string(&mut log).expect("text");
            assert!(log.starts_with("log of "));
            view(&store, &snapshot);
        }
        if let Some(first) = store.lookup(&id(1)).expect("readable") {
            drop(first);
            store.remove(&id(1), true).expect("nobody uses it");
        }
    }
}

#[test]
fn a_copy_of_a_cache_is_swept_when_its_process_is_dead_and_not_before() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = open(dir.path());
    let mut helper = Helper::start("hold", dir.path());
    assert_eq!(helper.hear().as_deref(), Some("holding"));
    let ours = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    drop(open(dir.path()));
    assert_eq!(names(&dir.path().join("draft")).len(), 3, "a draft and two copies live");
    helper.kill();
    drop(open(dir.path()));
    assert_eq!(names(&dir.path().join("draft")).len(), 1, "ours lives");
    store.discard_cache(ours).expect("it is ours");
}

#[test]
fn a_reader_never_sees_half_a_result() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = Arc::new(open(dir.path()));
    let writer = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            for number in 0..150 {
                let draft = crate::fixture::begin(&store, number, None);
                write(&draft, "file");
                crate::fixture::commit(&store, draft);
            }
        })
    };
    let reader = open(dir.path());
    let mut seen = 0;
    while seen < 150 {
        while let Some(snapshot) = reader.lookup(&id(seen)).expect("readable") {
            snapshot.log().expect("a log");
            assert_eq!(names(&view(&reader, &snapshot).path()), ["file"]);
            seen += 1;
        }
        assert!(seen == 150 || !writer.is_finished() || reader.lookup(&id(seen)).expect("readable").is_some());
    }
    writer.join().expect("no panic");
}

#[test]
fn an_index_that_a_power_cut_damaged_is_made_anew() {
    need!(Need::Root);
    let dir = crate::temp_dir();
    let store = boot(dir.path(), "one");
    (0..50).for_each(|number| drop(make(&store, number, None)));
    store.mark_durable().expect("the disk works");
    assert_eq!(store.list().expect("readable").len(), 50);
    drop(store);
    // Opens and closes it so that all is in one file.
    let index = dir.path().join("state/index.sqlite");
    drop(
        rusqlite::Connection::open(&index).and_then(|index| index.pragma_query_value(None, "user_version", |_| Ok(()))),
    );
    let mut bytes = fs::read(&index).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0);
    fs::write(&index, bytes).expect("writable");
    let store = boot(dir.path(), "two");
    make(&store, 50, None);
    let limits = kiln_store::Limits { max_items: Some(1), ..kiln_store::Limits::default() };
    assert_eq!(store.prune(&limits, std::time::SystemTime::now(), false).expect("it prunes").removed.len(), 50);
    assert!(has(&store, 50));
}
