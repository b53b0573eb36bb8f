//! Caches: generations, copies, names.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kiln_store::{CacheDraft, Store};
use kiln_testkit::{Need, Tree, need};

use crate::fixture::{TempStore, names};

fn begin(store: &Store) -> CacheDraft {
    store.begin_cache(b"cache", (0, 0)).expect("a cache")
}

fn put(draft: &CacheDraft, name: &str) {
    fs::write(Tree::mount(draft.root()).join(name), name).expect("writable");
}

fn content(store: &Store) -> Vec<String> {
    let draft = begin(store);
    let names = names(&Tree::mount(draft.root()).path());
    store.discard_cache(draft).expect("it is ours");
    names
}

#[test]
fn a_copy_becomes_the_next_generation_unless_another_did() {
    need!(Need::Root);
    let store = TempStore::new();
    let (first, second) = (begin(&store), begin(&store));
    put(&first, "first");
    put(&second, "second");
    assert!(store.commit_cache(first).expect("it commits"));
    assert!(!store.commit_cache(second).expect("it is dropped"));
    assert_eq!(content(&store), ["first"]);
    assert_eq!(names(&store.path().join("draft")), [""; 0]);
    assert_eq!(store.caches().expect("readable"), [("cache".to_owned(), 1)]);
}

#[test]
fn a_generation_stays_while_a_copy_stands_on_it() {
    need!(Need::Root);
    let store = TempStore::new();
    let seed = begin(&store);
    put(&seed, "seed");
    assert!(store.commit_cache(seed).expect("it commits"));
    let slow = begin(&store);
    // More than are merged into one, so that the first would go.
    for number in 0..20 {
        let draft = begin(&store);
        put(&draft, &number.to_string());
        assert!(store.commit_cache(draft).expect("it commits"));
    }
    assert!(store.path().join("cache/cache/1").exists());
    assert_eq!(names(&Tree::mount(slow.root()).path()), ["seed"]);
    assert!(!store.commit_cache(slow).expect("it is dropped"));
    let last = begin(&store);
    assert!(store.commit_cache(last).expect("it commits"));
    assert!(!store.path().join("cache/cache/1").exists());
}

#[test]
fn a_cache_of_200_generations_is_whole_and_takes_few_directories() {
    need!(Need::Root);
    let store = TempStore::new();
    for number in 0..200_u32 {
        let draft = begin(&store);
        let tree = Tree::mount(draft.root());
        fs::write(tree.join((number % 50).to_string()), number.to_string()).expect("writable");
        if number % 7 == 0 {
            fs::remove_file(tree.join("0")).expect("it is there");
            fs::write(tree.join("0"), "again").expect("writable");
        }
        drop(tree);
        assert!(store.commit_cache(draft).expect("it commits"));
    }
    assert!(names(&store.path().join("cache/cache")).len() < 30);
    let draft = begin(&store);
    let tree = Tree::mount(draft.root());
    assert_eq!(names(&tree.path()).len(), 50);
    assert_eq!(fs::read_to_string(tree.join("49")).expect("it is there"), "199");
}

#[test]
fn a_new_cache_belongs_to_its_first_user() {
    need!(Need::Root);
    let store = TempStore::new();
    let draft = store.begin_cache(b"cache", (1000, 1001)).expect("a cache");
    assert!(store.commit_cache(draft).expect("it commits"));
    let draft = store.begin_cache(b"cache", (5, 6)).expect("a cache");
    let meta = fs::metadata(Tree::mount(draft.root()).path()).expect("readable");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 1001, 0o755));
}

#[test]
fn any_bytes_name_a_cache() {
    need!(Need::Root);
    let store = TempStore::new();
    let long = [b'/'; 1000];
    let odd: [&[u8]; 8] = [b"", b".", b"..", b"../../etc", b"a\nb", b"\xff\0", &long, &long[1..]];
    for name in odd {
        let draft = store.begin_cache(name, (0, 0)).expect("a cache");
        put(&draft, "file");
        assert!(store.commit_cache(draft).expect("it commits"));
    }
    assert_eq!(store.caches().expect("readable").len(), odd.len());
    assert_eq!(names(&store.path().join("cache")).len(), odd.len());
}

#[test]
fn a_duplicate_of_a_copys_lock_keeps_nobody_from_the_next() {
    need!(Need::Root);
    let store = TempStore::new();
    let draft = begin(&store);
    let _sandbox = draft.hold().expect("a duplicate");
    assert!(store.commit_cache(draft).expect("it commits"));
    // Blocks for ever if the new generation is still locked.
    assert!(store.commit_cache(begin(&store)).expect("it commits"));
}

#[test]
fn threads_share_a_cache_without_a_half_written_file() {
    need!(Need::Root);
    let store = std::sync::Arc::new(TempStore::new());
    let threads = (0..6).map(|thread| {
        let store = std::sync::Arc::clone(&store);
        std::thread::spawn(move || {
            for number in 0..15 {
                let draft = begin(&store);
                let tree = Tree::mount(draft.root());
                // All generations hold equal halves.
                let half = |name: &str| fs::read_to_string(tree.join(name)).unwrap_or_default();
                assert_eq!(half("left"), half("right"));
                for name in ["left", "right"] {
                    fs::write(tree.join(name), format!("{thread} {number}")).expect("writable");
                }
                drop(tree);
                store.commit_cache(draft).expect("kept or dropped");
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no panic");
    }
    assert_eq!(names(&store.path().join("draft")), [""; 0]);
}
