//! Choosing an image, checking it, and knowing it again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln_image::{Fetcher, ForgetfulDigests, Images, ImagesSettings, Platform, Progress, Reference};
use kiln_testkit::{Need, need};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{architecture, blob, block_on, causes, fetch, fetch_resolved, fetch_with, image, index, resolve, sh};

fn layer(content: &str) -> Vec<u8> {
    Archive::new().file("f", content).end()
}

fn tagged(mut manifest: serde_json::Value, tag: &str) -> serde_json::Value {
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    manifest
}

fn told(reference: &str, dir: &Path) -> String {
    let error = fetch(reference).expect_err("an error");
    assert!(error.is_users_fault(), "{error:?}");
    let hex = |text: &str| {
        text.split(|c: char| !c.is_ascii_hexdigit())
            .filter(|part| part.len() == 64)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let text = causes(&error).replace(&dir.display().to_string(), "DIR");
    hex(&text).iter().fold(text, |text, digits| text.replace(digits, "HEX"))
}

#[test]
fn scratch_is_empty() {
    let (tree, config) = fetch("scratch").expect("fetched");
    assert_eq!(fs::read_dir(tree.path()).expect("readable").count(), 0);
    assert_eq!(config.env, []);
}

#[test]
fn tags_choose_among_images() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (image(dir.path(), &[layer("1")]), image(dir.path(), &[layer("2")]));
    index(dir.path(), &[tagged(one.clone(), "1"), tagged(two, "2")]);
    let oci = format!("oci:{}", dir.path().display());
    let (tree, config) = fetch(&format!("{oci}:2")).expect("fetched");
    assert_eq!(fs::read_to_string(tree.path().join("f")).expect("a file"), "2");
    let env = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    assert_eq!(env, ["PATH=/bin", "EMPTY=", "A=b=c"]);
    assert_eq!(told(&oci, dir.path()), "DIR holds several images; choose one by its tag: 1, 2");
    assert_eq!(told(&format!("{oci}:3"), dir.path()), "DIR has no image tagged `3`; it has 1, 2");
    let identity = resolve(&format!("{oci}:1")).expect("resolved").identity;
    assert_eq!(identity, format!("oci {}", one["digest"].as_str().expect("a digest")));
}

#[test]
fn indexes_choose_by_platform() {
    let dir = tempfile::tempdir().expect("a directory");
    let on = |content: &str, os: &str, architecture: &str| {
        let mut manifest = image(dir.path(), &[layer(content)]);
        manifest["platform"] = json!({"os": os, "architecture": architecture});
        manifest
    };
    let here = &architecture();
    let all = [on("s390", "linux", "s390x"), on("here", "linux", here), on("?", "unknown", "unknown")];
    let nest = |manifests: &[serde_json::Value]| {
        let nested = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        blob(dir.path(), "application/vnd.oci.image.index.v1+json", nested.as_bytes())
    };
    let oci = format!("oci:{}", dir.path().display());
    for manifests in [&all[..], &[nest(&all)], &[nest(&[nest(&all)])]] {
        index(dir.path(), manifests);
        let (tree, _) = fetch(&oci).expect("fetched");
        assert_eq!(fs::read_to_string(tree.path().join("f")).expect("a file"), "here");
    }
    index(dir.path(), &[nest(&all[..1])]);
    let wrong = told(&oci, dir.path());
    assert!(wrong.ends_with("it has linux/s390x; choose with `--platform`"), "{wrong}");
    let deep = (0..8).fold(nest(&all), |inner, _| nest(&[inner]));
    index(dir.path(), &[deep]);
    assert!(told(&oci, dir.path()).contains("indexes lie in each other"));
}

