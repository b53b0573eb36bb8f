//! A process that dies: between any two system calls that change something, and between any two verbs of a backend.
//!
//! A child lives through [`story`]. After each death the store must open, hold whole results only and nothing left over,
//! and the story must come to its end.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use kiln_store::{
    Backend, BtrfsStore, CopyMode, Description, Draft, Id, Kind, Limits, Location, OverlayfsStore, Snapshot, Store,
    TreeStore,
};
use kiln_testkit::store::DiesAt;
use kiln_testkit::{LoopFs, Need, Tree, need};

use crate::fixture::{begin, id, names, view};

/// Enough for several merges of overlayfs layers, three at a time.
const STEPS: u64 = 7;
const FAILS: u64 = 100;
const DISCARDED: u64 = 200;
const REMOVED: u64 = 300;

/// The backend of a store that was made before.
fn backend(kind: Kind, path: &Path) -> Box<dyn Backend> {
    match kind {
        Kind::Overlayfs => Box::new(OverlayfsStore::open(path, false).expect("it opens").with_fanout(3)),
        Kind::Btrfs => Box::new(BtrfsStore::open(path, false).expect("it opens")),
        Kind::Xfs | Kind::Copy(_) => Box::new(TreeStore::open(path, kind, false).expect("it opens")),
        kind => panic!("no test of {kind:?}"),
    }
}

fn make(kind: Kind, path: &Path) {
    drop(Store::open(&Location { kind, place: path.to_owned() }).expect("the store is made"));
}

/// Opens the store at `path`, made if need be; with `moment` on a backend that dies then.
fn open(kind: Kind, path: &Path, moment: Option<u64>) -> Store {
    make(kind, path);
    let backend = backend(kind, path);
    let backend = match moment {
        Some(moment) => Box::new(DiesAt::new(backend, moment)),
        None => backend,
    };
    Store::open_with_backend(path, backend, "boot".to_owned()).expect("the store opens")
}

/// A chain of results, caches, a failure, a discarded draft, a removal, a durable mark, and pruning. What is there already is used.
fn story(store: &Store) {
    let mut parent: Option<Arc<Snapshot>> = None;
    for number in 1..=STEPS {
        let made = result(store, number, parent.as_ref(), |tree| {
            fs::write(tree.join("all"), number.to_string()).expect("writable");
            fs::write(tree.join(format!("of-{number}")), "own").expect("writable");
            fs::create_dir(tree.join(format!("dir-{number}"))).expect("writable");
            fs::write(tree.join(format!("dir-{number}/file")), "text").expect("writable");
            if number > 1 {
                fs::remove_dir_all(tree.join(format!("dir-{}", number - 1))).expect("it is there");
                fs::hard_link(tree.join("all"), tree.join(format!("link-{number}"))).expect("writable");
            }
        });
        let cache = store.begin_cache(b"cache", (0, 0)).expect("a cache");
        let tree = Tree::mount(cache.root());
        for half in ["left", "right"] {
            fs::write(tree.join(half), number.to_string()).expect("writable");
        }
        drop(tree);
        if number == 4 {
            store.discard_cache(cache).expect("it is ours");
        } else {
            store.commit_cache(cache).expect("kept");
        }
        parent = Some(made);
    }
    let parent = parent.expect("some steps");
    store.mark_durable().expect("the disk works");
    let failing = draft(store, FAILS, Some(&parent));
    store.fail(failing, describe(FAILS, Vec::new())).expect("it is kept");
    store.discard(draft(store, DISCARDED, Some(&parent))).expect("it is ours");
    let base = result(store, REMOVED, None, |tree| fs::write(tree.join("base"), "x").expect("writable"));
    drop(result(store, REMOVED + 1, Some(&base), |tree| fs::write(tree.join("child"), "x").expect("writable")));
    drop(base);
    store.remove(&id(REMOVED), true).expect("nobody uses it");
    drop(parent);
    let limits = Limits { max_items: Some(4), ..Limits::default() };
    store.prune(&limits, SystemTime::now(), false).expect("it prunes");
}

fn draft(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>) -> Draft {
    let draft = begin(store, number, parent);
    (&**draft.log()).write_all(format!("log of {number}\n").as_bytes()).expect("a log");
    draft
}

/// Says in a result's description what its tree was as a draft.
fn describe(number: u64, tree: Vec<String>) -> Description {
    Description { summary: number.to_string(), detail: tree.into() }
}

fn result(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>, fill: impl FnOnce(&Tree)) -> Arc<Snapshot> {
    if let Some(found) = store.lookup(&id(number)).expect("readable") {
        return Arc::new(found);
    }
    let draft = draft(store, number, parent);
    let tree = Tree::mount(draft.root());
    fill(&tree);
    let described = tree.describe();
    drop(tree);
    Arc::new(store.commit(draft, describe(number, described)).expect("it commits"))
}

