//! What network a process sees: plain data, parsed from the user's words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What network a process sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Network {
    /// A network of its own with only the loopback interface.
    None,
    /// The host's network, with the host's `/etc/resolv.conf`. This includes the host's loopback and abstract
    /// Unix sockets.
    Host,
    /// A network of its own with a way out to public addresses, by the program `pasta`. Neither the host nor private
    /// and link-local networks are in reach, but for what is in `allow`.
    Private {
        /// What is in reach besides. An address of the host itself only if it is named alone, not by a range.
        allow: Vec<Cidr>,
    },
    /// A network of its own with only the loopback interface, on which [`PROXY_PORT`] leads to this proxy.
    Proxy(Proxy),
}

/// The port of `127.0.0.1` that leads to the proxy of [`Network::Proxy`]: the one that proxies commonly have.
pub const PROXY_PORT: u16 = 3128;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// Why a text is no range of addresses, or no proxy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseNetworkError {
    /// Neither an address nor a range.
    #[error("`{0}` is not a range of addresses, as 10.1.0.0/16 or fd00::/8, nor an address")]
    Cidr(String),
    /// The address has bits where the range has none.
    #[error("`{text}` begins in the middle of a range: write {meant}")]
    InMiddle {
        /// What was written.
        text: String,
        /// The whole range.
        meant: Cidr,
    },
    /// Not the URL of a proxy.
    #[error("`{0}` is not a proxy as http://proxy.example.com:3128")]
    Proxy(String),
    /// A proxy with credentials.
    #[error("the proxy's URL has a user or password, which every step could read; use a proxy that asks for none")]
    Credentials,
}

impl Cidr {
    /// Returns the range of one address.
    pub fn single(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }

    /// Returns the first `length` bits of `address` as a range. At most the address's own length counts.
    pub(crate) const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), length }
    }

    /// As [`Cidr::v4`], with the first two and the last word of an address.
    pub(crate) const fn v6(first: u16, second: u16, last: u16, length: u8) -> Self {
        Self { address: IpAddr::V6(std::net::Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last)), length }
    }

    /// Returns its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns how many leading bits its addresses share.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Returns the bytes of its address.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        octets(self.address)
    }

    /// Returns the bytes of its mask.
    pub(crate) fn mask(&self) -> Vec<u8> {
        let byte = |index: u8| u8::MAX.checked_shl(u32::from(8 - self.length.saturating_sub(8 * index).min(8)));
        (0..bits(self.address) / 8).map(|index| byte(index).unwrap_or(0)).collect()
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl FromStr for Cidr {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let wrong = || ParseNetworkError::Cidr(text.to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let range = Self { address, length: length.unwrap_or(bits(address)) };
        if range.length > bits(address) {
            return Err(wrong());
        }
        let begin: Vec<u8> = range.bytes().iter().zip(range.mask()).map(|(byte, mask)| byte & mask).collect();
        let begin = match (<[u8; 4]>::try_from(&begin[..]), <[u8; 16]>::try_from(&begin[..])) {
            (Ok(v4), _) => IpAddr::from(v4),
            (_, Ok(v6)) => IpAddr::from(v6),
            _ => return Err(wrong()),
        };
        match begin == address {
            true => Ok(range),
            false => Err(ParseNetworkError::InMiddle {
                text: text.to_owned(),
                meant: Self { address: begin, length: range.length },
            }),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An HTTP proxy of the host's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    host: String,
    port: u16,
}

impl Proxy {
    /// Returns its name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the variables that tell programs inside of it.
    pub fn variables() -> Vec<(&'static str, String)> {
        let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
        let none = "localhost,127.0.0.1,::1";
        // Programs differ in the spelling that they look at.
        let names = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name, proxy.clone()));
        names.into_iter().chain(["no_proxy", "NO_PROXY"].map(|name| (name, none.to_owned()))).collect()
    }
}

impl FromStr for Proxy {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        // Before anything else is said of it: what is wrong is repeated to the user, in a log perhaps.
        if text.contains('@') {
            return Err(ParseNetworkError::Credentials);
        }
        let wrong = || ParseNetworkError::Proxy(text.to_owned());
        let authority = text.strip_prefix("http://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match authority.strip_prefix('[') {
            // An IPv6 address, whose colons are its own.
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("80")).ok_or_else(wrong)?)
            }
            None => authority.split_once(':').unwrap_or((authority, "80")),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_read_as_they_are_printed() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/9", "192.168.1.1/32", "::/0", "fd00::/8", "2001:db8::1/128"]
        {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("192.0.2.1").to_string(), "192.0.2.1/32");
        assert_eq!(cidr("10.128.0.0/9").mask(), [255, 128, 0, 0]);
        assert_eq!(cidr("::/0").mask(), [0; 16]);
        assert_eq!(cidr("192.0.2.1").mask(), [255; 4]);
    }

    #[test]
    fn what_is_no_range_is_refused_with_the_way_out() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        for text in ["", "10", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::/129", "example.com"] {
            assert!(error(text).contains("is not a range"), "{text}");
        }
        assert_eq!(error("10.1.2.3/8"), "`10.1.2.3/8` begins in the middle of a range: write 10.0.0.0/8");
    }

    #[test]
    fn a_proxy_has_a_host_and_a_port() {
        let proxy = |text: &str| text.parse::<Proxy>().map(|proxy| (proxy.host, proxy.port));
        assert_eq!(proxy("http://proxy:3128/"), Ok(("proxy".to_owned(), 3128)));
        assert_eq!(proxy("http://proxy.example.com"), Ok(("proxy.example.com".to_owned(), 80)));
        assert_eq!(proxy("http://[::1]:8080"), Ok(("::1".to_owned(), 8080)));
        for text in
            ["http://me:secret@proxy", "https://me:secret@proxy", "me:secret@proxy:3128", "http://me:secret@a/b"]
        {
            assert_eq!(proxy(text), Err(ParseNetworkError::Credentials));
        }
        for text in ["proxy:3128", "https://proxy", "http://", "http://:1", "http://a:0", "http://a:b", "http://a/b"] {
            assert!(proxy(text).is_err(), "{text}");
        }
    }
}
