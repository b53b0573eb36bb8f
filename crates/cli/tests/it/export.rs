//! `kiln export`, and what `kiln build` writes besides the store: images that other tools and kiln itself accept.

use std::fs;
use std::path::Path;

use kiln_testkit::{Access, Need, Registry, listing, need};
use serde_json::Value;

use crate::env::TestEnv;
use crate::needs_builds;

const STEPS: &str = r#"(workdir /srv)
 (env WHO world)
 (run (shell "echo hello > kept; echo gone > gone; mkdir -p d/e; chmod 4755 kept"))
 (run (shell "rm gone; ln kept linked; ln -s kept d/link"))
 (user (uid 1000) (gid 100))"#;

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Returns the blob `digest` of a layout, parsed.
fn blob(layout: &Path, digest: &Value) -> Value {
    json(&layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")))
}

/// Returns the configuration of the only image of a layout.
fn config(layout: &Path) -> Value {
    let index = json(&layout.join("index.json"));
    let manifest = blob(layout, &index["manifests"][0]["digest"]);
    blob(layout, &manifest["config"]["digest"])
}

#[test]
fn a_build_writes_its_result_in_every_form_and_prints_its_id() {
    needs_builds!();
    let env = TestEnv::new();
    let outputs = ["layout", "archive.tar", "docker.tar", "tree.tar", "tree"].map(|name| env.at(name));
    let [layout, archive, docker, tar, tree] = outputs.each_ref().map(|path| path.to_str().unwrap());
    let arguments = [
        "-t".to_owned(),
        "app:1".to_owned(),
        format!("--output=type=oci,dest={layout}"),
        format!("--output=type=oci,dest={archive}"),
        format!("--output=type=docker,dest={docker}"),
        format!("--output=type=tar,dest={tar}"),
        format!("--output=type=dir,dest={tree}"),
        "--label=made.by=test".to_owned(),
    ];
    let built = env.build_with(&arguments.each_ref().map(String::as_str), STEPS).ok();
    assert_eq!(built.id().len(), 64);
    assert!(built.stderr.contains(&format!("(write the image to {layout})\n")), "{}", built.stderr);

    let config = config(&env.at("layout"));
    assert_eq!(config["config"]["WorkingDir"], "/srv");
    assert_eq!(config["config"]["User"], "1000:100");
    assert_eq!(config["config"]["Env"], serde_json::json!(["WHO=world"]));
    assert_eq!(config["config"]["Labels"]["made.by"], "test");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    let history: Vec<&str> =
        config["history"].as_array().unwrap().iter().map(|entry| entry["created_by"].as_str().unwrap()).collect();
    assert_eq!(history[0], "(from rootfs:base.tar)");
    assert!(history[2].starts_with("/srv: (run (shell \"rm gone;"), "{history:?}");

    // The tree as each of them has it is the tree that a build sees.
    let listed = listing(&env.at("tree/srv")).unwrap();
    let names: Vec<&str> = listed.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["d", "d/e", "d/link", "kept", "linked"]);
    assert!(listed[3].starts_with("kept 104755 0:0"), "{listed:?}");
    let look = "(run (shell \"cd /srv; find . | sort; cat kept; stat -c '%a %h' kept; readlink d/link; date +%Y\"))";
    let references = [
        format!("oci:{layout}:1"),
        format!("oci-archive:{archive}"),
        format!("docker-archive:{docker}:app:1"),
        format!("rootfs:{tar}"),
        format!("dir:{tree}"),
    ];
    let seen: Vec<String> = references
        .iter()
        .map(|reference| {
            env.write("again.spec", format!("((from {reference}) {look})"));
            let id = env.run(&["build", "-f", env.at("again.spec").to_str().unwrap()]).ok().id().to_owned();
            env.run(&["log", &id]).ok().stdout
        })
        .collect();
    assert!(seen[0].starts_with(".\n./d\n./d/e\n./d/link\n./kept\n./linked\nhello\n4755 2\nkept\n"), "{}", seen[0]);
    assert!(seen.iter().all(|log| *log == seen[0]), "{seen:?}");
}

#[test]
fn an_exported_result_is_as_its_step_left_it() {
    needs_builds!();
    let env = TestEnv::new();
    let id = env.build(STEPS).ok().id().to_owned();
    let layout = env.at("layout");
    let output = format!("type=oci,dest={}", layout.display());
    let exported = env.run(&["export", &id[..20], "--output", &output, "-q"]).ok();
    let index = json(&layout.join("index.json"));
    assert_eq!(exported.stdout.trim_end(), index["manifests"][0]["digest"].as_str().unwrap());
    let config = config(&layout);
    assert_eq!((&config["config"]["WorkingDir"], &config["config"]["User"]), (&"/srv".into(), &Value::Null));
}

