//! Layers on each other.

use std::fs;

use kiln_testkit::{Need, need};

use crate::archive::Archive;
use crate::overlay::fetch_chained;
use crate::{fetch, fetch_layers, listing, sh};

fn names(layers: &[Vec<u8>]) -> Vec<String> {
    let tree = fetch_layers(layers).expect("fetched");
    let mut names: Vec<String> = kiln_testkit::listing(tree.path())
        .expect("a listing")
        .iter()
        .map(|line| line.split(' ').next().expect("a name").to_owned())
        .collect();
    names.sort();
    names
}

fn lower() -> Vec<u8> {
    Archive::new().dir("d").file("d/a", "").dir("d/sub").file("d/sub/b", "").file("c", "").end()
}

#[test]
fn a_whiteout_hides_what_is_below() {
    assert_eq!(
        names(&[lower(), Archive::new().file("d/.wh.a", "").file(".wh.c", "").end()]),
        ["d", "d/sub", "d/sub/b"]
    );
    assert_eq!(names(&[lower(), Archive::new().file(".wh.d", "").end()]), ["c"]);
    assert_eq!(names(&[lower(), Archive::new().file("none/.wh.d", "").file(".wh.none", "").end()]).len(), 5);
}

#[test]
fn a_whiteout_spares_its_own_layer_wherever_it_stands() {
    let after = Archive::new().file("d/new", "").file("d/sub/new", "").file(".wh.d", "").end();
    let before = Archive::new().file(".wh.d", "").file("d/new", "").file("d/sub/new", "").end();
    for layer in [after, before] {
        assert_eq!(names(&[lower(), layer]), ["c", "d", "d/new", "d/sub", "d/sub/new"]);
    }
    let replaced = Archive::new().file("c", "new").file(".wh.c", "").end();
    assert_eq!(names(&[lower(), replaced]).len(), 5);
}

#[test]
fn an_opaque_directory_hides_all_below_and_nothing_beside() {
    let opaque = Archive::new().dir("d").file("d/new", "").file("d/.wh..wh..opq", "").end();
    assert_eq!(names(&[lower(), opaque]), ["c", "d", "d/new"]);
    assert_eq!(names(&[lower(), Archive::new().file(".wh..wh..opq", "").file("x", "").end()]), ["x"]);
}

#[test]
fn whiteouts_of_the_lowest_layer_and_notes_of_aufs_are_nothing() {
    let first = Archive::new().file(".wh.a", "").file("a", "").file(".wh..wh.aufs", "").file(".wh..wh..opq", "").end();
    assert_eq!(names(&[first.clone(), first]), ["a"]);
}

#[test]
fn a_plain_archive_has_no_whiteouts() {
    let tree = crate::fetch_rootfs(&Archive::new().file("a", "").file(".wh.a", "").end()).expect("fetched");
    assert_eq!(fs::read_dir(tree.path()).expect("readable").count(), 2);
}

#[test]
fn a_directory_keeps_its_time_when_a_later_layer_only_adds_to_it() {
    let tree =
        fetch_layers(&[lower(), Archive::new().file("d/sub/new", "").file("d/.wh.a", "").end()]).expect("fetched");
    let lines = listing(tree.path());
    let directories: Vec<_> = lines.iter().filter(|line| line.contains(" 40755 ") && !line.starts_with(". ")).collect();
    assert_eq!(directories.len(), 2, "{lines:?}");
    assert!(directories.iter().all(|line| line.ends_with("@1000000000.000000000")), "{lines:?}");
}

