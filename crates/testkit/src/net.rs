//! A server on a random port of the loopback interface, whose threads and connections all end with it.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Locks what a thread may have left while it panicked. A failed test must still clean up.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server: a thread accepts, and each connection has a thread.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    sockets: Arc<Sockets>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one. `serve` blocks on nothing but sockets that it has [kept](Sockets::keep): these are shut down at the
    /// end, and what else it waits for must be over before.
    pub(crate) fn start(serve: impl Fn(TcpStream, &Sockets) + Send + Sync + 'static) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(("127.0.0.1", 0))?);
        let address = listener.local_addr()?;
        let sockets = Arc::new(Sockets::default());
        let acceptor = {
            let (listener, sockets) = (Arc::clone(&listener), Arc::clone(&sockets));
            std::thread::spawn(move || {
                // The scope ends when all connections have.
                std::thread::scope(|scope| {
                    while let Ok((stream, _)) = listener.accept() {
                        scope.spawn(|| {
                            let Ok(_kept) = sockets.keep(&stream) else { return };
                            serve(stream, &sockets);
                        });
                    }
                });
            })
        };
        Ok(Self { address, listener, sockets, acceptor: Some(acceptor) })
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Linux wakes who waits in accept(2).
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.sockets.end();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic of `serve` has been printed, and its test fails for want of an answer.
            let _ = acceptor.join();
        }
    }
}

/// The open sockets of a server.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    ended: bool,
    next: u64,
    streams: HashMap<u64, TcpStream>,
}

impl Sockets {
    /// Shuts `stream` down when the server ends, at once if it has. The guard lives as long as the stream, not longer.
    pub(crate) fn keep(&self, stream: &TcpStream) -> io::Result<Kept<'_>> {
        let stream = stream.try_clone()?;
        let mut open = lock(&self.0);
        if open.ended {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, stream);
        Ok(Kept { sockets: self, number })
    }

    fn end(&self) {
        let mut open = lock(&self.0);
        open.ended = true;
        for stream in open.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A socket that is known to its server.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    sockets: &'a Sockets,
    number: u64,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        lock(&self.sockets.0).streams.remove(&self.number);
    }
}
