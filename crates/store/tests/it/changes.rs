//! What a result changed, and where to look for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_testkit::{Changes as RandomChanges, Need, Tree, need, without_links};

use crate::fixture::{TempStore, begin, commit, make};

/// What `describe` says of each entry, but which files have other names: those can change while it stays as it is.
fn entries(tree: &Tree) -> BTreeSet<String> {
    without_links(&tree.describe()).into_iter().collect()
}

/// The paths of all that a directory names.
fn named(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([PathBuf::new()]);
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("readable") {
            let entry = entry.expect("readable");
            found.insert(entry.path().strip_prefix(root).expect("below").to_owned());
            if entry.file_type().expect("known").is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_result_without_a_parent_is_all_new() {
    need!(Need::Root);
    let store = TempStore::new();
    let changes = store.changes(&make(&store, 1, None)).expect("it is whole");
    assert!(changes.below.is_none() && changes.own.is_none(), "{changes:?}");
    assert!(Tree::mount(&changes.tree).join("1").exists());
}

#[test]
fn a_result_stands_beside_its_parent() {
    need!(Need::Root);
    let store = TempStore::new();
    let base = make(&store, 1, None);
    let changes = store.changes(&make(&store, 2, Some(&base))).expect("it is whole");
    assert!(!Tree::mount(&changes.below.expect("a parent")).join("2").exists());
    assert!(Tree::mount(&changes.tree).join("1").exists());
    assert_eq!(named(&changes.own.expect("overlayfs knows")), ["", "2"].map(PathBuf::from).into());
}

#[test]
fn all_that_differs_is_named_also_where_layers_were_merged() {
    need!(Need::Root);
    let store = TempStore::new();
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let mut random = RandomChanges::new(3);
    let mut last = None;
    // More than it takes to merge layers.
    for number in 0..70 {
        let draft = begin(&store, number, last.as_ref());
        let tree = Tree::mount(draft.root());
        let made: Vec<String> = (0..4).map(|_| random.make(&tree.path(), mirror.path()).expect("writable")).collect();
        drop(tree);
        let snapshot = commit(&store, draft);
        let changes = store.changes(&snapshot).expect("it is whole");
        last = Some(snapshot);
        let (Some(below), Some(own)) = (&changes.below, &changes.own) else { continue };
        let (below, tree) = (Tree::mount(below), Tree::mount(&changes.tree));
        let own = named(own);
        for line in entries(&below).symmetric_difference(&entries(&tree)) {
            let path = line.strip_prefix('"').and_then(|line| line.split_once("\" ")).expect("a quoted path").0;
            // Names that are quoted differently are left to others.
            let path = Path::new(path.strip_prefix("./").unwrap_or(path));
            if path == Path::new("") || path.to_string_lossy().contains('\\') {
                continue;
            }
            // What lies below something new or removed is named by that.
            let is_named = path.ancestors().any(|path| path != Path::new("") && own.contains(path));
            assert!(is_named, "step {number}: {line}, after {made:?}");
        }
    }
}
