//! The suite that every backend passes, and what is particular to overlayfs.

use std::fs;
use std::path::Path;

use kiln_store::OverlayfsStore;
use kiln_testkit::store::{Fixture, Lack, Sizes, Suite, a_long_line_of_changes_is_kept};
use kiln_testkit::{LoopFs, Need, need};

use crate::fixture::open;

const LACKS: &[Lack] = &[Lack::OverlayMarks, Lack::WrittenLinks];

const OVERLAYFS: Suite = Suite { sizes: Sizes::FULL, lacks: LACKS };

fn overlayfs(path: &Path, fanout: usize, guard: Box<dyn std::any::Any + Send + Sync>) -> Fixture {
    let path = path.join("store");
    drop(open(&path));
    let backend = OverlayfsStore::open(&path, false).expect("it opens").with_fanout(fanout);
    Fixture { backend: Box::new(backend), path, guard }
}

fn in_a_directory(fanout: usize) -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_owned();
    overlayfs(&path, fanout, Box::new(dir))
}

fn on(kind: &str, fanout: usize) -> Fixture {
    let filesystem = LoopFs::new(kind, 400).expect("a filesystem");
    overlayfs(&filesystem.path(), fanout, Box::new(filesystem))
}

#[test]
fn overlayfs_conforms() {
    need!(Need::Root);
    OVERLAYFS.run(|| in_a_directory(32));
}

#[test]
fn overlayfs_on_tmpfs_that_merges_often_conforms() {
    need!(Need::Root);
    OVERLAYFS.run(|| on("tmpfs", 2));
}

#[test]
fn overlayfs_on_xfs_that_merges_sometimes_conforms() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    OVERLAYFS.run(|| on("xfs", 5));
}

#[test]
fn merged_layers_look_as_the_layers_did() {
    need!(Need::Root);
    for seed in 0..3 {
        a_long_line_of_changes_is_kept(in_a_directory(3), LACKS, 100 + seed, 110);
    }
}

#[test]
fn merged_layers_over_a_base_look_as_the_layers_did() {
    need!(Need::Root);
    a_long_line_of_changes_is_kept(in_a_directory(32), LACKS, 200, 110);
}

#[test]
fn a_chain_of_500_steps_stays_short() {
    need!(Need::Root);
    let store = in_a_directory(32);
    let names = |number| {
        let id = kiln_testkit::store::id(number);
        (kiln_store::Name::draft(&id), kiln_store::Name::result(&id))
    };
    let mut longest = 0;
    for number in 0..=500 {
        let (draft, result) = names(number);
        let root = match number {
            0 => store.backend.create(&draft),
            _ => store.backend.clone_tree(&names(number - 1).1, &draft),
        };
        if let kiln_store::Root::Overlay { lower, .. } = &root.expect("a draft") {
            longest = longest.max(lower.len());
        }
        fs::write(store.path.join(draft.as_str()).join("layer").join(number.to_string()), "x").expect("writable");
        store.backend.seal(&draft, &result).expect("it seals");
    }
    assert!(longest < 70, "{longest} layers");
    let tree = kiln_testkit::Tree::mount(&store.backend.open(&names(500).1).expect("it opens"));
    assert_eq!(fs::read_dir(tree.path()).expect("it is readable").count(), 501);
}
