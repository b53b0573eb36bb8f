//! Trees that a step made in order to break the store.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use kiln_testkit::store::deepen;
use kiln_testkit::{Need, Tree, need};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fixture::{TempStore, begin, commit, make, view};

/// Makes 40 children, each with a directory of its own in the tree: more than are merged into one layer.
fn merge_over(store: &TempStore, name: &str) {
    let mut parent = make(store, 1, None);
    for number in 2..40 {
        let draft = begin(store, number, Some(&parent));
        let tree = Tree::mount(draft.root());
        let dir = tree.join(name);
        if number == 2 {
            fs::create_dir(&dir).expect("writable");
            deepen(&dir, 1_500, 2);
            for number in 0..1_500 {
                fs::create_dir(dir.join(format!("wide-{number}"))).expect("writable");
            }
        }
        fs::write(dir.join(number.to_string()), "x").expect("writable");
        drop(tree);
        parent = commit(store, draft);
    }
    assert_eq!(fs::read_dir(view(store, &parent).join(name)).expect("readable").count(), 1_500 + 38 + 3);
}

#[test]
fn deep_and_wide_trees_need_few_descriptors() {
    need!(Need::Root);
    let before = getrlimit(Resource::Nofile);
    // Other tests may run in this process: enough for them, too few for one descriptor a directory.
    setrlimit(Resource::Nofile, Rlimit { current: Some(900), ..before }).expect("lower is allowed");
    merge_over(&TempStore::new(), "dir");
}

#[test]
fn a_step_makes_no_whiteout_and_no_mark_of_overlayfs() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let draft = begin(&store, 2, Some(&base));
    let tree = Tree::mount(draft.root());
    let mknod = |name: &str, major| {
        let device = rustix::fs::makedev(major, 0);
        rustix::fs::mknodat(CWD, tree.join(name), FileType::CharacterDevice, Mode::RUSR, device)
    };
    assert_eq!(mknod("0-0", 0), Err(rustix::io::Errno::PERM));
    mknod("7-0", 7).expect("as far as the store is concerned");
    let set = |name: &str| rustix::fs::setxattr(tree.join("1"), name, b"y", XattrFlags::empty());
    set("user.overlay.opaque").expect("without a meaning");
    // Overlayfs keeps these apart from its own: nothing of this layer's may come to mean something.
    let _ = set("trusted.overlay.opaque");
    drop(tree);
    let mut parent = commit(&store, draft);
    for number in 3..40 {
        parent = make(&store, number, Some(&parent));
    }
    let tree = view(&store, &parent);
    assert!(fs::metadata(tree.join("7-0")).expect("it is there").file_type().is_char_device());
    assert_eq!(fs::read_to_string(tree.join("1")).expect("it is there"), "1");
    assert!(fs::File::open(tree.join("7-0")).is_err(), "devices cannot be opened");
}

#[test]
fn a_cache_with_a_made_up_whiteout_does_no_harm() {
    need!(Need::Root);
    let store = TempStore::new();
    let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    let tree = Tree::mount(draft.root());
    // A new cache is a plain directory, so the kernel permits it.
    rustix::fs::mknodat(CWD, tree.join("0-0"), FileType::CharacterDevice, Mode::RUSR, 0).expect("permitted");
    drop(tree);
    assert!(store.commit_cache(draft).expect("it commits"));
    for number in 0..20 {
        let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
        fs::write(Tree::mount(draft.root()).join(number.to_string()), "x").expect("writable");
        assert!(store.commit_cache(draft).expect("it commits"));
    }
    let draft = store.begin_cache(b"cache", (0, 0)).expect("a cache");
    assert_eq!(fs::read_dir(Tree::mount(draft.root()).path()).expect("readable").count(), 20);
}

#[test]
fn a_file_with_all_the_names_there_can_be_is_merged() {
    need!(Need::Root);
    let store = TempStore::new();
    let mut parent = make(&store, 1, None);
    for number in 2..40 {
        let draft = begin(&store, number, Some(&parent));
        let tree = Tree::mount(draft.root());
        if number == 2 {
            fs::write(tree.join("file"), "linked").expect("writable");
            std::os::unix::fs::symlink("target", tree.join("link")).expect("writable");
            rustix::fs::setxattr(tree.join("file"), "user.note", b"kept", XattrFlags::empty()).expect("writable");
            std::os::unix::fs::lchown(tree.join("link"), Some(12), Some(34)).expect("writable");
            fs::create_dir(tree.join("dir")).expect("writable");
            // Ext4 allows 65 000, other filesystems more.
            for name in 0..33_000 {
                fs::hard_link(tree.join("file"), tree.join(format!("dir/f{name}"))).expect("allowed");
                fs::hard_link(tree.join("link"), tree.join(format!("dir/l{name}"))).expect("allowed");
            }
        }
        drop(tree);
        parent = commit(&store, draft);
    }
    let tree = view(&store, &parent);
    for name in [0, 32_999] {
        let file = tree.join(format!("dir/f{name}"));
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "linked");
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(&file, "user.note", &mut value).expect("it is there");
        assert_eq!(&value[..length], b"kept");
        let link = tree.join(format!("dir/l{name}"));
        assert_eq!(fs::read_link(&link).expect("it is there").as_os_str(), "target");
        assert_eq!(fs::symlink_metadata(&link).expect("it is there").uid(), 12);
    }
}
