//! What is particular to stores on btrfs.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_store::{Backend, BtrfsStore, Draft, Kind, Location, Name, Root, Store, StoreError};
use kiln_testkit::store::{Fixture, conformance, deepen};
use kiln_testkit::{LoopFs, Need, Tree, need};
use rustix::fs::{CWD, IFlags, Mode, OFlags, ioctl_setflags, openat, renameat};

use crate::fixture::{begin, commit, description, id, make, names, view};

const BTRFS: Need = Need::Tool("mkfs.btrfs", "btrfs-progs");

fn location(path: &Path) -> Location {
    Location { kind: Kind::Btrfs, place: path.to_owned() }
}

/// A store on a btrfs of its own.
struct OnBtrfs {
    store: Store,
    filesystem: LoopFs,
}

impl OnBtrfs {
    fn new() -> Self {
        Self::of(400)
    }

    fn of(size_mib: u64) -> Self {
        let filesystem = LoopFs::new("btrfs", size_mib).expect("a filesystem");
        let store = Store::open(&location(&filesystem.path().join("store"))).expect("the store opens");
        Self { store, filesystem }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    fn subvolumes(&self) -> usize {
        btrfs(&["subvolume", "list"], &self.filesystem.path()).lines().count()
    }
}

/// Waits until the space of what was removed is free.
fn clean(on: &OnBtrfs) {
    // The first wakes whoever does that, the last makes it count.
    for command in [["filesystem", "sync"], ["subvolume", "sync"], ["filesystem", "sync"]] {
        btrfs(&command, &on.filesystem.path());
    }
}

/// Runs the command `btrfs` on `path` and returns what it says.
fn btrfs(arguments: &[&str], path: &Path) -> String {
    let output = Command::new("btrfs").args(arguments).arg(path).output().expect("it is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn btrfs_conforms() {
    need!(Need::Root, BTRFS);
    conformance(|| {
        let filesystem = LoopFs::new("btrfs", 400).expect("a filesystem");
        let path = filesystem.path().join("store");
        drop(Store::open(&location(&path)).expect("the store opens"));
        let backend = BtrfsStore::open(&path, false).expect("it opens");
        Fixture { backend: Box::new(backend), path, guard: Box::new(filesystem) }
    });
}

#[test]
fn only_a_btrfs_can_have_such_a_store() {
    need!(Need::Root, BTRFS);
    let filesystem = LoopFs::new("btrfs", 400).expect("a filesystem");
    let path = filesystem.path().join("store");
    for kind in [Kind::Btrfs, Kind::Auto] {
        drop(Store::open(&Location { kind, place: path.clone() }).expect("the store opens"));
        assert_eq!(fs::read_to_string(path.join("state/format")).expect("readable").trim(), "kiln-store 2 btrfs");
    }
    assert_eq!(btrfs(&["subvolume", "list"], &filesystem.path()), "", "what was tried is gone");
    let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let error = Store::open(&location(&elsewhere.path().join("store"))).expect_err("no btrfs");
    assert!(matches!(error, StoreError::Unfit { .. }), "{error}");
}

/// Where the tree of a draft is: commands cannot follow this process's descriptors.
fn place(draft: &Draft) -> &Path {
    match draft.root() {
        Root::Dir(path) => path,
        other => panic!("{other:?}"),
    }
}

const NESTED: [&str; 3] = ["dir/outer", "dir/outer/inner", "other"];

/// Makes subvolumes in the tree, one of them in another.
fn nest(tree: &Path) {
    fs::create_dir(tree.join("dir")).expect("writable");
    for path in NESTED {
        btrfs(&["subvolume", "create"], &tree.join(path));
        fs::write(tree.join(path).join("file"), path).expect("writable");
    }
    fs::set_permissions(tree.join("dir/outer/inner"), fs::Permissions::from_mode(0o1711)).expect("ours");
}

#[test]
fn subvolumes_in_a_tree_are_in_its_clones() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let draft = begin(&on.store, 1, None);
    nest(place(&draft));
    let made = Tree::mount(draft.root()).describe();
    let base = commit(&on.store, draft);
    assert_eq!(view(&on.store, &base).describe(), made);
    assert!(fs::write(view(&on.store, &base).join("dir/outer/file"), "x").is_err(), "what is sealed is read-only");

    let draft = begin(&on.store, 2, Some(&base));
    let tree = Tree::mount(draft.root());
    assert_eq!(tree.describe(), made);
    fs::write(tree.join("dir/outer/inner/file"), "changed").expect("writable");
    fs::remove_file(tree.join("other/file")).expect("writable");
    let changed = tree.describe();
    drop(tree);
    let child = commit(&on.store, draft);
    let grandchild = commit(&on.store, begin(&on.store, 3, Some(&child)));
    assert_eq!(view(&on.store, &base).describe(), made, "a child changed it");
    assert_eq!(view(&on.store, &grandchild).describe(), changed);

    assert_eq!(on.subvolumes(), 3 * (1 + NESTED.len()));
    drop((base, child, grandchild));
    on.store.remove(&id(1), true).expect("nobody uses it");
    assert_eq!(on.subvolumes(), 0);
}

#[test]
fn a_subvolume_where_no_path_leads_is_cloned_and_removed() {
    const DEPTH: usize = 2_500;
    /// Opens the lowest directory.
    fn descend(tree: &Path) -> OwnedFd {
        let mut at = fs::File::open(tree.join("deep")).expect("it is there").into();
        for _ in 0..DEPTH {
            at = openat(&at, "0", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("it is there");
        }
        at
    }
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let draft = begin(&on.store, 1, None);
    nest(place(&draft));
    fs::create_dir(place(&draft).join("deep")).expect("writable");
    deepen(&place(&draft).join("deep"), DEPTH, 1);
    renameat(CWD, place(&draft).join("dir/outer"), descend(place(&draft)), "deepest").expect("one filesystem");
    let base = commit(&on.store, draft);

    let draft = begin(&on.store, 2, Some(&base));
    renameat(descend(place(&draft)), "deepest", CWD, place(&draft).join("here")).expect("one filesystem");
    assert_eq!(fs::read_to_string(place(&draft).join("here/inner/file")).expect("it is there"), "dir/outer/inner");
    on.store.discard(draft).expect("it goes");
    drop(base);
    on.store.remove(&id(1), true).expect("nobody uses it");
    assert_eq!(on.subvolumes(), 0);
}

/// Sets all that keeps a directory from being changed or removed.
fn protect(path: &Path) {
    let directory = fs::File::open(path).expect("it is there");
    ioctl_setflags(&directory, IFlags::IMMUTABLE | IFlags::APPEND).expect("root may");
}

fn read_only(subvolume: &Path) {
    let set = Command::new("btrfs").args(["property", "set", "-ts"]).arg(subvolume).args(["ro", "true"]).status();
    assert!(set.expect("it is installed").success());
}

#[test]
fn what_a_step_protects_can_be_cloned_and_removed() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let draft = begin(&on.store, 1, None);
    let tree = place(&draft);
    fs::write(tree.join("file"), "text").expect("writable");
    protect(&tree.join("file"));
    protect(tree);
    read_only(tree);
    let base = commit(&on.store, draft);
    let draft = begin(&on.store, 2, Some(&base));
    assert_eq!(Tree::mount(draft.root()).describe(), view(&on.store, &base).describe());
    on.store.discard(draft).expect("it goes");
    drop(base);
    on.store.remove(&id(1), false).expect("nobody uses it");
    assert_eq!(on.subvolumes(), 0);
}

#[test]
fn subvolumes_that_a_step_protects_are_removed() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let draft = begin(&on.store, 1, None);
    let tree = place(&draft);
    nest(tree);
    for path in ["dir", "dir/outer/inner", "dir/outer", "other", "."] {
        protect(&tree.join(path));
    }
    for path in NESTED {
        read_only(&tree.join(path));
    }
    read_only(tree);
    on.store.discard(draft).expect("it goes");
    assert_eq!(on.subvolumes(), 0);
}

