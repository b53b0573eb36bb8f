//! The jobs that no worker has been chosen for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
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
    /// The clients that have jobs here, by where the first of each line stands: of urgent jobs, and of others.
    heads: [BTreeMap<Turn, Row<Client>>; 2],
    /// The clients all of whose jobs wait for workers' caches, by where they stand.
    holders: BTreeSet<(Duration, Row<Client>)>,
    lengths: Lengths,
}

impl Backlog {
    /// Returns how many wait, in constant time.
    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// Returns the next one.
    pub(super) fn first(&self) -> Option<Turn> {
        self.firsts().next()
    }

    /// Returns the first urgent job, and the first of the others.
    fn firsts(&self) -> impl Iterator<Item = Turn> {
        self.heads.iter().filter_map(|heads| heads.first_key_value().map(|(turn, _)| *turn))
    }

    /// Returns the client that is furthest behind of those all of whose jobs wait for workers' caches.
    pub(super) fn first_holder(&self) -> Option<(Duration, Row<Client>)> {
        self.holders.first().copied()
    }

    /// Returns the least start time of all, urgent or not.
    fn least_start(&self) -> Option<Duration> {
        self.firsts().map(|turn| turn.start).min()
    }
}

impl Pool {
    /// Returns the fair time: the start time of what was taken last. If nobody waits, no share of before `now` can be used any
    /// more.
    pub(super) fn fair_now(&self, now: Duration) -> Duration {
        let somebody_waits = self.backlog.first().is_some() || !self.backlog.holders.is_empty();
        if somebody_waits { self.fair } else { self.fair.max(now) }
    }

    /// Changes a client's account or lines. All changes of these are made here.
    pub(super) fn change_client<T>(&mut self, row: Row<Client>, change: impl FnOnce(&mut Client) -> T) -> T {
        let client = self.clients.get_mut(row);
        let before = (client.heads(), client.only_holds());
        let result = change(client);
        let after = (client.heads(), client.only_holds());
        for ((heads, before), after) in self.backlog.heads.iter_mut().zip(before.0).zip(after.0) {
            if before != after {
                before.map(|turn| heads.remove(&turn));
                after.map(|turn| heads.insert(turn, row));
            }
        }
        if before.1 != after.1 {
            before.1.map(|next| self.backlog.holders.remove(&(next, row)));
            after.1.map(|next| self.backlog.holders.insert((next, row)));
        }
        result
    }

    /// Returns what a job will take, as far as that is known before it is known where.
    pub(super) fn expected(&self, id: JobId) -> Duration {
        self.jobs.get(id).and_then(|job| job.hint).map_or(COLD, |hint| self.hints.expected(hint))
    }

    /// Puts a job that is nowhere into its client's line: where it was, if it was there before.
    pub(super) fn add_to_backlog(&mut self, now: Duration, id: JobId) {
        self.is_ready = false;
        let cost = self.expected(id);
        let (Some(row), Some(job)) = (self.catch_up(now, id), self.jobs.get_mut(id)) else { return };
        job.place = Place::Backlog;
        let urgent = job.urgent;
        self.backlog.lengths.add(urgent);
        let charge = self.change_client(row, |client| {
            let charge = client.estimate(cost);
            client.queued = client.queued.saturating_add(charge.share);
            client.lines[usize::from(!urgent)].insert(id);
            charge
        });
        if let Some(job) = self.jobs.get_mut(id) {
            job.charge = charge;
        }
    }

    /// Takes a job out of its line, wherever it stands. It is nowhere then.
    pub(super) fn remove_from_backlog(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        let (urgent, share) = (job.urgent, job.charge.share);
        self.backlog.lengths.subtract(urgent);
        self.change_client(job.client, |client| client.leave_line(id, urgent, share));
    }

