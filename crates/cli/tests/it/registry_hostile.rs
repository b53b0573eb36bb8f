//! Builds on images of a registry that means harm.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kiln_image::{Digest, Platform};
use kiln_testkit::{Request, Response, Script, listing};
use serde_json::json;

use crate::env::{Ran, TestEnv};
use crate::needs_builds;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One header of an archive, and its content.
fn member(kind: u8, name: &str, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0{:011o}\0        ", content.len(), 0));
    put(157, target);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = [&header, content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    member(b'0', name, "", content)
}

/// What the registry has, by path; it can be changed while it is asked.
#[derive(Clone, Default)]
struct Images(Arc<Mutex<HashMap<String, Vec<u8>>>>);

impl Images {
    fn put(&self, bytes: &[u8]) -> (String, usize) {
        let digest = Digest::of(bytes).to_string();
        self.0.lock().unwrap().insert(format!("/v2/x/blobs/{digest}"), bytes.to_vec());
        (digest, bytes.len())
    }

    /// Makes an image of uncompressed layers, which say that they unpack to `diffs`.
    fn image(&self, tag: &str, layers: &[Vec<u8>], diffs: &[String]) {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let (digest, size) = self.put(layer);
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
            })
            .collect();
        let platform = Platform::here();
        let (digest, size) = self.put(
            json!({
                "os": "linux", "architecture": platform.architecture(), "config": {},
                "rootfs": {"type": "layers", "diff_ids": diffs},
            })
            .to_string()
            .as_bytes(),
        );
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.0.lock().unwrap().insert(format!("/v2/x/manifests/{tag}"), manifest.to_string().into_bytes());
    }

    fn honest(&self, tag: &str, layers: &[Vec<u8>]) {
        self.image(tag, layers, &layers.iter().map(|layer| Digest::of(layer).to_string()).collect::<Vec<_>>());
    }

    fn answer(&self, request: &Request) -> Response {
        match self.0.lock().unwrap().get(&request.path) {
            _ if request.path == "/v2/" => Response::new(200),
            Some(bytes) => Response::new(200).bytes(bytes.clone()),
            None => Response::new(404),
        }
    }

    fn start(&self) -> Script {
        let images = self.clone();
        Script::start(move |request| images.answer(request)).unwrap()
    }
}

fn build(env: &TestEnv, script: &Script, tag: &str) -> Ran {
    env.build(&format!("((from {}/x:{tag}))", script.host()))
}

fn results(env: &TestEnv) -> usize {
    fs::read_dir(env.at("store/result")).unwrap().count()
}

/// Nothing is left of a failure but what was there before it.
fn assert_nothing_left(env: &TestEnv) {
    env.assert_clean();
    let temporary: Vec<_> =
        listing(&env.at("store")).unwrap().into_iter().filter(|line| line.contains("temporary")).collect();
    assert_eq!(temporary, [""; 0]);
}

