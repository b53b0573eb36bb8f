//! Everything of one store to another.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use kiln_store::{CopyMode, Kind, Location, Snapshot, Store, StoreError, Transfer, TransferEvent};
use kiln_testkit::store::deepen;
use kiln_testkit::{Changes as RandomChanges, LoopFs, Need, Tree, need};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fixture::{Helper, TempStore, begin, commit, description, id, make, names, open, view, write};
use crate::verify::with_digests;

/// Copies everything, which must be possible.
fn copy(from: &Store, to: &Store) -> Transfer {
    let mut heard = |event: TransferEvent<'_>| assert!(matches!(event, TransferEvent::Copied { .. }), "{event:?}");
    to.copy_from(from, &mut heard).expect("it copies")
}

fn found(store: &Store, number: u64) -> Snapshot {
    store.lookup(&id(number)).expect("readable").expect("it is there")
}

/// Makes results by random changes: one line of them, off which others branch.
fn fill(store: &Store, count: u64) {
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let mut random = RandomChanges::new(11);
    let mut line: Vec<Arc<Snapshot>> = Vec::new();
    for number in 0..count {
        let draft = begin(store, number, line.last());
        let tree = Tree::mount(draft.root());
        for _ in 0..5 {
            random.make(&tree.path(), mirror.path()).expect("writable");
        }
        drop(tree);
        (&**draft.log()).write_all(format!("log of {number}\n").as_bytes()).expect("a log");
        line.push(commit(store, draft));
        if number % 7 == 3 {
            make(store, 1_000 + number, line.last());
        }
    }
}

/// Whatever can be told of a result but where its bytes are.
fn told(store: &Store, number: u64) -> (Vec<String>, String, serde_json::Value) {
    let snapshot = found(store, number);
    let mut log = String::new();
    snapshot.log().expect("a log").read_to_string(&mut log).expect("text");
    let mut meta = serde_json::to_value(snapshot.meta()).expect("it is JSON");
    for own in ["boot_id", "boot_ns", "size_bytes"] {
        meta.as_object_mut().expect("an object").remove(own).expect("it is there");
    }
    (view(store, &snapshot).describe(), log, meta)
}

#[test]
fn what_is_found_in_the_place_of_a_result_is_so_in_the_copy_too() {
    need!(Need::Root);
    let (from, to) = (TempStore::new(), TempStore::new());
    let first = make(&from, 1, None);
    let lease = from.lease(&id(2)).expect("a lease").expect("nobody has it").renewing(id(1));
    let draft = from.begin(lease, None).expect("a draft");
    assert_eq!(from.renewals(&id(1)).expect("readable"), [], "a draft is found by nobody");
    let second = commit(&from, draft);
    make(&from, 3, Some(&second));
    assert_eq!(from.renewals(&id(1)).expect("readable"), [id(2)]);
    assert_eq!(from.renewals(&id(2)).expect("readable"), []);
    assert_eq!((first.meta().renews, second.meta().renews), (None, Some(id(1))));
    copy(&from, &to);
    assert_eq!(to.renewals(&id(1)).expect("readable"), [id(2)]);
    drop((first, second));
    from.remove(&id(2), true).expect("nobody uses it");
    assert_eq!(from.renewals(&id(1)).expect("readable"), []);
}

#[test]
fn every_result_is_copied_as_it_is() {
    need!(Need::Root);
    let (from, to) = (with_digests(), TempStore::new());
    fill(&from, 70);
    let before = from.list().expect("readable");
    let transfer = copy(&from, &to);
    assert_eq!((transfer.results, transfer.there, transfer.skipped), (80, 0, 0));
    assert!(transfer.bytes > 0);
    // Neither has become younger.
    let used = |listed: Vec<kiln_store::Listed>| -> Vec<_> {
        listed.into_iter().map(|result| (result.id, result.parent, result.created_ms, result.last_used)).collect()
    };
    assert_eq!(used(from.list().expect("readable")), used(before.clone()));
    assert_eq!(used(to.list().expect("readable")), used(before));
    for number in (0..70).chain((0..70).filter(|number| number % 7 == 3).map(|number| number + 1_000)) {
        assert_eq!(told(&to, number), told(&from, number), "{number}");
    }
    let again = copy(&from, &to);
    assert_eq!((again.results, again.there, again.bytes), (0, 80, 0));
    for place in ["draft", "trash", "state/leases"] {
        assert_eq!(names(&to.path().join(place)), [""; 0], "{place}");
    }
    assert!(!to.has_unmarked_results(), "it is on the disk");
}

