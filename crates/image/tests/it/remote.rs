//! Images of a real registry, through good and bad networks.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_image::{
    Fetcher, ForgetfulDigests, ImageError, Images, ImagesSettings, Patience, Progress, Quiet, Reference, RegistryError,
    RegistrySettings, Resolved,
};
use kiln_testkit::{Access, Link, Need, Registry, need};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{architecture, blob, block_on, causes, fetch_with, image, index, listing};

const NEEDS: [Need<'static>; 2] = [Need::Tool("docker-registry", "docker-registry"), Need::Tool("skopeo", "skopeo")];

/// A fetcher that loses patience soon.
fn images() -> Images {
    let patience = Patience {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(5),
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(10),
        ..Patience::default()
    };
    let registry = RegistrySettings { patience, ..RegistrySettings::default() };
    Images::new(ImagesSettings { registry, ..ImagesSettings::default() })
}

fn resolve(images: &Images, name: &str, remembered: Option<&str>) -> Result<Resolved, ImageError> {
    let reference = Reference::parse(name.as_bytes(), Path::new("/")).expect("a reference");
    block_on(images.resolve(&reference, remembered, Arc::new(ForgetfulDigests)))
}

fn fetch(images: &Images, name: &str) -> Result<TempDir, ImageError> {
    let into = tempfile::tempdir().expect("a directory");
    let reference = Reference::parse(name.as_bytes(), Path::new("/")).expect("a reference");
    block_on(async {
        let resolved = images.resolve(&reference, None, Arc::new(ForgetfulDigests)).await?;
        fetch_with(images, &resolved, into.path(), Arc::new(Quiet), &CancellationToken::new()).await
    })?;
    Ok(into)
}

/// Bytes that do not pack.
fn noise(seed: u64, length: usize) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + u8::try_from((state >> 57) % 94).expect("less than 94"))
    };
    (0..length).map(|_| next()).collect()
}

/// Makes a layout with one image and pushes it. Returns the layout's reference.
fn push(registry: &Registry, dir: &Path, name: &str, layers: &[Vec<u8>]) -> String {
    let layout = dir.join(name.replace([':', '/'], "-"));
    let mut manifest = image(&layout, layers);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "it"});
    index(&layout, &[manifest]);
    registry.push(&format!("oci:{}:it", layout.display()), name).expect("pushed");
    format!("oci:{}", layout.display())
}

#[test]
fn an_image_of_a_registry_is_the_same_as_its_layout_also_through_a_link_that_breaks() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    let layers: Vec<Vec<u8>> = (0..10)
        .map(|at| Archive::new().file(&format!("f{at}"), &noise(at, 100_000)).file("same", &at.to_string()).end())
        .collect();
    let layout = push(&registry, dir.path(), "some/name:1", &layers);
    let local = crate::resolve(&layout).expect("resolved");
    let (wanted, _) = crate::fetch(&layout).expect("fetched");
    let link = Link::to(registry.address()).expect("a link");
    link.cut_after(Some(60_000));
    for host in [registry.host(), link.host()] {
        let images = images();
        let name = format!("{host}/some/name:1");
        let resolved = resolve(&images, &name, None).expect("resolved");
        assert_eq!((&resolved.identity, &resolved.layers), (&local.identity, &local.layers));
        assert_eq!(resolved.config, local.config);
        let tree = fetch(&images, &name).unwrap_or_else(|error| panic!("{}", causes(&error)));
        assert_eq!(listing(tree.path()), listing(wanted.path()));
        let digest = resolved.identity.strip_prefix("oci ").expect("a digest");
        let by_digest = resolve(&images, &format!("{host}/some/name@{digest}"), None).expect("resolved");
        assert_eq!(by_digest.identity, resolved.identity);
    }
    assert!(link.connections() > 10, "{}", link.connections());
}

#[test]
fn the_image_of_before_is_had_as_long_as_the_registry_has_it() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    let push = |content: &str| push(&registry, dir.path(), "name:1", &[Archive::new().file("f", content).end()]);
    let name = format!("{}/name:1", registry.host());
    let images = images();
    push("old");
    let old = resolve(&images, &name, None).expect("resolved").identity;
    fs::remove_dir_all(dir.path().join("name-1")).expect("removed");
    push("new");
    let new = resolve(&images, &name, None).expect("resolved").identity;
    assert_ne!(old, new);
    assert_eq!(resolve(&images, &name, Some(&old)).expect("resolved").identity, old);
    let revisions = registry.storage().join("docker/registry/v2/repositories/name/_manifests/revisions/sha256");
    fs::remove_dir_all(revisions.join(old.trim_start_matches("oci sha256:"))).expect("removed");
    assert_eq!(resolve(&images, &name, Some(&old)).expect("resolved").identity, new);
    let error = resolve(&images, &format!("{}/none:1", registry.host()), None).expect_err("it is not there");
    assert!(matches!(error, ImageError::Registry(RegistryError::NotFound { .. })), "{error:?}");
    assert!(error.is_users_fault());
}

