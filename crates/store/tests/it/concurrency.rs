//! Many at once, in one store.

use std::sync::{Arc, Barrier};
use std::thread;

use kiln_testkit::{Need, need};

use crate::fixture::{TempStore, make, names, open, view};

#[test]
fn eight_threads_make_children_of_one_parent() {
    need!(Need::Root);
    let store = Arc::new(TempStore::new());
    let base = make(&store, 1, None);
    let threads = (0..8_u64).map(|thread| {
        let (store, base) = (Arc::clone(&store), Arc::clone(&base));
        thread::spawn(move || {
            // Two values on one directory are as good as one.
            let other = open(store.path());
            for number in 0..10 {
                let number = 100 + thread * 100 + number;
                let store = if number % 2 == 0 { &store.store } else { &other };
                let made = make(store, number, Some(&base));
                assert_eq!(names(&view(store, &made).path()), ["1".to_owned(), number.to_string()]);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no panic");
    }
    assert_eq!(store.list().expect("readable").len(), 81);
    assert_eq!(open(store.path()).list().expect("readable").len(), 81);
}

#[test]
fn several_make_one_new_store_at_once() {
    need!(Need::Root);
    for _ in 0..10 {
        let dir = crate::temp_dir();
        let barrier = Arc::new(Barrier::new(6));
        let threads = (0..6).map(|number| {
            let (path, barrier) = (dir.path().join("store"), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                make(&open(&path), number, None);
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().expect("no panic");
        }
        assert_eq!(open(&dir.path().join("store")).list().expect("readable").len(), 6);
    }
}

#[test]
fn marks_are_set_while_others_commit() {
    need!(Need::Root);
    let store = Arc::new(TempStore::new());
    let committing = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            let mut parent = None;
            for number in 0..60 {
                parent = Some(make(&store, number, parent.as_ref()));
            }
        })
    };
    while !committing.is_finished() {
        store.mark_durable().expect("the disk works");
    }
    committing.join().expect("no panic");
}
