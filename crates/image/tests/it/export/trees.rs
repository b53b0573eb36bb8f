//! What a layer holds, case by case.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use kiln_image::export::Destination;
use kiln_store::Root;
use kiln_testkit::store::deepen;
use kiln_testkit::{Need, need};

use super::{Results, assert_same, file, image, in_seconds, layers, members, oci, options, seen, step, write};
use crate::{fetch, listing, sh};

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect("attributes");
}

/// Returns the names in the topmost layer.
fn top(results: &Results) -> Vec<String> {
    let found = [true, false].map(|has_hint| {
        let out = results.dir.path().join(format!("out-{}-{has_hint}", results.made.len()));
        write(results.image(has_hint), oci(&out), options(results.dir.path())).expect("written");
        layers(&out).pop().map(|layer| members(&layer)).unwrap_or_default()
    });
    assert_eq!(found[0], found[1], "with and without the hint");
    found[0].clone()
}

#[test]
fn only_what_changed_is_in_a_layer_with_the_directories_above() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh(
        "mkdir -p a/b c; echo 1 >a/b/changed; echo 1 >a/b/same; echo 1 >c/gone; touch -d @1000 a/b/* c/* a/b a c .",
    );
    assert_eq!(top(&results), ["./", "a/", "a/b/", "a/b/changed", "a/b/same", "c/", "c/gone"]);
    // Touched and put back: overlayfs has a copy of it.
    results.sh("echo 2 >a/b/changed; touch a/b/same; rm c/gone; touch -d @1000 a/b/* c a/b a .");
    assert_eq!(top(&results), ["a/", "a/b/", "a/b/changed", "c/", "c/.wh.gone"]);
    results.sh("chmod 700 a/b");
    assert_eq!(top(&results), ["a/", "a/b/"]);
    results.sh("chmod 700 .");
    assert_eq!(top(&results), ["./"]);
}

#[test]
fn a_step_that_changes_nothing_has_no_layer() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh("echo 1 >f; mkdir d; touch -d @1000 f d .");
    // A name that was never there below leaves a whiteout in overlayfs' layer.
    results.sh("mv f g; mv g f; chmod 700 d; chmod 755 d; echo 1 >new; rm new; touch -d @1000.5 .");
    let out = results.dir.path().join("out");
    let written = write(results.image(true), oci(&out), options(results.dir.path())).expect("written");
    assert_eq!((written.layers, layers(&out).len()), (1, 1));
    let config = config(&out);
    assert_eq!(config["history"][0].get("empty_layer"), None);
    assert_eq!(config["history"][1]["empty_layer"], true);
    assert_eq!(config["rootfs"]["diff_ids"].as_array().expect("a list").len(), 1);
}

/// The configuration of the only image in a layout.
fn config(layout: &Path) -> serde_json::Value {
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        super::json(&layout.join("blobs").join(digest.replace(':', "/")))
    };
    blob(&blob(&super::json(&layout.join("index.json"))["manifests"][0])["config"])
}

#[test]
fn a_directory_made_anew_hides_what_was_in_it_by_name() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh("mkdir -p d/sub; touch d/old d/both d/sub/x; touch -d @1000 d/old d/both d/sub/x d/sub d .");
    results.sh("rm -r d; mkdir d; touch d/both d/new; touch -d @1000 d/* d .");
    assert_eq!(top(&results), ["d/", "d/new", "d/.wh.old", "d/.wh.sub"]);
    results.sh("rm -r d; touch d; touch -d @1000 d .");
    assert_eq!(top(&results), ["d"]);
    results.sh("rm d; mkdir d; touch d/x; touch -d @1000 d/x d .");
    assert_eq!(top(&results), ["d/", "d/x"]);
}

