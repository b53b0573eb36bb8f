//! The bytes of a connection: TCP or a Unix socket, with TLS or without.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::silence::Pulse;

/// Whatever bytes come and go through.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Bytes for T {}

/// A peer that is gone without a word is noticed after this and [`PROBES`] times [`BETWEEN_PROBES`], 25 seconds in all.
const IDLE: Duration = Duration::from_secs(10);
const BETWEEN_PROBES: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// A TCP connection that acknowledges at once.
///
/// OCaml's programs send what we wait for in two small writes with Nagle's algorithm on: the second waits for our acknowledgement of
/// the first, which the kernel delays by 40 ms. `TCP_QUICKACK` (tcp(7), Linux 2.4.4) switches that off until the kernel thinks better
/// of it, so it is set again after every read. It makes logs of their workers a hundred times faster.
pub(crate) struct Tcp(TcpStream);

impl Tcp {
    /// Prepares a connection: no waiting for more to send, and a dead peer is noticed.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new().with_time(IDLE);
        #[cfg(not(any(target_os = "openbsd", target_os = "haiku")))]
        let keepalive = keepalive.with_interval(BETWEEN_PROBES).with_retries(PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        // Keepalive says nothing while our own bytes are not acknowledged (tcp(7), RFC 5482).
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(IDLE + BETWEEN_PROBES * PROBES))?;
        Ok(Self(stream))
    }
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.0).poll_read(cx, buf));
        #[cfg(target_os = "linux")]
        // What fails here fails the next read too.
        let _ = SockRef::from(&self.0).set_tcp_quickack(true);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// A connection before TLS.
pub(crate) enum Plain {
    Tcp(Tcp),
    Unix(UnixStream),
}

impl Plain {
    /// Returns the stream as one of unknown kind.
    pub(crate) fn boxed(self) -> Box<dyn Bytes> {
        match self {
            Plain::Tcp(stream) => Box::new(stream),
            Plain::Unix(stream) => Box::new(stream),
        }
    }

    /// Returns the stream for TLS to read: rustls takes 4 KiB at a time, and each would be a call of the system, or two.
    pub(crate) fn buffered(self) -> Box<dyn Bytes> {
        Box::new(BufReader::with_capacity(32 << 10, self.boxed()))
    }
}

/// Returns true if `error` only says that the peer is gone. OCaml's programs close without TLS's goodbye, and end without any.
pub(crate) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof)
}

/// Reads the end of the stream wherever the peer is gone, and notes what is heard of it, and if it is gone without a word: its host or the
/// way to it is.
pub(super) struct EndsQuietly<T> {
    pub(super) stream: T,
    pub(super) pulse: Rc<Pulse>,
}

impl<T: AsyncRead + Unpin> AsyncRead for EndsQuietly<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            Ok(()) => {
                match buf.filled().len() > before {
                    true => self.pulse.hears(),
                    false => self.pulse.ends(),
                }
                Poll::Ready(Ok(()))
            }
            Err(error) if is_end(&error) => {
                match error.kind() {
                    io::ErrorKind::TimedOut => self.pulse.is_cut(),
                    _ => self.pulse.ends(),
                }
                Poll::Ready(Ok(()))
            }
            result => Poll::Ready(result),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_connection_waits_for_nothing_and_notices_that_its_peer_is_dead_in_25_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut peer = TcpStream::connect(listener.local_addr().expect("a port")).await.expect("it listens");
        let mut tcp = Tcp::new(listener.accept().await.expect("a peer").0).expect("it can be set");
        let socket = |tcp: &Tcp| {
            let socket = SockRef::from(&tcp.0);
            let probes = socket.tcp_keepalive_interval()? * socket.tcp_keepalive_retries()?;
            io::Result::Ok((
                socket.tcp_nodelay()?,
                socket.keepalive()?,
                socket.tcp_keepalive_time()? + probes,
                socket.tcp_user_timeout()?,
            ))
        };
        let limit = Duration::from_secs(25);
        assert_eq!(socket(&tcp).expect("it is known"), (true, true, limit, Some(limit)));
        for _ in 0..10 {
            SockRef::from(&tcp.0).set_tcp_quickack(false).expect("it can be set");
            peer.write_all(b"x").await.expect("it is there");
            tcp.read_u8().await.expect("a byte");
            assert!(SockRef::from(&tcp.0).tcp_quickack().expect("it is known"));
        }
    }
}
