//! Bases arrive layer by layer, and each layer once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kiln_engine::Request;
use kiln_image::{Digest, Platform};
use kiln_store::Store;
use serde_json::{Value, json};

use crate::fake::World;

/// An uncompressed layer with one file.
fn layer(name: &str, content: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("it works here");
    fs::write(dir.path().join(name), content).expect("it works here");
    let options = ["--owner=0", "--group=0", "--mtime=@1", "-c", name];
    let output = Command::new("tar").arg("-C").arg(dir.path()).args(options).output().expect("it works here");
    assert!(output.status.success());
    output.stdout
}

fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("it works here");
    fs::write(blobs.join(digest.hex()), bytes).expect("it works here");
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
}

/// Writes an image of these layers.
fn image(dir: &Path, name: &str, layers: &[&[u8]]) -> PathBuf {
    let layout = dir.join(name);
    let diffs: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "architecture": Platform::here().architecture(), "os": "linux",
        "config": {"Env": ["A=1"], "Cmd": ["sh"], "Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<Value> = layers.iter().map(|layer| blob(&layout, kind, layer)).collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let manifest = blob(&layout, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .expect("it works here");
    layout
}

fn request(world: &World, from: &Path) -> Request {
    let spec = format!("((from oci:{}))", from.display());
    Request { spec: kiln_spec::parse(spec.as_bytes()).expect("it works here"), ..world.request("") }
}

/// The steps of all results, sorted.
fn steps(store: &Store) -> Vec<String> {
    let mut steps: Vec<String> =
        store.list().expect("it works here").into_iter().map(|result| result.summary).collect();
    steps.sort();
    steps
}

fn summary(layer: &[u8]) -> String {
    format!("(layer sha256:{})", &Digest::of(layer).hex()[..12])
}

#[tokio::test]
async fn images_share_the_layers_that_they_begin_with() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let world = World::new(4);
    let [one, two, three] = ["1", "2", "3"].map(|name| layer(name, name));
    let here = world.path();
    let first = image(here, "first", &[&one, &two]);
    let second = image(here, "second", &[&one, &three]);
    let third = image(here, "third", &[&one, &two, &three]);
    // What the third needs of the first is there, and nobody reads it again.
    for (image, leaves_out) in [(&first, None), (&second, None), (&third, Some(&two))] {
        if let Some(layer) = leaves_out {
            let path = image.join("blobs/sha256").join(Digest::of(layer).hex());
            fs::write(path, vec![0; layer.len()]).unwrap();
        }
        world.start(request(&world, image)).end().await.unwrap();
    }
    let store = world.store();
    let mut expected: Vec<String> =
        [&first, &second, &third].map(|image| format!("(from oci:{})", image.display())).into();
    expected.extend([&one, &two, &three, &three].map(|layer| summary(layer)));
    expected.sort();
    assert_eq!(steps(&store), expected);
    world.end().await;
}

#[tokio::test]
async fn a_failed_import_leaves_whole_layers_and_goes_on_from_them() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let world = World::new(4);
    let [one, two] = ["1", "2"].map(|name| layer(name, name));
    let image = image(world.path(), "image", &[&one, &two]);
    let blob = |layer: &[u8]| image.join("blobs/sha256").join(Digest::of(layer).hex());
    fs::write(blob(&two), vec![1; two.len()]).unwrap();
    world.start(request(&world, &image)).end().await.unwrap_err();
    let store = world.store();
    assert_eq!(steps(&store), [summary(&one)]);
    fs::write(blob(&two), &two).unwrap();
    fs::write(blob(&one), vec![1; one.len()]).unwrap();
    let id = world.start(request(&world, &image)).end().await.unwrap();
    assert_eq!(steps(&store).len(), 3);
    let base = store.lookup(&id.parse().unwrap()).unwrap().unwrap();
    let tree = kiln_testkit::Tree::mount(&store.root(&base).unwrap());
    for name in ["1", "2"] {
        assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), name);
    }
    let detail = &base.meta().detail;
    assert_eq!(detail["env"], json!([["A", "1"]]));
    assert_eq!(detail["image"]["config"]["Cmd"], json!(["sh"]));
    assert_eq!(detail["image"]["os"], "linux");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_at_the_same_time_make_each_layer_once() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let world = World::new(8);
    let layers: Vec<Vec<u8>> = (0..6).map(|at| layer(&at.to_string(), "x")).collect();
    let images: Vec<PathBuf> = (1..=6)
        .map(|count| {
            let layers: Vec<&[u8]> = layers[..count].iter().map(Vec::as_slice).collect();
            image(world.path(), &count.to_string(), &layers)
        })
        .collect();
    // Engines of their own, as other processes would be.
    let others = [world.another(), world.another()];
    let builds: Vec<_> = images
        .iter()
        .rev()
        .flat_map(|image| {
            let mut builds = vec![world.start(request(&world, image))];
            builds.extend(others.iter().map(|other| world.start_on(other, request(&world, image))));
            builds
        })
        .collect();
    for build in builds {
        build.end().await.unwrap();
    }
    assert_eq!(steps(&world.store()).len(), 6 + 6);
    for other in others {
        Arc::clone(&other).idle().await;
    }
    world.end().await;
}

