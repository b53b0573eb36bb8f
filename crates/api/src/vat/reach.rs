//! Reaching a service at whichever of its addresses it is.
//!
//! A service may have several addresses, of hosts of which one serves, and a host several. They are tried one after the other, the next when one
//! fails or has not succeeded for a moment, as RFC 8305 has it. The first that answers is taken: not the first that accepts a
//! connection, which the kernel does for a process that is stopped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::connection::{ConnectError, Connection};
use super::limits::Limits;
use super::stream::{Plain, Tcp};
use crate::key::Key;
use crate::retries::at_random;
use crate::tls;
use crate::uri::{Address, CapabilityUri, Identity};

/// How long to wait for an answer to a connection attempt, for each address that a host has.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an attempt may go on alone. RFC 8305 (5) has 250 ms; a scheduler to which everybody comes at once takes longer for a handshake,
/// and is not to be asked for a second one by its other address.
const STAGGER: Duration = Duration::from_millis(500);

/// How long after a failure an address is tried again, while others are not known to fail: who stood by may have begun to serve.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be reached, and how.
pub(super) struct Goal<'a> {
    uri: &'a CapabilityUri,
    limits: &'a Limits,
    tls: Option<TlsConnector>,
}

impl<'a> Goal<'a> {
    pub(super) fn new(uri: &'a CapabilityUri, key: &Key, limits: &'a Limits) -> Self {
        let tls = match uri.identity {
            Identity::Insecure => None,
            Identity::Key(expected) => Some(TlsConnector::from(Arc::new(tls::client(key, expected)))),
        };
        Self { uri, limits, tls }
    }

    /// Connects to the first address that answers.
    pub(super) async fn reach(&self) -> Result<Connection, ConnectError> {
        let addresses: Vec<_> = self.uri.addresses.iter().collect();
        let is_alone = addresses.len() == 1;
        let reached = first(&addresses, async |&address| self.reach_at(address, is_alone).await).await;
        reached.map_err(|mut errors| match errors.len() {
            1 => errors.remove(0),
            _ => ConnectError::NoneOf(errors),
        })
    }

    async fn reach_at(&self, address: &Address, is_alone: bool) -> Result<Connection, ConnectError> {
        let failed = |source| ConnectError::Connect { address: address.clone(), source };
        let (host, port) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                return self.greet(Plain::Unix(stream), address, is_alone).await;
            }
            Address::Tcp { host, port } => (host.as_str(), *port),
        };
        let resolve = |source| ConnectError::Resolve { address: address.clone(), source };
        let targets: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(resolve)?.collect();
        if targets.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        let is_alone = is_alone && targets.len() == 1;
        let reached = first(&targets, async |&target| {
            let attempt = timeout(PATIENCE, TcpStream::connect(target)).await;
            let tcp = attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).and_then(Tcp::new);
            self.greet(Plain::Tcp(tcp.map_err(failed)?), address, is_alone).await
        });
        // A key that is wrong says more than that somebody else was not reached.
        reached.await.map_err(|mut errors| {
            let telling = errors.iter().position(ConnectError::is_wrong_key).unwrap_or(errors.len() - 1);
            errors.swap_remove(telling)
        })
    }

    /// Begins to speak. What goes on alone is not asked to prove that it can, if there is no encryption.
    async fn greet(&self, plain: Plain, address: &Address, is_alone: bool) -> Result<Connection, ConnectError> {
        let Some(tls) = &self.tls else {
            let connection = Connection::over(plain.boxed(), self.limits.clone());
            return match is_alone || connection.is_answered(self.limits.handshake).await {
                true => Ok(connection),
                false => Err(ConnectError::NoAnswer { address: address.clone() }),
            };
        };
        // No name is checked, and an address is not sent.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        // Who is given up in the middle of this never was a peer: OCaml's schedulers have one connection for each key.
        let handshake = timeout(self.limits.handshake, tls.connect(name, plain.buffered()));
        let stream = handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|source| match is_wrong_key(&source) {
            true => ConnectError::WrongKey { address: address.clone() },
            false => ConnectError::Handshake { address: address.clone(), source },
        })?;
        Ok(Connection::over(Box::new(stream), self.limits.clone()))
    }
}

