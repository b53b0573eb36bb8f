//! Images in the OCI layout: `index.json` and blobs named by their digests.

mod document;
mod select;

use std::path::PathBuf;

pub(crate) use self::document::Config;
use self::document::{Descriptor, Index, Kind, Manifest};
use self::select::{by_platform, by_tag};
use crate::container::{Container, blob_name};
use crate::digest::Hash;
use crate::error::At;
use crate::fetch::{Fetch, Plan as AnyPlan};
use crate::stream::{Expected, Section, Watch};
use crate::tree::{Tree, Whiteouts};
use crate::{Digest, ImageConfig, ImageError, Limits, Resolved, unpack};

const INDEX: &str = "index.json";

/// Where a layout is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Dir(PathBuf),
    Archive(PathBuf),
}

/// One image of a layout.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    place: Place,
    name: String,
    manifest: Manifest,
}

/// One layer to unpack, of whatever kind of image.
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) section: Section,
    pub(crate) expected: Expected,
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

/// Finds the manifest that is meant.
pub(crate) fn resolve(place: Place, tag: Option<&str>, limits: &Limits) -> Result<Resolved, ImageError> {
    let container = open(&place, limits)?;
    let index: Index = container.parse(INDEX, &container.document(INDEX, limits)?)?;
    let mut chosen = by_tag(container.path(), index.manifests.unwrap_or_default(), tag)?;
    for _ in 0..=limits.index_depth {
        let digest = container.digest(INDEX, &chosen.digest)?;
        let name = blob_name(digest);
        let bytes = container.blob_document(digest, chosen.size, limits)?;
        match chosen.kind() {
            Kind::Index => {
                let index: Index = container.parse(&name, &bytes)?;
                chosen = by_platform(container.path(), index.manifests.unwrap_or_default())?;
            }
            Kind::Manifest => {
                let manifest: Manifest = container.parse(&name, &bytes)?;
                if !manifest.config.is_image_config() {
                    return Err(unsupported(&container, &name, &manifest.config.media_type));
                }
                let plan = AnyPlan::Oci(Plan { place, name, manifest });
                return Ok(Resolved { identity: format!("oci {digest}"), pinned: true, plan });
            }
            Kind::Other => return Err(unsupported(&container, &name, &chosen.media_type)),
        }
    }
    let path = container.path().to_owned();
    let reason = format!("indexes lie in each other more than {} deep", limits.index_depth);
    Err(ImageError::Inconsistent { path, name: INDEX.to_owned(), reason })
}

/// Unpacks all layers.
pub(crate) fn fetch(plan: &Plan, fetch: &Fetch) -> Result<ImageConfig, ImageError> {
    let container = open(&plan.place, &fetch.limits)?;
    let Descriptor { digest, size, .. } = &plan.manifest.config;
    let digest = container.digest(&plan.name, digest)?;
    let config: Config =
        container.parse(&blob_name(digest), &container.blob_document(digest, *size, &fetch.limits)?)?;
    let descriptors = plan.manifest.layers.as_deref().unwrap_or_default();
    let diff_ids = config.diff_ids(&container, &blob_name(digest), descriptors.len())?;
    let mut layers = Vec::new();
    for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
        let digest = container.digest(&plan.name, &descriptor.digest)?;
        if !descriptor.is_layer() {
            return Err(unsupported(&container, &blob_name(digest), &descriptor.media_type));
        }
        let section = container.blob(digest, descriptor.size)?;
        // The same for an uncompressed layer: no need to take it twice.
        let stored = if digest == diff_id { Hash::None } else { Hash::Sha256(digest) };
        let expected = Expected { stored, unpacked: Hash::Sha256(diff_id) };
        layers.push(Layer { name: format!("layer {digest}"), section, expected });
    }
    unpack_layers(layers, fetch)?;
    Ok(config.into_image_config())
}

/// Unpacks `layers`, the lowest first.
pub(crate) fn unpack_layers(layers: Vec<Layer>, fetch: &Fetch) -> Result<(), ImageError> {
    let mut tree = Tree::new(&fetch.into, &fetch.limits).at_write(&fetch.into)?;
    let total = layers.iter().map(|layer| layer.section.len()).sum();
    let mut done = 0;
    for Layer { name, section, expected } in layers {
        let Fetch { limits, cancel, progress, .. } = fetch;
        let watch = Watch { limits, cancel, progress: &**progress, done, total };
        done += section.len();
        unpack::layer(section, expected, Whiteouts::Apply, &mut tree, &watch)
            .map_err(|error| ImageError::unpacking(name, error))?;
    }
    tree.finish(&*fetch.progress);
    Ok(())
}

fn unsupported(container: &Container, name: &str, media_type: &str) -> ImageError {
    ImageError::UnsupportedKind {
        path: container.path().to_owned(),
        name: name.to_owned(),
        media_type: media_type.to_owned(),
    }
}

impl Config {
    /// Returns the digests of the unpacked layers, of which there must be `count`.
    pub(crate) fn diff_ids(&self, container: &Container, name: &str, count: usize) -> Result<Vec<Digest>, ImageError> {
        let texts = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if texts.len() != count {
            let reason = format!("it lists {} layers, the manifest {count}", texts.len());
            let path = container.path().to_owned();
            return Err(ImageError::Inconsistent { path, name: name.to_owned(), reason });
        }
        texts.iter().map(|text| container.digest(name, text)).collect()
    }
}
