//! A connection to another vat.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::RpcSystem;
use futures::FutureExt as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::limits::Limits;
use super::link::Link;
use super::network::{Network, Wanted};
use super::peer::Side;
use super::reach::Goal;
use super::silence::Pulse;
use super::stream::Bytes;
use crate::capability::Reference;
use crate::key::Key;
use crate::uri::{Address, CapabilityUri, ServiceId};

/// How long a connection that is closed may take to send what is to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum ConnectError {
    #[error("cannot find the host of {address}")]
    Resolve {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("cannot connect to {address}")]
    Connect {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("{address} does not have the key that the capability names")]
    WrongKey { address: Address },
    #[error("no secure connection with {address}")]
    Handshake {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("{address} accepts connections, but does not answer")]
    NoAnswer { address: Address },
    /// Of several addresses, in their order.
    #[error("none of {} addresses is reached: {}", .0.len(), all(.0))]
    NoneOf(Vec<ConnectError>),
}

impl ConnectError {
    /// Returns whether nobody was reached but who does not have the key that the capability names: trying again would change nothing.
    pub fn is_wrong_key(&self) -> bool {
        match self {
            Self::WrongKey { .. } => true,
            Self::NoneOf(errors) => errors.iter().all(Self::is_wrong_key),
            _ => false,
        }
    }
}

/// Returns what several errors say, with what caused each: an error has one cause only.
fn all(errors: &[ConnectError]) -> String {
    let whole = |error: &ConnectError| match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    errors.iter().map(whole).collect::<Vec<_>>().join("; ")
}

/// A connection to another vat. Dropping it ends it, after what was said is sent: references that came through it fail from then on.
pub struct Connection {
    system: Rc<RefCell<RpcSystem<()>>>,
    wanted: Wanted,
    pulse: Rc<Pulse>,
    closed: watch::Receiver<bool>,
    leave: DropGuard,
}

impl Connection {
    /// Connects to the host of `uri`: of several, to the first that answers. One that does not costs less than a second.
    ///
    /// One connection for each `key`: OCaml's schedulers close one of two connections of the same key. A service is to be asked for at once: a
    /// host that has said nothing after [`Limits::handshake`] is given up, and later one that is silent for [`Limits::silence`].
    ///
    /// # Errors
    ///
    /// If the host is not reached, or is not the one that the URI means.
    pub async fn open(uri: &CapabilityUri, key: &Key, limits: Limits) -> Result<Self, ConnectError> {
        Goal::new(uri, key, &limits).reach().await
    }

    /// Speaks to whoever is at the other end of `stream`.
    pub(super) fn over(stream: Box<dyn Bytes>, limits: Limits) -> Self {
        let network = Network::new(stream, Side::Opened, limits, Link::default());
        let (wanted, pulse) = (network.wanted(), network.pulse());
        let system = Rc::new(RefCell::new(RpcSystem::new(Box::new(network), None)));
        let (end, closed) = watch::channel(false);
        let driven = Rc::clone(&system);
        let leave = CancellationToken::new();
        let left = leave.clone();
        tokio::task::spawn_local(async move {
            drive(driven, left).await;
            end.send_replace(true);
        });
        Self { system, wanted, pulse, closed, leave: leave.drop_guard() }
    }

    /// Asks the other vat whether it is there. Returns whether it says so in time.
    pub(super) async fn is_answered(&self, time: Duration) -> bool {
        self.pulse.ask();
        tokio::select! {
            () = self.pulse.spoke() => true,
            () = self.closed() => false,
            () = tokio::time::sleep(time) => false,
        }
    }

    /// Returns a service of the other vat, without waiting: calls on it wait, and fail if there is no such service.
    ///
    /// Not to be called from within a call that came through this connection.
    pub fn bootstrap<R: Reference>(&self, service: &ServiceId) -> R {
        self.wanted.set(service);
        let client: capnp::capability::Client = self.system.borrow_mut().bootstrap(());
        R::from_hook(client.hook)
    }

    /// Waits until the connection is lost. The future does not borrow the connection.
    pub fn closed(&self) -> impl Future<Output = ()> + 'static {
        let mut closed = self.closed.clone();
        async move {
            // An error means that the driver is gone.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Ends the connection, and waits until what was said is sent.
    pub async fn close(self) {
        let closed = self.closed();
        drop(self.leave);
        closed.await;
    }
}

/// Speaks with a peer until it is gone, or until `leave`: then it is told, and everything that it refers to is let go.
///
/// It must come to this, however it ends: capnp-rpc's tables keep each other alive until they are disconnected.
pub(super) async fn drive(system: Rc<RefCell<RpcSystem<()>>>, leave: CancellationToken) {
    // It is asked for services from outside too, so nobody can own it.
    let running = poll_fn(|cx| Pin::new(&mut *system.borrow_mut()).poll(cx));
    // What fails in a message of one peer must not keep others waiting for what that peer holds.
    let mut running = std::pin::pin!(AssertUnwindSafe(running).catch_unwind());
    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        () = leave.cancelled() => None,
    };
    let disconnector = system.borrow().get_disconnector();
    let ended = match ended {
        Some(ended) => {
            // Nobody sends any more, so nothing here waits for the peer.
            let let_go = AssertUnwindSafe(tokio::time::timeout(FAREWELL, disconnector)).catch_unwind();
            if let_go.await.is_err() {
                tracing::error!("a connection could not be cleaned up: this is a bug");
            }
            ended
        }
        None => {
            let farewell = async { tokio::join!(disconnector, &mut running).1 };
            // A peer that does not take it is cut off.
            tokio::time::timeout(FAREWELL, farewell).await.unwrap_or(Ok(Ok(())))
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended"),
        Err(_) => tracing::error!("a connection ended by a bug"),
    }
}
