//! Why a registry did not give or take what it was asked for.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a conversation with a registry failed. Never contains credentials or signed addresses.
///
/// `host` is the registry as users write it, `what` the thing that was asked for, as ``image `debian:12` ``.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,

    /// The settings name a host that no image's name can have.
    #[error("`{text}` is not a registry to have settings for: write `HOST[:PORT]`, as in the names of images")]
    Host {
        /// The host as written.
        text: String,
    },
    /// A mirror in the settings cannot be one.
    #[error(
        "`{text}` is not a mirror for {host}: write `HOST[:PORT][/PREFIX]`, with or without `https://` or `http://`"
    )]
    Mirror {
        /// The host that it should be a mirror for.
        host: String,
        /// The mirror as written.
        text: String,
    },
    /// The proxy in the settings cannot be one.
    #[error("the {scheme} proxy is not an address as `http://proxy.example:3128`")]
    Proxy {
        /// For which kind of request: `http` or `https`.
        scheme: &'static str,
        /// What the parser said. (The address itself may hold a password.)
        #[source]
        source: HttpError,
    },
    /// The file with authorities cannot be read.
    #[error("cannot read {}, the certificate authorities for {host}", path.display())]
    ReadAuthorities {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file with authorities holds none.
    #[error("{} holds no certificate in PEM format that {host} could be verified by", path.display())]
    BadAuthorities {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
    },
    /// The client for HTTP cannot be made.
    #[error("cannot prepare connections to registries")]
    Client {
        /// What the library said.
        #[source]
        source: HttpError,
    },
    /// TLS cannot be set up.
    #[error("cannot prepare TLS")]
    Tls {
        /// What the library said.
        #[source]
        source: rustls::Error,
    },

    /// A file with credentials cannot be read.
    #[error("cannot read {}, a file with credentials", path.display())]
    ReadAuthFile {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file with credentials is not what Docker or Podman writes.
    #[error("{} is not a file with credentials as `docker login` writes it: {reason}", path.display())]
    BadAuthFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that keeps credentials cannot be run.
    #[error("cannot run `{program}`, which should know the credentials for {host}")]
    RunHelper {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program that keeps credentials failed.
    #[error("`{program}` does not tell the credentials for {host}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// How it failed.
        reason: String,
    },

    /// The registry cannot be reached.
    #[error("cannot connect to {host}")]
    Connect {
        /// The registry, or where it sent us.
        host: String,
        /// What the library said.
        #[source]
        source: HttpError,
    },
    /// The registry's certificate is not vouched for.
    #[error(
        "cannot verify that {host} is what it claims to be; if an authority of your own vouches for it, set `ca-file` for \
         this host in registries.toml, or `insecure` to trust it blindly"
    )]
    Untrusted {
        /// The registry, or where it sent us.
        host: String,
        /// What the library said.
        #[source]
        source: HttpError,
    },
    /// The connection broke.
    #[error("the connection to {host} broke during the transfer of {what}")]
    Cut {
        /// The registry, or where it sent us.
        host: String,
        /// What was asked for.
        what: String,
        /// What the library said.
        #[source]
        source: HttpError,
    },
    /// The body ended before its length.
    #[error("{host} ended the transfer of {what} after {received} of {size} bytes")]
    Short {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// How much came.
        received: u64,
        /// How much should have come.
        size: u64,
    },
    /// Nothing came for long.
    #[error("{host} was silent for {} s during the transfer of {what}", waited.as_secs_f32())]
    Silent {
        /// The registry, or where it sent us.
        host: String,
        /// What was asked for.
        what: String,
        /// How long was waited.
        waited: Duration,
    },
    /// Too little came for long.
    #[error("the transfer of {what} with {host} stalls: {bytes} bytes in {} s", during.as_secs_f32())]
    TooSlow {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// How much came.
        bytes: u64,
        /// In how long a time.
        during: Duration,
    },

    /// The registry does not have it.
    #[error("{host} has no {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry does not allow it. Many say this, too, of what does not exist.
    #[error(
        "{host} denies access to {what}{}; {}",
        said(detail),
        match login {
            None => format!(
                "if the name is right, log in with `docker login {host}`, or name a file with credentials by `--auth-file`"
            ),
            Some(file) => format!(
                "it was shown the credentials of {}: log in again with `docker login {host}` if they are wrong",
                file.display()
            ),
        }
    )]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What the registry said.
        detail: String,
        /// The file whose credentials it was shown, if any are known.
        login: Option<Box<Path>>,
    },
    /// The registry wants fewer requests, and still does after the last attempt.
    #[error("{host} allows no more requests for now{}; wait, or log in for a higher limit", said(detail))]
    TooManyRequests {
        /// The registry.
        host: String,
        /// What the registry said.
        detail: String,
    },
    /// The registry answered with a status that does not fit the request.
    #[error("{host} answers {status} to the request for {what}{}", said(detail))]
    Status {
        /// The registry, or where it sent us.
        host: String,
        /// What was asked for.
        what: String,
        /// The status of HTTP.
        status: u16,
        /// What the registry said.
        detail: String,
    },
    /// Something else than a registry answered: a page for people.
    #[error(
        "{host} answers the request for {what} with a web page; it is no registry, or something between wants you to log in"
    )]
    NotARegistry {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants to know who asks in a way that we do not know.
    #[error("{host} asks for a kind of login that is not supported: {challenge}")]
    Challenge {
        /// The registry.
        host: String,
        /// The header, in which registries keep no secrets.
        challenge: String,
    },
    /// The server for tokens answered something else.
    #[error("the answer of {realm}, which gives out tokens for {host}, cannot be understood")]
    BadToken {
        /// The registry.
        host: String,
        /// The host of the token server.
        realm: String,
    },
    /// A secure registry refers to an address that anyone could listen to or forge.
    #[error("{host} refers to {to} without encryption; refused")]
    Plain {
        /// The registry.
        host: String,
        /// Where it refers to.
        to: String,
    },
    /// A redirect or the address of an upload is missing or is none.
    #[error("{host} gives no usable address where to go on with {what}")]
    BadLocation {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// One redirect led to the next.
    #[error("{host} redirects the request for {what} more than {limit} times, or in a circle")]
    Redirects {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// How many are followed.
        limit: usize,
    },

    /// A document is longer than allowed.
    #[error("{what} at {host} is longer than the {limit} bytes that are read")]
    TooLong {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The longest that is read.
        limit: u64,
    },
    /// The length is not the one in the image's description.
    #[error("{host} sends {found} bytes as {what}, which has {wanted}")]
    WrongLength {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The length that it should have.
        wanted: u64,
        /// The length that the registry announces, or how much came at least.
        found: u64,
    },
    /// The registry sent another part than it was asked for.
    #[error("{host} was asked for {what} from byte {offset} and sends {found}")]
    WrongRange {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to go on.
        offset: u64,
        /// What the registry says it sends.
        found: String,
    },
    /// The content is not what its digest says.
    #[error("{host} sends something else as {what}: its digest is {found}, not {wanted}")]
    WrongDigest {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The digest that it should have, or that the registry says it has.
        wanted: String,
        /// The digest that it has.
        found: String,
    },
    /// The manifest is in the format before Docker 1.10.
    #[error(
        "{what} at {host} is too old: its manifest has version 1; pull and push it with a present-day Docker, or rebuild it"
    )]
    TooOld {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The manifest is none, or of an unknown kind.
    #[error("what {host} sends for {what} is not a manifest: {reason}")]
    NotAManifest {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Whoever the blob is for could not take it.
    #[error("cannot keep what was received of {what}")]
    Sink {
        /// What was asked for.
        what: String,
        /// What the receiver said.
        #[source]
        source: io::Error,
    },
    /// The file to be uploaded cannot be read to its end.
    #[error("cannot read what should be uploaded as {what}")]
    ReadUpload {
        /// What was to be uploaded.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The registry forgot the upload again and again, or counts its bytes otherwise than we do.
    #[error("{host} lost the upload of {what} {times} times")]
    UploadLost {
        /// The registry.
        host: String,
        /// What was to be uploaded.
        what: String,
        /// How often.
        times: u32,
    },
}

/// What the library for HTTP said: of its many causes, those that tell something.
#[derive(Debug)]
pub struct HttpError(reqwest::Error);

impl HttpError {
    /// Addresses may be signed, and proxies may have passwords: they are taken out.
    pub(super) fn new(error: reqwest::Error) -> Self {
        Self(error.without_url())
    }
}

impl Error for HttpError {}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// How layers of the library say that it was the one below; what was tried is known already.
        const EMPTY: [&str; 5] =
            ["error sending request", "client error", "tcp connect", "dns error", "error resolving DNS"];
        let mut told = Vec::new();
        let mut cause: Option<&dyn Error> = Some(&self.0);
        while let Some(error) = cause {
            let text = error.to_string();
            cause = error.source();
            let is_empty = cause.is_some() && EMPTY.iter().any(|empty| text.starts_with(empty));
            let text = text.replace("tunnel error: ", "through the proxy: ");
            if !is_empty && told.last() != Some(&text) {
                told.push(text);
            }
        }
        f.write_str(&told.join(": "))
    }
}

impl RegistryError {
    /// Returns true if naming another image, logging in, or correcting the settings would help. False if the registry or
    /// the network failed.
    pub fn is_users_fault(&self) -> bool {
        matches!(
            self,
            Self::Host { .. }
                | Self::Mirror { .. }
                | Self::Proxy { .. }
                | Self::ReadAuthorities { .. }
                | Self::BadAuthorities { .. }
                | Self::BadAuthFile { .. }
                | Self::NotFound { .. }
                | Self::Denied { .. }
                | Self::TooOld { .. }
                | Self::NotAManifest { .. }
                | Self::TooLong { .. }
        )
    }

    /// Returns true if the caller's own cancellation is why.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

/// Returns what the other side said as the end of a sentence.
fn said(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}
