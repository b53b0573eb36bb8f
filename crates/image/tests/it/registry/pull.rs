//! Pulls from a real registry, over good and bad networks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_image::{Digest, Patience, Registry, RegistryError, RegistrySettings, Which};
use kiln_testkit::{Body, Link, Response, Script, need};

use super::*;
use crate::block_on;

#[test]
fn what_is_there_is_pulled_by_tag_and_by_digest() {
    need!(REGISTRY);
    let registry = start(false, false);
    let (client, name) = (client(), name(&registry.host(), "a/b:1"));
    let index = empty_index();
    let digest = block_on(client.put_manifest(&name, Some("1"), INDEX, &index, &go_on())).expect("a push");
    let blob = noise(100_000);
    let blob_digest = put_blob(&client, &name, &blob);

    let found = manifest(&client, &name).expect("a manifest");
    assert_eq!((&found.bytes, &*found.media_type, found.digest), (&index, INDEX, digest));
    let by_digest = block_on(client.manifest(&name, &Which::Digest(digest), 1 << 20, &go_on()));
    assert_eq!(by_digest.expect("a manifest"), found);
    let (got, result) = download(&client, &name, blob_digest, blob.len());
    result.expect("a download");
    assert!(got == blob);
    let document = block_on(client.document(&name, blob_digest, blob.len() as u64, &go_on()));
    assert!(document.expect("a blob") == blob);
    let (nothing, result) = download(&client, &name, put_blob(&client, &name, b""), 0);
    result.expect("an empty blob");
    assert!(nothing.is_empty());
}

#[test]
fn what_is_not_there_is_named() {
    need!(REGISTRY);
    let registry = start(false, false);
    let (client, name) = (client(), name(&registry.host(), "a/b:2"));
    let error = manifest(&client, &name).expect_err("nothing");
    assert_eq!(error.to_string(), format!("{host} has no image `{host}/a/b:2`", host = registry.host()));
    assert!(error.is_users_fault());
    let (_, result) = download(&client, &name, Digest::of(b""), 0);
    assert!(matches!(result, Err(RegistryError::NotFound { .. })));
}

#[test]
fn a_download_goes_on_where_the_connection_was_cut() {
    need!(REGISTRY);
    let registry = start(false, false);
    let blob = noise(1_000_000);
    let digest = put_blob(&client(), &name(&registry.host(), "a"), &blob);
    let link = Link::to(registry.address()).expect("a link");
    link.cut_after(Some(150_000));
    let (got, result) = download(&client(), &name(&link.host(), "a"), digest, blob.len());
    result.expect("a download");
    assert!(got == blob);
    assert!(link.connections() >= 7, "{}", link.connections());
    assert!(link.received() < 1_300_000, "nothing is sent twice: {}", link.received());
}

#[test]
fn a_download_goes_on_when_the_registry_ignores_ranges() {
    let blob = noise(200_000);
    let requests = std::sync::atomic::AtomicUsize::new(0);
    let served = blob.clone();
    let script = Script::start(move |request| {
        let count =
            requests.fetch_add(usize::from(request.path.contains("blobs")), std::sync::atomic::Ordering::SeqCst);
        let body =
            if count < 2 { Body::Cut(served[..50_000 * (count + 1)].to_vec()) } else { Body::Bytes(served.clone()) };
        Response::new(200).header("Content-Length", served.len().to_string()).body(body)
    });
    let script = script.expect("a server");
    let (got, result) = download(&client(), &name(&script.host(), "a"), Digest::of(&blob), blob.len());
    result.expect("a download");
    assert!(got == blob);
}

#[test]
fn a_stalled_connection_is_given_up_for_another() {
    need!(REGISTRY);
    let registry = start(false, false);
    let blob = noise(200_000);
    let digest = put_blob(&client(), &name(&registry.host(), "a"), &blob);
    let link = Link::to(registry.address()).expect("a link");
    link.stall_after(Some(90_000));
    let patience = Patience { idle: Duration::from_secs(1), ..patience() };
    let client = Registry::new(RegistrySettings { patience, ..settings() }).expect("a client");
    let (got, result) = download(&client, &name(&link.host(), "a"), digest, blob.len());
    result.expect("a download");
    assert!(got == blob && link.connections() >= 3);
}

#[test]
fn silence_is_not_waited_for_for_ever() {
    let blob = noise(1000);
    for body in [Body::Stall(blob.clone()), Body::Silence] {
        let script = Script::start(move |request| {
            if request.path == "/v2/" { Response::new(200) } else { Response::new(200).body(body.clone()) }
        })
        .expect("a server");
        let client = Registry::new(RegistrySettings { patience: impatience(), ..settings() }).expect("a client");
        let (_, result) = download(&client, &name(&script.host(), "a"), Digest::of(&blob), 1001);
        assert!(matches!(result, Err(RegistryError::Silent { .. })), "{result:?}");
        let count = script.requests().iter().filter(|request| request.path.contains("blobs")).count();
        assert!((2..=4).contains(&count), "{count}");
    }
}

