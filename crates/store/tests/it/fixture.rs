//! Stores, results and helpers that tests share.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use kiln_store::{Description, Draft, Id, Kind, Lease, Location, LogFollower, Snapshot, Store};
use kiln_testkit::Tree;
use rustix::event::{PollFd, PollFlags, poll};

pub(crate) fn location(path: &Path) -> Location {
    Location { kind: Kind::Overlayfs, place: path.to_owned() }
}

pub(crate) fn open(path: &Path) -> Store {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("there is one");
    crate::open_in_boot(&location(path), boot_id.trim()).expect("the store opens")
}

/// A store in a temporary directory.
pub(crate) struct TempStore {
    pub(crate) store: Store,
    dir: tempfile::TempDir,
}

impl Drop for TempStore {
    fn drop(&mut self) {
        // The standard library holds a descriptor for each level that it deletes, and some tests make more levels than
        // there are descriptors.
        let _ = Command::new("rm").arg("-rf").arg(self.dir.path()).status();
    }
}

impl TempStore {
    pub(crate) fn new() -> Self {
        let dir = crate::temp_dir();
        let store = open(&dir.path().join("store"));
        Self { store, dir }
    }
}

impl std::ops::Deref for TempStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

pub(crate) fn id(number: u64) -> Id {
    kiln_testkit::store::id(number)
}

pub(crate) fn description(summary: &str) -> Description {
    Description { summary: summary.to_owned(), detail: serde_json::Value::Null }
}

pub(crate) fn begin(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>) -> Draft {
    let lease = take_lease(store, number);
    store.begin(lease, parent.cloned()).expect("a draft")
}

/// Takes the lease of a number that nobody builds. Whoever opens the store looks for dead holders, and holds what it
/// looks at for a moment: so this waits, as a builder does.
fn take_lease(store: &Store, number: u64) -> Lease {
    let follower = store.follow(&id(number)).expect("a follower");
    let patience = LogFollower::PATIENCE.try_into().expect("a time");
    for _ in 0..30 {
        follower.drain();
        if let Some(lease) = store.lease(&id(number)).expect("a lease") {
            return lease;
        }
        poll(&mut [PollFd::new(&follower, PollFlags::IN)], Some(&patience)).expect("it can be waited for");
    }
    panic!("someone builds {number}");
}

pub(crate) fn commit(store: &Store, draft: Draft) -> Arc<Snapshot> {
    let summary = format!("step {}", draft.id().short());
    Arc::new(store.commit(draft, description(&summary)).expect("it commits"))
}

/// Makes the result `number` with a file of that name.
pub(crate) fn make(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>) -> Arc<Snapshot> {
    let draft = begin(store, number, parent);
    write(&draft, &number.to_string());
    commit(store, draft)
}

/// Writes a file named and filled with `text`.
pub(crate) fn write(draft: &Draft, text: &str) {
    fs::write(Tree::mount(draft.root()).join(text), text).expect("a draft is writable");
}

pub(crate) fn view(store: &Store, snapshot: &Snapshot) -> Tree {
    Tree::mount(&store.root(snapshot).expect("its tree"))
}

/// The names in a directory of the store.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("the directory is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// This test binary again, running the one test `helper::child` as `role` on a store.
pub(crate) struct Helper {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Helper {
    pub(crate) fn start(role: &str, store: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "helper::child", "--ignored", "--nocapture"])
            .env("KILN_STORE_HELPER", role)
            .env("KILN_STORE_PATH", store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// Returns what follows `said: ` in the helper's next line that has it; `None` at its end.
    pub(crate) fn hear(&mut self) -> Option<String> {
        loop {
            let line = self.lines.next()?.ok()?;
            if let Some((_, said)) = line.split_once("said: ") {
                return Some(said.to_owned());
            }
        }
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Ends it by the end of its input, and checks that it was content.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it is ours").success());
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
