//! From a draft to its removal.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kiln_store::Name;

use super::{Case, Check, Lack, assert_same, checks};
use crate::{Random, Tree};

pub(super) const CHECKS: &[Check] = checks![
    drafts_are_invisible_until_sealed,
    the_directory_of_a_draft_becomes_that_of_the_result,
    a_draft_is_mounted_again_as_it_was_left,
    a_discarded_draft_leaves_nothing,
    removing_what_is_not_there_is_success,
    a_tree_is_removed_while_a_process_still_holds_it,
    a_tree_is_removed_under_the_draft_of_a_dead_process,
    trees_are_removed_in_any_order_that_needs_allow,
    all_that_a_tree_does_not_need_can_go,
    generations_of_a_cache_come_and_go,
    sizes_are_what_each_tree_added,
    the_filesystem_is_flushed_and_asked,
];

fn drafts_are_invisible_until_sealed(case: &Case<'_>) {
    let (draft, result) = case.names();
    fs::write(case.begin(None, &draft).join("file"), "text").expect("a draft is writable");
    assert!(!case.path(&result).exists());
    assert!(case.backend().open(&result).is_err());
    case.backend().seal(&draft, &result).expect("it seals");
    assert!(!case.path(&draft).exists());
    assert_eq!(fs::read_to_string(case.open(&result).join("file")).expect("it is there"), "text");
}

/// What lies beside the tree goes along, and so does a lock on the directory.
fn the_directory_of_a_draft_becomes_that_of_the_result(case: &Case<'_>) {
    let parent = case.make(None, |_| {});
    for from in [None, Some(&parent)] {
        let (draft, result) = case.names();
        drop(case.begin(from, &draft));
        let dir = case.path(&draft);
        fs::write(dir.join("log"), "a log").expect("writable");
        fs::write(dir.join("meta.json"), "{}").expect("writable");
        let before = fs::metadata(&dir).expect("it is there").ino();
        case.backend().seal(&draft, &result).expect("it seals");
        let dir = case.path(&result);
        assert_eq!(fs::metadata(&dir).expect("it is there").ino(), before, "locks hold a file, not a name");
        assert_eq!(fs::read_to_string(dir.join("log")).expect("it is there"), "a log");
        assert_eq!(fs::read_to_string(dir.join("meta.json")).expect("it is there"), "{}");
        let tree = case.open(&result);
        assert!(!tree.join("log").exists() && !tree.join("meta.json").exists(), "beside it, not in it");
    }
}

fn a_draft_is_mounted_again_as_it_was_left(case: &Case<'_>) {
    let parent = case.make(None, |tree| {
        fs::write(tree.join("kept"), "kept").expect("writable");
        fs::write(tree.join("removed"), "removed").expect("writable");
    });
    let (draft, result) = case.names();
    let root = case.backend().clone_tree(&parent, &draft).expect("it clones");
    let left = {
        let tree = Tree::mount(&root);
        fs::remove_file(tree.join("removed")).expect("writable");
        fs::write(tree.join("new"), "new").expect("writable");
        tree.describe()
    };
    {
        let tree = Tree::mount_again(&root);
        assert_same(&tree.describe(), &left, "mounted again");
        fs::write(tree.join("later"), "later").expect("writable");
    }
    drop(Tree::mount_again(&root));
    case.backend().seal(&draft, &result).expect("it seals");
    let tree = case.open(&result);
    assert!(tree.join("later").exists() && tree.join("kept").exists() && !tree.join("removed").exists());
}

fn a_discarded_draft_leaves_nothing(case: &Case<'_>) {
    let parent = case.make(None, |tree| fs::write(tree.join("a"), "a").expect("writable"));
    let before = case.open(&parent).describe();
    for from in [None, Some(&parent)] {
        let (draft, result) = case.names();
        for text in ["first", "second"] {
            let tree = case.begin(from, &draft);
            assert!(!tree.join("b").exists(), "the name is used again, not what was there");
            fs::write(tree.join("a"), text).expect("writable");
            fs::write(tree.join("b"), text).expect("writable");
            drop(tree);
            fs::write(case.path(&draft).join("log"), text).expect("writable");
            case.remove(&draft);
        }
        assert!(!case.path(&result).exists());
    }
    assert_eq!(case.open(&parent).describe(), before);
    let trash = fs::read_dir(case.fixture.path.join("trash")).expect("it is there");
    assert_eq!(trash.count(), 0);
}

