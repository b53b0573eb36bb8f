//! Who sees whose changes: a sealed tree none, a draft its own.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::sync::Barrier;

use kiln_store::Name;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Case, Check, Lack, assert_same, checks, id};
use crate::Tree;

pub(super) const CHECKS: &[Check] = checks![
    no_change_of_a_child_shows_in_its_parent,
    a_write_through_one_name_shows_through_the_others,
    siblings_do_not_see_each_other,
    a_sealed_tree_cannot_be_written,
    a_reader_is_not_disturbed_by_what_becomes_of_others,
    threads_make_children_of_one_parent,
];

fn fill(tree: &Tree) {
    fs::write(tree.join("file"), "old ".repeat(5_000)).expect("writable");
    fs::write(tree.join("other"), "other").expect("writable");
    fs::hard_link(tree.join("file"), tree.join("linked")).expect("writable");
    fs::create_dir(tree.join("dir")).expect("writable");
    fs::write(tree.join("dir/inside"), "inside").expect("writable");
    for path in [tree.join("file"), tree.join("dir")] {
        rustix::fs::setxattr(path, "user.note", b"old", XattrFlags::empty()).expect("writable");
    }
    fs::set_permissions(tree.join("file"), Permissions::from_mode(0o644)).expect("writable");
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("a draft is writable")
}

/// What was done, and how to do it to the root of a tree.
type Change = (&'static str, fn(&Path));

/// What a step can do to a file or a directory that it got from the parent.
#[rustfmt::skip]
const CHANGES: &[Change] = &[
    ("written in place", |root| writable(&root.join("file")).write_all_at(b"new", 8_000).expect("writable")),
    ("appended to", |root| {
        File::options().append(true).open(root.join("file")).and_then(|mut file| file.write_all(b"new")).expect("writable");
    }),
    ("cut", |root| writable(&root.join("file")).set_len(3).expect("writable")),
    ("made longer", |root| writable(&root.join("file")).set_len(1 << 20).expect("writable")),
    ("emptied when opened", |root| drop(File::create(root.join("file")).expect("writable"))),
    ("written through memory", |root| write_mapped(&writable(&root.join("file")))),
    ("written through another name", |root| writable(&root.join("linked")).write_all_at(b"new", 0).expect("writable")),
    ("given a hole", |root| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(writable(&root.join("file")), flags, 4096, 4096).expect("writable");
    }),
    ("chmod", |root| fs::set_permissions(root.join("file"), Permissions::from_mode(0o4711)).expect("writable")),
    ("chmod of a directory", |root| fs::set_permissions(root.join("dir"), Permissions::from_mode(0o1777)).expect("writable")),
    ("chmod of the root", |root| fs::set_permissions(root.join("."), Permissions::from_mode(0o711)).expect("writable")),
    ("chown", |root| lchown(root.join("file"), Some(1), Some(2)).expect("writable")),
    ("chown of the root", |root| lchown(root.join("."), Some(1), Some(2)).expect("writable")),
    ("an attribute set", |root| set_note(&root.join("file"))),
    ("an attribute of a directory set", |root| set_note(&root.join("dir"))),
    ("an attribute of the root set", |root| set_note(&root.join("."))),
    ("an attribute removed", |root| rustix::fs::removexattr(root.join("file"), "user.note").expect("writable")),
    ("times", |root| {
        let time = Timespec { tv_sec: 1, tv_nsec: 1 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, root.join("file"), &times, AtFlags::empty()).expect("writable");
    }),
    ("replaced", |root| {
        fs::write(root.join("new"), "new").expect("writable");
        fs::rename(root.join("new"), root.join("file")).expect("writable");
    }),
    ("renamed over another", |root| fs::rename(root.join("file"), root.join("other")).expect("writable")),
    ("removed", |root| fs::remove_file(root.join("file")).expect("writable")),
    ("given one more name", |root| fs::hard_link(root.join("file"), root.join("third")).expect("writable")),
    ("a directory filled", |root| fs::write(root.join("dir/new"), "new").expect("writable")),
    ("a directory emptied", |root| fs::remove_file(root.join("dir/inside")).expect("writable")),
    ("a directory removed", |root| fs::remove_dir_all(root.join("dir")).expect("writable")),
];

