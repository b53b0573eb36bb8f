//! Properties: whatever happens, in whatever order, no job is lost, run twice, or started where it must not be.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{Cancelled, Effect, End, Gauges, JobId, Pool, Request, WorkerId};
use super::{at, b, worker};

/// What happens to a pool. A `usize` chooses one of what there is, counted round and round.
#[derive(Debug, Clone)]
enum Op {
    Register(u8),
    Unregister(usize),
    Pop(usize),
    GiveUp(usize),
    SetActive(usize, bool),
    ShutDown(usize),
    SetPaused(u8, bool),
    Forget(u8),
    Submit { client: u8, hint: u8, urgent: bool },
    Cancel(usize),
    Finish(usize, bool),
    Requeue(usize),
    SubmitLost { client: u8, hint: u8 },
    SubmitWithheld { client: u8, hint: u8 },
    Resume(usize, usize),
    SetRate(u8, u8),
    RemoveClient(u8),
    Wait(u16),
}

/// Operations with so many hints; 0 is no hint.
fn ops(hints: u8) -> impl Strategy<Value = Vec<Op>> {
    use Op::{Cancel, Finish, Forget, GiveUp, Pop, Register, RemoveClient, Requeue, SetActive, SetPaused, SetRate};
    let op = prop_oneof![
        3 => (0..6_u8).prop_map(Register),
        2 => any::<usize>().prop_map(Op::Unregister),
        12 => any::<usize>().prop_map(Pop),
        1 => any::<usize>().prop_map(GiveUp),
        6 => any::<(usize, bool)>().prop_map(|(worker, active)| SetActive(worker, active)),
        1 => any::<usize>().prop_map(Op::ShutDown),
        2 => (0..6_u8, any::<bool>()).prop_map(|(name, paused)| SetPaused(name, paused)),
        1 => (0..6_u8).prop_map(Forget),
        16 => (0..4_u8, 0..=hints, prop::bool::weighted(0.2))
            .prop_map(|(client, hint, urgent)| Op::Submit { client, hint, urgent }),
        3 => any::<usize>().prop_map(Cancel),
        6 => any::<(usize, bool)>().prop_map(|(job, good)| Finish(job, good)),
        3 => any::<usize>().prop_map(Requeue),
        1 => (0..4_u8, 0..=hints).prop_map(|(client, hint)| Op::SubmitLost { client, hint }),
        1 => (0..4_u8, 0..=hints).prop_map(|(client, hint)| Op::SubmitWithheld { client, hint }),
        2 => any::<(usize, usize)>().prop_map(|(job, worker)| Op::Resume(job, worker)),
        1 => (0..4_u8, 1..9_u8).prop_map(|(client, rate)| SetRate(client, rate)),
        1 => (0..4_u8).prop_map(RemoveClient),
        4 => (0..2000_u16).prop_map(Op::Wait),
    ];
    vec(op, 0..200)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Running(WorkerId),
    Lost,
    Withheld,
    Ended,
}

#[derive(Debug)]
struct ModelWorker {
    id: WorkerId,
    name: u8,
    pops: usize,
    paused_itself: bool,
    leaving: bool,
}

/// What an onlooker knows of a pool, and checks.
struct Model {
    pool: Pool,
    now: u64,
    workers: Vec<ModelWorker>,
    paused: [bool; 6],
    jobs: BTreeMap<JobId, State>,
    /// When a job last came to wait.
    waits_since: BTreeMap<JobId, u64>,
    /// Since when an active worker has been waiting, one or another.
    idle_since: Option<u64>,
    /// Jobs without a hint.
    plain: Vec<JobId>,
    /// When jobs were last started.
    started: BTreeMap<JobId, u64>,
    /// What the longest took that came to its end; 600 s, which jobs are expected to take, at least.
    longest: u64,
}

impl Model {
    fn new() -> Model {
        Model {
            pool: Pool::new("p"),
            now: 0,
            workers: Vec::new(),
            paused: [false; 6],
            jobs: BTreeMap::new(),
            waits_since: BTreeMap::new(),
            idle_since: None,
            plain: Vec::new(),
            started: BTreeMap::new(),
            longest: 600,
        }
    }

