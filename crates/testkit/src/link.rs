//! A bad network: a TCP proxy that cuts, stalls, slows down and refuses.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::net::{Server, Sockets, lock};

/// A TCP proxy on a random port of the loopback interface. At first it passes everything on.
///
/// What it does can be changed at any time, also for open connections. It ends with this value.
#[derive(Debug)]
pub struct Link {
    // Dropped after `Drop::drop` has let its threads go.
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    weather: Mutex<Weather>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Weather {
    cut_after: Option<u64>,
    stall_after: Option<u64>,
    bytes_per_second: Option<u64>,
    cut_first: u64,
    is_refusing: bool,
    has_ended: bool,
    connections: u64,
    sent: u64,
    received: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug)]
enum Way {
    ToTarget,
    FromTarget,
}

impl Link {
    /// Starts a link to `target`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn to(target: SocketAddr) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let server = {
            let shared = Arc::clone(&shared);
            Server::start(move |client, sockets| shared.connect(&client, target, sockets))?
        };
        Ok(Self { server, shared })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address().to_string()
    }

    /// Cuts each connection when so many bytes have gone one of the ways. `None` cuts no more.
    pub fn cut_after(&self, bytes: Option<u64>) {
        self.change(|weather| weather.cut_after = bytes);
    }

    /// Cuts the next `count` connections as soon as they are there.
    pub fn cut_first(&self, count: u64) {
        self.change(|weather| weather.cut_first = count);
    }

    /// Lets so many bytes pass each way of each connection, and then no more, without closing it. `None` goes on with
    /// what was held back.
    pub fn stall_after(&self, bytes: Option<u64>) {
        self.change(|weather| weather.stall_after = bytes);
    }

    /// Lets this many bytes a second pass each way of each connection; `None` as many as there are.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        self.change(|weather| weather.bytes_per_second = bytes_per_second);
    }

    /// Resets each new connection, from now on or (`false`) no longer. Open ones stay.
    pub fn refuse(&self, is_refusing: bool) {
        self.change(|weather| weather.is_refusing = is_refusing);
    }

    /// Returns how many connections were made, cut and refused ones among them.
    pub fn connections(&self) -> u64 {
        lock(&self.shared.weather).connections
    }

    /// Returns how many bytes have gone to the target.
    pub fn sent(&self) -> u64 {
        lock(&self.shared.weather).sent
    }

    /// Returns how many bytes have come from the target.
    pub fn received(&self) -> u64 {
        lock(&self.shared.weather).received
    }

    /// Passes everything between a connection and `target`, for the other servers of this crate.
    pub(crate) fn tunnel(client: &TcpStream, target: SocketAddr, sockets: &Sockets) {
        Shared::default().connect(client, target, sockets);
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut lock(&self.shared.weather));
        self.shared.changed.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.change(|weather| weather.has_ended = true);
    }
}

impl Shared {
    /// Serves one connection.
    fn connect(&self, client: &TcpStream, target: SocketAddr, sockets: &Sockets) {
        let is_refused = {
            let mut weather = lock(&self.weather);
            weather.connections += 1;
            let is_cut = weather.cut_first > 0;
            weather.cut_first = weather.cut_first.saturating_sub(1);
            is_cut || weather.is_refusing
        };
        let target = if is_refused { None } else { TcpStream::connect(target).ok() };
        let Some(target) = target else {
            // Closing it then resets it.
            let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
            return;
        };
        let Ok(_kept) = sockets.keep(&target) else { return };
        std::thread::scope(|scope| {
            scope.spawn(|| self.pass(client, &target, Way::ToTarget));
            self.pass(&target, client, Way::FromTarget);
        });
    }