#[test]
fn an_image_of_a_registry_writes_nowhere_but_into_its_result() {
    needs_builds!();
    let env = TestEnv::new();
    let canary = env.write("host/file", "untouched");
    let host = canary.parent().unwrap().to_str().unwrap();
    let up = format!("../../../../../../../../..{host}");
    let link = |name: &str, target: &str| member(b'2', name, target, b"");
    let hard = |name: &str, target: &str| member(b'1', name, target, b"");
    let attacks: [(i32, &[Vec<u8>]); 12] = [
        (2, &[archive(&[file(&format!("{up}/file"), b"evil")])]),
        (0, &[archive(&[file(&format!("{host}/file"), b"evil")])]),
        (0, &[archive(&[link("a", host), file("a/file", b"evil")])]),
        // Of a lower layer, through the mounted overlay.
        (0, &[archive(&[link("a", host)]), archive(&[file("a/file", b"evil"), file("a/new", b"evil")])]),
        (0, &[archive(&[link("a", &up)]), archive(&[file("a/file", b"evil")])]),
        (0, &[archive(&[link("a", &format!("/proc/self/root{host}"))]), archive(&[file("a/file", b"evil")])]),
        (2, &[archive(&[link("a", host)]), archive(&[hard("b", "a/file"), file("b", b"evil")])]),
        (0, &[archive(&[link("a", &format!("{host}/file"))]), archive(&[hard("b", "a"), file("b", b"evil")])]),
        (2, &[archive(&[hard("b", &format!("{host}/file")), file("b", b"evil")])]),
        (0, &[archive(&[link("a", host)]), archive(&[file("a/.wh.file", b"")])]),
        (0, &[archive(&[link("a", host)]), archive(&[file("a/.wh..wh..opq", b"")])]),
        (0, &[archive(&[link("a", host)]), archive(&[file(".wh..wh..opq", b""), file("a/file", b"evil")])]),
    ];
    let images = Images::default();
    let script = images.start();
    for (at, (code, layers)) in attacks.iter().enumerate() {
        images.honest(&at.to_string(), layers);
        build(&env, &script, &at.to_string()).fails_with(*code);
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched", "{at}");
        assert_eq!(fs::read_dir(host).unwrap().count(), 1, "{at}");
        assert_nothing_left(&env);
    }
}

#[test]
fn nothing_of_an_image_is_there_before_its_digest_fits() {
    needs_builds!();
    let env = TestEnv::new();
    let images = Images::default();
    let script = images.start();
    let layers = [archive(&[file("good", b"1")]), archive(&[file("bad", b"2")]), archive(&[file("top", b"3")])];
    let digests = layers.each_ref().map(|layer| Digest::of(layer).to_string());
    // It unpacks well, and is another than the configuration says.
    let wanted = Digest::of(b"another").to_string();
    images.image("diff", &layers, &[digests[0].clone(), wanted, digests[2].clone()]);
    let told = build(&env, &script, "diff").fails_with(2).stderr;
    assert!(told.contains("its unpacked digest is"), "{told}");
    assert_eq!(results(&env), 1, "the first layer");
    assert_nothing_left(&env);
    // It has another content than its name says, of the same length.
    images.honest("blob", &layers);
    let other = archive(&[file("bad", b"X")]);
    images.0.lock().unwrap().insert(format!("/v2/x/blobs/{}", digests[1]), other);
    build(&env, &script, "blob").fails_with(2);
    assert_eq!(results(&env), 1);
    assert_nothing_left(&env);
    // Nobody is kept from it, and what is whole is not fetched again.
    images.honest("blob", &layers);
    let before = script.requests().len();
    build(&env, &script, "blob").ok();
    assert_eq!(results(&env), 4, "three layers and the base");
    let first = format!("/v2/x/blobs/{}", digests[0]);
    assert!(script.requests()[before..].iter().all(|request| request.path != first));
}

#[test]
fn a_layer_of_any_length_is_imported_in_100_mib_of_memory() {
    needs_builds!();
    let env = TestEnv::new();
    let images = Images::default();
    let script = images.start();
    images.honest("1", &[archive(&[file("large", &vec![0; 120 << 20])])]);
    env.spec(&format!("((from {}/x:1))", script.host()));
    // The limit on data counts all memory that is not of files, thread's stacks included.
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -d 102400 && exec \"$0\" build -f spec src", kiln]);
    env.set_up(&mut command);
    env.ran(&mut command).ok();
}

