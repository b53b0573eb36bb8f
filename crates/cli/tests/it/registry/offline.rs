//! What is in the store needs no registry, and what a tag stands for is remembered.

use super::*;

/// Leaves the test where a network of one's own cannot be had.
macro_rules! needs_unshare {
    () => {
        needs_registry!();
        kiln_testkit::need!(kiln_testkit::Need::Tool("unshare", "util-linux"));
    };
}

#[test]
fn a_build_that_is_stored_needs_no_network_no_credentials_and_no_certificates() {
    needs_unshare!();
    let world = World::new(Access::default());
    let World { env, registry, .. } = &world;
    let digest = sh(
        env.path(),
        &format!("skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' docker://{}", world.name("team/base:1")),
    );
    let by_tag = format!("((from {}) {WHICH})", world.name("team/base:1"));
    let by_digest = format!("((from {}) {WHICH})", world.name(&format!("team/base@{}", digest.trim())));
    let built = env.build(&by_tag).ok().id().to_owned();
    assert_eq!(env.build(&by_digest).ok().id(), built);
    // Whoever reads these fails or warns.
    env.write("home/.docker/config.json", "broken");
    let offline = |spec: &str, more: &[&str]| {
        env.spec(spec);
        let mut command = Command::new("unshare");
        command.args(["-n", env!("CARGO_BIN_EXE_kiln"), "build", "-f", "spec", "src"]).args(more);
        env.set_up(&mut command);
        env.ran(command.env("SSL_CERT_FILE", env.at("nothing")))
    };
    for (spec, more) in [(&by_tag, &[][..]), (&by_digest, &[]), (&by_digest, &["--pull"])] {
        let ran = offline(spec, more).ok();
        assert_eq!((ran.id(), ran.made_and_found()), (&*built, (0, 2)), "{}", ran.stderr);
        assert!(!ran.stderr.contains("authorit"), "{}", ran.stderr);
    }
    // A tag that is to be asked for is.
    let told = offline(&by_tag, &["--pull"]).fails_with(3).told();
    assert!(told.contains(&format!("cannot connect to {}", registry.host())), "{told}");
}

#[test]
fn a_tag_that_moves_is_noticed_when_asked_for() {
    needs_registry!();
    let world = World::new(Access::default());
    let World { env, .. } = &world;
    let spec = format!("((from {}) {WHICH})", world.name("team/base:1"));
    let first = env.build(&spec).ok().id().to_owned();
    world.put("team/base:1", "second");
    assert_eq!(env.build(&spec).ok().id(), first);
    // Also after the image of before is gone.
    env.run(&["prune", "--all"]).ok();
    let again = env.build(&spec).ok();
    assert_eq!((again.id(), again.made_and_found()), (&*first, (2, 0)));
    let second = env.build_with(&["--pull"], &spec).ok().id().to_owned();
    assert_ne!(second, first);
    assert_eq!(env.run(&["log", &second]).ok().stdout, "second\n");
    assert_eq!(env.build(&spec).ok().id(), second);
}

/// The steps of a store, one a line.
fn steps(env: &TestEnv) -> Vec<String> {
    let listed = env.run(&["ls", "--json"]).ok().stdout;
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_str().unwrap().to_owned();
    listed.lines().map(step).collect()
}

#[test]
fn images_share_their_layers_in_the_store_and_on_the_way_to_it() {
    needs_registry!();
    let world = World::new(Access::default());
    let World { env, registry, .. } = &world;
    let link = kiln_testkit::Link::to(registry.address()).unwrap();
    // Slow enough that the builds meet.
    link.throttle(Some(4_000_000));
    let base = fs::read(env.at("base.tar")).unwrap();
    let shared = noise(1_000_000);
    env.write("shared/noise", &shared);
    sh(env.path(), "tar --owner=0 --group=0 --mtime=@0 -C shared -cf shared.tar noise");
    let shared = fs::read(env.at("shared.tar")).unwrap();
    for which in ["one", "two"] {
        let image = oci_image(&env.at("layout"), which, &[&base, &shared, &layer(env, which)]).unwrap();
        registry.push(&image, &format!("{which}:1")).unwrap();
        env.write(&format!("{which}.spec"), format!("((from {}/{which}:1) {WHICH})", link.host()));
    }
    let running =
        ["one", "two"].map(|which| env.spawn(&mut env.kiln(&["build", "-f", &format!("{which}.spec"), "src"])));
    for (running, which) in running.into_iter().zip(["one\n", "two\n"]) {
        let built = running.end().ok();
        assert_eq!(env.run(&["log", built.id()]).ok().stdout, which);
    }
    let layers = steps(env).iter().filter(|step| step.starts_with("(layer ")).count();
    assert_eq!(layers, 4, "{:?}", steps(env));
    let sizes: Vec<u64> = world.manifest("one:1")["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["size"].as_u64().unwrap())
        .collect();
    let once: u64 = sizes.iter().sum();
    assert!((once..once + 100_000).contains(&link.received()), "{} of {once}", link.received());
    // A third finds all but its own layer.
    world.put("three:1", "three");
    let before = link.received();
    assert_eq!(env.log(&format!("((from {}/three:1) {WHICH})", link.host())), "three\n");
    assert!(link.received() - before < 20_000, "{}", link.received() - before);
}