fn set_note(path: &Path) {
    rustix::fs::setxattr(path, "user.note", b"new", XattrFlags::empty()).expect("writable");
}

/// Writes to a file as a database does that maps it.
#[expect(unsafe_code, reason = "there is no other way to write through a mapping")]
fn write_mapped(file: &File) {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    const LENGTH: usize = 4096;
    // SAFETY: the address is the kernel's choice, so the mapping overlaps nothing. It is unmapped below and no reference
    // into it is made. The file is longer, and nobody else changes it.
    unsafe {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        let mapped = mmap(std::ptr::null_mut(), LENGTH, flags, MapFlags::SHARED, file, 0).expect("it can be mapped");
        mapped.cast::<[u8; 3]>().write(*b"new");
        msync(mapped, LENGTH, MsyncFlags::SYNC).expect("it can be written");
        munmap(mapped, LENGTH).expect("it was mapped");
    }
}

fn no_change_of_a_child_shows_in_its_parent(case: &Case<'_>) {
    let parent = case.make(None, fill);
    let child = case.make(Some(&parent), |_| {});
    let before = case.open(&parent).describe();
    for (what, change) in CHANGES {
        // Of a tree that was made new, and of one that was cloned itself.
        for parent in [&parent, &child] {
            let mut draft = Vec::new();
            let changed = case.make(Some(parent), |tree| {
                change(&tree.path());
                draft = tree.describe();
                assert_ne!(draft, before, "{what}: a change that shows");
                assert_same(&case.open(parent).describe(), &before, &format!("{what}: the parent"));
            });
            assert_same(&case.open(&changed).describe(), &draft, &format!("{what}: sealed"));
            assert_same(&case.open(parent).describe(), &before, &format!("{what}: the parent, later"));
            case.remove(&changed);
        }
    }
    assert_same(&case.open(&parent).describe(), &before, "the first one");
}

fn a_write_through_one_name_shows_through_the_others(case: &Case<'_>) {
    let parent = case.make(None, fill);
    let child = case.make(Some(&parent), |tree| {
        writable(&tree.join("linked")).write_all_at(b"new", 0).expect("writable");
    });
    let start = |name: &Name, file: &str| {
        let mut start = [0; 3];
        let mut file = File::open(case.open(name).join(file)).expect("it is there");
        file.read_exact(&mut start).expect("long enough");
        start
    };
    assert_eq!(["file", "linked"].map(|file| start(&parent, file)), [*b"old"; 2]);
    assert_eq!(start(&child, "linked"), *b"new");
    if !case.lacks(Lack::WrittenLinks) {
        assert_eq!(start(&child, "file"), *b"new");
        let links = |name: &str| fs::metadata(case.open(&child).join(name)).expect("it is there").nlink();
        assert_eq!(links("file"), 2);
    }
}

fn siblings_do_not_see_each_other(case: &Case<'_>) {
    let parent = case.make(None, fill);
    let before = case.open(&parent).describe();
    let names: Vec<_> = (0..3).map(|_| case.names()).collect();
    // All are written at once.
    let trees: Vec<Tree> = names.iter().map(|(draft, _)| case.begin(Some(&parent), draft)).collect();
    for (number, tree) in trees.iter().enumerate() {
        fs::write(tree.join("file"), format!("of {number}")).expect("writable");
        fs::write(tree.join(format!("own-{number}")), "x").expect("writable");
        fs::remove_file(tree.join("other")).expect("writable");
    }
    drop(trees);
    for (draft, result) in &names {
        case.backend().seal(draft, result).expect("it seals");
    }
    for (number, (_, result)) in names.iter().enumerate() {
        let tree = case.open(result);
        assert_eq!(fs::read_to_string(tree.join("file")).expect("it is there"), format!("of {number}"));
        let own = fs::read_dir(tree.path())
            .expect("readable")
            .filter(|entry| entry.as_ref().expect("readable").file_name().to_string_lossy().starts_with("own-"));
        assert_eq!(own.count(), 1);
    }
    assert_same(&case.open(&parent).describe(), &before, "the parent");
}