#[test]
fn an_image_for_another_platform_is_refused_and_can_be_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut manifest = image(dir.path(), &[layer("1")]);
    let path = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        dir.path().join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    };
    let read = |descriptor| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path(descriptor)).expect("a blob")).expect("JSON")
    };
    let mut inner = read(&manifest);
    let mut config = read(&inner["config"]);
    (config["architecture"], config["variant"]) = (json!("s390x"), json!("z15"));
    inner["config"] = blob(dir.path(), "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    manifest = blob(dir.path(), "application/vnd.oci.image.manifest.v1+json", inner.to_string().as_bytes());
    index(dir.path(), &[manifest]);
    let oci = format!("oci:{}", dir.path().display());
    let here = Platform::here();
    assert_eq!(
        told(&oci, dir.path()),
        format!("DIR has no image for {here}; it has linux/s390x/z15; choose with `--platform`")
    );
    let platform = "linux/s390x/z15".parse().expect("a platform");
    let images = Images::new(ImagesSettings { platform, ..ImagesSettings::default() });
    let reference = Reference::parse(oci.as_bytes(), Path::new("/")).expect("a reference");
    let resolved = block_on(images.resolve(&reference, None, Arc::new(ForgetfulDigests))).expect("resolved");
    assert_eq!(resolved.config.variant.as_deref(), Some("z15"));
}

#[test]
fn damage_is_found_wherever_it_is() {
    let mut seen = String::new();
    let mut damaged = |what: &str, damage: &dyn Fn(&Path, &serde_json::Value)| {
        let dir = tempfile::tempdir().expect("a directory");
        let manifest = image(dir.path(), &[layer("1")]);
        index(dir.path(), std::slice::from_ref(&manifest));
        damage(dir.path(), &manifest);
        let told = told(&format!("oci:{}", dir.path().display()), dir.path());
        // What parsers say changes with their versions.
        seen += &format!("{what}: {}\n", told.lines().next().expect("a line"));
        if !what.contains("JSON") {
            seen += &told.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>();
        }
    };
    let path = |dir: &Path, descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    };
    let read = |dir: &Path, descriptor: &serde_json::Value| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path(dir, descriptor)).expect("a blob")).expect("JSON")
    };
    let flip = |file: &Path, at: usize| {
        let mut bytes = fs::read(file).expect("a blob");
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 1;
        fs::write(file, bytes).expect("written");
    };
    let rewrite = |dir: &Path, manifest: &serde_json::Value| {
        index(dir, &[blob(dir, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())]);
    };
    damaged("index is no JSON", &|dir, _| fs::write(dir.join("index.json"), "{").expect("written"));
    damaged("index is long", &|dir, _| fs::write(dir.join("index.json"), vec![b' '; 5 << 20]).expect("written"));
    damaged("no image", &|dir, _| index(dir, &[]));
    damaged("manifest missing", &|dir, manifest| fs::remove_file(path(dir, manifest)).expect("removed"));
    damaged("manifest changed", &|dir, manifest| flip(&path(dir, manifest), 20));
    damaged("manifest of another size", &|dir, manifest| {
        let mut manifest = manifest.clone();
        manifest["size"] = json!(3);
        index(dir, &[manifest]);
    });
    damaged("config changed", &|dir, manifest| flip(&path(dir, &read(dir, manifest)["config"]), 20));
    damaged("layer changed", &|dir, manifest| flip(&path(dir, &read(dir, manifest)["layers"][0]), 4));
    damaged("layer cut", &|dir, manifest| {
        let file = path(dir, &read(dir, manifest)["layers"][0]);
        let bytes = fs::read(&file).expect("a blob");
        fs::write(&file, &bytes[..bytes.len() - 1]).expect("written");
    });
    damaged("layer is not gzip inside", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        manifest["layers"][0] = blob(dir, kind, b"\x1f\x8b\x08\0\0\0\0\0\0\x03 rubbish");
        rewrite(dir, &manifest);
    });
    damaged("layer unpacks to something else", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"][0] = blob(dir, "application/vnd.oci.image.layer.v1.tar", &layer("2"));
        rewrite(dir, &manifest);
    });
    damaged("layer of another kind", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted");
        rewrite(dir, &manifest);
    });
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ] {
        damaged("layer of a foreign kind", &|dir, manifest| {
            let mut manifest = read(dir, manifest);
            manifest["layers"][0]["mediaType"] = json!(kind);
            rewrite(dir, &manifest);
        });
    }
    damaged("layer from elsewhere", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"][0]["urls"] = json!(["https://example.com/layer"]);
        rewrite(dir, &manifest);
    });
    damaged("layers longer than any disk", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"][0]["size"] = json!(u64::MAX);
        rewrite(dir, &manifest);
    });
    damaged("a size that is negative, in JSON", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"][0]["size"] = json!(-1);
        rewrite(dir, &manifest);
    });
    let configure = |dir: &Path, manifest: &serde_json::Value, change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = read(dir, manifest);
        let mut config = read(dir, &manifest["config"]);
        change(&mut config);
        let kind = "application/vnd.oci.image.config.v1+json";
        manifest["config"] = blob(dir, kind, config.to_string().as_bytes());
        let count = config["rootfs"]["diff_ids"].as_array().expect("a list").len();
        manifest["layers"] = vec![manifest["layers"][0].clone(); count].into();
        rewrite(dir, &manifest);
    };
    damaged("more layers than anyone makes", &|dir, manifest| {
        configure(dir, manifest, &|config| {
            config["rootfs"]["diff_ids"] = vec![config["rootfs"]["diff_ids"][0].clone(); 501].into();
        });
    });
    damaged("a configuration as deep as no other", &|dir, manifest| {
        configure(dir, manifest, &|config| {
            config["config"]["Labels"] = (0..40).fold(json!({}), |inner, _| json!([inner]));
        });
    });
    damaged("an environment that is none", &|dir, manifest| {
        configure(dir, manifest, &|config| config["config"]["Env"] = json!({"A": "1"}));
    });
    damaged("more layers than digests", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["layers"] = json!([manifest["layers"][0], manifest["layers"][0]]);
        rewrite(dir, &manifest);
    });
    damaged("a digest that is a path", &|dir, manifest| {
        let mut manifest = manifest.clone();
        manifest["digest"] = json!("sha256:../../../etc/passwd");
        index(dir, &[manifest]);
    });
    damaged("an artifact", &|dir, manifest| {
        let mut manifest = read(dir, manifest);
        manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        rewrite(dir, &manifest);
    });
    // How long a blob is depends on who runs this, and on the compressor's version.
    insta::with_settings!({filters => [(r"is \d+ bytes long, not \d+ as", "is [N] bytes long, not [M] as")]}, {
        insta::assert_snapshot!(seen);
    });
}

