//! One request: with its login, its redirects, and a limit to every wait.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderValue;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::auth::{self, Scope};
use super::body::{FileBody, Progress};
use super::push::FilePart;
use super::retry::{Again, Failure, Speed};
use super::site::{Scheme, Site};
use super::{HttpError, Patience, RegistryError, Shared};

/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// Where Amazon's machines find their secrets by IPv6.
const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// How often the sending of a body is looked at.
const TICK: Duration = Duration::from_millis(200);

/// A request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload<'a>,
    /// What is asked for, for errors.
    pub(super) what: &'a str,
    /// How many times longer than usual the answer may take.
    pub(super) leniency: u32,
}

/// What a request carries.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    Part {
        part: &'a FilePart,
        /// Within the part.
        offset: u64,
        length: u64,
        /// Hears how much of the part has been sent.
        progress: &'a (dyn Fn(u64) + Sync),
    },
}

/// A login, and the only place where it may be shown: there and nowhere else it is known not to be abused.
pub(super) struct Proof {
    pub(super) header: HeaderValue,
    pub(super) home: Url,
}

impl<'a> Ask<'a> {
    /// A request without a body.
    pub(super) fn new(method: Method, url: Url, what: &'a str) -> Self {
        Self { method, url, headers: HeaderMap::new(), payload: Payload::Empty, what, leniency: 1 }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("names, numbers and media types have no control characters");
        self.headers.append(name, value);
        self
    }
}

impl Shared {
    /// Returns the address of `path` in the site's repository, after finding out how to speak to the site.
    pub(super) async fn address(&self, site: &Site, path: &str) -> Result<Url, Failure> {
        let scheme = match site.scheme {
            Scheme::Either => match self.sites.scheme(&site.authority) {
                Some(scheme) => scheme,
                None => self.probe(site).await?,
            },
            scheme => scheme,
        };
        let text = format!("{}://{}/v2/{}/{path}", scheme.name(), site.authority, site.repository);
        Ok(Url::parse(&text).expect("hosts and repositories are checked names"))
    }

    /// Finds out whether an insecure site speaks TLS.
    async fn probe(&self, site: &Site) -> Result<Scheme, Failure> {
        let ping = |scheme: Scheme| {
            let text = format!("{}://{}/v2/", scheme.name(), site.authority);
            Ask::new(Method::GET, Url::parse(&text).expect("hosts are checked names"), "its version")
        };
        let scheme = match self.send(site, &ping(Scheme::Https), None).await {
            Ok(_) => Scheme::Https,
            Err(failure) => match self.send(site, &ping(Scheme::Http), None).await {
                // This is how servers answer who forgot about TLS: the first attempt was cut by chance.
                Ok(response) if response.status() == StatusCode::BAD_REQUEST => return Err(failure),
                Ok(_) => Scheme::Http,
                Err(failure) => return Err(failure),
            },
        };
        self.sites.remember_scheme(&site.authority, scheme);
        Ok(scheme)
    }

