//! Who takes how much: for backends that can limit drafts.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use kiln_store::{Name, Quota};
use rustix::thread::{self, CapabilitySet};

use super::{Case, Fixture, Sizes, Suite};
use crate::Tree;

const MIB: usize = 1 << 20;

/// Checks that limited drafts are kept to their limits: of bytes, and with `counts_files` of files. Takes `CAP_SYS_RESOURCE`,
/// which no step has, from the calling thread.
///
/// # Panics
///
/// The backend breaks a promise.
pub fn limits_are_kept(fixture: Fixture, counts_files: bool) {
    // It lets its holder write on beyond a quota of ext4.
    let mut sets = thread::capabilities(None).expect("a thread has them");
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    thread::set_capabilities(None, sets).expect("fewer are always allowed");
    let case = Case::new(fixture, &Suite { sizes: Sizes::SLOW_MACHINE, lacks: &[] });
    eprintln!("{}: limits", case.kind());
    a_draft_takes_what_it_may_and_no_more(&case);
    what_a_draft_starts_with_does_not_count(&case);
    a_limited_tree_is_changed_like_any_other(&case);
    a_result_has_no_limit_and_its_child_another(&case);
    if counts_files {
        files_have_an_end_too(&case);
    } else {
        let files = Quota { files: Some(100), ..Quota::NONE };
        assert!(case.backend().check_quota(&files).is_err());
    }
}

fn bytes(mib: u64) -> Quota {
    Quota { bytes: Some(mib << 20), files: None }
}

/// Starts a limited draft.
fn begin(case: &Case<'_>, from: Option<&Name>, name: &Name, quota: &Quota) -> Tree {
    case.backend().check_quota(quota).expect("it can limit");
    Tree::mount(&case.backend().begin_limited(from, name, quota).expect("it begins"))
}

/// Writes a file of so many MiB that no compression makes smaller.
fn fill(path: &Path, mib: usize) -> io::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut file = File::create(path)?;
    for _ in 0..mib {
        let noise = (0..MIB / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        file.write_all(&noise.collect::<Vec<u8>>())?;
        file.sync_all()?;
    }
    Ok(())
}

fn assert_full(written: io::Result<()>) {
    let kind = written.expect_err("there is no room").kind();
    assert!(matches!(kind, ErrorKind::QuotaExceeded | ErrorKind::StorageFull), "{kind}");
}

fn a_draft_takes_what_it_may_and_no_more(case: &Case<'_>) {
    let ((draft, result), (other, _)) = (case.names(), case.names());
    let (tree, neighbour) = (begin(case, None, &draft, &bytes(8)), begin(case, None, &other, &bytes(8)));
    fill(&tree.join("little"), 2).expect("there is room");
    let left = |name| case.backend().left(name).expect("known").bytes.expect("limited");
    assert!((5 << 20..=6 << 20).contains(&left(&draft)), "{}", left(&draft));
    assert_full(fill(&tree.join("much"), 20));
    assert!(left(&draft) < 1 << 20, "{}", left(&draft));
    assert!(left(&other) > 7 << 20, "another draft has its own limit");
    fs::remove_file(tree.join("much")).expect("writable");
    // What was removed is freed in the background. Asking waits for the disk on ZFS, a full quota does on xfs.
    let again = (0..20).find_map(|_| {
        left(&draft);
        fill(&tree.join("more"), 2).ok()
    });
    again.expect("there is room again");
    drop((tree, neighbour));
    case.remove(&other);
    case.backend().seal(&draft, &result).expect("it seals");
    assert_eq!(fs::metadata(case.open(&result).join("more")).expect("it is there").len(), 2 << 20);
    assert_eq!(case.backend().left(&other).expect("gone"), Quota::NONE);
}

fn what_a_draft_starts_with_does_not_count(case: &Case<'_>) {
    let base = case.make(None, |tree| fill(&tree.join("base"), 12).expect("no limit"));
    let (draft, _) = case.names();
    let tree = begin(case, Some(&base), &draft, &bytes(8));
    fill(&tree.join("little"), 4).expect("there is room");
    assert_full(fill(&tree.join("much"), 20));
    drop(tree);
    case.remove(&draft);
}

fn a_limited_tree_is_changed_like_any_other(case: &Case<'_>) {
    let base = case.make(None, |tree| {
        fs::create_dir(tree.join("directory")).expect("writable");
        fs::write(tree.join("directory/file"), "file").expect("writable");
        fs::write(tree.join("gone"), "file").expect("writable");
        symlink("file", tree.join("directory/link")).expect("writable");
        fs::create_dir(tree.join("other")).expect("writable");
    });
    let (draft, result) = case.names();
    let tree = begin(case, Some(&base), &draft, &bytes(8));
    // What has another project cannot be moved or linked.
    let path = |name: &str| tree.join(name);
    fs::rename(path("directory/file"), path("other/file")).expect("a file moves");
    fs::rename(path("directory/link"), path("other/link")).expect("a link moves");
    fs::hard_link(path("other/file"), path("name")).expect("a file has another name");
    fs::write(path("new"), "new").expect("writable");
    fs::rename(path("new"), path("gone")).expect("a file is replaced");
    fs::remove_dir(path("directory")).expect("a directory goes");
    fs::create_dir(path("directory")).expect("and comes again");
    fs::rename(path("directory"), path("other/directory")).expect("a directory moves");
    drop(tree);
    case.backend().seal(&draft, &result).expect("it seals");
    let tree = case.open(&result);
    assert_eq!(fs::read(tree.join("gone")).expect("readable"), b"new");
    assert_eq!(fs::read(tree.join("other/link")).expect("readable"), b"file");
    assert!(!tree.join("directory").exists() && tree.join("name").exists());
}

fn a_result_has_no_limit_and_its_child_another(case: &Case<'_>) {
    let (draft, result) = case.names();
    drop(begin(case, None, &draft, &bytes(4)));
    case.backend().seal(&draft, &result).expect("it seals");
    let child = case.make(Some(&result), |tree| fill(&tree.join("much"), 10).expect("no limit"));
    let (draft, last) = case.names();
    let tree = begin(case, Some(&child), &draft, &bytes(8));
    fill(&tree.join("new"), 4).expect("a limit of its own");
    fs::remove_file(tree.join("much")).expect("writable");
    drop(tree);
    case.backend().seal(&draft, &last).expect("it seals");
    for name in [child, last, result] {
        case.vanish(&name);
    }
}

fn files_have_an_end_too(case: &Case<'_>) {
    let base = case.make(None, |tree| {
        (0..60).for_each(|number| fs::write(tree.join(format!("old{number}")), "").expect("writable"));
    });
    let (draft, _) = case.names();
    let tree = begin(case, Some(&base), &draft, &Quota { files: Some(50), ..Quota::NONE });
    let make = |from: usize, to: usize| (from..to).try_for_each(|number| fs::write(tree.join(number.to_string()), ""));
    make(0, 40).expect("there is room");
    assert_full(make(40, 100));
    assert_eq!(case.backend().left(&draft).expect("known"), Quota { files: Some(0), bytes: None });
    drop(tree);
    case.remove(&draft);
}
