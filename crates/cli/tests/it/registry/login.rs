//! Who may: credentials, and the certificates of registries.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Asks for a login, without TLS.
const LOGIN: Access = Access { login: true, tls: false };
/// Needs TLS, but no login.
const TLS: Access = Access { login: false, tls: true };

#[test]
fn credentials_are_found_wherever_other_tools_keep_them() {
    needs_registry!();
    let world = World::new(LOGIN);
    let World { env, registry, .. } = &world;
    let anonymous = env.ran(&mut world.pulling(&registry.host())).fails_with(2);
    insta::assert_snapshot!(world.told(&anonymous));

    let file = env.at("auth.json");
    registry.login(&file).unwrap();
    let content = fs::read(&file).unwrap();
    let pulling = || world.pulling(&registry.host());
    let cached = |command: &mut Command| env.ran(command).ok();
    let mut by_option = pulling();
    cached(by_option.arg("--auth-file").arg(&file));
    cached(pulling().env("REGISTRY_AUTH_FILE", &file));
    for (variable, value, path) in [
        ("DOCKER_CONFIG", "docker", "docker/config.json"),
        ("XDG_RUNTIME_DIR", "runtime", "runtime/containers/auth.json"),
        ("XDG_CONFIG_HOME", "config", "config/containers/auth.json"),
        ("HOME", "home", "home/.config/containers/auth.json"),
        ("HOME", "home", "home/.docker/config.json"),
    ] {
        let written = env.write(path, &content);
        cached(pulling().env(variable, env.at(value)));
        fs::remove_file(written).unwrap();
    }
    env.ran(&mut pulling()).fails_with(2);
}

#[test]
fn a_program_that_keeps_credentials_is_asked_for_them() {
    needs_registry!();
    let world = World::new(LOGIN);
    let World { env, registry, .. } = &world;
    let host = registry.host();
    env.write("home/.docker/config.json", json!({ "credHelpers": { &*host: "test" } }).to_string());
    let missing = env.ran(&mut world.pulling(&host)).fails_with(3);
    insta::assert_snapshot!(world.told(&missing));

    let answer = json!({ "ServerURL": host, "Username": Registry::USER, "Secret": Registry::PASSWORD });
    let script = format!("#!/bin/sh\nread -r host || :\n[ \"$1 $host\" = 'get {host}' ] && echo '{answer}'\n");
    let helper = env.write("bin/docker-credential-test", script);
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", env.at("bin").display(), std::env::var("PATH").unwrap());
    env.ran(world.pulling(&host).env("PATH", path)).ok();
}

#[test]
fn wrong_credentials_are_told_from_missing_ones() {
    needs_registry!();
    let world = World::new(LOGIN);
    let World { env, registry, .. } = &world;
    // "tester:wrong"
    let wrong = json!({ "auths": { registry.host(): { "auth": "dGVzdGVyOndyb25n" } } });
    env.write("wrong.json", wrong.to_string());
    env.write("broken.json", json!({ "auths": { registry.host(): { "auth": "SECRET" } } }).to_string());
    let mut all = String::new();
    for file in ["wrong.json", "broken.json", "missing.json"] {
        let mut command = world.pulling(&registry.host());
        let ran = env.ran(command.args(["--auth-file", file])).fails_with(2);
        all += &world.told(&ran);
    }
    let id = env.build("(run (shell \"true\"))").ok().id().to_owned();
    let pushed = env.run(&["export", &id, "-t", &world.name("x:1"), "--push", "-q"]).fails_with(2);
    all += &world.told(&pushed);
    insta::assert_snapshot!(all);
    assert!(!all.contains("SECRET"));
}

#[test]
fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
    needs_registry!();
    let world = World::new(TLS);
    let World { env, registry, .. } = &world;
    let other = Registry::start(TLS).unwrap();
    let trust = |file: &Path| {
        registries(env, format!("[host.\"{}\"]\nca-file = {:?}\n", registry.host(), file.display().to_string()));
    };
    trust(&other.ca_file());
    let unknown = env.ran(&mut world.pulling(&registry.host())).fails_with(3);
    insta::assert_snapshot!(world.told(&unknown));
    trust(&registry.ca_file());
    env.ran(&mut world.pulling(&registry.host())).ok();
    for (file, code) in [("base.tar", 2), ("none.pem", 2)] {
        trust(&env.at(file));
        let told = env.ran(&mut world.pulling(&registry.host())).fails_with(code).told();
        assert!(told.contains(&format!("[DIR]/{file}")), "{told}");
    }
}

#[test]
fn a_certificate_of_nobody_is_believed_only_of_an_insecure_registry() {
    needs_registry!();
    let world = World::new(TLS);
    let World { env, registry, .. } = &world;
    // The loopback interface is trusted anyway, so by another name.
    let proxy = proxy_to(registry);
    let pull = || env.ran(world.pulling("registry.test").env("https_proxy", proxy.url()));
    let told = pull().fails_with(3).told();
    let expected = "cannot verify that registry.test is what it claims to be";
    assert!(told.contains(expected) && told.contains("UnknownIssuer"), "{told}");
    registries(env, "[host.\"registry.test\"]\ninsecure = true\n");
    pull().ok();
    assert_eq!(proxy.requests()[0].path, "registry.test:443");
}
