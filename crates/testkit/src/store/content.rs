//! What a tree keeps: through sealing, in its clones, and in theirs.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat};

use super::{Case, Check, Lack, assert_same, checks};
use crate::{Tree, is_root_of_the_host};

pub(super) const CHECKS: &[Check] = checks![
    owners_and_modes_are_kept,
    times_are_kept_to_the_nanosecond,
    any_name_is_kept,
    hard_links_are_kept,
    symbolic_links_are_kept,
    extended_attributes_are_kept,
    access_control_lists_are_kept,
    devices_pipes_and_sockets_are_kept,
    what_marks_a_layer_elsewhere_is_kept,
    empty_things_are_kept,
    holes_cost_nothing,
    files_and_directories_take_each_others_place,
    what_is_made_again_is_new,
    what_is_renamed_is_kept,
];

/// Makes a tree, a clone of it, and a clone of that with one more file, and checks that all look alike: as drafts, when
/// sealed, and when all of it is done. Returns the first.
fn keeps(case: &Case<'_>, fill: impl FnOnce(&Tree)) -> kiln_store::Name {
    let mut expected = Vec::new();
    let first = case.make(None, |tree| {
        fill(tree);
        expected = tree.describe();
    });
    assert_same(&case.open(&first).describe(), &expected, "sealed");
    let second = case.make(Some(&first), |tree| assert_same(&tree.describe(), &expected, "a clone"));
    // One more file changes the root as well.
    let but_root_and_file = |mut lines: Vec<String>| {
        lines.retain(|line| !line.starts_with("\"\" ") && !line.starts_with("\"one more\" "));
        lines
    };
    let below_root = but_root_and_file(expected.clone());
    let third = case.make(Some(&second), |tree| {
        fs::write(tree.join("one more"), "x").expect("writable");
        assert_same(&but_root_and_file(tree.describe()), &below_root, "a clone of a clone");
    });
    assert_same(&case.open(&second).describe(), &expected, "a sealed clone");
    assert_same(&but_root_and_file(case.open(&third).describe()), &below_root, "a sealed clone of a clone");
    assert_same(&case.open(&first).describe(), &expected, "later");
    first
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("writable");
}

fn owners_and_modes_are_kept(case: &Case<'_>) {
    keeps(case, |tree| {
        for (number, mode) in [0, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o600, 0o222].into_iter().enumerate() {
            let (file, dir) = (tree.join(format!("file-{number}")), tree.join(format!("dir-{number}")));
            fs::write(&file, "x").expect("writable");
            fs::create_dir(&dir).expect("writable");
            fs::write(dir.join("inside"), "x").expect("writable");
            for path in [&file, &dir] {
                // Before the mode: its change takes set-user-id away.
                let (user, group) = if is_root_of_the_host() { (1_000_000, u32::MAX - 1) } else { (30_000, 65_535) };
                lchown(path, Some(user + mode), Some(group)).expect("writable");
                set_mode(path, mode);
            }
        }
        lchown(tree.join("."), Some(55), Some(66)).expect("the root too");
        set_mode(&tree.join("."), 0o1751);
    });
}

fn times_are_kept_to_the_nanosecond(case: &Case<'_>) {
    keeps(case, |tree| {
        fs::write(tree.join("file"), "x").expect("writable");
        fs::create_dir_all(tree.join("dir/inner")).expect("writable");
        symlink("x", tree.join("link")).expect("writable");
        mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("writable");
        let before_1970 = (-5, 1);
        for (path, (tv_sec, tv_nsec)) in [
            ("file", (1_234_567_890, 123_456_789)),
            ("dir/inner", before_1970),
            ("dir", (1, 999_999_999)),
            ("link", (2, 1)),
            ("pipe", (3, 500_000_001)),
            (".", (4, 4)),
        ] {
            let time = Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, tree.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).expect("writable");
        }
        let line = |name: &str| tree.describe().into_iter().find(|line| line.starts_with(&format!("{name:?} ")));
        assert!(line("file").expect("described").contains(" 1234567890.123456789 "), "the filesystem can do it");
    });
}

