//! What a running scheduler stands: thousands of workers, which only wait, and jobs at a steady rate.
//!
//! ```sh
//! cargo run --release -p kiln-scheduler --example load -- --state STATE --pool pool-NAME.cap --pool-name NAME \
//!     --client CLIENT.cap --workers 2000 --rate 500 --seconds 600
//! ```
//!
//! Every job is counted to its end, and its log and result are compared with what they must be. Prints a line every few seconds and
//! a summary, and writes both as JSON. Exits with 1 if anything went wrong. `bench/run load` runs it with a scheduler of its own.

mod play;
mod processes;

use std::cell::Ref;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use kiln_api::cap_file;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::LocalSet;
use tokio::time::Instant;

use play::{Plan, Tally, play};
use processes::{Process, machine_ticks};

#[derive(Parser)]
struct Arguments {
    /// The scheduler's state directory: its lock says which process the scheduler is
    #[arg(long)]
    state: PathBuf,
    /// The capability file of the pool's workers
    #[arg(long)]
    pool: PathBuf,
    /// What the pool is called
    #[arg(long)]
    pool_name: String,
    /// The capability file of a client, once for each
    #[arg(long = "client", required = true)]
    clients: Vec<PathBuf>,
    #[arg(long, default_value_t = 2000)]
    workers: usize,
    /// How many jobs each worker does at once
    #[arg(long, default_value_t = 1)]
    capacity: u32,
    /// Jobs a second
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// For how long jobs are submitted
    #[arg(long, default_value_t = 600.0)]
    seconds: f64,
    /// How long a job takes
    #[arg(long, default_value_t = 1.0)]
    job_seconds: f64,
    /// How often to look
    #[arg(long, default_value_t = 5.0)]
    every: f64,
    /// Where to write the figures
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let plan = Plan {
        pool: cap_file::load(&arguments.pool)?,
        pool_name: arguments.pool_name.as_str().into(),
        clients: arguments.clients.iter().map(|file| cap_file::load(file)).collect::<Result<_, _>>()?,
        workers: arguments.workers,
        capacity: arguments.capacity,
        jobs: (arguments.rate * arguments.seconds) as usize,
        rate: arguments.rate,
        job: Duration::from_secs_f64(arguments.job_seconds),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = Rc::new(Tally::default());
    let mut looks = Vec::new();
    LocalSet::new().block_on(&runtime, async {
        let mut eyes = Eyes::new(&arguments.state, Rc::clone(&tally));
        let mut clock = tokio::time::interval(Duration::from_secs_f64(arguments.every));
        let mut played = std::pin::pin!(play(&plan, &tally));
        clock.tick().await;
        println!("{}", Look::HEADER);
        loop {
            tokio::select! {
                () = &mut played => break,
                _ = clock.tick() => {
                    let look = eyes.look();
                    println!("{}", look.line());
                    looks.push(look);
                }
            }
        }
    });
    let summary = summary(&plan, &tally);
    println!("{}", serde_json::to_string_pretty(&summary)?);
    if let Some(file) = &arguments.json {
        let looks: Vec<_> = looks.iter().map(Look::json).collect();
        fs::write(file, format!("{}\n", json!({ "summary": summary, "looks": looks })))?;
    }
    Ok(if tally.errors.get() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at the scheduler every few seconds.
struct Eyes {
    state: PathBuf,
    tally: Rc<Tally>,
    begun: Instant,
    last: Instant,
    scheduler: Process,
    ourselves: Process,
    machine: u64,
    /// How many arrivals were looked at.
    arrivals: usize,
    submitted: usize,
}

/// What is seen. Shares of processor time are of one processor.
struct Look {
    at: f64,
    workers: usize,
    rate: f64,
    open: usize,
    p50_ms: f64,
    p99_ms: f64,
    scheduler: f64,
    first_thread: f64,
    generator: f64,
    machine: f64,
    process: Process,
    /// Of the scheduler's database, with what is to go into it.
    database_kib: u64,
}

impl Eyes {
    fn new(state: &Path, tally: Rc<Tally>) -> Self {
        let now = Instant::now();
        let mut eyes = Self {
            state: state.to_owned(),
            tally,
            begun: now,
            last: now,
            scheduler: Process::default(),
            ourselves: Process::default(),
            machine: 0,
            arrivals: 0,
            submitted: 0,
        };
        eyes.look();
        eyes
    }

    fn look(&mut self) -> Look {
        let passed = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / passed;
        // It may be about to start.
        let process = scheduler(&self.state).and_then(Process::look).unwrap_or_default();
        let before = if process.pid == self.scheduler.pid { self.scheduler } else { Process::default() };
        let ourselves = Process::look(std::process::id()).unwrap_or_default();
        let machine = machine_ticks();
        let arrivals = self.tally.arrival.all();
        let mut these = arrivals[self.arrivals..].to_vec();
        these.sort_unstable();
        let size = |name: &str| fs::metadata(self.state.join(name)).map_or(0, |file| file.len() >> 10);
        let look = Look {
            at: self.begun.elapsed().as_secs_f64(),
            workers: self.tally.registered(),
            rate: (self.tally.submitted.get() - self.submitted) as f64 / passed,
            open: self.tally.submitted.get() - self.tally.ended.get(),
            p50_ms: below(&these, 0.5),
            p99_ms: below(&these, 0.99),
            scheduler: share(process.ticks, before.ticks),
            first_thread: share(process.ticks_of_first_thread, before.ticks_of_first_thread),
            generator: share(ourselves.ticks, self.ourselves.ticks),
            machine: share(machine, self.machine),
            process,
            database_kib: size("scheduler.db") + size("scheduler.db-wal"),
        };
        self.arrivals = arrivals.len();
        self.submitted = self.tally.submitted.get();
        (self.scheduler, self.ourselves, self.machine) = (process, ourselves, machine);
        look
    }
}

impl Look {
    const HEADER: &str = "    s workers jobs/s  open   p50 ms  p99 ms | scheduler % (1st thread)   MiB  anon files   db MiB | load % machine %";

    fn line(&self) -> String {
        let Process { resident_kib, anonymous_kib, open_files, .. } = self.process;
        format!(
            "{:5.0} {:7} {:6.0} {:5} {:8.1} {:7.1} | {:11.0} {:12.0} {:5.0} {:5.0} {:5} {:8.0} | {:6.0} {:9.0}",
            self.at,
            self.workers,
            self.rate,
            self.open,
            self.p50_ms,
            self.p99_ms,
            self.scheduler,
            self.first_thread,
            resident_kib as f64 / 1024.0,
            anonymous_kib as f64 / 1024.0,
            open_files,
            self.database_kib as f64 / 1024.0,
            self.generator,
            self.machine,
        )
    }

    fn json(&self) -> Value {
        json!({
            "at_s": self.at, "workers": self.workers, "jobs_per_s": self.rate, "open": self.open, "arrival_p50_ms": self.p50_ms,
            "arrival_p99_ms": self.p99_ms, "scheduler_percent": self.scheduler, "first_thread_percent": self.first_thread,
            "generator_percent": self.generator, "machine_percent": self.machine, "resident_kib": self.process.resident_kib,
            "anonymous_kib": self.process.anonymous_kib, "open_files": self.process.open_files, "database_kib": self.database_kib,
        })
    }
}

/// Returns the process that a scheduler's lock names.
fn scheduler(state: &Path) -> Option<u32> {
    fs::read_to_string(state.join("scheduler.lock")).ok()?.trim().parse().ok()
}

/// Returns below what a share of these sorted times is, in ms.
fn below(sorted: &[u32], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(0.0, |us| f64::from(*us) / 1000.0)
}

fn summary(plan: &Plan, tally: &Tally) -> Value {
    let times = |times: Ref<'_, Vec<u32>>| {
        let mut sorted = times.clone();
        sorted.sort_unstable();
        json!({
            "p50": below(&sorted, 0.5), "p90": below(&sorted, 0.9), "p99": below(&sorted, 0.99), "p999": below(&sorted, 0.999),
            "longest": below(&sorted, 1.0),
        })
    };
    let complete: Vec<_> = tally.complete_after.borrow().iter().map(Duration::as_secs_f64).collect();
    json!({
        "workers": plan.workers, "clients": plan.clients.len(), "jobs_per_s": plan.rate, "job_s": plan.job.as_secs_f64(),
        "submitted": tally.submitted.get(), "ended": tally.ended.get(), "begun_again": tally.again.get(),
        "errors": tally.errors.get(), "first_errors": *tally.first_errors.borrow(),
        "submission_to_worker_ms": times(tally.arrival.all()), "submission_to_end_ms": times(tally.end.all()),
        "generator_late_ms": times(tally.lateness.all()), "all_registered_after_s": complete,
    })
}
