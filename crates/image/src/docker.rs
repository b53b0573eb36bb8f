//! What `docker save` writes: `manifest.json`, configurations, and layers by the names in it.

use std::path::PathBuf;

use serde::Deserialize;

use crate::container::Container;
use crate::digest::Hash;
use crate::fetch::{Fetch, Plan as AnyPlan};
use crate::oci::{Config, Layer, unpack_layers};
use crate::stream::Expected;
use crate::{Digest, ImageConfig, ImageError, Limits, Resolved};

const MANIFEST: &str = "manifest.json";
const WANTED: &str = "an archive of `docker save`";

/// One image of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    file: PathBuf,
    config: Digest,
    image: Image,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the image that is meant.
pub(crate) fn resolve(file: PathBuf, tag: Option<&str>, limits: &Limits) -> Result<Resolved, ImageError> {
    let container = Container::archive(&file, WANTED, limits)?;
    if !container.has(MANIFEST) {
        let found = match container.has("index.json") {
            true => format!("it has no {MANIFEST}; it looks like one for `oci-archive:`"),
            false => format!("it has no {MANIFEST}"),
        };
        return Err(ImageError::NotA { path: file, wanted: WANTED, found });
    }
    let images: Vec<Image> = container.parse(MANIFEST, &container.document(MANIFEST, limits)?)?;
    let image = choose(&container, images, tag)?;
    let config = Digest::of(&container.document(&image.config, limits)?);
    // The name says the digest, in one of two ways.
    let stem = image.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
    if let Ok(named) = format!("sha256:{stem}").parse::<Digest>()
        && named != config
    {
        return Err(ImageError::WrongDigest { path: file, name: image.config, found: config.to_string() });
    }
    let identity = format!("docker {config}");
    Ok(Resolved { identity, pinned: true, plan: AnyPlan::Docker(Plan { file, config, image }) })
}

/// Unpacks all layers.
pub(crate) fn fetch(plan: &Plan, fetch: &Fetch) -> Result<ImageConfig, ImageError> {
    let container = Container::archive(&plan.file, WANTED, &fetch.limits)?;
    let bytes = container.document(&plan.image.config, &fetch.limits)?;
    if Digest::of(&bytes) != plan.config {
        return Err(ImageError::Changed { path: plan.file.clone() });
    }
    let config: Config = container.parse(&plan.image.config, &bytes)?;
    let names = plan.image.layers.as_deref().unwrap_or_default();
    let diff_ids = config.diff_ids(&container, &plan.image.config, names.len())?;
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        // The layer's own digest is not written down, but what it unpacks to is.
        let expected = Expected { stored: Hash::None, unpacked: Hash::Sha256(diff_id) };
        layers.push(Layer { name: format!("layer {name}"), section: container.section(name)?, expected });
    }
    unpack_layers(layers, fetch)?;
    Ok(config.into_image_config())
}

fn choose(container: &Container, mut images: Vec<Image>, tag: Option<&str>) -> Result<Image, ImageError> {
    let path = || container.path().to_owned();
    let mut known: Vec<String> = images.iter().flat_map(|image| image.repo_tags.iter().flatten()).cloned().collect();
    known.sort_unstable();
    match tag {
        None if images.len() > 1 => Err(ImageError::WhichTag { path: path(), known }),
        None => images.pop().ok_or_else(|| ImageError::NoImage { path: path() }),
        Some(tag) => {
            let wanted = full_name(tag);
            let named = |image: &Image| image.repo_tags.iter().flatten().any(|name| full_name(name) == wanted);
            match images.into_iter().find(named) {
                Some(image) => Ok(image),
                None => Err(ImageError::UnknownTag { path: path(), tag: tag.to_owned(), known }),
            }
        }
    }
}

/// Returns a name as Docker means it, without what it leaves out and with what it implies.
fn full_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let last = short.rsplit('/').next().unwrap_or(short);
    if last.contains(':') { short.to_owned() } else { format!("{short}:latest") }
}
