//! The way from a sandbox that has nothing but a proxy to that proxy: bytes are copied, both ways, unread.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::network::{PROXY_PORT, Proxy};

/// Most connections at once. Further ones wait, as at any server that is busy.
const MAX_CONNECTIONS: usize = 128;
/// A thread copies one way of one connection and calls little.
const STACK: usize = 128 << 10;
/// A proxy that does not answer fails the connection, not the build.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before a connection is accepted after there was no room for it.
const PATIENCE: Duration = Duration::from_millis(100);

/// Listens in the network namespace that this thread is in.
pub(super) fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT))
}

/// Serves until the process is killed. Returns only why the listener cannot be used.
pub(super) fn serve(listener: &TcpListener, proxy: &Proxy) -> io::Error {
    serve_each(|| listener.accept().map(|(inside, _)| inside), proxy)
}

/// Serves each connection that `accept` returns.
fn serve_each(mut accept: impl FnMut() -> io::Result<TcpStream>, proxy: &Proxy) -> io::Error {
    let free = Arc::new(Slots::new(MAX_CONNECTIONS));
    loop {
        let slot = Slots::take(&free);
        let inside = match accept() {
            Ok(inside) => inside,
            Err(error) if is_the_listeners(&error) => return error,
            Err(error) => {
                if is_want_of_room(&error) {
                    free.wait_for_room();
                }
                continue;
            }
        };
        let proxy = proxy.clone();
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            // The client sees a closed connection, as with any proxy that fails.
            let _ = connect(&proxy).and_then(|outside| copy_both_ways(&inside, &outside));
            drop(slot);
        });
        if started.is_err() {
            free.wait_for_room();
        }
    }
}

/// Returns whether an error of accept(2) says that there will never be a connection. All others are of one connection, also of
/// its network, or pass.
fn is_the_listeners(error: &io::Error) -> bool {
    let errnos = [Errno::BADF, Errno::FAULT, Errno::INVAL, Errno::NOTSOCK];
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Returns whether the next call would fail for the same reason: the process or the machine has no descriptor or memory left. The
/// connection waits meanwhile.
fn is_want_of_room(error: &io::Error) -> bool {
    let errnos = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
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

    /// Waits until a connection ends, but not for long: what is wanting may be somebody else's to give back.
    fn wait_for_room(&self) {
        thread::park_timeout(PATIENCE);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.waiting.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_relay_goes_on_after_every_error_that_passes() {
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy: Proxy = format!("http://{}", outside.local_addr().unwrap()).parse().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // As accept(2) lists them.
        let passing = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::INTR,
            Errno::AGAIN,
            Errno::CONNABORTED,
            Errno::PROTO,
            Errno::PERM,
            Errno::NETDOWN,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::OPNOTSUPP,
            Errno::NETUNREACH,
        ];
        let mut errors = passing.into_iter();
        let mut accepted = 0;
        let accept = move || match errors.next() {
            Some(errno) => Err(errno.into()),
            None if accepted == 0 => {
                accepted = 1;
                listener.accept().map(|(inside, _)| inside)
            }
            None => Err(Errno::BADF.into()),
        };
        let relay = thread::spawn(move || serve_each(accept, &proxy));
        let mut inside = TcpStream::connect(address).unwrap();
        inside.write_all(b"asked").unwrap();
        inside.shutdown(Shutdown::Write).unwrap();
        let mut served = outside.accept().unwrap().0;
        let mut text = String::new();
        served.read_to_string(&mut text).unwrap();
        served.write_all(b"answered").unwrap();
        drop(served);
        inside.read_to_string(&mut text).unwrap();
        assert_eq!(text, "askedanswered");
        assert_eq!(relay.join().unwrap().raw_os_error(), Some(Errno::BADF.raw_os_error()));
    }
}
