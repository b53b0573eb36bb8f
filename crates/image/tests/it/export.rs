//! What is exported is read back by others, and by us.

mod destinations;
mod property;
mod tools;
mod trees;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_image::Quiet;
use kiln_image::export::{
    Base, Compression, Destination, ExportError, Forgetful, History, Image, LayerSource, Memory, Opened, Options,
    Output, Overrides, Step, Written, export,
};
use kiln_store::{Description, Id, Kind, Location, Root, Snapshot, Store};
use kiln_testkit::Tree;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{block_on, sh};

/// Results on a real overlay store, each made from the one before.
struct Results {
    store: Store,
    made: Vec<Arc<Snapshot>>,
    /// Large trees do not fit where temporary files usually are.
    dir: TempDir,
}

impl Results {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let location = Location { kind: Kind::Overlayfs, place: dir.path().join("store") };
        Self { store: Store::open(&location).expect("a store"), made: Vec::new(), dir }
    }

    /// Makes a result of the last one.
    fn step(&mut self, change: impl FnOnce(&Path)) {
        let mut id = [0; 32];
        id[0] = u8::try_from(self.made.len()).expect("few steps");
        let lease = self.store.lease(&Id::new(id)).expect("a lease").expect("it is free");
        let draft = self.store.begin(lease, self.made.last().cloned()).expect("a draft");
        let tree = Tree::mount(draft.root());
        change(&tree.path());
        drop(tree);
        let description = Description { summary: "step".to_owned(), detail: serde_json::Value::Null };
        self.made.push(Arc::new(self.store.commit(draft, description).expect("a result")));
    }

    /// Makes a result with a shell script, which runs in the tree.
    fn sh(&mut self, script: &str) {
        self.step(|tree| drop(sh(tree, script)));
    }

    fn tree(&self) -> Tree {
        let last = self.made.last().expect("a result");
        Tree::mount(&self.store.root(last).expect("its tree"))
    }

    /// Returns an image of all results, found with or without the store's hint.
    fn image(&self, has_hint: bool) -> Image {
        let steps = self.made.iter().map(|snapshot| {
            let changes = self.store.changes(snapshot).expect("a tree");
            let own = changes.own.filter(|_| has_hint);
            step(&snapshot.id().to_string(), changes.below, changes.tree, own)
        });
        image(steps.collect())
    }

    /// Copies the last tree to a plain directory, with times in whole seconds.
    fn copy(&self, to: &Path) {
        // Not with `cp`: it would take a link in `/proc` for the tree.
        sh(&self.tree().path(), &format!("mkdir '{0}'; cp -a . '{0}'", to.display()));
        in_seconds(to);
    }
}

/// Gives all entries times in whole seconds.
fn in_seconds(path: &Path) {
    let meta = path.symlink_metadata().expect("it is there");
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("readable") {
            in_seconds(&entry.expect("readable").path());
        }
    }
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("ours");
}

fn step(key: &str, below: Option<Root>, tree: Root, own: Option<PathBuf>) -> Step {
    let history = History { created_by: format!("run {key}"), comment: None, created_ms: 1_500_000_000_123 };
    let open = move || {
        let below = below.as_ref().map(Root::mount).transpose()?;
        Ok(Opened { below, tree: tree.mount()?, own: own.clone() })
    };
    Step { history, layer: Some(LayerSource { key: key.to_owned(), open: Box::new(open) }) }
}

fn image(steps: Vec<Step>) -> Image {
    Image {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        variant: None,
        base: Base::default(),
        steps,
        overrides: Overrides { cmd: Some(vec!["/bin/sh".to_owned()]), ..Overrides::default() },
        created_ms: 1_600_000_000_000,
        names: vec!["kiln/test:1".parse().expect("a name")],
    }
}

fn options(dir: &Path) -> Options {
    Options { compression: Compression::Gzip, source_date_epoch: None, squash: false, temp_dir: dir.to_owned() }
}

fn write_with(
    image: Image,
    destination: Destination,
    options: Options,
    memory: Arc<dyn Memory>,
) -> Result<Written, ExportError> {
    block_on(export(image, destination, options, memory, Arc::new(Quiet), &CancellationToken::new()))
}

fn write(image: Image, destination: Destination, options: Options) -> Result<Written, ExportError> {
    write_with(image, destination, options, Arc::new(Forgetful))
}

fn oci(dir: &Path) -> Destination {
    Destination::OciLayout { dir: dir.to_owned(), tag: None }
}

fn file(path: &Path) -> Output {
    Output::File(path.to_owned())
}

/// All that a program can see of a tree, hard links included.
fn seen(root: &Path) -> Vec<String> {
    let mut lines = kiln_testkit::describe(root).expect("readable");
    lines.extend(crate::listing(root));
    lines
}

/// Fails if two trees differ, and says only how.
fn assert_same(found: &[String], expected: &[String], when: &str) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).map(|line| line.chars().take(300).collect()).collect()
    };
    let (extra, missing) = (only(found, expected), only(expected, found));
    assert!(extra.is_empty() && missing.is_empty(), "{when}\nfound: {extra:#?}\nexpected: {missing:#?}");
}

/// Remembers in memory.
#[derive(Default)]
struct Notes(Mutex<HashMap<String, String>>);

impl Memory for Notes {
    fn recall(&self, question: &str) -> Option<String> {
        self.0.lock().expect("nobody panicked").get(question).cloned()
    }

    fn remember(&self, question: &str, answer: &str) {
        self.0.lock().expect("nobody panicked").insert(question.to_owned(), answer.to_owned());
    }
}

/// The names in a layer, in their order.
fn members(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive");
    entries.map(|entry| String::from_utf8_lossy(&entry.expect("a member").path_bytes()).into_owned()).collect()
}

/// Reads the JSON document at `path`.
fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("a document")).expect("JSON")
}

/// The unpacked layers of the only image in a layout, from the lowest.
fn layers(layout: &Path) -> Vec<Vec<u8>> {
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        layout.join("blobs").join(digest.replace(':', "/"))
    };
    let manifest = json(&blob(&json(&layout.join("index.json"))["manifests"][0]));
    let layers = manifest["layers"].as_array().expect("layers");
    layers
        .iter()
        .map(|layer| {
            let mut unpacked = Vec::new();
            let file = fs::File::open(blob(layer)).expect("a layer");
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(file), &mut unpacked).expect("gzip");
            unpacked
        })
        .collect()
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().expect("it is there").permissions().mode() & 0o7777
}
