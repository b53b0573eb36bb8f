//! The JSON documents of images: what we need of them. Docker's differ only in media types.
//!
//! Go writes `null` for what is empty; hence the many options.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{ImageConfig, Platform};

/// Values inside each other in what is kept of a configuration. Real ones have three; and what is kept goes into a
/// document again, whose reader has a limit too.
const DEPTH: usize = 32;

/// A list of images.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Option<Vec<Descriptor>>,
}

/// One image.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Option<Vec<Descriptor>>,
}

/// A blob, as named by another document.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(crate) digest: String,
    pub(super) size: u64,
    platform: Option<Words>,
    annotations: Option<BTreeMap<String, String>>,
    urls: Option<Vec<String>>,
}

/// What an image runs on, in its maker's words.
#[derive(Clone, Debug, Deserialize)]
struct Words {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// What a descriptor in an index names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Index,
    Manifest,
    Other,
}

impl Kind {
    pub(super) fn of(media_type: &str) -> Self {
        match media_type {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                Self::Index
            }
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                Self::Manifest
            }
            _ => Self::Other,
        }
    }
}

impl Descriptor {
    /// Returns true if this is the configuration of an image, and not of a chart or a signature.
    pub(super) fn is_image_config(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        )
    }

    /// Returns true if this is a layer in tar format. How it is compressed, its bytes say.
    pub(super) fn is_layer(&self) -> bool {
        const KINDS: [&str; 2] =
            ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
        KINDS
            .iter()
            .any(|kind| matches!(self.media_type.strip_prefix(kind), Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd")))
    }

    /// Returns true if this is kept elsewhere than beside its image, from where nothing is fetched.
    pub(super) fn is_foreign(&self) -> bool {
        let has_urls = self.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        has_urls || self.media_type.contains("foreign") || self.media_type.contains("nondistributable")
    }

    pub(super) fn platform(&self) -> Option<Platform> {
        let Words { os, architecture, variant } = self.platform.as_ref()?;
        Some(Platform::new(os, architecture, variant.as_deref().unwrap_or_default()))
    }

    /// Returns the names by which the image may be chosen.
    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
        NAMES.into_iter().filter_map(|name| self.annotations.as_ref()?.get(name)).map(String::as_str)
    }
}

/// How an image is to be run, and what its layers unpack to.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    #[serde(default)]
    config: Value,
    history: Option<Vec<Value>>,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Option<Vec<String>>,
}

impl Config {
    /// Returns what the image was made for, if it says.
    pub(super) fn platform(&self) -> Option<Platform> {
        let word = |text: &Option<String>| text.clone().unwrap_or_default();
        let (os, architecture) = (word(&self.os), word(&self.architecture));
        (!os.is_empty() && !architecture.is_empty()).then(|| Platform::new(&os, &architecture, &word(&self.variant)))
    }

    /// Returns what is kept of it, or what is wrong with it.
    pub(super) fn into_image_config(self) -> Result<ImageConfig, String> {
        let history = self.history.unwrap_or_default();
        if depth(&self.config) > DEPTH || history.iter().any(|entry| depth(entry) > DEPTH) {
            return Err(format!("its values lie in each other more than {DEPTH} deep"));
        }
        let env = match self.config.get("Env") {
            None | Some(Value::Null) => Vec::new(),
            Some(env) => {
                serde_json::from_value::<Vec<String>>(env.clone()).map_err(|_| "its Env is not a list of texts")?
            }
        };
        let variable = |text: &String| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), value.to_owned())
        };
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(ImageConfig {
            env: env.iter().map(variable).collect(),
            architecture: filled(self.architecture),
            os: filled(self.os),
            variant: filled(self.variant),
            raw: self.config,
            history,
        })
    }
}

/// Returns about how many values and names are in a document, without making any: not less than there are.
pub(super) fn values(json: &[u8]) -> usize {
    let (mut count, mut in_text, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b',' | b':' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

/// Returns how many values lie in each other. The parser has bounded them, so this may recurse.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_texts_are_one() {
        for (json, wanted) in
            [("", 1), ("1", 1), ("[1,2]", 3), (r#"{"a":0}"#, 3), (r#"["a,b[\",[{:"]"#, 2), (r#"["\\",1]"#, 3)]
        {
            assert_eq!(values(json.as_bytes()), wanted, "{json}");
        }
    }
}