/// Copies a store to one on `filesystem` and from there to a third, and looks that all stays what it was, shared as
/// it was.
fn there_and_back(kind: Kind, filesystem: &LoopFs) {
    let (from, back) = (with_digests(), TempStore::new());
    let there = Location { kind, place: filesystem.path().join("store") };
    let there = Store::open(&there).expect("the store opens");
    let draft = begin(&from, 2_000, None);
    fs::write(Tree::mount(draft.root()).join("large"), vec![7; 4 << 20]).expect("writable");
    let mut last = commit(&from, draft);
    for number in 2_001..2_012 {
        last = make(&from, number, Some(&last));
    }
    let free = || there.space().expect("a filesystem").free_bytes;
    let before = free();
    let transfer = copy(&from, &there);
    assert_eq!((transfer.results, transfer.bytes), (12, (4 << 20) + 11 * 4));
    if kind != Kind::Copy(CopyMode::Copy) {
        assert!(before - free() < 16 << 20, "{} bytes for 4 MiB", before - free());
    }
    fill(&from, 30);
    assert_eq!(copy(&from, &there).results, 34);
    assert_eq!(copy(&there, &back).results, 46);
    for number in (0..30).chain(2_000..2_012) {
        assert_eq!(told(&there, number), told(&from, number), "{number}");
        assert_eq!(told(&back, number), told(&from, number), "{number}");
    }
}

#[test]
fn overlayfs_to_itself() {
    need!(Need::Root);
    there_and_back(Kind::Overlayfs, &LoopFs::new("tmpfs", 400).expect("a filesystem"));
}

#[test]
fn overlayfs_to_btrfs_and_back() {
    need!(Need::Root, Need::Tool("mkfs.btrfs", "btrfs-progs"));
    there_and_back(Kind::Btrfs, &LoopFs::new("btrfs", 400).expect("a filesystem"));
}

#[test]
fn overlayfs_to_reflinks_and_back() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    there_and_back(Kind::Xfs, &LoopFs::new("xfs", 400).expect("a filesystem"));
}

#[test]
fn overlayfs_to_copies_and_back() {
    need!(Need::Root);
    for mode in [CopyMode::Copy, CopyMode::Hardlink] {
        there_and_back(Kind::Copy(mode), &LoopFs::new("tmpfs", 400).expect("a filesystem"));
    }
}

#[test]
fn pins_are_copied() {
    need!(Need::Root);
    let (from, to) = (TempStore::new(), TempStore::new());
    make(&from, 1, None);
    make(&from, 2, None);
    from.pin(&id(1)).expect("it is there");
    copy(&from, &to);
    let pinned: Vec<_> =
        to.list().expect("readable").iter().filter(|result| result.is_pinned).map(|result| result.id).collect();
    assert_eq!(pinned, [id(1)]);
}

