//! Other ways to the same content: mirrors and proxies.

use kiln_image::{Digest, Proxies, Registry, RegistryError, RegistrySettings};
use kiln_testkit::{Body, Link, Response, Script, need};

use super::*;

#[test]
fn a_mirror_is_asked_first() {
    let mirror = Script::start(|_| Response::new(200).bytes(empty_index())).expect("a server");
    let mirrors = [format!("http://{}/pre/fix", mirror.host())];
    let client = Registry::new(with_mirrors("nowhere.invalid", &mirrors)).expect("a client");
    manifest(&client, &name("nowhere.invalid", "a/b:1")).expect("a manifest");
    let paths: Vec<_> = mirror.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/v2/pre/fix/a/b/manifests/1"]);
}

#[test]
fn mirrors_that_fail_are_passed_over() {
    let broken = Script::start(|_| Response::new(500)).expect("a server");
    let lying = Script::start(|_| Response::new(200).bytes("hello")).expect("a server");
    let dead = Link::to(broken.address()).expect("a link");
    dead.refuse(true);
    let origin = Script::start(|_| Response::new(200).bytes(empty_index())).expect("a server");
    let mirrors = [dead.host(), broken.host(), lying.host()];
    let client = Registry::new(with_mirrors(&origin.host(), &mirrors)).expect("a client");
    for _ in 0..2 {
        manifest(&client, &name(&origin.host(), "a")).expect("a manifest");
    }
    for script in [&broken, &lying, &origin] {
        assert!(!script.requests().is_empty());
    }
    // It is the registry's own answer that counts in the end.
    let lost = Script::start(|_| Response::new(404)).expect("a server");
    let client = Registry::new(with_mirrors(&lost.host(), &mirrors)).expect("a client");
    let error = manifest(&client, &name(&lost.host(), "a")).expect_err("nothing");
    assert_eq!(error.to_string(), format!("{host} has no image `{host}/a`", host = lost.host()));
}

#[test]
fn what_a_mirror_began_the_registry_goes_on_with() {
    let blob = noise(100_000);
    let (half, whole) = (blob[..50_000].to_vec(), blob.clone());
    let mirror = Script::start(move |request| {
        let cut = Response::new(200).header("Content-Length", "100000").body(Body::Cut(half.clone()));
        if range(request).is_some() { Response::new(416) } else { cut }
    })
    .expect("a server");
    let origin = Script::start(move |request| serve(request, &whole)).expect("a server");
    let client = Registry::new(with_mirrors(&origin.host(), &[mirror.host()])).expect("a client");
    let (got, result) = download(&client, &name(&origin.host(), "a"), Digest::of(&blob), blob.len());
    result.expect("a download");
    assert!(got == blob);
    let asked = origin.requests().pop().expect("a request");
    assert_eq!(asked.header("range"), Some("bytes=50000-"));
}

#[test]
fn a_proxy_is_used_for_both_kinds_of_request() {
    need!(REGISTRY, OPENSSL);
    // Without TLS, the proxy is asked for the whole address.
    let proxy = Script::start(|request| match request.method.as_str() {
        "CONNECT" => Response::new(502),
        _ => Response::new(200).bytes(empty_index()),
    })
    .expect("a server");
    let insecure = HostSettings { insecure: true, ..HostSettings::default() };
    let through = |url: String| {
        let proxies = Proxies { http: Some(url.clone()), https: Some(url), no_proxy: None };
        Registry::new(RegistrySettings { proxies, ..with_host("registry.invalid", insecure.clone()) })
            .expect("a client")
    };
    manifest(&through(proxy.url()), &name("registry.invalid", "a")).expect("a manifest");
    let asked = proxy.requests().pop().expect("a request");
    assert_eq!(asked.path, "http://registry.invalid/v2/a/manifests/latest");

    // With TLS, for a tunnel.
    let registry = start(false, true);
    let address = registry.address();
    let tunnel = Script::start(move |_| Response::new(200).body(Body::Tunnel(address))).expect("a server");
    let with_password = tunnel.url().replace("http://", "http://user:SECRET@");
    let client = through(with_password);
    let error = manifest(&client, &name("registry.invalid", "a")).expect_err("it is empty");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{}", told(&error));
    let asked = &tunnel.requests()[0];
    assert_eq!((&*asked.method, &*asked.path), ("CONNECT", "registry.invalid:443"));
    assert_eq!(asked.header("proxy-authorization"), Some("Basic dXNlcjpTRUNSRVQ="));
    assert!(!format!("{client:?}").contains("SECRET"));
}

#[test]
fn what_is_exempt_and_loopback_go_past_the_proxy() {
    let proxy = Script::start(|_| Response::new(502)).expect("a server");
    let origin = Script::start(|_| Response::new(200).bytes(empty_index())).expect("a server");
    let url = || Some(proxy.url());
    let proxies = Proxies { http: url(), https: url(), no_proxy: Some("x.y,.invalid".to_owned()) };
    let client = Registry::new(RegistrySettings { proxies, ..settings() }).expect("a client");
    manifest(&client, &name(&origin.host(), "a")).expect("a manifest");
    manifest(&client, &name("registry.invalid", "a")).expect_err("there is no such host");
    assert!(proxy.requests().is_empty());
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let error = Registry::new(with_mirrors("a.b", &["u:SECRET@host".to_owned()])).expect_err("no mirror");
    assert!(matches!(error, RegistryError::Mirror { .. }));
    let proxies = Proxies { http: Some("http://u:SECRET@[".to_owned()), ..Proxies::default() };
    let error = Registry::new(RegistrySettings { proxies, ..settings() }).expect_err("no proxy");
    assert!(!format!("{} {error:?}", told(&error)).contains("SECRET"));
}
