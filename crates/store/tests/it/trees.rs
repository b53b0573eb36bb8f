//! Stores of whole trees: by shared blocks, by copies, by hard links.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kiln_store::{CopyMode, Kind, Location, Snapshot, Store, StoreError, TreeStore};
use kiln_testkit::store::{Fixture, Lack, Sizes, Suite, conformance, deepen};
use kiln_testkit::{LoopFs, Need, Tree, need};
use rustix::fs::{CWD, FileType, IFlags, Mode, XattrFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fixture::{begin, commit, id, names, view};

const COPY: Kind = Kind::Copy(CopyMode::Copy);
const HARDLINK: Kind = Kind::Copy(CopyMode::Hardlink);

const COPIES: Suite = Suite { sizes: Sizes::FULL, lacks: &[Lack::Sharing] };
const HARD_LINKS: Suite = Suite { sizes: Sizes::FULL, lacks: &[Lack::OverlayMarks, Lack::WrittenLinks] };

fn open(kind: Kind, path: &Path) -> Store {
    try_open(kind, path).expect("the store opens")
}

fn try_open(kind: Kind, path: &Path) -> Result<Store, StoreError> {
    Store::open(&Location { kind, place: path.to_owned() })
}

/// Where a store is: goes away with the test.
struct Place(Filesystem);

enum Filesystem {
    Here(tempfile::TempDir),
    Loop(LoopFs),
}

impl Place {
    /// A directory of the filesystem that has the temporary ones.
    fn here() -> Self {
        Self(Filesystem::Here(tempfile::tempdir().expect("a temporary directory")))
    }

    fn on(filesystem: &str) -> Self {
        Self(Filesystem::Loop(LoopFs::new(filesystem, 400).expect("a filesystem")))
    }

    fn path(&self) -> PathBuf {
        match &self.0 {
            Filesystem::Here(dir) => dir.path().join("store"),
            Filesystem::Loop(filesystem) => filesystem.path().join("store"),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The standard library holds a descriptor for each level that it deletes.
        let _ = Command::new("rm").arg("-rf").arg(self.path()).status();
    }
}

fn fixture(kind: Kind, place: Place) -> Fixture {
    let path = place.path();
    drop(open(kind, &path));
    let backend = TreeStore::open(&path, kind, false).expect("it opens");
    Fixture { backend: Box::new(backend), path, guard: Box::new(place) }
}

#[test]
fn copies_conform() {
    need!(Need::Root);
    COPIES.run(|| fixture(COPY, Place::here()));
}

#[test]
fn copies_on_tmpfs_conform() {
    need!(Need::Root);
    COPIES.run(|| fixture(COPY, Place::on("tmpfs")));
}

#[test]
fn hard_links_conform() {
    need!(Need::Root);
    HARD_LINKS.run(|| fixture(HARDLINK, Place::here()));
}

#[test]
fn hard_links_on_xfs_conform() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    HARD_LINKS.run(|| fixture(HARDLINK, Place::on("xfs")));
}

#[test]
fn shared_blocks_on_xfs_conform() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    conformance(|| fixture(Kind::Xfs, Place::on("xfs")));
}

#[test]
fn shared_blocks_on_btrfs_conform() {
    need!(Need::Root, Need::Tool("mkfs.btrfs", "btrfs-progs"));
    conformance(|| fixture(Kind::Xfs, Place::on("btrfs")));
}

/// Makes the result `number` by `change`.
fn make(store: &Store, number: u64, parent: Option<&Arc<Snapshot>>, change: impl FnOnce(&Tree)) -> Arc<Snapshot> {
    let draft = begin(store, number, parent);
    let tree = Tree::mount(draft.root());
    change(&tree);
    drop(tree);
    commit(store, draft)
}

/// Calls `test` with a store of each kind, on a filesystem that has all that they need.
fn with_each(test: impl Fn(&Store)) {
    for kind in [Kind::Xfs, COPY, HARDLINK] {
        let place = Place::on("xfs");
        test(&open(kind, &place.path()));
    }
}