fn a_sealed_tree_cannot_be_written(case: &Case<'_>) {
    let first = case.make(None, fill);
    let second = case.make(Some(&first), |tree| fs::write(tree.join("new"), "new").expect("writable"));
    for name in [&first, &second] {
        let tree = case.open(name);
        let before = tree.describe();
        let refused = |what: &str, result: std::io::Result<()>| {
            let error = result.err().unwrap_or_else(|| panic!("{what} is possible"));
            assert_eq!(Errno::from_io_error(&error), Some(Errno::ROFS), "{what}: {error}");
        };
        refused("writing", File::options().write(true).open(tree.join("file")).map(drop));
        refused("creating", File::create(tree.join("created")).map(drop));
        refused("making a directory", fs::create_dir(tree.join("created")));
        refused("removing", fs::remove_file(tree.join("file")));
        refused("renaming", fs::rename(tree.join("file"), tree.join("renamed")));
        refused("linking", fs::hard_link(tree.join("file"), tree.join("third")));
        refused("chmod", fs::set_permissions(tree.join("file"), Permissions::from_mode(0o600)));
        refused("chown", lchown(tree.join("file"), Some(1), Some(1)));
        let note = rustix::fs::setxattr(tree.join("file"), "user.note", b"new", XattrFlags::empty());
        refused("setting an attribute", note.map_err(Into::into));
        refused(
            "setting times",
            File::open(tree.join("file")).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)),
        );
        assert_same(&tree.describe(), &before, "after all that");
    }
}

fn a_reader_is_not_disturbed_by_what_becomes_of_others(case: &Case<'_>) {
    let parent = case.make(None, fill);
    let sibling = case.make(Some(&parent), |tree| fs::write(tree.join("file"), "sibling").expect("writable"));
    let tree = case.open(&parent);
    let before = tree.describe();
    let mut file = File::open(tree.join("file")).expect("it is there");
    let child = case.make(Some(&parent), |tree| fs::remove_file(tree.join("file")).expect("writable"));
    let (draft, _) = case.names();
    fs::write(case.begin(Some(&parent), &draft).join("file"), "new").expect("writable");
    case.remove(&draft);
    case.remove(&sibling);
    case.remove(&child);
    assert_same(&tree.describe(), &before, "what is read");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "old ".repeat(5_000));
}

fn threads_make_children_of_one_parent(case: &Case<'_>) {
    const THREADS: u64 = 6;
    let parent = case.make(None, fill);
    let before = case.open(&parent).describe();
    let backend = case.backend();
    let first = case.number();
    case.taken.set(first + THREADS * 4);
    let start = Barrier::new(usize::try_from(THREADS).expect("few"));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (start, parent) = (&start, &parent);
            scope.spawn(move || {
                start.wait();
                let mut from = parent.clone();
                for number in first + thread * 4..first + thread * 4 + 4 {
                    let (draft, result) = (Name::draft(&id(number)), Name::result(&id(number)));
                    let root = backend.clone_tree(&from, &draft).expect("it clones");
                    fs::write(Tree::mount(&root).join("file"), number.to_string()).expect("writable");
                    backend.seal(&draft, &result).expect("it seals");
                    let tree = Tree::mount(&backend.open(&result).expect("it opens"));
                    assert_eq!(fs::read_to_string(tree.join("file")).expect("it is there"), number.to_string());
                    // Every other one is the child of the one before, and discarded ones go in between.
                    if number % 2 == 0 {
                        from = result;
                    }
                    backend.clone_tree(&from, &draft).expect("the name is free again");
                    backend.remove(&draft).expect("it removes");
                }
            });
        }
    });
    assert_same(&case.open(&parent).describe(), &before, "the parent");
}
