//! Digests of trees, and what is done about damage.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_store::{Store, TreeDigest, Verified, Verify};
use kiln_testkit::{Changes as RandomChanges, Need, Tree, need};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::fixture::{TempStore, begin, commit, id, make, names, open};

/// A store that takes a digest of every tree.
pub(crate) fn with_digests() -> TempStore {
    let mut temporary = TempStore::new();
    let path = temporary.path().to_owned();
    temporary.store = open(&path).with_digests(true);
    temporary
}

#[test]
fn a_digest_stays_the_same_where_layers_are_merged() {
    need!(Need::Root);
    let store = with_digests();
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let mut random = RandomChanges::new(5);
    let mut made = Vec::new();
    for number in 0..70 {
        let draft = begin(&store, number, made.last());
        let tree = Tree::mount(draft.root());
        for _ in 0..4 {
            random.make(&tree.path(), mirror.path()).expect("writable");
        }
        drop(tree);
        made.push(commit(&store, draft));
    }
    for snapshot in made {
        let now = store.tree_digest(&snapshot).expect("it is whole");
        assert_eq!(snapshot.meta().tree_digest, Some(now), "{}", snapshot.id());
    }
}

#[test]
fn without_being_asked_for_no_digest_is_taken() {
    need!(Need::Root);
    let store = TempStore::new();
    let made = make(&store, 1, None);
    assert_eq!(made.meta().tree_digest, None);
    let json = fs::read_to_string(store.path().join(format!("result/{}/meta.json", made.id()))).expect("readable");
    assert!(!json.contains("tree_digest"), "{json}");
}

#[test]
fn whatever_shows_is_in_the_digest() {
    need!(Need::Root);
    type Change = fn(&Tree);
    let nothing: Change = |_| {};
    let changes: [(&str, Change); 11] = [
        ("a content", |tree| fs::write(tree.join("file"), "other").expect("writable")),
        ("a name", |tree| fs::rename(tree.join("file"), tree.join("fil")).expect("writable")),
        ("a place", |tree| fs::rename(tree.join("file"), tree.join("dir/file")).expect("writable")),
        ("a mode", |tree| fs::set_permissions(tree.join("file"), PermissionsExt::from_mode(0o4755)).expect("ours")),
        ("an owner", |tree| std::os::unix::fs::lchown(tree.join("link"), None, Some(7)).expect("ours")),
        ("an attribute", |tree| {
            rustix::fs::setxattr(tree.join("dir"), "user.note", b"", XattrFlags::empty()).expect("writable");
        }),
        ("a target", |tree| {
            fs::remove_file(tree.join("link")).expect("writable");
            symlink("another", tree.join("link")).expect("writable");
        }),
        ("a device", |tree| {
            fs::remove_file(tree.join("null")).expect("writable");
            device(tree, 5);
        }),
        ("a hard link instead of a copy", |tree| {
            fs::remove_file(tree.join("copy")).expect("writable");
            fs::hard_link(tree.join("file"), tree.join("copy")).expect("writable");
        }),
        ("an empty directory", |tree| fs::create_dir(tree.join("dir/new")).expect("writable")),
        ("a time", |_| {}),
    ];
    let digest = |change: Change, seconds: i64| -> TreeDigest {
        let store = with_digests();
        let draft = begin(&store, 1, None);
        let tree = Tree::mount(draft.root());
        fs::create_dir(tree.join("dir")).expect("writable");
        fs::write(tree.join("file"), "one").expect("writable");
        fs::write(tree.join("copy"), "one").expect("writable");
        symlink("target", tree.join("link")).expect("writable");
        device(&tree, 3);
        change(&tree);
        set_times(&tree, seconds);
        drop(tree);
        commit(&store, draft).meta().tree_digest.expect("asked for")
    };
    let mut seen = vec![("nothing", digest(nothing, 1))];
    assert_eq!(digest(nothing, 1), seen[0].1);
    for (what, change) in changes {
        let digest = digest(change, if what == "a time" { 2 } else { 1 });
        assert!(seen.iter().all(|(_, other)| *other != digest), "{what}, among {seen:?}");
        seen.push((what, digest));
    }
}

fn device(tree: &Tree, minor: u32) {
    let device = rustix::fs::makedev(1, minor);
    rustix::fs::mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, device).expect("writable");
}

/// Gives every entry of a tree the same time.
fn set_times(tree: &Tree, seconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let mut found = vec![tree.join(".")];
    while let Some(path) = found.pop() {
        if fs::symlink_metadata(&path).expect("it is there").is_dir() {
            found.extend(fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path()));
        }
        rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("ours");
    }
}

/// What is said to be broken, and what came of it.
fn verify(store: &Store, how: Verify) -> (Vec<(String, String)>, Verified) {
    let mut broken = Vec::new();
    let mut hear = |found: &kiln_store::Broken| broken.push((found.what.clone(), found.why.to_string()));
    let verified = store.verify(how, &mut hear).expect("it can be read");
    broken.sort();
    (broken, verified)
}

const DEEP: Verify = Verify { deep: true, dry_run: false };
const DRY: Verify = Verify { deep: true, dry_run: true };