#[test]
fn caches_and_logs_of_failures_are_copied() {
    need!(Need::Root);
    let (from, to) = (TempStore::new(), TempStore::new());
    for text in ["one", "two"] {
        let draft = from.begin_cache(b"a cache", (12, 34)).expect("a cache");
        fs::write(Tree::mount(draft.root()).join(text), text).expect("writable");
        assert!(from.commit_cache(draft).expect("it commits"));
    }
    for number in [1, 2] {
        let draft = begin(&from, number, None);
        (&**draft.log()).write_all(b"why\n").expect("a log");
        from.fail(draft, description("went wrong")).expect("it is kept");
    }
    // It is better known there.
    make(&to, 2, None);
    let transfer = copy(&from, &to);
    assert_eq!((transfer.caches, transfer.failures), (1, 1));
    let cache = to.begin_cache(b"a cache", (0, 0)).expect("a cache");
    let theirs = from.begin_cache(b"a cache", (0, 0)).expect("a cache");
    assert_eq!(Tree::mount(cache.root()).describe(), Tree::mount(theirs.root()).describe());
    let (meta, mut log) = to.failure(&id(1)).expect("readable").expect("kept");
    let mut text = String::new();
    log.read_to_string(&mut text).expect("text");
    assert_eq!((&*meta.summary, &*text), ("went wrong", "why\n"));
    assert!(to.failure(&id(2)).expect("readable").is_none());
    let again = copy(&from, &to);
    assert_eq!((again.caches, again.failures), (0, 0));
}

/// `system.posix_acl_access` or `_default`, `posix_acl_xattr.h`: who may what, and user 1234 may all.
fn access_list() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, user) in [(0x01_u16, u32::MAX), (0x02, 1234), (0x04, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        bytes.extend([tag.to_le_bytes(), 7_u16.to_le_bytes()].concat());
        bytes.extend(user.to_le_bytes());
    }
    bytes
}

#[test]
fn hard_links_access_lists_and_kinds_are_kept() {
    need!(Need::Root);
    let (from, to) = (with_digests(), TempStore::new());
    let draft = begin(&from, 1, None);
    let tree = Tree::mount(draft.root());
    let at = |path: &str| tree.join(path);
    for dir in ["dir", "acl", "full", "full/of", "changes"] {
        fs::create_dir(at(dir)).expect("writable");
    }
    fs::write(at("full/of/files"), "x").expect("writable");
    for (file, links) in [("a", ["dir/a", "dir/aa"]), ("b", ["dir/b", "dir/bb"]), ("c", ["dir/c", "dir/cc"])] {
        fs::write(at(file), file).expect("writable");
        links.iter().for_each(|link| fs::hard_link(at(file), at(link)).expect("writable"));
    }
    rustix::fs::setxattr(at("acl"), "system.posix_acl_default", &access_list(), XattrFlags::empty()).expect("writable");
    fs::write(at("acl/with"), "has it").expect("writable");
    fs::write(at("acl/without"), "has none").expect("writable");
    rustix::fs::removexattr(at("acl/without"), "system.posix_acl_access").expect("it had one");
    rustix::fs::setxattr(at("changes"), "user.old", b"1", XattrFlags::empty()).expect("writable");
    rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, Mode::RUSR, 0).expect("writable");
    symlink("/etc/shadow", at("link")).expect("writable");
    drop(tree);
    let base = commit(&from, draft);

    let draft = begin(&from, 2, Some(&base));
    let tree = Tree::mount(draft.root());
    let at = |path: &str| tree.join(path);
    // Tears `a` from its other names, adds one to `b`, and changes nothing that shows of `c` but its inode.
    fs::set_permissions(at("a"), PermissionsExt::from_mode(0o600)).expect("ours");
    fs::hard_link(at("b"), at("b-too")).expect("writable");
    fs::set_permissions(at("c"), fs::metadata(at("c")).expect("it is there").permissions()).expect("ours");
    fs::remove_dir_all(at("full")).expect("writable");
    symlink("dir", at("full")).expect("writable");
    fs::remove_file(at("link")).expect("writable");
    fs::create_dir(at("link")).expect("writable");
    fs::write(at("link/inside"), "x").expect("writable");
    fs::write(at("acl/new"), "has none").expect("writable");
    rustix::fs::removexattr(at("acl/new"), "system.posix_acl_access").expect("it had one");
    fs::create_dir(at("acl/dir")).expect("writable");
    rustix::fs::removexattr(at("acl/dir"), "system.posix_acl_default").expect("it had one");
    rustix::fs::removexattr(at("changes"), "user.old").expect("it had one");
    std::os::unix::fs::chown(tree.path(), Some(5), Some(6)).expect("ours");
    drop(tree);
    commit(&from, draft);

    // Each is compared with its digest, which knows hard links.
    assert_eq!(copy(&from, &to).results, 2);
    for number in [1, 2] {
        assert_eq!(told(&to, number), told(&from, number));
    }
    let tree = view(&to, &found(&to, 2));
    let ino = |path: &str| fs::metadata(tree.join(path)).expect("it is there").ino();
    assert_eq!(ino("b"), ino("b-too"));
    assert_eq!(ino("dir/a"), ino("dir/aa"));
    assert_ne!(ino("a"), ino("dir/a"));
    assert!(fs::symlink_metadata(tree.join("socket")).expect("it is there").file_type().is_socket());
}

