//! Keys of all kinds, both versions of TLS, and those who are not who they say.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_api::{
    Address, CapabilityUri, ConnectError, Connection, ErrorKind, Fingerprint, Identity, Key, Limits, PoolAdmin,
    ServiceId,
};
use kiln_testkit::{Need, need};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::raw::{Raw, bootstrap, words};
use crate::world::{POOL, id, with_host};

const OPENSSL: Need<'static> = Need::Tool("openssl", "openssl");

/// Runs openssl, and returns what it prints.
fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).stdin(Stdio::null()).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Makes a key of each kind, with a name for it.
fn keys() -> Vec<(&'static str, Vec<u8>)> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("key.pem");
    let file = file.to_str().expect("UTF-8");
    let rsa = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    std::fs::write(file, &rsa).expect("it is written");
    let pkcs1 = openssl(&["rsa", "-in", file, "-traditional"]);
    let mut keys = vec![("RSA PKCS#8", rsa), ("RSA PKCS#1", pkcs1)];
    for (curve, pkcs8, sec1) in
        [("P-256", "ECDSA P-256 PKCS#8", "ECDSA P-256 SEC1"), ("P-384", "ECDSA P-384 PKCS#8", "ECDSA P-384 SEC1")]
    {
        let key = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")]);
        std::fs::write(file, &key).expect("it is written");
        keys.push((sec1, openssl(&["ec", "-in", file])));
        keys.push((pkcs8, key));
    }
    keys.push(("Ed25519", openssl(&["genpkey", "-algorithm", "ED25519"])));
    keys
}

/// Returns the fingerprint of a key as openssl sees it.
fn fingerprint(pem: &[u8]) -> Fingerprint {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("key.pem");
    std::fs::write(&file, pem).expect("it is written");
    Fingerprint::of(&openssl(&["pkey", "-in", file.to_str().expect("UTF-8"), "-pubout", "-outform", "DER"]))
}

/// A key and a certificate for it in files, as X.509 v1 like older OCaml programs', or v3.
struct Certified {
    _directory: tempfile::TempDir,
    key: PathBuf,
    certificate: PathBuf,
}

impl Certified {
    fn new(pem: &[u8], version: u8) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let [key, request, certificate] =
            ["key.pem", "request.pem", "certificate.pem"].map(|name| directory.path().join(name));
        std::fs::write(&key, pem).expect("it is written");
        let [k, r, c] = [&key, &request, &certificate].map(|path: &PathBuf| path.to_str().expect("UTF-8"));
        openssl(&["req", "-new", "-key", k, "-subj", "/CN=capnp", "-out", r]);
        if version == 1 {
            openssl(&["x509", "-req", "-in", r, "-signkey", k, "-out", c]);
        } else {
            openssl(&["req", "-x509", "-key", k, "-subj", "/CN=capnp", "-out", c]);
        }
        let shown = String::from_utf8(openssl(&["x509", "-in", c, "-noout", "-text"])).expect("UTF-8");
        assert!(shown.contains(&format!("Version: {version} ")), "{shown}");
        Self { _directory: directory, key, certificate }
    }
}

fn port(address: &Address) -> u16 {
    let Address::Tcp { port, .. } = address else { panic!("it is on TCP") };
    *port
}

/// Connects with openssl as a client, asks for the service, and returns what it gets before `bytes` are there or it ends.
async fn ask_with_openssl(uri: &CapabilityUri, version: &str, certified: Option<&Certified>) -> (Vec<u8>, String) {
    let address = format!("127.0.0.1:{}", port(uri.addresses.first()));
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &address, version]).kill_on_drop(true);
    if let Some(Certified { key, certificate, .. }) = certified {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl runs");
    let mut to = child.stdin.take().expect("a pipe");
    let _ = to.write_all(&words(|root| bootstrap(root, 0, POOL))).await;
    let mut from = child.stdout.take().expect("a pipe");
    let mut answer = Vec::new();
    while answer.len() < 64 && from.read_buf(&mut answer).await.expect("a pipe") > 0 {}
    drop(to);
    let mut said = String::new();
    child.start_kill().expect("it is ours");
    child.stderr.take().expect("a pipe").read_to_string(&mut said).await.expect("UTF-8");
    child.wait().await.expect("it ends");
    (answer, said)
}

