//! Conversations of OCluster's own programs, which are in `vectors`.

use std::path::PathBuf;

use capnp::message::{Builder, ReaderSegments as _};
use capnp::serialize::OwnedSegments;
use capnp::traits::{HasTypeId, Imbue as _, ImbueMut as _};
use capnp_rpc::rpc_capnp::message;
use kiln_api::transcript::{messages, transcript};
use kiln_api::{Address, CapabilityUri, Identity, Key, cap_file};

fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the names of all conversations.
fn conversations() -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(vectors())
        .expect("it is there")
        .filter_map(|entry| Some(entry.expect("it is there").file_name().to_str()?.strip_suffix(".c2s")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() > 30, "{names:?}");
    names
}

/// Returns a message with the same content, laid out anew.
fn again(one: &capnp::message::Reader<OwnedSegments>) -> Vec<u8> {
    // What the references refer to does not matter, but that there is something.
    let references: Vec<_> = (0..8).map(|_| Some(broken().hook)).collect();
    let mut from: capnp::any_pointer::Reader<'_> = one.get_root().expect("a message");
    from.imbue(&references);
    let mut copy = Builder::new_default();
    let mut kept = Vec::new();
    {
        let mut to: capnp::any_pointer::Builder<'_> = copy.init_root();
        to.imbue_mut(&mut kept);
        to.set_as(from).expect("it is copied");
    }
    capnp::serialize::write_message_to_words(&copy)
}

fn broken() -> capnp::capability::Client {
    capnp_rpc::new_broken_cap(capnp::Error::failed("nothing".to_owned()))
}

#[test]
fn every_message_is_read_and_written_without_loss() {
    for name in conversations() {
        let [asking, answering] = ["c2s", "s2c"].map(|direction| {
            let bytes = read(&format!("{name}.{direction}"));
            let all = messages(&bytes).expect("they are messages");
            let copy: Vec<u8> = all.iter().flat_map(again).collect();
            let copies = messages(&copy).expect("they are messages");
            assert_eq!(all.len(), copies.len(), "{name}.{direction}");
            for (one, copy) in all.iter().zip(&copies) {
                let [one, copy] = [one, copy].map(|one| one.get_root::<message::Reader<'_>>().expect("a message"));
                assert_eq!(format!("{one:?}"), format!("{copy:?}"), "{name}.{direction}");
            }
            // <https://capnproto.org/encoding.html#serialization-over-a-stream>
            let sizes = all.into_iter().map(|one| {
                let words = one.size_in_words();
                8 * (1 + one.into_segments().len() / 2 + words)
            });
            assert_eq!(sizes.sum::<usize>(), bytes.len(), "{name}.{direction}: all bytes are messages");
            [bytes, copy]
        });
        let say = |asking: &[u8], answering: &[u8]| transcript(asking, answering).expect("it is understood");
        assert_eq!(say(&asking[0], &answering[0]), say(&asking[1], &answering[1]), "{name}");
        assert_eq!(say(&answering[0], &asking[0]), say(&answering[1], &asking[1]), "{name}");
    }
}

#[test]
fn conversations_are_understood() {
    let mut all = String::new();
    for name in conversations() {
        let (asking, answering) = (read(&format!("{name}.c2s")), read(&format!("{name}.s2c")));
        let side = |asking: &[u8], answering: &[u8]| {
            transcript(asking, answering).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        all.push_str(&format!("{name}\n"));
        for exchange in side(&asking, &answering) {
            all.push_str(&format!("  > {exchange}\n"));
        }
        for exchange in side(&answering, &asking) {
            all.push_str(&format!("  < {exchange}\n"));
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn interfaces_have_the_numbers_that_ocluster_knows_them_by() {
    use crate::generated::ocluster_capnp::{admin, job, pool_admin, queue, registration, submission, ticket};
    use crate::generated::vat_capnp::persistent;
    let is = [
        <admin::Client as HasTypeId>::TYPE_ID,
        <pool_admin::Client as HasTypeId>::TYPE_ID,
        <submission::Client as HasTypeId>::TYPE_ID,
        <ticket::Client as HasTypeId>::TYPE_ID,
        <job::Client as HasTypeId>::TYPE_ID,
        <queue::Client as HasTypeId>::TYPE_ID,
        <registration::Client as HasTypeId>::TYPE_ID,
        <persistent::Client as HasTypeId>::TYPE_ID,
    ];
    let known: [u64; 8] = [
        0xdd51_f355_40da_c6ad,
        0xd906_b771_b408_2451,
        0xf4e8_a768_b32a_7c42,
        0x9497_c03b_7ca5_b27b,
        0xca66_fd1f_972e_fccc,
        0x817f_986f_8026_3aaf,
        0xe098_a12b_91e3_5740,
        0xc8cb_212f_cd9f_5691,
    ];
    assert_eq!(is, known);
}

#[test]
fn the_key_of_an_ocluster_scheduler_gives_the_uris_that_it_wrote() {
    let key = Key::from_pem(&read("migration/key.pem")).expect("a key");
    for (file, service) in [
        ("admin.cap", &b"admin"[..]),
        ("pool-linux-arm64.cap", b"pool-linux-arm64"),
        ("pool-linux-x86_64.cap", b"pool-linux-x86_64"),
    ] {
        let path = vectors().join("migration").join(file);
        let uri = CapabilityUri {
            identity: Identity::Key(key.fingerprint()),
            addresses: Address::Tcp { host: "ci.example.org".to_owned(), port: 9000 }.into(),
            service: key.service_id(service),
        };
        assert_eq!(cap_file::load(&path).expect("a URI"), uri, "{file}");
        assert_eq!(String::from_utf8(read(&format!("migration/{file}"))).expect("UTF-8").trim_end(), uri.to_string());
    }
    for file in ["submit-alice.cap", "submit-carol.cap"] {
        let uri = cap_file::load(&vectors().join("migration").join(file)).expect("a URI");
        assert_eq!(uri.service.0.len(), 20, "{file}");
    }
}
