//! Images in the OCI layout: `index.json` and blobs named by their digests. Docker's documents are the same.

mod document;
mod select;

use std::path::{Path, PathBuf};

pub(crate) use self::document::{Config, Descriptor, Manifest};
use self::document::{Index, Kind};
use self::select::{by_platform, by_tag};
use crate::container::{self, Container, blob_name};
use crate::fetch::Plan;
use crate::layers::{Part, chain};
use crate::tree::shown;
use crate::{Digest, ImageConfig, ImageError, Layer, Limits, Platform, Resolved};

const INDEX: &str = "index.json";

/// Where a layout is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Dir(PathBuf),
    Archive(PathBuf),
}

/// Which documents are wanted, and how long they may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) platform: &'a Platform,
    pub(crate) limits: &'a Limits,
}

fn open(place: &Place, limits: &Limits) -> Result<Container, ImageError> {
    let container = match place {
        Place::Dir(dir) => Container::directory(dir, "an OCI image layout")?,
        Place::Archive(file) => Container::archive(file, "an archive of an OCI image layout", limits)?,
    };
    if !container.has(INDEX) {
        let wanted = match (place, container.has("manifest.json")) {
            (Place::Archive(_), true) => "an OCI archive; it looks like one for `docker-archive:`",
            _ => "an OCI image layout",
        };
        let path = container.path().to_owned();
        return Err(ImageError::NotA { path, wanted, found: format!("it has no {INDEX}") });
    }
    Ok(container)
}

/// Finds the image that is meant.
pub(crate) fn resolve(place: Place, tag: Option<&str>, wanted: Wanted<'_>) -> Result<Resolved, ImageError> {
    let container = open(&place, wanted.limits)?;
    let (digest, config, layers) = find(&container, tag, wanted)?;
    let plan = if layers.is_empty() { Plan::Scratch } else { Plan::Oci(place) };
    Ok(Resolved { identity: format!("oci {digest}"), config, layers, plan })
}

/// Finds the image that is meant in a layout. Returns the digest of its manifest along.
fn find(
    container: &Container,
    tag: Option<&str>,
    wanted: Wanted<'_>,
) -> Result<(Digest, ImageConfig, Vec<Layer>), ImageError> {
    let Wanted { platform, limits } = wanted;
    let path = container.path();
    let index: Index = container.parse(INDEX, &container.document(INDEX, limits)?)?;
    let mut chosen = by_tag(path, index.manifests.unwrap_or_default(), tag, platform)?;
    for _ in 0..=limits.index_depth {
        let digest = container::digest(path, INDEX, &chosen.digest)?;
        let name = blob_name(digest);
        let bytes = container.blob_document(digest, chosen.size, limits)?;
        match choose(path, &name, &chosen.media_type, &bytes, wanted)? {
            Choice::Other(next) => chosen = next,
            Choice::This(manifest) => {
                let (config, size) = manifest.config(path, &name)?;
                let bytes = container.blob_document(config, size, limits)?;
                let (config, layers) = manifest.image(path, &name, (&blob_name(config), &bytes), wanted)?;
                return Ok((digest, config, layers));
            }
        }
    }
    Err(too_deep(path, INDEX, limits))
}

/// Where a document leads.
pub(crate) enum Choice {
    /// It is a list; this one of it is meant.
    Other(Descriptor),
    /// It is an image.
    This(Manifest),
}

/// Understands the document `name` of the image at `path`, which is said to be a `media_type`.
pub(crate) fn choose(
    path: &Path,
    name: &str,
    media_type: &str,
    bytes: &[u8],
    wanted: Wanted<'_>,
) -> Result<Choice, ImageError> {
    match Kind::of(media_type) {
        Kind::Index => {
            let index: Index = container::parse(path, name, bytes)?;
            by_platform(path, index.manifests.unwrap_or_default(), wanted.platform).map(Choice::Other)
        }
        Kind::Manifest => {
            let manifest: Manifest = container::parse(path, name, bytes)?;
            if manifest.config.is_image_config() {
                Ok(Choice::This(manifest))
            } else {
                Err(unsupported(path, name, &manifest.config.media_type))
            }
        }
        Kind::Other => Err(unsupported(path, name, media_type)),
    }
}

/// Returns the error for lists that lead nowhere.
pub(crate) fn too_deep(path: &Path, name: &str, limits: &Limits) -> ImageError {
    inconsistent(path, name, format!("indexes lie in each other more than {} deep", limits.index_depth))
}

