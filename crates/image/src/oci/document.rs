//! The JSON documents of images: what we need of them. Docker's differ only in media types.
//!
//! Go writes `null` for what is empty; hence the many options.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::ImageConfig;

/// A list of images.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Option<Vec<Descriptor>>,
}

/// One image.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Option<Vec<Descriptor>>,
}

/// A blob, as named by another document.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// What an image runs on, in Go's words.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

/// What a descriptor in an index names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Index,
    Manifest,
    Other,
}

impl Descriptor {
    pub(super) fn kind(&self) -> Kind {
        match self.media_type.as_str() {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                Kind::Index
            }
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                Kind::Manifest
            }
            _ => Kind::Other,
        }
    }

    /// Returns true if this is the configuration of an image, and not of a chart or a signature.
    pub(super) fn is_image_config(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        )
    }

    /// Returns true if this is a layer in tar format. How it is compressed, its bytes say.
    pub(super) fn is_layer(&self) -> bool {
        const KINDS: [&str; 4] = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
        ];
        KINDS
            .iter()
            .any(|kind| matches!(self.media_type.strip_prefix(kind), Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd")))
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
    config: Option<Process>,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct Process {
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Option<Vec<String>>,
}

impl Config {
    pub(crate) fn into_image_config(self) -> ImageConfig {
        let env = self.config.and_then(|process| process.env).unwrap_or_default();
        let variable = |text: &String| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), value.to_owned())
        };
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        ImageConfig {
            env: env.iter().map(variable).collect(),
            architecture: filled(self.architecture),
            os: filled(self.os),
        }
    }
}