/// Tries one after the other, and side by side where that takes long. Returns the first success, or why each failed last.
///
/// One that failed is tried again until each has failed once.
async fn first<'a, I, T, E>(items: &'a [I], attempt: impl AsyncFn(&'a I) -> Result<T, E>) -> Result<T, Vec<E>> {
    let attempt = &attempt;
    let begin = |index: usize| async move { (index, attempt(&items[index]).await) };
    let mut errors: Vec<_> = items.iter().map(|_| None).collect();
    let mut fresh: VecDeque<_> = (1..items.len()).collect();
    let mut failed = Vec::new();
    let mut running = FuturesUnordered::new();
    running.push(begin(0));
    loop {
        let pause = if fresh.is_empty() { at_random(AGAIN) } else { STAGGER };
        tokio::select! {
            ended = running.next() => match ended {
                Some((_, Ok(won))) => return Ok(won),
                Some((index, Err(error))) => {
                    errors[index] = Some(error);
                    failed.push(index);
                    if errors.iter().all(Option::is_some) {
                        return Err(errors.into_iter().flatten().collect());
                    }
                    running.extend(fresh.pop_front().map(&begin));
                }
                None => return Err(errors.into_iter().flatten().collect()),
            },
            () = sleep(pause), if !(fresh.is_empty() && failed.is_empty()) => match fresh.pop_front() {
                Some(next) => running.push(begin(next)),
                None => running.extend(failed.drain(..).map(&begin)),
            },
        }
    }
}

/// Returns true if our own check of the peer's key said no.
fn is_wrong_key(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    /// What becomes of an attempt.
    #[derive(Clone, Copy)]
    enum Fate {
        /// It fails after so many milliseconds.
        Fails(u64),
        /// It succeeds after so many.
        Succeeds(u64),
        /// It fails at once, up to so many milliseconds after the beginning, and then succeeds at once.
        StandsBy(u64),
        Hangs,
    }

    /// Tries all, and returns how it ended, after how many milliseconds, and which were begun when.
    async fn tried(fates: &[Fate]) -> (Result<usize, Vec<usize>>, u64, Vec<(usize, u64)>) {
        let since = Instant::now();
        let now = || u64::try_from(since.elapsed().as_millis()).expect("it is soon");
        let begun = RefCell::new(Vec::new());
        let all: Vec<_> = fates.iter().copied().enumerate().collect();
        let ended = first(&all, async |&(index, fate)| {
            begun.borrow_mut().push((index, now()));
            match fate {
                Fate::Hangs => pending().await,
                Fate::StandsBy(until) if now() < until => Err(index),
                Fate::StandsBy(_) => Ok(index),
                Fate::Fails(after) => {
                    sleep(Duration::from_millis(after)).await;
                    Err(index)
                }
                Fate::Succeeds(after) => {
                    sleep(Duration::from_millis(after)).await;
                    Ok(index)
                }
            }
        });
        let ended = ended.await;
        (ended, now(), begun.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_tried_when_one_fails_or_takes_long_and_the_first_success_counts() {
        use Fate::{Fails, Hangs, Succeeds};
        assert_eq!(tried(&[Succeeds(30_000)]).await, (Ok(0), 30_000, vec![(0, 0)]));
        assert_eq!(tried(&[Fails(7), Fails(0), Succeeds(1)]).await, (Ok(2), 8, vec![(0, 0), (1, 7), (2, 7)]));
        assert_eq!(tried(&[Hangs, Hangs, Succeeds(0)]).await, (Ok(2), 1000, vec![(0, 0), (1, 500), (2, 1000)]));
        assert_eq!(tried(&[Succeeds(600), Succeeds(200)]).await, (Ok(0), 600, vec![(0, 0), (1, 500)]));
        assert_eq!(tried(&[Fails(7), Fails(2)]).await, (Err(vec![0, 1]), 9, vec![(0, 0), (1, 7)]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stood_by_is_found_when_it_serves_though_another_hangs() {
        let (ended, after, begun) = tried(&[Fate::Hangs, Fate::StandsBy(6000)]).await;
        assert_eq!(ended, Ok(1));
        assert!((6000..=7000).contains(&after), "{after}");
        assert!(begun.len() < 20, "{begun:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_last_that_went_on_fails() {
        let (ended, after, _) = tried(&[Fate::Fails(10_000), Fate::Fails(0)]).await;
        assert_eq!((ended, after), (Err(vec![0, 1]), 10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_fail_slowly_do_not_keep_each_other_going() {
        let (ended, after, _) = tried(&[Fate::Fails(20_000), Fate::Fails(10_000)]).await;
        assert_eq!((ended, after), (Err(vec![0, 1]), 20_000));
    }
}