#[test]
fn credentials_are_in_no_log_and_no_file_and_go_to_no_other_host() {
    needs_builds!();
    let env = TestEnv::new();
    let images = Images::default();
    images.honest("1", &[archive(&[file("f", b"1")])]);
    let storage = images.start();
    // The token server is where the registry says; blobs are elsewhere.
    let (served, elsewhere) = (images.clone(), storage.host());
    let registry = Script::start(move |request| {
        let host = request.header("host").unwrap().to_owned();
        let login = request.header("authorization").unwrap_or_default();
        if request.path.starts_with("/token") {
            Response::new(200).bytes(r#"{"token": "SECRET-TOKEN"}"#)
        } else if login != "Bearer SECRET-TOKEN" {
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
            Response::new(401).header("WWW-Authenticate", challenge)
        } else if request.path.contains("/blobs/") {
            Response::new(307).header("Location", format!("http://{elsewhere}{}", request.path))
        } else {
            served.answer(request)
        }
    })
    .unwrap();
    // `user:SECRET-PASSWORD`, and a token that buys tokens.
    for (at, entry) in
        [r#"{"auth": "dXNlcjpTRUNSRVQtUEFTU1dPUkQ="}"#, r#"{"identitytoken": "SECRET-IDENTITY"}"#].iter().enumerate()
    {
        images.honest("1", &[archive(&[file("f", at.to_string().as_bytes())])]);
        let auth_file = env.write("auth.json", format!(r#"{{"auths": {{"{}": {entry}}}}}"#, registry.host()));
        env.spec(&format!("((from {}/x:1))", registry.host()));
        let arguments = ["build", "-v", "-f", "spec", "--pull", "--auth-file", auth_file.to_str().unwrap(), "src"];
        let built = env.ran(env.kiln(&arguments).env("KILN_TRACE", "trace")).ok();
        for secret in ["SECRET", "dXNlcjpTRUNSRVQ"] {
            assert!(!built.stderr.contains(secret) && !built.stdout.contains(secret), "{}", built.stderr);
            assert_eq!(files_with(&env.at("store"), secret), 0);
        }
        let asked = registry.requests().into_iter().rfind(|request| request.path.starts_with("/token")).unwrap();
        let shown = format!("{:?} {}", asked.header("authorization"), String::from_utf8_lossy(&asked.body));
        assert!(shown.contains("dXNlcjpTRUNSRVQtUEFTU1dPUkQ=") || shown.contains("SECRET-IDENTITY"), "{shown}");
    }
    let elsewhere = storage.requests();
    assert!(!elsewhere.is_empty());
    assert!(elsewhere.iter().all(|request| request.header("authorization").is_none()), "{elsewhere:?}");
}

/// Returns how many files below `dir` hold `text`.
fn files_with(dir: &Path, text: &str) -> usize {
    // What marks results as durable works in the background: a file of its own may be gone by now.
    let holds = |path: &Path| {
        let bytes = fs::read(path).unwrap_or_default();
        usize::from(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => files_with(&entry.path(), text),
            kind if kind.is_file() => holds(&entry.path()),
            _ => 0,
        })
        .sum()
}

#[test]
fn the_words_of_a_registry_do_nothing_to_the_terminal() {
    needs_builds!();
    let env = TestEnv::new();
    let evil = "\u{1b}]0;evil\u{7}\u{9b}31m\r";
    let refusal = json!({"errors": [{"code": evil, "message": evil}]}).to_string();
    let kind = json!({
        "schemaVersion": 2, "config": {"mediaType": evil, "digest": evil, "size": 2}, "layers": [],
    });
    let answers = [
        Response::new(403).bytes(refusal.clone()),
        Response::new(418).bytes(evil),
        // Told while it still goes on.
        Response::new(503).bytes(refusal).header("Retry-After", "0"),
        Response::new(200).bytes(kind.to_string()),
    ];
    for answer in answers {
        let script = Script::start(move |request| match request.path.as_str() {
            "/v2/" => Response::new(200),
            _ => answer.clone(),
        })
        .unwrap();
        let built = build(&env, &script, "1");
        assert_ne!(built.code, 0);
        assert!(built.stderr.contains("u{1b}]0;evil"), "{}", built.stderr);
        assert!(!built.stderr.contains(|c: char| c.is_control() && c != '\n'), "{:?}", built.stderr);
    }
}
