//! Connections from other vats.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp_rpc::RpcSystem;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::drive;
use super::limits::Limits;
use super::link::Link;
use super::network::Network;
use super::peer::Side;
use super::stream::{Bytes, Plain, Tcp, is_end};
use crate::capability::Capability;
use crate::generated::vat_capnp::restorer;
use crate::interface::Answer;
use crate::key::Key;
use crate::tls;
use crate::uri::{Address, ServiceId};

/// How long to wait when the system lets us accept nothing, as without file descriptors, until it is tried again.
const BREATHER: Duration = Duration::from_millis(100);

/// What a vat offers.
pub trait Services: 'static {
    /// Returns the service with this id, for the peer at the other end of `link`. Knowing the id is the right to have it.
    ///
    /// Objects are dropped when a connection ends; but not one that its peer made hold on to itself. What must not stay is to be
    /// removed by [`Link::ended`] too.
    fn restore(&self, id: &ServiceId, link: &Link) -> Answer<Capability>;
}

/// Whether connections are encrypted.
pub enum Security {
    /// By this key.
    Key(Box<Key>),
    /// Not at all.
    Insecure,
}

/// Why a vat cannot listen.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum ListenError {
    #[error("cannot listen on {address}")]
    Bind {
        address: Address,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no socket, and is left alone")]
    NotASocket { path: PathBuf },
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A vat that waits for others.
pub struct Listener {
    socket: Socket,
    address: Address,
    tls: Option<TlsAcceptor>,
    limits: Limits,
}

impl Listener {
    /// Listens on `address`. A Unix socket that is there is replaced: whoever listened on it is gone, or ought to be.
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub async fn bind(address: &Address, security: Security, limits: Limits) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Bind { address: address.clone(), source };
        let (socket, address) = match address {
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(failed)?;
                // The system may have chosen the port.
                let port = listener.local_addr().map_err(failed)?.port();
                (Socket::Tcp(listener), Address::Tcp { host: host.clone(), port })
            }
            Address::Unix(path) => {
                use std::os::unix::fs::FileTypeExt as _;
                match path.symlink_metadata() {
                    Ok(there) if !there.file_type().is_socket() => {
                        return Err(ListenError::NotASocket { path: path.clone() });
                    }
                    Ok(_) => std::fs::remove_file(path).map_err(failed)?,
                    Err(_) => {}
                }
                (Socket::Unix(UnixListener::bind(path).map_err(failed)?), address.clone())
            }
        };
        let tls = match security {
            Security::Insecure => None,
            Security::Key(key) => Some(TlsAcceptor::from(Arc::new(tls::server(&key)))),
        };
        Ok(Self { socket, address, tls, limits })
    }

    /// Returns where it listens, with the port that the system chose if it was to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Offers `services` until `stop`, then ends all connections.
    pub async fn serve(self, services: impl Services, stop: CancellationToken) {
        let services: Rc<dyn Services> = Rc::new(services);
        let guests = Rc::new(Guests::default());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    let ended: Result<(), tokio::task::JoinError> = ended;
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection ended by a bug");
                    }
                    continue;
                }
                accepted = self.accept() => accepted,
            };
            let (plain, address) = match accepted {
                Ok(accepted) => accepted,
                // The peer's doing, accept(2): the next may be waiting.
                Err(error) if is_end(&error) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(BREATHER).await;
                    continue;
                }
            };
            let Some(guest) = Guest::admit(&guests, address.map(network_of), &self.limits) else {
                tracing::debug!(?address, "too many connections");
                continue;
            };
            let link = Link::until(&stop);
            let ended = link.ended().clone().drop_guard();
            let restorer = Restorer { services: Rc::clone(&services), link };
            let system = attend(plain, self.tls.clone(), restorer, self.limits.clone());
            connections.spawn_local(async move {
                let _guest = guest;
                let _ended = ended;
                system.await;
            });
        }
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self) -> io::Result<(Plain, Option<IpAddr>)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Plain::Tcp(Tcp::new(stream)?), Some(peer.ip())))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Plain::Unix(stream), None))
            }
        }
    }
}

/// Speaks to one peer until it is gone, or its link says that this is to end.
async fn attend(plain: Plain, tls: Option<TlsAcceptor>, restorer: Restorer, limits: Limits) {
    let stream: Box<dyn Bytes> = match tls {
        None => plain.boxed(),
        Some(acceptor) => {
            let handshake = tokio::time::timeout(limits.handshake, acceptor.accept(plain.buffered()));
            let done = tokio::select! {
                done = handshake => done,
                () = restorer.link.leave().cancelled() => return,
            };
            match done {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(error)) => return tracing::debug!(%error, "no handshake"),
                Err(_) => return tracing::debug!("a handshake took too long"),
            }
        }
    };
    converse(stream, restorer, limits).await;
}

/// Speaks to one peer, whose bytes these are, until it is gone, or its link says that this is to end.
async fn converse(stream: Box<dyn Bytes>, restorer: Restorer, limits: Limits) {
    let leave = restorer.link.leave().clone();
    let network = Network::new(stream, Side::Accepted, limits, restorer.link.clone());
    let restorer: restorer::Client = capnp_rpc::new_client(restorer);
    let system = RpcSystem::new(Box::new(network), Some(restorer.client));
    drive(Rc::new(RefCell::new(system)), leave).await;
}

/// Offers `services` to one peer over a stream of any kind, until it is gone.
///
/// For fuzzing: no connection of a program's is made this way.
#[doc(hidden)]
pub async fn converse_over(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    services: impl Services,
    limits: Limits,
) {
    let link = Link::default();
    let _ended = link.ended().clone().drop_guard();
    let restorer = Restorer { services: Rc::new(services), link };
    converse(Box::new(stream), restorer, limits).await;
}

/// What one connection gets its services from.
struct Restorer {
    services: Rc<dyn Services>,
    link: Link,
}

impl restorer::Server for Restorer {
    async fn restore(
        self: Rc<Self>,
        params: restorer::RestoreParams,
        mut results: restorer::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let id = ServiceId(params.get()?.get_id()?.to_vec());
        let capability = self.services.restore(&id, &self.link).await?;
        // The result is the reference itself, as a Bootstrap's is, and not a structure with the reference in it.
        results.hook.get()?.set_as_capability(capability.0);
        Ok(())
    }
}

/// Returns what stands for all addresses that a host may have: of IPv6, a network of 64 bits (RFC 4291, 2.5.4).
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Who is connected.
#[derive(Default)]
struct Guests(RefCell<HashMap<Option<IpAddr>, usize>>);

/// One connection, counted while this lives.
struct Guest {
    guests: Rc<Guests>,
    address: Option<IpAddr>,
}

impl Guest {
    fn admit(guests: &Rc<Guests>, address: Option<IpAddr>, limits: &Limits) -> Option<Self> {
        let mut counts = guests.0.borrow_mut();
        let all: usize = counts.values().sum();
        let same = counts.get(&address).copied().unwrap_or_default();
        if all >= limits.connections || (address.is_some() && same >= limits.connections_of_address) {
            return None;
        }
        counts.insert(address, same + 1);
        drop(counts);
        Some(Self { guests: Rc::clone(guests), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.guests.0.borrow_mut();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
