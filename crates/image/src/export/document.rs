//! The JSON documents of an image, as we write them: the same input gives the same bytes.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Compression, History, Image, Overrides};
use crate::{Digest, ImageName};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where programs look for an image's tag, and for its whole name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// What an image without a name is called.
const DEFAULT_TAG: &str = "latest";
/// The last second of the year 9999; times after it cannot be written.
const LAST_SECOND: u64 = 253_402_300_799;

/// Returns the media type of a layer.
pub(super) fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
    }
}

/// A blob, as named by another document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: &'static str,
    #[serde(serialize_with = "as_text")]
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Platform {
    architecture: String,
    os: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

impl Descriptor {
    pub(super) fn new(media_type: &'static str, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, annotations: BTreeMap::new(), platform: None }
    }

    pub(super) fn of(media_type: &'static str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

fn as_text<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

/// A layer that was made.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// The digest of its archive.
    pub(super) unpacked: Digest,
    pub(super) blob: Descriptor,
}

/// What was made of each step: `None` where there is no layer, or nothing in it.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) base: Vec<Option<Layer>>,
    pub(super) steps: Vec<Option<Layer>>,
}

impl Layers {
    pub(super) fn all(&self) -> impl Iterator<Item = &Layer> {
        self.base.iter().chain(&self.steps).flatten()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'static str,
    config: &'a Descriptor,
    layers: Vec<&'a Descriptor>,
}

/// Returns the manifest of an image.
pub(super) fn manifest(config: &Descriptor, layers: &Layers) -> Vec<u8> {
    let layers = layers.all().map(|layer| &layer.blob).collect();
    to_bytes(&Manifest { schema_version: 2, media_type: MANIFEST, config, layers })
}

#[derive(Serialize)]
struct Config<'a> {
    created: String,
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    config: BTreeMap<String, Value>,
    rootfs: RootFs,
    history: Vec<Value>,
}

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

/// Returns the configuration of an image.
pub(super) fn config(image: &Image, layers: &Layers, epoch: Option<u64>) -> Vec<u8> {
    let told = |history: &History, layer: &Option<Layer>| {
        let mut entry = Map::new();
        entry.insert("created".to_owned(), time(history.created_ms, epoch).into());
        entry.insert("created_by".to_owned(), history.created_by.clone().into());
        if let Some(comment) = &history.comment {
            entry.insert("comment".to_owned(), comment.clone().into());
        }
        if layer.is_none() {
            entry.insert("empty_layer".to_owned(), true.into());
        }
        Value::Object(entry)
    };
    let base = || image.base.steps.iter().zip(&layers.base).map(|(step, layer)| told(&step.history, layer)).collect();
    let mut history = base_history(&image.base.history, &layers.base).unwrap_or_else(base);
    history.extend(image.steps.iter().zip(&layers.steps).map(|(step, layer)| told(&step.history, layer)));
    to_bytes(&Config {
        created: time(image.created_ms, epoch),
        architecture: &image.architecture,
        os: &image.os,
        variant: image.variant.as_deref(),
        config: process(&image.base.config, &image.overrides),
        rootfs: RootFs { r#type: "layers", diff_ids: layers.all().map(|layer| layer.unpacked.to_string()).collect() },
        history,
    })
}

/// Returns the base image's own history, if it tells of as many layers as it has. Those with nothing in them are gone.
fn base_history(history: &[Value], layers: &[Option<Layer>]) -> Option<Vec<Value>> {
    let mut layers = layers.iter();
    let mut told = Vec::new();
    for entry in history {
        let mut entry = entry.as_object()?.clone();
        let is_empty = entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        if !is_empty && layers.next()?.is_none() {
            entry.insert("empty_layer".to_owned(), true.into());
        }
        told.push(Value::Object(entry));
    }
    (layers.next().is_none() && !told.is_empty()).then_some(told)
}

/// Returns how the image is run: what the base image says, and what is said over it.
fn process(base: &Value, overrides: &Overrides) -> BTreeMap<String, Value> {
    let base = base.as_object().into_iter().flatten();
    let mut all: BTreeMap<String, Value> =
        base.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect();
    let Overrides { env, working_dir, user, entrypoint, cmd, shell, labels } = overrides;
    if entrypoint.is_some() {
        all.remove("Cmd");
    }
    let env = env.as_ref().map(|env| env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>());
    let set = [
        ("Env", env.map(Value::from)),
        ("WorkingDir", working_dir.clone().map(Value::from)),
        ("User", user.clone().map(Value::from)),
        ("Entrypoint", entrypoint.clone().map(Value::from)),
        ("Cmd", cmd.clone().map(Value::from)),
        ("Shell", shell.clone().map(Value::from)),
    ];
    all.extend(set.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    if !labels.is_empty() {
        let mut all_labels = all.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
        all_labels.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone().into())));
        all.insert("Labels".to_owned(), all_labels.into());
    }
    all
}