/// 1 ← 2 ← 3, and 1 ← 4.
fn four(store: &Store) {
    let base = make(store, 1, None);
    let middle = make(store, 2, Some(&base));
    make(store, 3, Some(&middle));
    make(store, 4, Some(&base));
}

/// Changes a file and leaves no trace but its content.
fn rot(file: &Path) {
    let modified = fs::metadata(file).expect("it is there").modified().expect("a time");
    fs::write(file, "?").expect("writable");
    fs::File::open(file).expect("it is there").set_modified(modified).expect("ours");
}

#[test]
fn what_is_whole_stays() {
    need!(Need::Root);
    let store = with_digests();
    four(&store);
    let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    assert!(store.commit_cache(draft).expect("it commits"));
    let used =
        || -> Vec<_> { store.list().expect("readable").iter().map(|result| (result.id, result.last_used)).collect() };
    let before = used();
    let (broken, verified) = verify(&store, DEEP);
    assert_eq!(broken, []);
    assert_eq!((verified.results, verified.compared, verified.generations, verified.dropped), (4, 4, 1, 0));
    let (broken, verified) = verify(&store, Verify::default());
    assert_eq!(broken, []);
    assert_eq!(verified.compared, 0);
    assert_eq!(used(), before, "looking is no use");
}

#[test]
fn what_is_broken_goes_with_what_stands_on_it() {
    need!(Need::Root);
    type Damage = fn(&Path);
    let damages: [(&str, bool, Damage); 7] = [
        ("description", false, |result| fs::write(result.join("meta.json"), "{").expect("writable")),
        ("description", false, |result| fs::write(result.join("meta.json"), "").expect("writable")),
        ("log", false, |result| fs::remove_file(result.join("log")).expect("it is there")),
        ("chain", false, |result| fs::write(result.join("chain"), "garbage").expect("writable")),
        ("chain", false, |result| fs::remove_file(result.join("chain")).expect("it is there")),
        ("mount", false, |result| fs::remove_dir_all(result.join("layer")).expect("it is there")),
        ("not what it was", true, |result| rot(&result.join("layer/2"))),
    ];
    for (why, is_deep, damage) in damages {
        let store = with_digests();
        four(&store);
        damage(&store.path().join(format!("result/{}", id(2))));
        if is_deep {
            assert_eq!(verify(&store, Verify::default()).0, []);
        }
        let (broken, verified) = verify(&store, DRY);
        // What stands on it may be broken by it.
        let found = broken.iter().find(|(what, _)| *what == id(2).to_string());
        assert!(found.is_some_and(|(_, found)| found.contains(why)), "{why}: {broken:?}");
        assert!(
            broken.iter().all(|(what, _)| [id(2).to_string(), id(3).to_string()].contains(what)),
            "{why}: {broken:?}"
        );
        assert_eq!((verified.results, verified.dropped), (4, 0));
        assert_eq!(names(&store.path().join("result")).len(), 4);
        assert_eq!(verify(&store, DEEP).1.dropped, 2, "{why}");
        assert_eq!(names(&store.path().join("result")), [id(1).to_string(), id(4).to_string()]);
        assert_eq!(store.list().expect("readable").len(), 2);
        assert_eq!(verify(&store, DEEP).0, []);
    }
}

#[test]
fn a_lost_parent_is_missed() {
    need!(Need::Root);
    let store = TempStore::new();
    four(&store);
    fs::remove_dir_all(store.path().join(format!("result/{}", id(2)))).expect("it is there");
    let (broken, verified) = verify(&store, Verify::default());
    assert_eq!(broken.len(), 1);
    assert!(broken[0].1.contains("which is not there"), "{broken:?}");
    assert_eq!((verified.results, verified.dropped), (3, 1));
}

#[test]
fn what_is_broken_and_in_use_is_told_and_stays() {
    need!(Need::Root);
    let store = with_digests();
    four(&store);
    let used = store.lookup(&id(3)).expect("readable").expect("it is there");
    rot(&store.path().join(format!("result/{}/layer/2", id(2))));
    let (broken, verified) = verify(&store, DEEP);
    assert_eq!((verified.broken, verified.dropped, verified.kept), (broken.len(), 0, 2), "{broken:?}");
    drop(used);
    assert_eq!(verify(&store, DEEP).1.dropped, 2);
}

#[test]
fn broken_generations_of_caches_are_dropped() {
    need!(Need::Root);
    let store = TempStore::new();
    // Each is kept from removal while a copy of it lives.
    let mut copies = Vec::new();
    for text in ["one", "two", "three"] {
        let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
        fs::write(Tree::mount(draft.root()).join(text), text).expect("writable");
        assert!(store.commit_cache(draft).expect("it commits"));
        copies.push(store.begin_cache(b"cache", (0, 0)).expect("a cache"));
    }
    for copy in copies {
        store.discard_cache(copy).expect("it is ours");
    }
    fs::write(store.path().join("cache/cache/2/meta.json"), "{}").expect("writable");
    let (broken, verified) = verify(&store, Verify::default());
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].0, "cache cache, generation 2");
    assert_eq!((verified.generations, verified.dropped), (3, 2));
    let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    assert_eq!(names(&Tree::mount(draft.root()).path()), ["one"]);
}
