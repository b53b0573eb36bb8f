//! A host and an internet of one's own: two network namespaces with a cable between them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where everybody serves.
pub(crate) const PORT: u16 = 8000;

/// Both namespaces. The thread that made it is on the host from then on, and what it starts too.
pub(crate) struct World {
    pub(crate) host: Namespace,
    pub(crate) internet: Namespace,
}

impl World {
    /// The host is 203.0.113.2, 10.9.0.2 and 2600:db8::2; the internet has 203.0.113.1, 198.51.100.7, 10.9.0.1, fd00::7 and 2600:1::7.
    pub(crate) fn new() -> Self {
        let (host, internet) = (Namespace::new(), Namespace::new());
        host.ip(&format!("link add up0 type veth peer name down0 netns {}", internet.keeper.id()));
        for (namespace, interface, number) in [(&host, "up0", 2), (&internet, "down0", 1)] {
            namespace.ip(&format!("addr add 203.0.113.{number}/24 dev {interface}"));
            namespace.ip(&format!("addr add 10.9.0.{number}/24 dev {interface}"));
            namespace.ip(&format!("addr add 2600:db8::{number}/64 dev {interface} nodad"));
            namespace.ip("link set lo up");
            namespace.ip(&format!("link set {interface} up"));
        }
        for address in ["198.51.100.7", "fd00::7", "2600:1::7"] {
            internet.ip(&format!("addr add {address} dev down0{}", if address.contains(':') { " nodad" } else { "" }));
        }
        host.ip("route add default via 203.0.113.1");
        host.ip("-6 route add default via 2600:db8::1");
        host.enter();
        Self { host, internet }
    }
}

/// A network namespace, gone when dropped.
pub(crate) struct Namespace {
    /// Lives as long as its stdin is open.
    keeper: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo made; exec cat"]);
        let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        keeper.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        Self { keeper }
    }

    pub(crate) fn ip(&self, words: &str) {
        let target = format!("--net={}", self.path());
        let status = Command::new("nsenter").args([&target, "ip"]).args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// Moves this thread there.
    pub(crate) fn enter(&self) {
        enter(&self.path());
    }

    /// Serves `text` to whoever connects to [`PORT`] of any address.
    pub(crate) fn serve(&self, text: &'static str) -> Server {
        let path = self.path();
        let listener = std::thread::spawn(move || {
            enter(&path);
            Arc::new(TcpListener::bind(SocketAddr::new(IpAddr::from([0_u16; 8]), PORT)).unwrap())
        });
        let listener = listener.join().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let (accepting, counter) = (Arc::clone(&listener), Arc::clone(&served));
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(text.as_bytes());
            }
        });
        Server { listener, served, thread: Some(thread) }
    }

    /// Returns a socket there, bound to `address`.
    pub(crate) fn datagrams(&self, address: SocketAddr) -> UdpSocket {
        let path = self.path();
        let bound = std::thread::spawn(move || {
            enter(&path);
            UdpSocket::bind(address).unwrap()
        });
        bound.join().unwrap()
    }
}

fn enter(path: &str) {
    let namespace = File::open(path).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Ends when dropped.
pub(crate) struct Server {
    listener: Arc<TcpListener>,
    served: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Returns how many connected so far.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Linux wakes who waits in accept(2).
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
