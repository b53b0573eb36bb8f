//! Images of a registry whose words and layers are an attacker's.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln_image::{Fetcher, ForgetfulDigests, ImageError, Images, ImagesSettings, Quiet, Reference};
use kiln_testkit::{Body, Response, Script};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{architecture, blob, block_on, causes, fetch_with, listing};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image before it is served: its documents can still be made to lie.
struct Served {
    blobs: TempDir,
    config: Value,
    layers: Vec<Value>,
    config_type: String,
}

impl Served {
    fn new(layers: &[Vec<u8>]) -> Self {
        let blobs = tempfile::tempdir().expect("a directory");
        let layers: Vec<Value> = layers.iter().map(|layer| blob(blobs.path(), LAYER, layer)).collect();
        let diffs: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        Self { blobs, config, layers, config_type: CONFIG.to_owned() }
    }

    /// Serves it; `body` is how a blob of these bytes comes.
    fn start(&self, body: impl Fn(Vec<u8>) -> Body + Send + Sync + 'static) -> Script {
        let config = blob(self.blobs.path(), &self.config_type, self.config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers});
        let manifest = manifest.to_string();
        let mut blobs = HashMap::new();
        for entry in fs::read_dir(self.blobs.path().join("blobs/sha256")).expect("blobs").flatten() {
            let name = entry.file_name().into_string().expect("hex digits");
            blobs.insert(format!("/v2/name/blobs/sha256:{name}"), fs::read(entry.path()).expect("a blob"));
        }
        Script::start(move |request| match (request.path.as_str(), blobs.get(&request.path)) {
            (_, Some(bytes)) => Response::new(200).body(body(bytes.clone())),
            ("/v2/", _) => Response::new(200),
            ("/v2/name/manifests/1", _) => Response::new(200).header("Content-Type", MANIFEST).bytes(manifest.clone()),
            _ => Response::new(404),
        })
        .expect("a server")
    }

    fn fetch(&self) -> Result<TempDir, ImageError> {
        fetch(&self.start(Body::Bytes))
    }

    fn refusal(&self) -> String {
        causes(&self.fetch().expect_err("a refusal"))
    }
}

fn fetch(script: &Script) -> Result<TempDir, ImageError> {
    let into = tempfile::tempdir().expect("a directory");
    let name = format!("{}/name:1", script.host());
    let reference = Reference::parse(name.as_bytes(), Path::new("/")).expect("a reference");
    let images = Images::new(ImagesSettings::default());
    block_on(async {
        let resolved = images.resolve(&reference, None, Arc::new(ForgetfulDigests)).await?;
        fetch_with(&images, &resolved, into.path(), Arc::new(Quiet), &CancellationToken::new()).await
    })?;
    Ok(into)
}

fn layer() -> Vec<u8> {
    Archive::new().file("f", "content").end()
}

#[test]
fn a_layer_that_is_refused_while_it_arrives_says_why() {
    let bad = Archive::new().raw(b'x', b"a", b"", |header| header.set_size(2 << 20)).bytes(&[b'x'; 2 << 20]).end();
    let served = Served::new(&[bad]);
    // The rest of it never comes, but nobody needs it.
    let script = served.start(|bytes| match bytes.len() {
        0..=100_000 => Body::Bytes(bytes),
        length => Body::Stall(bytes[..length - 1].to_vec()),
    });
    let error = fetch(&script).expect_err("too long a header");
    assert!(error.is_users_fault(), "{}", causes(&error));
    assert!(causes(&error).contains("is longer than 1048576 bytes"), "{}", causes(&error));
}

#[test]
fn the_words_of_an_image_cannot_drive_the_terminal() {
    let evil = "\u{1b}[31m\u{9b}31m\u{202e}\r".to_owned() + &"x".repeat(10_000);
    let mut kind = Served::new(&[layer()]);
    kind.config_type = evil.clone();
    let mut layer_kind = Served::new(&[layer()]);
    layer_kind.layers[0]["mediaType"] = evil.clone().into();
    let mut digest = Served::new(&[layer()]);
    digest.layers[0]["digest"] = evil.clone().into();
    let mut system = Served::new(&[layer()]);
    system.config["os"] = evil.clone().into();
    let member = Served::new(&[Archive::new().raw(b'0', b"../\x1b[31m\x9b", b"", |_| {}).end()]);
    for served in [kind, layer_kind, digest, system, member] {
        let told = served.refusal();
        assert!(told.contains("u{1b}[31m"), "{told}");
        assert!(!told.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{told:?}");
        assert!(told.len() < 2000, "{told}");
    }
}

#[test]
fn a_configuration_that_becomes_large_in_memory_is_refused() {
    let mut served = Served::new(&[layer()]);
    served.config["config"]["Labels"] = (0..100_000).map(|_| json!({"": 0})).collect();
    let told = served.refusal();
    assert!(told.contains("it holds more than 20000 values"), "{told}");
    served.config["config"] = json!({"Env": vec!["A=B, [{:"; 9_000]});
    served.fetch().expect("many variables are fine");
}

#[test]
fn lengths_that_lie_are_found_out() {
    let length = layer().len() as u64;
    for size in [0, 1, length - 1, length + 1, 1 << 50, i64::MAX as u64] {
        let mut served = Served::new(&[layer()]);
        served.layers[0]["size"] = size.into();
        served.fetch().expect_err("a lie");
    }
    let mut served = Served::new(&[layer(), layer()]);
    for layer in &mut served.layers {
        layer["size"] = (u64::MAX / 2).into();
    }
    assert!(served.refusal().contains("longer than any disk"));
}

#[test]
fn an_image_may_repeat_a_layer_and_have_empty_ones() {
    let served = Served::new(&[layer(), Vec::new(), layer(), layer()]);
    assert_eq!(listing(served.fetch().expect("fetched").path()).len(), 2);
}
