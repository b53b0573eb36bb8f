//! Jobs in the order in which they are to run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::effect::JobId;
use super::fair::Client;
use super::gauges::Lengths;
use super::names::{Names, Row};

/// Where a job stands in a queue. The least is next: urgent ones first, then by fair start time; of two with the same,
/// the one submitted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Not urgent. (`false` is less than `true`.)
    pub(super) patient: bool,
    pub(super) start: Duration,
    pub(super) job: JobId,
}

/// How many jobs a worker's queue takes: what it is asked for has to be found among that many.
pub(super) const QUEUE: usize = 250;

impl Turn {
    /// Tells whether this one is to run before the other, or they are of clients who stand where they stand.
    pub(super) fn is_due_with(self, other: Turn) -> bool {
        (self.patient, self.start) <= (other.patient, other.start)
    }
}

/// The jobs assigned to a worker: by client, since it is the client's turn that moves.
#[derive(Default)]
pub(super) struct Queue {
    /// Client, not urgent, job; sorted. At most [`QUEUE`], which are moved sooner than found elsewhere.
    jobs: Vec<(Row<Client>, bool, JobId)>,
    lengths: Lengths,
}

impl Queue {
    pub(super) fn insert(&mut self, client: Row<Client>, patient: bool, job: JobId) {
        if let Err(index) = self.jobs.binary_search(&(client, patient, job)) {
            self.jobs.insert(index, (client, patient, job));
            self.lengths.add(!patient);
        }
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, client: Row<Client>, patient: bool, job: JobId) {
        if let Ok(index) = self.jobs.binary_search(&(client, patient, job)) {
            self.jobs.remove(index);
            self.lengths.subtract(!patient);
        }
    }

    /// Returns the next one, with where its client stands. It takes as long as there are clients.
    pub(super) fn first(&self, clients: &Names<Client>) -> Option<Turn> {
        self.firsts().map(|(client, patient, job)| Turn { patient, start: clients.get(client).next, job }).min()
    }

    /// Returns the first job of each client.
    fn firsts(&self) -> impl Iterator<Item = (Row<Client>, bool, JobId)> {
        let mut last = None;
        self.jobs.iter().copied().filter(move |&(client, ..)| last.replace(client) != Some(client))
    }

    /// Returns how many wait, in constant time.
    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Returns them, by client.
    pub(super) fn iter(&self) -> impl Iterator<Item = JobId> {
        self.jobs.iter().map(|(.., job)| *job)
    }

    /// Returns the lines of each client, of urgent jobs and of others, which begin at the client's turn.
    pub(super) fn lines(&self, clients: &Names<Client>) -> Vec<impl Iterator<Item = Turn>> {
        let mut lines: BTreeMap<(Row<Client>, bool), Vec<Turn>> = BTreeMap::new();
        for &(client, patient, job) in &self.jobs {
            let start = clients.get(client).next;
            lines.entry((client, patient)).or_default().push(Turn { patient, start, job });
        }
        lines.into_values().map(Vec::into_iter).collect()
    }
}
