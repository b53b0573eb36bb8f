//! How a simulation went.

use std::time::Duration;

use serde::Serialize;

use super::trace::Trace;

/// So many jobs of each worker at once: of fewer, the part that each client got is chance.
const ENOUGH: usize = 50;
/// And so is that of a client that was promised less than this part of all.
const LEAST: f64 = 0.05;

/// How a policy did with a trace. Times are in seconds of the simulation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Whose policy: `kiln` or `ocluster`.
    pub policy: &'static str,
    /// Jobs that came to their end.
    pub finished: usize,
    /// Jobs that their clients cancelled before.
    pub cancelled: usize,
    /// Jobs that wait at the end, because the trace leaves them no worker.
    pub waiting: usize,
    /// How often a job was begun again because its worker was lost.
    pub restarted: usize,
    /// Jobs of which the policy no longer knows: always 0, or it is at fault.
    pub lost: usize,
    /// Jobs started that did not wait, or on workers that did not ask: always 0, or it is at fault.
    pub wrong_starts: usize,
    /// How often a job with a hint was started.
    pub hinted_starts: usize,
    /// How often that was on a worker that had begun a job of the hint before.
    pub cache_hits: usize,
    /// The one by the other, 0 to 1.
    pub hit_rate: f64,
    /// By which part of what it was promised the client that came off worst or best got less or more: 0 is fair.
    /// `None`: no client has a [share](ClientOutcome::share).
    pub unfairness: Option<f64>,
    /// When the last job ended, after the first came.
    pub makespan_s: f64,
    /// How long jobs waited that came to their end, up to when that run of theirs began.
    pub wait_s: Distribution,
    /// And how long until they had ended. It weighs what a cache saves against what waiting for it costs.
    pub turnaround_s: Distribution,
    /// What workers did, together.
    pub work_s: f64,
    /// What each client got, as in the trace.
    pub clients: Vec<ClientOutcome>,
}

/// What a client got.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ClientOutcome {
    /// Its name.
    pub client: String,
    /// Its rate.
    pub rate: f64,
    /// Its jobs that came to their end.
    pub finished: usize,
    /// How long these waited.
    pub wait_s: Distribution,
    /// How much work was begun for it while it and others had more jobs waiting than all workers do at once: enough to take
    /// whatever is theirs.
    pub contended_s: f64,
    /// How much of all that was begun then was promised to it, by its rate among these.
    pub promised_s: f64,
    /// The one by the other: 1 is fair. `None`: so little was begun then, or promised to it, that it says nothing.
    ///
    /// What is begun is counted, and not what runs: a job that runs cannot be taken back when another client comes. Waiting is
    /// what the client sees as waiting, whatever the policy has it wait for: also the cache of a worker.
    pub share: Option<f64>,
}

/// Some of the values of a lot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// The average.
    pub mean: f64,
    /// Half are not more.
    pub median: f64,
    /// Of a hundred, one is more.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Outcome {
    /// Returns whether the policy lost no job and ran none that was not to be run.
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.wrong_starts == 0
    }
}

