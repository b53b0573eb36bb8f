//! Where a store may lie, and a disk that is full or read-only.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use kiln_store::{Limits, Store, StoreError};
use kiln_testkit::{LoopFs, Need, Tree, need};

use crate::fixture::{begin, commit, description, id, location, make, names, open, view};

#[test]
fn a_path_may_hold_any_character() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in [&b"with space"[..], b"colon:comma,", b"back\\slash", b"new\nline", b"\xff\xfe", b"a=b\"'"] {
        let path = dir.path().join(OsStr::from_bytes(name));
        let store = open(&path);
        let base = make(&store, 1, None);
        assert_eq!(names(&view(&store, &make(&store, 2, Some(&base))).path()), ["1", "2"]);
        assert_eq!(store.list().expect("readable").len(), 2);
    }
}

#[test]
fn a_store_is_reached_through_a_link_and_moves_as_a_whole() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (old, new, link) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("link"));
    drop(make(&open(&old), 1, None));
    fs::rename(&old, &new).expect("nobody uses it");
    symlink(&new, &link).expect("writable");
    let store = open(&link);
    let base = store.lookup(&id(1)).expect("readable").expect("it moved along");
    assert_eq!(names(&view(&store, &make(&store, 2, Some(&base.into()))).path()), ["1", "2"]);
}

#[test]
fn what_is_not_a_store_is_left_alone() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir_all(dir.path().join("home/state")).expect("writable");
    fs::create_dir_all(dir.path().join("home/share")).expect("writable");
    fs::write(dir.path().join("file"), "text").expect("writable");
    fs::create_dir_all(dir.path().join("full/other")).expect("writable");
    for name in ["home", "file", "full", "file/below"] {
        let error = Store::open(&location(&dir.path().join(name))).expect_err("no store");
        assert!(matches!(error, StoreError::Format { .. }), "{name}: {error}");
    }
    assert_eq!(names(&dir.path().join("home")), ["share", "state"]);
    assert_eq!(names(&dir.path().join("full")), ["other"]);
}

#[test]
fn a_store_that_was_only_begun_is_finished() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["state", "result", "lost+found"] {
        fs::create_dir(dir.path().join(name)).expect("writable");
    }
    make(&open(dir.path()), 1, None);
}

#[test]
fn an_unfit_filesystem_is_refused_each_time() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let layers = ["lower", "upper", "work"].map(|name| dir.path().join(name));
    for layer in &layers {
        fs::create_dir(layer).expect("writable");
    }
    let [lower, upper, work] = layers;
    let overlay = Tree::mount(&kiln_store::Root::Overlay { lower: vec![lower], writable: Some((upper, work)) });
    for _ in 0..2 {
        let error = Store::open(&location(&overlay.join("store"))).expect_err("an overlay on an overlay");
        assert!(matches!(error, StoreError::Unfit { .. }), "{error}");
        assert_eq!(names(&overlay.join("store")), [""; 0], "nothing is left of the attempt");
    }
}

fn works_on(kind: &str, size_mib: u64) {
    let filesystem = LoopFs::new(kind, size_mib).expect("a filesystem");
    let store = open(&filesystem.path());
    let mut parent = make(&store, 0, None);
    for number in 1..40 {
        parent = make(&store, number, Some(&parent));
    }
    assert_eq!(names(&view(&store, &parent).path()).len(), 40);
    store.mark_durable().expect("the disk works");
    assert!(store.space().expect("it can be asked").free_bytes > 0);
}

#[test]
fn a_store_can_be_a_filesystem_of_its_own() {
    need!(Need::Root, Need::Tool("mkfs.ext4", "e2fsprogs"), Need::Tool("mkfs.xfs", "xfsprogs"));
    works_on("ext4", 32);
    works_on("xfs", 400);
    works_on("tmpfs", 32);
}

/// Writes until the disk is full.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).expect("writable");
    while file.write_all(&[7; 1 << 16]).is_ok() {}
    while file.write_all(&[7; 512]).is_ok() {}
}

#[test]
fn a_full_disk_fails_the_step_and_nothing_else() {
    need!(Need::Root, Need::Tool("mkfs.ext4", "e2fsprogs"));
    let filesystem = LoopFs::new("ext4", 24).expect("a filesystem");
    let store = open(&filesystem.path());
    let base = make(&store, 1, None);
    let draft = begin(&store, 2, Some(&base));
    fill(&Tree::mount(draft.root()).join("huge"));
    let free = |store: &Store| store.space().expect("it can be asked").free_bytes;
    // The log of such a step is what tells why, so it is kept; the draft goes.
    store.fail(draft, description("disk full")).expect("it is kept");
    assert!(free(&store) > 8 << 20);
    assert!(store.failure(&id(2)).expect("readable").is_some());

    let draft = begin(&store, 3, Some(&base));
    fill(&Tree::mount(draft.root()).join("huge"));
    let error = store.commit(draft, description("too much")).expect_err("no room for its description");
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    assert!(free(&store) > 8 << 20);
    assert!(store.lookup(&id(3)).expect("readable").is_none());
    commit(&store, begin(&store, 4, Some(&base)));

    // Full without our doing: pruning works, though the index cannot be written.
    fill(&filesystem.path().join("lost+found/huge"));
    fs::remove_file(filesystem.path().join("state/index.sqlite"))
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .expect("it can be lost");
    let error = store.lease(&id(5)).and_then(|lease| store.begin(lease.expect("it is free"), None));
    assert!(matches!(&error, Err(StoreError::DiskFull { .. })), "{error:?}");
    drop(base);
    let store = open(&filesystem.path());
    let limits = Limits { max_items: Some(1), ..Limits::default() };
    let pruned = store.prune(&limits, std::time::SystemTime::now(), false).expect("it prunes");
    assert_eq!(pruned.removed.len(), 1);
}

#[test]
fn a_read_only_store_gives_errors_and_stays_whole() {
    need!(Need::Root, Need::Tool("mkfs.ext4", "e2fsprogs"));
    let filesystem = LoopFs::new("ext4", 32).expect("a filesystem");
    let store = open(&filesystem.path());
    let base = make(&store, 1, None);
    make(&store, 2, Some(&base));
    drop((store, base));
    filesystem.set_read_only(true).expect("nobody writes");
    let store = open(&filesystem.path());
    assert_eq!(store.list().expect("readable").len(), 2);
    assert!(matches!(store.lookup(&id(1)), Err(StoreError::Io { .. })), "its use cannot be noted");
    assert!(matches!(store.lease(&id(3)), Err(StoreError::Io { .. })));
    assert!(store.begin_cache(b"cache", (0, 0)).is_err());
    assert!(store.remove(&id(2), false).is_err());
    drop(store);
    filesystem.set_read_only(false).expect("it was writable before");
    assert!(open(&filesystem.path()).lookup(&id(2)).expect("readable").is_some());
}
