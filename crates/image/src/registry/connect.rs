//! Connections: pools, TLS, proxies. One pool for each way of trusting a host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, NoProxy, Proxy};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::site::lock;
use super::{HttpError, Patience, RegistryError, RegistrySettings};

const USER_AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));
/// What may be on its way in HTTP/2 before we have taken it. The default, 64 KiB, is slow over long distances.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Shorter than most servers wait, so that it is us who close idle connections, and never in the middle of a request.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// A file with authorities holds a few hundred at most.
const AUTHORITIES_BYTES: u64 = 4 << 20;
/// Never through a proxy, as Docker and Go have it.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// How far a host is trusted. The same goes for where it sends us: its token server, its storage.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Trust {
    /// If an authority of the machine vouches for it.
    System,
    /// Also if one in this file does.
    Also { host: String, ca_file: PathBuf },
    /// Always.
    Anyone,
}

/// Makes clients as they are needed, and keeps them. Not to be printed: proxies have passwords.
pub(super) struct Clients {
    patience: Patience,
    proxies: Vec<Proxy>,
    made: Mutex<HashMap<Trust, Client>>,
}

impl Clients {
    pub(super) fn new(settings: &RegistrySettings) -> Result<Self, RegistryError> {
        let proxies = &settings.proxies;
        let direct = format!("{LOOPBACK},{}", proxies.no_proxy.as_deref().unwrap_or_default());
        let mut made = Vec::new();
        for (scheme, text) in [("http", &proxies.http), ("https", &proxies.https)] {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { continue };
            let proxy = if scheme == "http" { Proxy::http(text) } else { Proxy::https(text) };
            let proxy = proxy.map_err(|source| RegistryError::Proxy { scheme, source: HttpError::new(source) })?;
            made.push(proxy.no_proxy(NoProxy::from_string(&direct)));
        }
        Ok(Self { patience: settings.patience, proxies: made, made: Mutex::default() })
    }

    /// Returns the client for this kind of trust. Two made at the same time are one too many, but harmless.
    pub(super) async fn get(&self, trust: &Trust) -> Result<Client, RegistryError> {
        if let Some(client) = lock(&self.made).get(trust) {
            return Ok(client.clone());
        }
        // The authorities of the machine are read from its disk.
        let owned = trust.clone();
        let tls = tokio::task::spawn_blocking(move || tls(&owned)).await;
        let tls = tls.unwrap_or(Err(RegistryError::Cancelled))?;
        let mut builder = Client::builder()
            .no_proxy()
            .user_agent(USER_AGENT)
            .tls_backend_preconfigured(tls)
            // `http` follows redirects itself, so that it sees where they lead.
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(self.patience.connect)
            .pool_idle_timeout(POOL_IDLE)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        for proxy in &self.proxies {
            builder = builder.proxy(proxy.clone());
        }
        let client = builder.build().map_err(|source| RegistryError::Client { source: HttpError::new(source) })?;
        lock(&self.made).insert(trust.clone(), client.clone());
        Ok(client)
    }
}

fn tls(trust: &Trust) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|source| RegistryError::Tls { source })?;
    let mut config = match trust {
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        Trust::System => builder.with_root_certificates(machine_authorities()),
        Trust::Also { host, ca_file } => {
            let mut roots = machine_authorities();
            add_authorities(&mut roots, host, ca_file)?;
            builder.with_root_certificates(roots)
        }
    }
    .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn machine_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(error = error as &dyn std::error::Error, "cannot read some of the machine's authorities");
    }
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("this machine trusts no certificate authority; is the package ca-certificates installed?");
    }
    roots
}

fn add_authorities(roots: &mut RootCertStore, host: &str, path: &Path) -> Result<(), RegistryError> {
    let read = |source| RegistryError::ReadAuthorities { host: host.to_owned(), path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(read)?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, AUTHORITIES_BYTES), &mut text).map_err(read)?;
    let bad = || RegistryError::BadAuthorities { host: host.to_owned(), path: path.to_owned() };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let (added, ignored) = roots.add_parsable_certificates(certificates.map_err(|_| bad())?);
    if added == 0 || ignored > 0 { Err(bad()) } else { Ok(()) }
}

/// Believes every certificate, but not that its key is there if it is not.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
