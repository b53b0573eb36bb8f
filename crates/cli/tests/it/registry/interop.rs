//! What other tools make of what we push, and we of what they push.

use kiln_testkit::{Dockerd, Need, listing, need};

use super::*;

/// Builds something with hard links, whiteouts and set-user-id bits in it, and pushes it with gzip and zstd, under
/// `greeting:gzip` and `greeting:zstd`.
fn push_greetings(world: &World) {
    let steps =
        "(run (shell \"mkdir /srv /gone; echo hello | tee /srv/a /srv/c; ln /srv/a /srv/b; chmod 4755 /srv/a\"))
     (run (shell \"rm -r /gone /which; echo more >> /srv/c\"))";
    let id = world.env.build(&format!("((from {}) {steps})", world.name("team/base:1"))).ok().id().to_owned();
    for packing in ["gzip", "zstd"] {
        let name = world.name(&format!("greeting:{packing}"));
        world.env.run(&["export", &id, "-t", &name, "--push", "--compression", packing]).ok();
    }
}

/// What a container of a greeting is to do, and to say.
const COMMAND: &str = "cat /srv/b /srv/c; stat -c '%a %h' /srv/a; ls -d /gone /which 2>/dev/null || true";
const SAID: &str = "hello\nhello\nmore\n4755 2\n";

#[test]
fn podman_pulls_and_runs_what_we_push() {
    needs_registry!();
    need!(Need::Tool("podman", "podman"));
    let world = World::new(Access::default());
    push_greetings(&world);
    for packing in ["gzip", "zstd"] {
        let name = world.name(&format!("greeting:{packing}"));
        let said = sh(
            world.env.path(),
            &format!(
                "podman='podman --runtime runc --root {packing} --runroot {packing}-run --storage-driver vfs --cgroup-manager cgroupfs'
                $podman pull -q --tls-verify=false {name} >/dev/null
                $podman run --rm --ulimit nofile=256:256 --ulimit nproc=4096:4096 --network=none --log-driver=none {name} \
                    sh -c \"{COMMAND}\"
                $podman unmount -a -f >/dev/null 2>&1 || true"
            ),
        );
        assert_eq!(said, SAID, "{packing}");
    }
}

#[test]
fn docker_pulls_and_runs_what_we_push() {
    needs_registry!();
    need!(Need::Tool("dockerd", "docker.io"), Need::Tool("docker", "docker.io"));
    let docker = match Dockerd::start() {
        Ok(docker) => docker,
        Err(said) => return println!("SKIPPED: dockerd does not start here: {said}"),
    };
    let world = World::new(Access::default());
    push_greetings(&world);
    for packing in ["gzip", "zstd"] {
        let name = world.name(&format!("greeting:{packing}"));
        let script = format!(
            "docker pull -q {name} >/dev/null
            docker run --rm --network=none --ulimit nofile=256 {name} sh -c \"{COMMAND}\""
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &script]).envs(docker.environment()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, SAID, "{packing}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn images_of_buildah_and_skopeo_are_what_umoci_makes_of_them() {
    needs_registry!();
    need!(Need::Tool("buildah", "buildah"));
    let world = World::new(Access::default());
    let env = &world.env;
    let host = world.registry.host();
    env.write("context/files/file", "content");
    env.write(
        "context/Containerfile",
        format!(
            "FROM {host}/team/base:1
COPY files /srv/
RUN rm /which; mkdir -m 2775 /shared; ln /srv/file /shared/linked; ln -s /srv/file /shared/link; chown 1000:1000 /shared
RUN rm -r /home; mkdir /home; echo new > /home/new; chmod 4711 /srv/file; truncate -s 1M /home/sparse
"
        ),
    );
    // Docker's kind of manifest, OCI's, and what another tool repacks.
    sh(
        env.path(),
        &format!(
            "buildah='buildah --root storage --runroot run --storage-driver vfs'
            $buildah bud --isolation chroot --tls-verify=false --layers -q -t made context >/dev/null
            $buildah push -q --tls-verify=false --format v2s2 made docker://{host}/made:docker
            $buildah push -q --tls-verify=false --format oci made docker://{host}/made:oci
            copy='skopeo --insecure-policy copy -q --src-tls-verify=false --dest-tls-verify=false'
            $copy --dest-compress-format zstd docker://{host}/made:oci oci:packed:1
            $copy oci:packed:1 docker://{host}/made:zstd
            $copy docker://{host}/made:oci oci:umoci:1
            umoci unpack --image umoci:1 bundle 2>/dev/null"
        ),
    );
    let kinds = ["docker", "oci", "zstd"].map(|tag| {
        env.spec(&format!("((from {host}/made:{tag}))"));
        let tree = env.at(tag);
        let output = format!("type=dir,dest={}", tree.display());
        // Each from its own layers.
        let mut command = env.kiln(&["build", "-f", "spec", "src", "-q", "-o", &output]);
        command.env("KILN_STORE", format!("overlayfs:{}", env.at(&format!("store-{tag}")).display()));
        env.ran(&mut command).ok();
        assert_eq!(listing(&tree).unwrap(), listing(&env.at("bundle/rootfs")).unwrap(), "{tag}");
        sh(env.path(), &format!("diff -r --no-dereference {tag} bundle/rootfs"));
        let manifest = world.manifest(&format!("made:{tag}"));
        (manifest["mediaType"].clone(), manifest["layers"][0]["mediaType"].clone())
    });
    let [docker, oci, zstd] = kinds;
    assert_eq!(docker.0, "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(oci.1, "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(zstd.1, "application/vnd.oci.image.layer.v1.tar+zstd");
}