#[test]
fn a_clone_has_all_that_its_parent_has() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    with_each(|store| {
        let base = make(store, 1, None, |tree| {
            let set = |name: &str, attribute: &str, value: &[u8]| {
                rustix::fs::lsetxattr(tree.join(name), attribute, value, XattrFlags::empty()).expect("supported");
            };
            let mode = |name: &str, mode| {
                fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).expect("ours");
            };
            fs::create_dir_all(tree.join("dir/inner")).expect("writable");
            for name in ["dir/file", "setuid", "capable", "private"] {
                fs::write(tree.join(name), name).expect("writable");
            }
            for (name, kind) in
                [("fifo", FileType::Fifo), ("socket", FileType::Socket), ("device", FileType::BlockDevice)]
            {
                rustix::fs::mknodat(CWD, tree.join(name), kind, Mode::RUSR, rustix::fs::makedev(7, 1))
                    .expect("permitted");
            }
            for (name, uid) in [("setuid", 12), ("dir", 34), ("fifo", 56), ("device", 78)] {
                std::os::unix::fs::chown(tree.join(name), Some(uid), Some(uid + 1)).expect("permitted");
            }
            mode("setuid", 0o6755);
            mode("private", 0o600);
            mode("dir", 0o3777);
            // `user::rw- user:99:r-- group::r-- mask::r-- other::---`, acl(5): version 2, then tag, permissions and id.
            let entries =
                [(1_u16, 6_u16, u32::MAX), (2, 4, 99), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
            let mut acl = 2_u32.to_le_bytes().to_vec();
            for (tag, permissions, id) in entries {
                acl.extend(tag.to_le_bytes());
                acl.extend(permissions.to_le_bytes());
                acl.extend(id.to_le_bytes());
            }
            set("private", "system.posix_acl_access", &acl);
            // What is made in it would get it too, if the copy had it from the start.
            set("dir", "system.posix_acl_default", &acl);
            // CAP_NET_RAW, effective: `struct vfs_cap_data` of version 2.
            set("capable", "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            set("dir", "trusted.note", b"of a directory");
            std::os::unix::fs::symlink("nowhere", tree.join("link")).expect("writable");
            set("link", "trusted.note", b"of a link");
            fs::hard_link(tree.join("dir/file"), tree.join("same")).expect("writable");
            fs::hard_link(tree.join("fifo"), tree.join("dir/inner/fifo")).expect("writable");
        });
        // The draft's view, a clone's, and that of a clone that was changed elsewhere.
        let clone = make(store, 2, Some(&base), |tree| {
            assert_eq!(tree.describe(), view(store, &base).describe());
            fs::write(tree.join("dir/inner/new"), "new").expect("writable");
        });
        let but_new = |tree: &Tree| {
            let is_changed = |line: &String| line.starts_with("\"dir/inner\"") || line.starts_with("\"dir/inner/new\"");
            tree.describe().into_iter().filter(|line| !is_changed(line)).collect::<Vec<_>>()
        };
        let tree = view(store, &clone);
        assert_eq!(but_new(&tree), but_new(&view(store, &base)));
        let ino = |name: &str| fs::symlink_metadata(tree.join(name)).expect("it is there").ino();
        assert_eq!(ino("dir/file"), ino("same"));
        assert_eq!(ino("fifo"), ino("dir/inner/fifo"));
        assert_eq!(names(&tree.path()).len(), 9, "nothing else is left in it");
    });
}

#[test]
fn holes_stay_holes() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    with_each(|store| {
        let base = make(store, 1, None, |tree| {
            let file = fs::File::create(tree.join("sparse")).expect("writable");
            file.write_all_at(b"middle", 10 << 20).expect("writable");
            file.set_len(1 << 40).expect("writable");
        });
        let clone = make(store, 2, Some(&base), |_| {});
        let tree = view(store, &clone);
        let file = fs::File::open(tree.join("sparse")).expect("it is there");
        let meta = file.metadata().expect("readable");
        assert_eq!(meta.len(), 1 << 40);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let mut middle = [0; 6];
        file.read_exact_at(&mut middle, 10 << 20).expect("readable");
        assert_eq!(&middle, b"middle");
    });
}

