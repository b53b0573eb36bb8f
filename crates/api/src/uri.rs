//! Capability URIs: where a service is, how its host is known, and the secret that opens it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;

/// Reads what we write, and what somebody padded.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The longest URI that is read. Paths of sockets are at most 108 bytes, and host names 253.
const MAX_LENGTH: usize = 4096;

/// The most addresses of one service. Each can cost whoever connects a moment.
const MAX_ADDRESSES: usize = 8;

/// SHA-256 over a public key (DER, SubjectPublicKeyInfo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// How the host of a service is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// By its key. The connection is encrypted.
    Key(Fingerprint),
    /// Not at all, and the connection is plain: who is on the way can read the id, and use it.
    Insecure,
}

/// Where a vat listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port of a host, which is a name or an address.
    Tcp {
        /// The name or address; an address of IPv6 is without brackets here.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where a service is reached: at one address, or at whichever of several hosts serves just now. Never empty; more than one are all TCP.
///
/// The text of several is as PostgreSQL's URIs have it: `HOST:PORT,HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Addresses(Vec<Address>);

/// The id of a service, of any bytes. Who knows it may use the service: it is never shown by `Debug`, and never logged.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct ServiceId(pub Vec<u8>);

/// A capability URI: `capnp://sha-256:KEY@HOST:PORT/SERVICE`, or `capnp://insecure@…`, or with `/PATH/SERVICE` for a Unix socket.
/// `HOST:PORT,HOST:PORT` is Kiln's own: OCaml's programs read one address only.
///
/// `Display` writes it whole, secret included; `Debug` leaves the secret out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CapabilityUri {
    /// How the host is known.
    pub identity: Identity,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Which of its services.
    pub service: ServiceId,
}

/// Why something is no capability URI. Never holds the URI, which is a secret.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum UriError {
    #[error("a capability URI is at most {MAX_LENGTH} bytes long, this has {0}")]
    TooLong(usize),
    #[error("a capability URI begins with `capnp://`")]
    NoScheme,
    #[error("a capability URI says how its host is known: `capnp://sha-256:KEY@…` or `capnp://insecure@…`")]
    NoIdentity,
    #[error("the key before `@` is `sha-256:` and 43 characters of base64url")]
    BadKey,
    #[error("after `@` stands HOST:PORT and `/`, or the path of a Unix socket")]
    BadAddress,
    #[error("`{0}` is no port")]
    BadPort(String),
    #[error("there are at most {MAX_ADDRESSES} addresses, not {0}")]
    TooManyAddresses(usize),
    #[error("this is to be one address: several, separated by commas, are for reaching a service")]
    SeveralAddresses,
    #[error("the service after the last `/` is not base64url")]
    BadService,
    #[error("`%` stands before two hexadecimal digits")]
    BadEscape,
}

impl CapabilityUri {
    /// Returns the same host's URI of another service.
    #[must_use]
    pub fn with_service(&self, service: ServiceId) -> Self {
        Self { service, ..self.clone() }
    }
}

impl FromStr for CapabilityUri {
    type Err = UriError;

    /// Surrounding white space is ignored: a file's line ends with a newline.
    fn from_str(text: &str) -> Result<Self, UriError> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(UriError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("capnp://").ok_or(UriError::NoScheme)?;
        let (identity, rest) = rest.split_once('@').ok_or(UriError::NoIdentity)?;
        let identity = match identity {
            "insecure" => Identity::Insecure,
            key => Identity::Key(key.parse()?),
        };
        let (address, service) = rest.rsplit_once('/').ok_or(UriError::BadAddress)?;
        let addresses = match address.starts_with('/') {
            true => Address::Unix(PathBuf::from(unescape(address)?)).into(),
            false => hosts(address)?,
        };
        let service = LENIENT.decode(service).map_err(|_| UriError::BadService)?;
        let uri = Self { identity, addresses, service: ServiceId(service) };
        // What is escaped is longer, and must be read again when it was written to a file.
        match uri.to_string().len() {
            0..=MAX_LENGTH => Ok(uri),
            length => Err(UriError::TooLong(length)),
        }
    }
}