#[test]
fn a_docker_archive_may_share_layers_by_links() {
    let dir = tempfile::tempdir().expect("a directory");
    let layer = layer("1");
    let digest = kiln_image::Digest::of(&layer).to_string();
    let config = json!({"architecture": architecture(), "os": "linux", "config": {"Env": null},
        "rootfs": {"type": "layers", "diff_ids": [digest, digest]}})
    .to_string();
    let name = kiln_image::Digest::of(config.as_bytes()).hex() + ".json";
    let manifest = json!([
        {"Config": name, "RepoTags": ["debian:12"], "Layers": ["aa/layer.tar", "bb/layer.tar"]},
        {"Config": name, "RepoTags": null, "Layers": []},
    ]);
    let archive = Archive::new()
        .raw(b'0', b"aa/layer.tar", &layer, |_| {})
        .symlink("bb/layer.tar", "../aa/layer.tar")
        .file(&name, &config)
        .file("manifest.json", &manifest.to_string())
        .end();
    let file = dir.path().join("a.tar");
    fs::write(&file, archive).expect("written");
    let reference = format!("docker-archive:{}", file.display());
    let (tree, config_read) = fetch(&format!("{reference}:debian:12")).expect("fetched");
    assert_eq!(fs::read_to_string(tree.path().join("f")).expect("a file"), "1");
    assert_eq!((config_read.env.len(), config_read.architecture.as_deref()), (0, Some(&*architecture())));
    assert_eq!(told(&reference, dir.path()), "DIR/a.tar holds several images; choose one by its tag: debian:12");
    assert!(told(&format!("{reference}:debian"), dir.path()).contains("it has debian:12"));
    assert!(told(&format!("oci-archive:{}", file.display()), dir.path()).contains("for `docker-archive:`"));
    let resolved = resolve(&format!("{reference}:docker.io/library/debian:12")).expect("resolved");
    assert_eq!(resolved.identity, format!("docker {}", kiln_image::Digest::of(config.as_bytes())));
}