#[tokio::test]
async fn an_image_without_layers_is_empty() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let world = World::new(1);
    let image = image(world.path(), "image", &[]);
    let id = world.start(request(&world, &image)).end().await.unwrap();
    let store = world.store();
    let base = store.lookup(&id.parse().unwrap()).unwrap().unwrap();
    let tree = kiln_testkit::Tree::mount(&store.root(&base).unwrap());
    assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 0);
    assert_eq!(base.meta().parent, None);
    world.end().await;
}

fn request_from(world: &World, name: &str, pull: bool) -> Request {
    let spec = kiln_spec::parse(format!("((from {name}))").as_bytes()).expect("a spec");
    Request { spec, pull, ..world.request("") }
}

#[tokio::test]
async fn a_tag_is_what_it_was_until_it_is_pulled_and_a_digest_is_never_asked_for_again() {
    kiln_testkit::need!(
        kiln_testkit::Need::Root,
        kiln_testkit::Need::Tool("docker-registry", "docker-registry"),
        kiln_testkit::Need::Tool("skopeo", "skopeo")
    );
    let world = World::new(2);
    let registry = kiln_testkit::Registry::start(kiln_testkit::Access::default()).unwrap();
    let build = |name: String, pull| world.start(request_from(&world, &name, pull)).end();
    let push = |tag: &str| {
        let layout = image(world.path(), tag, &[&layer("f", tag)]);
        registry.push(&format!("oci:{}", layout.display()), "name:1").unwrap();
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    };
    let tag = format!("{}/name:1", registry.host());
    let digest = push("old");
    let fixed = format!("{tag}@{digest}");
    let old = build(tag.clone(), false).await.unwrap();
    assert_eq!(build(fixed.clone(), false).await.unwrap(), old);
    push("new");
    assert_eq!(build(tag.clone(), false).await.unwrap(), old);
    // Pruned: the tag has moved, and yet it is the same image that comes again.
    let store = world.store();
    for result in store.list().unwrap().iter().filter(|result| result.parent.is_none()) {
        store.remove(&result.id, true).unwrap();
    }
    assert!(steps(&store).is_empty());
    assert_eq!(build(tag.clone(), false).await.unwrap(), old);
    let new = build(tag.clone(), true).await.unwrap();
    assert_ne!(new, old);
    assert_eq!(build(tag.clone(), false).await.unwrap(), new);
    drop(registry);
    assert_eq!(build(tag, false).await.unwrap(), new);
    assert_eq!(build(fixed, true).await.unwrap(), old);
    world.end().await;
}

#[tokio::test]
async fn a_cancelled_import_leaves_only_whole_layers() {
    kiln_testkit::need!(
        kiln_testkit::Need::Root,
        kiln_testkit::Need::Tool("docker-registry", "docker-registry"),
        kiln_testkit::Need::Tool("skopeo", "skopeo")
    );
    let world = World::new(2);
    let registry = kiln_testkit::Registry::start(kiln_testkit::Access::default()).unwrap();
    let small = layer("small", "x");
    let layout = image(world.path(), "image", &[&small, &layer("large", &"x".repeat(4 << 20))]);
    registry.push(&format!("oci:{}", layout.display()), "name:1").unwrap();
    let link = kiln_testkit::Link::to(registry.address()).unwrap();
    link.stall_after(Some(1 << 20));
    let name = format!("{}/name:1", link.host());
    let build = world.start(request_from(&world, &name, false));
    let store = world.store();
    while steps(&store).is_empty() {
        tokio::task::yield_now().await;
    }
    build.cancel.cancel();
    assert_eq!(build.end().await.unwrap_err(), "cancelled");
    world.engine.idle().await;
    assert_eq!(steps(&store), [summary(&small)]);
    world.end().await;
}