    fn is_active(&self, worker: &ModelWorker) -> bool {
        !worker.paused_itself && !worker.leaving && !self.paused[usize::from(worker.name)]
    }

    /// Returns one of the jobs that are so.
    fn job(&self, index: usize, is: impl Fn(State) -> bool) -> Option<JobId> {
        let all: Vec<JobId> = self.jobs.iter().filter(|(_, state)| is(**state)).map(|(id, _)| *id).collect();
        (!all.is_empty()).then(|| all[index % all.len()])
    }

    fn wait(&mut self, job: JobId) {
        self.jobs.insert(job, State::Queued);
        self.waits_since.insert(job, self.now);
    }

    fn apply(&mut self, op: Op) {
        let now = at(self.now);
        let one = |index: usize, workers: &[ModelWorker]| (!workers.is_empty()).then(|| index % workers.len());
        match op {
            Op::Register(name) => {
                let there = self.workers.iter().any(|worker| worker.name == name);
                match self.pool.register(b(&format!("w{name}")), u32::from(name)) {
                    Ok(id) => {
                        assert!(!there);
                        self.workers.push(ModelWorker { id, name, pops: 0, paused_itself: true, leaving: false });
                    }
                    Err(_) => assert!(there),
                }
            }
            Op::Unregister(index) => {
                if let Some(index) = one(index, &self.workers) {
                    let gone = self.workers.remove(index).id;
                    self.pool.unregister(now, gone);
                    let lost: Vec<JobId> =
                        self.jobs.iter().filter(|it| *it.1 == State::Running(gone)).map(|it| *it.0).collect();
                    let effects = self.pool.take_effects();
                    let said = effects
                        .iter()
                        .filter_map(|effect| if let Effect::Lost { job } = effect { Some(*job) } else { None });
                    assert_eq!(said.collect::<Vec<_>>(), lost);
                    lost.into_iter().for_each(|job| _ = self.jobs.insert(job, State::Lost));
                    self.perform(effects);
                }
            }
            Op::Pop(index) => {
                if let Some(index) = one(index, &self.workers) {
                    self.workers[index].pops += 1;
                    self.pool.pop(now, self.workers[index].id);
                }
            }
            Op::GiveUp(index) => {
                if let Some(index) = one(index, &self.workers) {
                    let worker = &mut self.workers[index];
                    worker.pops = worker.pops.saturating_sub(1);
                    self.pool.give_up_pop(worker.id);
                }
            }
            Op::SetActive(index, active) => {
                if let Some(index) = one(index, &self.workers) {
                    self.workers[index].paused_itself = !active;
                    self.pool.set_active(now, self.workers[index].id, active);
                }
            }
            Op::ShutDown(index) => {
                if let Some(index) = one(index, &self.workers) {
                    self.workers[index].leaving = true;
                    self.pool.set_leaving(now, self.workers[index].id, true);
                }
            }
            Op::SetPaused(name, paused) => {
                self.paused[usize::from(name)] = paused;
                self.pool.set_paused(now, b(&format!("w{name}")), paused, true).unwrap();
            }
            Op::Forget(name) => {
                if self.pool.forget(now, b(&format!("w{name}"))).is_ok() {
                    assert!(self.workers.iter().all(|worker| worker.name != name));
                    self.paused[usize::from(name)] = false;
                }
            }
            Op::Submit { client, hint, urgent } => {
                let text = if hint == 0 { String::new() } else { format!("h{hint}") };
                let job = self.pool.submit(now, b(&format!("c{client}")), Request { hint: b(&text), urgent });
                assert!(self.jobs.last_key_value().is_none_or(|(last, _)| *last < job));
                self.wait(job);
                if hint == 0 {
                    self.plain.push(job);
                }
            }
            Op::Cancel(index) => {
                if let Some(job) = self.job(index, |_| true) {
                    let expected = match self.jobs[&job] {
                        State::Queued => Cancelled::Queued,
                        State::Running(worker) => Cancelled::Running(worker),
                        State::Lost => Cancelled::Lost,
                        State::Withheld => Cancelled::Queued,
                        State::Ended => Cancelled::Unknown,
                    };
                    assert_eq!(self.pool.cancel(job), expected);
                    if !matches!(expected, Cancelled::Running(_)) {
                        self.jobs.insert(job, State::Ended);
                    }
                }
            }
            Op::Finish(index, good) => {
                if let Some(job) = self.job(index, |_| true) {
                    self.pool.finished(now, job, if good { End::Finished } else { End::Cancelled });
                    if let (State::Running(_), Some(started)) = (self.jobs[&job], self.started.get(&job)) {
                        self.longest = self.longest.max(self.now - started);
                    }
                    if self.jobs[&job] != State::Queued {
                        self.jobs.insert(job, State::Ended);
                    }
                }
            }
            Op::Requeue(index) => {
                if let Some(job) = self.job(index, |_| true) {
                    let can = matches!(self.jobs[&job], State::Running(_) | State::Lost | State::Withheld);
                    assert_eq!(self.pool.requeue(now, job), can);
                    if can {
                        self.wait(job);
                    }
                }
            }
            Op::SubmitLost { client, hint } | Op::SubmitWithheld { client, hint } => {
                let text = if hint == 0 { String::new() } else { format!("h{hint}") };
                let request = Request { hint: b(&text), urgent: false };
                let client = format!("c{client}");
                let (job, state) = match op {
                    Op::SubmitLost { .. } => (self.pool.submit_lost(now, b(&client), request), State::Lost),
                    _ => (self.pool.submit_withheld(b(&client), request), State::Withheld),
                };
                self.jobs.insert(job, state);
                if hint == 0 {
                    self.plain.push(job);
                }
            }
            Op::Resume(job, index) => {
                if let (Some(job), Some(index)) = (self.job(job, |_| true), one(index, &self.workers)) {
                    let can = matches!(self.jobs[&job], State::Queued | State::Lost | State::Withheld);
                    let worker = self.workers[index].id;
                    assert_eq!(self.pool.resume(now, job, worker), can);
                    if can {
                        if self.jobs[&job] == State::Queued {
                            // It began nobody knows when.
                            self.started.remove(&job);
                        }
                        self.jobs.insert(job, State::Running(worker));
                    }
                }
            }
            Op::SetRate(client, rate) => self.pool.set_rate(b(&format!("c{client}")), f64::from(rate)).unwrap(),
            Op::RemoveClient(client) => self.pool.remove_client(b(&format!("c{client}"))),
            Op::Wait(seconds) => {
                self.now += u64::from(seconds);
                self.pool.tick(at(self.now));
            }
        }
        let effects = self.pool.take_effects();
        self.perform(effects);
        self.check();
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Effect::Start { worker, job } = effect else { continue };
            assert_eq!(self.jobs.insert(job, State::Running(worker)), Some(State::Queued), "{job} was not waiting");
            self.started.insert(job, self.now);
            let index = self.workers.iter().position(|other| other.id == worker).expect("it is connected");
            assert!(self.is_active(&self.workers[index]), "it is paused");
            assert!(self.workers[index].pops > 0, "it did not ask");
            self.workers[index].pops -= 1;
        }
    }

    fn check(&mut self) {
        self.pool.check();
        let _ = self.pool.show(at(self.now));
        let waits = self.workers.iter().any(|worker| worker.pops > 0 && self.is_active(worker));
        let queued = |job: &&JobId| self.jobs[*job] == State::Queued;
        assert!(!waits || !self.plain.iter().any(|job| queued(&job)), "somebody waits while there is work");
        self.idle_since = waits.then(|| self.idle_since.unwrap_or(self.now));
        if let Some(idle_since) = self.idle_since {
            let since = self.jobs.keys().filter(queued).map(|job| self.waits_since[job].max(idle_since));
            let longest = since.map(|since| self.now - since).max().unwrap_or(0);
            assert!(longest < 4 * self.longest, "a job waits for a cache for too long: {longest} s");
        }
    }

    /// Lets everything run to its end.
    fn finish(mut self) {
        for name in 0..6 {
            self.apply(Op::SetPaused(name, false));
        }
        while !self.workers.is_empty() {
            self.apply(Op::Unregister(0));
        }
        while let Some(job) = self.job(0, |state| matches!(state, State::Lost | State::Withheld)) {
            assert!(self.pool.requeue(at(self.now), job));
            self.wait(job);
        }
        self.apply(Op::Register(0));
        self.apply(Op::SetActive(0, true));
        let left = self.jobs.values().filter(|state| **state == State::Queued).count();
        for _ in 0..left {
            self.apply(Op::Pop(0));
            let job = self.job(0, |state| matches!(state, State::Running(_)));
            let job = job.expect("each pop gets one of what is left");
            self.pool.finished(at(self.now), job, End::Finished);
            self.jobs.insert(job, State::Ended);
        }
        assert!(self.jobs.values().all(|state| *state == State::Ended), "a job was lost");
        self.apply(Op::Unregister(0));
        let totals = self.pool.gauges();
        let submitted_total = self.jobs.len() as u64;
        let Gauges { cancelled_total, accepted_total, .. } = totals;
        assert_eq!(totals, Gauges { submitted_total, cancelled_total, accepted_total, ..Gauges::default() });
    }
}

