//! A scheduler's metrics, with the names that OCluster's dashboards use.

use std::rc::Rc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::pool::Pool;
use crate::server::{LivePool, Losses};

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
    serving: Gauge,
    submitted: Family<OfPool, Counter>,
    cancelled: Family<OfPool, Counter>,
    accepted: Family<OfPool, Counter>,
    retried: Family<OfPool, Counter>,
    abandoned: Family<OfPool, Counter>,
    connected: Family<OfPool, Gauge>,
    capacity: Family<OfPool, Gauge>,
    ready: Family<OfPool, Gauge>,
    paused: Family<OfPool, Gauge>,
    running: Family<OfPool, Gauge>,
    withheld: Family<OfPool, Gauge>,
    queues: Family<OfQueue, Gauge>,
    clients: Family<OfClient, Gauge>,
}

/// Returns the metrics as they are now, in the OpenMetrics format. A scheduler that stands by has no pools.
pub(crate) fn text(pools: &[Rc<LivePool>]) -> String {
    let families = Families::default();
    families.serving.set((!pools.is_empty()).into());
    for live in pools {
        live.look(|pool, _| families.add(pool, &live.losses));
    }
    families.text()
}

impl Families {
    fn text(self) -> String {
        let mut registry = Registry::default();
        let Families {
            serving,
            submitted,
            cancelled,
            accepted,
            retried,
            abandoned,
            connected,
            capacity,
            ready,
            paused,
            running,
            withheld,
            queues,
            clients,
        } = self;
        registry.register(
            "kiln_scheduler_serving",
            "1 for the scheduler that serves, 0 for one that stands by",
            serving,
        );
        registry.register("ocluster_pool_jobs_submitted", "Jobs submitted", submitted);
        registry.register("ocluster_pool_jobs_cancelled", "Jobs cancelled while they waited", cancelled);
        registry.register("ocluster_pool_jobs_accepted", "Jobs given to workers", accepted);
        registry.register(
            "ocluster_pool_jobs_retried",
            "Runs lost with their workers, after which the jobs began again",
            retried,
        );
        registry.register("ocluster_pool_jobs_abandoned", "Jobs given up, because their workers were lost", abandoned);
        registry.register("ocluster_pool_workers_connected", "Workers that are connected", connected);
        registry.register("ocluster_pool_workers_capacity", "Jobs that connected workers run at once", capacity);
        registry.register("ocluster_pool_workers_ready", "Requests of workers for a job", ready);
        registry.register("ocluster_pool_workers_paused", "Connected workers that are not active", paused);
        registry.register("ocluster_pool_jobs_running", "Jobs that run", running);
        registry.register("ocluster_pool_jobs_withheld", "Jobs that wait for secrets from their clients", withheld);
        registry.register("ocluster_pool_queue_length", "Jobs that wait", queues);
        registry.register("ocluster_scheduler_client_submitted_jobs", "A client's jobs that wait or run", clients);
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn add(&self, pool: &Pool, losses: &Losses) {
        let name = pool.name().to_string();
        let label = OfPool { pool: name.clone() };
        let gauges = pool.gauges();
        let set = |family: &Family<OfPool, Gauge>, value: usize| {
            family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        self.submitted.get_or_create(&label).inc_by(gauges.submitted_total);
        self.cancelled.get_or_create(&label).inc_by(gauges.cancelled_total);
        self.accepted.get_or_create(&label).inc_by(gauges.accepted_total);
        self.retried.get_or_create(&label).inc_by(losses.retried.get());
        self.abandoned.get_or_create(&label).inc_by(losses.abandoned.get());
        set(&self.connected, gauges.connected);
        set(&self.capacity, usize::try_from(gauges.capacity).unwrap_or(usize::MAX));
        set(&self.ready, gauges.ready);
        set(&self.paused, gauges.paused);
        set(&self.running, gauges.running);
        set(&self.withheld, gauges.withheld);

        let length = |queue: &str, priority, value: usize| {
            let label = OfQueue { queue: queue.to_owned(), pool: name.clone(), priority };
            // Added to what there is: a worker may be called `incoming`, and hides nothing by that.
            self.queues.get_or_create(&label).inc_by(i64::try_from(value).unwrap_or(i64::MAX));
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
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::Request;

    #[test]
    fn a_worker_called_as_the_backlog_does_not_hide_it() {
        let mut pool = Pool::new("p");
        pool.submit(Duration::ZERO, b"a".as_slice().into(), Request { hint: "".into(), urgent: false });
        pool.register(b"incoming".as_slice().into(), 1).expect("the name is free");
        let families = Families::default();
        families.add(&pool, &Losses::default());
        let line = "ocluster_pool_queue_length{queue=\"incoming\",pool=\"p\",priority=\"low\"} 1\n";
        let text = families.text();
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn metrics_are_of_so_many_workers_and_clients_and_no_more() {
        let mut pool = Pool::new("p");
        let length = |pool: &Pool| {
            let families = Families::default();
            families.add(pool, &Losses::default());
            families.text().lines().filter(|line| line.contains("\u{1}")).count()
        };
        // Two lines for each: urgent, and not.
        for (names, lines) in [(0..2_500, 10_000), (2_500..5_000, 20_000), (5_000..6_000, 20_000)] {
            for name in names {
                let name = format!("\u{1}{name}");
                pool.register(name.as_bytes().into(), 1).expect("the name is free");
                pool.submit(Duration::ZERO, name.as_bytes().into(), Request { hint: "".into(), urgent: false });
            }
            assert_eq!(length(&pool), lines);
        }
    }
}