#[test]
fn of_several_platforms_the_wanted_one_comes() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    let layout = dir.path().join("layout");
    let on = |architecture: &str| {
        let mut manifest = image(&layout, &[Archive::new().file("f", architecture).end()]);
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifest
    };
    let manifests = [on("s390x"), on(&architecture())];
    let list =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let mut list = blob(&layout, "application/vnd.oci.image.index.v1+json", list.to_string().as_bytes());
    list["annotations"] = json!({"org.opencontainers.image.ref.name": "it"});
    index(&layout, &[list]);
    registry.push(&format!("oci:{}:it", layout.display()), "name:1").expect("pushed");
    let tree = fetch(&images(), &format!("{}/name:1", registry.host())).expect("fetched");
    assert_eq!(fs::read_to_string(tree.path().join("f")).expect("a file"), architecture());
}

#[test]
fn what_is_not_what_its_digest_says_never_succeeds() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    let layers = [Archive::new().file("a", "a").end(), Archive::new().file("b", &noise(1, 10_000)).end()];
    let layout = push(&registry, dir.path(), "name:1", &layers);
    let resolved = crate::resolve(&layout).expect("resolved");
    let digest = resolved.layers[1].stored.expect("known").hex();
    let data = registry.storage().join("docker/registry/v2/blobs/sha256").join(&digest[..2]).join(&digest).join("data");
    let mut bytes = fs::read(&data).expect("a blob");
    // In the time of the gzip header, which no decompressor looks at.
    bytes[4] ^= 1;
    fs::write(&data, bytes).expect("written");
    let told = causes(&fetch(&images(), &format!("{}/name:1", registry.host())).expect_err("damaged"));
    assert!(told.starts_with(&format!("cannot unpack layer sha256:{digest}")), "{told}");
    assert!(told.contains("its stored digest is"), "{told}");
}

#[test]
fn a_failed_download_fails_with_its_own_error() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    let layers = [Archive::new().file("a", &noise(1, 1000)).end(), Archive::new().file("b", &noise(2, 1000)).end()];
    let layout = push(&registry, dir.path(), "name:1", &layers);
    let digest = crate::resolve(&layout).expect("resolved").layers[1].digest().hex();
    let blobs = registry.storage().join("docker/registry/v2/blobs/sha256");
    fs::remove_dir_all(blobs.join(&digest[..2]).join(&digest)).expect("removed");
    let error = fetch(&images(), &format!("{}/name:1", registry.host())).expect_err("gone");
    assert!(matches!(&error, ImageError::Registry(RegistryError::NotFound { .. })), "{}", causes(&error));
}

/// Fires a token when bytes have come.
struct CancelAtFirstBytes(CancellationToken);

impl Progress for CancelAtFirstBytes {
    fn bytes(&self, _done: u64, _total: u64) {
        self.0.cancel();
    }

    fn line(&self, _text: &str) {}
}

#[test]
fn a_download_that_stalls_can_be_cancelled() {
    need!(NEEDS[0], NEEDS[1]);
    let registry = Registry::start(Access::default()).expect("started");
    let dir = tempfile::tempdir().expect("a directory");
    push(&registry, dir.path(), "name:1", &[Archive::new().file("a", &noise(1, 2_000_000)).end()]);
    let link = Link::to(registry.address()).expect("a link");
    // Its patience is longer than a test may take.
    let patience = Patience { idle: Duration::from_secs(3600), ..Patience::default() };
    let registry = RegistrySettings { patience, ..RegistrySettings::default() };
    let images = Images::new(ImagesSettings { registry, ..ImagesSettings::default() });
    let resolved = resolve(&images, &format!("{}/name:1", link.host()), None).expect("resolved");
    link.stall_after(Some(500_000));
    let (into, cancel) = (tempfile::tempdir().expect("a directory"), CancellationToken::new());
    let progress = Arc::new(CancelAtFirstBytes(cancel.clone()));
    let fetched = block_on(fetch_with(&images, &resolved, into.path(), progress, &cancel));
    assert!(fetched.expect_err("cancelled").is_cancelled());
}