/// Fails unless a store that a process died in is whole, and the story can be brought to its end.
fn check(kind: Kind, path: &Path, when: &str) {
    let store = open(kind, path, None);
    is_swept(&store, when);
    for listed in store.list().expect("readable") {
        let found =
            store.lookup(&listed.id).expect("readable").unwrap_or_else(|| panic!("{when}: {listed:?} is damaged"));
        let number = &found.meta().summary;
        let mut log = String::new();
        found.log().expect("a log").read_to_string(&mut log).expect("text");
        assert_eq!(log, format!("log of {number}\n"), "{when}");
        let tree = serde_json::Value::from(view(&store, &found).describe());
        assert_eq!(tree, found.meta().detail, "{when}: the tree of {number}");
        if let Some(parent) = found.meta().parent {
            assert!(store.lookup(&parent).expect("readable").is_some(), "{when}: the parent of {number} is gone");
        }
    }
    let cache = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    let tree = Tree::mount(cache.root());
    let half = |name: &str| fs::read_to_string(tree.join(name)).unwrap_or_default();
    assert_eq!(half("left"), half("right"), "{when}");
    drop(tree);
    store.discard_cache(cache).expect("it is ours");
    if let Some((meta, mut log)) = store.failure(&id(FAILS)).expect("whole or not there") {
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        assert_eq!((&*meta.summary, text), ("100", "log of 100\n".to_owned()), "{when}");
    }
    story(&store);
    is_swept(&store, when);
    let left = store.list().expect("readable").len();
    assert_eq!(left, 4, "{when}: the story comes to its end");
}

fn is_swept(store: &Store, when: &str) {
    for place in ["draft", "trash", "state/leases"] {
        assert_eq!(names(&store.path().join(place)), [""; 0], "{when}: {place}");
    }
    for name in names(&store.path().join("failed")) {
        assert!(name.parse::<Id>().is_ok(), "{when}: failed/{name}");
    }
}

/// This program as a child that lives through the story in the store at `path`; `before` starts it.
fn child(before: &[String], kind: Kind, path: &Path) -> Command {
    let this = std::env::current_exe().expect("this program");
    let mut words: Vec<std::ffi::OsString> = before.iter().map(Into::into).collect();
    words.push(this.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--exact", "crash::lives_through_the_story", "--ignored"]);
    command.env("KILN_STORE", Location { kind, place: path.to_owned() }.to_string());
    command
}

/// Runs a child and returns whether it was killed.
fn is_killed(mut child: Command, when: &str) -> bool {
    let ended = child.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it starts");
    assert!(ended.success() || ended.signal() == Some(9), "{when}: {ended}");
    !ended.success()
}

/// Lets a child [`check`] the store, and removes it. Not in this process: others start children here, and each has
/// for a moment duplicates of all locks.
fn check_and_remove(kind: Kind, path: &Path, when: &str) {
    let checked = child(&[], kind, path).env("KILN_STORE_CHECK", when).output().expect("it starts");
    assert!(checked.status.success(), "{when}: {}", String::from_utf8_lossy(&checked.stderr));
    fs::remove_dir_all(path).expect("nobody uses it");
}

#[test]
#[ignore = "not a test: others run it as a process of its own"]
fn lives_through_the_story() {
    let Ok(store) = std::env::var("KILN_STORE") else { return };
    let Location { kind, place } = Location::parse(&store, Path::new("")).expect("given along");
    match std::env::var("KILN_STORE_CHECK") {
        Ok(when) => check(kind, &place, &when),
        Err(_) => {
            let moment = std::env::var("KILN_STORE_MOMENT").ok().map(|moment| moment.parse().expect("a number"));
            story(&open(kind, &place, moment));
        }
    }
}

/// Calls `act` with 0, 1, and so on and a path in `place`, in several threads, until it returns false.
fn side_by_side(place: &Path, act: impl Fn(usize, &Path) -> bool + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (next, act) = (&next, &act);
            scope.spawn(move || {
                let path = place.join(format!("store-{thread}"));
                while act(next.fetch_add(1, Ordering::Relaxed), &path) {}
            });
        }
    });
}

fn dies_at_every_verb(kind: Kind, filesystem: &str) {
    let filesystem = LoopFs::new(filesystem, 400).expect("a filesystem");
    let died = AtomicUsize::new(0);
    side_by_side(&filesystem.path(), |moment, path| {
        make(kind, path);
        let when = format!("killed at moment {moment}");
        let mut child = child(&[], kind, path);
        child.env("KILN_STORE_MOMENT", moment.to_string());
        let is_killed = is_killed(child, &when);
        died.fetch_add(usize::from(is_killed), Ordering::Relaxed);
        check_and_remove(kind, path, &when);
        is_killed
    });
    let died = died.into_inner();
    println!("{} survives {died} deaths", kind.name());
    assert!(died > 100, "{died} moments");
}

