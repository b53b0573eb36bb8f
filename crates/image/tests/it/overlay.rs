//! Each layer unpacked over a real overlay of those below it, as the engine does: nothing differs from unpacking all of them
//! into one directory.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use kiln_image::{Fetcher, ImageError, Images, Quiet};
use kiln_store::{Description, Id, Location, Store};
use kiln_testkit::{Need, Tree, describe, need};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{block_on, causes, fetch_resolved, image, index, resolve};

/// A tree whose layers are results of a store.
pub(crate) struct Chained {
    pub(crate) tree: Tree,
    _store: TempDir,
}

/// Fetches each layer into a draft on the one below it.
pub(crate) fn fetch_chained(reference: &str) -> Result<Chained, ImageError> {
    let dir = tempfile::tempdir().expect("a directory");
    let location = format!("overlayfs:{}", dir.path().join("store").display());
    let location = Location::parse(&location, Path::new("/")).expect("a location");
    let store = Store::open(&location).expect("a store");
    let resolved = resolve(reference)?;
    let cancel = CancellationToken::new();
    block_on(async {
        let images = Images::default();
        let mut layers = images.fetch(&resolved, 0, &store.scratch_dir(), Arc::new(Quiet), &cancel).await?;
        let mut below = None;
        for at in 0..resolved.layers.len() {
            let id = Id::new([u8::try_from(at).expect("few layers"); 32]);
            let lease = store.lease(&id).expect("readable").expect("free");
            let draft = store.begin(lease, below).expect("begun");
            let mount = draft.root().mount().expect("mounted");
            layers.next(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd()))).await?;
            drop(mount);
            let description = Description { summary: String::new(), detail: serde_json::Value::Null };
            below = Some(Arc::new(store.commit(draft, description).expect("committed")));
        }
        let root = store.root(&below.expect("layers")).expect("a tree");
        Ok(Chained { tree: Tree::mount(&root), _store: dir })
    })
}

/// The tree of these layers, unpacked over each other, or why there is none; and the same as a chain.
fn both_ways(layers: &[Vec<u8>]) -> [Result<Vec<String>, String>; 2] {
    let layout = tempfile::tempdir().expect("a directory");
    let manifest = image(layout.path(), layers);
    index(layout.path(), &[manifest]);
    let reference = format!("oci:{}", layout.path().display());
    let told = |error: ImageError| causes(&error);
    let at_once = resolve(&reference).map_err(told).and_then(|resolved| {
        let into = tempfile::tempdir().expect("a directory");
        fetch_resolved(&resolved, into.path()).map_err(told)?;
        Ok(describe(into.path()).expect("readable"))
    });
    [at_once, fetch_chained(&reference).map(|chained| chained.tree.describe()).map_err(told)]
}

/// Returns the tree, which must be the same both ways.
fn described(layers: &[Vec<u8>]) -> Vec<String> {
    let [at_once, chained] = both_ways(layers).map(|tree| tree.expect("unpacked"));
    assert_eq!(at_once, chained);
    chained
}

fn lower() -> Vec<u8> {
    let sticky = |header: &mut tar::Header| {
        header.set_mode(0o1777);
        header.set_uid(12);
        header.set_gid(34);
    };
    Archive::new()
        .raw(b'5', b"d", b"", sticky)
        .file("d/a", "a")
        .hard_link("d/a2", "d/a")
        .dir("d/sub")
        .file("d/sub/b", "")
        .pax(&[("SCHILY.xattr.user.kept", b"yes")])
        .dir("d/sub/deep")
        .file("d/sub/deep/c", "")
        .symlink("link", "d/sub")
        .file("f", "")
        .end()
}