#[test]
fn deep_and_wide_trees_need_few_descriptors() {
    need!(Need::Root);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(900), ..before }).expect("lower is allowed");
    // In memory: disks take their time to remove what is nested so deeply.
    let memory = LoopFs::new("tmpfs", 100).expect("a filesystem");
    let from = open(&memory.path().join("from")).with_digests(true);
    let to = open(&memory.path().join("to"));
    let draft = begin(&from, 1, None);
    let tree = Tree::mount(draft.root());
    for dir in ["kept", "gone"] {
        fs::create_dir(tree.join(dir)).expect("writable");
        deepen(&tree.join(dir), 1_000, 1);
    }
    for number in 0..1_500 {
        fs::write(tree.join(format!("wide-{number}")), "x").expect("writable");
    }
    drop(tree);
    let base = commit(&from, draft);
    let draft = begin(&from, 2, Some(&base));
    let tree = Tree::mount(draft.root());
    // The standard library would need a descriptor for each level.
    assert!(
        std::process::Command::new("rm")
            .arg("-r")
            .arg("gone")
            .current_dir(tree.path())
            .status()
            .expect("it runs")
            .success()
    );
    fs::write(tree.join("kept/0/0/0/new"), "x").expect("writable");
    drop(tree);
    commit(&from, draft);
    assert_eq!(copy(&from, &to).results, 2);
    assert_eq!(names(&view(&to, &found(&to, 2)).join("kept/0/0/0")), ["0", "file", "new"]);
}

#[test]
fn what_is_damaged_is_told_and_left_out_with_what_stands_on_it() {
    need!(Need::Root);
    let (from, to) = (with_digests(), TempStore::new());
    let base = make(&from, 1, None);
    let middle = make(&from, 2, Some(&base));
    let top = make(&from, 3, Some(&middle));
    make(&from, 4, Some(&top));
    make(&from, 5, Some(&base));
    let draft = from.begin_cache(b"cache", (0, 0)).expect("a cache");
    assert!(from.commit_cache(draft).expect("it commits"));
    // Bits rot, a file is lost, and a chain is torn.
    let times = fs::metadata(from.path().join(format!("result/{}/layer/2", id(2)))).expect("it is there");
    fs::write(from.path().join(format!("result/{}/layer/2", id(2))), "?").expect("writable");
    let file = fs::File::open(from.path().join(format!("result/{}/layer/2", id(2)))).expect("it is there");
    file.set_modified(times.modified().expect("a time")).expect("ours");
    fs::remove_file(from.path().join(format!("result/{}/log", id(5)))).expect("it is there");
    fs::write(from.path().join("cache/cache/1/chain"), "").expect("writable");
    drop((base, middle, top));
    let mut skipped = Vec::new();
    let mut hear = |event: TransferEvent<'_>| {
        if let TransferEvent::Skipped { what, children, why } = event {
            skipped.push((what, children, why.to_string()));
        }
    };
    let transfer = to.copy_from(&from, &mut hear).expect("the rest is whole");
    assert_eq!((transfer.results, transfer.skipped, transfer.caches), (1, 5, 0), "{skipped:?}");
    skipped.sort();
    let reasons: Vec<_> =
        skipped.iter().map(|(what, children, why)| (&**what, *children, why.contains("not what it was"))).collect();
    let (two, five) = (id(2).to_string(), id(5).to_string());
    assert_eq!(reasons, [(&*two, 2, true), (&*five, 0, false), ("cache cache", 0, false)], "{skipped:?}");
    assert_eq!(to.list().expect("readable").len(), 1);
    assert_eq!(names(&to.path().join("draft")), [""; 0]);
}