fn removing_what_is_not_there_is_success(case: &Case<'_>) {
    let (draft, result) = case.names();
    case.remove(&draft);
    case.remove(&result);
    case.remove(&Name::cache("none", 7));
    case.begin(None, &draft);
    case.remove(&draft);
    case.remove(&draft);
}

/// A sandbox that is just being killed, or a reader that was late.
fn a_tree_is_removed_while_a_process_still_holds_it(case: &Case<'_>) {
    let parent = case.make(None, |tree| fs::write(tree.join("a"), "a").expect("writable"));
    let (draft, _) = case.names();
    let tree = case.begin(Some(&parent), &draft);
    let file = fs::File::create(tree.join("b")).expect("writable");
    case.remove(&draft);
    drop((tree, file));
    let tree = case.open(&parent);
    let file = fs::File::open(tree.join("a")).expect("it is there");
    case.remove(&parent);
    drop((tree, file));
    assert!(case.backend().open(&parent).is_err());
}

/// Its lease is free, so nobody knows of the draft before the next sweep; meanwhile others prune.
fn a_tree_is_removed_under_the_draft_of_a_dead_process(case: &Case<'_>) {
    let in_trash = || fs::read_dir(case.fixture.path.join("trash")).expect("it is there").count();
    let before = in_trash();
    let parent = case.make(None, |tree| fs::write(tree.join("a"), "a").expect("writable"));
    let (draft, _) = case.names();
    case.begin(Some(&parent), &draft);
    case.remove(&parent);
    assert!(case.backend().open(&parent).is_err());
    case.remove(&draft);
    assert_eq!(in_trash(), before, "all of it is deleted");
}

fn trees_are_removed_in_any_order_that_needs_allow(case: &Case<'_>) {
    let mut random = Random::new(11);
    for _ in 0..case.sizes.few.div_ceil(7) {
        let mut left: Vec<(Name, Vec<String>)> = Vec::new();
        for number in 0..case.sizes.few * 3 / 5 {
            // Each stands on any one before.
            let from = (number > 0).then(|| left[index(&mut random, left.len())].0.clone());
            let made = case.make(from.as_ref(), |tree| {
                fs::write(tree.join(format!("{number}")), "own").expect("writable");
                fs::write(tree.join("shared"), format!("{number}")).expect("writable");
            });
            let described = case.open(&made).describe();
            left.push((made, described));
        }
        while !left.is_empty() {
            let needed: Vec<Name> =
                left.iter().flat_map(|(name, _)| case.backend().needs(name).expect("it is whole")).collect();
            let free: Vec<usize> = (0..left.len()).filter(|at| !needed.contains(&left[*at].0)).collect();
            assert!(!free.is_empty(), "trees that need each other are never removed");
            let (name, _) = left.remove(free[index(&mut random, free.len())]);
            if random.below(2) == 0 {
                case.remove(&name)
            } else {
                case.vanish(&name)
            }
            assert!(case.backend().open(&name).is_err());
            for (name, before) in &left {
                super::assert_same(&case.open(name).describe(), before, "after another was removed");
            }
        }
    }
}

fn index(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end as u64)).expect("below a usize")
}

fn all_that_a_tree_does_not_need_can_go(case: &Case<'_>) {
    let mut chain: Vec<Name> = Vec::new();
    for number in 0..2 * case.sizes.few {
        chain.push(case.make(chain.last(), |tree| {
            fs::write(tree.join(format!("{}", number % 7)), format!("{number}")).expect("writable");
        }));
    }
    let last = chain.pop().expect("there are some");
    let before = case.open(&last).describe();
    let needed = case.backend().needs(&last).expect("it is whole");
    assert!(!needed.contains(&last), "itself left out");
    for name in &needed {
        assert!(chain.contains(name), "{} is none of those below", name.as_str());
        let also = case.backend().needs(name).expect("it is whole");
        assert!(also.iter().all(|name| needed.contains(name)), "what {} needs is needed too", name.as_str());
    }
    for name in chain.iter().filter(|name| !needed.contains(name)).rev() {
        case.remove(name);
    }
    super::assert_same(&case.open(&last).describe(), &before, "after the rest was removed");
    let child = case.make(Some(&last), |_| {});
    super::assert_same(&case.open(&child).describe(), &before, "a child made after that");
}