#[test]
fn a_download_that_always_gets_a_little_further_ends_nevertheless() {
    let blob = noise(10_000_000);
    let served = blob.clone();
    let script = Script::start(move |request| {
        let start = range(request).unwrap_or(0);
        let all = serve(request, &served);
        Response { body: Body::Cut(served[start..=start].to_vec()), ..all }
            .header("Content-Length", (served.len() - start).to_string())
    });
    let script = script.expect("a server");
    let patience = Patience { slow_for: Duration::from_secs(2), ..patience() };
    let client = Registry::new(RegistrySettings { patience, ..settings() }).expect("a client");
    let (got, result) = download(&client, &name(&script.host(), "a"), Digest::of(&blob), blob.len());
    assert!(matches!(result, Err(RegistryError::TooSlow { .. })), "{result:?}");
    assert!(got == blob[..got.len()] && !got.is_empty());
}

#[test]
fn a_download_that_begins_anew_each_time_ends_though_much_is_sent() {
    let blob = noise(1_000_000);
    let (served, times) = (blob.clone(), AtomicUsize::new(0));
    let script = Script::start(move |request| {
        if request.path == "/v2/" {
            return Response::new(200);
        }
        // Each time a byte further, and nothing but that byte is new.
        let end = 100_000 + times.fetch_add(1, Ordering::Relaxed);
        Response::new(200).body(Body::Cut(served[..end].to_vec())).header("Content-Length", served.len().to_string())
    });
    let script = script.expect("a server");
    let patience = Patience { slow_for: Duration::from_secs(2), ..patience() };
    let client = Registry::new(RegistrySettings { patience, ..settings() }).expect("a client");
    let (got, result) = download(&client, &name(&script.host(), "a"), Digest::of(&blob), blob.len());
    assert!(matches!(result, Err(RegistryError::TooSlow { .. })), "{result:?}");
    assert!(got == blob[..got.len()] && !got.is_empty());
}

#[test]
fn a_busy_registry_is_asked_again_and_not_for_ever() {
    for (statuses, is_ok) in [(&[429, 503, 500][..], true), (&[429; 10][..], false)] {
        let left = std::sync::Mutex::new(statuses.to_vec());
        let script = Script::start(move |request| {
            if request.path == "/v2/" {
                return Response::new(200);
            }
            // Longer than anybody waits.
            let busy = |status| Response::new(status).header("Retry-After", "86400").bytes("{\"errors\": []}");
            left.lock().expect("a lock").pop().map_or_else(|| Response::new(200).bytes(empty_index()), busy)
        });
        let script = script.expect("a server");
        let result = manifest(&client(), &name(&script.host(), "a"));
        match result {
            Ok(_) => assert!(is_ok),
            Err(error) => {
                assert!(!is_ok && matches!(error, RegistryError::TooManyRequests { .. }), "{error}");
                assert_eq!(script.requests().iter().filter(|request| request.path != "/v2/").count(), 4);
            }
        }
    }
}

#[test]
fn nobody_there_is_an_error_after_a_few_attempts() {
    let link = Link::to(([127, 0, 0, 1], 9).into()).expect("a link");
    link.refuse(true);
    let error = manifest(&client(), &name(&link.host(), "a")).expect_err("nobody");
    assert!(matches!(error, RegistryError::Connect { .. } | RegistryError::Cut { .. }), "{error:?}");
    assert!(!error.is_users_fault());
    link.refuse(false);
}

#[test]
fn a_cancelled_pull_ends_at_once() {
    let cancel = go_on();
    let by_server = cancel.clone();
    let script = Script::start(move |request| {
        if request.path == "/v2/" {
            return Response::new(200);
        }
        by_server.cancel();
        Response::new(200).body(Body::Silence)
    });
    let script = script.expect("a server");
    let name = name(&script.host(), "a");
    let result = block_on(client().manifest(&name, &name.which(), 1000, &cancel));
    assert!(result.expect_err("cancelled").is_cancelled());
}

#[test]
fn who_cannot_take_more_ends_the_download() {
    let blob = noise(100_000);
    let served = blob.clone();
    let script = Script::start(move |request| serve(request, &served)).expect("a server");
    let mut sink = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
    let (client, name) = (client(), name(&script.host(), "a"));
    let result = block_on(client.download(&name, Digest::of(&blob), 100_000, &mut sink, &go_on()));
    assert!(matches!(result, Err(RegistryError::Sink { .. })), "{result:?}");
}