#[test]
fn hard_links_live_in_one_layer() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh("mkdir d; echo 1 >d/b; touch -d @1000 d/b d .");
    // `b` itself does not change, but `c` needs a file in its own layer.
    results.sh("ln d/b d/c; ln d/b a; touch -d @1000 d .");
    assert_eq!(top(&results), ["a", "d/", "d/b", "d/c"]);
    results.copy(&results.dir.path().join("expected"));
    let out = results.dir.path().join("out-2-true");
    let (tree, _) = fetch(&format!("oci:{}", out.display())).expect("imported");
    let expected = seen(&results.dir.path().join("expected"));
    assert!(expected.iter().any(|line| line.starts_with("\"a\" 100644 (0, 0) 3 ")), "{expected:#?}");
    assert_same(&seen(tree.path()), &expected, "imported");
}

#[test]
fn capabilities_attributes_and_odd_files_survive() {
    need!(Need::Root, Need::Tool("umoci", "umoci"));
    let mut results = Results::new();
    results.step(|tree| {
        sh(
            tree,
            "echo >ping; chown 12:34 ping; chmod 4711 ping; mkdir noted long
            mkfifo fifo; mknod null c 1 3; mknod loop b 7 200
            truncate -s 5M sparse; echo end >>sparse; ln -s $(printf %0200d 7) link
            touch owned; chown 3000000:4000000000 owned; touch -d @20000000000 late; touch -d @-5 early",
        );
        attribute(&tree.join("noted"), "user.empty", b"");
        attribute(&tree.join("long"), &format!("user.{}", "n".repeat(250)), b"1");
        attribute(&tree.join("long"), &format!("user.{}", "o".repeat(250)), b"2");
        attribute(&tree.join("noted"), "user.binary", b"\0\xff\n=");
        // vfs_cap_data, revision 2: cap_net_raw, permitted.
        attribute(&tree.join("ping"), "security.capability", b"\0\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let latin = std::ffi::OsStr::from_bytes(b"gr\xfc\xdfe");
        fs::write(tree.join(latin), "latin-1").expect("any name");
        fs::write(tree.join("ж".repeat(127)), "long").expect("254 bytes");
        fs::write(tree.join("\n8 uid=1\n"), "nasty").expect("any name");
        let deep = "d".repeat(60) + "/" + &"e".repeat(60);
        fs::create_dir_all(tree.join(&deep)).expect("writable");
        fs::write(tree.join(&deep).join("f"), "deep").expect("writable");
        fs::hard_link(tree.join(&deep).join("f"), tree.join("linked")).expect("writable");
    });
    // Sockets are no part of a tree.
    results.step(|tree| drop(UnixListener::bind(tree.join("socket")).expect("a socket")));
    let dir = results.dir.path();
    results.copy(&dir.join("expected"));
    fs::remove_file(dir.join("expected/socket")).expect("it was copied");
    let time = results.tree().join(".").metadata().and_then(|meta| meta.modified()).expect("a root");
    fs::File::open(dir.join("expected")).and_then(|root| root.set_modified(time)).expect("ours");
    in_seconds(&dir.join("expected"));
    write(results.image(true), oci(&dir.join("out")), options(dir)).expect("written");
    let expected = seen(&dir.join("expected"));
    assert!(expected.iter().any(|line| line.contains("security.capability=")), "{expected:#?}");
    let (tree, _) = fetch(&format!("oci:{}", dir.join("out").display())).expect("imported");
    assert_same(&seen(tree.path()), &expected, "imported");
    sh(dir, "umoci unpack --image out:1 bundle 2>/dev/null");
    // It knows neither times after 2038 nor attributes without a value.
    let but_odd = |mut lines: Vec<String>| {
        lines.retain(|line| !line.starts_with("\"late\"") && !line.starts_with("\"noted\""));
        lines
    };
    assert_same(&but_odd(seen(&dir.join("bundle/rootfs"))), &but_odd(expected.clone()), "umoci");
    write(results.image(true), Destination::Dir(dir.join("whole")), options(dir)).expect("written");
    assert_same(&seen(&dir.join("whole")), &expected, "as a directory");
    write(results.image(true), Destination::Tar(file(&dir.join("whole.tar.gz"))), options(dir)).expect("written");
    sh(dir, "mkdir gnu; tar -C gnu --xattrs --xattrs-include='*' -xpf whole.tar.gz");
    assert_same(&seen(&dir.join("gnu")), &expected, "GNU tar");
}

#[test]
fn what_a_layer_cannot_say_is_refused() {
    need!(Need::Root);
    for (place, reason) in [
        ("d/.wh.f", "in a layer, names that start with `.wh.` mean removed files"),
        ("d/f", "the name of one of its extended attributes has a `=`"),
    ] {
        let mut results = Results::new();
        results.step(|tree| {
            sh(tree, &format!("mkdir d; touch {place}"));
            attribute(&tree.join(place), "user.a=b", b"c");
        });
        let dir = results.dir.path();
        let error = write(results.image(true), oci(&dir.join("out")), options(dir)).expect_err("it cannot be said");
        assert!(error.is_users_fault());
        assert_eq!(error.to_string(), format!("`{place}` cannot be in an image: {reason}"));
        assert!(!dir.join("out").exists(), "nothing is left");
    }
    let mut results = Results::new();
    results.sh("touch .wh.f");
    let dir = results.dir.path();
    write(results.image(true), Destination::Dir(dir.join("out")), options(dir)).expect("a tree has any names");
    assert!(dir.join("out/.wh.f").exists());
}

#[test]
fn whiteouts_of_the_longest_names_are_read_again() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh("touch $(printf %0255d 1) $(printf %0255d 2)");
    results.sh("rm $(printf %0255d 1)");
    let dir = results.dir.path();
    write(results.image(true), oci(&dir.join("out")), options(dir)).expect("written");
    let (tree, _) = fetch(&format!("oci:{}", dir.join("out").display())).expect("imported");
    assert_eq!(listing(tree.path()).len(), 2, "one file and the root");
}