fn any_name_is_kept(case: &Case<'_>) {
    let long = [b'x'; 255];
    let names: [&[u8]; 30] = [
        b"new\nline",
        b"\xff\xfe",
        &long,
        b"-rf",
        b"%",
        b"%2F",
        b" ",
        b"a",
        b"A",
        b"\"quoted\"",
        b"back\\slash",
        b"\x01\x7f",
        b"colon:comma,",
        b"...",
        b".hidden",
        b".wh.file",
        b".wh..wh..opq",
        b"\xc3\xa9",
        b"e\xcc\x81",
        b"@snapshot",
        b"*?[",
        // What stores themselves use.
        b"log",
        b"meta.json",
        b"tree",
        b"layer",
        b"lower",
        b"work",
        b"chain",
        b"merged-1",
        b".zfs-not",
    ];
    let first = keeps(case, |tree| {
        for name in names {
            let name = OsStr::from_bytes(name);
            fs::write(tree.join(name), name.as_bytes()).expect("any name but / and NUL");
        }
        for name in names {
            let dir = tree.join("dir").join(OsStr::from_bytes(name));
            fs::create_dir_all(dir.join("inner")).expect("any name but / and NUL");
        }
    });
    let tree = case.open(&first);
    for name in names {
        assert_eq!(fs::read(tree.join(OsStr::from_bytes(name))).expect("it is there"), name);
    }
}

fn hard_links_are_kept(case: &Case<'_>) {
    let first = keeps(case, |tree| {
        fs::create_dir(tree.join("dir")).expect("writable");
        fs::write(tree.join("file"), "linked").expect("writable");
        symlink("target", tree.join("link")).expect("writable");
        mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("writable");
        for name in ["file", "link", "pipe"] {
            for other in [tree.join(format!("{name}-2")), tree.join(format!("dir/{name}-3"))] {
                fs::hard_link(tree.join(name), other).expect("writable");
            }
        }
        fs::write(tree.join("copy"), "linked").expect("writable");
    });
    let tree = case.open(&first);
    let inode = |name: &str| fs::symlink_metadata(tree.join(name)).expect("it is there").ino();
    assert_eq!(inode("file"), inode("dir/file-3"), "two names, one file");
    assert_ne!(inode("file"), inode("copy"));
}

