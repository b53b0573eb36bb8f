//! Images for several processors.

use super::*;

const PLATFORMS: [(&str, &str, Option<&str>); 3] =
    [("amd64", "amd64", None), ("arm64", "arm64", None), ("arm/v7", "arm", Some("v7"))];

/// Pushes an image for three platforms, whose file `which` says the platform. All can run here.
fn put_all(world: &World, name: &str) {
    const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    let layout = world.env.at("platforms");
    let base = blob(&layout, TAR, &fs::read(world.env.at("base.tar")).unwrap());
    let manifests = PLATFORMS.map(|(which, architecture, variant)| {
        let own = blob(&layout, TAR, &layer(&world.env, which));
        let mut platform = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        let mut config = platform.clone();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [base["digest"], own["digest"]] });
        let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [base, own] });
        let mut manifest = blob(&layout, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["platform"] = platform;
        manifest
    });
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut index = blob(&layout, INDEX, index.to_string().as_bytes());
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": "all" });
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [index] }).to_string()).unwrap();
    world.registry.push(&format!("oci:{}:all", layout.display()), name).unwrap();
}

#[test]
fn of_an_image_for_several_platforms_the_one_that_is_named_is_taken() {
    needs_registry!();
    let world = World::new(Access::default());
    let World { env, .. } = &world;
    put_all(&world, "multi:1");
    let spec = format!("((from {}) {WHICH})", world.name("multi:1"));
    let here = env.build(&spec).ok().id().to_owned();
    for (which, _, _) in PLATFORMS {
        let built = env.build_with(&["--platform", &format!("linux/{which}")], &spec).ok().id().to_owned();
        assert_eq!(env.run(&["log", &built]).ok().stdout, format!("{which}\n"));
        assert_eq!(built == here, which == "amd64", "{which}");
    }
    // Each is remembered by itself.
    assert_eq!(env.build(&spec).ok().id(), here);
    let missing = env.build_with(&["--platform", "linux/s390x"], &spec).fails_with(2);
    insta::assert_snapshot!(world.told(&missing));
    for bad in ["arm64", "windows/amd64", "linux/a/b/c"] {
        let told = env.build_with(&["--platform", bad], &spec).fails_with(2).told();
        assert!(told.contains(&format!("`{bad}` is not a platform")), "{told}");
    }
}

#[test]
fn an_image_on_a_base_for_another_platform_is_for_that_too() {
    needs_registry!();
    let world = World::new(Access::default());
    put_all(&world, "multi:1");
    let spec = format!("((from {}) {WHICH})", world.name("multi:1"));
    let name = world.name("app:1");
    world.env.build_with(&["--platform", "linux/arm/v7", "-t", &name, "--push"], &spec).ok();
    let layout = world.env.at("exported");
    world.registry.pull("app:1", &format!("oci:{}:1", layout.display())).unwrap();
    let read = |digest: &Value| -> Value {
        let path = layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = read(&index["manifests"][0]["digest"]);
    let config = read(&manifest["config"]["digest"]);
    assert_eq!((&config["architecture"], &config["variant"]), (&"arm".into(), &"v7".into()));
    // Here it is found to be for another.
    let told = world.env.build(&format!("((from {name}) {WHICH})")).fails_with(2).told();
    assert!(told.contains("has no image for linux/amd64; it has linux/arm/v7; choose with `--platform`"), "{told}");
    world.env.build_with(&["--platform", "linux/arm/v7"], &format!("((from {name}) {WHICH})")).ok();
}
