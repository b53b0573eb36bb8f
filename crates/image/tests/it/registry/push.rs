//! Pushes to a real registry, over good and bad networks; and what other registries do.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kiln_image::{Digest, Patience, Registry, RegistryError, RegistrySettings};
use kiln_testkit::{Link, Request, Response, Script, need};

use super::*;
use crate::block_on;

/// More than two chunks.
const BIG: usize = 40 << 20;

fn uploads_left(registry: &kiln_testkit::Registry, repository: &str) -> usize {
    let dir = registry.storage().join("docker/registry/v2/repositories").join(repository).join("_uploads");
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn an_image_is_pushed_and_another_program_pulls_it() {
    need!(REGISTRY, OPENSSL, SKOPEO);
    for tls in [false, true] {
        let registry = start(true, tls);
        let dir = tempfile::tempdir().expect("a directory");
        let auth_file = dir.path().join("auth.json");
        registry.login(&auth_file).expect("a login");
        let settings = if tls { with_ca_file(&registry) } else { settings() };
        let client = Registry::new(RegistrySettings { auth_files: vec![auth_file], ..settings }).expect("a client");
        let name = name(&registry.host(), "a/b");

        let layer = noise(BIG);
        let digest = Digest::of(&layer);
        let has = || block_on(client.has_blob(&name, digest, &go_on())).expect("an answer");
        assert!(!has());
        let (heard, part) = (AtomicU64::new(0), part_of(&layer));
        let progress = |bytes| heard.store(bytes, Ordering::SeqCst);
        block_on(client.upload(&name, digest, &part, &progress, &go_on())).expect("an upload");
        assert!(has());
        assert_eq!(heard.into_inner(), BIG as u64);

        let config = br#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
        let config_digest = put_blob(&client, &name, config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest.to_string(),
                "size": layer.len(),
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        let pushed = block_on(client.put_manifest(&name, None, MANIFEST, &manifest, &go_on())).expect("a push");
        assert_eq!(pushed, Digest::of(&manifest));
        block_on(client.put_manifest(&name, Some("1"), MANIFEST, &manifest, &go_on())).expect("a push");
        for (count, version) in ["a/b:1".to_owned(), format!("a/b@{pushed}")].iter().enumerate() {
            let pulled = dir.path().join(format!("pulled-{count}"));
            registry.pull(version, &format!("oci:{}:1", pulled.display())).expect("a pull");
            assert!(fs::read(pulled.join("blobs/sha256").join(digest.hex())).expect("a layer") == layer);
        }
        assert_eq!(uploads_left(&registry, "a/b"), 0);
    }
}

#[test]
fn a_blob_is_taken_over_from_another_repository() {
    need!(REGISTRY);
    let registry = start(false, false);
    let (client, name) = (client(), |repository: &str| name(&registry.host(), repository));
    let digest = put_blob(&client, &name("a"), b"blob");
    let mount = |digest, from| block_on(client.mount_blob(&name("b"), digest, from, &go_on())).expect("an answer");
    assert!(mount(digest, "a"));
    assert!(block_on(client.has_blob(&name("b"), digest, &go_on())).expect("an answer"));
    assert!(!mount(Digest::of(b"other"), "a"));
    assert!(!mount(digest, "no/such/repository"));
}

#[test]
fn an_upload_that_begins_in_place_of_a_takeover_is_given_up() {
    let script = receiver(|_, _| None);
    let (client, name) = (client(), name(&script.host(), "b"));
    let digest = Digest::of(b"blob");
    assert!(!block_on(client.mount_blob(&name, digest, "a/c", &go_on())).expect("an answer"));
    let asked: Vec<_> =
        script.requests().into_iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    let post = format!("POST /v2/b/blobs/uploads/?mount=sha256%3A{}&from=a%2Fc", digest.hex());
    assert_eq!(asked, ["GET /v2/".to_owned(), post, "DELETE /up?state=0".to_owned()]);
}

#[test]
fn an_upload_survives_cut_connections() {
    need!(REGISTRY);
    let registry = start(false, false);
    let link = Link::to(registry.address()).expect("a link");
    let (client, name) = (client(), name(&link.host(), "a"));
    let blob = noise(BIG);
    let digest = Digest::of(&blob);
    // The first chunk arrives, the second breaks; this registry then forgets the upload.
    link.cut_after(Some(20 << 20));
    let highest = AtomicU64::new(0);
    let progress = |bytes| {
        if bytes < highest.fetch_max(bytes, Ordering::SeqCst) {
            link.cut_after(None);
        }
    };
    block_on(client.upload(&name, digest, &part_of(&blob), &progress, &go_on())).expect("an upload");
    assert!(link.connections() > 1);
    let (got, result) = download(&client, &name, digest, blob.len());
    result.expect("a download");
    assert!(got == blob);
}

#[test]
fn an_upload_that_never_gets_through_fails() {
    need!(REGISTRY);
    let registry = start(false, false);
    let link = Link::to(registry.address()).expect("a link");
    link.cut_after(Some(1 << 20));
    let (client, name) = (client(), name(&link.host(), "a"));
    let blob = noise(3 << 20);
    let result = block_on(client.upload(&name, Digest::of(&blob), &part_of(&blob), &|_| {}, &go_on()));
    assert!(matches!(result, Err(RegistryError::Cut { .. } | RegistryError::UploadLost { .. })), "{result:?}");
    assert!(!result.expect_err("it is cut").is_users_fault());
}

/// A registry for uploads, as other registries may be: `answer` decides about each chunk before it is kept.
fn receiver(answer: impl Fn(&Request, &mut Vec<u8>) -> Option<Response> + Send + Sync + 'static) -> Script {
    let kept = Mutex::new(Vec::new());
    Script::start(move |request| {
        let mut kept = kept.lock().expect("a lock");
        if let Some(response) = answer(request, &mut kept) {
            return response;
        }
        let host = request.header("host").expect("a host");
        let going = |status, kept: &[u8]| {
            Response::new(status)
                .header("Location", format!("http://{host}/up?state={}", kept.len()))
                .header("Range", format!("0-{}", kept.len().saturating_sub(1)))
        };
        match request.method.as_str() {
            "POST" => {
                kept.clear();
                going(202, &kept)
            }
            "PATCH" if request.path != format!("/up?state={}", kept.len()) => Response::new(404),
            "PATCH" => {
                kept.extend_from_slice(&request.body);
                going(202, &kept)
            }
            "PUT" if request.path.ends_with(&format!("&digest=sha256%3A{}", Digest::of(&kept).hex())) => {
                Response::new(201)
            }
            "PUT" => Response::new(400).bytes(r#"{"errors": [{"code": "DIGEST_INVALID"}]}"#),
            "GET" if request.path.starts_with("/up") => going(204, &kept),
            "HEAD" => Response::new(404),
            _ => Response::new(200),
        }
    })
    .expect("a server")
}

fn upload(script: &Script, blob: &[u8]) -> Result<Vec<(String, String)>, RegistryError> {
    let name = name(&script.host(), "a");
    block_on(client().upload(&name, Digest::of(blob), &part_of(blob), &|_| {}, &go_on()))?;
    let patches = script.requests().into_iter().filter(|request| request.method == "PATCH");
    let header = |request: &Request, name: &str| request.header(name).unwrap_or_default().to_owned();
    Ok(patches.map(|request| (header(&request, "content-range"), header(&request, "content-length"))).collect())
}

fn owned(patches: &[(&str, &str)]) -> Vec<(String, String)> {
    patches.iter().map(|(range, length)| ((*range).to_owned(), (*length).to_owned())).collect()
}

#[test]
fn an_upload_goes_on_where_the_registry_says() {
    let broken = AtomicU64::new(0);
    let script = receiver(move |request, kept| {
        let is_first = request.method == "PATCH" && broken.fetch_add(1, Ordering::SeqCst) == 0;
        is_first.then(|| {
            kept.extend_from_slice(&request.body[..600]);
            Response::new(503)
        })
    });
    let patches = upload(&script, &noise(1000)).expect("an upload");
    assert_eq!(patches, owned(&[("0-999", "1000"), ("600-999", "400")]));
}

#[test]
fn a_registry_that_wants_longer_chunks_gets_them() {
    let script = receiver(|request, _| {
        let host = request.header("host").expect("a host");
        (request.method == "POST").then(|| {
            Response::new(202)
                .header("Location", format!("http://{host}/up?state=0"))
                .header("OCI-Chunk-Min-Length", "20000000")
        })
    });
    let patches = upload(&script, &noise(17 << 20)).expect("an upload");
    assert_eq!(patches, owned(&[("0-17825791", "17825792")]));
}

#[test]
fn a_registry_that_takes_no_second_chunk_gets_all_in_one() {
    let script = receiver(|request, kept| (request.method == "PATCH" && !kept.is_empty()).then(|| Response::new(405)));
    let patches = upload(&script, &noise(17 << 20)).expect("an upload");
    assert_eq!(
        patches,
        owned(&[("0-16777215", "16777216"), ("16777216-17825791", "1048576"), ("0-17825791", "17825792")])
    );
}

#[test]
fn a_lost_upload_begins_again_but_not_for_ever() {
    let script = receiver(|request, _| (request.method == "PATCH").then(|| Response::new(404)));
    let error = upload(&script, b"blob").expect_err("always lost");
    assert!(matches!(error, RegistryError::UploadLost { .. }), "{error}");
    let refused = receiver(|request, _| (request.method == "POST").then(|| Response::new(403)));
    let error = upload(&refused, b"blob").expect_err("refused");
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    let liar = receiver(|request, _| {
        let other = Digest::of(b"other").to_string();
        (request.method == "PUT").then(|| Response::new(201).header("Docker-Content-Digest", other))
    });
    let error = upload(&liar, b"blob").expect_err("stored something else");
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
}

#[test]
fn an_upload_that_is_forgotten_again_and_again_ends_though_much_is_sent() {
    // Half of what comes is taken, and then it is gone: never nothing new, never more than before.
    let is_taken = AtomicBool::new(false);
    let script = receiver(move |request, _| {
        if request.method != "PATCH" {
            return None;
        }
        let range = if is_taken.fetch_xor(true, Ordering::Relaxed) { "0-0" } else { "0-49999" };
        let at = format!("http://{}/up", request.header("host").expect("a host"));
        Some(Response::new(202).header("Location", at).header("Range", range))
    });
    let patience = Patience { slow_for: Duration::from_secs(2), ..patience() };
    let client = Registry::new(RegistrySettings { patience, ..settings() }).expect("a client");
    let (name, blob) = (name(&script.host(), "a"), noise(100_000));
    let result = block_on(client.upload(&name, Digest::of(&blob), &part_of(&blob), &|_| {}, &go_on()));
    // The first half is fast enough for the first two seconds.
    assert!(matches!(result, Err(RegistryError::TooSlow { .. })), "{result:?}");
}

#[test]
fn a_file_that_is_too_short_is_our_own_error() {
    let script = receiver(|_, _| None);
    let (client, name) = (client(), name(&script.host(), "a"));
    let mut part = part_of(b"blob");
    part.length += 1000;
    let result = block_on(client.upload(&name, Digest::of(b"blob"), &part, &|_| {}, &go_on()));
    assert!(matches!(result, Err(RegistryError::ReadUpload { .. })), "{result:?}");
}

#[test]
fn a_cancelled_upload_ends_at_once() {
    let cancel = go_on();
    let by_server = cancel.clone();
    let script = receiver(move |request, _| {
        (request.method == "PATCH").then(|| {
            by_server.cancel();
            Response::new(202).body(kiln_testkit::Body::Silence)
        })
    });
    let (client, name) = (client(), name(&script.host(), "a"));
    let result = block_on(client.upload(&name, Digest::of(b"blob"), &part_of(b"blob"), &|_| {}, &cancel));
    assert!(result.expect_err("cancelled").is_cancelled());
}

#[test]
fn a_manifest_that_refers_to_nothing_is_refused() {
    need!(REGISTRY);
    let registry = start(false, false);
    let config = json!({"mediaType": "a/b", "digest": Digest::of(b"x").to_string(), "size": 1});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).to_string();
    let (client, name) = (client(), name(&registry.host(), "a"));
    let result = block_on(client.put_manifest(&name, Some("1"), MANIFEST, manifest.as_bytes(), &go_on()));
    let error = result.expect_err("nothing there");
    assert!(matches!(error, RegistryError::Status { status: 400, .. }), "{error}");
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
}