    /// Makes a request that needs `scope`, once; logs in if that is asked for. Returns whatever the answer is.
    pub(super) async fn exchange(&self, site: &Site, ask: &Ask<'_>, scope: &Scope) -> Result<Response, Failure> {
        let home = self.address(site, "").await?;
        let proof = |header| Proof { header, home: home.clone() };
        let first = self.auth.remembered(site, scope).map(proof);
        let response = self.follow(site, ask, first.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !is_at_home(response.url(), &home) {
            return Ok(response);
        }
        let rejected = first.as_ref().map(|proof| &proof.header);
        match self.authorize(site, &home, scope, (response.headers(), rejected), ask.what).await? {
            Some(header) => self.follow(site, ask, Some(&proof(header))).await,
            None => Ok(response),
        }
    }

    /// Makes a request, and goes where it is redirected.
    pub(super) async fn follow(&self, site: &Site, ask: &Ask<'_>, proof: Option<&Proof>) -> Result<Response, Failure> {
        let mut seen = vec![ask.url.clone()];
        let mut response = self.send(site, ask, proof).await?;
        while matches!(ask.method, Method::GET | Method::HEAD)
            && matches!(response.status().as_u16(), 301..=303 | 307 | 308)
        {
            let url = location(&response, site, ask.what)?;
            if seen.len() > REDIRECTS || seen.contains(&url) {
                let (host, what) = (site.host.clone(), ask.what.to_owned());
                return Err(RegistryError::Redirects { host, what, limit: REDIRECTS }.into());
            }
            seen.push(url.clone());
            let next = Ask { headers: ask.headers.clone(), ..Ask::new(ask.method.clone(), url, ask.what) };
            response = self.send(site, &next, proof).await?;
        }
        Ok(response)
    }

    /// Sends one request and waits for the beginning of the answer.
    async fn send(&self, site: &Site, ask: &Ask<'_>, proof: Option<&Proof>) -> Result<Response, Failure> {
        let client = self.clients.get(&site.trust).await?;
        let host = shown_host(site, &ask.url);
        let mut headers = ask.headers.clone();
        if let Some(proof) = proof.filter(|proof| is_at_home(&ask.url, &proof.home)) {
            auth::add(&mut headers, &proof.header);
        }
        let request = client.request(ask.method.clone(), ask.url.clone()).headers(headers);
        let patience = &self.settings.patience;
        let waited = patience.connect + patience.idle * ask.leniency;
        let silent = || {
            let (host, what) = (host.clone(), ask.what.to_owned());
            Failure::passing(RegistryError::Silent { host, what, waited })
        };
        let broken = |error| Failure::broken(error, &host, ask.what);
        let result = match &ask.payload {
            Payload::Part { part, offset, length, progress } => {
                let sent = Arc::new(Progress::default());
                let body = FileBody::new(Arc::clone(&part.file), part.offset + offset, *length, Arc::clone(&sent));
                let sending = request.body(Body::wrap(body)).send();
                let hear = |bytes| progress(offset + bytes);
                let result = tokio::select! {
                    result = sending => result.map_err(broken),
                    () = stuck(&sent, *length, patience, &hear) => Err(silent()),
                };
                if let Some(source) = sent.take_failure() {
                    return Err(RegistryError::ReadUpload { what: ask.what.to_owned(), source }.into());
                }
                result
            }
            payload => {
                let request = match payload {
                    Payload::Bytes(bytes) => request.body(bytes.clone()),
                    // Explicitly, because some registries insist on its length.
                    _ if matches!(ask.method, Method::POST | Method::PUT) => request.body(""),
                    _ => request,
                };
                tokio::time::timeout(waited, request.send()).await.map_err(|_| silent())?.map_err(broken)
            }
        };
        let status = result.as_ref().ok().map(|response| response.status().as_u16());
        // Without the query: it may be signed.
        tracing::debug!(method = %ask.method, %host, path = ask.url.path(), status, "request");
        match result {
            Ok(response) => {
                self.sites.has_answered(&host);
                Ok(response)
            }
            Err(Failure { error: error @ RegistryError::Connect { .. }, .. }) if !self.sites.is_answering(&host) => {
                Err(Failure { error, again: Again::Hardly })
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Ends when a body does not get on.
async fn stuck(sent: &Progress, length: u64, patience: &Patience, progress: &(dyn Fn(u64) + Sync)) {
    // What was handed over may still be in the kernel's buffers, so a standstill is normal for longer than elsewhere.
    let (mut before, mut since) = (0, tokio::time::Instant::now());
    let mut speed = Speed::new();
    loop {
        tokio::time::sleep(TICK.min(patience.idle)).await;
        let now = sent.sent();
        progress(now);
        let is_slow = now < length && speed.passed(now - before, patience).is_some();
        if now != before {
            (before, since) = (now, tokio::time::Instant::now());
        }
        if is_slow || since.elapsed() > patience.idle + patience.slow_for {
            return;
        }
    }
}

/// Returns the next part of a body, or `None` at its end.
pub(super) async fn chunk(
    response: &mut Response,
    host: &str,
    what: &str,
    patience: &Patience,
    speed: &mut Speed,
) -> Result<Option<Bytes>, Failure> {
    let (host, what) = (|| host.to_owned(), || what.to_owned());
    let chunk = tokio::time::timeout(patience.idle, response.chunk()).await;
    let Ok(chunk) = chunk else {
        let error = RegistryError::Silent { host: host(), what: what(), waited: patience.idle };
        return Err(Failure::passing(error));
    };
    let chunk = chunk.map_err(|error| Failure::broken(error, &host(), &what()))?;
    let length = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
    match speed.passed(length, patience) {
        Some((bytes, during)) => Err(RegistryError::TooSlow { host: host(), what: what(), bytes, during }.into()),
        None => Ok(chunk),
    }
}

/// Returns where an answer says to go on.
pub(super) fn location(response: &Response, site: &Site, what: &str) -> Result<Url, Failure> {
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = text.map_or(Target::Nowhere, |text| resolve(response.url(), text, response.status().is_redirection()));
    let host = site.host.clone();
    match target {
        Target::Url(url) => Ok(url),
        Target::Nowhere => Err(RegistryError::BadLocation { host, what: what.to_owned() }.into()),
        Target::Plain(to) => Err(RegistryError::Plain { host, to }.into()),
    }
}

/// What an answer's location means.
#[derive(Debug, Eq, PartialEq)]
enum Target {
    Url(Url),
    /// It is no address, or none that is followed.
    Nowhere,
    /// It leaves encryption, for this host.
    Plain(String),
}

fn resolve(from: &Url, text: &str, is_redirect: bool) -> Target {
    let url = from.join(text).ok().filter(|url| {
        // A name and password in it would become a login.
        let has_login = !url.username().is_empty() || url.password().is_some();
        matches!(url.scheme(), "https" | "http") && url.has_host() && !has_login
    });
    let Some(mut url) = url else { return Target::Nowhere };
    url.set_fragment(None);
    if from.scheme() == "https" && url.scheme() == "http" {
        // Registries behind a proxy that does TLS for them often do not know it; they mean themselves all the same.
        let is_same = url.host_str() == from.host_str() && !is_redirect;
        if !is_same || url.set_scheme("https").and_then(|()| url.set_port(from.port())).is_err() {
            return Target::Plain(url.host_str().unwrap_or_default().to_owned());
        }
    }
    if is_link_local(&url) && !is_link_local(from) {
        return Target::Nowhere;
    }
    Target::Url(url)
}

/// Returns true for addresses that mean something else on each machine: clouds give out a machine's own secrets there.
pub(super) fn is_link_local(url: &Url) -> bool {
    // Addresses of hosts are in their canonical form here, `[::ffff:…]` included.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local() || address == AMAZON,
        Err(_) => false,
    }
}

/// Returns true if a login for `home` may be shown at `url`.
fn is_at_home(url: &Url, home: &Url) -> bool {
    url.origin() == home.origin()
}

/// Returns the host for errors: as the user knows it, unless the request went elsewhere.
fn shown_host(site: &Site, url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if site.authority == authority { site.host.clone() } else { authority }
}

impl Failure {
    /// What the HTTP library said: the connection could not be made, or broke.
    pub(super) fn broken(error: reqwest::Error, host: &str, what: &str) -> Self {
        let (host, what) = (host.to_owned(), what.to_owned());
        let is_untrusted = is_untrusted(&error);
        let (is_builder, is_connect) = (error.is_builder(), error.is_connect());
        let source = HttpError::new(error);
        if is_untrusted {
            RegistryError::Untrusted { host, source }.into()
        } else if is_builder {
            RegistryError::Client { source }.into()
        } else if is_connect {
            Self::passing(RegistryError::Connect { host, source })
        } else {
            Self::passing(RegistryError::Cut { host, what, source })
        }
    }
}

/// Returns true if a certificate is why.
fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // An `io::Error` is not among its own causes' links: it answers for what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| wrapped.and_then(|wrapped| wrapped.downcast_ref()));
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return true;
        }
        cause = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_do_not_leave_encryption() {
        let at = |from: &str, text: &str, is_redirect| match resolve(&from.parse().expect(from), text, is_redirect) {
            Target::Url(url) => url.to_string(),
            other => format!("{other:?}"),
        };
        let upload = |text: &str| at("https://r.x:5000/v2/a/", text, false);
        assert_eq!(upload("/up?a=%3A"), "https://r.x:5000/up?a=%3A");
        assert_eq!(upload("https://other.x/up#f"), "https://other.x/up");
        assert_eq!(upload("http://r.x/up?a"), "https://r.x:5000/up?a");
        assert_eq!(upload("http://other.x/up"), r#"Plain("other.x")"#);
        for text in ["https://u@r.x/", "https://:p@r.x/", "ftp://r.x/", "data:x", "https://"] {
            assert_eq!(upload(text), "Nowhere", "{text}");
        }
        for text in [
            "http://169.254.169.254/",
            "https://0xa9fea9fe/",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
        ] {
            assert_eq!(at("http://127.0.0.1/", text, true), "Nowhere", "{text}");
        }
        assert_eq!(at("http://r.x/", "http://[fd00:ec2::254]/", true), "Nowhere");
        assert_eq!(at("http://169.254.1.1/a", "/b", true), "http://169.254.1.1/b");
        let redirect = |from: &str, text: &str| at(from, text, true);
        assert_eq!(redirect("https://r.x/", "http://r.x/"), r#"Plain("r.x")"#);
        assert_eq!(redirect("http://r.x/", "http://s.x/"), "http://s.x/");
        assert_eq!(redirect("http://r.x/", "https://s.x/"), "https://s.x/");
    }

    #[test]
    fn a_login_is_for_one_origin() {
        let is_at_home =
            |url: &str| is_at_home(&url.parse().expect(url), &"https://r.x/v2/".parse().expect("an address"));
        assert!(is_at_home("https://r.x:443/elsewhere"));
        for url in ["http://r.x/", "https://r.x:444/", "https://s.r.x/", "https://r.x.evil/"] {
            assert!(!is_at_home(url), "{url}");
        }
    }
}
