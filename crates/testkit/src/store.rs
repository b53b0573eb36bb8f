//! What every backend of a store must do.

use std::any::Any;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use kiln_store::{Backend, Id, Name};
use rustix::fs::XattrFlags;

use crate::{Changes, Tree, describe};

/// A backend on a new, empty store.
#[derive(Debug)]
pub struct Fixture {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// The store's directory.
    pub path: PathBuf,
    /// What goes away with the test: a directory, a filesystem.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Runs the whole suite, each test on its own fixture.
///
/// # Panics
///
/// The backend breaks a promise.
pub fn conformance(fresh: impl Fn() -> Fixture) {
    drafts_are_invisible_until_sealed(&fresh());
    what_is_sealed_is_not_changed_by_its_children(&fresh());
    a_clone_is_equal_in_all_that_shows(&fresh());
    trees_are_removed_in_any_order(&fresh());
    removing_what_is_not_there_is_success(&fresh());
    a_long_line_of_changes_is_kept(&fresh(), 7, 60);
    a_wide_and_deep_tree_is_measured_and_removed(&fresh());
}

/// Returns an id for tests.
pub fn id(number: u64) -> Id {
    let mut bytes = [0_u8; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::new(bytes)
}

fn names(number: u64) -> (Name, Name) {
    (Name::draft(&id(number)), Name::result(&id(number)))
}

/// Makes the result `number`, a clone of `from` or new, changed by `change`.
fn make(store: &Fixture, number: u64, from: Option<u64>, change: impl FnOnce(&Tree)) {
    let (draft, result) = names(number);
    let root = match from {
        Some(from) => store.backend.clone_tree(&names(from).1, &draft).expect("it clones"),
        None => store.backend.create(&draft).expect("it creates"),
    };
    let tree = Tree::mount(&root);
    change(&tree);
    drop(tree);
    store.backend.seal(&draft, &result).expect("it seals");
}

fn open(store: &Fixture, number: u64) -> Tree {
    Tree::mount(&store.backend.open(&names(number).1).expect("it opens"))
}

fn drafts_are_invisible_until_sealed(store: &Fixture) {
    let (draft, result) = names(1);
    let root = store.backend.create(&draft).expect("it creates");
    fs::write(Tree::mount(&root).join("file"), "text").expect("a draft is writable");
    assert!(!store.path.join(result.as_str()).exists());
    assert!(store.backend.open(&result).is_err());
    assert!(store.backend.size_bytes(&draft).expect("it measures").is_none_or(|bytes| bytes >= 4));
    store.backend.seal(&draft, &result).expect("it seals");
    assert!(!store.path.join(draft.as_str()).exists());
    assert_eq!(fs::read_to_string(open(store, 1).join("file")).expect("it is there"), "text");
}

fn what_is_sealed_is_not_changed_by_its_children(store: &Fixture) {
    make(store, 1, None, |tree| {
        fs::create_dir(tree.join("dir")).expect("writable");
        fs::write(tree.join("dir/kept"), "old").expect("writable");
        fs::write(tree.join("dir/gone"), "old").expect("writable");
    });
    let before = open(store, 1).describe();
    for (number, text) in [(2, "one child"), (3, "another")] {
        make(store, number, Some(1), |tree| {
            fs::write(tree.join("dir/kept"), text).expect("writable");
            fs::remove_file(tree.join("dir/gone")).expect("writable");
        });
    }
    assert_eq!(open(store, 1).describe(), before);
    for (number, text) in [(2, "one child"), (3, "another")] {
        let tree = open(store, number);
        assert_eq!(fs::read_to_string(tree.join("dir/kept")).expect("it is there"), text);
        assert_eq!(fs::read_dir(tree.join("dir")).expect("it is there").count(), 1);
    }
}

fn a_clone_is_equal_in_all_that_shows(store: &Fixture) {
    let odd = OsStr::from_bytes(b"new\nline and \xff");
    make(store, 1, None, |tree| {
        fs::write(tree.join(odd), "odd").expect("any name but / and NUL");
        fs::hard_link(tree.join(odd), tree.join("linked")).expect("hard links");
        fs::write(tree.join("x".repeat(255)), "long").expect("255 bytes");
        symlink("/etc/shadow", tree.join("link")).expect("symbolic links");
        rustix::fs::setxattr(tree.join("linked"), "user.note", b"\0\xff", XattrFlags::empty()).expect("attributes");
        std::os::unix::fs::lchown(tree.join("link"), Some(1234), Some(4321)).expect("owners");
        std::os::unix::fs::chown(tree.path(), Some(55), Some(66)).expect("an owner of the root");
    });
    make(store, 2, Some(1), |_| {});
    make(store, 3, Some(2), |tree| assert_eq!(tree.describe(), open(store, 1).describe()));
    assert_eq!(open(store, 3).describe(), open(store, 1).describe());
    let ino = |name: &OsStr| fs::metadata(open(store, 3).join(name)).expect("it is there").ino();
    assert_eq!(ino(odd), ino(OsStr::new("linked")), "two names, one file");
}

fn trees_are_removed_in_any_order(store: &Fixture) {
    make(store, 1, None, |tree| fs::write(tree.join("a"), "a").expect("writable"));
    for number in 2..6 {
        make(store, number, Some(1), |tree| fs::write(tree.join("b"), "b").expect("writable"));
    }
    for number in [3, 5, 2, 4, 1] {
        store.backend.remove(&names(number).1).expect("it removes");
        assert!(!store.path.join(names(number).1.as_str()).exists());
        assert!(store.backend.open(&names(number).1).is_err());
    }
}

fn removing_what_is_not_there_is_success(store: &Fixture) {
    let (draft, result) = names(1);
    store.backend.remove(&draft).expect("nothing to remove");
    store.backend.remove(&result).expect("nothing to remove");
    store.backend.create(&draft).expect("it creates");
    store.backend.remove(&draft).expect("it removes");
    store.backend.create(&draft).expect("the name is free again");
}

/// Makes `steps` results, each from the one before by random changes, and compares every third with a plain
/// directory changed alike, with what its draft was and, at the end, with what it was then.
///
/// # Panics
///
/// A result is not what it should be.
pub fn a_long_line_of_changes_is_kept(store: &Fixture, seed: u64, steps: u64) {
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let mut changes = Changes::new(seed);
    let mut seen = Vec::new();
    make(store, 0, None, |tree| {
        for _ in 0..30 {
            changes.make(&tree.path(), mirror.path()).expect("changes");
        }
    });
    for number in 1..=steps {
        let mut made = Vec::new();
        let mut draft = Vec::new();
        make(store, number, Some(number - 1), |tree| {
            for _ in 0..3 {
                made.push(changes.make(&tree.path(), mirror.path()).unwrap_or_else(|error| {
                    panic!("seed {seed}, step {number}, after {made:?}: {error}");
                }));
            }
            if number % 3 == 0 {
                draft = tree.describe();
            }
        });
        if number % 3 != 0 {
            continue;
        }
        let expected = without_root(describe(mirror.path()).expect("the mirror is readable"));
        let sealed = open(store, number).describe();
        assert_same(&sealed, &draft, &format!("seed {seed}, step {number}, sealed, after {made:?}"));
        assert_same(&without_root(sealed.clone()), &expected, &format!("seed {seed}, step {number}, after {made:?}"));
        seen.push((number, sealed));
    }
    for (number, sealed) in seen.iter().step_by(3) {
        assert_same(&open(store, *number).describe(), sealed, &format!("seed {seed}, step {number}, later"));
    }
}

/// The root's own owner and mode are not those of a temporary directory.
fn without_root(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.starts_with("\".\" ") && !line.starts_with("\"\" "));
    lines
}

fn assert_same(found: &[String], expected: &[String], when: &str) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (extra, missing) = (only(found, expected), only(expected, found));
    assert!(extra.is_empty() && missing.is_empty(), "{when}\nfound: {extra:#?}\nexpected: {missing:#?}");
}

fn a_wide_and_deep_tree_is_measured_and_removed(store: &Fixture) {
    let (draft, result) = names(1);
    let root = store.backend.create(&draft).expect("it creates");
    let tree = Tree::mount(&root);
    for number in 0..1_500 {
        fs::create_dir(tree.join(format!("wide-{number}"))).expect("writable");
    }
    deepen(&tree.path(), 1_500, 2);
    drop(tree);
    store.backend.size_bytes(&draft).expect("it measures");
    store.backend.seal(&draft, &result).expect("it seals");
    store.backend.remove(&result).expect("it removes");
    assert!(!store.path.join(result.as_str()).exists());
}

/// Makes a chain of directories in `path`, longer than any path, `width` of them at each level.
///
/// # Panics
///
/// The filesystem fails.
pub fn deepen(path: &Path, depth: usize, width: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, path, flags, Mode::empty()).expect("it is there");
    for _ in 0..depth {
        for number in 0..width {
            mkdirat(&at, format!("{number}"), Mode::RWXU).expect("writable");
        }
        openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("writable");
        at = openat(&at, "0", flags, Mode::empty()).expect("just made");
    }
}
