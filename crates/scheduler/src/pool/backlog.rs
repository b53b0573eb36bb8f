//! The jobs that no worker has been chosen for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::effect::JobId;
use super::fair::Client;
use super::gauges::Lengths;
use super::hints::COLD;
use super::job::{Place, Pool};
use super::names::Row;
use super::queue::Turn;

/// Who is next. Each client has its own lines, and is charged for a job when it leaves them: not before it is known who does it,
/// and what that costs.
#[derive(Default)]
pub(super) struct Backlog {
    /// The clients that have jobs here, by where the first of each line stands.
    heads: BTreeMap<Turn, Row<Client>>,
    lengths: Lengths,
}

impl Backlog {
    /// Returns how many wait, in constant time.
    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// Returns the next one.
    pub(super) fn first(&self) -> Option<Turn> {
        self.heads.first_key_value().map(|(turn, _)| *turn)
    }

    /// Returns the least start time of all, urgent or not.
    fn least_start(&self) -> Option<Duration> {
        let patient = Turn { patient: true, start: Duration::ZERO, job: JobId(0) };
        let first = [self.heads.first_key_value(), self.heads.range(patient..).next()];
        first.into_iter().flatten().map(|(turn, _)| turn.start).min()
    }
}

impl Pool {
    /// Returns the fair time: the start time of what was taken last. If nobody waits, no share of before `now` can be used any
    /// more.
    pub(super) fn fair_now(&self, now: Duration) -> Duration {
        if self.backlog.heads.is_empty() { self.fair.max(now) } else { self.fair }
    }

    /// Changes a client's account or lines. All changes of these are made here.
    pub(super) fn change_client<T>(&mut self, row: Row<Client>, change: impl FnOnce(&mut Client) -> T) -> T {
        let client = self.clients.get_mut(row);
        client.heads().for_each(|turn| _ = self.backlog.heads.remove(&turn));
        let result = change(client);
        client.heads().for_each(|turn| _ = self.backlog.heads.insert(turn, row));
        result
    }

    /// Returns what a job will take, as far as that is known before it is known where.
    pub(super) fn expected(&self, id: JobId) -> Duration {
        self.jobs.get(&id).and_then(|job| job.hint).map_or(COLD, |hint| self.hints.expected(hint))
    }

    /// Puts a job that is nowhere into its client's line: where it was, if it was there before.
    pub(super) fn add_to_backlog(&mut self, now: Duration, id: JobId) {
        self.is_ready = false;
        self.fair = self.fair_now(now);
        let fair_now = self.fair;
        let cost = self.expected(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.place = Place::Backlog;
        let (row, urgent) = (job.client, job.urgent);
        self.backlog.lengths.add(urgent);
        let charge = self.change_client(row, |client| {
            if client.waits_for_nothing() {
                client.catch_up(fair_now);
            }
            let charge = client.estimate(cost);
            client.queued = client.queued.saturating_add(charge.share);
            client.lines[usize::from(!urgent)].insert(id);
            charge
        });
        if let Some(job) = self.jobs.get_mut(&id) {
            job.charge = charge;
        }
    }

    /// Takes a job out of its line, wherever it stands. It is nowhere then.
    pub(super) fn remove_from_backlog(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (urgent, share) = (job.urgent, job.charge.share);
        self.backlog.lengths.subtract(urgent);
        self.change_client(job.client, |client| {
            client.lines[usize::from(!urgent)].remove(&id);
            client.queued = client.queued.saturating_sub(share);
        });
    }

    /// Charges a job that goes to a worker, and takes it out of its line if it is in it.
    pub(super) fn charge(&mut self, now: Duration, id: JobId, cost: Duration) {
        self.fair = self.fair_now(now);
        let fair_now = self.fair;
        let Some(job) = self.jobs.get(&id) else { return };
        let (urgent, estimate) = (job.urgent, job.charge.share);
        let (charge, waited) = self.change_client(job.client, |client| {
            let waited = client.lines[usize::from(!urgent)].remove(&id);
            if waited {
                client.queued = client.queued.saturating_sub(estimate);
            } else if client.waits_for_nothing() {
                client.catch_up(fair_now);
            }
            (client.charge(cost), waited)
        });
        if waited {
            self.backlog.lengths.subtract(urgent);
        }
        // An urgent job may start far ahead of its client's share: that is not to push those back who come later.
        let start = self.backlog.least_start().map_or(charge.start, |least| least.min(charge.start));
        self.fair = self.fair.max(start);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.charge = charge;
        }
    }

    /// Takes back what a job was charged for a worker that it does not use after all. It is nowhere then.
    pub(super) fn refund(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.place = Place::Nowhere;
        let (row, charge) = (job.client, job.charge);
        self.change_client(row, |client| client.refund(charge));
    }

    /// Returns the backlog's first jobs, the next one first, with the start times that they will have if nothing comes or
    /// ends before.
    pub(super) fn first_in_backlog(&self, most: usize) -> Vec<Turn> {
        let clients = self.backlog.heads.iter().map(|(turn, row)| (*turn, self.clients.get(*row)));
        let (turns, clients): (Vec<Turn>, Vec<&Client>) = clients.unzip();
        let mut lines: Vec<_> =
            turns.iter().zip(&clients).map(|(turn, client)| client.lines[usize::from(turn.patient)].iter()).collect();
        lines.iter_mut().for_each(|line| _ = line.next());
        let mut heads: BinaryHeap<_> = turns.into_iter().zip(0..).map(Reverse).collect();
        let mut first = Vec::new();
        while first.len() < most
            && let Some(Reverse((turn, index))) = heads.pop()
        {
            first.push(turn);
            let share = self.jobs.get(&turn.job).map_or(Duration::ZERO, |job| job.charge.share);
            if let Some(&job) = lines[index].next() {
                heads.push(Reverse((Turn { start: turn.start.saturating_add(share), job, ..turn }, index)));
            }
        }
        first
    }
}