    /// Passes one way of a connection on, until it ends or is cut.
    fn pass(&self, mut from: &TcpStream, to: &TcpStream, way: Way) {
        let mut passed = 0;
        let mut buffer = [0; 16 << 10];
        while !self.is_cut(passed) {
            let length = match from.read(&mut buffer) {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if !self.pass_some(&buffer[..length], to, way, &mut passed) {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Passes what was read on, in the parts that the weather allows. Returns false if it is cut.
    fn pass_some(&self, mut rest: &[u8], mut to: &TcpStream, way: Way, passed: &mut u64) -> bool {
        while !rest.is_empty() {
            let Some(length) = self.allowed(*passed, rest.len()) else { return false };
            let (now, later) = rest.split_at(length);
            if to.write_all(now).is_err() {
                return false;
            }
            rest = later;
            let length = u64::try_from(length).expect("a length");
            *passed += length;
            self.count(length, way);
        }
        true
    }

    fn is_cut(&self, passed: u64) -> bool {
        let weather = lock(&self.weather);
        weather.has_ended || weather.cut_after.is_some_and(|limit| passed >= limit)
    }

    /// Waits until some of `wanted` bytes may pass. Returns how many, or `None` if the connection is cut.
    fn allowed(&self, passed: u64, wanted: usize) -> Option<usize> {
        let mut weather = lock(&self.weather);
        loop {
            if weather.has_ended {
                return None;
            }
            let left = |limit: Option<u64>| limit.map_or(u64::MAX, |limit| limit.saturating_sub(passed));
            let (until_cut, until_stall) = (left(weather.cut_after), left(weather.stall_after));
            if until_cut == 0 {
                return None;
            }
            if until_stall > 0 {
                // Twenty parts a second.
                let part = weather.bytes_per_second.map_or(u64::MAX, |speed| (speed / 20).max(1));
                let most = until_cut.min(until_stall).min(part);
                return Some(usize::try_from(most).unwrap_or(usize::MAX).min(wanted));
            }
            weather = self.changed.wait(weather).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts what has passed, and waits as long as it should have taken.
    fn count(&self, length: u64, way: Way) {
        let mut weather = lock(&self.weather);
        match way {
            Way::ToTarget => weather.sent += length,
            Way::FromTarget => weather.received += length,
        }
        let Some(speed) = weather.bytes_per_second else { return };
        let until = Instant::now() + Duration::from_secs_f64(length as f64 / speed.max(1) as f64);
        // A change of the speed ends the wait, as does the end of the link.
        while !weather.has_ended && weather.bytes_per_second == Some(speed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(weather, left).unwrap_or_else(PoisonError::into_inner);
            weather = waited.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A link to a server that sends back what it gets.
    fn echo() -> (Server, Link) {
        let server = Server::start(|stream, _| {
            let _ = io::copy(&mut &stream, &mut &stream);
        })
        .expect("a server");
        let link = Link::to(server.address()).expect("a link");
        (server, link)
    }

    /// Sends so many bytes and returns how many come back before the end or a cut.
    fn ping(link: &Link, length: usize) -> usize {
        let stream = TcpStream::connect(link.address()).expect("it listens");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Both fail if it is cut.
                let _ = (&stream).write_all(&vec![b'x'; length]);
                let _ = stream.shutdown(Shutdown::Write);
            });
            let mut back = Vec::new();
            let _ = (&stream).read_to_end(&mut back);
            back.len()
        })
    }

    #[test]
    fn a_link_passes_everything_on_and_counts_it() {
        let (_server, link) = echo();
        assert_eq!(ping(&link, 1_000_000), 1_000_000);
        assert_eq!((link.connections(), link.sent(), link.received()), (1, 1_000_000, 1_000_000));
    }

    #[test]
    fn a_connection_is_cut_at_the_byte() {
        let (_server, link) = echo();
        link.cut_after(Some(100));
        assert_eq!(ping(&link, 99), 99);
        assert!(ping(&link, 100_000) <= 100);
        assert_eq!(link.sent(), 199);
        link.cut_after(None);
        assert_eq!(ping(&link, 100_000), 100_000);
    }

    #[test]
    fn the_first_connections_are_cut_or_all_are_refused() {
        let (_server, link) = echo();
        link.cut_first(2);
        assert_eq!([1, 1, 1].map(|length| ping(&link, length)), [0, 0, 1]);
        link.refuse(true);
        assert_eq!(ping(&link, 1), 0);
        link.refuse(false);
        assert_eq!(ping(&link, 1), 1);
        assert_eq!(link.connections(), 5);
    }

    #[test]
    fn a_stalled_connection_goes_on_with_what_was_held_back() {
        let (_server, link) = echo();
        link.stall_after(Some(10));
        let mut stream = TcpStream::connect(link.address()).expect("it listens");
        stream.write_all(&[b'x'; 30]).expect("it takes all");
        let mut back = [0; 10];
        stream.read_exact(&mut back).expect("the first bytes");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        assert_eq!(stream.read(&mut back).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        stream.set_read_timeout(None).expect("no timeout");
        link.stall_after(None);
        stream.read_exact(&mut [0; 20]).expect("the rest");
    }

    #[test]
    fn a_slow_connection_gets_through_and_can_be_made_fast() {
        let (_server, link) = echo();
        link.throttle(Some(100_000));
        assert_eq!(ping(&link, 10_000), 10_000);
        link.throttle(Some(1));
        std::thread::scope(|scope| {
            let pinged = scope.spawn(|| ping(&link, 1_000_000));
            while link.sent() == 0 {
                std::thread::yield_now();
            }
            link.throttle(None);
            assert_eq!(pinged.join().expect("no panic"), 1_000_000);
        });
    }

    #[test]
    fn a_link_ends_whatever_its_connections_do() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let link = Link::to(silent.local_addr().expect("an address")).expect("a link");
        link.throttle(Some(1));
        let mut slow = TcpStream::connect(link.address()).expect("it listens");
        slow.write_all(&[b'x'; 100]).expect("it takes all");
        let _target = silent.accept().expect("a connection");
        let mut stalled = TcpStream::connect(link.address()).expect("it listens");
        stalled.write_all(b"x").expect("it takes all");
        let address = link.address();
        drop(link);
        for mut stream in [slow, stalled] {
            assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        }
        assert!(TcpStream::connect(address).is_err());
    }
}
