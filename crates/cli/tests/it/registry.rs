//! Real builds on images of a real registry, and results pushed to one: as a user of registries sees it, on good days and
//! bad ones.

/// Leaves the test, as a skip, where there is no registry or nothing can be built.
macro_rules! needs_registry {
    () => {
        $crate::needs_builds!();
        kiln_testkit::need!(
            kiln_testkit::Need::Tool("docker-registry", "docker-registry"),
            kiln_testkit::Need::Tool("skopeo", "skopeo"),
            kiln_testkit::Need::Tool("umoci", "umoci"),
            kiln_testkit::Need::Tool("openssl", "openssl"),
        );
    };
}

mod interop;
mod login;
mod network;
mod offline;
mod platforms;
mod push;
mod ways;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_image::Digest;
use kiln_testkit::{Access, Body, Registry, Response, Script, oci_image};
use serde_json::{Value, json};

use crate::env::{Ran, TestEnv};

/// What the last layer of [`World`]'s image says in `/which`.
const WHICH: &str = "(run (shell \"cat /which\"))";

/// A world with a registry that has the image `team/base:1`: busybox, and a layer with the file `which`.
struct World {
    env: TestEnv,
    registry: Registry,
}

impl World {
    fn new(access: Access) -> Self {
        let world = Self { env: TestEnv::new(), registry: Registry::start(access).unwrap() };
        world.put("team/base:1", "first");
        world
    }

    /// Puts an image into the registry in which `/which` says this.
    fn put(&self, name: &str, which: &str) {
        put(&self.env, &self.registry, name, which);
    }

    /// Returns what an image of the registry is called in specs.
    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// Returns a command that looks what `team/base:1` of this host is, asking its registry in any case.
    fn pulling(&self, host: &str) -> Command {
        self.env.spec(&format!("((from {host}/team/base:1) {WHICH})"));
        self.env.kiln(&["build", "-f", "spec", "src", "--pull"])
    }

    /// Runs a command as the user of another store.
    fn elsewhere(&self, arguments: &[&str]) -> Ran {
        let mut command = self.env.kiln(arguments);
        command.env("KILN_STORE", format!("overlayfs:{}", self.env.at("elsewhere").display()));
        self.env.ran(&mut command)
    }

    /// Returns what a spec's last step prints, built with an empty store.
    fn seen_elsewhere(&self, spec: &str) -> String {
        self.env.write("elsewhere.spec", spec);
        let built = self.elsewhere(&["build", "-f", "elsewhere.spec", "src"]).ok();
        self.elsewhere(&["log", built.id()]).ok().stdout
    }

    /// Returns what a command told, with the registry's host replaced.
    fn told(&self, ran: &Ran) -> String {
        ran.told().replace(&self.registry.host(), "[HOST]")
    }

    /// Returns the manifest of an image in the registry.
    fn manifest(&self, name: &str) -> Value {
        let dir = self.env.at("pulled-manifest");
        let _ = fs::remove_dir_all(&dir);
        self.registry.pull(name, &format!("dir:{}", dir.display())).unwrap();
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
    }
}

fn put(env: &TestEnv, registry: &Registry, name: &str, which: &str) {
    let base = fs::read(env.at("base.tar")).unwrap();
    let layer = layer(env, which);
    let image = oci_image(&env.at("layout"), &name.replace(['/', ':'], "-"), &[&base, &layer]).unwrap();
    registry.push(&image, name).unwrap();
}

/// Returns an archive with the file `which`.
fn layer(env: &TestEnv, which: &str) -> Vec<u8> {
    env.write("layer/which", format!("{which}\n"));
    let made = sh(env.path(), "tar --owner=0 --group=0 --mtime=@0 -C layer -cf layer.tar which");
    assert_eq!(made, "");
    fs::read(env.at("layer.tar")).unwrap()
}

/// Runs a shell script, which must succeed, and returns what it prints.
#[track_caller]
fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    let output = command.args(["-ec", script]).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Bytes that do not pack, the same each time.
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

/// Writes the user's registries.toml.
fn registries(env: &TestEnv, text: impl AsRef<[u8]>) {
    env.write("home/.config/kiln/registries.toml", text);
}

/// A proxy that, asked for a connection to anywhere, makes one to this registry.
fn proxy_to(registry: &Registry) -> Script {
    let address = registry.address();
    Script::start(move |request| match request.method.as_str() {
        "CONNECT" => Response::new(200).body(Body::Tunnel(address)),
        _ => Response::new(502),
    })
    .unwrap()
}

/// Writes a blob of a layout and returns its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(digest.hex()), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
}
