//! Layouts, archives, directories: whole or not at all, and the same each time.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kiln_image::Progress;
use kiln_image::export::{Compression, Destination, ExportError, Image, Options, Output, Overrides, Written, export};
use kiln_testkit::{Need, need};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Notes, Results, file, image, json, layers, members, mode, oci, options, write, write_with};
use crate::{block_on, fetch};

fn two_steps() -> Results {
    let mut results = Results::new();
    results.sh("mkdir bin; echo 1 >bin/one; touch -d @1000 bin/one bin .");
    results.sh("echo 2 >bin/two; touch -d @2000.5 bin/two bin .");
    results
}

fn archive(results: &Results, name: &str) -> (Vec<u8>, Written) {
    let path = results.dir.path().join(name);
    let destination = Destination::OciArchive { output: file(&path), tag: None };
    let written = write(results.image(true), destination, options(results.dir.path())).expect("written");
    (fs::read(path).expect("written"), written)
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("a directory");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("readable").file_name().display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn an_archive_is_the_same_each_time() {
    need!(Need::Root);
    let (results, other) = (two_steps(), two_steps());
    let (bytes, written) = archive(&results, "one.tar");
    assert!(archive(&results, "two.tar") == (bytes.clone(), written.clone()));
    // Made elsewhere, at another time.
    assert!(archive(&other, "other.tar") == (bytes.clone(), written.clone()));
    let members = members(&bytes);
    assert!(members.is_sorted(), "{members:?}");
    assert_eq!(members.len(), 2 + 4 + 2, "{members:?}");
    let manifest = written.manifest.expect("an image");
    assert!(members.contains(&format!("blobs/sha256/{}", manifest.hex())));
    assert_eq!(names(results.dir.path()), ["one.tar", "store", "two.tar"], "nothing temporary is left");
}

#[test]
fn no_time_is_later_than_the_epoch() {
    need!(Need::Root);
    let mut results = two_steps();
    results.sh("touch -d @1500 bin/two bin; echo 3 >bin/three");
    let dir = results.dir.path();
    let early = Options { source_date_epoch: Some(1500), ..options(dir) };
    write(results.image(true), oci(&dir.join("out")), early).expect("written");
    let layers = layers(&dir.join("out"));
    for layer in &layers {
        let mut archive = tar::Archive::new(&**layer);
        for entry in archive.entries().expect("an archive") {
            assert!(entry.expect("a member").header().mtime().expect("a time") <= 1500);
        }
    }
    // What differs only in times after it is the same.
    assert_eq!(members(&layers[2]), ["bin/", "bin/three"]);
    let blobs = fs::read_dir(dir.join("out/blobs/sha256")).expect("blobs");
    let text: String = blobs.filter_map(|blob| fs::read_to_string(blob.expect("readable").path()).ok()).collect();
    assert_eq!(text.matches("1970-01-01T00:25:00Z").count(), 4, "{text}");
    assert_eq!(text.matches("2017-").count(), 0, "{text}");
}

#[test]
fn the_configuration_says_what_base_and_spec_say() {
    need!(Need::Root);
    let results = two_steps();
    let dir = results.dir.path();
    let mut image = results.image(true);
    image.base.steps.push(image.steps.remove(0));
    image.base.config = json!({
        "Env": ["PATH=/bin"], "Cmd": ["bash"], "Labels": {"a": "1", "b": "1"}, "StopSignal": "SIGINT", "Volumes": null,
    });
    image.base.history = vec![
        json!({"created": "2020-01-01T00:00:00Z", "created_by": "ADD"}),
        json!({"created": "2020-01-01T00:00:00Z", "created_by": "CMD", "empty_layer": true}),
    ];
    image.variant = Some("v8".to_owned());
    image.overrides = Overrides {
        env: Some(vec![("PATH".to_owned(), "/bin:/sbin".to_owned()), ("A".to_owned(), "b=c".to_owned())]),
        entrypoint: Some(vec!["/run".to_owned()]),
        working_dir: Some("/work".to_owned()),
        labels: [("b".to_owned(), "2".to_owned())].into(),
        ..Overrides::default()
    };
    let written = write(image, oci(&dir.join("out")), options(dir)).expect("written");
    let hex = written.config.expect("an image").hex();
    let mut config = json(&dir.join("out/blobs/sha256").join(hex));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
    config["rootfs"]["diff_ids"] = json!([]);
    let expected = json!({
        "created": "2020-09-13T12:26:40Z", "architecture": "amd64", "os": "linux", "variant": "v8",
        "config": {
            "Env": ["PATH=/bin:/sbin", "A=b=c"], "Entrypoint": ["/run"], "WorkingDir": "/work",
            "Labels": {"a": "1", "b": "2"}, "StopSignal": "SIGINT",
        },
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [
            {"created": "2020-01-01T00:00:00Z", "created_by": "ADD"},
            {"created": "2020-01-01T00:00:00Z", "created_by": "CMD", "empty_layer": true},
            {"created": "2017-07-14T02:40:00.123000000Z", "created_by": config["history"][2]["created_by"]},
        ],
    });
    assert_eq!(config, expected);
}

#[test]
fn a_layout_keeps_the_images_that_it_has() {
    need!(Need::Root);
    let results = two_steps();
    let dir = results.dir.path();
    let out = dir.join("out");
    let named = |names: &[&str]| {
        let names = names.iter().map(|name| name.parse().expect("a name")).collect();
        Image { names, ..results.image(true) }
    };
    let tagged = |tag: &str| Destination::OciLayout { dir: out.clone(), tag: Some(tag.to_owned()) };
    write(named(&["app:1", "registry.example/app"]), oci(&out), options(dir)).expect("written");
    write(named(&[]), tagged("mine"), options(dir)).expect("written");
    let mut changed = named(&["app:1"]);
    changed.created_ms = 0;
    let written = write(changed, oci(&out), options(dir)).expect("written");
    let index = json(&out.join("index.json"));
    let told: Vec<String> = index["manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|manifest| {
            let text = |key: &str| manifest["annotations"][key].as_str().unwrap_or("-").to_owned();
            let is_new = manifest["digest"] == written.manifest.expect("an image").to_string();
            format!("{} {} {is_new}", text("org.opencontainers.image.ref.name"), text("io.containerd.image.name"))
        })
        .collect();
    assert_eq!(told, ["latest registry.example/app:latest false", "mine - false", "1 docker.io/library/app:1 true"],);
    fetch(&format!("oci:{}:mine", out.display())).expect("it is whole");
}