#[test]
fn what_a_crash_leaves_is_swept() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let (draft, other) = (begin(&on.store, 1, None), begin(&on.store, 2, None));
    nest(place(&draft));
    nest(place(&other));
    // A removal that went no further than its rename, and one that destroyed some of the subvolumes.
    fs::rename(on.path(Name::draft(&id(2)).as_str()), on.path("trash/old")).expect("one filesystem");
    btrfs(&["subvolume", "delete"], &on.path("trash/old/tree/dir/outer/inner"));
    fs::create_dir(on.path(Name::draft(&id(3)).as_str())).expect("writable");
    drop((draft, other));
    assert_eq!(on.subvolumes(), 2 * (1 + NESTED.len()) - 1);
    drop(Store::open(&location(on.store.path())).expect("the store opens"));
    assert_eq!(on.subvolumes(), 0);
    assert_eq!((names(&on.path("draft")), names(&on.path("trash"))), (vec![], vec![]));
}

#[test]
fn a_tree_is_as_big_as_what_it_does_not_share() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let backend = BtrfsStore::open(on.store.path(), false).expect("it opens");
    let write = |path: PathBuf, kib: usize| fs::write(path, vec![7; kib << 10]).expect("writable");
    let draft = begin(&on.store, 1, None);
    write(place(&draft).join("large"), 3_000);
    fs::write(place(&draft).join("inline"), [7; 100]).expect("writable");
    nest(place(&draft));
    write(place(&draft).join("other/large"), 500);
    let base = commit(&on.store, draft);
    let draft = begin(&on.store, 2, Some(&base));
    write(place(&draft).join("more"), 1_000);
    write(place(&draft).join("dir/outer/more"), 200);
    fs::set_permissions(place(&draft).join("large"), fs::Permissions::from_mode(0o600)).expect("writable");
    let copy = Command::new("cp").arg("--reflink").arg("more").arg("shared").current_dir(place(&draft)).status();
    assert!(copy.expect("it runs").success());
    let child = commit(&on.store, draft);
    commit(&on.store, begin(&on.store, 3, Some(&child)));

    let trees = [1, 2, 3, 4].map(|number| Name::result(&id(number)));
    let inline = NESTED.iter().map(|path| path.len() as u64).sum::<u64>() + 100;
    let expected = [Some((3_500 << 10) + inline), Some(1_200 << 10), Some(0), None];
    assert_eq!(backend.sizes(&trees).expect("it measures"), expected);
    // Without its child, what the base has is its own.
    drop((base, child));
    on.store.remove(&id(2), true).expect("nobody uses it");
    assert_eq!(backend.sizes(&trees[..1]).expect("it measures"), expected[..1]);
    clean(&on);
    let du = btrfs(&["filesystem", "du", "-s", "--raw"], &on.path(trees[0].as_str()).join("tree"));
    let exclusive = du.lines().last().and_then(|line| line.split_whitespace().nth(1)).expect("a table");
    let exclusive: u64 = exclusive.parse().expect("bytes");
    assert!(exclusive.abs_diff(3_500 << 10) <= 4 * 4096, "{du}");
}

