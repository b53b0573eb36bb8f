//! The seam: from a [`Reference`] to a tree.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::fs::Mode;
use tokio_util::sync::CancellationToken;

use crate::error::At;
use crate::{ImageError, Limits, Reference, debootstrap, dir, docker, oci, rootfs};

/// What a reference stands for right now, and how to fetch just that.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Identifies the content: two equal strings give the same tree. Part of the id of the import.
    pub identity: String,
    /// False for references whose content cannot be known without making it, and which are then a
    /// new one each time (`debootstrap:`). The caller remembers the identity by the reference's text,
    /// and resolves again only when asked to, or when the tree with that identity is gone.
    pub pinned: bool,
    pub(crate) plan: Plan,
}

/// How to fetch, one variant for each transport.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Scratch,
    Rootfs { file: PathBuf, blake3: [u8; 32] },
    Dir { dir: PathBuf, blake3: [u8; 32] },
    Oci(oci::Plan),
    Docker(docker::Plan),
    Debootstrap { suite: String },
}

/// What an image says about running it. Trees without a configuration say nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImageConfig {
    /// Environment variables, in the image's order.
    pub env: Vec<(String, String)>,
    /// The processor, in the words of images: `amd64`, `arm64`.
    pub architecture: Option<String>,
    /// The operating system: `linux`.
    pub os: Option<String>,
}

/// Digests of files by their content.
///
/// Implementations remember them by device, inode, size and times, so that asking again costs little.
/// Called from several threads.
pub trait FileDigests: Send + Sync {
    /// Returns the BLAKE3 digest of the regular file at `path`, following links.
    ///
    /// # Errors
    ///
    /// Whatever opening and reading gives.
    fn blake3(&self, path: &Path) -> io::Result<[u8; 32]>;
}

/// Reads the whole file each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForgetfulDigests;

impl FileDigests for ForgetfulDigests {
    fn blake3(&self, path: &Path) -> io::Result<[u8; 32]> {
        Ok(blake3::Hasher::new().update_mmap_rayon(path)?.finalize().into())
    }
}

/// Hears how a fetch goes on. Called from any thread, often; must return at once.
pub trait Progress: Send + Sync {
    /// So much of the image's bytes, as stored, is read.
    fn bytes(&self, done: u64, total: u64);
    /// A line for the build's log, without its end.
    fn line(&self, text: &str);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn bytes(&self, _done: u64, _total: u64) {}
    fn line(&self, _text: &str) {}
}

/// Brings base images in.
#[async_trait]
pub trait Fetcher: Send + Sync {
    /// Finds out what `reference` stands for, without reading layers. Cheap if nothing changed since
    /// `digests` saw it last.
    async fn resolve(&self, reference: &Reference, digests: Arc<dyn FileDigests>) -> Result<Resolved, ImageError>;

    /// Unpacks the image into the empty directory `into`, and sets that directory's own mode and owner.
    ///
    /// Everything read is checked against its digest before this succeeds; if the image changed since it was
    /// resolved, it fails. On failure and on cancellation, what was written so far stays: the caller
    /// discards it. The directory must not be written by others meanwhile.
    async fn fetch(
        &self,
        resolved: &Resolved,
        into: &Path,
        progress: Arc<dyn Progress>,
        cancel: &CancellationToken,
    ) -> Result<ImageConfig, ImageError>;
}

/// Images that are on this machine, or made on it: everything but registries.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalImages {
    limits: Limits,
}

impl LocalImages {
    /// Returns a fetcher that refuses what is beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

/// What a fetch is told besides what to fetch: plain values for the blocking side.
#[derive(Clone)]
pub(crate) struct Fetch {
    pub(crate) into: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) cancel: CancellationToken,
}

#[async_trait]
impl Fetcher for LocalImages {
    async fn resolve(&self, reference: &Reference, digests: Arc<dyn FileDigests>) -> Result<Resolved, ImageError> {
        let reference = reference.clone();
        let limits = self.limits;
        blocking(move || match reference {
            Reference::Scratch => Ok(Resolved { identity: "scratch".to_owned(), pinned: true, plan: Plan::Scratch }),
            Reference::Rootfs(file) => rootfs::resolve(file, &*digests),
            Reference::Dir(dir) => dir::resolve(dir, &*digests),
            Reference::OciLayout { dir, tag } => oci::resolve(oci::Place::Dir(dir), tag.as_deref(), &limits),
            Reference::OciArchive { file, tag } => oci::resolve(oci::Place::Archive(file), tag.as_deref(), &limits),
            Reference::DockerArchive { file, tag } => docker::resolve(file, tag.as_deref(), &limits),
            Reference::Debootstrap { suite } => debootstrap::resolve(suite),
            Reference::DockerDaemon { .. } | Reference::ContainersStorage { .. } | Reference::Registry(_) => {
                Err(ImageError::RegistryUnsupported { reference: reference.to_string() })
            }
        })
        .await
    }

    async fn fetch(
        &self,
        resolved: &Resolved,
        into: &Path,
        progress: Arc<dyn Progress>,
        cancel: &CancellationToken,
    ) -> Result<ImageConfig, ImageError> {
        let fetch = Fetch { into: into.to_owned(), limits: self.limits, progress, cancel: cancel.clone() };
        match resolved.plan.clone() {
            Plan::Scratch => {
                rustix::fs::chmod(into, Mode::from_raw_mode(0o755)).at_write(into)?;
                Ok(ImageConfig::default())
            }
            Plan::Rootfs { file, blake3 } => blocking(move || rootfs::fetch(&file, blake3, &fetch)).await,
            Plan::Dir { dir, blake3 } => blocking(move || dir::fetch(&dir, blake3, &fetch)).await,
            Plan::Oci(plan) => blocking(move || oci::fetch(&plan, &fetch)).await,
            Plan::Docker(plan) => blocking(move || docker::fetch(&plan, &fetch)).await,
            Plan::Debootstrap { suite } => debootstrap::fetch(&suite, &fetch).await,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    // The work looks at the token itself: a blocking thread cannot be aborted.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ImageError::Panicked))
}
