//! What network steps get that ask for the host's.

use kiln_testkit::{Need, need};

use crate::env::TestEnv;
use crate::needs_builds;

const LOOK: &str = "(run (network host) (shell \"ls /sys/class/net; echo proxy=$http_proxy $HTTPS_PROXY\"))";

#[test]
fn the_builder_decides_what_the_hosts_network_is() {
    needs_builds!();
    let look = |flags: &[&str], before: &str| {
        let env = TestEnv::new();
        let spec = format!("{before}{LOOK}");
        env.build_with(flags, &spec).ok();
        env.log(&spec)
    };
    assert_eq!(look(&["--network-host", "none"], ""), "lo\nproxy=\n");
    let inside = "http://127.0.0.1:3128";
    let flags = ["--network-proxy", "http://proxy.example.com"];
    assert_eq!(look(&flags, ""), format!("lo\nproxy={inside} {inside}\n"));
    assert_eq!(look(&flags, "(env http_proxy mine)"), format!("lo\nproxy=mine {inside}\n"));
}

#[test]
fn a_private_network_is_a_setting_and_a_flag_wins() {
    needs_builds!();
    need!(Need::Tool("pasta", "passt"));
    let env = TestEnv::new();
    let config = env.at("config.toml");
    std::fs::write(&config, "[sandbox]\nnetwork_host = \"private\"\nnetwork_allow = [\"10.0.0.0/8\"]").unwrap();
    let config = config.to_str().unwrap();
    // A host without any way out says so, and is no reason to run the step with another network.
    let built = env.build_with(&["--config", config], LOOK);
    if built.stderr.contains("no default route") {
        built.fails_with(3);
    } else {
        built.ok();
        assert_eq!(env.log(LOOK), "eth0\nlo\nproxy=\n");
    }
    let other = LOOK.replace("ls", "ls -d ; ls");
    env.build_with(&["--config", config, "--network-host", "none"], &other).ok();
    assert_eq!(env.log(&other), ".\nlo\nproxy=\n");
}

#[test]
fn the_network_is_no_part_of_a_steps_identity_and_nonsense_is_wrong_usage() {
    needs_builds!();
    let env = TestEnv::new();
    let first = env.build_with(&["--network-host", "none"], LOOK).ok();
    let second = env.build(LOOK).ok();
    assert_eq!(first.id(), second.id());
    assert_eq!(second.made_and_found().0, 0);
    for flags in [
        ["--network-allow", "10.1.0.0/8"],
        ["--network-allow", "example.com"],
        ["--network-proxy", "https://proxy"],
        ["--network-proxy", "http://me:secret@proxy"],
        ["--network-host", "lan"],
    ] {
        env.build_with(&flags, LOOK).fails_with(2);
    }
    env.build_with(&["--network-host", "private", "--network-proxy", "http://proxy"], LOOK).fails_with(2);
}

#[test]
fn the_password_of_a_proxy_is_not_repeated() {
    needs_builds!();
    let env = TestEnv::new();
    let mut told = String::new();
    for flags in [
        &["--network-proxy", "http://me:secret@proxy"][..],
        &["--network-proxy=https://me:secret@proxy/x"],
        &["--network-proxy", "me:secret@proxy:3128"],
        &["--network-host", "http://me:secret@proxy"],
        &["--network-porxy=http://me:secret@proxy"],
        &["http://me:secret@proxy"],
    ] {
        let refused = env.build_with(flags, "").fails_with(2);
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
        told.push_str(&format!("{}\n", refused.stderr.lines().next().unwrap()));
    }
    env.write("config.toml", "[sandbox]\nnetwork_proxy = \"https://me:secret@proxy\"\n");
    told.push_str(&env.build_with(&["--config", "config.toml"], "").fails_with(2).stderr);
    insta::assert_snapshot!(told, @r"
    error: invalid value 'http://***@proxy' for '--network-proxy <URL>': the proxy's URL has a user or password, which every step could read; use a proxy that asks for none
    error: invalid value 'https://***@proxy/x' for '--network-proxy <URL>': the proxy's URL has a user or password, which every step could read; use a proxy that asks for none
    error: invalid value '***@proxy:3128' for '--network-proxy <URL>': the proxy's URL has a user or password, which every step could read; use a proxy that asks for none
    error: invalid value 'http://***@proxy' for '--network-host <NETWORK>'
    error: unexpected argument '--network-porxy' found
    error: unexpected argument 'http://***@proxy' found
    error: config.toml:2:1: the proxy's URL has a user or password, which every step could read; use a proxy that asks for none
    ");
}
