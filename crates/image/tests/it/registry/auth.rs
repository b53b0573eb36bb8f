//! Logins: who is told what.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use kiln_image::{Digest, Registry, RegistryError, RegistrySettings};
use kiln_testkit::{Request, Response, Script, need};

use super::*;
use crate::block_on;

/// The settings with one file of credentials; and the directory that it is in.
fn with_auth_file(settings: RegistrySettings, json: &serde_json::Value) -> (tempfile::TempDir, RegistrySettings) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.json");
    fs::write(&path, json.to_string()).expect("a file");
    let helper_path = Some(dir.path().as_os_str().to_owned());
    (dir, RegistrySettings { auth_files: vec![path], helper_path, ..settings })
}

fn auths(host: &str, entry: &serde_json::Value) -> serde_json::Value {
    json!({"auths": {host: entry}})
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn a_login_of_skopeo_opens_a_registry_with_tls_and_without() {
    need!(REGISTRY, OPENSSL, SKOPEO);
    for tls in [false, true] {
        let registry = start(true, tls);
        let name = name(&registry.host(), "a");
        let settings = if tls { with_ca_file(&registry) } else { settings() };
        let anonymous = Registry::new(settings.clone()).expect("a client");
        let error = manifest(&anonymous, &name).expect_err("a login is needed");
        assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
        assert!(error.is_users_fault() && error.to_string().contains("docker login"), "{error}");

        let dir = tempfile::tempdir().expect("a directory");
        let auth_file = dir.path().join("auth.json");
        registry.login(&auth_file).expect("a login");
        let client = Registry::new(RegistrySettings { auth_files: vec![auth_file], ..settings }).expect("a client");
        let digest = put_blob(&client, &name, b"blob");
        let (got, result) = download(&client, &name, digest, 4);
        result.expect("a download");
        assert_eq!(got, b"blob");
    }
}

#[test]
fn a_program_that_keeps_credentials_is_asked() {
    need!(REGISTRY);
    let registry = start(true, false);
    let name = name(&registry.host(), "a");
    let user = kiln_testkit::Registry::USER;
    let password = kiln_testkit::Registry::PASSWORD;
    let json =
        json!({"auths": {registry.host(): {}}, "credHelpers": {registry.host(): "known"}, "credsStore": "other"});
    let (dir, settings) = with_auth_file(settings(), &json);
    let told = dir.path().join("told");
    let known = format!(
        "#!/bin/sh\necho \"$*\" >{told}\ncat >>{told}\necho '{{\"ServerURL\":\"\",\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'\n",
        told = told.display()
    );
    script(dir.path(), "docker-credential-known", &known);
    let client = Registry::new(settings.clone()).expect("a client");
    put_blob(&client, &name, b"blob");
    assert_eq!(fs::read_to_string(told).expect("it was asked"), format!("get\n{}", registry.host()));

    let ask = |helper: &str| {
        script(dir.path(), "docker-credential-known", helper);
        let client = Registry::new(settings.clone()).expect("a client");
        let error = manifest(&client, &name).expect_err("no login");
        super::told(&error).replace(&registry.host(), "HOST")
    };
    let nothing = "#!/bin/sh\necho credentials not found in native keychain; exit 1\n";
    script(dir.path(), "docker-credential-other", nothing);
    assert!(ask(nothing).starts_with("HOST denies access to image `HOST/a`"));
    let mut told = String::new();
    for helper in ["#!/bin/sh\necho locked >&2; exit 3\n", "#!/bin/sh\necho SECRET\n", "#!/nowhere\n"] {
        told += &format!("{}\n", ask(helper));
    }
    fs::remove_file(dir.path().join("docker-credential-known")).expect("it is there");
    let client = Registry::new(settings).expect("a client");
    let error = manifest(&client, &name).expect_err("no program");
    told += &super::told(&error).replace(&registry.host(), "HOST");
    insta::assert_snapshot!(told);
}

/// A registry that wants tokens, with its token server at `/token`: it gives out `token-1`, `token-2`, …, and takes the last.
fn token_registry(login: Option<String>) -> Script {
    let count = AtomicUsize::new(0);
    Script::start(move |request: &Request| {
        let now = || format!("token-{}", count.load(Ordering::SeqCst));
        let host = request.header("host").expect("a host");
        if request.path.starts_with("/token") {
            let may = login.as_deref().is_none_or(|login| {
                request.header("authorization") == Some(login) || String::from_utf8_lossy(&request.body).contains(login)
            });
            if !may {
                return Response::new(401).bytes(r#"{"details": "incorrect username or password"}"#);
            }
            count.fetch_add(1, Ordering::SeqCst);
            return Response::new(200).bytes(json!({"token": now(), "expires_in": 3600}).to_string());
        }
        let challenge =
            format!(r#"Basic realm="no", Bearer realm="http://{host}/token?x=y",service="the, service",scope="registry:catalog:*""#);
        if request.header("authorization") != Some(&format!("Bearer {}", now())) {
            return Response::new(401).header("WWW-Authenticate", challenge);
        }
        if request.path.contains("revoke") {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Response::new(200).bytes(empty_index())
    })
    .expect("a server")
}

fn token_requests(script: &Script) -> Vec<Request> {
    script.requests().into_iter().filter(|request| request.path.starts_with("/token")).collect()
}

#[test]
fn a_token_is_fetched_once_and_again_when_it_is_refused() {
    let script = token_registry(None);
    let client = client();
    for _ in 0..3 {
        manifest(&client, &name(&script.host(), "a")).expect("a manifest");
    }
    let tokens = token_requests(&script);
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].path,
        "/token?x=y&service=the%2C+service&scope=repository%3Aa%3Apull&scope=registry%3Acatalog%3A*"
    );
    manifest(&client, &name(&script.host(), "a:revoke")).expect("a manifest");
    manifest(&client, &name(&script.host(), "a")).expect("a manifest");
    assert_eq!(token_requests(&script).len(), 2);
}

#[test]
fn those_who_need_a_token_at_the_same_time_share_it() {
    let script = token_registry(None);
    let (client, name) = (client(), name(&script.host(), "a"));
    block_on(async {
        let (which, cancel) = (name.which(), go_on());
        let get = || client.manifest(&name, &which, 1 << 20, &cancel);
        let all = tokio::join!(get(), get(), get(), get());
        all.0.and(all.1).and(all.2).and(all.3).expect("manifests");
    });
    assert_eq!(token_requests(&script).len(), 1);
}

#[test]
fn a_password_buys_a_token_and_a_wrong_one_does_not() {
    let script = token_registry(Some(basic("user", "p:w")));
    let host = script.host();
    let entry = |password: &str| json!({"username": "user", "password": password});
    let (_dir, settings) = with_auth_file(settings(), &auths(&host, &entry("p:w")));
    manifest(&Registry::new(settings).expect("a client"), &name(&host, "a")).expect("a manifest");

    let (_dir, settings) = with_auth_file(super::settings(), &auths(&host, &entry("SECRET")));
    let client = Registry::new(settings).expect("a client");
    let error = manifest(&client, &name(&host, "a")).expect_err("a wrong password");
    assert!(error.to_string().contains("(incorrect username or password)"), "{error}");
    assert!(!format!("{error:?} {client:?}").contains("SECRET"));
}

#[test]
fn an_identity_token_buys_a_token() {
    let script = token_registry(Some("refresh_token=identity%2Ftoken".to_owned()));
    let host = script.host();
    let (_dir, settings) = with_auth_file(settings(), &auths(&host, &json!({"identitytoken": "identity/token"})));
    manifest(&Registry::new(settings).expect("a client"), &name(&host, "a")).expect("a manifest");
    let asked = token_requests(&script).pop().expect("a request");
    assert_eq!((&*asked.method, asked.header("authorization")), ("POST", None));
    assert_eq!(
        String::from_utf8_lossy(&asked.body),
        "grant_type=refresh_token&refresh_token=identity%2Ftoken&client_id=kiln\
         &scope=repository%3Aa%3Apull+registry%3Acatalog%3A*&service=the%2C+service"
    );
}

#[test]
fn a_login_stays_with_its_host() {
    let blob = noise(1000);
    let served = blob.clone();
    let storage = Script::start(move |request| serve(request, &served)).expect("a server");
    let elsewhere = format!("{}/signed?key=1", storage.url());
    let registry = Script::start(move |request| {
        if request.header("authorization").is_none() {
            Response::new(401).header("WWW-Authenticate", r#"Basic realm="x""#)
        } else {
            Response::new(307).header("Location", elsewhere.clone())
        }
    })
    .expect("a server");
    let entry = json!({"username": "user", "password": "secret"});
    let (_dir, settings) = with_auth_file(settings(), &auths(&registry.host(), &entry));
    let client = Registry::new(settings).expect("a client");
    let (got, result) = download(&client, &name(&registry.host(), "a"), Digest::of(&blob), blob.len());
    result.expect("a download");
    assert!(got == blob);
    let shown = registry.requests().pop().and_then(|request| request.header("authorization").map(str::to_owned));
    assert_eq!(shown, Some(basic("user", "secret")));
    let stored = storage.requests();
    assert_eq!((stored.len(), stored[0].header("authorization")), (1, None));
}

#[test]
fn what_cannot_be_answered_is_explained() {
    let mut told = String::new();
    for challenge in [
        "Negotiate, NTLM",
        r#"Bearer service="x""#,
        r#"Bearer realm="ftp://x""#,
        r#"Bearer realm="http://127.0.0.1:1/token""#,
    ] {
        let challenging =
            Script::start(move |_| Response::new(401).header("WWW-Authenticate", challenge)).expect("a server");
        let error = manifest(&client(), &name(&challenging.host(), "a")).expect_err(challenge);
        told += &format!("{challenge}: {}\n", error.to_string().replace(&challenging.host(), "HOST"));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_host_that_nobody_vouches_for_is_not_spoken_to() {
    need!(REGISTRY, OPENSSL);
    let (registry, other) = (start(false, true), start(false, true));
    let settings =
        with_host(&registry.host(), HostSettings { ca_file: Some(other.ca_file()), ..HostSettings::default() });
    let error =
        manifest(&Registry::new(settings).expect("a client"), &name(&registry.host(), "a")).expect_err("no trust");
    assert!(matches!(error, RegistryError::Untrusted { .. }), "{}", super::told(&error));
    assert!(!registry.log().contains("GET"));
    // Loopback hosts are trusted blindly unless it is said who vouches for them.
    let error = manifest(&client(), &name(&registry.host(), "a")).expect_err("nothing there");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}
