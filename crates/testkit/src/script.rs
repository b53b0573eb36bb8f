//! An HTTP server that answers as a test says: registries that lie, stall or never end, token servers, proxies.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use crate::Link;
use crate::net::{Server, Sockets, lock};

/// No client of a test sends more than this.
const HEAD_BYTES: u64 = 64 << 10;
const BODY_BYTES: u64 = 64 << 20;

/// What a client has asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// What stands in the first line: a path with its query; what a proxy gets is a whole URL or `HOST:PORT`.
    pub path: String,
    /// Names as they were sent.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns the first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the server does then.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Sent as they are. `Content-Length` is added if it is not among them.
    pub headers: Vec<(String, String)>,
    /// What follows.
    pub body: Body,
}

/// The body of a [`Response`].
#[derive(Clone, Debug)]
pub enum Body {
    /// These bytes, and an honest length.
    Bytes(Vec<u8>),
    /// These bytes again and again, until the client has had enough. No length.
    Endless(Vec<u8>),
    /// These bytes, and then nothing, with the connection open. The length claims a byte more.
    Stall(Vec<u8>),
    /// These bytes, and then the end of the connection. The length claims a byte more.
    Cut(Vec<u8>),
    /// No response at all, not even a head; the connection stays open.
    Silence,
    /// These bytes in place of a response, and then the end of the connection.
    Raw(Vec<u8>),
    /// An empty body; from then on, the connection is one to this address, as `CONNECT` asks of a proxy.
    Tunnel(SocketAddr),
}

