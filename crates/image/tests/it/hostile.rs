//! What an archive must not be able to do, and what it may.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use kiln_image::{Fetcher, ForgetfulDigests, ImageError, Images, ImagesSettings, Limits, Quiet, Reference};
use kiln_testkit::{Need, need};
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{block_on, causes, fetch, fetch_layers, fetch_rootfs, fetch_with};

fn refusal(archive: &[u8]) -> String {
    let error = fetch_rootfs(archive).expect_err("it is refused");
    assert!(error.is_users_fault(), "{error:?}");
    let told = causes(&error);
    told.split_once('\n').expect("a cause").1.trim().to_owned()
}

#[test]
fn a_name_cannot_climb_out() {
    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().join("victim").display().to_string();
    assert_eq!(refusal(&Archive::new().file("../victim", "x").end()), "refused `../victim`: its name contains `..`");
    assert_eq!(
        refusal(&Archive::new().dir("a").file("a/../../victim", "x").end()),
        "refused `a/../../victim`: its name contains `..`"
    );
    let tree = fetch_rootfs(&Archive::new().file(&target, "x").end()).expect("absolute is below the root");
    assert!(tree.path().join(target.trim_start_matches('/')).exists());
    assert!(!outside.path().join("victim").exists());
}

#[test]
fn a_link_above_a_name_is_followed_inside_the_root() {
    let outside = tempfile::tempdir().expect("a directory");
    let absolute = outside.path().display().to_string();
    for (target, lands) in [
        (absolute.as_str(), absolute.trim_start_matches('/')),
        ("../../../../../..", ""),
        ("../../../../../../x/../y", "y"),
        ("/", ""),
        ("not/there", "not/there"),
    ] {
        let tree = fetch_rootfs(&Archive::new().symlink("a", target).file("a/victim", "x").end()).expect(target);
        assert_eq!(fs::read_to_string(tree.path().join(lands).join("victim")).expect(target), "x");
        assert!(!outside.path().join("victim").exists(), "{target}");
    }
}

#[test]
fn a_link_of_a_lower_layer_is_followed_inside_the_root() {
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("kept"), "x").expect("written");
    let target = outside.path().display().to_string();
    let lower = Archive::new().symlink("a", &target).end();
    let upper = Archive::new().file("a/victim", "x").file("a/.wh.kept", "").file("a/.wh..wh..opq", "").end();
    let tree = fetch_layers(&[lower, upper]).expect("fetched");
    assert!(tree.path().join(target.trim_start_matches('/')).join("victim").exists());
    assert_eq!(fs::read_dir(outside.path()).expect("readable").count(), 1);
}

#[test]
fn a_member_replaces_a_link_and_does_not_write_through_it() {
    let outside = tempfile::tempdir().expect("a directory");
    let victim = outside.path().join("victim");
    fs::write(&victim, "mine").expect("written");
    let target = victim.display().to_string();
    let tree = fetch_rootfs(&Archive::new().symlink("a", &target).file("a", "theirs").end()).expect("fetched");
    assert_eq!(fs::read_to_string(tree.path().join("a")).expect("a file"), "theirs");
    let dir = outside.path().display().to_string();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o703)).expect("allowed");
    let tree = fetch_rootfs(&Archive::new().symlink("d", &dir).dir("d").file("d/victim", "theirs").end());
    assert!(tree.expect("fetched").path().join("d").symlink_metadata().expect("there").is_dir());
    assert_eq!(fs::read_to_string(&victim).expect("a file"), "mine");
    assert_eq!(outside.path().metadata().expect("there").permissions().mode() & 0o777, 0o703);
}

#[test]
fn links_that_go_in_circles_are_refused() {
    let archive = Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", "").end();
    assert_eq!(refusal(&archive), "refused `a`: there are too many symbolic links in its path");
}

#[test]
fn a_hard_link_needs_its_target_inside() {
    let outside = tempfile::NamedTempFile::new().expect("a file");
    let target = outside.path().display().to_string();
    let missing = refusal(&Archive::new().hard_link("a", &target).end());
    assert_eq!(missing, format!("`a` is a hard link to `{target}`, which does not exist before it"));
    let told = refusal(&Archive::new().hard_link("a", "../../etc/passwd").end());
    assert_eq!(told, "refused `../../etc/passwd`: its name contains `..`");
    let link = Archive::new().symlink("s", &target).hard_link("h", "s").end();
    let tree = fetch_rootfs(&link).expect("the link itself is linked");
    assert!(tree.path().join("h").symlink_metadata().expect("there").is_symlink());
    assert_eq!(outside.path().metadata().expect("there").nlink(), 1);
    assert_eq!(
        refusal(&Archive::new().dir("d").hard_link("h", "d").end()),
        "refused `h`: it is a hard link to a directory"
    );
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let tree = fetch_rootfs(&Archive::new().file("a", "x").hard_link("a", "./a").end()).expect("fetched");
    assert_eq!(fs::read_to_string(tree.path().join("a")).expect("a file"), "x");
}

