//! Leases: one holder at a time, freed by its death, and nobody waits in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kiln_store::{LogFollower, Store};
use kiln_testkit::{Need, need};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal};

use crate::fixture::{Helper, TempStore, begin, commit, description, id, open};

/// Waits until the follower says that there may be news, or for as long as one should.
fn wait(follower: &LogFollower) {
    let patience = LogFollower::PATIENCE.try_into().expect("a time");
    poll(&mut [PollFd::new(follower, PollFlags::IN)], Some(&patience)).expect("it can be waited for");
    follower.drain();
}

#[test]
fn the_death_of_its_holder_frees_a_lease_and_wakes_followers() {
    need!(Need::Root);
    let store = TempStore::new();
    let mut helper = Helper::start("hold", store.path());
    assert_eq!(helper.hear().as_deref(), Some("holding"));
    let mut follower = store.follow(&id(1)).expect("it can be followed");
    assert!(store.lease(&id(1)).expect("a lease").is_none());
    assert!(store.holder(&id(1)).is_some());
    let (_, length) = follower.look().expect("readable").expect("a log");
    assert_eq!(length, 15);
    helper.kill();
    let lease = loop {
        if let Some(lease) = store.lease(&id(1)).expect("a lease") {
            break lease;
        }
        wait(&follower);
    };
    store.discard(store.begin(lease, None).expect("over what the dead one left")).expect("it is ours");
}

#[test]
fn a_duplicate_keeps_a_dead_holders_lease() {
    need!(Need::Root);
    let store = TempStore::new();
    let mut helper = Helper::start("bequeath", store.path());
    let heir: i32 = helper.hear().expect("it has one").parse().expect("a pid");
    let heir = Pid::from_raw(heir).expect("a pid");
    helper.kill();
    assert!(store.lease(&id(1)).expect("a lease").is_none());
    let follower = store.follow(&id(1)).expect("it can be followed");
    rustix::process::kill_process(heir, Signal::KILL).expect("it lives");
    while store.lease(&id(1)).expect("a lease").is_none() {
        wait(&follower);
    }
}

#[test]
fn one_of_many_processes_and_threads_holds_a_lease() {
    need!(Need::Root);
    let store = Arc::new(TempStore::new());
    let helpers: Vec<Helper> = (0..3).map(|_| Helper::start("race", store.path())).collect();
    let is_held = Arc::new(AtomicBool::new(false));
    let threads = (0..8).map(|_| {
        let (store, is_held) = (Arc::clone(&store), Arc::clone(&is_held));
        thread::spawn(move || {
            for _ in 0..300 {
                if let Some(lease) = store.lease(&id(1)).expect("a lease") {
                    assert!(!is_held.swap(true, Ordering::SeqCst), "two threads hold it");
                    let mark = store.path().join("held");
                    std::fs::File::create_new(&mark).expect("no process holds it");
                    std::fs::remove_file(&mark).expect("ours");
                    is_held.store(false, Ordering::SeqCst);
                    drop(lease);
                }
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no panic");
    }
    for helper in helpers {
        helper.finish();
    }
}

/// Builds `number` or waits until it is built, as an engine does.
fn build(store: &Store, number: u64, fail: &AtomicBool) {
    let id = id(number);
    let mut follower = store.follow(&id).expect("it can be followed");
    loop {
        if store.lookup(&id).expect("readable").is_some() {
            return;
        }
        if let Some(lease) = store.lease(&id).expect("a lease") {
            if store.lookup(&id).expect("readable").is_some() {
                return;
            }
            let draft = store.begin(lease, None).expect("a draft");
            // Every other maker fails, and leaves it to those who wait.
            if fail.fetch_xor(true, Ordering::SeqCst) {
                store.fail(draft, description("no")).expect("it is kept");
                continue;
            }
            commit(store, draft);
            return;
        }
        follower.look().expect("readable");
        wait(&follower);
    }
}

#[test]
fn nobody_waits_in_vain_for_a_lease_that_changes_hands() {
    need!(Need::Root);
    let store = Arc::new(TempStore::new());
    let fail = Arc::new(AtomicBool::new(true));
    let threads = (0..6).map(|_| {
        let (store, fail) = (Arc::clone(&store), Arc::clone(&fail));
        thread::spawn(move || {
            for number in 0..60 {
                build(&store, number, &fail);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no panic");
    }
}

#[test]
fn those_who_wait_do_not_wake_each_other() {
    need!(Need::Root);
    let store = TempStore::new();
    let _held = store.lease(&id(1)).expect("a lease").expect("it is free");
    let follower = store.follow(&id(1)).expect("it can be followed");
    assert!(open(store.path()).lease(&id(1)).expect("a lease").is_none());
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&follower, PollFlags::IN)], Some(&now)).expect("it can be asked"), 0);
}

#[test]
fn a_follower_sees_a_growing_log_and_the_log_of_the_next_maker() {
    need!(Need::Root);
    use std::io::Write;
    let store = TempStore::new();
    let mut follower = store.follow(&id(1)).expect("it can be followed");
    assert!(follower.look().expect("readable").is_none());
    let first = begin(&store, 1, None);
    wait(&follower);
    assert_eq!(follower.look().expect("readable").expect("a log").1, 0);
    follower.drain();
    (&**first.log()).write_all(b"text").expect("a log");
    wait(&follower);
    let (log, length) = follower.look().expect("readable").expect("a log");
    assert_eq!(length, 4);
    store.discard(first).expect("it is ours");
    assert_eq!(follower.look().expect("readable").expect("still readable").1, 4);
    let second = begin(&store, 1, None);
    wait(&follower);
    let (next, length) = follower.look().expect("readable").expect("a log");
    assert!(!Arc::ptr_eq(&log, &next) && length == 0);
    drop(second);
}
