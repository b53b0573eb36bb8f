//! Services, several on one connection, over real sockets.

use kiln_api::{Admin, Error, Job, Key, Limits, PoolAdmin};

use crate::world::{ADMIN, JOB, POOL, id, with_host};

#[tokio::test]
async fn several_services_are_had_through_one_connection_before_any_answer() {
    let (key, _) = Key::generate().expect("a key");
    with_host(Some(key), Limits::default(), async |host| {
        let connection = host.connect().await;
        let admin: Admin = connection.bootstrap(&id(ADMIN));
        let pool: PoolAdmin = connection.bootstrap(&id(POOL));
        let nothing: Admin = connection.bootstrap(&id(b"nothing"));
        let empty: Admin = connection.bootstrap(&id(b""));
        let inner = admin.pool(b"a");
        let (inner, by_id, nothing, empty, names) =
            tokio::join!(inner.show(), pool.show(), nothing.pools(), empty.pools(), admin.pools());
        assert_eq!(inner.expect("it is shown"), "pool a");
        assert_eq!(by_id.expect("it is shown"), "by id");
        assert_eq!(nothing.expect_err("there is none").to_string(), "Unknown persistent service ID");
        assert_eq!(empty.expect_err("there is none").to_string(), "Unknown persistent service ID");
        assert_eq!(names.expect("there are")[1], b"\xff".as_slice());
        connection.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_promise_that_fails_is_settled_by_failing() {
    with_host(None, Limits::default(), async |host| {
        let connection = host.connect().await;
        let admin: Admin = connection.bootstrap(&id(ADMIN));
        let error = admin.pool(b"b").show().await.expect_err("no such pool");
        assert_eq!(error, Error::failed("No such pool"));
    })
    .await;
}

#[tokio::test]
async fn dropping_the_last_reference_is_noticed_while_a_call_is_open() {
    let world = with_host(None, Limits::default(), async |host| {
        let connection = host.connect().await;
        let job: Job = connection.bootstrap(&id(JOB));
        assert_eq!(job.log(5).await.expect("a chunk").next, 10_245);
        let open = job.result();
        tokio::pin!(open);
        tokio::select! {
            biased;
            _ = &mut open => panic!("it has no end"),
            chunk = job.log(0) => assert_eq!(chunk.expect("a chunk").next, 10_240),
        }
        drop(connection);
    })
    .await;
    assert!(world.dropped.get());
}