fn generations_of_a_cache_come_and_go(case: &Case<'_>) {
    let generation = |number| Name::cache("cache", number);
    let copy = || Name::cache_draft(&case.number().to_string());
    fs::create_dir_all(case.fixture.path.join("cache/cache")).expect("writable");
    let next = |from: Option<u64>, to: u64| {
        let draft = copy();
        let tree = case.begin(from.map(generation).as_ref(), &draft);
        fs::write(tree.join((to % 5).to_string()), to.to_string()).expect("writable");
        // Rewritten in place, as a package manager does with its database.
        fs::write(tree.join("database"), format!("of {to}")).expect("writable");
        drop(tree);
        case.backend().seal(&draft, &generation(to)).expect("it seals");
    };
    next(None, 1);
    // Two copies of one generation: one becomes the next, the other goes on, slowly, while generations come and go.
    let slow = copy();
    let tree = case.begin(Some(&generation(1)), &slow);
    let mut kept = vec![1];
    let last = case.sizes.few;
    for number in 2..=last {
        next(Some(number - 1), number);
        kept.push(number);
        // As the policy does: what neither the latest nor a copy in use stands on.
        let mut needed = vec![generation(1), generation(number)];
        for name in needed.clone() {
            needed.extend(case.backend().needs(&name).expect("it is whole"));
        }
        for old in kept.clone().into_iter().rev().filter(|old| !needed.contains(&generation(*old))) {
            case.vanish(&generation(old));
            kept.retain(|number| *number != old);
        }
    }
    assert_eq!(fs::read_to_string(tree.join("database")).expect("it is there"), "of 1");
    fs::write(tree.join("database"), "of the slow one").expect("still writable");
    drop(tree);
    case.remove(&slow);
    let latest = case.open(&generation(last));
    let read = |name: &str| fs::read_to_string(latest.join(name)).expect("it is there");
    assert_eq!(read("database"), format!("of {last}"));
    for number in last - 4..=last {
        assert_eq!(read(&(number % 5).to_string()), number.to_string());
    }
    drop(latest);
    // The whole cache goes: children first.
    for number in kept.into_iter().rev() {
        case.remove(&generation(number));
    }
}

fn sizes_are_what_each_tree_added(case: &Case<'_>) {
    const MIB: u64 = 1 << 20;
    let made = |from: Option<&Name>, change: &dyn Fn(&crate::Tree)| {
        let (draft, result) = case.names();
        change(&case.begin(from, &draft));
        let early = case.backend().size_bytes(&draft).expect("it measures");
        case.backend().seal(&draft, &result).expect("it seals");
        (result, early)
    };
    let big = |name: &'static str, seed| {
        move |tree: &crate::Tree| fs::write(tree.join(name), noise(seed, 5 << 20)).expect("writable")
    };
    let (base, base_early) = made(None, &big("base", 1));
    let (child, child_early) = made(Some(&base), &big("child", 2));
    let (idle, idle_early) = made(Some(&child), &|_| {});
    let (remover, remover_early) = made(Some(&child), &|tree| fs::remove_file(tree.join("base")).expect("it is there"));
    let names = [base, child, idle, remover.clone()];
    let early = [base_early, child_early, idle_early, remover_early];
    let sizes = |names: &[Name]| {
        let late = case.backend().sizes(names).expect("it can be asked");
        assert_eq!(late.len(), names.len());
        std::iter::zip(early, late).map(|(early, late)| early.or(late)).collect::<Vec<_>>()
    };
    let found = sizes(&names);
    let expected = if case.lacks(Lack::Sharing) { [5..6, 10..12, 10..12, 5..6] } else { [5..6, 5..6, 0..1, 0..1] };
    for (at, (size, mib)) in std::iter::zip(&found, expected).enumerate() {
        let is_right = size.is_some_and(|size| (mib.start * MIB..mib.end * MIB).contains(&size));
        assert!(is_right, "tree {at}: {size:?} is not {mib:?} MiB");
    }
    case.remove(&remover);
    assert_eq!(sizes(&names[..3]), found[..3], "the others stay what they are");
    assert_eq!(case.backend().sizes(&[remover]).expect("it can be asked"), [None], "gone");
}

/// Bytes that no filesystem compresses.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn the_filesystem_is_flushed_and_asked(case: &Case<'_>) {
    case.make(None, |tree| fs::write(tree.join("file"), "text").expect("writable"));
    case.backend().flush().expect("the disk works");
    let space = case.backend().space().expect("it can be asked");
    assert!(0 < space.free_bytes && space.free_bytes <= space.total_bytes, "{space:?}");
}
