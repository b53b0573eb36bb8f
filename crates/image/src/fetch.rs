//! The seam: from a [`Reference`] to a tree.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use rustix::fs::Mode;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::error::At;
use crate::layers::{Fetch, Unpacking};
use crate::oci::Wanted;
use crate::tree::Below;
use crate::{
    ImageError, ImageName, Layer, Layers, Limits, Platform, Reference, Registry, RegistryError, RegistrySettings,
    daemon, debootstrap, dir, docker, oci, remote, rootfs,
};

/// What a reference stands for right now, and how to fetch just that.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Identifies the content: two equal strings give the same tree. Part of the id of the import.
    pub identity: String,
    /// What it says about running it.
    pub config: ImageConfig,
    /// Its layers, the lowest first. None for what is one tree.
    pub layers: Vec<Layer>,
    pub(crate) plan: Plan,
}

/// How to fetch, one variant for each transport.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Scratch,
    Rootfs { file: PathBuf, blake3: [u8; 32] },
    Dir { dir: PathBuf, blake3: [u8; 32] },
    Debootstrap { suite: String },
    Oci(oci::Place),
    Docker(docker::Plan),
    Kept(daemon::Plan),
    Registry(ImageName),
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
    /// The processor's variant: `v7`.
    pub variant: Option<String>,
    /// The `config` object as it is in the image: what to run, as whom, labels. Null if there is none.
    pub raw: Value,
    /// How the image says that its layers were made, one object each, the lowest first.
    pub history: Vec<Value>,
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
    /// Returns under which text the caller remembers what `reference` stood for; `None` if that is found out each time.
    ///
    /// What it stands for is found out anew when the caller is told to, unless the reference is
    /// [fixed](Reference::is_fixed).
    fn question(&self, reference: &Reference) -> Option<String>;

    /// Finds out what `reference` stands for, without reading layers. Cheap if nothing changed since
    /// `digests` saw it last.
    ///
    /// `remembered` is the identity that the reference had before, whose tree is gone: it is resolved to the same again
    /// if that can still be had.
    async fn resolve(
        &self,
        reference: &Reference,
        remembered: Option<&str>,
        digests: Arc<dyn FileDigests>,
    ) -> Result<Resolved, ImageError>;

    /// Starts to bring the layers of `resolved` from number `from` on; of a tree without layers, all of it.
    ///
    /// `temp` is a directory on a disk with room for what is downloaded; nothing in there outlives what is returned.
    /// Bytes are told of all layers that are brought. If the image changed since it was resolved, this or the unpacking
    /// fails.
    async fn fetch(
        &self,
        resolved: &Resolved,
        from: usize,
        temp: &Path,
        progress: Arc<dyn Progress>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Layers>, ImageError>;
}

/// How images are chosen and brought. Plain values; the program reads environment and files.
#[derive(Clone, Debug, Default)]
pub struct ImagesSettings {
    /// What is beyond them is refused.
    pub limits: Limits,
    /// Of an image for several platforms, that for this one.
    pub platform: Platform,
    /// Variables for the programs that keep images, besides those of this program: `DOCKER_HOST`,
    /// `CONTAINERS_STORAGE_CONF`.
    pub environment: Vec<(OsString, OsString)>,
    /// How to talk to registries.
    pub registry: RegistrySettings,
}

/// The fetcher for all transports. Clones share connections to registries.
#[derive(Clone, Debug, Default)]
pub struct Images {
    settings: Arc<ImagesSettings>,
    registry: Arc<OnceLock<Registry>>,
}

impl Images {
    /// Returns a fetcher with these settings.
    pub fn new(settings: ImagesSettings) -> Self {
        Self { settings: Arc::new(settings), registry: Arc::default() }
    }

    /// Returns the client of registries, made at the first use.
    ///
    /// # Errors
    ///
    /// Its settings are wrong.
    pub fn registry(&self) -> Result<Registry, RegistryError> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry.clone());
        }
        let made = Registry::new(self.settings.registry.clone())?;
        // Another may have been faster.
        Ok(self.registry.get_or_init(|| made).clone())
    }
}

#[async_trait]
impl Fetcher for Images {
    fn question(&self, reference: &Reference) -> Option<String> {
        match reference {
            // Each time it would be a new one.
            Reference::Debootstrap { .. } => Some(format!("from {reference}")),
            Reference::Registry(_) => Some(format!("from {reference} for {}", self.settings.platform)),
            _ => None,
        }
    }