/// Parses `HOST:PORT`, also with an IPv6 address in brackets.
fn tcp(text: &str) -> Result<Address, UriError> {
    let (host, port) = text.rsplit_once(':').ok_or(UriError::BadAddress)?;
    let bare = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or(UriError::BadAddress)?,
        None if host.contains(':') => return Err(UriError::BadAddress),
        None => host,
    };
    // What a host's name or address is made of; so that a hint never shows half a secret, the text is not repeated.
    if bare.is_empty() || !bare.chars().all(|c| c.is_alphanumeric() || "-._:%".contains(c)) {
        return Err(UriError::BadAddress);
    }
    let port = port.parse().map_err(|_| UriError::BadPort(port.to_owned()))?;
    Ok(Address::Tcp { host: bare.to_owned(), port })
}

/// Parses `HOST:PORT,HOST:PORT`.
fn hosts(text: &str) -> Result<Addresses, UriError> {
    match text.split(',').count() {
        0..=MAX_ADDRESSES => text.split(',').map(tcp).collect::<Result<_, _>>().map(Addresses),
        many => Err(UriError::TooManyAddresses(many)),
    }
}

/// Undoes percent-escapes (RFC 3986), which OCaml's programs write in the paths of sockets.
fn unescape(text: &str) -> Result<String, UriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or(UriError::BadEscape);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).map_err(|_| UriError::BadEscape)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| UriError::BadEscape)
}

/// Escapes what may not stand in the path of a URI.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=:@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Display for CapabilityUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("capnp://")?;
        match &self.identity {
            Identity::Insecure => f.write_str("insecure@")?,
            Identity::Key(key) => write!(f, "{key}@")?,
        }
        match self.addresses.first() {
            Address::Unix(path) => f.write_str(&escape(path))?,
            Address::Tcp { .. } => write!(f, "{}", self.addresses)?,
        }
        write!(f, "/{}", URL_SAFE_NO_PAD.encode(&self.service.0))
    }
}

impl fmt::Display for Address {
    /// For people: `HOST:PORT` or the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = UriError;

    /// Parses what `--listen-address` and its like take: `tcp:HOST:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, UriError> {
        if let Some(rest) = text.strip_prefix("tcp:") {
            if rest.contains(',') {
                return Err(UriError::SeveralAddresses);
            }
            tcp(rest)
        } else if let Some(path) = text.strip_prefix("unix:") {
            Ok(Address::Unix(path.into()))
        } else {
            Err(UriError::BadAddress)
        }
    }
}

impl Addresses {
    /// Returns the address that is tried first.
    pub fn first(&self) -> &Address {
        &self.0[0]
    }

    /// Returns all addresses, in the order in which they are tried.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Address> {
        self.0.iter()
    }
}

impl From<Address> for Addresses {
    fn from(address: Address) -> Self {
        Self(vec![address])
    }
}

