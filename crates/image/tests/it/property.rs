//! Any tree survives being packed by GNU tar and unpacked by us.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use kiln_image::Limits;
use kiln_testkit::{Need, need};
use proptest::prelude::*;

use crate::archive::Archive;
use crate::{fetch, listing, sh};

#[derive(Clone, Debug)]
enum Node {
    File { content: Vec<u8>, hole: u32 },
    Symlink(String),
    Directory(Vec<(String, u32, Node)>),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,3}", "[a-z \\\\é\n]{1,60}", "[a-z]{101,200}"]
        .prop_filter("a name", |name| name.len() <= 255 && name != "." && name != "..")
}

fn tree() -> impl Strategy<Value = Node> {
    let content = prop_oneof![3 => proptest::collection::vec(any::<u8>(), 0..2000), 1 => Just(vec![7; 300_000])];
    let leaf = prop_oneof![
        (content, prop_oneof![3 => Just(0), 1 => 1..2_000_000_u32])
            .prop_map(|(content, hole)| Node::File { content, hole }),
        "[a-z/.]{1,150}".prop_map(Node::Symlink),
    ];
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o4711), Just(0o2755), Just(0o1777), Just(0o500)];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        proptest::collection::vec((name(), mode.clone(), inner), 0..5).prop_map(Node::Directory)
    })
    .prop_map(|node| match node {
        Node::Directory(_) => node,
        leaf => Node::Directory(vec![("leaf".to_owned(), 0o644, leaf)]),
    })
}

fn write(path: &Path, node: &Node) {
    match node {
        Node::File { content, hole } => {
            fs::write(path, content).expect("written");
            let file = fs::OpenOptions::new().write(true).open(path).expect("opened");
            if *hole > 0 {
                let end = content.len() as u64 + u64::from(*hole);
                file.set_len(end).expect("a hole");
                std::os::unix::fs::FileExt::write_all_at(&file, b"end", end).expect("written");
            }
        }
        Node::Symlink(target) => symlink(target, path).expect("linked"),
        Node::Directory(below) => {
            fs::create_dir(path).expect("made");
            for (name, mode, node) in below {
                let path = path.join(name);
                // Two of one name: the first stays.
                if path.symlink_metadata().is_ok() {
                    continue;
                }
                write(&path, node);
                if !matches!(node, Node::Symlink(_)) {
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("allowed");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_comes_out_as_it_went_in(node in tree()) {
        need_root_in_proptest!();
        let dir = tempfile::tempdir().expect("a directory");
        write(&dir.path().join("tree"), &node);
        sh(dir.path(), "tar -C tree --format=gnu -S -cf gnu.tar .
            tar -C tree --format=posix -czf pax.tar.gz .
            tar -C tree --format=posix -S --sparse-version=0.0 -cJf sparse0.tar.xz .
            tar -C tree --format=posix -S --sparse-version=0.1 -cf sparse1.tar .
            tar -C tree --format=posix -S --sparse-version=1.0 -cf sparse2.tar .");
        let wanted = listing(&dir.path().join("tree"));
        let here = dir.path().display();
        for file in ["pax.tar.gz", "sparse0.tar.xz", "sparse1.tar", "sparse2.tar"] {
            let (tree, _) = fetch(&format!("rootfs:{here}/{file}")).expect(file);
            prop_assert_eq!(&listing(tree.path()), &wanted, "{}", file);
        }
        let (tree, _) = fetch(&format!("dir:{here}/tree")).expect("copied");
        prop_assert_eq!(&listing(tree.path()), &wanted);
        // GNU's format has times in seconds.
        let (tree, _) = fetch(&format!("rootfs:{here}/gnu.tar")).expect("fetched");
        let coarse = |lines: Vec<String>| -> Vec<String> {
            lines.iter().map(|line| line.rsplit_once('.').expect("nanoseconds").0.to_owned()).collect()
        };
        prop_assert_eq!(coarse(listing(tree.path())), coarse(wanted));
    }
}

/// A member with a name and a target made of what is dangerous in names.
fn nasty() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop_oneof![
        8 => prop_oneof![Just("a"), Just("b"), Just("c")],
        2 => prop_oneof![Just(".."), Just("."), Just("")],
        1 => prop_oneof![Just(".wh.a"), Just(".wh.b"), Just(".wh..wh..opq"), Just(".wh..")],
    ];
    let path = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let kind = proptest::sample::select(b"00112225556".to_vec());
    (kind, path.clone(), path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_is_touched(layers in proptest::collection::vec(proptest::collection::vec(nasty(), 1..12), 1..4)) {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        sh(dir.path(), "mkdir root a; echo mine > a/a; echo mine > b");
        let outside = || listing(dir.path()).into_iter().filter(|line| !line.starts_with("\"root")).collect::<Vec<_>>();
        let before = outside();
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .map(|members| {
                let add = |archive: Archive, (kind, name, target): &(u8, String, String)| {
                    // Links out of the root, too: absolute ones to a place that is there.
                    let target = target.replacen("c", &dir.path().display().to_string(), 1);
                    let content: &[u8] = if *kind == b'0' { b"theirs" } else { b"" };
                    archive.raw(*kind, name.as_bytes(), content, |header| {
                        let link = &mut header.as_gnu_mut().expect("a GNU header").linkname;
                        let length = target.len().min(100);
                        link[..length].copy_from_slice(&target.as_bytes()[..length]);
                    })
                };
                members.iter().fold(Archive::new(), add).end()
            })
            .collect();
        let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        if let Err(error) = kiln_image::unpack_in_memory(&layers, &root, &Limits::default()) {
            prop_assert!(error.is_images_fault(), "{:?}", error);
        }
        // Its own times change with the root's.
        let but_itself = |mut lines: Vec<String>| { lines.pop(); lines };
        prop_assert_eq!(but_itself(outside()), but_itself(before));
    }
}

/// As [`need!`], from inside a property.
macro_rules! need_root_in_proptest {
    () => {
        if !kiln_testkit::have(&[Need::Root, Need::Tool("xz", "xz-utils")]) {
            return Ok(());
        }
    };
}
pub(crate) use need_root_in_proptest;

#[test]
fn an_archive_of_zstd_and_one_of_several_gzip_members() {
    need!(Need::Tool("zstd", "zstd"));
    let dir = tempfile::tempdir().expect("a directory");
    sh(
        dir.path(),
        "mkdir t; seq 100000 > t/f; tar -C t -cf t.tar .; zstd -q t.tar
        head -c 5000 t.tar | gzip > two.tar.gz; tail -c +5001 t.tar | gzip >> two.tar.gz",
    );
    for file in ["t.tar.zst", "two.tar.gz"] {
        let (tree, _) = fetch(&format!("rootfs:{}/{file}", dir.path().display())).expect(file);
        assert_eq!(listing(tree.path()).len(), 2, "{file}");
    }
}
