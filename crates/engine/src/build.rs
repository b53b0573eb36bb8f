//! One build: stages side by side, each step found or made.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bstr::BString;
use kiln_store::{Description, Draft, Id, Lease, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::base;
use crate::engine::{Request, Shared};
use crate::error::{At, BuildError};
use crate::events::{Event, Events, StepInfo};
use crate::flight::{Claim, News, Outcome, Publisher, claim, read_between};
use crate::key;
use crate::limits::StepUsage;
use crate::manifest::Tree;
use crate::plan::{Action, Stage};

/// A build that runs.
pub(crate) struct Build {
    pub(crate) shared: Arc<Shared>,
    pub(crate) request: Request,
    pub(crate) source: Tree,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) cancel: CancellationToken,
    /// The result of each stage, once it is there.
    pub(crate) ends: Vec<watch::Receiver<Option<Arc<Snapshot>>>>,
    /// With `no_cache`: what the ids of the steps that this build makes anew have in common, and no other id has.
    pub(crate) renewal: Option<[u8; 32]>,
    /// What was said once.
    pub(crate) noticed: Mutex<HashSet<String>>,
}

impl Build {
    /// Tells something that is of no step, once.
    pub(crate) fn notice(&self, text: &str) {
        if self.noticed.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            self.events.event(Event::Notice(text.to_owned()));
        }
    }

    /// Runs one stage to its end.
    pub(crate) async fn stage(self: &Arc<Self>, stage: Stage, first: usize) -> Result<Arc<Snapshot>, Arc<BuildError>> {
        let name = stage.name.as_ref().map(BString::to_string);
        let info = |at: usize, text: String| Arc::new(StepInfo { number: first + at, stage: name.clone(), text });
        let import = info(0, format!("(from {})", stage.from));
        let steps: Vec<_> = stage.items.iter().enumerate().map(|(at, item)| info(1 + at, item.text.clone())).collect();
        let mut hashing = self.hash_ahead(&stage, &steps);
        let mut snapshot = self.import(&stage, import).await?;
        let image = base::config(&snapshot.meta().detail);
        let image_env = image.map_err(|source| BuildError::Description { id: *snapshot.id(), source })?;
        let image_env = image_env.unwrap_or_default().env;
        for (at, (item, step)) in stage.items.iter().zip(steps).enumerate() {
            snapshot = match &item.action {
                Action::Note => {
                    self.events.event(Event::Noted(step));
                    continue;
                }
                Action::Run { run, context } => self.run(step, run, context, &image_env, snapshot).await?,
                Action::Copy { copy, from_stage, context } => {
                    self.copy(step, copy, *from_stage, context, snapshot, hashing.remove(&at)).await?
                }
            };
        }
        // Builds that nothing is copied from have to succeed too.
        for needed in stage.needs() {
            self.end_of(needed).await?;
        }
        Ok(snapshot)
    }

    /// Waits for the result of another stage. If that fails, so does the build, and this is cancelled.
    pub(crate) async fn end_of(&self, stage: usize) -> Result<Arc<Snapshot>, BuildError> {
        let mut end = self.ends[stage].clone();
        let ended = tokio::select! {
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            ended = end.wait_for(Option::is_some) => ended.ok().and_then(|snapshot| snapshot.clone()),
        };
        match ended {
            Some(snapshot) => Ok(snapshot),
            // It failed; its error is on its way.
            None => {
                self.cancel.cancelled().await;
                Err(BuildError::Cancelled)
            }
        }
    }

    /// Finds or makes the step whose key has the digest `key`, and tells what happens. `make` is called with the lease if it is
    /// to be made here. `is_renewable`: whether `no_cache` counts for it.
    pub(crate) async fn step<F>(
        self: &Arc<Self>,
        step: Arc<StepInfo>,
        key: Id,
        is_renewable: bool,
        make: impl FnOnce(Arc<Shared>, Publisher, CancellationToken, Lease) -> F + Send + 'static,
    ) -> Result<Arc<Snapshot>, Arc<BuildError>>
    where
        F: Future<Output = Result<Snapshot, BuildError>> + Send + 'static,
    {
        let started = Instant::now();
        let shared = Arc::clone(&self.shared);
        // What is made anew is another result: the one before stays as it is, with all that stands on it, until it is pruned.
        // What comes to the same step again in this build comes to the same id.
        let id = match &self.renewal {
            Some(renewal) if is_renewable => key::renewed(&key, renewal),
            _ => key,
        };
        let found = match id == key && is_renewable {
            true => shared.last_of(&key)?,
            false => shared.store.lookup(&id).map_err(BuildError::from)?,
        };
        if let Some(snapshot) = found {
            return Ok(self.found(&step, Arc::new(snapshot))?);
        }
        let flight = self.shared.flights.join(id, |publisher, cancel| async move {
            let lease = match claim(&shared.store, &id, &publisher, &cancel).await? {
                Claim::Found(snapshot) => return Ok(Outcome::Found(snapshot)),
                Claim::Ours(lease) if id != key => lease.renewing(key),
                Claim::Ours(lease) => lease,
            };
            let _permit = tokio::select! {
                () = cancel.cancelled() => return Err(BuildError::Cancelled),
                permit = shared.jobs.acquire() => permit.expect("the semaphore is never closed"),
            };
            let started = Instant::now();
            let snapshot = make(Arc::clone(&shared), publisher, cancel, lease).await?;
            Ok(Outcome::Made(Arc::new(snapshot), started.elapsed()))
        });
        let mut has_told = false;
        let tell = |news| {
            let step = Arc::clone(&step);
            self.events.event(match news {
                News::Output(bytes) => {
                    has_told = true;
                    Event::Output(step, bytes)
                }
                News::Bytes(done, total) => Event::Progress(step, done, total),
                News::Holder(pid) => Event::Following(step, pid),
            });
        };
        let ended = tokio::select! {
            () = self.cancel.cancelled() => Err(Arc::new(BuildError::Cancelled)),
            ended = flight.follow(tell) => ended,
        };
        match ended {
            Ok(Outcome::Found(snapshot)) if !has_told => Ok(self.found(&step, snapshot)?),
            Ok(outcome) => {
                let snapshot = Arc::clone(outcome.snapshot());
                if let (Outcome::Made(..), Some(usage)) = (&outcome, StepUsage::of(snapshot.meta())) {
                    self.events.event(Event::Used(Arc::clone(&step), usage, None));
                }
                self.events.event(match outcome {
                    Outcome::Found(_) => Event::Cached(step, id),
                    Outcome::Made(_, took) => Event::Saved(step, id, took),
                });
                Ok(snapshot)
            }
            Err(error) => {
                if let BuildError::StepFailed { id, status, limit, usage, .. } = &*error {
                    self.events.event(Event::Used(Arc::clone(&step), **usage, *limit));
                    self.events.event(Event::Failed(step, *id, *status, started.elapsed()));
                }
                Err(error)
            }
        }
    }

    /// Tells of a step that was in the store: its log, then that it was.
    fn found(&self, step: &Arc<StepInfo>, snapshot: Arc<Snapshot>) -> Result<Arc<Snapshot>, BuildError> {
        let log = snapshot.log()?;
        let length = log.metadata().at("read", "the log")?.len();
        read_between(&log, 0, length, |bytes| self.events.event(Event::Output(Arc::clone(step), bytes)))?;
        self.events.event(Event::Cached(Arc::clone(step), *snapshot.id()));
        Ok(snapshot)
    }
}

