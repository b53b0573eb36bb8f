//! Importing a base image.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::{Fetcher, FileDigests, ImageConfig, Progress, Reference, Resolved};
use kiln_store::{Draft, FileVersion, Root, Store};
use tokio_util::sync::CancellationToken;

use crate::error::{At, BuildError};
use crate::flight::Publisher;
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
    /// Finds out what `text` stands for. A reference whose content cannot be known without making it is what it was last
    /// time, unless `pull` or unless that result is gone.
    pub(crate) async fn resolve(
        text: &[u8],
        relative_to: &Path,
        store: &Arc<Store>,
        fetcher: &dyn Fetcher,
        pull: bool,
    ) -> Result<Self, BuildError> {
        let reference = Reference::parse(text, relative_to)?;
        let text = String::from_utf8_lossy(text).into_owned();
        let question = format!("from {text}");
        // Only references that are not pinned are ever remembered.
        let may_be_remembered = matches!(reference, Reference::Debootstrap { .. } | Reference::Registry(_));
        if may_be_remembered
            && !pull
            && let Some(identity) = store.recall(&question)?
            && store.lookup(&StepKey::Base { identity: &identity }.id())?.is_some()
        {
            return Ok(Self { text, reference, identity, resolved: None });
        }
        let digests = Arc::new(StoreDigests(Arc::clone(store)));
        let resolved = fetcher.resolve(&reference, digests).await;
        let resolved = resolved.map_err(|source| BuildError::Base { reference: text.clone(), source })?;
        if !resolved.pinned {
            store.remember(&question, &resolved.identity)?;
        }
        Ok(Self { text, reference, identity: resolved.identity.clone(), resolved: Some(resolved) })
    }

    /// Fetches the image into the draft.
    pub(crate) async fn fetch(
        &self,
        store: &Arc<Store>,
        fetcher: &dyn Fetcher,
        draft: &Draft,
        publisher: &Publisher,
        cancel: &CancellationToken,
    ) -> Result<ImageConfig, BuildError> {
        let failed = |source| BuildError::Base { reference: self.text.clone(), source };
        let resolved = match &self.resolved {
            Some(resolved) => resolved.clone(),
            // It was there when we looked, and was pruned since.
            None => {
                let digests = Arc::new(StoreDigests(Arc::clone(store)));
                fetcher.resolve(&self.reference, digests).await.map_err(failed)?
            }
        };
        let Root::Dir(into) = draft.root() else {
            return Err(BuildError::Bug("an empty tree is not a plain directory".to_owned()));
        };
        let log = Arc::clone(draft.log());
        let told = Arc::new(Told { publisher: publisher.clone(), log, length: Mutex::new(0) });
        let fetched = fetcher.fetch(&resolved, into, told, cancel).await;
        fetched.map_err(|source| if source.is_cancelled() { BuildError::Cancelled } else { failed(source) })
    }
}

/// Lines of a fetch go into the step's log.
struct Told {
    publisher: Publisher,
    log: Arc<std::fs::File>,
    length: Mutex<u64>,
}

impl Progress for Told {
    fn bytes(&self, done: u64, total: u64) {
        self.publisher.bytes(done, total);
    }

    fn line(&self, text: &str) {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{text}\n");
        // A full disk fails the fetch itself.
        if (&*self.log).write_all(line.as_bytes()).is_ok() {
            *length += line.len() as u64;
            self.publisher.log(&self.log, *length);
        }
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

/// What is kept in a base's description, to be read back when it is used.
pub(crate) fn detail(base: &Base, config: &ImageConfig) -> serde_json::Value {
    serde_json::json!({ "from": base.text, "identity": base.identity, "env": config.env })
}

/// Returns the environment that a base's description holds.
pub(crate) fn env(detail: &serde_json::Value) -> Result<Vec<(String, String)>, BuildError> {
    let env = detail.get("env").cloned().unwrap_or_default();
    serde_json::from_value(env).map_err(std::io::Error::from).at("read", "the description of the base image")
}
