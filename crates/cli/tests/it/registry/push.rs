//! Results that go to registries.

use kiln_testkit::Link;

use super::*;

const STEPS: &str =
    "(run (shell \"echo one > /one; dd if=/dev/urandom of=/noise bs=1M count=2 2>/dev/null; sha256sum /noise > /sum\"))
 (run (shell \"echo two > /two; rm /which\"))";
const LOOK: &str = "(run (shell \"cat /one /two; sha256sum -c /sum; ls /which 2>&1 || true\"))";
const SEEN: &str = "one\ntwo\n/noise: OK\nls: /which: No such file or directory\n";

/// Less than any layer of `STEPS` that is worth a word; manifest, configuration and requests are.
const LITTLE: u64 = 30_000;

fn spec(world: &World) -> String {
    format!("((from {}) {STEPS})", world.name("team/base:1"))
}

#[test]
fn a_push_survives_connections_that_break() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(world.registry.address()).unwrap();
    let id = world.env.build(&spec(&world)).ok().id().to_owned();
    // This registry forgets an upload whose connection breaks, so sooner or later one has to get through.
    link.cut_after(Some(700_000));
    let name = format!("{}/team/app:1", link.host());
    let mut running = world.env.spawn(&mut world.env.kiln(&["export", &id, "-t", &name, "--push"]));
    running.wait_for("beginning again");
    link.cut_after(None);
    running.end().ok();
    assert_eq!(world.seen_elsewhere(&format!("((from {}) {LOOK})", world.name("team/app:1"))), SEEN);
}

#[test]
fn what_a_registry_has_is_not_sent_again_and_mounted_in_other_repositories() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(world.registry.address()).unwrap();
    let id = world.env.build(&spec(&world)).ok().id().to_owned();
    let sent = |name: &str| {
        let before = link.sent();
        let pushed = world.env.run(&["export", &id, "-t", &format!("{}/{name}", link.host()), "--push"]).ok();
        (link.sent() - before, pushed.stdout)
    };
    let (first, digest) = sent("team/app:1");
    assert!(first > 2_000_000, "{first}");
    let (second, _) = sent("team/app:2");
    assert!(second < LITTLE, "{second}");
    let (mounted, _) = sent("other/app:1");
    assert!(mounted < LITTLE, "{mounted}");
    assert!(world.registry.storage().join("docker/registry/v2/repositories/other/app/_manifests/tags/1").is_dir());
    assert!(digest.starts_with("sha256:"), "{digest}");
    assert_eq!(world.seen_elsewhere(&format!("((from {}) {LOOK})", world.name("other/app:1"))), SEEN);
}

#[test]
fn one_build_is_pushed_under_several_names_to_several_registries() {
    needs_registry!();
    let world = World::new(Access::default());
    let other = Registry::start(Access::default()).unwrap();
    let names = [world.name("a/b/c:1"), format!("{}/app", other.host())];
    let built = world.env.build_with(&["-t", &names[0], "-t", &names[1], "--push"], &spec(&world)).ok();
    for name in &names {
        assert!(built.stderr.contains(&format!("---> wrote the image to {name}, ")), "{}", built.stderr);
        assert_eq!(world.seen_elsewhere(&format!("((from {name}) {LOOK})")), SEEN);
    }
}

#[test]
fn layers_are_packed_and_squashed_as_asked() {
    needs_registry!();
    let world = World::new(Access::default());
    let id = world.env.build(&spec(&world)).ok().id().to_owned();
    let push = |name: &str, more: &[&str]| {
        world.env.run(&[&["export", &id, "-t", &world.name(name), "--push", "-q"], more].concat()).ok();
        let manifest = world.manifest(name);
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(world.seen_elsewhere(&format!("((from {}) {LOOK})", world.name(name))), SEEN);
        let kind = layers[0]["mediaType"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        (layers.len(), kind)
    };
    assert_eq!(push("app:gzip", &[]), (4, "tar+gzip".to_owned()));
    assert_eq!(push("app:zstd", &["--compression", "zstd"]), (4, "tar+zstd".to_owned()));
    assert_eq!(push("app:squashed", &["--squash", "--compression", "none"]), (1, "tar".to_owned()));
}
