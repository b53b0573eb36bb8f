//! Many, long, wide and deep.

use std::fs;
use std::path::Path;

use kiln_store::Name;

use super::{Case, Check, Fixture, Lack, Sizes, Suite, assert_same, checks};
use crate::{Changes, describe, without_links};

pub(super) const CHECKS: &[Check] = checks![
    a_long_chain_is_whole,
    many_children_of_one_parent_are_whole,
    random_changes_are_kept,
    a_wide_and_deep_tree_is_cloned_measured_and_removed,
];

fn a_long_chain_is_whole(case: &Case<'_>) {
    let mut chain: Vec<(Name, Vec<String>)> = Vec::new();
    for number in 0..case.sizes.chain {
        let mut draft = Vec::new();
        let made = case.make(chain.last().map(|(name, _)| name), |tree| {
            // A file each of the last steps made, one that every step changes, a directory that comes and goes.
            fs::write(tree.join(format!("of-{}", number % 9)), number.to_string()).expect("writable");
            fs::write(tree.join("all"), number.to_string()).expect("writable");
            let dir = tree.join("dir");
            match number % 3 {
                0 => fs::create_dir(dir).expect("writable"),
                1 => fs::write(dir.join(number.to_string()), "x").expect("writable"),
                _ => fs::remove_dir_all(dir).expect("writable"),
            }
            draft = tree.describe();
        });
        let names = 2 + 9.min(number + 1) + [1, 2, 0][number % 3];
        assert_eq!(draft.len(), names, "step {number}: {draft:#?}");
        chain.push((made, draft));
    }
    for (number, (name, draft)) in chain.iter().enumerate().rev().step_by(7) {
        assert_same(&case.open(name).describe(), draft, &format!("step {number} of {}", case.sizes.chain));
    }
}

fn many_children_of_one_parent_are_whole(case: &Case<'_>) {
    let parent = case.make(None, |tree| {
        for number in 0..20 {
            fs::write(tree.join(number.to_string()), "parent").expect("writable");
        }
    });
    let before = case.open(&parent).describe();
    let children: Vec<Name> = (0..case.sizes.children)
        .map(|number| {
            case.make(Some(&parent), |tree| {
                fs::write(tree.join((number % 20).to_string()), number.to_string()).expect("writable");
                fs::remove_file(tree.join(((number + 1) % 20).to_string())).expect("writable");
            })
        })
        .collect();
    for (number, child) in children.iter().enumerate() {
        let tree = case.open(child);
        let found = fs::read_to_string(tree.join((number % 20).to_string())).expect("it is there");
        assert_eq!(found, number.to_string());
        assert_eq!(fs::read_dir(tree.path()).expect("readable").count(), 19);
    }
    assert_same(&case.open(&parent).describe(), &before, "the parent");
    for child in &children {
        case.remove(child);
    }
    assert_same(&case.open(&parent).describe(), &before, "the parent, when they are gone");
}

fn random_changes_are_kept(case: &Case<'_>) {
    long_line(case, 7, case.sizes.line);
}

/// Makes `steps` results, each from the one before by random changes, and compares every third with a plain
/// directory changed alike, with what its draft was and, at the end, with what it was then.
///
/// # Panics
///
/// A result is not what it should be.
pub fn a_long_line_of_changes_is_kept(fixture: Fixture, lacks: &[Lack], seed: u64, steps: u64) {
    long_line(&Case::new(fixture, &Suite { sizes: Sizes::FULL, lacks }), seed, steps);
}

fn long_line(case: &Case<'_>, seed: u64, steps: u64) {
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let mut changes = Changes::new(seed);
    let mut seen = Vec::new();
    let mut last = case.make(None, |tree| {
        for _ in 0..30 {
            changes.make(&tree.path(), mirror.path()).expect("changes");
        }
    });
    let comparable = |mut lines: Vec<String>| {
        // The root's own owner and mode are not those of a temporary directory.
        lines.retain(|line| !line.starts_with("\"\" "));
        if case.lacks(Lack::WrittenLinks) { without_links(&lines) } else { lines }
    };
    for number in 1..=steps {
        let mut made = Vec::new();
        let mut draft = Vec::new();
        last = case.make(Some(&last), |tree| {
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
        let expected = comparable(describe(mirror.path()).expect("the mirror is readable"));
        let sealed = case.open(&last).describe();
        assert_same(&sealed, &draft, &format!("seed {seed}, step {number}, sealed, after {made:?}"));
        assert_same(&comparable(sealed.clone()), &expected, &format!("seed {seed}, step {number}, after {made:?}"));
        seen.push((number, last.clone(), sealed));
    }
    for (number, name, sealed) in seen.iter().step_by(3) {
        assert_same(&case.open(name).describe(), sealed, &format!("seed {seed}, step {number}, later"));
    }
}

fn a_wide_and_deep_tree_is_cloned_measured_and_removed(case: &Case<'_>) {
    let count = case.sizes.directories;
    let (draft, parent) = case.names();
    let tree = case.begin(None, &draft);
    for number in 0..count {
        fs::create_dir(tree.join(format!("wide-{number}"))).expect("writable");
    }
    deepen(&tree.path(), count, 2);
    drop(tree);
    case.backend().size_bytes(&draft).expect("it measures");
    case.backend().seal(&draft, &parent).expect("it seals");
    let (draft, child) = case.names();
    let tree = case.begin(Some(&parent), &draft);
    fs::write(tree.join("wide-1/file"), "x").expect("writable");
    assert_eq!(depth(&tree.path()), count);
    drop(tree);
    case.backend().size_bytes(&draft).expect("it measures");
    case.backend().seal(&draft, &child).expect("it seals");
    case.remove(&child);
    assert_eq!(depth(&case.open(&parent).path()), count);
    case.remove(&parent);
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

/// Returns how many levels of [`deepen`] there are.
fn depth(path: &Path) -> usize {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, path, flags, Mode::empty()).expect("it is there");
    let mut depth = 0;
    while let Ok(below) = openat(&at, "0", flags, Mode::empty()) {
        at = below;
        depth += 1;
    }
    depth
}
