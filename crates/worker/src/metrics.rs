//! A worker's metrics, with the names that OCluster's dashboards use, and those of others that it passes on.

use std::collections::BTreeMap;
use std::time::Duration;

use bstr::BString;
use kiln_api::{Error, Metric};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The media type of [`Metrics::text`].
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long another program may take for its metrics, and how long they may be.
const PATIENCE: Duration = Duration::from_secs(8);
const LONGEST: usize = 8 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

/// A worker's own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) accepted: Counter,
    pub(crate) running: Gauge,
    pub(crate) unhealthy: Gauge,
    times: Family<Ended, Histogram>,
    pub(crate) health: Histogram,
    pub(crate) prune: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // What quick and what long jobs take, in seconds.
        let buckets = || Histogram::new([0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14400.0]);
        let metrics = Self {
            registry: Registry::default(),
            accepted: Counter::default(),
            running: Gauge::default(),
            unhealthy: Gauge::default(),
            times: Family::new_with_constructor(buckets),
            health: buckets(),
            prune: buckets(),
        };
        let mut registry = Registry::default();
        registry.register("ocluster_worker_jobs_accepted", "Jobs taken", metrics.accepted.clone());
        registry.register("ocluster_worker_running_jobs", "Jobs that run", metrics.running.clone());
        registry.register("ocluster_worker_unhealthy", "1 while health checks fail", metrics.unhealthy.clone());
        registry.register("ocluster_worker_job_time_seconds", "How long jobs took", metrics.times.clone());
        registry.register(
            "ocluster_worker_healthcheck_time_seconds",
            "How long health checks took",
            metrics.health.clone(),
        );
        registry.register("ocluster_worker_docker_prune_time_seconds", "How long pruning took", metrics.prune.clone());
        Self { registry, ..metrics }
    }

    /// Notes that a job ended: `ok`, `fail`, `cancelled` or `error`.
    pub(crate) fn ended(&self, result: &'static str, took: Duration) {
        self.times.get_or_create(&Ended { result }).observe(took.as_secs_f64());
    }

    pub(crate) fn text(&self) -> Metric {
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = encode(&mut text, &self.registry);
        Metric { content_type: CONTENT_TYPE.into(), data: text.into() }
    }
}

/// Where the metrics of others are, by HTTP.
#[derive(Debug, Clone, Default)]
pub struct Others {
    /// Those of the machine: a node exporter's.
    pub host: Option<String>,
    /// Those that only this worker has, by name.
    pub additional: BTreeMap<BString, String>,
}

/// Returns the metrics at `url`.
pub(crate) async fn fetch(url: String) -> Result<Metric, Error> {
    let failed = |error: reqwest::Error| Error::failed(format!("no metrics: {}", error.without_url()));
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().map_err(failed)?;
    let mut response = client.get(&url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    let content_type = response.headers().get(reqwest::header::CONTENT_TYPE).map(|value| value.as_bytes().into());
    let mut data = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        data.extend_from_slice(&chunk);
        if data.len() > LONGEST {
            return Err(Error::failed(format!("more than {LONGEST} bytes of metrics")));
        }
    }
    Ok(Metric { content_type: content_type.unwrap_or_else(|| "text/plain".into()), data: data.into() })
}
