//! The state and the key of an OCluster's scheduler go on here.

use std::fs;
use std::path::Path;

use kiln_api::{Address, CapabilityUri, Key, Submission, cap_file};
use kiln_scheduler::{Scheduler, Settings};
use tokio_util::sync::CancellationToken;

use crate::world::{Guest, World, a_job_goes_through, insecure_world, vectors, world};

/// Copies what OCluster left into `world`, and returns what a scheduler on it is told.
pub(crate) fn take_over(world: &World) -> Settings {
    let from = vectors().join("migration");
    fs::copy(from.join("scheduler.db"), world.state().join("scheduler.db")).expect("a copy");
    let key = Key::from_pem(&fs::read(from.join("key.pem")).expect("a key")).expect("a key");
    Settings { key, pools: vec!["linux-x86_64".into(), "linux-arm64".into()], ..world.settings() }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("it is there")
}

#[tokio::test]
async fn the_capability_files_are_those_that_ocluster_wrote() {
    world(async |world| {
        world.stop().await;
        let into = tempfile::tempdir().expect("a directory");
        let public: Address = "tcp:ci.example.org:9000".parse().expect("an address");
        let settings = take_over(world);
        let settings = Settings { public: Some(public.into()), capabilities: Some(into.path().to_owned()), ..settings };
        let scheduler = Scheduler::start(settings).await.expect("a scheduler");
        for name in ["admin.cap", "pool-linux-x86_64.cap", "pool-linux-arm64.cap"] {
            let (ours, theirs) = (text(&into.path().join(name)), text(&vectors().join("migration").join(name)));
            // Byte for byte, but for the end of the line.
            assert_eq!(ours, format!("{}\n", theirs.trim_end()), "{name}");
        }
        let stop = CancellationToken::new();
        stop.cancel();
        scheduler.serve(stop).await;
    })
    .await;
}

#[tokio::test]
async fn the_capabilities_that_ocluster_gave_out_work() {
    for secure in [true, false] {
        let test = async |world: &World| {
            world.stop().await;
            world.start_with(take_over(world)).await;
            for name in ["submit-alice.cap", "submit-carol.cap"] {
                let given = cap_file::load(&vectors().join("migration").join(name)).expect("a capability");
                let now = CapabilityUri { service: given.service.clone(), ..world.running().admin };
                if secure && name == "submit-carol.cap" {
                    // The key is theirs too. (The other was made while encryption was off.)
                    assert_eq!(now.identity, given.identity);
                }
                let client: Guest<Submission> = world.open(&now).await;
                let pool = world.open(&world.running().pools[&bstr::BString::from("linux-x86_64")]).await;
                let worker = crate::peers::TestWorker::register_at(pool, "w1", 1).await.expect("it is free");
                a_job_goes_through(b"linux-x86_64", &client, &worker).await;
                worker.connection.cut().await;
                world.until_shown_in("linux-x86_64", |text| text.contains("disconnected:\n  w1")).await;
            }
            let clients = world.admin().await.list_clients().await.expect("a list");
            assert_eq!(clients, ["alice", "carol"]);
        };
        if secure { world(test).await } else { insecure_world(test).await }
    }
}

#[tokio::test]
async fn ocluster_would_open_the_database_again() {
    world(async |world| {
        world.stop().await;
        // Tables of ours stand beside theirs.
        let schema =
            "SELECT type || name || coalesce(sql, '') FROM sqlite_schema WHERE tbl_name NOT LIKE 'kiln%' ORDER BY name";
        let settings = take_over(world);
        let path = world.state().join("scheduler.db");
        let list = || -> Vec<String> {
            let database = rusqlite::Connection::open(&path).expect("a database");
            let mut query = database.prepare(schema).expect("a query");
            query.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_, _>>().expect("rows")
        };
        let before = list();
        world.start_with(settings).await;
        world.add_client("bob").await;
        world.stop().await;
        assert_eq!(list(), before);
        let database = rusqlite::Connection::open(&path).expect("a database");
        let mode: String = database.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("a mode");
        let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!((mode.as_str(), check.as_str()), ("wal", "ok"));
        // What they read of a client: its name as a blob.
        let bob: Vec<u8> = database
            .query_row(
                "SELECT args FROM sturdy_refs WHERE type = 'ocluster-client' AND length(hash) = 32 AND args = ?",
                [b"bob"],
                |row| row.get(0),
            )
            .expect("a row");
        assert_eq!(bob, b"bob");
    })
    .await;
}
