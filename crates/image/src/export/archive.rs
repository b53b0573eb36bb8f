//! An image as one tar file: an OCI layout and, for `docker load`, a `manifest.json` that says the same.

use std::collections::BTreeMap;
use std::io::Read;

use tokio_util::sync::CancellationToken;

use super::compress::{Feed, pack};
use super::document::{self, Descriptor, Layers};
use super::output::Failed;
use super::{Compression, ExportError, Image, Output, layer, output};
use crate::Digest;
use crate::stream::Section;

/// An archive to be written when all blobs are known.
pub(super) struct Archive {
    output: Output,
    is_docker: bool,
    blobs: BTreeMap<String, Blob>,
}

enum Blob {
    Spooled(Section),
    Document(Vec<u8>),
}

impl Archive {
    pub(super) fn new(output: Output, is_docker: bool) -> Self {
        Self { output, is_docker, blobs: BTreeMap::new() }
    }

    /// Returns true if the blob will be in it.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(&digest.hex())
    }

    /// Adds a layer, which is read at the end.
    pub(super) fn put(&mut self, digest: &Digest, content: Section) {
        self.blobs.insert(digest.hex(), Blob::Spooled(content));
    }

    /// Adds a configuration or manifest.
    pub(super) fn put_document(&mut self, digest: &Digest, bytes: Vec<u8>) {
        self.blobs.insert(digest.hex(), Blob::Document(bytes));
    }

    /// Writes it all, sorted by name.
    pub(super) fn finish(
        self,
        image: &Image,
        config: &Descriptor,
        layers: &Layers,
        entries: &[Descriptor],
        cancel: &CancellationToken,
    ) -> Result<(), ExportError> {
        let Self { output, is_docker, blobs } = self;
        output::write(output, |output, failed| {
            pack(Compression::None, output, failed, cancel, |feed| {
                layer::directory(feed, "blobs")?;
                layer::directory(feed, "blobs/sha256")?;
                for (hex, blob) in blobs {
                    let name = format!("blobs/sha256/{hex}");
                    match blob {
                        Blob::Spooled(mut content) => {
                            let size = content.len();
                            add(feed, &name, &mut content, size, failed)?;
                        }
                        Blob::Document(bytes) => document(feed, &name, &bytes, failed)?,
                    }
                }
                document(feed, "index.json", &document::index(entries), failed)?;
                if is_docker {
                    let manifest = document::docker_manifest(image, config, layers);
                    document(feed, "manifest.json", &manifest, failed)?;
                }
                document(feed, "oci-layout", document::LAYOUT, failed)?;
                layer::end(feed)
            })
            .map(drop)
        })
    }
}

fn document(feed: &mut Feed<'_>, name: &str, mut bytes: &[u8], failed: &Failed<'_>) -> Result<(), ExportError> {
    let size = bytes.len() as u64;
    add(feed, name, &mut bytes, size, failed)
}

fn add(
    feed: &mut Feed<'_>,
    name: &str,
    content: &mut impl Read,
    size: u64,
    failed: &Failed<'_>,
) -> Result<(), ExportError> {
    layer::file(feed, name, size)?;
    if feed.copy(content, size, failed)? > 0 {
        return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
    }
    layer::padding(feed, size)
}
