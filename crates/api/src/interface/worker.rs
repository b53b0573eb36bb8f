//! What a worker lets its scheduler do.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, reference};
use crate::error::Error;
use crate::generated::ocluster_capnp::{additional_metric, worker};
use crate::text::{bytes, text};

/// Metrics as an HTTP server would give them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Their media type.
    pub content_type: BString,
    /// The metrics.
    pub data: BString,
}

/// Whose metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsSource {
    /// The worker's own.
    Agent,
    /// The machine's that it runs on.
    Host,
}

reference! {
    /// A reference to a worker.
    Worker, worker::Client
}

/// What a worker does for its scheduler.
pub trait WorkerServer: 'static {
    /// Returns metrics.
    fn metrics(&self, source: MetricsSource) -> Answer<Metric>;
    /// Finishes what runs, then restarts with the newest version.
    fn self_update(&self) -> Answer<()>;
    /// Returns metrics that only some workers have, or `None`.
    fn additional_metric(&self, source: BString) -> Answer<Option<Metric>>;
}

impl Worker {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl WorkerServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// See [`WorkerServer::metrics`]. The call is made at once, and does not hold the reference.
    ///
    /// # Errors
    ///
    /// What the worker says, or that it cannot be reached.
    pub fn metrics(&self, source: MetricsSource) -> impl Future<Output = Result<Metric, Error>> + use<> {
        let mut request = self.0.metrics_request();
        request.get().set_source(match source {
            MetricsSource::Agent => worker::MetricsSource::Agent,
            MetricsSource::Host => worker::MetricsSource::Host,
        });
        let response = request.send().promise;
        async move {
            let response = response.await?;
            let response = response.get()?;
            Ok(Metric { content_type: bytes(response.get_content_type()?), data: bytes(response.get_data()?) })
        }
    }

    /// See [`WorkerServer::self_update`]. The call is made at once, and does not hold the reference.
    ///
    /// # Errors
    ///
    /// What the worker says. That the connection was lost meanwhile is a success, which is for the caller to see.
    pub fn self_update(&self) -> impl Future<Output = Result<(), Error>> + use<> {
        let response = self.0.self_update_request().send().promise;
        async move { response.await.map(drop).map_err(Error::from) }
    }

    /// See [`WorkerServer::additional_metric`]. The call is made at once, and does not hold the reference.
    ///
    /// # Errors
    ///
    /// What the worker says, or that it cannot be reached.
    pub fn additional_metric(&self, source: &[u8]) -> impl Future<Output = Result<Option<Metric>, Error>> + use<> {
        let mut request = self.0.additional_metric_request();
        request.get().set_source(text(source));
        let response = request.send().promise;
        async move {
            let response = response.await?;
            match response.get()?.get_metric()?.which().map_err(capnp::Error::from)? {
                additional_metric::NotReported(()) => Ok(None),
                additional_metric::Metric(metric) => {
                    let metric = metric?;
                    Ok(Some(Metric {
                        content_type: bytes(metric.get_content_type()?),
                        data: bytes(metric.get_data()?),
                    }))
                }
            }
        }
    }

    /// Returns a reference for others to what is a peer's: they can call what a worker has and nothing else, and neither can hand the
    /// other a reference.
    pub(crate) fn relayed(self) -> Self {
        Self::serve(Relay(self))
    }
}

struct Relay(Worker);

impl WorkerServer for Relay {
    fn metrics(&self, source: MetricsSource) -> Answer<Metric> {
        Box::pin(self.0.metrics(source))
    }

    fn self_update(&self) -> Answer<()> {
        Box::pin(self.0.self_update())
    }

    fn additional_metric(&self, source: BString) -> Answer<Option<Metric>> {
        Box::pin(self.0.additional_metric(&source))
    }
}

struct Adapter<T>(T);

impl<T: WorkerServer> worker::Server for Adapter<T> {
    async fn metrics(
        self: Rc<Self>,
        params: worker::MetricsParams,
        mut results: worker::MetricsResults,
    ) -> Result<(), capnp::Error> {
        let source = match params.get()?.get_source().map_err(capnp::Error::from)? {
            worker::MetricsSource::Agent => MetricsSource::Agent,
            worker::MetricsSource::Host => MetricsSource::Host,
        };
        let answer = self.0.metrics(source);
        drop(self);
        let metric = answer.await?;
        let mut results = results.get();
        results.set_content_type(text(&metric.content_type));
        results.set_data(text(&metric.data));
        Ok(())
    }

    async fn self_update(
        self: Rc<Self>,
        _: worker::SelfUpdateParams,
        _: worker::SelfUpdateResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.self_update();
        drop(self);
        Ok(answer.await?)
    }

    async fn additional_metric(
        self: Rc<Self>,
        params: worker::AdditionalMetricParams,
        mut results: worker::AdditionalMetricResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.additional_metric(bytes(params.get()?.get_source()?));
        drop(self);
        let metric = answer.await?;
        let mut result = results.get().init_metric();
        match metric {
            None => result.set_not_reported(()),
            Some(metric) => {
                let mut result = result.init_metric();
                result.set_content_type(text(&metric.content_type));
                result.set_data(text(&metric.data));
            }
        }
        Ok(())
    }
}
