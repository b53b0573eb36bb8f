//! What happened.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use bstr::BString;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;

/// How many errors are told.
const TOLD: usize = 20;

/// What happened, so far.
#[derive(Default)]
pub(crate) struct Tally {
    /// Jobs that have not ended.
    open: RefCell<HashMap<usize, Open>>,
    pub(crate) submitted: Cell<usize>,
    pub(crate) ended: Cell<usize>,
    /// How often a job was begun again.
    pub(crate) again: Cell<usize>,
    /// How many things went wrong.
    pub(crate) errors: Cell<usize>,
    /// The first of them.
    pub(crate) first_errors: RefCell<Vec<String>>,
    /// From when a job was due until it was sent, which is the clients' own delay.
    pub(crate) lateness: Times,
    /// From when it was due until a worker had it, the first time.
    pub(crate) arrival: Times,
    /// From when it was due until its client had all of its log, and its result.
    pub(crate) end: Times,
    registered: watch::Sender<usize>,
    /// When the number of registered workers began to be less than all.
    missing_since: Cell<Option<Instant>>,
    /// How long it took until all were registered, the first time and then after each loss.
    pub(crate) complete_after: RefCell<Vec<Duration>>,
}

/// A job that has not ended.
struct Open {
    due: Instant,
    /// The last worker that began it.
    worker: Option<BString>,
    runs: usize,
}

/// Durations, in µs.
#[derive(Default)]
pub(crate) struct Times(RefCell<Vec<u32>>);

impl Times {
    fn add(&self, time: Duration) {
        self.0.borrow_mut().push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn all(&self) -> Ref<'_, Vec<u32>> {
        self.0.borrow()
    }
}

impl Tally {
    /// Notes that a job is submitted now that was due then.
    pub(crate) fn submits(&self, job: usize, due: Instant) {
        self.lateness.add(due.elapsed());
        self.submitted.set(self.submitted.get() + 1);
        self.open.borrow_mut().insert(job, Open { due, worker: None, runs: 0 });
    }

    /// Notes that a worker begins a job.
    pub(crate) fn begins(&self, job: usize, worker: &BString) {
        match self.open.borrow_mut().get_mut(&job) {
            Some(open) => {
                open.runs += 1;
                open.worker = Some(worker.clone());
                match open.runs {
                    1 => self.arrival.add(open.due.elapsed()),
                    _ => self.again.set(self.again.get() + 1),
                }
            }
            None => self.wrong(format!("job {job} is begun on {worker}, and nobody waits for it")),
        }
    }

    /// Notes that a client has a job's end. Returns the worker that did it, and how many began it.
    pub(crate) fn ends(&self, job: usize) -> (Option<BString>, usize) {
        let Some(open) = self.open.borrow_mut().remove(&job) else { return (None, 0) };
        self.end.add(open.due.elapsed());
        self.ended.set(self.ended.get() + 1);
        (open.worker, open.runs)
    }

    /// Notes that something went wrong.
    pub(crate) fn wrong(&self, what: String) {
        self.errors.set(self.errors.get() + 1);
        let mut errors = self.first_errors.borrow_mut();
        if errors.len() < TOLD {
            errors.push(what);
        }
    }

    /// Notes if a task of ours failed.
    pub(crate) fn unless_a_bug(&self, ended: Result<(), JoinError>) {
        if let Err(bug) = ended {
            self.wrong(format!("a bug: {bug}"));
        }
    }

    /// Notes that a worker is part of its pool.
    pub(crate) fn comes(&self) {
        self.registered.send_modify(|registered| *registered += 1);
    }

    /// Notes that it no longer is.
    pub(crate) fn goes(&self) {
        if self.missing_since.get().is_none() {
            self.missing_since.set(Some(Instant::now()));
        }
        self.registered.send_modify(|registered| *registered -= 1);
    }

    pub(crate) fn registered(&self) -> usize {
        *self.registered.borrow()
    }

    /// Waits until so many workers are registered, and goes on noting when they are again, while this is the same `tally`.
    pub(crate) async fn until_registered(&self, all: usize) {
        self.missing_since.set(Some(self.missing_since.get().unwrap_or_else(Instant::now)));
        // It is our own sender.
        let _ = self.registered.subscribe().wait_for(|registered| *registered == all).await;
        if let Some(since) = self.missing_since.take() {
            self.complete_after.borrow_mut().push(since.elapsed());
        }
    }

    /// Waits until a worker is lost.
    pub(crate) async fn until_missing(&self, all: usize) {
        let _ = self.registered.subscribe().wait_for(|registered| *registered < all).await;
    }
}