    async fn resolve(
        &self,
        reference: &Reference,
        remembered: Option<&str>,
        digests: Arc<dyn FileDigests>,
    ) -> Result<Resolved, ImageError> {
        let settings = Arc::clone(&self.settings);
        let wanted = Wanted { platform: &self.settings.platform, limits: &self.settings.limits };
        let environment = &self.settings.environment;
        let local = match reference.clone() {
            Reference::Registry(name) => return remote::resolve(&self.registry()?, &name, remembered, wanted).await,
            Reference::DockerDaemon { name } => {
                return daemon::resolve(daemon::DOCKER, &name, environment, wanted).await;
            }
            Reference::ContainersStorage { name } => {
                return daemon::resolve(daemon::CONTAINERS, &name, environment, wanted).await;
            }
            Reference::Scratch => return Ok(Resolved::tree("scratch".to_owned(), Plan::Scratch)),
            Reference::Debootstrap { suite } => return debootstrap::resolve(suite),
            Reference::Rootfs(file) => return blocking(move || rootfs::resolve(file, &*digests)).await,
            Reference::Dir(dir) => return blocking(move || dir::resolve(dir, &*digests)).await,
            Reference::OciLayout { dir, tag } => (Image::Oci(oci::Place::Dir(dir)), tag),
            Reference::OciArchive { file, tag } => (Image::Oci(oci::Place::Archive(file)), tag),
            Reference::DockerArchive { file, tag } => (Image::Docker(file), tag),
        };
        blocking(move || {
            let wanted = Wanted { platform: &settings.platform, limits: &settings.limits };
            match local {
                (Image::Oci(place), tag) => oci::resolve(place, tag.as_deref(), wanted),
                (Image::Docker(file), tag) => docker::resolve(file, tag.as_deref(), wanted),
            }
        })
        .await
    }

    async fn fetch(
        &self,
        resolved: &Resolved,
        from: usize,
        temp: &Path,
        progress: Arc<dyn Progress>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Layers>, ImageError> {
        let fetch = Fetch { limits: self.settings.limits, progress, cancel: cancel.clone() };
        let (limits, plan, layers) = (self.settings.limits, resolved.plan.clone(), resolved.layers.clone());
        let (parts, downloads) = match plan {
            Plan::Scratch | Plan::Rootfs { .. } | Plan::Dir { .. } | Plan::Debootstrap { .. } => {
                return Ok(Box::new(Whole { plan, fetch }));
            }
            Plan::Oci(place) => {
                (blocking(move || oci::parts(&place, layers.get(from..).unwrap_or_default(), &limits)).await?, None)
            }
            Plan::Docker(plan) => (blocking(move || docker::parts(&plan, &layers, from, &limits)).await?, None),
            Plan::Kept(plan) => {
                let environment = &self.settings.environment;
                (daemon::parts(&plan, &layers, from, environment, temp, (&limits, cancel)).await?, None)
            }
            Plan::Registry(name) => {
                let layers = layers.get(from..).unwrap_or_default();
                let (parts, downloads) = remote::parts(&self.registry()?, &name, layers, temp, cancel)?;
                (parts, Some(downloads))
            }
        };
        let below = if from == 0 { Below::Nothing } else { Below::Layers };
        Ok(Box::new(Unpacking::new(parts, below, fetch, downloads)))
    }
}

impl Reference {
    /// Returns true if it stands for the same for ever: it says the digest.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Registry(name) if name.digest().is_some())
    }
}

impl Resolved {
    /// What is one tree, and says nothing about running it.
    pub(crate) fn tree(identity: String, plan: Plan) -> Self {
        Self { identity, config: ImageConfig::default(), layers: Vec::new(), plan }
    }
}

/// An image in files of this machine.
enum Image {
    Oci(oci::Place),
    Docker(PathBuf),
}

/// A tree without layers.
struct Whole {
    plan: Plan,
    fetch: Fetch,
}

#[async_trait]
impl Layers for Whole {
    async fn next(&mut self, into: &Path) -> Result<(), ImageError> {
        let (plan, fetch, into) = (self.plan.clone(), self.fetch.clone(), into.to_owned());
        if let Plan::Debootstrap { suite } = &plan {
            return debootstrap::fetch(suite, &into, &fetch).await;
        }
        blocking(move || match plan {
            Plan::Rootfs { file, blake3 } => rootfs::fetch(&file, blake3, &into, &fetch),
            Plan::Dir { dir, blake3 } => dir::fetch(&dir, blake3, &into, &fetch),
            // An image of no layers is as empty as `scratch`.
            _ => rustix::fs::chmod(&into, Mode::from_raw_mode(0o755)).at_write(&into),
        })
        .await
    }
}

/// Runs something that blocks where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    // The work looks at the token itself: a blocking thread cannot be aborted.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ImageError::Panicked))
}
