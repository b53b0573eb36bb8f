//! The way from a sandbox that has nothing but a proxy to that proxy: bytes are copied, both ways, unread.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::network::{PROXY_PORT, Proxy};

/// Most connections at once. Further ones wait, as at any server that is busy.
const MAX_CONNECTIONS: usize = 128;
/// A thread copies one way of one connection and calls little.
const STACK: usize = 128 << 10;
/// A proxy that does not answer fails the connection, not the build.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Listens in the network namespace that this thread is in.
pub(super) fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT))
}

/// Serves until the process is killed.
pub(super) fn serve(listener: &TcpListener, proxy: &Proxy) -> io::Result<()> {
    let free = Arc::new(Slots::new(MAX_CONNECTIONS));
    loop {
        let slot = Slots::take(&free);
        let (inside, _) = listener.accept()?;
        let proxy = proxy.clone();
        thread::Builder::new().stack_size(STACK).spawn(move || {
            // The client sees a closed connection, as with any proxy that fails.
            let _ = connect(&proxy).and_then(|outside| copy_both_ways(&inside, &outside));
            drop(slot);
        })?;
    }
}

/// The name is looked up each time: a proxy may move.
fn connect(proxy: &Proxy) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for address in std::net::ToSocketAddrs::to_socket_addrs(&(proxy.host(), proxy.port()))? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn copy_both_ways(inside: &TcpStream, outside: &TcpStream) -> io::Result<()> {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        // The end of one way is passed on; after an error nobody needs the other.
        let _ = if copied.is_ok() { to.shutdown(Shutdown::Write) } else { from.shutdown(Shutdown::Both) };
        if copied.is_err() {
            let _ = to.shutdown(Shutdown::Both);
        }
    };
    thread::scope(|scope| {
        thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || copy(outside, inside))?;
        copy(inside, outside);
        Ok(())
    })
}

/// A number of places, each taken by one connection.
struct Slots {
    taken: AtomicUsize,
    most: usize,
    waiting: thread::Thread,
}

struct Slot(Arc<Slots>);

impl Slots {
    fn new(most: usize) -> Self {
        Self { taken: AtomicUsize::new(0), most, waiting: thread::current() }
    }

    /// Waits for a free place. Only the thread that made the places may.
    fn take(places: &Arc<Self>) -> Slot {
        while places.taken.load(Ordering::Acquire) >= places.most {
            thread::park();
        }
        places.taken.fetch_add(1, Ordering::AcqRel);
        Slot(Arc::clone(places))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.waiting.unpark();
    }
}
