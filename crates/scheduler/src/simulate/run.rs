//! Plays a trace: time that jumps from one thing that happens to the next, workers that do nothing but wait, and somebody
//! who decides.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use bstr::BStr;

use super::outcome::{Outcome, Tally};
use super::policy::Policy;
use super::trace::{Event, Job, Trace};
use crate::pool::{Cancelled, Effect, End, JobId, Request, WorkerId};

/// Plays a trace until nothing is left to happen, and returns how it went.
pub(super) fn play<P: Policy>(trace: &Trace, policy: P) -> Outcome {
    let mut run = Run {
        trace,
        policy,
        now: Duration::ZERO,
        jobs: Vec::new(),
        numbers: HashMap::new(),
        machines: trace.workers.iter().map(|_| Machine::default()).collect(),
        connected: HashMap::new(),
        later: BinaryHeap::new(),
        tally: Tally::new(trace),
    };
    run.all();
    run.finish()
}

struct Run<'a, P> {
    trace: &'a Trace,
    policy: P,
    now: Duration,
    /// In the order in which they are submitted.
    jobs: Vec<JobState>,
    /// Their places there.
    numbers: HashMap<JobId, u32>,
    /// As in [`Trace::workers`].
    machines: Vec<Machine>,
    /// Their places there.
    connected: HashMap<WorkerId, u32>,
    /// What follows from what happened. What is at the same time happens in the order in which it was begun.
    later: BinaryHeap<Reverse<(Duration, u64, Later)>>,
    tally: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// The job has done what it had to, unless that run was cut off.
    End { job: u32, run: u32 },
    /// Its client cancels it.
    Cancel { job: u32 },
}

struct JobState {
    id: JobId,
    job: Job,
    submitted: Duration,
    /// How often it was started.
    runs: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    Running {
        machine: u32,
        since: Duration,
    },
    /// Its worker is gone.
    Lost,
    Ended,
}

#[derive(Default)]
struct Machine {
    /// Its connection.
    id: Option<WorkerId>,
    running: BTreeSet<u32>,
    /// It has asked for a job and has not got one.
    asks: bool,
    /// The hints that it has cached, and since when, or when it will have: a job that others of its hint started before waits for
    /// what these make, and makes nothing twice.
    cached: HashMap<u32, Duration>,
}