/// Three layers with all kinds of changes between them, unpacked as umoci does.
#[test]
fn an_image_of_umoci_unpacks_as_umoci_does() {
    need!(Need::Root, Need::Tool("umoci", "umoci"), Need::Tool("skopeo", "skopeo"));
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("base");
    fs::create_dir(&root).expect("made");
    kiln_testkit::busybox_root(&root).expect("a root");
    sh(
        dir.path(),
        "umoci init --layout l; umoci new --image l:1
         umoci unpack --image l:1 b1; cp -a base/. b1/rootfs/
         mkdir -p b1/rootfs/gone/deep b1/rootfs/swap b1/rootfs/opaque; echo 1 > b1/rootfs/gone/deep/f
         echo 1 > b1/rootfs/swap/f; echo 1 > b1/rootfs/becomes-dir; echo 1 > b1/rootfs/opaque/old
         ln b1/rootfs/becomes-dir b1/rootfs/linked; mkfifo b1/rootfs/fifo; chmod 1777 b1/rootfs/swap
         ln -s usr b1/rootfs/link-to-dir; chown 12:34 b1/rootfs/opaque; umoci repack --image l:2 b1
         umoci unpack --image l:2 b2; cd b2/rootfs; rm -r gone swap becomes-dir; echo 2 > swap; mkdir becomes-dir
         echo 2 > becomes-dir/f; rm -r opaque; mkdir opaque; echo 2 > opaque/new; rm bin/yes
         rm link-to-dir; mkdir link-to-dir; echo 2 > link-to-dir/f; chmod 4755 bin/busybox; touch -d @5.000000007 etc/passwd
         cd ../..; umoci repack --image l:3 b2
         umoci unpack --image l:3 b3; rm b3/rootfs/linked; ln -s /etc b3/rootfs/opaque/etc; chmod 700 b3/rootfs/home
         umoci repack --image l:4 b3; umoci config --image l:4 --config.env A=1 --config.env PATH=/x
         umoci unpack --image l:4 theirs
         skopeo copy -q oci:l:4 oci-archive:image.tar:4
         skopeo copy -q oci:l:4 docker-archive:docker.tar:example/name:4
         skopeo copy -q --dest-compress-format zstd oci:l:4 oci:z:4 2>/dev/null || true",
    );
    let theirs = listing(&dir.path().join("theirs/rootfs"));
    let here = dir.path().display();
    let mut references = vec![
        format!("oci:{here}/l:4"),
        format!("oci-archive:{here}/image.tar:4"),
        format!("oci-archive:{here}/image.tar"),
        format!("docker-archive:{here}/docker.tar"),
        format!("docker-archive:{here}/docker.tar:example/name:4"),
        format!("docker-archive:{here}/docker.tar:docker.io/example/name:4"),
    ];
    if dir.path().join("z/index.json").exists() {
        references.push(format!("oci:{here}/z"));
    }
    for reference in references {
        let (tree, config) = fetch(&reference).expect(&reference);
        let ours = listing(tree.path());
        let without_root = |lines: &[String]| lines[..lines.len() - 1].to_vec();
        assert_eq!(without_root(&ours), without_root(&theirs), "{reference}");
        assert!(config.env.contains(&("A".to_owned(), "1".to_owned())), "{config:?}");
        assert_eq!(config.raw["Env"], serde_json::json!(["A=1", "PATH=/x"]));
        let chained = fetch_chained(&reference).expect(&reference);
        let described = |root: &std::path::Path| kiln_testkit::describe(root).expect("readable")[1..].to_vec();
        assert_eq!(described(&chained.tree.path()), described(&dir.path().join("theirs/rootfs")), "{reference}");
    }
}

/// The seeds of the fuzz target must get past the parser, or they are of no use.
#[test]
fn the_layers_that_fuzzing_starts_from_are_whole() {
    need!(Need::Root);
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/layer_read");
    let mut count = 0;
    for seed in fs::read_dir(seeds).expect("seeds") {
        let path = seed.expect("a seed").path();
        let bytes = fs::read(&path).expect("readable");
        let (lower, upper) = bytes.split_at(bytes.len() / 2);
        let into = tempfile::tempdir().expect("a directory");
        let limits = kiln_image::Limits::default();
        kiln_image::unpack_in_memory(&[lower, upper], into.path(), &limits)
            .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        assert!(into.path().join("d").exists() && !into.path().join("d/a").exists(), "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 6);
}