/// The store's slow calls, where they hold up nobody: they clone, merge and delete whole trees.
impl Shared {
    /// Starts a draft: a copy of `parent`, or empty.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        lease: Lease,
        parent: Option<Arc<Snapshot>>,
    ) -> Result<Draft, BuildError> {
        let shared = Arc::clone(self);
        blocking(move || Ok(shared.store.begin(lease, parent)?)).await
    }

    /// Starts a draft for a command: a copy of `parent` that can take what steps may.
    pub(crate) async fn begin_limited(
        self: &Arc<Self>,
        lease: Lease,
        parent: Arc<Snapshot>,
    ) -> Result<Draft, BuildError> {
        let shared = Arc::clone(self);
        let quota = shared.settings.isolation.quota;
        blocking(move || Ok(shared.store.begin_limited(lease, Some(parent), &quota)?)).await
    }

    /// Commits the draft with its description, or discards it and returns why there is none.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        draft: Draft,
        description: Result<Description, BuildError>,
    ) -> Result<Snapshot, BuildError> {
        let shared = Arc::clone(self);
        blocking(move || match description {
            Ok(description) => Ok(shared.store.commit(draft, description)?),
            Err(error) => {
                if let Err(left) = shared.store.discard(draft) {
                    tracing::warn!(error = %left, "cannot discard a draft");
                }
                Err(error)
            }
        })
        .await
    }

    /// Keeps the log of a draft whose command failed, and discards the rest.
    pub(crate) async fn fail(self: &Arc<Self>, draft: Draft, description: Description) -> Result<(), BuildError> {
        let shared = Arc::clone(self);
        blocking(move || Ok(shared.store.fail(draft, description)?)).await
    }

    /// Returns the result that was made last of the step whose key has the digest `key`.
    fn last_of(&self, key: &Id) -> Result<Option<Snapshot>, BuildError> {
        for id in self.store.renewals(key)?.iter().chain([key]) {
            if let Some(snapshot) = self.store.lookup(id)? {
                return Ok(Some(snapshot));
            }
        }
        Ok(None)
    }
}

/// Runs something that blocks where it holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(BuildError::Bug(panic.to_string())))
}
