//! What a pool does, seen through what it shows and wants.

mod bounds;
mod caches;
mod examples;
mod model;
mod shares;
mod withheld;

use std::time::Duration;

use bstr::BStr;

use super::{Effect, Gauges, JobId, Pool, Request, WorkerId};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn b(text: &str) -> &BStr {
    BStr::new(text)
}

/// Submits `client:hint`, which is urgent if it ends in `!`.
fn submit(pool: &mut Pool, now: u64, job: &str) -> JobId {
    let (job, urgent) = job.strip_suffix('!').map_or((job, false), |job| (job, true));
    let (client, hint) = job.split_once(':').expect("client:hint");
    pool.submit(at(now), b(client), Request { hint: b(hint), urgent })
}

/// Registers a worker that is active at once.
fn worker(pool: &mut Pool, now: u64, name: &str) -> WorkerId {
    let worker = pool.register(b(name), 1).expect("the name is free");
    pool.set_active(at(now), worker, true);
    worker
}

/// Returns which jobs were started since this was last asked, and where, and leaves other effects alone.
fn started(pool: &mut Pool) -> Vec<(WorkerId, JobId)> {
    let effects = pool.take_effects().into_iter();
    effects
        .filter_map(|effect| if let Effect::Start { worker, job } = effect { Some((worker, job)) } else { None })
        .collect()
}

/// Lets a worker ask for a job, and returns what it gets at once.
fn pop(pool: &mut Pool, now: u64, worker: WorkerId) -> Option<JobId> {
    let _ = pool.take_effects();
    pool.pop(at(now), worker);
    let started = started(pool);
    assert!(started.iter().all(|(on, _)| *on == worker) && started.len() <= 1, "{started:?}");
    started.first().map(|(_, job)| *job)
}

fn show(pool: &Pool, now: u64) -> String {
    pool.show(at(now)).to_string()
}

/// Checks that nothing is held, after every worker has left. Totals are not held.
fn assert_nothing_is_left(pool: &Pool) {
    let totals = pool.gauges();
    let empty = Gauges {
        submitted_total: totals.submitted_total,
        cancelled_total: totals.cancelled_total,
        accepted_total: totals.accepted_total,
        ..Gauges::default()
    };
    assert_eq!(totals, empty);
    assert_eq!(pool.client_jobs().count(), 0);
    assert_eq!(pool.worker_queues().count(), 0);
    pool.check();
}

impl Pool {
    /// Checks that all that is kept twice agrees.
    fn check(&self) {
        use std::collections::BTreeMap;

        use super::gauges::Lengths;
        use super::job::Place;

        let (mut backlog, mut assigned, mut running, mut withheld) = (Lengths::default(), Lengths::default(), 0, 0);
        let mut workloads: BTreeMap<WorkerId, Duration> = BTreeMap::new();
        for (id, job) in self.jobs.iter() {
            match job.place {
                Place::Backlog => {
                    backlog.add(job.urgent);
                    assert!(self.clients.get(job.client).lines[usize::from(!job.urgent)].contains(&id));
                }
                Place::Assigned { worker, until } => {
                    assigned.add(job.urgent);
                    *workloads.entry(worker).or_default() += job.charge.cost;
                    assert!(
                        self.workers.get(worker).is_some_and(|worker| worker.queue.iter().any(|other| other == id))
                    );
                    assert!(self.overdue.contains(&(until, id)) && job.waits_since.is_some());
                }
                Place::Absent { machine, until } => {
                    assigned.add(job.urgent);
                    let machine = self.machines.get(machine);
                    assert!(machine.waited_for.contains(&id) && self.absent.contains(&(until, id)));
                    let worker = machine.worker.and_then(|worker| self.workers.get(worker));
                    assert!(worker.is_none_or(|worker| !worker.pauses.is_active()));
                }
                Place::Running { worker, .. } => {
                    running += 1;
                    assert!(self.workers.get(worker).is_some_and(|worker| worker.running.contains(&id)));
                }
                Place::Lost(_) => running += 1,
                Place::Withheld => withheld += 1,
                Place::Nowhere => panic!("{id} is nowhere"),
            }
        }
        let in_lines = self.first_in_backlog(usize::MAX);
        assert_eq!(in_lines.len(), backlog.high + backlog.low, "somebody is in a line who is not in the backlog");
        for (_, row, client) in self.clients.iter() {
            let theirs = in_lines.iter().filter_map(|turn| self.jobs.get(turn.job)).filter(|job| job.client == row);
            assert_eq!(client.queued, theirs.map(|job| job.charge.share).sum::<Duration>());
            let held = self.jobs.iter().map(|(_, job)| job).filter(|job| job.client == row);
            let held = held.filter(|job| matches!(job.place, Place::Assigned { .. } | Place::Absent { .. }));
            assert_eq!(client.held, held.map(|job| job.charge.share).sum::<Duration>());
        }
        let gauges = self.gauges();
        assert_eq!(
            (gauges.backlog, gauges.assigned, gauges.running, gauges.withheld),
            (backlog, assigned, running, withheld)
        );
        assert_eq!(self.overdue.len() + self.absent.len(), assigned.high + assigned.low);
        let is_left = self.backlog.first().is_some() || !self.absent.is_empty();
        assert!(self.ready.is_empty() || !is_left, "somebody waits while there is work");
        let gone = self.machines.iter().filter(|(_, _, machine)| machine.worker.is_none());
        assert_eq!(gone.filter(|(_, _, machine)| machine.offer.is_some()).count(), 0);
        let mut ready = 0;
        for (id, worker) in self.workers.iter() {
            assert_eq!(worker.workload, workloads.get(&id).copied().unwrap_or_default());
            let machine = self.machines.get(worker.machine);
            assert_eq!((machine.worker, machine.offer), (Some(id), worker.offer()));
            assert!(worker.ready.iter().all(|place| self.ready.get(place) == Some(&id)));
            let active = worker.pauses.is_active();
            assert_eq!(worker.ready.len(), if active { worker.waiting } else { 0 });
            assert!(worker.queue.len() == 0 || (active && worker.waiting == 0), "it could run what it has");
            ready += worker.ready.len();
        }
        assert_eq!((ready, self.workers.iter().count()), (self.ready.len(), gauges.connected));
        assert_eq!(self.workers.iter().filter(|(_, worker)| !worker.pauses.is_active()).count(), gauges.paused);
        //|worker| !worker.pauses.is_active()).count(), gauges.paused);
        assert_eq!(self.workers.iter().map(|(_, worker)| u64::from(worker.capacity)).sum::<u64>(), gauges.capacity);
        let clients = self.client_jobs().fold(0, |sum, (_, jobs)| sum + jobs.high + jobs.low);
        assert_eq!(clients, self.jobs.iter().count());
    }
}