#[tokio::test]
async fn keys_of_all_kinds_are_good_for_both_sides() {
    need!(OPENSSL);
    for (name, pem) in keys() {
        let key = Key::from_pem(&pem).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(key.fingerprint(), fingerprint(&pem), "{name}");
        let client = key.clone();
        with_host(Some(key), Limits::default(), async |host| {
            let connection = Connection::open(&host.uri, &client, Limits::default()).await;
            let connection = connection.unwrap_or_else(|error| panic!("{name}: {error}"));
            let pool: PoolAdmin = connection.bootstrap(&id(POOL));
            assert_eq!(pool.show().await.expect("it is shown"), "by id", "{name}");
        })
        .await;
    }
}

#[tokio::test]
async fn clients_of_both_versions_with_certificates_of_both_versions_are_served() {
    need!(OPENSSL);
    let all: Vec<_> =
        keys().into_iter().map(|(name, pem)| (name, Certified::new(&pem, 1), Certified::new(&pem, 3), pem)).collect();
    for (name, v1, v3, pem) in &all {
        let key = Key::from_pem(pem).expect("a key");
        with_host(Some(key), Limits::default(), async |host| {
            for version in ["-tls1_2", "-tls1_3"] {
                for certified in [v1, v3] {
                    let (answer, said) = ask_with_openssl(&host.uri, version, Some(certified)).await;
                    assert!(answer.len() >= 64, "{name} {version}: {said}");
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn who_shows_no_certificate_is_refused() {
    need!(OPENSSL);
    let (key, _) = Key::generate().expect("a key");
    with_host(Some(key), Limits::default(), async |host| {
        for version in ["-tls1_2", "-tls1_3"] {
            let (answer, said) = ask_with_openssl(&host.uri, version, None).await;
            assert!(answer.is_empty() && said.contains("alert"), "{version}: {said}");
        }
        // And who speaks without TLS.
        let mut raw = Raw::connect(&host.uri).await;
        raw.bootstrap(0, POOL).await;
        raw.gone().await;
        host.is_well().await;
    })
    .await;
}

#[tokio::test]
async fn older_versions_are_refused() {
    need!(OPENSSL);
    let (key, pem) = Key::generate().expect("a key");
    let certified = Certified::new(pem.as_bytes(), 3);
    with_host(Some(key), Limits::default(), async |host| {
        let (answer, _) = ask_with_openssl(&host.uri, "-tls1_1", Some(&certified)).await;
        assert!(answer.is_empty());
    })
    .await;
}

/// A server that openssl runs, on a port that the system chose.
struct OpensslServer {
    child: tokio::process::Child,
    address: SocketAddr,
}

impl OpensslServer {
    async fn start(certified: &Certified, version: &str) -> Self {
        let mut command = tokio::process::Command::new("openssl");
        // "-Verify": clients must show a certificate; any will do, as with OCaml's programs.
        command.args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-Verify", "1", version]);
        command.arg("-cert").arg(&certified.certificate).arg("-key").arg(&certified.key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("openssl runs");
        let mut from = child.stdout.take().expect("a pipe");
        let mut said = Vec::new();
        let address = loop {
            assert!(from.read_buf(&mut said).await.expect("a pipe") > 0, "it listens");
            let text = String::from_utf8_lossy(&said);
            let address = text.lines().find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok());
            if let (Some(address), true) = (address, text.ends_with('\n')) {
                break address;
            }
        };
        // What it prints further must go somewhere.
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        Self { child, address }
    }

    fn uri(&self, key: Fingerprint) -> CapabilityUri {
        let address = Address::Tcp { host: self.address.ip().to_string(), port: self.address.port() };
        CapabilityUri { identity: Identity::Key(key), addresses: address.into(), service: ServiceId::default() }
    }
}

#[tokio::test]
async fn servers_of_both_versions_with_certificates_of_both_versions_are_known_by_their_key() {
    need!(OPENSSL);
    tokio::task::LocalSet::new()
        .run_until(async {
            for (name, pem) in keys() {
                let client = Key::from_pem(&pem).expect("a key");
                for version in ["-tls1_2", "-tls1_3"] {
                    for x509 in [1, 3] {
                        let server = OpensslServer::start(&Certified::new(&pem, x509), version).await;
                        let opened = Connection::open(&server.uri(fingerprint(&pem)), &client, Limits::default()).await;
                        assert!(opened.is_ok(), "{name} {version} v{x509}: {:?}", opened.err());
                    }
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_host_that_is_killed_is_a_lost_connection() {
    need!(OPENSSL);
    tokio::task::LocalSet::new()
        .run_until(async {
            let (key, pem) = Key::generate().expect("a key");
            let mut server = OpensslServer::start(&Certified::new(pem.as_bytes(), 3), "-tls1_3").await;
            let uri = server.uri(key.fingerprint());
            let connection = Connection::open(&uri, &key, Limits::default()).await.expect("a connection");
            let pool: PoolAdmin = connection.bootstrap(&id(POOL));
            // It cannot say TLS's goodbye.
            let (error, killed) = tokio::join!(pool.show(), server.child.kill());
            killed.expect("it is ours");
            assert_eq!(error.expect_err("it is gone").kind, ErrorKind::Disconnected);
        })
        .await;
}

#[tokio::test]
async fn a_host_with_another_key_is_named_as_such() {
    let ((key, _), (other, _), (client, _)) =
        (Key::generate().expect("a key"), Key::generate().expect("a key"), Key::generate().expect("a key"));
    with_host(Some(key), Limits::default(), async |host| {
        let uri = CapabilityUri { identity: Identity::Key(other.fingerprint()), ..host.uri.clone() };
        let error = Connection::open(&uri, &client, Limits::default()).await.err().expect("it is another");
        assert!(matches!(error, ConnectError::WrongKey { .. }), "{error:?}");
    })
    .await;
}

/// Says that it has the key of a certificate, and signs with another.
#[derive(Debug)]
struct Impostor(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Impostor {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl rustls::client::ResolvesClientCert for Impostor {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
    fn has_certs(&self) -> bool {
        true
    }
}

fn impostor(certificate: &Path, key: &Path) -> Arc<Impostor> {
    use rustls::pki_types::pem::PemObject as _;
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(certificate).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).expect("a key");
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key");
    Arc::new(Impostor(Arc::new(rustls::sign::CertifiedKey::new(vec![certificate], key))))
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    need!(OPENSSL);
    let (key, pem) = Key::generate().expect("a key");
    let (_, other) = Key::generate().expect("a key");
    let (ours, theirs) = (Certified::new(pem.as_bytes(), 3), Certified::new(other.as_bytes(), 3));
    // The certificate is public: whoever is on the way has seen it.
    let impostor = impostor(&ours.certificate, &theirs.key);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // As a server.
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&impostor) as Arc<_>);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a port");
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.map(drop)
        });
        let uri = CapabilityUri {
            identity: Identity::Key(key.fingerprint()),
            addresses: Address::Tcp { host: address.ip().to_string(), port: address.port() }.into(),
            service: ServiceId::default(),
        };
        let error = Connection::open(&uri, &key, Limits::default()).await.err().expect("it has no key");
        let ConnectError::Handshake { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains("BadSignature"), "{source}");
        served.await.expect("it ends").expect_err("no handshake");

        // As a client.
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible))
            .with_client_cert_resolver(Arc::clone(&impostor) as Arc<_>);
        with_host(Some(key.clone()), Limits::default(), async |host| {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port(host.uri.addresses.first())))
                .await
                .expect("it listens");
            let name = rustls::pki_types::ServerName::try_from("capnp").expect("a name");
            let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
            // With TLS 1.3 the client is done before the server has looked.
            if let Ok(mut stream) = stream {
                let _ = stream.write_all(&words(|root| bootstrap(root, 0, POOL))).await;
                stream.read_u8().await.expect_err("it is refused");
            }
            host.is_well().await;
        })
        .await;
    }
}

/// Believes everything.
#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