fn symbolic_links_are_kept(case: &Case<'_>) {
    keeps(case, |tree| {
        let long = "x/".repeat(500);
        for (name, target) in [
            ("absolute", "/etc/shadow"),
            ("nowhere", "no/where"),
            ("loop", "loop"),
            ("up", "../../.."),
            ("long", &long),
        ] {
            symlink(target, tree.join(name)).expect("writable");
            lchown(tree.join(name), Some(1234), Some(4321)).expect("links have owners");
        }
        fs::create_dir(tree.join("dir")).expect("writable");
        symlink("dir", tree.join("to a directory")).expect("writable");
    });
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn extended_attributes_are_kept(case: &Case<'_>) {
    // vfs_cap_data, revision 2: cap_net_raw, permitted and effective.
    let mut capability = [0_u8; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
    keeps(case, |tree| {
        fs::write(tree.join("file"), "x").expect("writable");
        fs::create_dir(tree.join("dir")).expect("writable");
        symlink("x", tree.join("link")).expect("writable");
        for path in [tree.join("file"), tree.join("dir"), tree.join(".")] {
            set(&path, "user.note", b"\0\xff");
            set(&path, "user.empty", b"");
            set(&path, "user.long", &[b'v'; 1_500]);
            if is_root_of_the_host() {
                set(&path, "trusted.note", b"for root");
            }
        }
        if is_root_of_the_host() {
            set(&tree.join("link"), "trusted.note", b"of a link");
        }
        lchown(tree.join("file"), Some(7), Some(8)).expect("before the capability, which it would take away");
        set(&tree.join("file"), "security.capability", &capability);
        assert!(tree.describe().iter().any(|line| line.contains("security.capability")), "it is seen at all");
    });
}

/// An access control list as `setxattr(2)` takes it: version 2, then tag, permissions and id of each entry.
fn access_control_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn access_control_lists_are_kept(case: &Case<'_>) {
    const NOBODY: u32 = u32::MAX;
    // Owner rwx, user 1234 r-x, group r--, mask rwx, others ---.
    let list = access_control_list(&[(1, 7, NOBODY), (2, 5, 1234), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]);
    keeps(case, |tree| {
        fs::create_dir(tree.join("dir")).expect("writable");
        fs::write(tree.join("file"), "x").expect("writable");
        set(&tree.join("file"), "system.posix_acl_access", &list);
        set(&tree.join("dir"), "system.posix_acl_access", &list);
        // What is made in such a directory inherits: a copy made in there has to undo that.
        fs::create_dir(tree.join("dir/older")).expect("writable");
        fs::write(tree.join("dir/older-file"), "x").expect("writable");
        set(&tree.join("dir"), "system.posix_acl_default", &list);
        fs::write(tree.join("dir/heir"), "x").expect("writable");
        fs::create_dir(tree.join("dir/heir-dir")).expect("writable");
        let described = tree.describe();
        let has_list = |name: &str| {
            let line = described.iter().find(|line| line.starts_with(&format!("{name:?} "))).expect("described");
            line.contains("posix_acl_access")
        };
        assert!(has_list("dir/heir") && !has_list("dir/older-file"), "the filesystem has lists");
    });
}

fn devices_pipes_and_sockets_are_kept(case: &Case<'_>) {
    keeps(case, |tree| {
        for (name, kind, device) in [
            ("null", FileType::CharacterDevice, makedev(1, 3)),
            ("disk", FileType::BlockDevice, makedev(7, 200)),
            ("large", FileType::CharacterDevice, makedev(300, 70_000)),
            ("pipe", FileType::Fifo, 0),
            ("socket", FileType::Socket, 0),
        ] {
            if device != 0 && !is_root_of_the_host() {
                continue;
            }
            mknodat(CWD, tree.join(name), kind, Mode::RUSR | Mode::WUSR, device).expect("writable");
            lchown(tree.join(name), Some(5), Some(6)).expect("writable");
        }
    });
}

fn what_marks_a_layer_elsewhere_is_kept(case: &Case<'_>) {
    if case.lacks(Lack::OverlayMarks) {
        return;
    }
    let first = keeps(case, |tree| {
        fs::create_dir(tree.join("dir")).expect("writable");
        for name in ["0-0", "dir/0-0"] {
            mknodat(CWD, tree.join(name), FileType::CharacterDevice, Mode::empty(), 0).expect("writable");
        }
        set(&tree.join("dir"), "trusted.overlay.opaque", b"y");
        set(&tree.join("dir"), "trusted.overlay.origin", b"");
        set(&tree.join("dir"), "user.overlay.opaque", b"y");
    });
    assert!(fs::symlink_metadata(case.open(&first).join("dir/0-0")).is_ok());
}

fn empty_things_are_kept(case: &Case<'_>) {
    keeps(case, |_| {});
    keeps(case, |tree| {
        fs::write(tree.join("file"), "").expect("writable");
        fs::create_dir_all(tree.join("dir/in/dir")).expect("writable");
        fs::create_dir(tree.join("other")).expect("writable");
    });
}

fn holes_cost_nothing(case: &Case<'_>) {
    const GIB: u64 = 1 << 30;
    let blocks = |tree: &Tree| fs::metadata(tree.join("sparse")).expect("it is there").blocks() * 512;
    let write = |tree: &Tree, at, text: &str| {
        let file = File::options().write(true).create(true).truncate(false).open(tree.join("sparse"));
        file.and_then(|file| file.write_all_at(text.as_bytes(), at)).expect("writable");
    };
    let first = keeps(case, |tree| {
        write(tree, 0, "start");
        write(tree, GIB / 2 + 7, "middle");
        write(tree, GIB - 3, "end");
    });
    let second = case.make(Some(&first), |tree| write(tree, GIB / 4, "later"));
    for (name, later) in [(&first, "\0\0\0\0\0"), (&second, "later")] {
        let tree = case.open(name);
        let file = File::open(tree.join("sparse")).expect("it is there");
        for (at, text) in [(0, "start"), (GIB / 2 + 7, "middle"), (GIB - 3, "end"), (GIB / 4, later), (GIB / 3, "\0")] {
            let mut found = vec![0; text.len()];
            file.read_exact_at(&mut found, at).expect("long enough");
            assert_eq!(found, text.as_bytes(), "at {at}");
        }
        assert_eq!(file.metadata().expect("it is open").len(), GIB);
        // Some filesystems give room in large pieces.
        assert!(blocks(&tree) < 8 << 20, "it takes {} bytes", blocks(&tree));
    }
}

/// A name is in turn a file, a directory, a link, and so on; nothing of what it was shows again.
fn files_and_directories_take_each_others_place(case: &Case<'_>) {
    let forms: [fn(&Path); 5] = [
        |path| fs::write(path, "file").expect("writable"),
        |path| {
            fs::create_dir_all(path.join("old/deep")).expect("writable");
            fs::write(path.join("old/file"), "x").expect("writable");
        },
        |path| symlink("elsewhere", path).expect("writable"),
        |path| fs::create_dir(path).expect("writable"),
        |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("writable"),
    ];
    for first in 0..forms.len() {
        let mut last = None;
        for step in 0..8 {
            let mut expected = Vec::new();
            last = Some(case.make(last.as_ref(), |tree| {
                let path = tree.join("name");
                remove(&path);
                forms[(first + step * (first + 1)) % forms.len()](&path);
                expected = tree.describe();
            }));
            let found = case.open(last.as_ref().expect("just made")).describe();
            assert_same(&found, &expected, &format!("form {first}, step {step}"));
            let below = expected.iter().filter(|line| line.starts_with("\"name/")).count();
            assert!(below == 0 || below == 3, "{expected:#?}");
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).expect("writable"),
        Ok(_) => fs::remove_file(path).expect("writable"),
        Err(_) => {}
    }
}

fn what_is_made_again_is_new(case: &Case<'_>) {
    let mut last = case.make(None, |tree| {
        fs::create_dir_all(tree.join("dir/inner")).expect("writable");
        fs::write(tree.join("dir/old"), "old").expect("writable");
        fs::write(tree.join("dir/inner/old"), "old").expect("writable");
        set(&tree.join("dir"), "user.old", b"old");
        set_mode(&tree.join("dir"), 0o700);
    });
    for step in 0..6 {
        last = case.make(Some(&last), |tree| {
            fs::remove_dir_all(tree.join("dir")).expect("writable");
            fs::create_dir(tree.join("dir")).expect("writable");
            set_mode(&tree.join("dir"), 0o755);
            fs::write(tree.join("dir").join(format!("new-{step}")), "new").expect("writable");
        });
        let described = case.open(&last).describe();
        let [dir, file] = &described[1..] else { panic!("more than was made: {described:#?}") };
        assert!(dir.contains(" 40755 ") && !dir.contains("user.old"), "{dir}");
        assert!(file.starts_with(&format!("\"dir/new-{step}\" ")), "{file}");
        // And removed without being made again.
        let gone = case.make(Some(&last), |tree| fs::remove_dir_all(tree.join("dir")).expect("writable"));
        assert_eq!(case.open(&gone).describe().len(), 1);
    }
}

/// As `mv` does: a directory that cannot be renamed where it comes from a lower layer is copied.
fn what_is_renamed_is_kept(case: &Case<'_>) {
    let mut last = case.make(None, |tree| {
        fs::write(tree.join("file-0"), "file").expect("writable");
        set(&tree.join("file-0"), "user.note", b"kept");
        fs::create_dir(tree.join("dir")).expect("writable");
        fs::write(tree.join("over"), "to be replaced").expect("writable");
    });
    for step in 0..5 {
        last = case.make(Some(&last), |tree| {
            let (old, new) = (tree.join(format!("file-{step}")), tree.join(format!("file-{}", step + 1)));
            fs::rename(old, &new).expect("writable");
            // First, because `rename(2)` does nothing where both names are of one file.
            remove(&tree.join("dir/there"));
            fs::rename(&new, tree.join("dir/there")).expect("writable");
            fs::hard_link(tree.join("dir/there"), &new).expect("writable");
            fs::write(tree.join("new"), format!("{step}")).expect("writable");
            fs::rename(tree.join("new"), tree.join("over")).expect("over what a clone got from its parent");
            fs::create_dir(tree.join("new-dir")).expect("writable");
            fs::write(tree.join("new-dir/file"), "x").expect("writable");
            fs::rename(tree.join("new-dir"), tree.join(format!("dir/{step}"))).expect("writable");
        });
        let tree = case.open(&last);
        let names: Vec<String> =
            tree.describe().iter().map(|line| line[..line.find("\" ").expect("quoted")].into()).collect();
        assert_eq!(names.len(), 5 + 2 * (step + 1), "{names:?}");
        assert_eq!(fs::read_to_string(tree.join(format!("file-{}", step + 1))).expect("it is there"), "file");
        assert_eq!(fs::read_to_string(tree.join("over")).expect("it is there"), step.to_string());
        let inode = |name: &str| fs::metadata(tree.join(name)).expect("it is there").ino();
        assert_eq!(inode("dir/there"), inode(&format!("file-{}", step + 1)));
    }
}
