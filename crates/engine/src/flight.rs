//! Steps in the air: one maker a step, any number of followers.
//!
//! Builds of this process that want the same step share one [`Flight`]; when the last of them leaves, it is cancelled.
//! Between processes the store's lease decides who makes it; the others follow its log.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use kiln_store::{Id, Lease, LogFollower, Snapshot, Store};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::{At, BuildError};

/// How a step came to be in the store.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It was there, or another process made it.
    Found(Arc<Snapshot>),
    /// It was made now, in so long.
    Made(Arc<Snapshot>, Duration),
}

impl Outcome {
    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        match self {
            Self::Found(snapshot) | Self::Made(snapshot, _) => snapshot,
        }
    }
}

/// What followers see of a flight.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The log that is being written, and how much of it is there.
    log: Option<(Arc<File>, u64)>,
    /// Another process makes it: this one.
    holder: Option<u32>,
    /// Bytes done and in all, of a base image.
    bytes: Option<(u64, u64)>,
    end: Option<Result<Outcome, Arc<BuildError>>>,
}

/// Tells followers what happens. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Publisher(Arc<watch::Sender<Progress>>);

impl Publisher {
    /// The log is this file now, and so long.
    pub(crate) fn log(&self, log: &Arc<File>, length: u64) {
        self.0.send_modify(|progress| progress.log = Some((Arc::clone(log), length)));
    }

    /// So many bytes of so many have arrived.
    pub(crate) fn bytes(&self, done: u64, total: u64) {
        self.0.send_modify(|progress| progress.bytes = Some((done, total)));
    }

    fn holder(&self, pid: Option<u32>) {
        self.0.send_modify(|progress| progress.holder = pid);
    }
}

/// A step being made or waited for. The last one to drop it cancels it.
#[derive(Debug)]
pub(crate) struct Flight {
    progress: watch::Receiver<Progress>,
    _cancel: DropGuard,
}

/// What a follower is told, in order.
#[derive(Debug)]
pub(crate) enum News {
    Output(Vec<u8>),
    Bytes(u64, u64),
    Holder(Option<u32>),
}

impl Flight {
    /// Follows the flight to its end. The whole log is told, however late one joins; if another process takes over, from
    /// its beginning again.
    pub(crate) async fn follow(&self, mut tell: impl FnMut(News)) -> Result<Outcome, Arc<BuildError>> {
        let mut progress = self.progress.clone();
        let mut seen: Option<(Arc<File>, u64)> = None;
        let (mut seen_holder, mut seen_bytes) = (None, None);
        loop {
            let now = progress.borrow_and_update().clone();
            if now.holder != seen_holder {
                seen_holder = now.holder;
                tell(News::Holder(now.holder));
            }
            if let Some((done, total)) = now.bytes.filter(|bytes| Some(*bytes) != seen_bytes) {
                seen_bytes = now.bytes;
                tell(News::Bytes(done, total));
            }
            if let Some((log, length)) = now.log {
                let from = seen.as_ref().filter(|(known, _)| Arc::ptr_eq(known, &log)).map_or(0, |(_, offset)| *offset);
                let offset = read_between(&log, from, length, |bytes| tell(News::Output(bytes))).map_err(Arc::new)?;
                seen = Some((log, offset));
            }
            if let Some(end) = now.end {
                return end;
            }
            if progress.changed().await.is_err() {
                return Err(Arc::new(BuildError::Bug("a step ended without a word".to_owned())));
            }
        }
    }
}

/// Tells what a log holds from `from` to `to`, in pieces. Returns how far it got.
pub(crate) fn read_between(log: &File, from: u64, to: u64, mut tell: impl FnMut(Vec<u8>)) -> Result<u64, BuildError> {
    let mut offset = from;
    while offset < to {
        let size = usize::try_from(to - offset).unwrap_or(usize::MAX).min(64 << 10);
        let mut buffer = vec![0; size];
        let length = log.read_at(&mut buffer, offset).at("read", "the log")?;
        if length == 0 {
            break;
        }
        buffer.truncate(length);
        offset += length as u64;
        tell(buffer);
    }
    Ok(offset)
}

/// All flights of an engine.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    by_id: Mutex<HashMap<Id, Weak<Flight>>>,
    /// Flights go on after their last follower left, until they have cleaned up.
    pub(crate) tasks: TaskTracker,
}

impl Flights {
    /// Joins the flight of `id`, or starts it with the task that `make` returns.
    pub(crate) fn join<F>(&self, id: Id, make: impl FnOnce(Publisher, CancellationToken) -> F) -> Arc<Flight>
    where
        F: Future<Output = Result<Outcome, BuildError>> + Send + 'static,
    {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let running = by_id.get(&id).and_then(Weak::upgrade);
        if let Some(flight) = running.filter(|flight| flight.progress.borrow().end.is_none()) {
            return flight;
        }
        by_id.retain(|_, flight| flight.strong_count() > 0);
        let cancel = CancellationToken::new();
        let (sender, progress) = watch::channel(Progress::default());
        let publisher = Publisher(Arc::new(sender));
        let task = make(publisher.clone(), cancel.clone());
        self.tasks.spawn(async move {
            let end = task.await.map_err(Arc::new);
            publisher.0.send_modify(|progress| progress.end = Some(end));
        });
        let flight = Arc::new(Flight { progress, _cancel: cancel.drop_guard() });
        by_id.insert(id, Arc::downgrade(&flight));
        flight
    }
}

/// What looking for a step in the store came to.
pub(crate) enum Claim {
    /// It is there.
    Found(Arc<Snapshot>),
    /// It is ours to make.
    Ours(Lease),
}

/// Finds `id` in the store, or waits until it is there or ours to make. While another process makes it, its
/// log is published.
pub(crate) async fn claim(
    store: &Store,
    id: &Id,
    publisher: &Publisher,
    cancel: &CancellationToken,
) -> Result<Claim, BuildError> {
    let look = || -> Result<Option<Claim>, BuildError> {
        if let Some(snapshot) = store.lookup(id)? {
            return Ok(Some(Claim::Found(Arc::new(snapshot))));
        }
        let Some(lease) = store.lease(id)? else { return Ok(None) };
        // Committed between our look and our lease?
        Ok(Some(match store.lookup(id)? {
            Some(snapshot) => Claim::Found(Arc::new(snapshot)),
            None => Claim::Ours(lease),
        }))
    };
    if let Some(claim) = look()? {
        return Ok(claim);
    }
    let mut follower = store.follow(id)?;
    // To wait on any descriptor, tokio has only `AsyncFd`, which is unsafe to make. Its pipes take any descriptor too, and
    // all that is asked of this one is to be readable.
    let wake = follower.as_fd().try_clone_to_owned().at("watch", store.path())?;
    let wake = pipe::Receiver::from_owned_fd_unchecked(wake).at("watch", store.path())?;
    loop {
        // Looked at after the watch was set, and before the log: what was written before the end is seen.
        let claim = look()?;
        publisher.holder(if claim.is_none() { store.holder(id) } else { None });
        if let Some((log, length)) = follower.look()? {
            publisher.log(&log, length);
        }
        if let Some(claim) = claim {
            return Ok(claim);
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(BuildError::Cancelled),
            ready = wake.readable() => ready.at("watch", store.path())?,
            () = tokio::time::sleep(LogFollower::PATIENCE) => {}
        }
        while matches!(wake.try_read(&mut [0; 4096]), Ok(1..)) {}
    }
}