impl Distribution {
    /// Returns that of these values, which are sorted for it.
    pub fn of(values: &mut [f64]) -> Distribution {
        values.sort_unstable_by(f64::total_cmp);
        let Some(&max) = values.last() else { return Distribution::default() };
        let below = |share: f64| values[((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Distribution { mean, median: below(0.5), p99: below(0.99), max }
    }
}

/// What is counted while it goes on.
pub(super) struct Tally {
    pub(super) outcome: Outcome,
    clients: Vec<ClientTally>,
    /// How many jobs the workers that are there can do at once.
    slots: i64,
    /// How many jobs were begun while clients had to share.
    contended: usize,
    enough: usize,
    elapsed: Duration,
    first: Option<Duration>,
    last: Duration,
    turnarounds: Vec<f64>,
}

#[derive(Default)]
struct ClientTally {
    waiting: i64,
    running: i64,
    waits: Vec<f64>,
}

impl Tally {
    pub(super) fn new(trace: &Trace) -> Tally {
        let client = |(name, rate): &(String, f64)| ClientOutcome {
            client: name.clone(),
            rate: *rate,
            ..ClientOutcome::default()
        };
        Tally {
            outcome: Outcome {
                policy: "",
                finished: 0,
                cancelled: 0,
                waiting: 0,
                restarted: 0,
                lost: 0,
                wrong_starts: 0,
                hinted_starts: 0,
                cache_hits: 0,
                hit_rate: 0.0,
                unfairness: None,
                makespan_s: 0.0,
                wait_s: Distribution::default(),
                turnaround_s: Distribution::default(),
                work_s: 0.0,
                clients: trace.clients.iter().map(client).collect(),
            },
            clients: trace.clients.iter().map(|_| ClientTally::default()).collect(),
            slots: 0,
            contended: 0,
            enough: trace.workers.iter().map(|(_, capacity)| *capacity as usize * ENOUGH).sum(),
            elapsed: Duration::ZERO,
            first: None,
            last: Duration::ZERO,
            turnarounds: Vec::new(),
        }
    }

    /// So much time passes, in which nothing happens.
    pub(super) fn pass(&mut self, time: Duration) {
        if time.is_zero() {
            return;
        }
        self.elapsed += time;
        let running: i64 = self.clients.iter().map(|client| client.running).sum();
        self.outcome.work_s += running as f64 * time.as_secs_f64();
    }

    /// Workers for so many jobs come, or go.
    pub(super) fn slots(&mut self, change: i64) {
        self.slots += change;
    }

    pub(super) fn submitted(&mut self, client: u32) {
        self.first.get_or_insert(self.elapsed);
        self.waits(client, 1);
    }

    pub(super) fn waits(&mut self, client: u32, change: i64) {
        self.clients[client as usize].waiting += change;
    }

    pub(super) fn runs(&mut self, client: u32, change: i64) {
        self.clients[client as usize].running += change;
    }

    /// A job that waited starts, and takes so long. With a hint, is it where one of that hint was done?
    pub(super) fn started(&mut self, client: u32, takes: Duration, is_warm: Option<bool>) {
        self.outcome.hinted_starts += usize::from(is_warm.is_some());
        self.outcome.cache_hits += usize::from(is_warm == Some(true));
        let slots = self.slots;
        let waits = self.clients.iter().map(|tally| tally.waiting > slots);
        let rates =
            || self.outcome.clients.iter().zip(waits.clone()).filter(|(_, waits)| *waits).map(|(it, _)| it.rate);
        if self.clients[client as usize].waiting <= slots || rates().count() < 2 {
            return;
        }
        let (seconds, rates): (_, f64) = (takes.as_secs_f64(), rates().sum());
        for (content, _) in self.outcome.clients.iter_mut().zip(waits).filter(|(_, waits)| *waits) {
            content.promised_s += seconds * content.rate / rates;
        }
        self.outcome.clients[client as usize].contended_s += seconds;
        self.contended += 1;
    }

    /// A job ends that waited and ran for so long.
    pub(super) fn finished(&mut self, client: u32, waited: Duration, ran: Duration, now: Duration) {
        self.clients[client as usize].waits.push(waited.as_secs_f64());
        self.turnarounds.push((waited + ran).as_secs_f64());
        self.last = now;
    }

    pub(super) fn finish(mut self, policy: &'static str) -> Outcome {
        let mut all = Vec::new();
        let contended_s: f64 = self.outcome.clients.iter().map(|client| client.contended_s).sum();
        for (tally, client) in self.clients.iter_mut().zip(&mut self.outcome.clients) {
            client.finished = tally.waits.len();
            client.wait_s = Distribution::of(&mut tally.waits);
            let tells = self.contended >= self.enough && client.promised_s > contended_s * LEAST;
            client.share = tells.then(|| client.contended_s / client.promised_s);
            all.append(&mut tally.waits);
        }
        let shares = self.outcome.clients.iter().filter_map(|client| client.share);
        self.outcome.unfairness = shares.map(|share| (share - 1.0).abs()).max_by(f64::total_cmp);
        self.outcome.hit_rate = self.outcome.cache_hits as f64 / self.outcome.hinted_starts.max(1) as f64;
        self.outcome.policy = policy;
        self.outcome.finished = all.len();
        self.outcome.wait_s = Distribution::of(&mut all);
        self.outcome.turnaround_s = Distribution::of(&mut self.turnarounds);
        self.outcome.makespan_s = self.last.saturating_sub(self.first.unwrap_or_default()).as_secs_f64();
        self.outcome
    }
}