#[test]
fn five_hundred_steps_stand_on_each_other_and_their_space_comes_back() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::new();
    let free = |on: &OnBtrfs| {
        clean(on);
        on.store.space().expect("it can be asked").free_bytes
    };
    let draft = begin(&on.store, 0, None);
    fs::write(place(&draft).join("large"), vec![7; 50 << 20]).expect("writable");
    let mut parent = commit(&on.store, draft);
    for number in 1..500 {
        parent = make(&on.store, number, Some(&parent));
    }
    assert_eq!(names(&view(&on.store, &parent).path()).len(), 500);
    let full = free(&on);
    drop(parent);
    on.store.remove(&id(0), true).expect("nobody uses it");
    let freed = free(&on).saturating_sub(full);
    // Less what the index took.
    assert!(freed >= 30 << 20, "{freed}");
}

/// Writes until there is no room for data and, with `small` files, none for names either.
fn fill(tree: &Path, small: bool) {
    let mut names = (0..).map(|number| tree.join(number.to_string()));
    while small && fs::write(names.next().expect("endless"), [7; 1_500]).is_ok() {}
    let mut file = fs::File::create(tree.join("file")).expect("a name was given back");
    while file.write_all(&[7; 1 << 20]).is_ok() {}
}

#[test]
fn a_disk_that_a_step_filled_has_room_for_the_next() {
    need!(Need::Root, BTRFS);
    let on = OnBtrfs::of(128);
    let base = make(&on.store, 1, None);
    for small in [false, true] {
        let draft = begin(&on.store, 2, Some(&base));
        fs::write(place(&draft).join("file"), "x").expect("writable");
        fill(place(&draft), small);
        let error = on.store.commit(draft, description("too much")).expect_err("no room for its description");
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        let draft = begin(&on.store, 3, Some(&base));
        fs::write(place(&draft).join("large"), vec![7; 10 << 20]).expect("there is room again");
        fs::File::open(place(&draft).join("large")).and_then(|file| file.sync_all()).expect("really");
        on.store.discard(draft).expect("it goes");
    }
    assert_eq!(on.subvolumes(), 1);
}