impl Response {
    /// Returns a response with neither headers nor a body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Bytes(Vec::new()) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the body to these bytes.
    #[must_use]
    pub fn bytes(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body(Body::Bytes(bytes.into()))
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// A server for plain HTTP/1.1 on a random port of the loopback interface. It ends with this value.
///
/// Each connection has a thread, so requests are answered side by side. A connection is kept for further requests after
/// [`Body::Bytes`].
#[derive(Debug)]
pub struct Script {
    server: Server,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Script {
    /// Starts a server that answers each request with what `answer` returns for it.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> io::Result<Self> {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let requests = Arc::clone(&requests);
            Server::start(move |stream, sockets| {
                // A client that goes away is no failure.
                let _ = serve(&stream, sockets, |request| {
                    lock(&requests).push(request.clone());
                    answer(request)
                });
            })?
        };
        Ok(Self { server, requests })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Returns `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address().to_string()
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Returns the requests so far, each recorded before it is answered.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }
}

fn serve(stream: &TcpStream, sockets: &Sockets, answer: impl Fn(&Request) -> Response) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let response = answer(&request);
        if !respond(stream, sockets, &request, &response)? {
            break;
        }
    }
    Ok(())
}

/// Answers a request. Returns true if the connection may be used again.
fn respond(mut stream: &TcpStream, sockets: &Sockets, request: &Request, response: &Response) -> io::Result<bool> {
    let (bytes, length) = match &response.body {
        Body::Silence => return until_closed(stream).map(|()| false),
        Body::Raw(bytes) => return stream.write_all(bytes).map(|()| false),
        Body::Bytes(bytes) => (&bytes[..], Some(bytes.len())),
        Body::Stall(bytes) | Body::Cut(bytes) => (&bytes[..], Some(bytes.len() + 1)),
        Body::Endless(chunk) => (&chunk[..], None),
        Body::Tunnel(_) => (&[][..], None),
    };
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", response.status);
    for (name, value) in &response.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let is_framed = response.headers.iter().any(|(name, _)| {
        ["content-length", "transfer-encoding"].iter().any(|framing| name.eq_ignore_ascii_case(framing))
    });
    // These two have no body, RFC 9110.
    let is_bodiless = response.status == 204 || response.status == 304;
    if let Some(length) = length
        && !is_framed
        && !is_bodiless
    {
        head += &format!("Content-Length: {length}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(bytes)?;
    }
    match &response.body {
        Body::Endless(chunk) if request.method != "HEAD" => loop {
            stream.write_all(chunk)?;
        },
        Body::Stall(_) => until_closed(stream).map(|()| false),
        Body::Tunnel(target) => {
            Link::tunnel(stream, *target, sockets);
            Ok(false)
        }
        // Whoever says another length than there is must not be read on from.
        Body::Bytes(_) => Ok(!is_framed),
        _ => Ok(false),
    }
}

/// Waits until the client, or the server's end, closes the connection.
fn until_closed(mut stream: &TcpStream) -> io::Result<()> {
    let mut ignored = [0; 4096];
    while stream.read(&mut ignored)? > 0 {}
    Ok(())
}

/// Reads a request; `None` at the end of the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    // As real servers do, rather than wait for the end of a line that a client with TLS never sends.
    if reader.fill_buf()?.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Err(bad("plain HTTP"));
    }
    let mut head = reader.take(HEAD_BYTES);
    let Some(first) = read_line(&mut head)? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Err(bad("a first line")) };
    let mut headers = Vec::new();
    loop {
        let line = read_line(&mut head)?.ok_or_else(|| bad("a head of bounded length"))?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    if request.header("transfer-encoding").is_some() {
        request.body = read_chunks(reader)?;
    } else if let Some(length) = request.header("content-length") {
        let length: u64 = length.parse().map_err(|_| bad("a length"))?;
        read_some(reader, length, &mut request.body)?;
    }
    Ok(Some(request))
}

fn read_chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(&mut reader.take(HEAD_BYTES))?.ok_or_else(|| bad("a chunk"))?;
        let digits = line.split(';').next().unwrap_or_default();
        let length = u64::from_str_radix(digits.trim(), 16).map_err(|_| bad("the length of a chunk"))?;
        read_some(reader, length, &mut body)?;
        // The end of the chunk. No client of ours sends trailers after the last.
        read_line(&mut reader.take(HEAD_BYTES))?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Appends `length` bytes to `body`.
fn read_some(reader: &mut impl Read, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let so_far = u64::try_from(body.len()).expect("a length");
    if so_far.saturating_add(length) > BODY_BYTES {
        return Err(bad("a body of bounded length"));
    }
    let count = reader.take(length).read_to_end(body)?;
    if u64::try_from(count).expect("a length") < length { Err(bad("the whole body")) } else { Ok(()) }
}

/// Reads a line without its end; `None` if there is none.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Ok(Some(String::from_utf8_lossy(line).into_owned()))
}

fn bad(wanted: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client did not send {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `request` and returns all that comes back until the connection ends.
    fn say(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it takes all");
        stream.shutdown(std::net::Shutdown::Write).expect("a socket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn requests_of_one_connection_are_recorded_and_answered_in_turn() {
        let script = Script::start(|request| match request.method.as_str() {
            "HEAD" => Response::new(200).bytes("not sent"),
            "DELETE" => Response::new(204),
            _ => Response::new(201).header("Location", "/there").bytes(request.body.clone()),
        })
        .expect("a server");
        let answer = say(
            script.address(),
            "PUT /a?b HTTP/1.1\r\nX-Name:  value \r\ncontent-length: 3\r\n\r\nabc\
             HEAD /c HTTP/1.1\r\n\r\n\
             DELETE /d HTTP/1.1\r\n\r\n\
             POST /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\nA;more\r\n0123456789\r\n0\r\n\r\n",
        );
        let created = "HTTP/1.1 201 Scripted\r\nLocation: /there\r\nContent-Length:";
        assert_eq!(
            answer,
            format!(
                "{created} 3\r\n\r\nabcHTTP/1.1 200 Scripted\r\nContent-Length: 8\r\n\r\n\
                 HTTP/1.1 204 Scripted\r\n\r\n{created} 12\r\n\r\nxy0123456789"
            )
        );
        let requests = script.requests();
        assert_eq!(requests.iter().map(|request| &*request.path).collect::<Vec<_>>(), ["/a?b", "/c", "/d", "/e"]);
        assert_eq!(requests[0].header("x-name"), Some("value"));
        assert_eq!(requests[3].body, b"xy0123456789");
    }

    #[test]
    fn a_script_lies_and_breaks_off() {
        let script = Script::start(|request| match request.path.as_str() {
            "/cut" => Response::new(200).body(Body::Cut(b"part".into())),
            "/lie" => Response::new(200).header("Content-Length", "99").bytes("part"),
            _ => Response::new(200).body(Body::Raw(b"SSH-2.0".into())),
        })
        .expect("a server");
        let get = |path: &str| say(script.address(), &format!("GET {path} HTTP/1.1\r\n\r\n"));
        assert_eq!(get("/cut"), "HTTP/1.1 200 Scripted\r\nContent-Length: 5\r\n\r\npart");
        assert_eq!(get("/lie"), "HTTP/1.1 200 Scripted\r\nContent-Length: 99\r\n\r\npart");
        assert_eq!(get("/raw"), "SSH-2.0");
    }

    #[test]
    fn a_script_ends_whatever_its_connections_do() {
        let script = Script::start(|request| match request.path.as_str() {
            "/stall" => Response::new(200).body(Body::Stall(b"part".into())),
            "/silence" => Response::new(200).body(Body::Silence),
            _ => Response::new(200).body(Body::Endless(vec![b'x'; 1000])),
        })
        .expect("a server");
        let streams = ["/stall", "/silence", "/endless", ""].map(|path| {
            let mut stream = TcpStream::connect(script.address()).expect("it listens");
            let end = if path.is_empty() { "" } else { "\r\n\r\n" };
            stream.write_all(format!("GET {path} HTTP/1.1{end}").as_bytes()).expect("it takes all");
            stream
        });
        (&streams[0]).read_exact(&mut [0; 48]).expect("the head and the part");
        (&streams[2]).read_exact(&mut [0; 1_000_000]).expect("no end");
        drop(script);
        for mut stream in streams {
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    }

    #[test]
    fn a_script_is_a_proxy() {
        let target = Script::start(|_| Response::new(418)).expect("a server");
        let address = target.address();
        let proxy = Script::start(move |_| Response::new(200).body(Body::Tunnel(address))).expect("a server");
        let connect = "CONNECT somewhere:443 HTTP/1.1\r\n\r\n";
        let mut stream = TcpStream::connect(proxy.address()).expect("it listens");
        stream.write_all(connect.as_bytes()).expect("it takes all");
        stream.read_exact(&mut [0; 25]).expect("the head");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it takes all");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 418");
        assert_eq!(proxy.requests()[0].path, "somewhere:443");
    }
}