/// The least that can be called a fair queue: lists, looked through from end to end.
#[derive(Default)]
struct Naive {
    /// Client, urgent.
    queued: Vec<(JobId, usize, bool)>,
    next: [f64; 4],
    fair: f64,
}

impl Naive {
    fn submit(&mut self, now: u64, job: JobId, client: usize, urgent: bool) {
        if self.queued.is_empty() {
            self.fair = self.fair.max(now as f64);
        }
        if self.queued.iter().all(|other| other.1 != client) {
            self.next[client] = self.next[client].max(self.fair);
        }
        self.queued.push((job, client, urgent));
    }

    fn cancel(&mut self, job: JobId) {
        self.queued.retain(|other| other.0 != job);
    }

    fn pop(&mut self, rates: &[f64; 4]) -> Option<JobId> {
        let start = |job: &(JobId, usize, bool)| self.next[job.1];
        let before = |a: &(JobId, usize, bool), b: &(JobId, usize, bool)| {
            b.2.cmp(&a.2).then(start(a).total_cmp(&start(b))).then(a.0.cmp(&b.0))
        };
        let index = (0..self.queued.len()).min_by(|&a, &b| before(&self.queued[a], &self.queued[b]))?;
        let (job, client, _) = self.queued.remove(index);
        let start = self.next[client];
        self.next[client] += 600.0 / rates[client];
        let least = self.queued.iter().map(|other| self.next[other.1]).fold(start, f64::min);
        self.fair = self.fair.max(least);
        Some(job)
    }
}

