//! What others make of our images.

use std::path::Path;

use kiln_image::export::{Compression, Destination, Image, Options};
use kiln_testkit::{Dockerd, Need, busybox_root, need};

use super::{Results, assert_same, file, in_seconds, oci, options, seen, write};
use crate::sh;

const PODMAN: Need<'_> = Need::Tool("podman", "podman");

/// A system that can run, with a second layer.
fn busybox() -> Results {
    let mut results = Results::new();
    results.step(|tree| busybox_root(tree).expect("a root filesystem"));
    results.sh("mkdir -p etc gone; echo hello >etc/greeting; ln etc/greeting again");
    results.sh("rm -r gone; echo more >>etc/greeting; ln -f etc/greeting again");
    results
}

fn packings(dir: &Path) -> [(&'static str, Options); 3] {
    let options = |compression| Options { compression, ..options(dir) };
    [("gzip", options(Compression::Gzip)), ("zstd", options(Compression::Zstd)), ("none", options(Compression::None))]
}

/// An image that says hello.
fn greeting(results: &Results) -> Image {
    let mut image = results.image(true);
    image.overrides.cmd = Some(["/bin/cat", "/etc/greeting", "again"].map(str::to_owned).into());
    image.overrides.working_dir = Some("/".to_owned());
    image
}

#[test]
fn skopeo_copies_what_we_write() {
    need!(Need::Root, Need::Tool("skopeo", "skopeo"));
    let results = busybox();
    let dir = results.dir.path();
    for (name, options) in packings(dir) {
        write(results.image(true), oci(&dir.join(name)), options.clone()).expect("written");
        sh(dir, &format!("skopeo copy -q oci:{name}:1 dir:{name}-dir; test -s {name}-dir/manifest.json"));
        let output = file(&dir.join(format!("{name}.tar")));
        write(results.image(true), Destination::OciArchive { output, tag: None }, options).expect("written");
        sh(
            dir,
            &format!(
                "skopeo copy -q oci-archive:{name}.tar:1 dir:{name}-tar; cmp {name}-dir/manifest.json {name}-tar/manifest.json"
            ),
        );
    }
    let options = options(dir);
    write(results.image(true), Destination::DockerArchive(file(&dir.join("docker.tar"))), options).expect("written");
    let told = sh(dir, "skopeo inspect docker-archive:docker.tar:kiln/test:1");
    assert!(told.contains("\"Architecture\": \"amd64\""), "{told}");
    sh(dir, "skopeo copy -q docker-archive:docker.tar dir:docker-dir");
}

#[test]
fn umoci_unpacks_and_runc_runs_it() {
    need!(Need::Root, Need::Tool("umoci", "umoci"), Need::Tool("runc", "runc"));
    let results = busybox();
    let dir = results.dir.path();
    results.copy(&dir.join("expected"));
    write(greeting(&results), oci(&dir.join("out")), options(dir)).expect("written");
    sh(dir, "umoci unpack --image out:1 bundle 2>/dev/null");
    in_seconds(&dir.join("bundle/rootfs"));
    assert_same(&seen(&dir.join("bundle/rootfs")), &seen(&dir.join("expected")), "umoci");
    let said = sh(
        dir,
        // Without a terminal, and where control groups may not be made.
        r#"sed -i 's/"terminal": *true/"terminal": false/' bundle/config.json
        runc --root runc run -b bundle kiln-test-$$ 2>&1 || { runc --root runc list; exit 1; }"#,
    );
    assert_eq!(said, "hello\nmore\nhello\nmore\n");
}

#[test]
fn podman_loads_and_runs_it() {
    need!(Need::Root, PODMAN);
    let results = busybox();
    let dir = results.dir.path();
    for (name, options) in packings(dir) {
        let docker = Destination::DockerArchive(file(&dir.join(format!("{name}-docker.tar"))));
        write(greeting(&results), docker, options.clone()).expect("written");
        let archive = Destination::OciArchive { output: file(&dir.join(format!("{name}-oci.tar"))), tag: None };
        write(greeting(&results), archive, options.clone()).expect("written");
        for kind in ["docker", "oci"] {
            let said = sh(
                dir,
                &format!(
                    "podman='podman --runtime runc --root {name}-{kind} --runroot {name}-run --storage-driver vfs --cgroup-manager cgroupfs'
                    image=$($podman load -q -i {name}-{kind}.tar | sed 's/^[^:]*: //')
                    $podman run --rm --ulimit nofile=256:256 --ulimit nproc=4096:4096 --network=none --log-driver=none $image
                    $podman unmount -a -f >/dev/null 2>&1 || true"
                ),
            );
            assert_eq!(said, "hello\nmore\nhello\nmore\n", "{name} {kind}");
        }
    }
}

#[test]
fn buildah_pulls_it() {
    need!(Need::Root, Need::Tool("buildah", "buildah"));
    let results = busybox();
    let dir = results.dir.path();
    write(greeting(&results), oci(&dir.join("out")), options(dir)).expect("written");
    let said = sh(
        dir,
        "buildah='buildah --root root --runroot run --storage-driver vfs'
        container=$($buildah from --pull-never oci:out:1 2>/dev/null || $buildah from oci:out:1)
        $buildah inspect --format '{{.OCIv1.Config.Cmd}}' $container
        echo; cat $($buildah mount $container)/etc/greeting; $buildah umount -a >/dev/null; $buildah rm -a >/dev/null",
    );
    assert_eq!(said, "[/bin/cat /etc/greeting again]\nhello\nmore\n");
}

#[test]
fn docker_loads_and_runs_it() {
    need!(Need::Root, Need::Tool("dockerd", "docker.io"), Need::Tool("docker", "docker.io"));
    let docker = match Dockerd::start() {
        Ok(docker) => docker,
        Err(said) => return println!("SKIPPED: dockerd does not start here: {said}"),
    };
    let host = docker.environment().into_iter().map(|(name, value)| format!("{}={}", name.display(), value.display()));
    let host: String = host.collect::<Vec<_>>().join(" ");
    let results = busybox();
    let dir = results.dir.path();
    for (name, options) in packings(dir) {
        let mut image = greeting(&results);
        image.names.push(format!("registry.example:5000/{name}").parse().expect("a name"));
        write(image, Destination::DockerArchive(file(&dir.join(format!("{name}.tar")))), options).expect("written");
        let said = sh(
            dir,
            &format!(
                "export {host}; docker load -q -i {name}.tar
                docker image inspect --format '{{{{len .RootFS.Layers}}}} {{{{.Config.Cmd}}}}' kiln/test:1
                docker run --rm --network=none --ulimit nofile=256 kiln/test:1"
            ),
        );
        let expected = format!(
            "Loaded image: kiln/test:1\nLoaded image: registry.example:5000/{name}:latest\n\
             3 [/bin/cat /etc/greeting again]\nhello\nmore\nhello\nmore\n"
        );
        assert_eq!(said, expected, "{name}");
    }
}