    /// Notes that a job that is nowhere, or in the backlog, is to wait for a worker's cache, where it is expected to take so
    /// long. It is charged when it starts: what waits has used nothing.
    pub(super) fn hold(&mut self, now: Duration, id: JobId, cost: Duration) {
        let (Some(row), Some(job)) = (self.catch_up(now, id), self.jobs.get(id)) else { return };
        let (urgent, share) = (job.urgent, job.charge.share);
        let leaves = matches!(job.place, Place::Backlog);
        if leaves {
            self.backlog.lengths.subtract(urgent);
        }
        // All at once: this is done for many jobs while one worker asks.
        let charge = self.change_client(row, |client| {
            if leaves {
                client.leave_line(id, urgent, share);
            }
            let charge = client.estimate(cost);
            client.held = client.held.saturating_add(charge.share);
            client.held_jobs.insert(id);
            charge
        });
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.charge = charge;
        // Counted from the first time: a worker that comes and goes would hold the job for ever.
        job.waits_since.get_or_insert(now);
    }

    /// Notes that a job waits for no worker's cache any more.
    pub(super) fn stop_holding(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        let share = job.charge.share;
        self.change_client(job.client, |client| {
            client.held = client.held.saturating_sub(share);
            client.held_jobs.remove(&id);
        });
    }

    /// Charges a job that goes to a worker, and takes it from where it waits.
    pub(super) fn charge(&mut self, now: Duration, id: JobId, cost: Duration) {
        let Some(row) = self.catch_up(now, id) else { return };
        match self.jobs.get(id).map(|job| &job.place) {
            Some(Place::Backlog) => self.remove_from_backlog(id),
            Some(Place::Assigned { .. }) => self.unassign(id),
            Some(Place::Absent { .. }) => self.stop_waiting_for_absent(id),
            _ => {}
        }
        let charge = self.change_client(row, |client| client.charge(cost));
        // An urgent job may start far ahead of its client's share: that is not to push those back who come later.
        let start = self.backlog.least_start().map_or(charge.start, |least| least.min(charge.start));
        self.fair = self.fair.max(start);
        if let Some(job) = self.jobs.get_mut(id) {
            job.charge = charge;
        }
    }

    /// Lets a job's client catch up with the fair time. Returns who that is.
    fn catch_up(&mut self, now: Duration, id: JobId) -> Option<Row<Client>> {
        self.fair = self.fair_now(now);
        let row = self.jobs.get(id)?.client;
        let fair_now = self.fair;
        if self.clients.get(row).waits_for_nothing() {
            self.change_client(row, |client| client.catch_up(fair_now));
        }
        Some(row)
    }

    /// Takes back what a job was charged for a worker that it does not use after all. It is nowhere then.
    pub(super) fn refund(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.place = Place::Nowhere;
        let (row, charge) = (job.client, job.charge);
        self.change_client(row, |client| client.refund(charge));
    }

    /// Returns the backlog's first jobs, the next one first, with the start times that they will have if nothing comes or
    /// ends before.
    pub(super) fn first_in_backlog(&self, most: usize) -> Vec<Turn> {
        let lines = self.backlog.heads.iter().flatten().map(|(turn, &row)| {
            let line = &self.clients.get(row).lines[usize::from(turn.patient)];
            line.iter().map(|&job| Turn { job, ..*turn })
        });
        self.first_in_lines(lines.collect(), most)
    }

    /// Returns the first jobs of these lines, of one client each, all of which begin at the client's turn.
    pub(super) fn first_in_lines(&self, mut lines: Vec<impl Iterator<Item = Turn>>, most: usize) -> Vec<Turn> {
        let mut heads: BinaryHeap<_> = BinaryHeap::new();
        for (index, line) in lines.iter_mut().enumerate() {
            heads.extend(line.next().map(|turn| Reverse((turn, index))));
        }
        let mut first = Vec::new();
        while first.len() < most
            && let Some(Reverse((turn, index))) = heads.pop()
        {
            first.push(turn);
            let share = self.jobs.get(turn.job).map_or(Duration::ZERO, |job| job.charge.share);
            let start = turn.start.saturating_add(share);
            heads.extend(lines[index].next().map(|next| Reverse((Turn { start, ..next }, index))));
        }
        first
    }
}
