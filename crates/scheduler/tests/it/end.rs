//! How a scheduler ends, and what it does when it cannot write.

use kiln_api::ErrorKind;
use kiln_scheduler::{Scheduler, Settings};
use tokio_util::sync::CancellationToken;

use crate::peers::{TestWorker, submit};
use crate::world::{POOL, a_job_goes_through, world};

#[tokio::test]
async fn its_end_is_the_end_of_all_calls_and_jobs() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let (running, waiting) = (submit(&client, ""), submit(&client, ""));
        let task = worker.take().await;
        task.write("x");
        running.job().log(0).await.expect("it runs");
        let calls = [running.job().result(), waiting.job().result()];
        let arm = world.open(&world.running().pools[&bstr::BString::from("arm")]).await;
        let other = TestWorker::register_at(arm, "w1", 1).await.expect("it is free");
        let pop = other.try_take();
        let stop = async {
            world.until_shown(|text| text.contains("alice:@")).await;
            world.stop().await;
        };
        let (results, popped, ()) = tokio::join!(futures::future::join_all(calls), pop, stop);
        for result in results {
            assert_eq!(result.expect_err("it has ended").kind, ErrorKind::Disconnected);
        }
        assert_eq!(popped.err().expect("it has ended").kind, ErrorKind::Disconnected);
        task.dropped().await;
    })
    .await;
}

#[tokio::test]
async fn what_pools_learned_is_written_at_the_end() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 50).await);
        let tickets: Vec<_> = (0..50).map(|number| submit(&client, &format!("h{number}"))).collect();
        for ticket in &tickets {
            worker.take().await.finish(Ok("".into()));
            let _ = ticket;
        }
        world.stop().await;
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        let count = |table: &str| -> i64 {
            let query = format!("SELECT count(*) FROM {table} WHERE pool = 'linux'");
            database.query_row(&query, [], |row| row.get(0)).expect("a number")
        };
        assert_eq!((count("cached"), count("workers")), (50, 1));
    })
    .await;
}

/// Makes the database refuse to write into `table`, as on a full disk, or no longer.
fn refuse(world: &crate::world::World, table: &str, refuse: bool) {
    let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
    let change = match refuse {
        true => format!(
            "CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        ),
        false => "DROP TRIGGER full".to_owned(),
    };
    database.execute_batch(&change).expect("it is changed");
}

#[tokio::test]
async fn a_client_that_cannot_be_written_down_is_not_added() {
    world(async |world| {
        refuse(world, "sturdy_refs", true);
        let admin = world.admin().await;
        let error = admin.add_client(b"bob").save().await.expect_err("it is not written");
        let path = world.state().join("scheduler.db");
        let text = format!("cannot write the scheduler's state {}: database or disk is full", path.display());
        assert!(error.message.starts_with(&text), "{error}");
        assert_eq!(admin.list_clients().await.expect("a list"), Vec::<bstr::BString>::new());
        refuse(world, "sturdy_refs", false);
        a_job_goes_through(POOL, &*world.client("bob").await, &world.worker("w1", 1).await).await;
    })
    .await;
}

#[tokio::test]
async fn an_administrator_is_told_what_is_done_but_not_written() {
    world(async |world| {
        let worker = world.worker("w1", 1).await;
        let admin = world.pool_admin().await;
        let client = world.client("alice").await;
        refuse(world, "workers", true);
        let error = admin.set_active(b"w1", false, false).await.expect_err("it is not written");
        assert!(error.message.starts_with("it is done, but not kept: cannot write the scheduler's state"), "{error}");
        assert!(error.message.contains(": database or disk is full"), "{error}");
        assert!(world.show().await.contains("(inactive: admin pause)"));
        refuse(world, "workers", false);
        admin.set_active(b"w1", true, false).await.expect("it is written");
        // Jobs do not depend on a disk.
        refuse(world, "cached", true);
        let ticket = submit(&client, "hint");
        worker.take().await.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
        refuse(world, "cached", false);
    })
    .await;
}

#[tokio::test]
async fn without_a_state_or_a_port_there_is_no_scheduler_and_the_place_is_named() {
    world(async |world| {
        let fails = async |settings| Scheduler::start(settings).await.err().expect("there is none").to_string();
        let used = fails(world.settings()).await;
        let state = world.state().display();
        assert!(used.starts_with(&format!("the state {state} is in use by another scheduler")), "{used}");

        let nowhere = world.state().join("nowhere");
        let text = fails(Settings { state: nowhere.clone(), ..world.settings() }).await;
        assert_eq!(text, format!("cannot lock {}", nowhere.join("scheduler.lock").display()));

        let other = tempfile::tempdir().expect("a directory");
        let settings = || Settings { state: other.path().to_owned(), ..world.settings() };
        let taken = world.running().admin.addresses.first().clone();
        let text = fails(Settings { listen: taken.clone(), ..settings() }).await;
        assert_eq!(text, format!("cannot listen on {taken}"));

        let web = world.running().web;
        let text = fails(Settings { web, ..settings() }).await;
        assert_eq!(text, format!("cannot listen on {} for HTTP", web.expect("there is HTTP")));

        let text = fails(Settings { capabilities: Some(nowhere.clone()), ..settings() }).await;
        assert_eq!(text, format!("cannot write {}", nowhere.join("admin.cap").display()));

        // What failed holds nothing: the same state does now.
        let scheduler = Scheduler::start(settings()).await.expect("a scheduler");
        let stop = CancellationToken::new();
        stop.cancel();
        scheduler.serve(stop).await;
    })
    .await;
}
