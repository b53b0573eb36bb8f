//! What operations cost when much is there. Nothing is asserted about time; run it with
//! `cargo test --release -p kiln-scheduler --lib -- --ignored --nocapture size`.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::super::{Effect, End, Pool, Request, WorkerId};
use super::{at, b, worker};

/// Returns the time that this thread has computed: what else runs on the machine does not count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Times of one kind of operation.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn of<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let before = processor_time();
        let result = what();
        self.0.push(processor_time() - before);
        result
    }

    fn print(mut self, name: &str) {
        self.0.sort();
        let mean = self.0.iter().sum::<Duration>() / u32::try_from(self.0.len()).unwrap();
        let thousandth = self.0[self.0.len() - 1 - self.0.len() / 1000];
        println!(
            "  {name:8} mean {mean:9.1?}  99.9 % below {thousandth:9.1?}  longest {:9.1?}",
            self.0[self.0.len() - 1]
        );
    }
}

/// Returns the resident memory of this process in bytes.
fn memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
#[ignore = "measures"]
fn size_and_time() {
    const WORKERS: usize = 5000;
    for size in [1_000_usize, 10_000, 100_000, 1_000_000] {
        let mut pool = Pool::new("p");
        let workers: Vec<WorkerId> = (0..WORKERS).map(|name| worker(&mut pool, 0, &format!("worker-{name}"))).collect();
        let mut random = 1_u64;
        // A tenth of the jobs has the one hint that everyone runs, a tenth none; the others share each of theirs with
        // nine.
        let mut submit = |pool: &mut Pool, now, times: &mut Times| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (random >> 33) as usize;
            let hint = match number % 10 {
                0 => String::new(),
                1 => "ubuntu".to_owned(),
                _ => format!("package-{}", number / 10 % size.div_ceil(10)),
            };
            let client = format!("client-{}", number % 997);
            times.of(|| pool.submit(at(now), b(&client), Request { hint: b(&hint), urgent: number.is_multiple_of(29) }))
        };
        for &worker in &workers {
            submit(&mut pool, 0, &mut Times::default());
            pool.pop(at(0), worker);
        }
        let mut running: Vec<(super::JobId, WorkerId)> = Vec::new();
        let started = |pool: &mut Pool, running: &mut Vec<_>| {
            for effect in pool.take_effects() {
                if let Effect::Start { worker, job } = effect {
                    running.push((job, worker));
                }
            }
        };
        started(&mut pool, &mut running);
        let before = memory();
        let mut submits = Times::default();
        let jobs: Vec<_> = (0..size).map(|_| submit(&mut pool, 0, &mut submits)).collect();
        let bytes = memory().saturating_sub(before) / size;
        println!("{size} jobs, {WORKERS} workers: {bytes} bytes a job, hints included");
        submits.print("submit");
        // With the queue as long as it is.
        let (mut submits, mut pops, mut ends) = (Times::default(), Times::default(), Times::default());
        for round in 0..100_000_usize {
            let now = round as u64 / 100;
            let (job, worker) = running.swap_remove(round * 7919 % running.len());
            ends.of(|| pool.finished(at(now), job, End::Finished));
            pops.of(|| pool.pop(at(now), worker));
            submit(&mut pool, now, &mut submits);
            started(&mut pool, &mut running);
        }
        submits.print("submit");
        pops.print("pop");
        ends.print("finished");
        let mut shows = Times::default();
        (0..10).for_each(|_| _ = shows.of(|| pool.show(at(1000)).len()));
        shows.print("show");
        let mut cancels = Times::default();
        jobs.iter().for_each(|&job| _ = cancels.of(|| pool.cancel(job)));
        cancels.print("cancel");
    }
}
