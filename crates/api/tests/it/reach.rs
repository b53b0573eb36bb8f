//! Services at several addresses, of which some are dead.

use std::net::{SocketAddr, TcpListener};

use kiln_api::{Addresses, CapabilityUri, ConnectError, Connection, Key, Limits, PoolAdmin};

use crate::world::{POOL, id, with_host};

/// Returns an address where nobody listens.
fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Listens as a process that is stopped does: the kernel accepts connections, and nobody answers.
fn stopped() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn addresses(all: &[String]) -> Addresses {
    format!("tcp:{}", all.join(",")).parse().expect("they are addresses")
}

async fn open(uri: &CapabilityUri, limits: Limits) -> Result<Connection, ConnectError> {
    let (key, _) = Key::generate().expect("a key");
    Connection::open(uri, &key, limits).await
}

#[tokio::test]
async fn the_one_that_answers_is_reached_whatever_the_others_do() {
    for key in [Some(Key::generate().expect("a key").0), None] {
        with_host(key, Limits::default(), async |host| {
            let (_held, stopped) = stopped();
            let live = host.uri.addresses.to_string();
            // `localhost` may have several addresses of its own.
            let by_name = live.replace("127.0.0.1", "localhost");
            // Nothing is sent on from there (RFC 5737).
            let black_hole = "192.0.2.1:9000".to_owned();
            for others in [
                vec![refused().to_string(), live.clone()],
                vec![stopped.to_string(), live.clone()],
                vec![black_hole, stopped.to_string(), "nowhere.invalid:1".to_owned(), live.clone()],
                vec![live.clone(), stopped.to_string()],
                vec![by_name],
            ] {
                let uri = CapabilityUri { addresses: addresses(&others), ..host.uri.clone() };
                let connection = open(&uri, Limits::default()).await.expect("one of them answers");
                let pool: PoolAdmin = connection.bootstrap(&id(POOL));
                assert_eq!(pool.show().await.expect("it is shown"), "by id", "{others:?}");
                connection.close().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn when_none_answers_each_is_named_with_its_reason() {
    let (_held, stopped) = stopped();
    let refused = refused();
    let limits = || Limits { handshake: std::time::Duration::from_millis(300), ..Limits::default() };
    let (key, _) = Key::generate().expect("a key");
    let secret = "c2VjcmV0";
    let local = tokio::task::LocalSet::new();
    for (identity, reason) in [
        (format!("{}", key.fingerprint()), format!("no secure connection with {stopped}: timed out")),
        ("insecure".to_owned(), format!("{stopped} accepts connections, but does not answer")),
    ] {
        let uri = format!("capnp://{identity}@{refused},{stopped}/{secret}").parse().expect("a URI");
        let error = local.run_until(open(&uri, limits())).await.err().expect("nobody answers").to_string();
        assert!(error.starts_with("none of 2 addresses is reached: "), "{error}");
        assert!(error.contains(&format!("cannot connect to {refused}: Connection refused")), "{error}");
        assert!(error.contains(&reason), "{error}");
        assert!(!error.contains(secret), "{error}");
    }
}

#[tokio::test]
async fn one_with_a_wrong_key_keeps_nobody_from_the_others_and_is_named() {
    let key = || Key::generate().expect("a key").0;
    with_host(Some(key()), Limits::default(), async |wrong| {
        let wrong = wrong.uri.addresses.to_string();
        with_host(Some(key()), Limits::default(), async |host| {
            let live = host.uri.addresses.to_string();
            let uri = |all: &[String]| CapabilityUri { addresses: addresses(all), ..host.uri.clone() };
            open(&uri(&[wrong.clone(), live]), Limits::default()).await.expect("the other is right").close().await;

            let refused = refused().to_string();
            let error = open(&uri(&[wrong.clone(), refused]), Limits::default()).await.err().expect("none is right");
            assert!(error.to_string().contains(&format!("{wrong} does not have the key")), "{error}");
            // The other may come to serve.
            assert!(!error.is_wrong_key());

            let error = open(&uri(&[wrong.clone(), wrong.clone()]), Limits::default()).await;
            assert!(error.err().expect("both are wrong").is_wrong_key());
            let error = open(&uri(&[wrong]), Limits::default()).await.err().expect("it is wrong");
            assert!(matches!(error, ConnectError::WrongKey { .. }), "{error:?}");
        })
        .await;
    })
    .await;
}