/// The system calls that change what others can see, or what outlives the process.
const CHANGES: &str = "?open,?openat,?creat,?mkdir,?mkdirat,?rename,?renameat,?renameat2,?link,?linkat,?symlink,?symlinkat,\
    ?unlink,?unlinkat,?rmdir,?mknod,?mknodat,write,pwrite64,writev,?truncate,ftruncate,fallocate,copy_file_range,\
    ?utimensat,?chmod,fchmod,?fchmodat,?chown,?lchown,fchown,?fchownat,setxattr,lsetxattr,fsetxattr,removexattr,\
    lremovexattr,fremovexattr,ioctl";

/// At most so many deaths a kind of store, spread evenly.
const DEATHS: usize = 60;

fn strace(expressions: &[String], output: &Path) -> Vec<String> {
    let mut words: Vec<String> = ["strace", "-f", "-qq", "-e", "signal=none", "-o"].map(Into::into).into();
    words.push(output.to_str().expect("a temporary file").to_owned());
    for expression in expressions {
        words.extend(["-e".to_owned(), expression.clone()]);
    }
    words
}

/// Returns where a child can die: before the so manieth call of that name in a thread.
fn points(kind: Kind, path: &Path) -> Vec<(String, usize)> {
    let trace = tempfile::NamedTempFile::new().expect("a temporary file");
    let child = child(&strace(&[format!("trace={CHANGES}")], trace.path()), kind, path);
    assert!(!is_killed(child, "traced"));
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    let mut points = Vec::new();
    for line in String::from_utf8_lossy(&fs::read(trace.path()).expect("a trace")).lines() {
        // `PID call(arguments) = result`
        let Some((process, call)) = line.split_once(' ') else { continue };
        let Some((call, arguments)) = call.trim_start().split_once('(') else { continue };
        let count = counts.entry((process.to_owned(), call.to_owned())).or_default();
        *count += 1;
        let changes_nothing = call.starts_with("open") && !arguments.contains("O_CREAT");
        let point = (call.to_owned(), *count);
        if !changes_nothing && !points.contains(&point) {
            points.push(point);
        }
    }
    points
}

fn dies_at_every_system_call(kind: Kind, filesystem: &str) {
    let filesystem = LoopFs::new(filesystem, 400).expect("a filesystem");
    let all = points(kind, &filesystem.path().join("whole"));
    let chosen: Vec<_> = (0..DEATHS.min(all.len())).map(|at| &all[at * all.len() / DEATHS.min(all.len())]).collect();
    let died = AtomicUsize::new(0);
    side_by_side(&filesystem.path(), |at, path| {
        let Some((call, count)) = chosen.get(at) else { return false };
        let when = format!("killed before {call} number {count}");
        let expressions = [format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={count}")];
        let is_killed = is_killed(child(&strace(&expressions, Path::new("/dev/null")), kind, path), &when);
        died.fetch_add(usize::from(is_killed), Ordering::Relaxed);
        check_and_remove(kind, path, &when);
        true
    });
    // The order of a directory's entries and a race for a lease make a small difference.
    let died = died.into_inner();
    println!("{} survives {died} deaths of {} chosen from {} points", kind.name(), chosen.len(), all.len());
    assert!(all.len() > 200 && died * 10 >= chosen.len() * 9, "{died} of {}", chosen.len());
}

#[test]
fn overlayfs_survives_death_at_every_verb() {
    need!(Need::Root);
    dies_at_every_verb(Kind::Overlayfs, "tmpfs");
}

#[test]
fn overlayfs_survives_death_at_every_system_call() {
    need!(Need::Root, Need::Tool("strace", "strace"));
    dies_at_every_system_call(Kind::Overlayfs, "tmpfs");
}

const BTRFS: Need = Need::Tool("mkfs.btrfs", "btrfs-progs");

#[test]
fn btrfs_survives_death_at_every_system_call() {
    need!(Need::Root, BTRFS, Need::Tool("strace", "strace"));
    dies_at_every_system_call(Kind::Btrfs, "btrfs");
}

const XFS: Need = Need::Tool("mkfs.xfs", "xfsprogs");

#[test]
fn xfs_survives_death_at_every_system_call() {
    need!(Need::Root, XFS, Need::Tool("strace", "strace"));
    dies_at_every_system_call(Kind::Xfs, "xfs");
}

#[test]
fn copies_survive_death_at_every_system_call() {
    need!(Need::Root, Need::Tool("strace", "strace"));
    dies_at_every_system_call(Kind::Copy(CopyMode::Copy), "tmpfs");
}