#[test]
fn a_parent_that_was_made_there_may_be_another_tree() {
    need!(Need::Root);
    let (from, to) = (TempStore::new(), TempStore::new());
    for (store, text) in [(&from, "first"), (&to, "second")] {
        let draft = begin(store, 1, None);
        write(&draft, text);
        write(&draft, "the same");
        commit(store, draft);
    }
    make(&from, 2, Some(&Arc::new(found(&from, 1))));
    assert_eq!(copy(&from, &to).there, 1);
    assert_eq!(names(&view(&to, &found(&to, 2)).path()), ["2", "first", "the same"]);
    assert_eq!(view(&to, &found(&to, 2)).describe(), view(&from, &found(&from, 2)).describe());
}

#[test]
fn a_copy_that_was_killed_goes_on() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    let store = open(&path);
    fill(&store, 30);
    let mut copying = Helper::start("copy", &path);
    while copying.hear().expect("it copies") != "9" {}
    copying.kill();
    let to = open(&path.with_extension("copy"));
    let transfer = copy(&store, &to);
    assert!(transfer.there >= 9, "{transfer:?}");
    assert_eq!(transfer.there + transfer.results, 34);
    for number in 0..30 {
        assert_eq!(told(&to, number), told(&store, number), "{number}");
    }
}

#[test]
fn two_copies_at_once_do_no_harm() {
    need!(Need::Root);
    let (from, to) = (TempStore::new(), TempStore::new());
    fill(&from, 30);
    let copies = std::thread::scope(|scope| {
        let copies = [0, 1]
            .map(|_| scope.spawn(|| open(to.path()).copy_from(&open(from.path()), &mut |_| {}).expect("it copies")));
        copies.map(|copy| copy.join().expect("no panic"))
    });
    assert_eq!(copies.iter().map(|copy| copy.results).sum::<usize>(), 34);
    assert!(copies.iter().all(|copy| copy.results + copy.there == 34 && copy.skipped == 0), "{copies:?}");
    for number in 0..30 {
        assert_eq!(told(&to, number), told(&from, number), "{number}");
    }
}

#[test]
fn a_store_is_not_copied_to_itself() {
    need!(Need::Root);
    let store = TempStore::new();
    make(&store, 1, None);
    let link = store.path().with_extension("link");
    symlink(store.path(), &link).expect("writable");
    let error = open(&link).copy_from(&store, &mut |_| {}).expect_err("it is one");
    assert!(matches!(error, StoreError::BadLocation { .. }), "{error}");
}

#[test]
fn a_full_disk_ends_the_copy_and_what_is_there_stays() {
    need!(Need::Root);
    let from = TempStore::new();
    let base = make(&from, 1, None);
    let draft = begin(&from, 2, Some(&base));
    fs::write(Tree::mount(draft.root()).join("large"), vec![7; 8 << 20]).expect("writable");
    commit(&from, draft);
    let small = LoopFs::new("tmpfs", 4).expect("a filesystem");
    let to = open(Path::new(&small.path()));
    let error = to.copy_from(&from, &mut |_| {}).expect_err("it is full");
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert_eq!(to.list().expect("readable").len(), 1);
    assert_eq!(names(&to.path().join("draft")), [""; 0]);
}
