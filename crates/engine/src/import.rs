//! Importing a base image: one result for each layer, which images share, and an empty one on top, which is the base.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::{Layer, Layers, Progress, Resolved};
use kiln_store::{Description, Draft, Id, Lease, Root, Snapshot};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::base::{self, Base};
use crate::engine::Shared;
use crate::error::{At, BuildError};
use crate::flight::{Claim, Publisher, claim};
use crate::key::StepKey;

/// An import that runs, under the lease of its base.
pub(crate) struct Import {
    pub(crate) shared: Arc<Shared>,
    pub(crate) base: Arc<Base>,
    pub(crate) publisher: Publisher,
    pub(crate) cancel: CancellationToken,
}

impl Import {
    /// Makes the base, and what it lacks of its layers. `text` is the step. Layers that were finished before a failure stay.
    pub(crate) async fn run(self, lease: Lease, text: String) -> Result<Snapshot, BuildError> {
        let Shared { store, fetcher, .. } = &*self.shared;
        let resolved = tokio::select! {
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            resolved = self.base.resolved(store, &**fetcher) => resolved?,
        };
        let description = Description { summary: text, detail: base::detail(&self.base, &resolved.config) };
        let told = Arc::new(Told { publisher: self.publisher.clone(), log: Mutex::default() });
        if resolved.layers.is_empty() {
            let draft = self.shared.begin(lease, None).await?;
            told.write_to(draft.log());
            let made = async {
                let mut tree = self.fetch(&resolved, 0, &told).await?;
                self.unpack(&mut *tree, &draft).await
            };
            let description = made.await.map(|()| description);
            return self.shared.finish(draft, description).await;
        }
        let top = self.layers(&resolved, &told).await?;
        let draft = self.shared.begin(lease, Some(top)).await?;
        told.write_to(draft.log());
        self.shared.finish(draft, Ok(description)).await
    }

    /// Finds or makes all layers. Returns the topmost.
    async fn layers(&self, resolved: &Resolved, told: &Arc<Told>) -> Result<Arc<Snapshot>, BuildError> {
        let layers = &resolved.layers;
        let (mut below, leases) = self.claim(layers).await?;
        let from = layers.len() - leases.len();
        if let (Some(top), true) = (&below, leases.is_empty()) {
            return Ok(Arc::clone(top));
        }
        let mut fetched = self.fetch(resolved, from, told).await?;
        for (layer, lease) in layers[from..].iter().zip(leases) {
            let draft = self.shared.begin(lease, below).await?;
            let unpacked = self.unpack(&mut *fetched, &draft).await;
            let description = unpacked.map(|()| describe(layer));
            below = Some(Arc::new(self.shared.finish(draft, description).await?));
        }
        below.ok_or_else(|| BuildError::Bug("an image has neither layers nor none".to_owned()))
    }

    /// Finds the topmost layer that is there, and takes the leases of all above it.
    ///
    /// All imports take them from the bottom up, after that of their base, which is one of no layer. So whoever waits for a
    /// layer waits for somebody who waits for none but higher ones, and no ring of them can close. In one process, each of
    /// them has its permit to run already.
    async fn claim(&self, layers: &[Layer]) -> Result<(Option<Arc<Snapshot>>, Vec<Lease>), BuildError> {
        let store = &self.shared.store;
        let ids: Vec<Id> = layers.iter().map(|layer| StepKey::Layer { chain: &layer.chain.to_string() }.id()).collect();
        let (mut below, mut from) = (None, 0);
        for (at, id) in ids.iter().enumerate().rev() {
            if let Some(snapshot) = store.lookup(id)? {
                (below, from) = (Some(Arc::new(snapshot)), at + 1);
                break;
            }
        }
        let mut leases = Vec::new();
        for id in &ids[from..] {
            match claim(store, id, &self.publisher, &self.cancel).await? {
                Claim::Ours(lease) => leases.push(lease),
                // Made by another since we looked, and with it all below.
                Claim::Found(snapshot) => {
                    leases.clear();
                    below = Some(snapshot);
                }
            }
        }
        Ok((below, leases))
    }

    async fn fetch(&self, resolved: &Resolved, from: usize, told: &Arc<Told>) -> Result<Box<dyn Layers>, BuildError> {
        let Shared { store, fetcher, .. } = &*self.shared;
        let progress: Arc<dyn Progress> = Arc::clone(told) as _;
        let fetched = fetcher.fetch(resolved, from, &store.scratch_dir(), progress, &self.cancel).await;
        fetched.map_err(|source| self.base.failed(source))
    }

    /// Unpacks the next layer into `draft`.
    async fn unpack(&self, layers: &mut dyn Layers, draft: &Draft) -> Result<(), BuildError> {
        let mount;
        let into = match draft.root() {
            // Other programs can find it too: `mmdebstrap` mounts in there.
            Root::Dir(path) => path.clone(),
            root => {
                mount = root.mount().at("mount", self.shared.store.path())?;
                PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
            }
        };
        layers.next(&into).await.map_err(|source| self.base.failed(source))
    }
}

fn describe(layer: &Layer) -> Description {
    let digest = layer.digest();
    let detail = json!({
        "chain": layer.chain.to_string(),
        "diff": layer.diff.to_string(),
        "digest": layer.stored.map(|stored| stored.to_string()),
        "size": layer.bytes,
    });
    Description { summary: format!("(layer sha256:{})", &digest.hex()[..12]), detail }
}

/// Lines of a fetch go into the step's log.
struct Told {
    publisher: Publisher,
    log: Mutex<Log>,
}

/// Where the lines go. An image's layers are told of before its base has a log: they wait.
#[derive(Default)]
struct Log {
    file: Option<Arc<std::fs::File>>,
    length: u64,
    waiting: String,
}

impl Told {
    /// Writes all lines to this log, those that wait first.
    fn write_to(&self, file: &Arc<std::fs::File>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.file = Some(Arc::clone(file));
        self.write(&mut log);
    }

    fn write(&self, log: &mut Log) {
        let Some(file) = &log.file else { return };
        // A full disk fails the fetch itself.
        if (&**file).write_all(log.waiting.as_bytes()).is_ok() {
            log.length += log.waiting.len() as u64;
            self.publisher.log(file, log.length);
        }
        log.waiting.clear();
    }
}

impl Progress for Told {
    fn bytes(&self, done: u64, total: u64) {
        self.publisher.bytes(done, total);
    }

    fn line(&self, text: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.waiting.push_str(text);
        log.waiting.push('\n');
        self.write(&mut log);
    }
}
