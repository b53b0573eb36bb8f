//! What a base image is: found before it is there, and kept with it.

use std::path::Path;
use std::sync::Arc;

use kiln_image::{Fetcher, FileDigests, ImageConfig, ImageError, Reference, Resolved};
use kiln_store::{FileVersion, Store};

use crate::error::{At, BuildError};
use crate::key::StepKey;
use crate::manifest::version_of;

/// A base image, as far as it is known before it is there.
#[derive(Debug)]
pub(crate) struct Base {
    /// As in the spec.
    pub(crate) text: String,
    reference: Reference,
    pub(crate) identity: String,
    resolved: Option<Resolved>,
}

impl Base {
    /// Finds out what `text` stands for. What has to be asked for elsewhere is what it was last time, unless `pull` or
    /// unless that result is gone.
    pub(crate) async fn resolve(
        text: &[u8],
        relative_to: &Path,
        store: &Arc<Store>,
        fetcher: &dyn Fetcher,
        pull: bool,
    ) -> Result<Self, BuildError> {
        let reference = Reference::parse(text, relative_to)?;
        let text = String::from_utf8_lossy(text).into_owned();
        let question = fetcher.question(&reference);
        let remembered = match &question {
            Some(question) if !pull || reference.is_fixed() => store.recall(question)?,
            _ => None,
        };
        if let Some(identity) = &remembered
            && store.lookup(&StepKey::Base { identity }.id())?.is_some()
        {
            return Ok(Self { text, reference, identity: identity.clone(), resolved: None });
        }
        let digests = Arc::new(StoreDigests(Arc::clone(store)));
        // The tree is gone, not what it was: a tag that has moved since must not make another image of an old build.
        let resolved = fetcher.resolve(&reference, remembered.as_deref(), digests).await;
        let resolved = resolved.map_err(|source| BuildError::Base { reference: text.clone(), source })?;
        if let Some(question) = &question {
            store.remember(question, &resolved.identity)?;
        }
        Ok(Self { text, reference, identity: resolved.identity.clone(), resolved: Some(resolved) })
    }

    /// Returns what is to be fetched.
    pub(crate) async fn resolved(&self, store: &Arc<Store>, fetcher: &dyn Fetcher) -> Result<Resolved, BuildError> {
        if let Some(resolved) = &self.resolved {
            return Ok(resolved.clone());
        }
        // It was there when we looked, and was pruned since.
        let digests = Arc::new(StoreDigests(Arc::clone(store)));
        let resolved = fetcher.resolve(&self.reference, Some(&self.identity), digests).await;
        let resolved = resolved.map_err(|source| self.failed(source))?;
        // What is new each time may be called by its old name.
        let is_same = resolved.identity == self.identity || matches!(self.reference, Reference::Debootstrap { .. });
        if is_same { Ok(resolved) } else { Err(self.failed(ImageError::Changed { path: (&self.text).into() })) }
    }

    /// Returns why there is no base image.
    pub(crate) fn failed(&self, source: ImageError) -> BuildError {
        if source.is_cancelled() {
            return BuildError::Cancelled;
        }
        BuildError::Base { reference: self.text.clone(), source }
    }
}

/// Digests remembered in the store's index.
struct StoreDigests(Arc<Store>);

impl FileDigests for StoreDigests {
    fn blake3(&self, path: &Path) -> std::io::Result<[u8; 32]> {
        let version = |path: &Path| -> std::io::Result<FileVersion> { Ok(version_of(&rustix::fs::stat(path)?)) };
        let before = version(path)?;
        let known = self.0.known_digests(&[before]).map_err(std::io::Error::other)?;
        if let Some(Some(digest)) = known.first() {
            return Ok(*digest);
        }
        let now_ns = crate::manifest::now_ns();
        let digest = kiln_image::ForgetfulDigests.blake3(path)?;
        if version(path)? == before && crate::manifest::is_settled(&before, now_ns) {
            self.0.remember_digests(&[(before, digest)]).map_err(std::io::Error::other)?;
        }
        Ok(digest)
    }
}

/// What is kept in a base's description, to be read back when it is used or exported.
pub(crate) fn detail(base: &Base, config: &ImageConfig) -> serde_json::Value {
    let ImageConfig { env, architecture, os, variant, raw, history } = config;
    serde_json::json!({
        "from": base.text,
        "identity": base.identity,
        "env": env,
        "image": { "architecture": architecture, "os": os, "variant": variant, "config": raw, "history": history },
    })
}

/// Returns the environment that a base's description holds.
pub(crate) fn env(detail: &serde_json::Value) -> Result<Vec<(String, String)>, BuildError> {
    let env = detail.get("env").cloned().unwrap_or_default();
    serde_json::from_value(env).map_err(std::io::Error::from).at("read", "the description of the base image")
}