impl<P: Policy> Run<'_, P> {
    fn all(&mut self) {
        for (client, rate) in &self.trace.clients {
            self.policy.set_rate(BStr::new(client), *rate);
        }
        let mut left = self.trace.jobs();
        let mut events = self.trace.events.iter().peekable();
        let mut open = 0;
        let mut begun = 0;
        while left > 0 || open > 0 {
            let event = events.peek().map(|(at, _)| *at);
            let later = self.later.peek().map(|Reverse((at, ..))| *at);
            let tick = self.policy.next_tick().map(|at| at.max(self.now));
            let Some(next) = [event, later, tick].into_iter().flatten().min() else { break };
            self.tally.pass(next - self.now);
            self.now = next;
            if later == Some(next) {
                let Some(Reverse((_, _, what))) = self.later.pop() else { break };
                open -= usize::from(match what {
                    Later::End { job, run } => self.end(job, run),
                    Later::Cancel { job } => self.cancel(job),
                });
            } else if event == Some(next) {
                match events.next() {
                    Some((_, Event::Connect { worker })) => self.connect(*worker),
                    Some((_, Event::Disconnect { worker })) => self.disconnect(*worker),
                    Some((_, Event::Submit(job))) => {
                        (left, open) = (left - 1, open + 1);
                        self.submit(*job);
                    }
                    None => break,
                }
            } else {
                self.policy.tick(next);
            }
            self.perform(&mut begun);
        }
    }

    fn connect(&mut self, number: u32) {
        let (name, capacity) = &self.trace.workers[number as usize];
        let Some(id) = self.policy.connect(self.now, BStr::new(name), *capacity) else { return };
        self.machines[number as usize].id = Some(id);
        self.connected.insert(id, number);
        self.tally.slots(i64::from(*capacity));
        self.ask(number);
    }

    fn disconnect(&mut self, number: u32) {
        let machine = &mut self.machines[number as usize];
        let Some(id) = machine.id.take() else { return };
        machine.asks = false;
        machine.cached.retain(|_, since| *since <= self.now);
        let running = std::mem::take(&mut machine.running);
        self.connected.remove(&id);
        self.tally.slots(-i64::from(self.trace.workers[number as usize].1));
        for job in running {
            self.stop(job, Place::Lost);
        }
        self.policy.disconnect(self.now, id);
    }

    fn submit(&mut self, job: Job) {
        let number = u32::try_from(self.jobs.len()).expect("four thousand million jobs do not fit into memory");
        let client = &self.trace.clients[job.client as usize].0;
        let hint = job.hint.map_or("", |hint| &self.trace.hints[hint as usize]);
        let request = Request { hint: BStr::new(hint), urgent: job.urgent };
        let id = self.policy.submit(self.now, BStr::new(client), request);
        self.numbers.insert(id, number);
        self.jobs.push(JobState { id, job, submitted: self.now, runs: 0, place: Place::Waiting });
        self.tally.submitted(job.client);
        if let Some(after) = job.cancel_after {
            // Before all runs of the job, which are begun later.
            self.later.push(Reverse((self.now + after, 0, Later::Cancel { job: number })));
        }
    }

    /// Ends a run of a job, unless it was cut off. Returns whether the job is at its end.
    fn end(&mut self, number: u32, run: u32) -> bool {
        let Some(state) = self.jobs.get(number as usize) else { return false };
        let Place::Running { machine, since } = state.place else { return false };
        if state.runs != run {
            return false;
        }
        let (id, job) = (state.id, state.job);
        self.tally.finished(job.client, since - state.submitted, self.now - since, self.now);
        self.stop(number, Place::Ended);
        self.policy.finished(self.now, id, End::Finished);
        self.ask(machine);
        true
    }

    /// Cancels a job, unless it has ended. Returns whether it had not.
    fn cancel(&mut self, number: u32) -> bool {
        let Some(state) = self.jobs.get(number as usize) else { return false };
        let (id, place, hint) = (state.id, state.place, state.job.hint);
        if place == Place::Ended {
            return false;
        }
        let answer = self.policy.cancel(id);
        self.stop(number, Place::Ended);
        match (answer, place) {
            (Cancelled::Queued, Place::Waiting) | (Cancelled::Lost, Place::Lost) => {}
            (Cancelled::Running(_), Place::Running { machine, .. }) => {
                self.forget_unfinished(machine, hint);
                self.policy.finished(self.now, id, End::Cancelled);
                self.ask(machine);
            }
            _ => self.tally.outcome.lost += 1,
        }
        self.tally.outcome.cancelled += 1;
        true
    }

    /// Forgets what a job that was cancelled would have cached, if no other goes on with it.
    fn forget_unfinished(&mut self, machine: u32, hint: Option<u32>) {
        let machine = &mut self.machines[machine as usize];
        let goes_on = machine.running.iter().any(|job| self.jobs[*job as usize].job.hint == hint);
        if let Some(hint) = hint.filter(|_| !goes_on)
            && machine.cached.get(&hint).is_some_and(|since| *since > self.now)
        {
            machine.cached.remove(&hint);
        }
    }

    /// Takes a job from where it is.
    fn stop(&mut self, number: u32, place: Place) {
        let state = &mut self.jobs[number as usize];
        match std::mem::replace(&mut state.place, place) {
            Place::Waiting => self.tally.waits(state.job.client, -1),
            Place::Running { machine, .. } => {
                self.machines[machine as usize].running.remove(&number);
                self.tally.runs(state.job.client, -1);
            }
            Place::Lost | Place::Ended => {}
        }
    }

    /// Has a worker ask for a job, if it has room for one.
    fn ask(&mut self, number: u32) {
        let machine = &mut self.machines[number as usize];
        let Some(id) = machine.id else { return };
        if !machine.asks && machine.running.len() < self.trace.workers[number as usize].1 as usize {
            machine.asks = true;
            self.policy.pop(self.now, id);
        }
    }

    /// Does what is to be done, and what is to be done because of it.
    fn perform(&mut self, begun: &mut u64) {
        loop {
            let effects = self.policy.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Start { worker, job } => {
                        *begun += 1;
                        self.start(worker, job, *begun);
                    }
                    Effect::Lost { job } => self.requeue(job),
                    _ => {}
                }
            }
        }
    }

    fn start(&mut self, worker: WorkerId, id: JobId, begun: u64) {
        let number = self.numbers.get(&id).copied();
        let waits = number.filter(|&number| self.jobs[number as usize].place == Place::Waiting);
        let asks = self.connected.get(&worker).copied().filter(|&number| self.machines[number as usize].asks);
        let (Some(number), Some(machine)) = (waits, asks) else {
            self.tally.outcome.wrong_starts += 1;
            return;
        };
        let job = self.jobs[number as usize].job;
        let cached = &mut self.machines[machine as usize].cached;
        let since = job.hint.and_then(|hint| cached.get(&hint)).copied();
        let takes = since.map_or(job.cold, |since| since.saturating_sub(self.now) + job.warm);
        if let Some(hint) = job.hint {
            cached.entry(hint).or_insert(self.now + takes);
        }
        self.tally.started(job.client, takes, job.hint.map(|_| since.is_some()));
        self.stop(number, Place::Running { machine, since: self.now });
        let state = &mut self.jobs[number as usize];
        state.runs += 1;
        let content = &mut self.machines[machine as usize];
        content.asks = false;
        content.running.insert(number);
        self.tally.runs(state.job.client, 1);
        self.later.push(Reverse((self.now + takes, begun, Later::End { job: number, run: state.runs })));
        self.ask(machine);
    }

    fn requeue(&mut self, id: JobId) {
        let Some(&number) = self.numbers.get(&id) else { return };
        let state = &mut self.jobs[number as usize];
        if state.place != Place::Lost {
            return;
        }
        state.place = Place::Waiting;
        self.tally.waits(state.job.client, 1);
        self.tally.outcome.restarted += 1;
        self.policy.requeue(self.now, id);
    }

    fn finish(mut self) -> Outcome {
        let is = |wanted: Place| self.jobs.iter().filter(|state| state.place == wanted).count();
        let waiting = is(Place::Waiting);
        self.tally.outcome.waiting = waiting;
        self.tally.outcome.lost += waiting.abs_diff(self.policy.waiting()) + is(Place::Lost);
        self.tally.finish(P::NAME)
    }
}