#[test]
fn a_layer_that_is_there_is_not_made_again() {
    need!(Need::Root);
    let results = two_steps();
    let dir = results.dir.path();
    let notes = Arc::new(Notes::default());
    let first = write_with(results.image(true), oci(&dir.join("out")), options(dir), notes.clone()).expect("written");
    // Nothing can be opened; and nothing needs to be.
    let mut closed = results.image(true);
    for step in &mut closed.steps {
        let layer = step.layer.as_mut().expect("a layer");
        layer.open = Box::new(|| Err(std::io::ErrorKind::NotFound.into()));
    }
    let second = write_with(closed, oci(&dir.join("out")), options(dir), notes.clone()).expect("written");
    assert_eq!(first, second);
    // Elsewhere they are made, and a wrong memory does no harm.
    for answer in notes.0.lock().expect("nobody panicked").values_mut() {
        *answer = answer.replace(' ', "  ");
    }
    assert_eq!(write_with(results.image(true), oci(&dir.join("new")), options(dir), notes).expect("written"), first);
}

#[test]
fn a_failure_leaves_a_layout_as_it_was() {
    need!(Need::Root);
    let mut results = two_steps();
    let out = results.dir.path().join("out");
    write(results.image(true), oci(&out), options(results.dir.path())).expect("written");
    let listing =
        |path: &Path| crate::listing(path).into_iter().filter(|line| !line.contains(" 40755 ")).collect::<Vec<_>>();
    let before = listing(&out);
    results.sh("echo new >new; touch .wh.no");
    let dir = results.dir.path();
    write(results.image(true), oci(&out), options(dir)).expect_err("a name that cannot be");
    let files = |lines: Vec<String>| lines.into_iter().filter(|line| !line.starts_with('.')).collect::<Vec<_>>();
    assert_eq!(files(listing(&out)), files(before));
    let held = File::open(&out).expect("readable");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("nobody has it");
    let error = write(results.image(true), oci(&out), options(dir)).expect_err("locked");
    assert!(matches!(error, ExportError::InUse { .. }) && !error.is_users_fault(), "{error}");
    drop(held);
    fs::write(out.join("index.json"), "[]").expect("writable");
    let squash = Options { squash: true, ..options(dir) };
    let good = two_steps();
    let error = write(good.image(true), oci(&out), squash).expect_err("no index");
    assert!(matches!(error, ExportError::NotALayout { .. }) && error.is_users_fault(), "{error}");
    assert_eq!(fs::read_to_string(out.join("index.json")).expect("it stays"), "[]");
    fs::create_dir(dir.join("used")).expect("writable");
    fs::write(dir.join("used/mine"), "precious").expect("writable");
    let error = write(results.image(true), oci(&dir.join("used")), options(dir)).expect_err("no layout");
    let expected = "DIR/used is not an OCI layout: it is not empty, and has no `oci-layout`; choose another directory";
    assert_eq!(error.to_string().replace(&*dir.to_string_lossy(), "DIR"), expected);
    let error = write(results.image(true), Destination::Dir(dir.join("used")), options(dir)).expect_err("in use");
    assert_eq!(
        error.to_string().replace(&*dir.to_string_lossy(), "DIR"),
        "DIR/used is not empty; choose another directory"
    );
    assert_eq!(names(&dir.join("used")), ["mine"]);
    for tag in ["", "a:b", "-a", "a/b"] {
        let destination = Destination::OciLayout { dir: out.clone(), tag: Some(tag.to_owned()) };
        let error = write(results.image(true), destination, options(dir)).expect_err("no tag");
        assert!(matches!(error, ExportError::BadTag { .. }) && error.is_users_fault(), "{error}");
    }
}