#[test]
fn a_change_between_resolving_and_fetching_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let tar = dir.path().join("a.tar");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("made");
    fs::write(&tar, layer("1")).expect("written");
    fs::write(root.join("f"), "1").expect("written");
    for reference in [format!("rootfs:{}", tar.display()), format!("dir:{}", root.display())] {
        let resolved = resolve(&reference).expect("resolved");
        assert_eq!(resolve(&reference).expect("resolved").identity, resolved.identity);
        fs::write(&tar, layer("2")).expect("written");
        fs::write(root.join("f"), "2").expect("written");
        assert_ne!(resolve(&reference).expect("resolved").identity, resolved.identity);
        let into = tempfile::tempdir().expect("a directory");
        let error = fetch_resolved(&resolved, into.path()).expect_err("changed");
        assert!(error.to_string().contains("changed while it was read"), "{error}");
        fs::write(&tar, layer("1")).expect("written");
    }
}

#[test]
fn a_directory_is_copied_with_its_hard_links() {
    let dir = tempfile::tempdir().expect("a directory");
    sh(dir.path(), "mkdir d; echo x > d/a; ln d/a d/b; mkfifo d/p; ln -s a d/l");
    let (tree, _) = fetch(&format!("dir:{}/d", dir.path().display())).expect("copied");
    assert_eq!(crate::listing(tree.path()), crate::listing(&dir.path().join("d")));
}

#[test]
fn a_directory_is_not_copied_into_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let into = dir.path().join("store/draft");
    fs::create_dir_all(&into).expect("made");
    let resolved = resolve(&format!("dir:{}", dir.path().display())).expect("resolved");
    let error = fetch_resolved(&resolved, &into).expect_err("refused");
    assert!(error.to_string().ends_with("store/draft lies in it"), "{error}");
}

/// Fires a token when the first line is told.
struct CancelAtFirstLine(CancellationToken);

impl Progress for CancelAtFirstLine {
    fn bytes(&self, _done: u64, _total: u64) {}

    fn line(&self, _text: &str) {
        self.0.cancel();
    }
}

/// Needs Debian's mirror; that a whole suite can be used is shown by the documentation's commands.
#[test]
fn the_installation_of_a_suite_can_be_cancelled() {
    need!(Need::Root, Need::Tool("mmdebstrap", "mmdebstrap"));
    let resolved = resolve("debootstrap:bookworm").expect("resolved");
    let into = tempfile::tempdir().expect("a directory");
    let cancel = CancellationToken::new();
    let progress = std::sync::Arc::new(CancelAtFirstLine(cancel.clone()));
    let cancelled = block_on(fetch_with(&Images::default(), &resolved, into.path(), progress, &cancel));
    assert!(cancelled.expect_err("cancelled").is_cancelled());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(&into.path().display().to_string()));
}

#[test]
fn a_suite_that_does_not_exist_fails_with_what_was_said() {
    need!(Need::Root, Need::Tool("mmdebstrap", "mmdebstrap"));
    let reference = Reference::parse(b"debootstrap:no-such-suite", Path::new("/")).expect("a reference");
    let error = fetch(&reference.to_string()).expect_err("no such suite").to_string();
    assert!(error.starts_with("`mmdebstrap no-such-suite` failed: exit status"), "{error}");
    assert!(error.lines().count() > 1, "{error}");
}