/// Finds the blobs of `layers`.
pub(crate) fn parts(place: &Place, layers: &[Layer], limits: &Limits) -> Result<Vec<Part>, ImageError> {
    let container = open(place, limits)?;
    let part = |layer: &Layer| {
        let stored = layer.stored.expect("layers of a layout are known by it");
        Ok(Part::new(layer, container.blob(stored, layer.bytes)?))
    };
    layers.iter().map(part).collect()
}

fn unsupported(path: &Path, name: &str, media_type: &str) -> ImageError {
    ImageError::UnsupportedKind {
        path: path.to_owned(),
        name: name.to_owned(),
        media_type: shown(media_type.as_bytes()),
    }
}

fn inconsistent(path: &Path, name: &str, reason: impl Into<String>) -> ImageError {
    ImageError::Inconsistent { path: path.to_owned(), name: name.to_owned(), reason: reason.into() }
}

impl Manifest {
    /// Returns which blob its configuration is, and how long that is.
    pub(crate) fn config(&self, path: &Path, name: &str) -> Result<(Digest, u64), ImageError> {
        Ok((container::digest(path, name, &self.config.digest)?, self.config.size))
    }

    /// Puts the image together from its manifest, called `name`, and its configuration: name and content.
    pub(crate) fn image(
        self,
        path: &Path,
        name: &str,
        (config_name, config): (&str, &[u8]),
        wanted: Wanted<'_>,
    ) -> Result<(ImageConfig, Vec<Layer>), ImageError> {
        let descriptors = self.layers.unwrap_or_default();
        let (config, diffs) = Config::read(path, config_name, config, Some(descriptors.len()), wanted)?;
        let mut layers: Vec<Layer> = Vec::new();
        let mut total = 0_u64;
        for (descriptor, diff) in descriptors.iter().zip(diffs) {
            let stored = container::digest(path, name, &descriptor.digest)?;
            if descriptor.is_foreign() {
                let (path, name) = (path.to_owned(), format!("layer {stored}"));
                return Err(ImageError::ForeignLayer { path, name });
            }
            if !descriptor.is_layer() {
                return Err(unsupported(path, &format!("layer {stored}"), &descriptor.media_type));
            }
            // As much as a file's offset can say.
            total = total
                .checked_add(descriptor.size)
                .filter(|total| i64::try_from(*total).is_ok())
                .ok_or_else(|| inconsistent(path, name, "its layers are longer than any disk"))?;
            let below = layers.last().map(|layer| layer.chain);
            layers.push(Layer { chain: chain(below, diff), diff, stored: Some(stored), bytes: descriptor.size });
        }
        Ok((config, layers))
    }
}

impl Config {
    /// Reads the configuration `name` of the image at `path`. Returns with it the digests of the unpacked layers, of
    /// which there must be `count`, if the manifest says.
    pub(crate) fn read(
        path: &Path,
        name: &str,
        bytes: &[u8],
        wanted_count: Option<usize>,
        wanted: Wanted<'_>,
    ) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
        let limit = wanted.limits.config_values;
        if document::values(bytes) > limit {
            return Err(inconsistent(path, name, format!("it holds more than {limit} values")));
        }
        let config: Self = container::parse(path, name, bytes)?;
        let texts = config.rootfs.diff_ids.as_deref().unwrap_or_default();
        let count = texts.len();
        if let Some(wanted) = wanted_count.filter(|wanted| *wanted != count) {
            return Err(inconsistent(path, name, format!("it lists {count} layers, the manifest {wanted}")));
        }
        if count > wanted.limits.layers {
            let reason = format!("it has {count} layers; at most {} are unpacked", wanted.limits.layers);
            return Err(inconsistent(path, name, reason));
        }
        let diffs = texts.iter().map(|text| container::digest(path, name, text)).collect::<Result<_, _>>()?;
        if let Some(made_for) = config.platform()
            && made_for.fitness(wanted.platform).is_none()
        {
            let (path, wanted, known) = (path.to_owned(), wanted.platform.to_string(), vec![made_for.to_string()]);
            return Err(ImageError::WrongPlatform { path, wanted, known });
        }
        let config = config.into_image_config().map_err(|reason| inconsistent(path, name, reason))?;
        Ok((config, diffs))
    }
}