impl fmt::Display for Addresses {
    /// For people: `HOST:PORT,HOST:PORT` or the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.iter().enumerate() {
            write!(f, "{}{address}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Addresses {
    type Err = UriError;

    /// Parses what `--capnp-public-address` takes: `tcp:HOST:PORT,HOST:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, UriError> {
        match text.strip_prefix("tcp:") {
            Some(rest) => hosts(rest),
            None => text.parse().map(|address: Address| address.into()),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha-256:{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let digits = text.strip_prefix("sha-256:").ok_or(UriError::BadKey)?;
        let bytes = LENIENT.decode(digits).map_err(|_| UriError::BadKey)?;
        bytes.try_into().map(Fingerprint).map_err(|_| UriError::BadKey)
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceId({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sha-256:FW7Lnx7BvBhNcCChOq7tW8VtXZMRYvmknaQvK5vIn5E";

    #[test]
    fn uris_of_all_kinds_are_read_and_written_alike() {
        for text in [
            format!("capnp://{KEY}@ci.example.org:9000/VaoTv4M0BOkTjGPwhDxNYukVTnK5meq_YfhZPyjvOpE"),
            format!("capnp://{KEY}@[::1]:9000/-tNQeo6G9xNf5SNWcZL1NHG9ESIr3nVAuu5OrZ6dHpU"),
            format!("capnp://{KEY}@a.example.org:9000,[::1]:9001,192.0.2.1:9000/-tNQeo6G9xNf5SNWcZL1"),
            format!("capnp://{KEY}@/run/ocluster/a%20b.sock/-tNQeo6G"),
            format!("capnp://{KEY}@/run/a,b:1/-tNQeo6G"),
            "capnp://insecure@127.0.0.1:9301/0uNU3oFvOfpqdMMymjhzOZn71vU".to_owned(),
            "capnp://insecure@127.0.0.1:9301/".to_owned(),
        ] {
            let uri: CapabilityUri = format!(" {text}\n").parse().expect("it is one");
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn a_mistake_is_named_without_the_secret() {
        let cases = [
            ("http://x", UriError::NoScheme),
            ("capnp://host:1/x", UriError::NoIdentity),
            ("capnp://sha-256:abc@host:1/x", UriError::BadKey),
            ("capnp://insecure@host:1", UriError::BadAddress),
            ("capnp://insecure@host/x", UriError::BadAddress),
            ("capnp://insecure@::1:80/x", UriError::BadAddress),
            ("capnp://insecure@host:99999/x", UriError::BadPort("99999".to_owned())),
            ("capnp://insecure@host:1/!!", UriError::BadService),
            ("capnp://insecure@host:1,/x", UriError::BadAddress),
            ("capnp://insecure@host:1,other/x", UriError::BadAddress),
            ("capnp://insecure@host:1,other:y/x", UriError::BadPort("y".to_owned())),
            ("capnp://insecure@host:1,/run/x/x", UriError::BadAddress),
            ("capnp://insecure@a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9/x", UriError::TooManyAddresses(9)),
            ("capnp://insecure@/a%2/x", UriError::BadEscape),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<CapabilityUri>(), Err(error), "{text}");
        }
    }

    #[test]
    fn several_addresses_are_for_reaching_and_one_for_listening() {
        let several = "tcp:a:1,[::1]:2";
        assert_eq!(several.parse::<Address>(), Err(UriError::SeveralAddresses));
        let parsed: Addresses = several.parse().expect("there are two");
        assert_eq!((parsed.to_string().as_str(), parsed.iter().len()), ("a:1,[::1]:2", 2));
        // A comma is a path's, if there is a path.
        let path = Address::Unix("/run/a,b".into());
        assert_eq!("unix:/run/a,b".parse(), Ok(path.clone()));
        assert_eq!("unix:/run/a,b".parse(), Ok(Addresses::from(path)));
        assert_eq!("tcp:a:1,tcp:b:2".parse::<Addresses>(), Err(UriError::BadAddress));
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        let uri: CapabilityUri = "capnp://insecure@127.0.0.1:9301/0uNU3oFv".parse().expect("it is one");
        assert!(!format!("{uri:?}").contains("0uNU"), "{uri:?}");
    }

    #[test]
    fn what_would_be_too_long_to_be_read_again_is_not_read() {
        let text = format!("capnp://insecure@/{}/", " ".repeat(2000));
        assert_eq!(text.parse::<CapabilityUri>(), Err(UriError::TooLong(6019)));
    }

    fn any_uri() -> impl Strategy<Value = CapabilityUri> {
        let identity =
            prop_oneof![Just(Identity::Insecure), any::<[u8; 32]>().prop_map(|key| Identity::Key(Fingerprint(key)))];
        let tcp =
            ("[a-z0-9.-]{1,20}|::1|fe80::1%eth0", any::<u16>()).prop_map(|(host, port)| Address::Tcp { host, port });
        let addresses = prop_oneof![
            proptest::collection::vec(tcp, 1..=MAX_ADDRESSES).prop_map(Addresses),
            "(/[^/\0]{1,8}){1,4}".prop_map(|path| Address::Unix(path.into()).into()),
        ];
        (identity, addresses, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(identity, addresses, service)| CapabilityUri { identity, addresses, service: ServiceId(service) },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(uri in any_uri()) {
            prop_assert_eq!(uri.to_string().parse::<CapabilityUri>(), Ok(uri));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "(capnp://)?(insecure|sha-256:[A-Za-z0-9_-]{0,50})?@?[:,a-z0-9]{0,20}\\PC{0,60}") {
            let _ = text.parse::<CapabilityUri>();
        }
    }
}
