//! Other ways to an image: mirrors and proxies, and the file that says so.

use kiln_testkit::Link;

use super::*;

fn mirrors(env: &TestEnv, host: &str, mirrors: &[&str]) {
    registries(env, format!("[host.{host:?}]\nmirrors = {mirrors:?}\n"));
}

#[test]
fn mirrors_are_tried_in_order_then_the_registry_itself_and_never_for_pushes() {
    needs_registry!();
    let world = World::new(Access::default());
    let World { env, registry: live, .. } = &world;
    let origin = Registry::start(Access::default()).unwrap();
    let dead = Link::to(live.address()).unwrap();
    dead.refuse(true);
    mirrors(env, &origin.host(), &[&dead.host(), &format!("http://{}", live.host())]);
    let ran = env.ran(&mut world.pulling(&origin.host())).ok();
    assert_eq!(env.run(&["log", ran.id()]).ok().stdout, "first\n");
    let note = format!("note: mirror {} passed over: ", dead.host());
    assert_eq!(ran.stderr.matches(&note).count(), 1, "{}", ran.stderr);

    put(env, &origin, "only/here:1", "origin");
    let spec = format!("((from {}/only/here:1) {WHICH})", origin.host());
    assert_eq!(env.log(&spec), "origin\n");

    env.build_with(&["-t", &format!("{}/pushed:1", origin.host()), "--push"], &spec).ok();
    let has = |registry: &Registry| registry.storage().join("docker/registry/v2/repositories/pushed").exists();
    assert!(has(&origin) && !has(live));
}

#[test]
fn mistakes_in_registries_toml_are_explained() {
    needs_registry!();
    let world = World::new(Access::default());
    let World { env, .. } = &world;
    let mut all = String::new();
    for text in [
        "[host.\"a.b\"\n",
        "# a comment\n[host.\"a.b\"]\nmirror = [\"x\"]\n",
        "[host.\"a.b\"]\ninsecure = \"yes\"\n",
        "[hosts.\"a.b\"]\ninsecure = true\n",
        "[host.\"a.b\"]\nmirrors = [\"ftp://x\"]\n",
        "[host.\"a.b\"]\nmirrors = [\"user:SECRET@x\"]\n",
        "[host.\"http://a.b\"]\ninsecure = true\n",
    ] {
        registries(env, text);
        all += &world.told(&env.ran(&mut world.pulling(&world.registry.host())).fails_with(2));
    }
    let ran = env.run(&["build", "-f", "spec", "src", "--registries", "missing.toml"]).fails_with(2);
    all += &world.told(&ran);
    registries(env, "");
    let ran = env.ran(world.pulling(&world.registry.host()).env("http_proxy", "http://user:SECRET@["));
    all += &world.told(&ran.fails_with(2));
    insta::assert_snapshot!(all);
    assert!(!all.contains("SECRET"), "{all}");
}

#[test]
fn a_proxy_from_the_environment_leads_to_hosts_that_only_it_knows() {
    needs_registry!();
    let world = World::new(Access { login: false, tls: true });
    let World { env, registry, .. } = &world;
    registries(env, "[host.\"registry.test\"]\ninsecure = true\n");
    for variable in ["https_proxy", "HTTPS_PROXY", "all_proxy"] {
        let proxy = proxy_to(registry);
        env.ran(world.pulling("registry.test").env(variable, proxy.url())).ok();
        assert_eq!(proxy.requests()[0].path, "registry.test:443", "{variable}");
    }
    let proxy = proxy_to(registry);
    let ran = env.ran(world.pulling("registry.test").env("https_proxy", proxy.url()).env("no_proxy", "other,.test"));
    let told = ran.fails_with(3).told();
    assert!(told.contains("cannot connect to registry.test") && proxy.requests().is_empty(), "{told}");
    // What is on this machine is never asked of a proxy.
    env.ran(world.pulling(&registry.host()).env("https_proxy", proxy.url())).ok();
    assert!(proxy.requests().is_empty());

    // Without TLS, the proxy is asked for the whole address.
    let proxy = Script::start(|request| match &*request.method {
        "CONNECT" => Response::new(502),
        _ => Response::new(404).bytes("{}"),
    })
    .unwrap();
    let ran = env.ran(world.pulling("registry.test").env("http_proxy", proxy.url()));
    let told = ran.fails_with(2).told();
    assert!(told.contains("registry.test has no image `registry.test/team/base:1`"), "{told}");
    assert_eq!(proxy.requests().last().unwrap().path, "http://registry.test/v2/team/base/manifests/1");
}

#[test]
fn a_proxy_that_is_down_is_named() {
    needs_registry!();
    let world = World::new(Access::default());
    let proxy = proxy_to(&world.registry);
    let url = proxy.url();
    drop(proxy);
    let told = world.env.ran(world.pulling("registry.test").env("https_proxy", url)).fails_with(3).told();
    assert!(told.contains("cannot connect to registry.test\n  caused by: through the proxy: "), "{told}");
}