#[test]
fn a_tree_deeper_than_any_path_is_walked() {
    need!(Need::Root);
    /// Paths of 4 200 bytes: the kernel takes 4 096.
    const DEPTH: usize = 2_100;
    /// The standard library holds a descriptor for each level that it deletes.
    struct Deep(tempfile::TempDir);
    impl Drop for Deep {
        fn drop(&mut self) {
            let _ = std::process::Command::new("rm").arg("-rf").arg(self.0.path()).status();
        }
    }
    let guard = Deep(tempfile::tempdir().expect("a directory"));
    let dir = &guard.0;
    for name in ["below", "tree"] {
        fs::create_dir(dir.path().join(name)).expect("writable");
        deepen(&dir.path().join(name), DEPTH, 1);
    }
    let root = |name: &str| Root::Dir(dir.path().join(name));
    let steps = || vec![step("deep", Some(root("below")), root("tree"), Some(dir.path().join("tree")))];
    write(image(steps()), oci(&dir.path().join("out")), options(dir.path())).expect("written");
    // Each path comes in its own header.
    let steps = vec![step("deep", None, root("tree"), None)];
    write(image(steps), oci(&dir.path().join("all")), options(dir.path())).expect("written");
    assert!(layers(&dir.path().join("all"))[0].len() > DEPTH * DEPTH);
}

#[test]
fn a_hundred_thousand_files_need_little_memory() {
    need!(Need::Root);
    let mut results = Results::new();
    results.sh("for d in $(seq 100); do mkdir $d; (cd $d; seq 1000 | xargs touch); done; seq 2000000 >big");
    let dir = results.dir.path();
    write(results.image(true), oci(&dir.join("out")), options(dir)).expect("written");
    // Of this process, which may have run other tests too: those need little.
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak").trim();
    let peak_kib: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(peak_kib < 100 << 10, "{peak}");
    assert_eq!(members(&layers(&dir.join("out"))[0]).len(), 100_102);
}
