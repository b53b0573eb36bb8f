//! The same builds on every kind of store: nobody can tell them apart by what they give.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_testkit::{LoopFs, Need, need};

use crate::env::TestEnv;
use crate::needs_builds;

const SPEC: &str = r#"((build tool ((from rootfs:base.tar) (run (shell "echo tool > /tool; chmod 4755 /tool"))))
 (from rootfs:base.tar)
 (run (shell "echo one > /one; ln /one /first; ln -s one /link; mkdir -p /d/e; mknod /null c 1 3; chown 12:34 /d"))
 (run (cache (c (target /cache))) (shell "echo x >> /cache/log; echo two >> /two; rm /link; mv /d /f; chmod 700 /f"))
 (copy (src .) (dst /src/))
 (copy (from (build tool)) (src /tool) (dst /bin/tool))
 (run (cache (c (target /cache))) (shell "cat /cache/log /one /two /src/file; echo more >> /src/file; rm -r /f")))"#;

fn exported_from(env: &TestEnv, kind: &str, place: &Path, options: &[&str]) -> Vec<u8> {
    let store = format!("{kind}:{}", place.display());
    let on_it = [&["--store", &*store], options].concat();
    let kiln = |arguments: &[&str]| env.run(&[arguments, &on_it].concat());
    env.spec(SPEC);
    let built = kiln(&["build", "-f", "spec", "src"]).ok();
    assert!(built.stderr.contains("x\none\ntwo\nfile\n"), "{kind}: {}", built.stderr);
    let again = kiln(&["build", "-f", "spec", "src"]).ok();
    assert_eq!((again.made_and_found().0, again.id()), (0, built.id()), "{kind}: all of it is there");
    env.spec(r#"(run (shell "echo failing; exit 3"))"#);
    kiln(&["build", "-f", "spec", "src"]).fails_with(1);
    let image = env.at("image.tar");
    let mut export = env.kiln(&[&["export", built.id(), "-o", "type=tar,dest=image.tar"], &*on_it].concat());
    env.ran(export.env("SOURCE_DATE_EPOCH", "1")).ok();
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(image).unwrap();
    kiln(&["store", "verify"]).ok();
    kiln(&["prune", "--all"]).ok();
    assert_eq!(fs::read_dir(place.join("result")).unwrap().count(), 0, "{kind}: nothing is in use");
    for left in ["draft", "trash"] {
        assert_eq!(fs::read_dir(place.join(left)).unwrap().count(), 0, "{kind}: {left}");
    }
    bytes
}

#[test]
fn every_kind_of_store_gives_the_same_bytes() {
    needs_builds!();
    need!(Need::Tool("mkfs.xfs", "xfsprogs"), Need::Tool("mkfs.btrfs", "btrfs-progs"));
    let env = TestEnv::new();
    env.write("src/file", "file\n");
    let (xfs, btrfs) = (LoopFs::new("xfs", 400).unwrap(), LoopFs::new("btrfs", 400).unwrap());
    let hard_links = ["--rsync-mode", "hardlink"];
    let kinds: [(&str, PathBuf, &[&str]); 7] = [
        ("overlayfs", env.at("overlayfs"), &[]),
        ("overlayfs", xfs.path().join("overlayfs"), &[]),
        ("btrfs", btrfs.path().join("btrfs"), &[]),
        ("xfs", xfs.path().join("xfs"), &[]),
        ("xfs", btrfs.path().join("xfs"), &[]),
        ("copy", env.at("copy"), &[]),
        ("rsync", env.at("rsync"), &hard_links),
    ];
    let mut first: Option<Vec<u8>> = None;
    for (kind, place, options) in kinds {
        let bytes = exported_from(&env, kind, &place, options);
        let first = first.get_or_insert_with(|| bytes.clone());
        assert!(*first == bytes, "{kind} in {} exports something else", place.display());
    }
}
