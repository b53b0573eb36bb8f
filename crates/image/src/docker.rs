//! What `docker save` writes: `manifest.json`, configurations, and layers by the names in it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::container::Container;
use crate::fetch::Plan as AnyPlan;
use crate::layers::{Part, chain};
use crate::oci::{Config, Wanted};
use crate::stream::Section;
use crate::{Digest, ImageError, Layer, Limits, Resolved};

const MANIFEST: &str = "manifest.json";
const WANTED: &str = "an archive of `docker save`";

/// The layers of one image of an archive, by their names in it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    file: PathBuf,
    names: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Returns all images of an archive.
fn images(container: &Container, limits: &Limits) -> Result<Vec<Image>, ImageError> {
    if !container.has(MANIFEST) {
        let found = match container.has("index.json") {
            true => format!("it has no {MANIFEST}; it looks like one for `oci-archive:`"),
            false => format!("it has no {MANIFEST}"),
        };
        return Err(ImageError::NotA { path: container.path().to_owned(), wanted: WANTED, found });
    }
    container.parse(MANIFEST, &container.document(MANIFEST, limits)?)
}

/// Finds the image that is meant.
pub(crate) fn resolve(file: PathBuf, tag: Option<&str>, wanted: Wanted<'_>) -> Result<Resolved, ImageError> {
    let container = Container::archive(&file, WANTED, wanted.limits)?;
    let images = images(&container, wanted.limits)?;
    let image = choose(&container, images, tag)?;
    let bytes = container.document(&image.config, wanted.limits)?;
    let digest = Digest::of(&bytes);
    // The name says the digest, in one of two ways.
    let stem = image.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
    if let Ok(named) = format!("sha256:{stem}").parse::<Digest>()
        && named != digest
    {
        return Err(ImageError::WrongDigest { path: file, name: image.config, found: digest.to_string() });
    }
    let names = image.layers.unwrap_or_default();
    let (config, diffs) = Config::read(&file, &image.config, &bytes, Some(names.len()), wanted)?;
    let mut layers: Vec<Layer> = Vec::new();
    for (name, diff) in names.iter().zip(diffs) {
        let below = layers.last().map(|layer| layer.chain);
        // The layer's own digest is not written down, but what it unpacks to is.
        let bytes = container.section(name)?.len();
        layers.push(Layer { chain: chain(below, diff), diff, stored: None, bytes });
    }
    let plan = if layers.is_empty() { AnyPlan::Scratch } else { AnyPlan::Docker(Plan { file, names }) };
    Ok(Resolved { identity: format!("docker {digest}"), config, layers, plan })
}

/// Finds the layers from number `from` on.
pub(crate) fn parts(plan: &Plan, layers: &[Layer], from: usize, limits: &Limits) -> Result<Vec<Part>, ImageError> {
    parts_in(&Container::archive(&plan.file, WANTED, limits)?, &plan.names, layers, from)
}

/// Finds the layers from number `from` on in an open archive of one image, which errors call `name`.
pub(crate) fn parts_of_one(
    name: &str,
    archive: Section,
    layers: &[Layer],
    from: usize,
    limits: &Limits,
) -> Result<Vec<Part>, ImageError> {
    let path = Path::new(name);
    let container = Container::archive_in(archive, path, WANTED, limits)?;
    let names = choose(&container, images(&container, limits)?, None)?.layers.unwrap_or_default();
    if names.len() != layers.len() {
        return Err(ImageError::Changed { path: path.to_owned() });
    }
    parts_in(&container, &names, layers, from)
}

fn parts_in(container: &Container, names: &[String], layers: &[Layer], from: usize) -> Result<Vec<Part>, ImageError> {
    let part = |(layer, name): (_, &String)| Ok(Part::new(layer, container.section(name)?));
    layers.iter().zip(names).skip(from).map(part).collect()
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
