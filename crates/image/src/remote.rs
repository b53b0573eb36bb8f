//! An image of a registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::error::At;
use crate::fetch::Plan as AnyPlan;
use crate::layers::Part;
use crate::oci::{self, Choice, Wanted};
use crate::registry::{Manifest, Registry, RegistryError};
use crate::{Digest, ImageError, ImageName, Layer, Resolved, Which, container, download};

/// What identities of such images begin with. The digest of the manifest follows, as for images of the OCI layout.
const IDENTITY: &str = "oci ";

/// Finds the image that is meant: the one of before, called `remembered`, if the registry still has it.
pub(crate) async fn resolve(
    registry: &Registry,
    name: &ImageName,
    remembered: Option<&str>,
    wanted: Wanted<'_>,
) -> Result<Resolved, ImageError> {
    let path = PathBuf::from(name.to_string());
    // Whoever waits for this drops it.
    let never = CancellationToken::new();
    let limit = wanted.limits.document_bytes;
    let before = remembered.and_then(|identity| identity.strip_prefix(IDENTITY)?.parse::<Digest>().ok());
    let mut found = None;
    if let Some(digest) = before {
        found = match registry.manifest(name, &Which::Digest(digest), limit, &never).await {
            Err(RegistryError::NotFound { .. }) => None,
            manifest => Some(manifest?),
        };
    }
    let mut found = match found {
        Some(manifest) => manifest,
        None => registry.manifest(name, &name.which(), limit, &never).await?,
    };
    for _ in 0..=wanted.limits.index_depth {
        let Manifest { bytes, media_type, digest } = found;
        let document = format!("manifest {digest}");
        match oci::choose(&path, &document, &media_type, &bytes, wanted)? {
            Choice::Other(next) => {
                let next = container::digest(&path, &document, &next.digest)?;
                found = registry.manifest(name, &Which::Digest(next), limit, &never).await?;
            }
            Choice::This(manifest) => {
                let (digest_of_config, size) = manifest.config(&path, &document)?;
                let config = format!("configuration {digest_of_config}");
                if size > limit {
                    return Err(ImageError::DocumentTooLong { path, name: config, size, limit });
                }
                let bytes = registry.document(name, digest_of_config, size, &never).await?;
                let (config, layers) = manifest.image(&path, &document, (&config, &bytes), wanted)?;
                let plan = if layers.is_empty() { AnyPlan::Scratch } else { AnyPlan::Registry(name.clone()) };
                return Ok(Resolved { identity: format!("{IDENTITY}{digest}"), config, layers, plan });
            }
        }
    }
    Err(oci::too_deep(&path, "the index", wanted.limits))
}

/// Starts to download `layers` into `temp`.
pub(crate) fn parts(
    registry: &Registry,
    name: &ImageName,
    layers: &[Layer],
    temp: &Path,
    cancel: &CancellationToken,
) -> Result<(Vec<Part>, AbortOnDropHandle<()>), ImageError> {
    let lengths: Vec<u64> = layers.iter().map(|layer| layer.bytes).collect();
    let blobs: Vec<(Digest, u64)> = layers.iter().map(|layer| (layer.digest(), layer.bytes)).collect();
    let (registry, name, cancel) = (registry.clone(), Arc::new(name.clone()), cancel.clone());
    let get = move |at: usize, mut sink: download::Sink| {
        let (registry, name, cancel) = (registry.clone(), Arc::clone(&name), cancel.clone());
        let (digest, size) = blobs[at];
        async move { Ok(registry.download(&name, digest, size, &mut |bytes: &[u8]| sink.write(bytes), &cancel).await?) }
    };
    let (sections, downloads) = download::start(&lengths, temp, get).at_write(temp)?;
    Ok((layers.iter().zip(sections).map(|(layer, section)| Part::new(layer, section)).collect(), downloads))
}
