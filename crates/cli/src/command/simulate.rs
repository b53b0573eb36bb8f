//! `kiln simulate`: what a pool would do.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use kiln_scheduler::simulate::{Costs, Decider, Distribution, Outcome, Trace, TraceError, measure, simulate};

use super::print;
use crate::args::{PolicyOf, Simulate};
use crate::exit::Failure;
use crate::render::tell;

/// Workers of the pool that is measured: more than anybody has.
const MEASURED_WORKERS: u32 = 5000;

pub(super) fn run(arguments: &Simulate) -> Result<(), Failure> {
    if let Some(sizes) = &arguments.sizes {
        return sizes_and_costs(arguments, sizes);
    }
    let trace = match &arguments.trace {
        Some(path) => read(path)?,
        None => arguments.workload().trace(),
    };
    if let Some(path) = &arguments.write_trace {
        write(&trace, path)?;
    }
    let outcomes: Vec<Outcome> = arguments.policy.iter().map(|policy| simulate(&trace, decider(*policy))).collect();
    if arguments.json {
        print(format!("{}\n", serde_json::json!({ "trace": facts(&trace), "outcomes": outcomes })))?;
    } else {
        print(report(&trace, &outcomes))?;
    }
    match outcomes.iter().find(|outcome| !outcome.is_sound()) {
        None => Ok(()),
        Some(Outcome { policy, lost, wrong_starts, .. }) => Err(Failure::Damaged(format!(
            "the policy of {policy} lost {lost} jobs, and started {wrong_starts} that it was not to start"
        ))),
    }
}

fn decider(policy: PolicyOf) -> Decider {
    match policy {
        PolicyOf::Kiln => Decider::Kiln,
        PolicyOf::Ocluster => Decider::OCluster,
    }
}

fn read(path: &Path) -> Result<Trace, Failure> {
    let cannot_read = |source| Failure::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(cannot_read)?;
    Trace::read(BufReader::new(file)).map_err(|error| match error {
        TraceError::Read(source) => cannot_read(source),
        TraceError::Line { line, reason } => Failure::BadTrace { path: path.to_owned(), line, reason },
    })
}

fn write(trace: &Trace, path: &Path) -> Result<(), Failure> {
    let cannot_write = |source| Failure::Write { path: path.to_owned(), source };
    let mut file = BufWriter::new(File::create(path).map_err(cannot_write)?);
    trace.write(&mut file).and_then(|()| file.flush()).map_err(cannot_write)
}

/// What there is of what, by name.
fn facts(trace: &Trace) -> serde_json::Value {
    serde_json::json!({
        "jobs": trace.jobs(),
        "clients": trace.clients.len(),
        "hints": trace.hints.len(),
        "workers": trace.workers.len(),
        "capacity": trace.workers.iter().map(|(_, capacity)| u64::from(*capacity)).sum::<u64>(),
    })
}

/// Outcomes side by side.
fn report(trace: &Trace, outcomes: &[Outcome]) -> String {
    let facts = facts(trace);
    let mut text = format!(
        "{} jobs of {} clients, with {} hints, on {} workers that do {} at once\n\n",
        facts["jobs"], facts["clients"], facts["hints"], facts["workers"], facts["capacity"]
    );
    let row = |text: &mut String, name: &str, value: &dyn Fn(&Outcome) -> String| {
        let _ = write!(text, "{name:<26}");
        outcomes.iter().for_each(|outcome| _ = write!(text, "{:>17}", value(outcome)));
        text.push('\n');
    };
    row(&mut text, "", &|it| if it.policy == "kiln" { it.policy.to_owned() } else { format!("{} (model)", it.policy) });
    row(&mut text, "jobs finished", &|it| it.finished.to_string());
    row(&mut text, "jobs cancelled", &|it| it.cancelled.to_string());
    row(&mut text, "jobs without a worker", &|it| it.waiting.to_string());
    row(&mut text, "begun again elsewhere", &|it| it.restarted.to_string());
    row(&mut text, "lost; run twice", &|it| format!("{}; {}", it.lost, it.wrong_starts));
    row(&mut text, "cache hits", &|it| percent(it.hit_rate));
    row(&mut text, "off the promised share", &|it| shared(it.unfairness));
    row(&mut text, "work of all workers", &|it| format!("{:.0} h", it.work_s / 3600.0));
    row(&mut text, "makespan", &|it| time(it.makespan_s));
    row(&mut text, "wait, mean", &|it| time(it.wait_s.mean));
    row(&mut text, "      median", &|it| time(it.wait_s.median));
    row(&mut text, "      99 % below", &|it| time(it.wait_s.p99));
    row(&mut text, "      longest", &|it| time(it.wait_s.max));
    row(&mut text, "turnaround, mean", &|it| time(it.turnaround_s.mean));
    row(&mut text, "      99 % below", &|it| time(it.turnaround_s.p99));
    for (index, (client, rate)) in trace.clients.iter().enumerate() {
        let _ = writeln!(text, "\n{client}, rate {rate}");
        row(&mut text, "  of the promised share", &|it| shared(it.clients[index].share));
        row(&mut text, "  wait, mean", &|it| time(it.clients[index].wait_s.mean));
        row(&mut text, "        99 % below", &|it| time(it.clients[index].wait_s.p99));
    }
    text
}

/// Too little was shared to tell, if there is no part.
fn shared(part: Option<f64>) -> String {
    part.map_or("not shared".to_owned(), percent)
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// Two units are enough: `1day 3h`.
fn time(seconds: f64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds.round() as u64)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn sizes_and_costs(arguments: &Simulate, sizes: &[usize]) -> Result<(), Failure> {
    let workers = arguments.workers.unwrap_or(MEASURED_WORKERS);
    let mut sizes = sizes.to_vec();
    // So that what the allocator keeps of a larger one is not taken for a smaller one's.
    sizes.sort_unstable();
    let mut all: Vec<Costs> = Vec::new();
    for &size in &sizes {
        if !arguments.json {
            tell(format_args!("measuring {size} jobs"));
        }
        all.push(measure(workers, size));
    }
    if arguments.json {
        return print(format!("{}\n", serde_json::json!({ "costs": all })));
    }
    let mut text = format!("{workers} workers; µs of processor time: mean, median, 99 % below, longest\n\n");
    let columns = ["jobs", "submit", "pop", "finish", "cancel", "a job", "process"];
    let mut row = |cells: [String; 7]| {
        let [jobs, submit, pop, finish, cancel, job, process] = cells;
        let _ = writeln!(text, "{jobs:>8}  {submit:<21}{pop:<21}{finish:<21}{cancel:<21}{job:>8}  {process:>10}");
    };
    row(columns.map(str::to_owned));
    for costs in &all {
        let job = costs.job_bytes.map_or("?".to_owned(), |bytes| format!("{bytes} B"));
        let process = costs.memory_bytes.map_or("?".to_owned(), super::size);
        let [submit, pop, finish, cancel] =
            [costs.submit_us, costs.pop_us, costs.finish_us, costs.cancel_us].map(distribution);
        row([costs.jobs.to_string(), submit, pop, finish, cancel, job, process]);
    }
    print(text)
}

fn distribution(of: Distribution) -> String {
    format!("{:.1} {:.1} {:.1} {:.0}", of.mean, of.median, of.p99, of.max)
}
