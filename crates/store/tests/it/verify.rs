//! Digests of trees.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use kiln_store::TreeDigest;
use kiln_testkit::{Changes as RandomChanges, Need, Tree, need};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::fixture::{TempStore, begin, commit, make};

#[test]
fn a_digest_stays_the_same_where_layers_are_merged() {
    need!(Need::Root);
    let store = TempStore::with_digests();
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
        let store = TempStore::with_digests();
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
