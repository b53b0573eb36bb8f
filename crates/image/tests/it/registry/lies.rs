//! Registries that lie, and things that are no registries.

use kiln_image::{Digest, RegistryError, Which};
use kiln_testkit::{Body, Response, Script};

use super::*;
use crate::block_on;

/// Starts a server that gives this answer to everything but the first question.
fn answering(answer: Response) -> Script {
    Script::start(move |request| if request.path == "/v2/" { Response::new(200) } else { answer.clone() })
        .expect("a server")
}

fn manifest_error(answer: Response) -> String {
    let script = answering(answer);
    let error = manifest(&client(), &name(&script.host(), "a")).expect_err("a lie");
    told(&error).replace(&script.host(), "HOST")
}

fn download_error(answer: Response, size: usize) -> String {
    let script = answering(answer);
    let (_, result) = download(&client(), &name(&script.host(), "a"), Digest::of(b""), size);
    let error = result.expect_err("a lie");
    told(&error).replace(&script.host(), "HOST").replace(&Digest::of(b"").hex(), "EMPTY")
}

#[test]
fn lies_about_manifests_are_explained() {
    let json = |text: &str| Response::new(200).bytes(text);
    let page = |status| Response::new(status).header("Content-Type", "text/html; charset=utf-8").bytes("<html>log in");
    let long = Response::new(200).header("Content-Length", "99999999999").bytes("{}");
    let mut told = String::new();
    for (what, answer) in [
        ("endless", json("").body(Body::Endless(b"{}".into()))),
        ("announced as long", long),
        ("page", page(200)),
        ("page of an error", page(403)),
        ("version 1", json(r#"{"schemaVersion": 1, "fsLayers": []}"#)),
        ("not JSON", json("hello")),
        ("neither", json("{}")),
        (
            "other digest",
            Response::new(200).header("Docker-Content-Digest", Digest::of(b"x").to_string()).bytes(empty_index()),
        ),
        ("terminal", Response::new(418).bytes("\u{1b}]0;title\u{7}")),
        ("reasons", Response::new(400).bytes(r#"{"errors": [{"code": "A", "message": "b"}, {"code": "C"}, {}]}"#)),
        ("endless reasons", Response::new(400).body(Body::Endless(b"no! ".into()))),
        ("redirect to nowhere", Response::new(307)),
        ("redirect to a file", Response::new(307).header("Location", "file:///etc/passwd")),
        ("redirect with a login", Response::new(307).header("Location", "http://u:p@localhost/")),
    ] {
        told += &format!("{what}: {}\n", manifest_error(answer));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn lies_about_blobs_are_explained() {
    let part = |range: &str| Response::new(206).header("Content-Range", range).bytes("part");
    let mut told = String::new();
    for (what, answer) in [
        ("shorter", Response::new(200).bytes("abc")),
        ("longer", Response::new(200).bytes("abcdef")),
        ("unfinished", Response::new(200).header("Transfer-Encoding", "chunked").bytes("2\r\nab\r\n0\r\n\r\n")),
        ("part", Response::new(206).bytes("abcd")),
        ("other part", part("bytes 2-3/4")),
        ("part of another length", part("bytes 0-3/5")),
        ("part of nonsense", part("nonsense")),
        ("page", Response::new(200).header("Content-Type", "TEXT/HTML").bytes("<p>")),
    ] {
        told += &format!("{what}: {}\n", download_error(answer, 4));
    }
    insta::assert_snapshot!(told);
    let endless = download_error(Response::new(200).body(Body::Endless(b"abc".into())), 4);
    assert!(endless.ends_with("of `a`, which has 4"), "{endless}");
}

#[test]
fn another_content_than_the_digest_says_is_not_believed() {
    let script = answering(Response::new(200).bytes(empty_index()));
    let (client, name) = (client(), name(&script.host(), "a"));
    let result = block_on(client.manifest(&name, &Which::Digest(Digest::of(b"")), 1 << 20, &go_on()));
    assert!(matches!(result, Err(RegistryError::WrongDigest { .. })), "{result:?}");
    let size = empty_index().len() as u64;
    let result = block_on(client.document(&name, Digest::of(b""), size, &go_on()));
    assert!(matches!(result, Err(RegistryError::WrongDigest { .. })), "{result:?}");
}

#[test]
fn redirects_are_followed_to_an_end() {
    let loops = answering(Response::new(307).header("Location", "/v2/a/manifests/latest"));
    let error = manifest(&client(), &name(&loops.host(), "a")).expect_err("a circle");
    assert!(matches!(error, RegistryError::Redirects { .. }), "{error}");

    let endless = Script::start(|request| match request.path.as_str() {
        "/v2/" => Response::new(200),
        path => Response::new(302).header("Location", format!("{path}x")),
    })
    .expect("a server");
    let error = manifest(&client(), &name(&endless.host(), "a")).expect_err("no end");
    assert!(matches!(error, RegistryError::Redirects { .. }), "{error}");
    assert_eq!(endless.requests().len(), 1 + 1 + 5);
}
