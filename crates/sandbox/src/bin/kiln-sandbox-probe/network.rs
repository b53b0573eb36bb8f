//! What a hostile program tries on a network.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as connect_socket, socket_with};

use crate::sys;

/// Refusals come at once. Where nothing answers, this is how long a test takes, and no more.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) fn connect(address: &str, port: &str, interface: Option<&str>) -> ExitCode {
    print(try_to_connect(address, port, interface).map(|got| format!("got {got}")))
}

fn try_to_connect(address: &str, port: &str, interface: Option<&str>) -> io::Result<String> {
    let address = parse(address, port)?;
    let socket = open(address, SocketType::STREAM, interface)?;
    // For connect(2) the send timeout counts.
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(PATIENCE))?;
    connect_socket(&stream, &address)?;
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        read => drop(read?),
    }
    Ok(text)
}

pub(crate) fn send(address: &str, port: &str, text: &str, interface: Option<&str>) -> ExitCode {
    print(try_to_send(address, port, text, interface).map(|_| "ok".to_owned()))
}

fn try_to_send(address: &str, port: &str, text: &str, interface: Option<&str>) -> io::Result<UdpSocket> {
    let address = parse(address, port)?;
    let socket = UdpSocket::from(open(address, SocketType::DGRAM, interface)?);
    socket.set_broadcast(true)?;
    socket.send_to(text.as_bytes(), address)?;
    Ok(socket)
}

pub(crate) fn ask(address: &str, port: &str, text: &str) -> ExitCode {
    let answer = try_to_send(address, port, text, None).and_then(|socket| {
        // What is lost is lost: so that the test ends.
        socket.set_read_timeout(Some(20 * PATIENCE))?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(format!("got {}", String::from_utf8_lossy(&buffer[..length])))
    });
    print(answer)
}

/// As `ping(8)` without privileges: the kernel fills in the checksum, and gives us the answer to this socket only.
pub(crate) fn ping(address: &str) -> ExitCode {
    let answer = || -> io::Result<String> {
        let address = parse(address, "0")?;
        let protocol = Some(rustix::net::ipproto::ICMP);
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(20 * PATIENCE))?;
        let echo_request = [8, 0, 0, 0, 0, 0, 0, 1];
        socket.send_to(&echo_request, address)?;
        let mut answer = [0; 8];
        socket.recv(&mut answer)?;
        Ok(format!("got {}", answer[0]))
    };
    print(answer())
}

/// A batch for nftables: begin, delete every table of IPv4, end.
pub(crate) fn flush() -> ExitCode {
    let message = |kind: u16, family: u8, subsystem: [u8; 2]| {
        let request_and_acknowledge = 5_u16;
        let header = [&20_u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &request_and_acknowledge.to_ne_bytes(), &[0; 8]];
        [&header.concat()[..], &[family, 0], &subsystem].concat()
    };
    let batch = [message(0x10, 0, [0, 10]), message(0x0a02, 2, [0, 0]), message(0x11, 0, [0, 10])].concat();
    let flushed = || -> io::Result<String> {
        let protocol = rustix::net::netlink::NETFILTER;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        rustix::net::send(&socket, &batch, rustix::net::SendFlags::empty())?;
        let mut answer = [0; 256];
        rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok("ok".to_owned()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    };
    print(flushed())
}

/// Reads an address, which may have a zone: `fe80::1%2`.
fn parse(address: &str, port: &str) -> io::Result<SocketAddr> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let port = port.parse().map_err(|_| wrong())?;
    match address.split_once('%') {
        Some((address, zone)) => {
            let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
            Ok(SocketAddrV6::new(address, port, 0, zone.parse().map_err(|_| wrong())?).into())
        }
        None => Ok(SocketAddr::new(address.parse::<IpAddr>().map_err(|_| wrong())?, port)),
    }
}

fn open(address: SocketAddr, kind: SocketType, interface: Option<&str>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if let Some(interface) = interface {
        sys::bind_to_device(socket.as_fd(), interface)?;
    }
    Ok(socket)
}

fn print(result: io::Result<String>) -> ExitCode {
    match result {
        Ok(text) => println!("{text}"),
        Err(error) => println!("errno {}", error.raw_os_error().unwrap_or(0)),
    }
    ExitCode::SUCCESS
}