#[test]
fn a_write_in_place_changes_no_other_tree() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    with_each(|store| {
        let base = make(store, 1, None, |tree| {
            fs::write(tree.join("file"), "old").expect("writable");
            fs::hard_link(tree.join("file"), tree.join("same")).expect("writable");
        });
        let before = view(store, &base).describe();
        let clone = make(store, 2, Some(&base), |_| {});
        make(store, 3, Some(&clone), |tree| {
            let file = fs::File::options().write(true).open(tree.join("same")).expect("writable");
            file.write_all_at(b"new", 0).expect("writable");
            file.set_permissions(fs::Permissions::from_mode(0o600)).expect("ours");
        });
        assert_eq!(view(store, &base).describe(), before);
        assert_eq!(view(store, &clone).describe(), before);
    });
}

#[test]
fn what_cannot_have_another_name_is_copied() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    with_each(|store| {
        let base = make(store, 1, None, |tree| fs::write(tree.join("file"), "text").expect("writable"));
        let tree = view(store, &base);
        // By another way than the tree's mount, which is read-only.
        let path = store.path().join("result").join(id(1).to_string()).join("tree/file");
        let file = fs::File::open(path).expect("it is there");
        rustix::fs::ioctl_setflags(&file, IFlags::IMMUTABLE).expect("permitted");
        let clone = make(store, 2, Some(&base), |_| {});
        assert_eq!(view(store, &clone).describe(), tree.describe());
        rustix::fs::ioctl_setflags(&file, IFlags::empty()).expect("permitted");
    });
}

#[test]
fn a_file_with_all_the_names_there_can_be_is_copied() {
    need!(Need::Root, Need::Tool("mkfs.ext4", "e2fsprogs"));
    let place = Place::on("ext4");
    for kind in [COPY, HARDLINK] {
        let store = open(kind, &place.path().join(kind.name()));
        let base = make(&store, 1, None, |tree| {
            fs::write(tree.join("file"), "linked").expect("writable");
            let names = 1..65_000;
            names.for_each(|name| fs::hard_link(tree.join("file"), tree.join(name.to_string())).expect("allowed"));
        });
        let clone = make(&store, 2, Some(&base), |_| {});
        let tree = view(&store, &clone);
        assert_eq!(fs::read_dir(tree.path()).expect("readable").count(), 65_000);
        for name in ["file", "1", "64999"] {
            assert_eq!(fs::read_to_string(tree.join(name)).expect("it is there"), "linked");
        }
    }
}

#[test]
fn deep_and_wide_trees_need_few_descriptors() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    let before = getrlimit(Resource::Nofile);
    // Other tests may run in this process: enough for them, too few for one descriptor a directory.
    setrlimit(Resource::Nofile, Rlimit { current: Some(900), ..before }).expect("lower is allowed");
    with_each(|store| {
        let base = make(store, 1, None, |tree| {
            deepen(&tree.path(), 2_500, 2);
            (0..1_500).for_each(|number| fs::create_dir(tree.join(format!("wide-{number}"))).expect("writable"));
        });
        let clone = make(store, 2, Some(&base), |tree| fs::write(tree.join("new"), "x").expect("writable"));
        assert_eq!(fs::read_dir(view(store, &clone).path()).expect("readable").count(), 1_500 + 4);
        drop((base, clone));
        for number in [1, 2] {
            store
                .remove(&id(number), true)
                .map(drop)
                .or_else(|error| match error {
                    // The first took the second along.
                    StoreError::NoSuchResult(_) => Ok(()),
                    error => Err(error),
                })
                .expect("it removes");
        }
    });
}

/// Returns what `filefrag` says that a file has and no other file does.
fn unshared_bytes(file: &Path) -> u64 {
    let output = Command::new("filefrag").args(["-v", "-b1"]).arg(file).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    // `0: 0.. 4095: 98304.. 102399: 4096: last,shared,eof`
    let extents = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let number = fields.first()?.parse::<u64>().ok()?;
        let length = fields.get(3)?.parse::<u64>().ok()?;
        Some((number, length, fields.last()?.contains("shared")))
    });
    extents.filter(|(_, _, is_shared)| !is_shared).map(|(_, length, _)| length).sum()
}

