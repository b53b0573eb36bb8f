//! Workers and clients that are none, and talk to a real scheduler as the real ones do.
//!
//! All are on one thread: what is measured is the scheduler. A worker connects, enters its pool, hands over what it has from before, and takes
//! a job whenever it has room, as `kiln worker` does; but the job is only waited for. A client submits jobs to be kept, through one
//! connection, reads the log of each to its end, and its result, as `kiln submit` does. Both connect again when they are cut off.

mod clients;
mod tally;
mod workers;

use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::CapabilityUri;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use clients::Client;
pub(crate) use tally::Tally;
use workers::Worker;

/// Who there is, and what they do.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Where the workers are to work.
    pub(crate) pool: CapabilityUri,
    /// What that pool is called.
    pub(crate) pool_name: BString,
    /// The clients.
    pub(crate) clients: Vec<CapabilityUri>,
    /// How many workers.
    pub(crate) workers: usize,
    /// How many jobs each does at once.
    pub(crate) capacity: u32,
    /// How many jobs there are, of all clients together.
    pub(crate) jobs: usize,
    /// How many are submitted in a second, whatever becomes of those before.
    pub(crate) rate: f64,
    /// How long each takes.
    pub(crate) job: Duration,
}

/// Plays it, until all jobs have ended. What happens is noted in `tally`.
pub(crate) async fn play(plan: &Plan, tally: &Rc<Tally>) {
    let stop = CancellationToken::new();
    let mut there = JoinSet::new();
    for number in 0..plan.workers {
        let worker = Worker::new(number, plan, tally);
        there.spawn_local(worker.work(stop.clone()));
    }
    tally.until_registered(plan.workers).await;
    {
        let (tally, all, stop) = (Rc::clone(tally), plan.workers, stop.clone());
        there.spawn_local(async move {
            while stop.run_until_cancelled(tally.until_missing(all)).await.is_some() {
                stop.run_until_cancelled(tally.until_registered(all)).await;
            }
        });
    }

    let clients: Vec<_> = plan.clients.iter().map(|_| Client::new(plan, tally)).collect();
    for (client, uri) in clients.iter().zip(&plan.clients) {
        there.spawn_local(Rc::clone(client).connect(uri.clone(), stop.clone()));
    }
    for client in &clients {
        client.until_connected().await;
    }
    let begun = Instant::now();
    let mut jobs = JoinSet::new();
    for (number, client) in (0..plan.jobs).zip(clients.iter().cycle()) {
        let due = begun + Duration::from_secs_f64(number as f64 / plan.rate);
        if due > Instant::now() {
            sleep_until(due).await;
        }
        // What was late is late: a job's time is counted from when it was due.
        tally.submits(number, due);
        jobs.spawn_local(Rc::clone(client).job(number));
        // Those that have ended are not kept.
        while let Some(ended) = jobs.try_join_next() {
            tally.unless_a_bug(ended);
        }
    }
    while let Some(ended) = jobs.join_next().await {
        tally.unless_a_bug(ended);
    }
    stop.cancel();
    while there.join_next().await.is_some() {}
}
