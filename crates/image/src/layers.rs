//! Layers, one after the other.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::digest::Hash;
use crate::error::At;
use crate::fetch::blocking;
use crate::stream::{Expected, Section, Watch};
use crate::tree::{Below, Tree, Whiteouts};
use crate::{Digest, ImageError, Limits, Progress, unpack};

/// One layer of an image, known before it is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layer {
    /// Identifies the tree that this layer makes of the one below it, whatever image it is part of: the chain id of the OCI
    /// image specification.
    pub chain: Digest,
    /// What it unpacks to.
    pub diff: Digest,
    /// The blob that it is stored as. Docker's archives do not say.
    pub stored: Option<Digest>,
    /// How long that is; 0 if it is not known before it is fetched.
    pub bytes: u64,
}

impl Layer {
    /// Returns the digest that people know the layer by.
    pub fn digest(&self) -> Digest {
        self.stored.unwrap_or(self.diff)
    }
}

/// Returns the chain id of a layer that unpacks to `diff` over the layer with the chain id `below`.
pub(crate) fn chain(below: Option<Digest>, diff: Digest) -> Digest {
    below.map_or(diff, |below| Digest::of(format!("{below} {diff}").as_bytes()))
}

/// An image on its way, in pieces. Dropping it stops what goes on in the background.
#[async_trait]
pub trait Layers: Send {
    /// Unpacks the next layer into `into`, over what is in there.
    ///
    /// The caller sees to it that this is what all layers before made, or an empty directory if there are none;
    /// that nobody else writes in there; and that there is a next one. A tree that has no layers is made by one call.
    /// `into` may be a name in `/proc/self/fd`.
    ///
    /// Everything read is checked against its digest before this succeeds. On failure and on cancellation, what was
    /// written so far stays: the caller discards it, and asks for no more layers.
    async fn next(&mut self, into: &Path) -> Result<(), ImageError>;
}

/// One layer that is being unpacked.
#[derive(Debug)]
pub(crate) struct Part {
    name: String,
    section: Section,
    expected: Expected,
}

impl Part {
    pub(crate) fn new(layer: &Layer, section: Section) -> Self {
        let stored = match layer.stored {
            // The same for an uncompressed layer: no need to take it twice.
            Some(stored) if stored != layer.diff => Hash::Sha256(stored),
            _ => Hash::None,
        };
        let expected = Expected { stored, unpacked: Hash::Sha256(layer.diff) };
        Self { name: format!("layer {}", layer.digest()), section, expected }
    }
}

/// What a fetch is told besides what to fetch: plain values for the blocking side.
#[derive(Clone)]
pub(crate) struct Fetch {
    pub(crate) limits: Limits,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) cancel: CancellationToken,
}

/// Layers whose blobs are in files, or are on their way there.
pub(crate) struct Unpacking {
    parts: std::vec::IntoIter<Part>,
    below: Below,
    done: u64,
    total: u64,
    fetch: Fetch,
    /// What brings the blobs, stopped with this.
    _downloads: Option<AbortOnDropHandle<()>>,
}

impl Unpacking {
    /// Starts with the first of `parts`; `below` says whether there are layers under it. `downloads` bring them, if they are
    /// not there.
    pub(crate) fn new(parts: Vec<Part>, below: Below, fetch: Fetch, downloads: Option<AbortOnDropHandle<()>>) -> Self {
        let total = parts.iter().map(|part| part.section.len()).sum();
        Self { parts: parts.into_iter(), below, done: 0, total, fetch, _downloads: downloads }
    }
}

#[async_trait]
impl Layers for Unpacking {
    async fn next(&mut self, into: &Path) -> Result<(), ImageError> {
        let Part { name, section, expected } = self.parts.next().ok_or(ImageError::NoMoreLayers)?;
        let (below, done, total) = (self.below, self.done, self.total);
        (self.below, self.done) = (Below::Layers, done + section.len());
        let (fetch, into) = (self.fetch.clone(), into.to_owned());
        blocking(move || {
            let Fetch { limits, progress, cancel } = &fetch;
            let watch = Watch { limits, cancel, progress: &**progress, done, total };
            let tree = Tree::new(&into, below, Whiteouts::Apply, limits).at_write(&into)?;
            match unpack::layer(section.clone(), expected, tree, &watch) {
                Ok(()) => {
                    section.forget();
                    Ok(())
                }
                // What did not arrive could not be unpacked.
                Err(error) => Err(section.take_failure().unwrap_or_else(|| ImageError::unpacking(name, error))),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(chain(None, one), one);
        // printf '%s %s' sha256:6b86… sha256:d473… | sha256sum
        let expected = "sha256:53e60bc18399d11a8953c224619cd6147f2f8ef1233acf2818575ba1a17f7ca2";
        assert_eq!(chain(Some(one), two).to_string(), expected);
    }
}