#[test]
fn a_directory_that_a_layer_passes_through_stays_as_it_is() {
    need!(Need::Root);
    let lines = described(&[lower(), Archive::new().file("d/sub/deep/new", "").file("d/.wh.a", "").end()]);
    let line = |name: &str| {
        let start = format!("\"{name}\" ");
        lines.iter().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{name}: {lines:?}")).clone()
    };
    assert!(line("d").contains("41777 12:34 1000000000.000000000"), "{lines:?}");
    assert!(line("d/sub/deep").contains("1000000000.000000000 directory user.kept=[121, 101, 115]"), "{lines:?}");
    assert!(line("d/a2").contains(r#" file 1 "a""#));
}

#[test]
fn whiteouts_spare_what_their_own_layer_made_though_its_directory_was_copied_up_since() {
    need!(Need::Root);
    // When `d` is noted it is a directory of the lower layer; when the whiteout comes it is one of the upper.
    let after = Archive::new().file("d/sub/new", "").file("d/b", "").file("d/.wh..wh..opq", "").end();
    let names: Vec<String> = described(&[lower(), after])
        .iter()
        .map(|line| line.split(' ').next().expect("a name").trim_matches('"').to_owned())
        .collect();
    assert_eq!(names, ["", "d", "d/b", "d/sub", "d/sub/new", "f", "link"]);
    let twice = Archive::new().file("d/sub/deep/c", "new").file("d/sub/.wh.deep", "").file(".wh.d", "").end();
    let lines = described(&[lower(), twice.clone(), twice]);
    assert!(lines.iter().any(|line| line.starts_with("\"d/sub/deep/c\"")), "{lines:?}");
}

#[test]
fn links_to_files_of_lower_layers_and_replaced_kinds_are_right() {
    need!(Need::Root);
    let lines = described(&[
        lower(),
        Archive::new().hard_link("e", "d/a").hard_link("d/sub/b2", "d/sub/b").file("link/through", "x").end(),
        Archive::new().file("d/sub", "a file now").dir("f").file("f/g", "").symlink("d/a", "f").dir("link").end(),
        Archive::new().dir("d/sub").file("d/sub/b", "again").file("f", "again").file(".wh.link", "").end(),
        Archive::new().raw(b'6', b"f", b"", |_| {}).file("d/.wh..wh..opq", "").hard_link("d/x", "e").end(),
    ]);
    for name in ["d/x", "e"] {
        let line = lines.iter().find(|line| line.starts_with(&format!("{name:?} "))).expect("it is there");
        assert!(line.ends_with(" file 1 \"a\" same file as \"d/x\""), "{lines:?}");
    }
}

#[test]
fn marks_of_overlayfs_are_never_written() {
    need!(Need::Root);
    let whiteout = Archive::new().raw(b'3', b"d/a", b"", |header| {
        header.set_device_major(0).expect("a device");
        header.set_device_minor(0).expect("a device");
    });
    let attribute =
        |name: &str| Archive::new().pax(&[(&*format!("SCHILY.xattr.{name}"), b"y")]).dir("d").file("d/x", "").end();
    for layer in [
        whiteout.end(),
        attribute("trusted.overlay.opaque"),
        attribute("trusted.overlay.redirect"),
        attribute("trusted.overlay.overlay.whiteout"),
        attribute("user.overlay.opaque"),
    ] {
        let [at_once, chained] = both_ways(&[lower(), layer]);
        let refusal = chained.expect_err("refused");
        assert_eq!(at_once.expect_err("refused"), refusal);
        assert!(refusal.contains("refused `d"), "{refusal}");
    }
}

#[test]
fn a_directory_that_is_linked_to_itself_is_refused() {
    need!(Need::Root);
    // Taken as made by this layer, it would outlive the whiteout, empty and with the time of the unpacking.
    let linked = Archive::new().hard_link("d/sub", "d/sub").file(".wh.d", "").end();
    let [at_once, chained] = both_ways(&[lower(), linked]);
    let refusal = chained.expect_err("refused");
    assert_eq!(at_once.expect_err("refused"), refusal);
    assert!(refusal.contains("hard link to a directory"), "{refusal}");
}

/// A member of a layer: its name, and what it is.
#[derive(Clone, Debug)]
enum Member {
    File(String),
    Directory(u32),
    Symlink(String),
    HardLink(String),
    Fifo,
    Whiteout,
    Opaque,
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn layer() -> impl Strategy<Value = Vec<(String, Member)>> {
    let member = prop_oneof![
        4 => "[a-z]{0,9}".prop_map(Member::File),
        4 => prop_oneof![Just(0o755), Just(0o2750), Just(0o1777), Just(0o500)].prop_map(Member::Directory),
        1 => prop_oneof![path(), Just("../a".to_owned()), Just("/b".to_owned())].prop_map(Member::Symlink),
        1 => path().prop_map(Member::HardLink),
        1 => Just(Member::Fifo),
        2 => Just(Member::Whiteout),
        1 => Just(Member::Opaque),
    ];
    proptest::collection::vec((path(), member), 0..12)
}

fn pack(members: &[(String, Member)], time: u64) -> Vec<u8> {
    let archive = members.iter().fold(Archive::new(), |archive, (name, member)| {
        let (above, last) = name.rsplit_once('/').map_or(("", &**name), |(above, last)| (above, last));
        let beside = |name: &str| if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        let at = |header: &mut tar::Header| header.set_mtime(time);
        match member {
            Member::File(content) => archive.raw(b'0', name.as_bytes(), content.as_bytes(), at),
            Member::Directory(mode) => archive.raw(b'5', name.as_bytes(), b"", |header| {
                header.set_mode(*mode);
                header.set_mtime(time);
            }),
            Member::Symlink(target) => archive.symlink(name, target),
            Member::HardLink(target) => archive.hard_link(name, target),
            Member::Fifo => archive.raw(b'6', name.as_bytes(), b"", at),
            Member::Whiteout => archive.file(&beside(&format!(".wh.{last}")), ""),
            Member::Opaque => archive.file(&beside(".wh..wh..opq"), ""),
        }
    });
    archive.end()
}

/// Packs the layers without the members that would be refused: nearly every list of random ones has some.
fn pack_all(layers: &[Vec<(String, Member)>]) -> Vec<Vec<u8>> {
    let mut packed: Vec<Vec<u8>> = Vec::new();
    for (layer, time) in layers.iter().zip(1..) {
        let mut kept = Vec::new();
        packed.push(pack(&kept, time));
        for member in layer {
            kept.push(member.clone());
            let last = packed.len() - 1;
            let before = std::mem::replace(&mut packed[last], pack(&kept, time));
            let into = tempfile::tempdir().expect("a directory");
            let bytes: Vec<&[u8]> = packed.iter().map(Vec::as_slice).collect();
            if kiln_image::unpack_in_memory(&bytes, into.path(), &kiln_image::Limits::default()).is_err() {
                kept.pop();
                packed[last] = before;
            }
        }
    }
    packed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layers_make_the_same_tree_as_a_chain_and_at_once(layers in proptest::collection::vec(layer(), 2..5)) {
        crate::property::need_root_in_proptest!();
        let [at_once, chained] = both_ways(&pack_all(&layers));
        prop_assert!(at_once.is_ok());
        prop_assert_eq!(at_once, chained);
        // And with what is refused, refused alike.
        let packed: Vec<_> = layers.iter().zip(1..).map(|(layer, time)| pack(layer, time)).collect();
        let [at_once, chained] = both_ways(&packed);
        prop_assert_eq!(at_once, chained);
    }
}
