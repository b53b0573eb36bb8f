//! A measurement: a store of many results.
//!
//! `KILN_MANY='STORE COUNT' cargo test --release -p kiln-store --test it many:: -- --ignored --nocapture` makes the store, if it has
//! fewer, and says how long things take. It stays, to be measured again or deleted. With `note` for the count, several can write to
//! the index at once.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kiln_store::{Id, Limits, Snapshot, Store};

use crate::fixture::{description, open};

/// How many results stand on each other, all of them on one base.
const CHAIN: u64 = 10;

#[test]
#[ignore = "a measurement"]
fn many_results_are_opened_listed_and_pruned() {
    let Ok(arguments) = std::env::var("KILN_MANY") else { return };
    let (path, what) = arguments.split_once(' ').expect("STORE COUNT");
    let path = PathBuf::from(path);
    if what == "prune" {
        let store = open(&path);
        let items = store.list().expect("it lists").len() / 2;
        prune(&store, items);
        return;
    }
    if what == "note" {
        let store = open(&path);
        median("a note in the index", 2001, |at| {
            store.remember(&format!("question {at}"), "answer").expect("writable")
        });
        return;
    }
    let count = what.parse().expect("a number");
    let store = open(&path);
    let filling = Instant::now();
    let mut next = (store.list().expect("it lists").len() as u64).max(1);
    let base = made(&store, 0, None);
    while next < count {
        next = chain(&store, &base, next);
    }
    println!("{count} results, made in {:.1?}", filling.elapsed());
    drop(store);

    median("open", 9, |_| drop(open(&path)));
    let store = open(&path);
    measure("ls", || drop(store.list().expect("it lists")));
    measure("ls again", || drop(store.list().expect("it lists")));
    let all = store.list().expect("it lists");
    median("lookup", 501, |at| {
        let id = all[usize::try_from(at).expect("few") * all.len() / 501].id;
        drop(store.lookup(&id).expect("readable").expect("it is there"));
    });
    median("commit", 501, |at| drop(made(&store, (1 << 40) + at, Some(&base))));
    median("remove a leaf", 101, |at| drop(store.remove(&id((1 << 40) + at), false).expect("unused")));
    let mut items = store.list().expect("it lists").len();
    median("prune one", 301, |_| {
        items -= 1;
        assert_eq!(prune(&store, items), 1);
    });
    let steps = |at: u64| (0..50).fold((2 + at) << 40, |next, _| chain(&store, &base, next));
    median("a build of 500 steps", 5, |at| assert!(steps(at) > 0));
    let mut pruning = Command::new("nice")
        .args(["-n", "19"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["many::", "--ignored"])
        .env("KILN_MANY", format!("{} prune", path.display()))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut beside = 0;
    while pruning.try_wait().expect("ours").is_none() && beside < 5 {
        measure("a build of 500 steps beside a prune of half", || assert!(steps(10 + beside) > 0));
        beside += 1;
    }
    pruning.wait().expect("ours");
}

fn id(number: u64) -> Id {
    let mut bytes = [0_u8; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    Id::new(bytes)
}

fn made(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>) -> Arc<Snapshot> {
    if let Some(found) = store.lookup(&id(number)).expect("readable") {
        return Arc::new(found);
    }
    let lease = store.lease(&id(number)).expect("a lease").expect("nobody builds it");
    let draft = store.begin(lease, parent.cloned()).expect("a draft");
    Arc::new(store.commit(draft, description(&format!("step {number}"))).expect("it commits"))
}

/// Makes a chain; returns the number after its last.
fn chain(store: &Store, base: &Arc<Snapshot>, first: u64) -> u64 {
    let mut parent = Arc::clone(base);
    for number in first..first + CHAIN {
        parent = made(store, number, Some(&parent));
    }
    first + CHAIN
}

fn prune(store: &Store, items: usize) -> usize {
    let limits = Limits { max_items: Some(items), ..Limits::default() };
    store.prune(&limits, SystemTime::now(), false).expect("it prunes").removed.len()
}

fn measure(what: &str, act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    println!("{what}: {:.2?}", start.elapsed());
    start.elapsed()
}

fn median(what: &str, runs: u64, mut act: impl FnMut(u64)) {
    let mut times: Vec<Duration> = (0..runs)
        .map(|at| {
            let start = Instant::now();
            act(at);
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{what}: {:.2?} (at most {:.2?})", times[times.len() / 2], times[times.len() - 1]);
}
