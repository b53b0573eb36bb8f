//! The client of registries against real ones, bad networks, and servers that lie.

mod auth;
mod lies;
mod pull;
mod push;
mod way;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_image::{Digest, HostSettings, ImageName, Patience, Registry, RegistryError, RegistrySettings};
use kiln_testkit::{Access, Need, Request, Response};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const REGISTRY: Need<'static> = Need::Tool("docker-registry", "docker-registry");
const OPENSSL: Need<'static> = Need::Tool("openssl", "openssl");
const SKOPEO: Need<'static> = Need::Tool("skopeo", "skopeo");

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Patient with a slow machine, but not between attempts.
fn patience() -> Patience {
    Patience {
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(5),
        idle: Duration::from_secs(60),
        attempts: 4,
        ..Patience::default()
    }
}

/// Loses patience at once.
fn impatience() -> Patience {
    Patience { connect: Duration::from_secs(1), idle: Duration::from_millis(500), attempts: 2, ..patience() }
}

fn settings() -> RegistrySettings {
    RegistrySettings { patience: patience(), ..RegistrySettings::default() }
}

fn client() -> Registry {
    Registry::new(settings()).expect("a client")
}

/// Settings for one host.
fn with_host(host: &str, special: HostSettings) -> RegistrySettings {
    RegistrySettings { hosts: [(host.to_owned(), special)].into(), ..settings() }
}

fn with_ca_file(registry: &kiln_testkit::Registry) -> RegistrySettings {
    with_host(&registry.host(), HostSettings { ca_file: Some(registry.ca_file()), ..HostSettings::default() })
}

fn with_mirrors(host: &str, mirrors: &[String]) -> RegistrySettings {
    with_host(host, HostSettings { mirrors: mirrors.to_vec(), ..HostSettings::default() })
}

fn name(host: &str, rest: &str) -> ImageName {
    format!("{host}/{rest}").parse().expect("a name")
}

fn go_on() -> CancellationToken {
    CancellationToken::new()
}

fn start(login: bool, tls: bool) -> kiln_testkit::Registry {
    kiln_testkit::Registry::start(Access { login, tls }).expect("a registry")
}

/// Bytes without a pattern, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    bytes.truncate(length);
    bytes
}

/// An index that refers to nothing, so that registries take it at once.
fn empty_index() -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string().into_bytes()
}

/// Puts a blob into a registry by its own client, which the tests of pushing check on its own.
fn put_blob(client: &Registry, name: &ImageName, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let part = part_of(bytes);
    crate::block_on(client.upload(name, digest, &part, &|_| {}, &go_on())).expect("an upload");
    digest
}

/// A part in the middle of a file.
fn part_of(bytes: &[u8]) -> kiln_image::FilePart {
    use std::io::Write;
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"before")
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.write_all(b"behind"))
        .expect("written");
    kiln_image::FilePart { file: std::sync::Arc::new(file), offset: 6, length: bytes.len() as u64 }
}

/// Downloads a blob; returns what the sink got.
fn download(client: &Registry, name: &ImageName, digest: Digest, size: usize) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut got = Vec::new();
    let mut sink = |bytes: &[u8]| -> io::Result<()> {
        got.extend_from_slice(bytes);
        Ok(())
    };
    let result = crate::block_on(client.download(name, digest, size as u64, &mut sink, &go_on()));
    (got, result)
}

fn manifest(client: &Registry, name: &ImageName) -> Result<kiln_image::Manifest, RegistryError> {
    crate::block_on(client.manifest(name, &name.which(), 1 << 20, &go_on()))
}

/// Returns an error and its causes in one line.
fn told(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Returns the range that a request asks for.
fn range(request: &Request) -> Option<usize> {
    request.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// An honest answer to a request for a blob, or a part of it.
fn serve(request: &Request, blob: &[u8]) -> Response {
    match range(request) {
        None => Response::new(200).bytes(blob),
        Some(start) => Response::new(206)
            .header("Content-Range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()))
            .bytes(&blob[start..]),
    }
}

/// Writes an executable script.
fn script(dir: &Path, file: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(file);
    std::fs::write(&path, text).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}