/// Lets two clients of these rates and times of jobs keep twenty jobs waiting each, in a pool of so many workers.
/// Returns the time that each was given.
fn share(rates: [u8; 2], takes: [u64; 2], workers: usize) -> [u64; 2] {
    let mut pool = Pool::new("p");
    let clients = ["c0", "c1"].map(b);
    (0..2).for_each(|client| pool.set_rate(clients[client], f64::from(rates[client])).unwrap());
    let workers: Vec<WorkerId> = (0..workers).map(|name| worker(&mut pool, 0, &format!("w{name}"))).collect();
    let mut owner: BTreeMap<JobId, usize> = BTreeMap::new();
    let mut ends: BTreeMap<(u64, JobId), WorkerId> = BTreeMap::new();
    let (mut given, mut now, mut ended) = ([0; 2], 0, 0);
    let submit = |pool: &mut Pool, now: u64, client: usize, owner: &mut BTreeMap<JobId, usize>| {
        let hint = format!("h{client}");
        owner.insert(pool.submit(at(now), clients[client], Request { hint: b(&hint), urgent: false }), client);
    };
    for _ in 0..20 {
        (0..2).for_each(|client| submit(&mut pool, now, client, &mut owner));
    }
    workers.iter().for_each(|&worker| pool.pop(at(now), worker));
    while ended < 3000 {
        // What is submitted because of a start may start at the same moment.
        loop {
            let effects = pool.take_effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                let Effect::Start { worker, job } = effect else { continue };
                let client = owner[&job];
                ends.insert((now + takes[client], job), worker);
                submit(&mut pool, now, client, &mut owner);
            }
        }
        let next_end = ends.first_key_value().map(|((end, _), _)| *end);
        match pool.next_tick().filter(|tick| next_end.is_none_or(|end| *tick < at(end))) {
            Some(tick) => {
                now = now.max(tick.as_secs());
                // It may have been due before: clocks do not run backwards.
                pool.tick(tick.max(at(now)));
            }
            None => {
                let ((end, job), worker) = ends.pop_first().expect("something runs");
                now = end;
                ended += 1;
                // The first ones are for learning what jobs take.
                if ended > 300 {
                    given[owner[&job]] += takes[owner[&job]];
                }
                pool.finished(at(now), job, End::Finished);
                pool.pop(at(now), worker);
            }
        }
    }
    given
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_job_is_lost_or_run_twice_or_started_where_it_must_not_be(ops in ops(3)) {
        let mut model = Model::new();
        ops.into_iter().for_each(|op| model.apply(op));
        model.finish();
    }

    #[test]
    fn without_hints_each_pop_gets_what_a_naive_queue_would_give(ops in ops(0)) {
        let (mut pool, mut naive, mut rates) = (Pool::new("p"), Naive::default(), [1.0; 4]);
        let worker = worker(&mut pool, 0, "w");
        let mut now = 0;
        for op in ops {
            match op {
                Op::Submit { client, urgent, .. } => {
                    let job = pool.submit(at(now), b(&format!("c{client}")), Request { hint: b(""), urgent });
                    naive.submit(now, job, client.into(), urgent);
                }
                // Some more than there are submissions, or the queue would only grow.
                Op::Pop(_) | Op::SetActive(..) | Op::Finish(..) => {
                    let _ = pool.take_effects();
                    pool.pop(at(now), worker);
                    let expected = naive.pop(&rates);
                    let started = super::started(&mut pool);
                    prop_assert_eq!(started.first().map(|start| start.1), expected);
                    if expected.is_none() {
                        pool.give_up_pop(worker);
                    }
                }
                Op::Cancel(index) if !naive.queued.is_empty() => {
                    let job = naive.queued[index % naive.queued.len()].0;
                    prop_assert_eq!(pool.cancel(job), Cancelled::Queued);
                    naive.cancel(job);
                }
                Op::SetRate(client, power) => {
                    // Of powers of two, the naive queue's sums are exact.
                    rates[usize::from(client)] = f64::from(1 << (power % 3));
                    pool.set_rate(b(&format!("c{client}")), rates[usize::from(client)]).unwrap();
                }
                Op::Wait(seconds) => now += u64::from(seconds),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients_get_time_by_their_rates(
        rates in [1..5_u8, 1..5_u8],
        takes in [20..200_u64, 20..200_u64],
        workers in 1..4_usize,
    ) {
        let given = share(rates, takes, workers);
        let ratio = (given[0] as f64 / given[1] as f64) / (f64::from(rates[0]) / f64::from(rates[1]));
        prop_assert!((0.95..1.05).contains(&ratio), "{given:?}: {ratio}");
    }
}

#[test]
fn a_client_of_rate_two_gets_twice_as_much() {
    let given = share([1, 2], [60, 60], 1);
    let ratio = given[1] as f64 / given[0] as f64;
    assert!((1.9..2.1).contains(&ratio), "{given:?}");
}
