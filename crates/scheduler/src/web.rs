//! What a scheduler tells over HTTP: its metrics, and those of its workers.
//!
//! ```text
//! /metrics                                   the scheduler's own
//! /pool/POOL/worker/WORKER/metrics           a worker's own
//! /pool/POOL/worker/WORKER/host-metrics      those of the machine it runs on
//! /pool/POOL/worker/WORKER/EXTRA             those that only some workers have
//! ```
//!
//! Nothing here can change anything, and nobody is asked who they are: it is for a network of operators. Who is slow, or comes
//! too often, delays others like it, and neither jobs nor workers.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bstr::ByteSlice as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kiln_api::{Error, Metric, MetricsSource};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::server::LivePool;

/// How long a worker may take to say its metrics.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many clients are served at once; others wait.
const CONNECTIONS: usize = 64;
/// How long a client may take for the head of a request, and stay without one.
const HEAD: Duration = Duration::from_secs(15);
/// How long the head may be, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a connection is kept, and how long what was asked then may still take.
const LIFETIME: Duration = Duration::from_secs(300);
const FAREWELL: Duration = Duration::from_secs(30);
/// How long to wait when the system lets us accept nothing, as without file descriptors, until it is tried again.
const BREATHER: Duration = Duration::from_millis(100);

/// Why HTTP is not served.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for HTTP")]
pub struct WebError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// A site that listens.
pub struct Site(TcpListener, SocketAddr);

impl Site {
    /// Listens on `address`.
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub async fn bind(address: SocketAddr) -> Result<Self, WebError> {
        let failed = |source| WebError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self(listener, address))
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.1
    }
}

/// What is asked of the thread that has the pools.
enum Question {
    Own(oneshot::Sender<String>),
    Worker { pool: String, worker: String, what: String, reply: oneshot::Sender<Result<Metric, Failure>> },
}

enum Failure {
    Unknown(&'static str),
    Worker(Error),
    TooSlow,
}

/// Serves what a scheduler has to tell that stands by: that it does.
///
/// # Errors
///
/// If the system does not let us listen. Otherwise it does not return.
pub async fn stand_by(address: SocketAddr) -> Result<std::convert::Infallible, WebError> {
    serve(Site::bind(address).await?, Vec::new(), CancellationToken::new()).await;
    std::future::pending().await
}

/// Serves `site` until `stop`.
pub(crate) async fn serve(site: Site, pools: Vec<Rc<LivePool>>, stop: CancellationToken) {
    let (sender, mut questions) = mpsc::channel(16);
    let router = Router::new()
        .route("/metrics", get(own))
        .route("/pool/{pool}/worker/{worker}/{what}", get(of_worker))
        .with_state(sender);
    let answering = async {
        // Owned here: they end with this.
        let mut asked = JoinSet::new();
        while let Some(question) = questions.recv().await {
            answer(&pools, question, &mut asked);
            while asked.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accept(&site.0, router) => {}
        () = answering => {}
        // A client that keeps its connection holds nothing up.
        () = stop.cancelled() => {}
    }
}

/// Serves whoever connects, for ever.
async fn accept(listener: &TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(place) = Arc::clone(&free).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn_local(async move {
                    let _place = place;
                    attend(stream, router).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for HTTP");
                sleep(BREATHER).await;
            }
        }
    }
}

/// Serves one client. (`axum::serve` has no limits of time.)
async fn attend(stream: TcpStream, router: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(LIFETIME) => {
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection for HTTP ended");
    }
}

fn answer(pools: &[Rc<LivePool>], question: Question, asked: &mut JoinSet<()>) {
    match question {
        Question::Own(reply) => {
            // Whoever asked may have gone; so below.
            let _ = reply.send(metrics::text(pools));
        }
        Question::Worker { pool, worker, what, reply } => {
            let found = pools.iter().find(|candidate| candidate.name == pool.as_bytes());
            let worker = found.map(|pool| pool.worker(worker.as_bytes().as_bstr()));
            let worker = match worker {
                None => return drop(reply.send(Err(Failure::Unknown("no such pool\n")))),
                Some(None) => return drop(reply.send(Err(Failure::Unknown("no such worker is connected\n")))),
                Some(Some(worker)) => worker,
            };
            asked.spawn_local(async move {
                let asked = async {
                    match what.as_str() {
                        "metrics" => worker.metrics(MetricsSource::Agent).await.map(Some),
                        "host-metrics" => worker.metrics(MetricsSource::Host).await.map(Some),
                        what => worker.additional_metric(what.as_bytes()).await,
                    }
                };
                let _ = reply.send(match timeout(PATIENCE, asked).await {
                    Err(_) => Err(Failure::TooSlow),
                    Ok(Err(error)) => Err(Failure::Worker(error)),
                    Ok(Ok(None)) => Err(Failure::Unknown("the worker has no such metrics\n")),
                    Ok(Ok(Some(metric))) => Ok(metric),
                });
            });
        }
    }
}

async fn own(State(ask): State<mpsc::Sender<Question>>) -> Response {
    let (reply, text) = oneshot::channel();
    let _ = ask.send(Question::Own(reply)).await;
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn of_worker(
    State(ask): State<mpsc::Sender<Question>>,
    Path((pool, worker, what)): Path<(String, String, String)>,
) -> Response {
    let (reply, metric) = oneshot::channel();
    let _ = ask.send(Question::Worker { pool, worker, what, reply }).await;
    match metric.await {
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Ok(Err(Failure::Unknown(text))) => (StatusCode::NOT_FOUND, text).into_response(),
        Ok(Err(Failure::TooSlow)) => (StatusCode::GATEWAY_TIMEOUT, "the worker does not answer\n").into_response(),
        Ok(Err(Failure::Worker(error))) => (StatusCode::BAD_GATEWAY, format!("{error}\n")).into_response(),
        Ok(Ok(metric)) => {
            // A worker that was taken over must not make a page of what a browser shows in the scheduler's name.
            let is_text = metric.content_type.starts_with(b"text/plain")
                || metric.content_type.starts_with(b"application/openmetrics-text");
            let given = HeaderValue::from_bytes(&metric.content_type).ok().filter(|_| is_text);
            let content_type = given.unwrap_or(HeaderValue::from_static("text/plain"));
            let headers = [
                (header::CONTENT_TYPE, content_type),
                (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            ];
            (headers, Vec::from(metric.data)).into_response()
        }
    }
}
