//! A scheduler's metrics, with the names that OCluster's dashboards use.

use std::rc::Rc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::server::LivePool;

/// The media type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most workers, and the most clients, of a pool that have numbers of their own.
const LISTED: usize = 5_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQueue {
    queue: String,
    pool: String,
    priority: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClient {
    client: String,
    pool: String,
    priority: &'static str,
}

#[derive(Default)]
struct Families {
    submitted: Family<OfPool, Counter>,
    cancelled: Family<OfPool, Counter>,
    accepted: Family<OfPool, Counter>,
    connected: Family<OfPool, Gauge>,
    capacity: Family<OfPool, Gauge>,
    ready: Family<OfPool, Gauge>,
    paused: Family<OfPool, Gauge>,
    running: Family<OfPool, Gauge>,
    queues: Family<OfQueue, Gauge>,
    clients: Family<OfClient, Gauge>,
}

/// Returns the metrics as they are now, in the OpenMetrics format.
pub(crate) fn text(pools: &[Rc<LivePool>]) -> String {
    let families = Families::default();
    for pool in pools {
        families.add(pool);
    }
    let mut registry = Registry::default();
    let Families { submitted, cancelled, accepted, connected, capacity, ready, paused, running, queues, clients } =
        families;
    registry.register("ocluster_pool_jobs_submitted", "Jobs submitted", submitted);
    registry.register("ocluster_pool_jobs_cancelled", "Jobs cancelled while they waited", cancelled);
    registry.register("ocluster_pool_jobs_accepted", "Jobs given to workers", accepted);
    registry.register("ocluster_pool_workers_connected", "Workers that are connected", connected);
    registry.register("ocluster_pool_workers_capacity", "Jobs that connected workers run at once", capacity);
    registry.register("ocluster_pool_workers_ready", "Requests of workers for a job", ready);
    registry.register("ocluster_pool_workers_paused", "Connected workers that are not active", paused);
    registry.register("ocluster_pool_jobs_running", "Jobs that run", running);
    registry.register("ocluster_pool_queue_length", "Jobs that wait", queues);
    registry.register("ocluster_scheduler_client_submitted_jobs", "A client's jobs that wait or run", clients);
    let mut text = String::new();
    // Writing to memory does not fail.
    let _ = encode(&mut text, &registry);
    text
}

impl Families {
    fn add(&self, live: &LivePool) {
        live.look(|pool, _| {
            let name = live.name.to_string();
            let label = OfPool { pool: name.clone() };
            let gauges = pool.gauges();
            let set = |family: &Family<OfPool, Gauge>, value: usize| {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            self.submitted.get_or_create(&label).inc_by(gauges.submitted_total);
            self.cancelled.get_or_create(&label).inc_by(gauges.cancelled_total);
            self.accepted.get_or_create(&label).inc_by(gauges.accepted_total);
            set(&self.connected, gauges.connected);
            set(&self.capacity, usize::try_from(gauges.capacity).unwrap_or(usize::MAX));
            set(&self.ready, gauges.ready);
            set(&self.paused, gauges.paused);
            set(&self.running, gauges.running);

            let length = |queue: &str, priority, value: usize| {
                let label = OfQueue { queue: queue.to_owned(), pool: name.clone(), priority };
                self.queues.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            length("incoming", "high", gauges.backlog.high);
            length("incoming", "low", gauges.backlog.low);
            for (worker, lengths) in pool.worker_queues().take(LISTED) {
                length(&worker.to_string(), "high", lengths.high);
                length(&worker.to_string(), "low", lengths.low);
            }
            for (client, jobs) in pool.client_jobs().take(LISTED) {
                for (priority, value) in [("high", jobs.high), ("low", jobs.low)] {
                    let label = OfClient { client: client.to_string(), pool: name.clone(), priority };
                    self.clients.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
                }
            }
        });
    }
}
