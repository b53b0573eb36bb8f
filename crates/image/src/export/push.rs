//! An image into a registry. Blobs are sent in the background, while the next layer is made.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::document::Descriptor;
use super::output::Spool;
use super::{ExportError, Memory};
use crate::stream::Section;
use crate::{Digest, FilePart, ImageName, Progress, Registry, RegistryError};

/// How many blobs are sent at once, at most. More would only take turns on one line.
const UPLOADS: usize = 3;

/// A repository that is being written to.
pub(super) struct Push {
    registry: Registry,
    name: ImageName,
    memory: Arc<dyn Memory>,
    runtime: Handle,
    /// Cancelled also when this is dropped, so that no upload outlives its export.
    cancel: CancellationToken,
    uploads: JoinSet<Result<Descriptor, RegistryError>>,
    /// Blobs that are there or on their way: two steps can change the same.
    known: HashSet<Digest>,
    told: Arc<Told>,
}

/// What is told of all uploads together.
struct Told {
    progress: Arc<dyn Progress>,
    sent: AtomicU64,
    wanted: AtomicU64,
}

impl Push {
    /// `runtime` carries the uploads; the caller is on none of its threads that must not block.
    pub(super) fn new(
        registry: Registry,
        name: ImageName,
        memory: Arc<dyn Memory>,
        progress: Arc<dyn Progress>,
        runtime: Handle,
        cancel: &CancellationToken,
    ) -> Self {
        let told = Arc::new(Told { progress, sent: AtomicU64::new(0), wanted: AtomicU64::new(0) });
        let (cancel, uploads, known) = (cancel.child_token(), JoinSet::new(), HashSet::new());
        Self { registry, name, memory, runtime, cancel, uploads, known, told }
    }

    /// Returns whether the repository has a blob. If it does not and another one of the registry is known to, it gets it
    /// from there.
    pub(super) fn has(&mut self, blob: &Descriptor) -> Result<bool, ExportError> {
        if self.known.contains(&blob.digest) {
            return Ok(true);
        }
        let Self { registry, name, memory, cancel, .. } = self;
        let other = memory.recall(&question(name, blob)).filter(|other| other != name.repository());
        let has = self.runtime.block_on(async {
            if registry.has_blob(name, blob.digest, cancel).await? {
                return Ok(true);
            }
            match other {
                // What it was remembered for may be gone, or not for us to see: then it is sent.
                Some(other) => match registry.mount_blob(name, blob.digest, &other, cancel).await {
                    Err(error) if !error.is_cancelled() => {
                        tracing::info!(%error, from = other, "cannot mount a blob");
                        Ok(false)
                    }
                    mounted => mounted,
                },
                None => Ok(false),
            }
        });
        let has = has.map_err(ExportError::Push)?;
        if has {
            self.known.insert(blob.digest);
            self.memory.remember(&question(&self.name, blob), self.name.repository());
        }
        Ok(has)
    }

    /// Starts to send a blob. Waits if enough are on their way.
    pub(super) fn put(&mut self, blob: &Descriptor, content: &Section) -> Result<(), ExportError> {
        while self.uploads.len() >= UPLOADS {
            self.one_is_sent()?;
        }
        let (registry, name, cancel) = (self.registry.clone(), self.name.clone(), self.cancel.clone());
        let (blob, told) = (blob.clone(), Arc::clone(&self.told));
        let part = FilePart { file: content.file(), offset: content.offset(), length: content.len() };
        self.known.insert(blob.digest);
        told.wanted.fetch_add(blob.size, Ordering::Relaxed);
        let upload = async move {
            let before = AtomicU64::new(0);
            // It can go back, if the registry lost what it had.
            let progress = |done: u64| told.tell(before.swap(done, Ordering::Relaxed), done);
            registry.upload(&name, blob.digest, &part, &progress, &cancel).await?;
            progress(blob.size);
            Ok(blob)
        };
        self.uploads.spawn_on(upload, &self.runtime);
        Ok(())
    }

    /// Sends a short blob.
    pub(super) fn put_bytes(&mut self, blob: &Descriptor, bytes: &[u8], spool: &mut Spool) -> Result<(), ExportError> {
        if self.has(blob)? {
            return Ok(());
        }
        spool.writer().write_all(bytes).map_err(|error| spool.failed(error))?;
        let content = spool.take(blob.size);
        self.put(blob, &content)
    }

    /// Waits for what is on its way, then gives the image its name.
    pub(super) fn finish(mut self, manifest: &Descriptor, bytes: &[u8]) -> Result<(), ExportError> {
        while !self.uploads.is_empty() {
            self.one_is_sent()?;
        }
        let Self { registry, name, cancel, .. } = &self;
        let put = registry.put_manifest(name, Some(name.tag().unwrap_or("latest")), manifest.media_type, bytes, cancel);
        self.runtime.block_on(put).map(|_| ()).map_err(ExportError::Push)
    }

    fn one_is_sent(&mut self) -> Result<(), ExportError> {
        match self.runtime.block_on(self.uploads.join_next()) {
            None => Ok(()),
            Some(Ok(sent)) => {
                let blob = sent.map_err(ExportError::Push)?;
                self.memory.remember(&question(&self.name, &blob), self.name.repository());
                Ok(())
            }
            Some(Err(_)) => Err(ExportError::Panicked),
        }
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Told {
    /// Tells that an upload came from `before` to `now`.
    fn tell(&self, before: u64, now: u64) {
        let change = now.wrapping_sub(before);
        let sent = self.sent.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        self.progress.bytes(sent, self.wanted.load(Ordering::Relaxed));
    }
}

/// The question under which a repository is remembered that has a blob.
fn question(name: &ImageName, blob: &Descriptor) -> String {
    format!("blob {} {}", name.host(), blob.digest)
}