#[test]
fn the_last_of_several_members_wins() {
    let archive = Archive::new().file("x", "file").file("x/y", "below, so it is a directory now").end();
    assert_eq!(refusal(&archive), "refused `x`: `x` above it is not a directory");
    let archive = Archive::new().dir("x").file("x/y", "").file("x", "1").file("x", "2").dir("x").file("x/z", "3").end();
    let tree = fetch_rootfs(&archive).expect("fetched");
    let names: Vec<_> = fs::read_dir(tree.path().join("x")).expect("a directory").flatten().collect();
    assert_eq!(names.len(), 1);
}

#[test]
fn directories_get_their_times_and_modes_at_the_end() {
    let archive = Archive::new()
        .file("d/e/late", "")
        .raw(b'5', b"d/", b"", |header| header.set_mode(0o2555))
        .file("d/later", "")
        .raw(b'5', b"./", b"", |header| header.set_mode(0o711))
        .end();
    let tree = fetch_rootfs(&archive).expect("fetched");
    let meta = |name: &str| tree.path().join(name).metadata().expect("there");
    assert_eq!((meta("d").mode() & 0o7777, meta("d").mtime()), (0o2555, 1_000_000_000));
    assert_eq!((meta("d/e").mode() & 0o7777, meta("d/e").mtime()), (0o755, 0), "implied");
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o711, 1_000_000_000));
}

#[test]
fn names_that_mean_nothing_or_harm_are_refused() {
    let long = "x".repeat(256);
    let deep = "d/".repeat(300) + "f";
    let cases = [
        ("the root as a file", Archive::new().file("/", "")),
        ("a long component", Archive::new().pax(&[("path", long.as_bytes())]).file("a", "")),
        ("a long name", Archive::new().pax(&[("path", "x/".repeat(2100).as_bytes())]).file("a", "")),
        ("deep directories", Archive::new().pax(&[("path", deep.as_bytes())]).file("a", "")),
        ("a NUL", Archive::new().pax(&[("path", b"a\0b")]).file("a", "")),
        ("a link to nothing", Archive::new().symlink("a", "")),
        (
            "an overlay whiteout",
            Archive::new().raw(b'3', b"a", b"", |header| {
                header.set_device_major(0).expect("GNU");
                header.set_device_minor(0).expect("GNU");
            }),
        ),
        ("overlayfs's attributes", Archive::new().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]).file("a", "")),
        ("overlayfs's other attributes", Archive::new().pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")]).dir("a")),
        ("an owner that is none", Archive::new().pax(&[("uid", b"4294967295")]).file("a", "")),
        ("an unknown kind", Archive::new().raw(b'M', b"a", b"", |_| {})),
        ("a map that does not fit", Archive::new().pax(&[("GNU.sparse.map", b"0,5")]).file("a", "x")),
        ("a long extended header", Archive::new().raw(b'x', b"a", b"", |header| header.set_size(2 << 20))),
        ("a size beyond the end", Archive::new().raw(b'0', b"a", b"", |header| header.set_size(1 << 40))),
        ("a size beyond all", Archive::new().pax(&[("size", b"18446744073709551615")]).file("a", "")),
        (
            "a hole beyond all",
            Archive::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9000000000000")]).file("a", "x"),
        ),
        ("rubbish", Archive::new().bytes(&[7; 2048])),
        ("rubbish after a member", Archive::new().file("a", "").bytes(&[7; 2048])),
        ("a short file", Archive::new().bytes(b"hello")),
    ];
    let told: String = cases.map(|(what, archive)| format!("{what}: {}\n", refusal(&archive.end()))).concat();
    insta::assert_snapshot!(told);
}

#[test]
fn whiteouts_that_name_no_file_are_refused() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let error = fetch_layers(&[Archive::new().dir("d").end(), Archive::new().file(name, "").end()]);
        let told = causes(&error.expect_err(name));
        assert!(told.contains("it hides no file"), "{told}");
    }
}

