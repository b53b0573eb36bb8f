//! What the operations of a pool cost.

use std::time::Duration;

use bstr::BStr;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::outcome::Distribution;
use crate::pool::{Effect, End, JobId, Pool, Request, WorkerId};

/// How often jobs end, begin and come while the queue is as long as it is, at most.
const ROUNDS: usize = 100_000;

/// How often all is done, the same each time. The least time of each operation counts: what it takes, and not what the kernel did
/// meanwhile, which falls on others the next time.
const RUNS: usize = 3;

/// What operations of a pool cost in which so many jobs wait. Microseconds of processor time, without what else the machine does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Costs {
    /// Workers that are connected, each with a job.
    pub workers: u32,
    /// Jobs that wait.
    pub jobs: usize,
    /// Adding a job, while the queue grows to its length and when it has it.
    pub submit_us: Distribution,
    /// Answering a worker's `pop`.
    pub pop_us: Distribution,
    /// Noting that a job has ended.
    pub finish_us: Distribution,
    /// Cancelling a job that waits.
    pub cancel_us: Distribution,
    /// What a job takes in memory, its hint included. `None`: this system does not tell.
    pub job_bytes: Option<u64>,
    /// What the whole process had in memory while all of them waited. `None`: this system does not tell.
    pub memory_bytes: Option<u64>,
}

/// Measures a pool with so many workers, each busy, and so many jobs that wait. A tenth of these share one hint, a tenth have
/// none, and the others share each of theirs with nine. A thousand clients submit them.
///
/// Memory of earlier calls that the allocator has kept is counted as the pool's: measure small pools first.
pub fn measure(workers: u32, jobs: usize) -> Costs {
    let mut first = run(workers, jobs);
    for _ in 1..RUNS {
        let again = run(workers, jobs);
        first.times.iter_mut().zip(again.times).for_each(|(times, again)| times.least(&again));
    }
    let [submit_us, pop_us, finish_us, cancel_us] = first.times.map(Times::finish);
    let Run { job_bytes, memory_bytes, .. } = first;
    Costs { workers, jobs, submit_us, pop_us, finish_us, cancel_us, job_bytes, memory_bytes }
}

struct Run {
    /// Of submitting, `pop`, ending and cancelling.
    times: [Times; 4],
    job_bytes: Option<u64>,
    memory_bytes: Option<u64>,
}

fn run(workers: u32, jobs: usize) -> Run {
    let mut pool = Pool::new("measured");
    let mut random = 1_u64;
    let mut submit = |pool: &mut Pool, now, times: &mut Times| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (random >> 33) as usize;
        let hint = match number % 10 {
            0 => String::new(),
            1 => "ubuntu".to_owned(),
            _ => format!("package-{}", number / 10 % jobs.div_ceil(10).max(1)),
        };
        let client = format!("client-{}", number % 997);
        let request = Request { hint: BStr::new(&hint), urgent: number.is_multiple_of(29) };
        times.of(|| pool.submit(now, BStr::new(&client), request))
    };
    for number in 0..workers {
        if let Ok(worker) = pool.register(BStr::new(&format!("worker-{number}")), 1) {
            pool.set_active(Duration::ZERO, worker, true);
            submit(&mut pool, Duration::ZERO, &mut Times::default());
            pool.pop(Duration::ZERO, worker);
        }
    }
    let mut running: Vec<(JobId, WorkerId)> = Vec::new();
    started(&mut pool, &mut running);
    let rounds = jobs.saturating_mul(10).clamp(1000, ROUNDS);
    let (mut submits, mut pops, mut ends, mut cancels) =
        (Times::new(jobs + rounds), Times::new(rounds), Times::new(rounds), Times::new(jobs));
    let mut waiting = Vec::with_capacity(jobs);
    let before = resident_bytes();
    waiting.extend((0..jobs).map(|_| submit(&mut pool, Duration::ZERO, &mut submits)));
    let after = resident_bytes();
    let job_bytes = before.zip(after).map(|(before, after)| after.saturating_sub(before) / jobs.max(1) as u64);
    for round in 0..rounds {
        if running.is_empty() {
            break;
        }
        let now = Duration::from_millis(round as u64 * 10);
        let (job, worker) = running.swap_remove(round * 7919 % running.len());
        ends.of(|| pool.finished(now, job, End::Finished));
        pops.of(|| pool.pop(now, worker));
        submit(&mut pool, now, &mut submits);
        started(&mut pool, &mut running);
    }
    let memory_bytes = resident_bytes();
    waiting.iter().for_each(|&job| _ = cancels.of(|| pool.cancel(job)));
    Run { times: [submits, pops, ends, cancels], job_bytes, memory_bytes }
}

fn started(pool: &mut Pool, running: &mut Vec<(JobId, WorkerId)>) {
    for effect in pool.take_effects() {
        if let Effect::Start { worker, job } = effect {
            running.push((job, worker));
        }
    }
}

/// Times of one kind of operation, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    /// Room is made before: growing would be taken for the pool's memory.
    fn new(expected: usize) -> Times {
        let mut times = vec![1.0; expected];
        times.clear();
        Times(times)
    }

    fn of<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let before = processor_time();
        let result = what();
        self.0.push((processor_time() - before).as_secs_f64() * 1e6);
        result
    }

    /// Takes the lesser one of each two.
    fn least(&mut self, others: &Times) {
        self.0.iter_mut().zip(&others.0).for_each(|(time, other)| *time = time.min(*other));
    }

    fn finish(mut self) -> Distribution {
        Distribution::of(&mut self.0)
    }
}

/// Returns the time that this thread has computed.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Returns what this process has in memory, where Linux tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
