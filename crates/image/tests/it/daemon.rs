//! Images that Docker's daemon and Podman keep: real ones, each in a directory of the test's own.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln_image::{Fetcher, ForgetfulDigests, ImageError, Images, ImagesSettings, Quiet, Reference, Resolved};
use kiln_testkit::{Dockerd, Need, need};
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::{block_on, causes, fetch_with, image, index, listing, sh};

/// Writes an image as an archive that Docker and Podman load, and returns the layout that it was made from.
fn archive(dir: &Path, name: &str) -> String {
    let layout = dir.join("layout");
    let lower = Archive::new().dir("d").file("d/a", "a").file("d/b", "b").symlink("l", "d").end();
    let upper = Archive::new().file("d/.wh.a", "").file("d/c", "c").hard_link("x", "d/c").end();
    index(&layout, &[image(&layout, &[lower, upper])]);
    sh(dir, &format!("skopeo copy -q oci:layout docker-archive:image.tar:{name}"));
    format!("oci:{}", layout.display())
}

fn resolve(images: &Images, reference: &str) -> Result<Resolved, ImageError> {
    let reference = Reference::parse(reference.as_bytes(), Path::new("/")).expect("a reference");
    block_on(images.resolve(&reference, None, Arc::new(ForgetfulDigests)))
}

/// The kept image must be what the layout is.
fn is_same(images: &Images, reference: &str, layout: &str) -> Resolved {
    let resolved = resolve(images, reference).unwrap_or_else(|error| panic!("{reference}: {}", causes(&error)));
    let into = tempfile::tempdir().expect("a directory");
    let fetched = block_on(fetch_with(images, &resolved, into.path(), Arc::new(Quiet), &CancellationToken::new()));
    fetched.unwrap_or_else(|error| panic!("{reference}: {}", causes(&error)));
    let (wanted, config) = crate::fetch(layout).expect("fetched");
    assert_eq!(listing(into.path()), listing(wanted.path()));
    assert_eq!(resolved.config.env, config.env);
    let layers = |resolved: &Resolved| resolved.layers.iter().map(|layer| layer.chain).collect::<Vec<_>>();
    assert_eq!(layers(&resolved), layers(&crate::resolve(layout).expect("resolved")));
    resolved
}

#[test]
fn an_image_of_the_docker_daemon_is_the_same_as_elsewhere() {
    need!(
        Need::Root,
        Need::Tool("dockerd", "docker.io"),
        Need::Tool("docker", "docker.io"),
        Need::Tool("skopeo", "skopeo")
    );
    let docker = match Dockerd::start() {
        Ok(docker) => docker,
        Err(said) => {
            println!("SKIPPED: no Docker daemon can be started here: {said}");
            assert!(std::env::var_os("CI").is_none(), "a test was skipped in CI: {said}");
            return;
        }
    };
    let environment = docker.environment();
    let dir = tempfile::tempdir().expect("a directory");
    let layout = archive(dir.path(), "example/name:1");
    let host = environment[0].1.to_str().expect("ASCII").to_owned();
    sh(dir.path(), &format!("DOCKER_HOST={host} docker load -q -i image.tar"));
    let images = Images::new(ImagesSettings { environment, ..ImagesSettings::default() });
    let resolved = is_same(&images, "docker-daemon:example/name:1", &layout);
    let archive = format!("docker-archive:{}", dir.path().join("image.tar").display());
    assert_eq!(resolved.identity, crate::resolve(&archive).expect("resolved").identity);
    let error = resolve(&images, "docker-daemon:nothing:1").expect_err("it is not there");
    assert!(error.is_users_fault());
    assert_eq!(error.to_string(), "`docker` has no image `nothing:1`; `docker images` tells what it has");
    drop(docker);
    let error = resolve(&images, "docker-daemon:example/name:1").expect_err("no daemon");
    assert!(!error.is_users_fault() && error.to_string().contains("failed: exit status"), "{error}");
}

#[test]
fn an_image_of_the_containers_storage_is_the_same_whichever_program_is_there() {
    need!(Need::Root, Need::Tool("podman", "podman"), Need::Tool("skopeo", "skopeo"), Need::Tool("buildah", "buildah"));
    let dir = tempfile::tempdir().expect("a directory");
    let layout = archive(dir.path(), "example/name:1");
    let here = dir.path().display();
    let configuration = dir.path().join("storage.conf");
    // Not the overlay driver: it leaves a mount behind.
    let text = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{here}/graph\"\nrunroot = \"{here}/run\"\n");
    fs::write(&configuration, text).expect("written");
    sh(dir.path(), &format!("CONTAINERS_STORAGE_CONF={} podman load -q -i image.tar", configuration.display()));
    let mut identities = Vec::new();
    for programs in [&["podman"][..], &["skopeo"], &["buildah"], &[]] {
        let bin = dir.path().join(format!("bin{}", programs.concat()));
        fs::create_dir(&bin).expect("made");
        for program in programs {
            let path = sh(dir.path(), &format!("command -v {program}"));
            std::os::unix::fs::symlink(path.trim(), bin.join(program)).expect("linked");
        }
        let environment =
            vec![("CONTAINERS_STORAGE_CONF".into(), configuration.clone().into()), ("PATH".into(), bin.clone().into())];
        let images = Images::new(ImagesSettings { environment, ..ImagesSettings::default() });
        if programs.is_empty() {
            let error = resolve(&images, "containers-storage:example/name:1").expect_err("no program");
            assert_eq!(error.to_string(), "`podman` is not installed; install it with `apt-get install podman`");
            continue;
        }
        identities.push(is_same(&images, "containers-storage:example/name:1", &layout).identity);
        let error = resolve(&images, "containers-storage:nothing:1").expect_err("it is not there");
        assert!(error.is_users_fault(), "{error}");
    }
    identities.dedup();
    assert_eq!(identities.len(), 1, "{identities:?}");
}