#[test]
fn limits_hold() {
    let archive = (0..20).fold(Archive::new(), |archive, n| archive.dir(&n.to_string()).file("f", "0123456789")).end();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), archive).expect("written");
    let fetch = |limits: Limits| {
        let reference = Reference::Rootfs(file.path().to_owned());
        let images = Images::new(ImagesSettings { limits, ..ImagesSettings::default() });
        let into = tempfile::tempdir().expect("a directory");
        let cancel = CancellationToken::new();
        block_on(async {
            let resolved = images.resolve(&reference, None, std::sync::Arc::new(ForgetfulDigests)).await?;
            fetch_with(&images, &resolved, into.path(), std::sync::Arc::new(Quiet), &cancel).await
        })
    };
    assert!(fetch(Limits::default()).is_ok());
    for limits in [
        Limits { entries: 39, ..Limits::default() },
        Limits { unpacked_bytes: 199, ..Limits::default() },
        Limits { remembered_bytes: 1000, ..Limits::default() },
    ] {
        let error = fetch(limits).expect_err("too much");
        assert!(error.is_users_fault(), "{error:?}");
    }
}

#[test]
fn what_unpacks_to_hundreds_of_times_its_length_is_refused_from_a_length_on() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let archive = Archive::new().file("zeros", &"0".repeat(10 << 20)).end();
    let packed = zstd_of(&archive);
    fs::write(file.path(), &packed).expect("written");
    let fetch = |dense_bytes| {
        let limits = Limits { dense_bytes, ..Limits::default() };
        let images = Images::new(ImagesSettings { limits, ..ImagesSettings::default() });
        let into = tempfile::tempdir().expect("a directory");
        block_on(async {
            let reference = Reference::Rootfs(file.path().to_owned());
            let resolved = images.resolve(&reference, None, std::sync::Arc::new(ForgetfulDigests)).await?;
            let (quiet, cancel) = (std::sync::Arc::new(Quiet), CancellationToken::new());
            fetch_with(&images, &resolved, into.path(), quiet, &cancel).await
        })
    };
    fetch(11 << 20).expect("short enough");
    let told = causes(&fetch(8 << 20).expect_err("a bomb"));
    assert!(told.contains(&format!(", more than 200 times the {} that are stored", packed.len())), "{told}");
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("in memory")
}

#[test]
fn special_bits_owners_attributes_and_nodes_are_kept() {
    need!(Need::Root);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .raw(b'0', b"suid", b"x", |header| {
            header.set_mode(0o4755);
            header.set_uid(1234);
        })
        .raw(b'3', b"null", b"", |header| {
            header.set_mode(0o666);
            header.set_device_major(1).expect("GNU");
            header.set_device_minor(3).expect("GNU");
        })
        .raw(b'6', b"fifo", b"", |_| {})
        .end();
    let tree = fetch_rootfs(&archive).expect("fetched");
    let suid = tree.path().join("suid");
    let meta = suid.metadata().expect("there");
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o4755, 1234));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 500_000_000));
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&suid, "security.capability", &mut value[..]).expect("kept");
    assert_eq!(value[..length], capability);
    assert_eq!(tree.path().join("null").metadata().expect("there").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(tree.path().join("null").metadata().expect("there").mode() & 0o7777, 0o666);
}

#[test]
fn a_cancelled_fetch_stops() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), Archive::new().file("a", "").end()).expect("written");
    let resolved = crate::resolve(&format!("rootfs:{}", file.path().display())).expect("resolved");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let into = tempfile::tempdir().expect("a directory");
    let fetched = block_on(fetch_with(&Images::default(), &resolved, into.path(), std::sync::Arc::new(Quiet), &cancel));
    assert!(matches!(fetched, Err(ImageError::Cancelled)), "{fetched:?}");
}

#[test]
fn a_file_that_is_no_archive_is_told_apart_from_a_missing_one() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("empty"), "").expect("written");
    fs::write(dir.path().join("bz"), b"BZh91AY&SY").expect("written");
    fs::write(dir.path().join("gz"), b"\x1f\x8b\x08\0garbage that is no gzip").expect("written");
    let here = dir.path().display();
    let told: String = [
        "rootfs:H/none",
        "rootfs:H",
        "rootfs:H/empty",
        "rootfs:H/bz",
        "rootfs:H/gz",
        "dir:H/none",
        "dir:H/bz",
        "oci:H",
        "oci:H/none",
        "oci-archive:H/gz",
        "oci-archive:H/bz",
        "docker-archive:H/empty",
    ]
    .map(|reference| {
        let error = fetch(&reference.replace('H', &here.to_string())).expect_err("an error");
        assert!(error.is_users_fault(), "{error:?}");
        format!("{reference}: {}\n", causes(&error).replace(&here.to_string(), "H"))
    })
    .concat();
    insta::assert_snapshot!(told);
}