#[test]
fn the_size_of_a_clone_is_what_it_shares_with_no_other() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"), Need::Tool("filefrag", "e2fsprogs"));
    let place = Place::on("xfs");
    let store = open(Kind::Xfs, &place.path());
    let size = |snapshot: &Snapshot| snapshot.meta().size_bytes.expect("it is known");
    let base = make(&store, 1, None, |tree| {
        for name in ["kept", "appended", "changed", "replaced"] {
            fs::write(tree.join(name), vec![1; 4 << 20]).expect("writable");
        }
    });
    assert!(size(&base) >= 16 << 20);
    let unchanged = make(&store, 2, Some(&base), |_| {});
    assert!(size(&unchanged) < 1 << 16, "{} bytes", size(&unchanged));
    let files = ["appended", "changed", "replaced", "new"];
    let mut on_disk = 0;
    let changed = make(&store, 3, Some(&unchanged), |tree| {
        let open = |name: &str| fs::File::options().write(true).open(tree.join(name)).expect("it is there");
        open("appended").write_all_at(&vec![2; 1 << 20], 4 << 20).expect("writable");
        open("changed").write_all_at(&vec![2; 1 << 20], 1 << 20).expect("writable");
        fs::write(tree.join("replaced"), vec![2; 1 << 20]).expect("writable");
        fs::write(tree.join("new"), vec![2; 1 << 20]).expect("writable");
        // A change that moves no block.
        fs::set_permissions(tree.join("kept"), fs::Permissions::from_mode(0o600)).expect("ours");
        for name in files {
            open(name).sync_all().expect("the disk works");
            // Another process has other descriptors: not by way of the mount.
            on_disk += unshared_bytes(&place.path().join(format!("draft/{}/tree/{name}", id(3))));
        }
    });
    assert!(on_disk >= 4 << 20, "{on_disk} bytes");
    let size = size(&changed);
    // Directories are counted, and blocks that the filesystem holds for the next write.
    assert!((on_disk..on_disk + (1 << 20)).contains(&size), "{size} bytes, of files {on_disk}");
}

#[test]
fn what_cannot_be_shared_is_refused_with_a_way_out() {
    need!(Need::Root);
    let place = Place::on("tmpfs");
    for _ in 0..2 {
        let error = try_open(Kind::Xfs, &place.path()).expect_err("no shared blocks");
        assert!(matches!(&error, StoreError::Unfit { .. }) && error.to_string().contains("copy:"), "{error}");
    }
    drop(open(COPY, &place.path()));
    assert!(try_open(Kind::Xfs, &place.path()).is_err(), "also where a store of copies is");
    open(HARDLINK, &place.path());
}

#[test]
fn where_no_overlay_can_be_whole_trees_are_kept() {
    need!(Need::Root);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| {
        let path = dir.path().join(name);
        fs::create_dir(&path).expect("writable");
        path
    });
    let overlay = Tree::mount(&kiln_store::Root::Overlay { lower: vec![lower], writable: Some((upper, work)) });
    let path = overlay.join("store");
    let store = open(Kind::Auto, &path);
    assert_eq!(fs::read_to_string(path.join("state/format")).expect("readable"), "kiln-store 2 copy\n");
    let base = make(&store, 1, None, |tree| fs::write(tree.join("file"), "text").expect("writable"));
    let clone = make(&store, 2, Some(&base), |_| {});
    assert_eq!(fs::read_to_string(view(&store, &clone).join("file")).expect("it is there"), "text");
}

#[test]
fn a_store_of_whole_trees_goes_on_in_another_way() {
    need!(Need::Root, Need::Tool("mkfs.xfs", "xfsprogs"));
    let place = Place::on("xfs");
    let mut parent = None;
    let mut expected = Vec::new();
    for (number, kind) in (1..).zip([HARDLINK, HARDLINK, Kind::Xfs, COPY, HARDLINK, Kind::Auto]) {
        let store = open(kind, &place.path());
        let made = make(&store, number, parent.as_ref(), |tree| {
            assert_eq!(names(&tree.path()), expected);
            fs::write(tree.join(number.to_string()), "x").expect("writable");
        });
        expected.push(number.to_string());
        parent = Some(made);
    }
}