/// Returns a time as RFC 3339 writes it.
fn time(unix_ms: u64, epoch: Option<u64>) -> String {
    let since = epoch.map_or(Duration::from_millis(unix_ms), Duration::from_secs);
    humantime::format_rfc3339(UNIX_EPOCH + since.min(Duration::from_secs(LAST_SECOND))).to_string()
}

/// Returns the descriptors of an image for an index: one for each name. `tag` is that of the first.
pub(super) fn entries(image: &Image, manifest: &Descriptor, tag: Option<&str>) -> Vec<Descriptor> {
    let platform =
        Platform { architecture: image.architecture.clone(), os: image.os.clone(), variant: image.variant.clone() };
    let entry = |tag: &str, name: Option<String>| {
        let name = name.map(|name| (IMAGE_NAME, name));
        let annotations = name.into_iter().chain([(REF_NAME, tag.to_owned())]).collect();
        Descriptor { annotations, platform: Some(platform.clone()), ..manifest.clone() }
    };
    if image.names.is_empty() {
        return vec![entry(tag.unwrap_or(DEFAULT_TAG), None)];
    }
    let names = image.names.iter().enumerate();
    names
        .map(|(at, name)| {
            let own = name.tag().unwrap_or(DEFAULT_TAG);
            let tag = tag.filter(|_| at == 0).unwrap_or(own);
            entry(tag, Some(format!("{}/{}:{own}", name.host(), name.repository())))
        })
        .collect()
}

/// Returns `index.json` with `entries` alone.
pub(super) fn index(entries: &[Descriptor]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'static str,
        manifests: &'a [Descriptor],
    }
    to_bytes(&Index { schema_version: 2, media_type: INDEX, manifests: entries })
}

/// Adds `entries` to the index `old`, in place of those with their names. Returns what is wrong with it otherwise.
pub(super) fn merge_index(old: &[u8], entries: &[Descriptor]) -> Result<Vec<u8>, String> {
    let mut index: Map<String, Value> =
        serde_json::from_slice(old).map_err(|error| format!("its index.json cannot be understood: {error}"))?;
    let manifests = index.entry("manifests").or_insert(Value::Null);
    let kept = match manifests.take() {
        Value::Null => Vec::new(),
        Value::Array(manifests) => manifests,
        _ => return Err("its index.json has no list of manifests".to_owned()),
    };
    let is_replaced = |old: &Value| {
        let name = |key: &str| old.get("annotations")?.get(key)?.as_str();
        entries.iter().any(|new| match (name(IMAGE_NAME), new.annotations.get(IMAGE_NAME)) {
            (Some(old), Some(new)) => old == new,
            _ => name(REF_NAME) == new.annotations.get(REF_NAME).map(String::as_str),
        })
    };
    let kept = kept.into_iter().filter(|old| !is_replaced(old));
    let new = entries.iter().map(|entry| serde_json::to_value(entry).expect("plain data"));
    *manifests = kept.chain(new).collect();
    Ok(to_bytes(&index))
}

/// Returns what `docker load` looks for in an archive: where things are, and what they are called.
pub(super) fn docker_manifest(image: &Image, config: &Descriptor, layers: &Layers) -> Vec<u8> {
    let path = |blob: &Descriptor| blob_path(&blob.digest);
    let names: Vec<String> = image.names.iter().map(docker_name).collect();
    to_bytes(&json!([{
        "Config": path(config),
        "RepoTags": names,
        "Layers": layers.all().map(|layer| path(&layer.blob)).collect::<Vec<_>>(),
    }]))
}

/// Returns a name as Docker shows it.
fn docker_name(name: &ImageName) -> String {
    let tag = name.tag().unwrap_or(DEFAULT_TAG);
    match (name.host(), name.repository()) {
        ("docker.io", repository) => format!("{}:{tag}", repository.strip_prefix("library/").unwrap_or(repository)),
        (host, repository) => format!("{host}/{repository}:{tag}"),
    }
}

/// Returns where a blob is in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What every layout has as its `oci-layout`.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn to_bytes(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("plain data with string keys")
}