#[test]
fn with_a_source_date_equal_results_give_equal_bytes() {
    needs_builds!();
    let env = TestEnv::new();
    let id = env.build(STEPS).ok().id().to_owned();
    let export = |id: &str, name: &str, store: &str| {
        let dest = env.at(name);
        let mut command = env.kiln(&["export", id, "--output", &format!("type=oci,dest={}", dest.display())]);
        command.env("SOURCE_DATE_EPOCH", "1000000000").env("KILN_STORE", format!("auto:{}", env.at(store).display()));
        env.ran(&mut command).ok().stdout
    };
    let one = export(&id, "one.tar", "store");
    // Made again elsewhere, later.
    let mut again = env.kiln(&["build", "-f", "spec", "src", "-q"]);
    again.env("KILN_STORE", format!("auto:{}", env.at("other").display()));
    assert_eq!(env.ran(&mut again).ok().id(), id);
    let two = export(&id, "two.tar", "other");
    assert_eq!(one, two);
    assert_eq!(fs::read(env.at("one.tar")).unwrap(), fs::read(env.at("two.tar")).unwrap());
}

#[test]
fn an_archive_goes_to_standard_output_alone() {
    needs_builds!();
    let env = TestEnv::new();
    env.spec("(run (shell \"echo hi > /hi\"))");
    let mut command = env.kiln(&["build", "-f", "spec", "src", "-q", "--output", "type=tar,dest=-"]);
    let out = fs::File::create(env.at("out.tar")).unwrap();
    let status = command.stdout(out).status().unwrap();
    assert!(status.success());
    let listed = std::process::Command::new("tar").arg("-xOf").arg(env.at("out.tar")).arg("hi").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "hi\n", "{}", String::from_utf8_lossy(&listed.stderr));
}

#[test]
fn an_image_is_pushed_and_built_upon_without_sending_what_is_there() {
    needs_builds!();
    need!(Need::Tool("docker-registry", "docker-registry"), Need::Tool("skopeo", "skopeo"));
    let env = TestEnv::new();
    let registry = Registry::start(Access::default()).unwrap();
    let name = format!("{}/team/app:1", registry.host());
    let pushed = env.build_with(&["-t", &name, "--push"], STEPS).ok();
    let id = pushed.id().to_owned();
    let other = format!("{}/other:1", registry.host());
    let exported = env.run(&["export", &id, "-t", &other, "--push"]).ok();
    let digest = exported.stdout.trim_end();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let uploads = |log: &str| log.lines().filter(|line| line.contains("http.request.method=PATCH")).count();
    // Three layers and a configuration; the second name needs its configuration and manifest only.
    let sent = uploads(&registry.log());
    assert!(sent <= 5, "{sent} uploads: {}", registry.log());

    let mut command = env.kiln(&["build", "-f", "-", "-q"]);
    let spec = format!("((from {other}@{digest}) (run (shell \"cat /srv/kept; echo $WHO\")))");
    fs::write(env.at("pulled.spec"), spec).unwrap();
    command.stdin(fs::File::open(env.at("pulled.spec")).unwrap());
    command.env("KILN_STORE", format!("auto:{}", env.at("other").display()));
    let built = env.ran(&mut command).ok().id().to_owned();
    let mut log = env.kiln(&["log", &built]);
    log.env("KILN_STORE", format!("auto:{}", env.at("other").display()));
    assert_eq!(env.ran(&mut log).ok().stdout, "hello\nworld\n");

    // Everything is there: no registry is needed.
    drop(registry);
    let mut command = env.kiln(&["build", "-f", env.at("pulled.spec").to_str().unwrap(), "-q", "--pull"]);
    command.env("KILN_STORE", format!("auto:{}", env.at("other").display()));
    assert_eq!(env.ran(&mut command).ok().id(), built);
}

#[test]
fn what_cannot_be_exported_is_said_before_anything_runs() {
    needs_builds!();
    let env = TestEnv::new();
    let id = env.build("(run (shell \"echo x > /x\"))").ok().id().to_owned();
    let told = |arguments: &[&str], code: i32| {
        let told = env.run(arguments).fails_with(code).told();
        told.lines().find(|line| line.starts_with("error:")).unwrap_or_default().to_owned() + "\n"
    };
    let full = env.at("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "").unwrap();
    let mut all = String::new();
    all += &told(&["export", &id], 2);
    all += &told(&["export", "0123", "-o", "type=tar,dest=x"], 2);
    all += &told(&["build", "-f", "spec", "src", "-t", "app"], 2);
    all += &told(&["build", "-f", "spec", "src", "-o", "type=tar,dest=-", "-o", "type=docker,dest=-"], 2);
    all += &told(&["export", &id, "-o", &format!("type=dir,dest={}", full.display())], 2);
    all += &told(&["export", &id, "-o", "type=tar,dest=/nowhere/at/all"], 2);
    all += &told(&["export", &id, "-t", "no host/app", "--push"], 2);
    insta::assert_snapshot!(all);
    assert!(full.join("mine").exists());
}