#[test]
fn a_cancelled_export_leaves_nothing() {
    /// Cancels when the first bytes are there.
    struct Impatient(CancellationToken);
    impl Progress for Impatient {
        fn bytes(&self, _done: u64, _total: u64) {
            self.0.cancel();
        }
        fn line(&self, _text: &str) {}
    }
    need!(Need::Root);
    let results = two_steps();
    let dir = results.dir.path();
    let path = dir.join("out");
    let destinations = [
        oci(&path),
        Destination::OciArchive { output: file(&path), tag: None },
        Destination::DockerArchive(file(&path)),
        Destination::Tar(file(&path)),
        Destination::Dir(path.clone()),
    ];
    for destination in destinations {
        let cancel = CancellationToken::new();
        let progress = Arc::new(Impatient(cancel.clone()));
        let exported =
            export(results.image(true), destination, options(dir), Arc::new(Notes::default()), progress, &cancel);
        let error = block_on(exported).expect_err("cancelled");
        assert!(error.is_cancelled() && !error.is_users_fault(), "{}", error);
        assert_eq!(names(dir), ["store"]);
    }
}

#[test]
fn a_file_is_replaced_and_a_pipe_is_written_to() {
    need!(Need::Root);
    let results = two_steps();
    let dir = results.dir.path();
    let (bytes, _) = archive(&results, "expected.tar");
    fs::write(dir.join("old"), "old").expect("writable");
    std::os::unix::fs::symlink("old", dir.join("link")).expect("writable");
    let to = |output| Destination::OciArchive { output, tag: None };
    write(results.image(true), to(file(&dir.join("link"))), options(dir)).expect("written");
    assert!(fs::read(dir.join("old")).expect("written") == bytes);
    assert!(dir.join("link").is_symlink());
    assert_eq!(mode(&dir.join("old")), mode(&dir.join("expected.tar")));
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let read = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    let stream = Output::Stream(File::from(std::os::fd::OwnedFd::from(writer)));
    write(results.image(true), to(stream), options(dir)).expect("written");
    assert!(read.join().expect("no panic").expect("read") == bytes);
    // Full at once.
    let error = write(results.image(true), to(file(Path::new("/dev/full"))), options(dir)).expect_err("full");
    assert!(!error.is_users_fault(), "{error}");
    let error = write(results.image(true), to(file(&dir.join("none/out"))), options(dir)).expect_err("no directory");
    assert!(error.is_users_fault(), "{error}");
    let error = write(results.image(true), to(file(dir)), options(dir)).expect_err("a directory");
    assert!(error.is_users_fault(), "{error}");
}

#[test]
fn a_whole_tree_is_one_layer_one_archive_or_one_directory() {
    need!(Need::Root);
    let mut results = two_steps();
    results.sh("rm bin/one; chmod 700 .");
    let dir = results.dir.path();
    let squash = Options { squash: true, compression: Compression::Zstd, ..options(dir) };
    let written = write(results.image(true), oci(&dir.join("out")), squash).expect("written");
    assert_eq!(written.layers, 1);
    let (tree, _) = fetch(&format!("oci:{}", dir.join("out").display())).expect("imported");
    assert_eq!(names(&tree.path().join("bin")), ["two"]);
    fs::create_dir(dir.join("whole")).expect("writable");
    write(results.image(true), Destination::Dir(dir.join("whole")), options(dir)).expect("an empty one will do");
    assert_eq!((names(&dir.join("whole/bin")), mode(&dir.join("whole"))), (vec!["two".to_owned()], 0o700));
    let plain = Options { compression: Compression::None, ..options(dir) };
    write(results.image(true), Destination::Tar(file(&dir.join("tree.tar"))), plain).expect("written");
    let bytes = fs::read(dir.join("tree.tar")).expect("written");
    assert_eq!(members(&bytes), ["./", "bin/", "bin/two"]);
    let error = write(image(Vec::new()), Destination::Dir(dir.join("none")), options(dir)).expect_err("no tree");
    assert!(matches!(error, ExportError::NoTree));
}
