//! What administrators do.

use kiln_api::{Error, Submission, WorkerInfo, answer};
use tokio::sync::oneshot;

use crate::peers::{Notes, submit};
use crate::world::{Guest, POOL, a_job_goes_through, timeless_world, world};

fn info(name: &str, active: bool, connected: bool) -> WorkerInfo {
    WorkerInfo { name: name.into(), active, connected }
}

#[tokio::test]
async fn pools_are_listed_and_an_unknown_one_is_a_reference_that_fails() {
    world(async |world| {
        let admin = world.admin().await;
        assert_eq!(admin.pools().await.expect("a list"), ["arm", "linux"]);
        let error = admin.pool(b"mac").show().await.expect_err("there is none");
        assert_eq!(error, Error::failed("No such pool"));
    })
    .await;
}

#[tokio::test]
async fn a_paused_worker_gets_nothing_until_it_is_unpaused() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let admin = world.pool_admin().await;
        admin.set_active(b"w1", false, false).await.expect("it is paused");
        assert_eq!(admin.workers().await.expect("a list"), [info("w1", false, true)]);
        let ticket = submit(&client, "h");
        let unpause = async {
            world.until_shown(|text| text.contains("(inactive: admin pause)") && text.contains("alice:h@")).await;
            admin.set_active(b"w1", true, false).await.expect("it is unpaused");
        };
        let (task, ()) = tokio::join!(worker.take(), unpause);
        task.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn a_worker_can_be_paused_before_it_was_ever_there() {
    world(async |world| {
        let admin = world.pool_admin().await;
        let error = admin.set_active(b"new", false, false).await.expect_err("it is not known");
        assert_eq!(error, Error::failed("Unknown worker"));
        admin.set_active(b"new", false, true).await.expect("it is now");
        assert_eq!(admin.workers().await.expect("a list"), [info("new", false, false)]);
        assert!(world.show().await.contains("disconnected:\n  new (paused)"));
        let _worker = world.worker("new", 1).await;
        assert!(world.show().await.contains("new (0): (inactive: admin pause) (0 running)"));
    })
    .await;
}

#[tokio::test]
async fn draining_waits_for_running_jobs_and_says_how_many() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 2).await);
        let tickets = [submit(&client, ""), submit(&client, "")];
        let tasks = [worker.take().await, worker.take().await];
        let admin = world.pool_admin().await;
        let notes = Notes::default();
        let rest = async {
            notes.until("Running jobs: 2").await;
            tasks[0].finish(Ok("".into()));
            notes.until("Running jobs: 1").await;
            assert_eq!(admin.workers().await.expect("a list"), [info("w1", false, true)]);
            tasks[1].finish(Err(Error::failed("Build failed")));
        };
        let (drained, ()) = tokio::join!(admin.drain(b"w1", notes.progress()), rest);
        drained.expect("it is drained");
        assert_eq!(notes.all(), ["Running jobs: 2", "Running jobs: 1", "Running jobs: 0"]);
        // It stays paused.
        assert!(world.show().await.contains("(inactive: admin pause)"));
        assert_eq!(admin.drain(b"nobody", notes.progress()).await, Err(Error::failed("Unknown worker")));
        drop(tickets);
    })
    .await;
}

#[tokio::test]
async fn draining_ends_when_the_worker_is_gone() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let ticket = submit(&client, "");
        let _task = worker.take().await;
        let (admin, notes) = (world.pool_admin().await, Notes::default());
        let rest = async {
            notes.until("Running jobs: 1").await;
            worker.connection.cut().await;
        };
        let (drained, ()) = tokio::join!(admin.drain(b"w1", notes.progress()), rest);
        drained.expect("there is nothing any more");
        drop(ticket);
    })
    .await;
}

#[tokio::test]
async fn an_update_waits_for_jobs_and_for_the_worker_to_come_back() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let (updates, mut asked) = tokio::sync::mpsc::unbounded_channel();
        *worker.updates.borrow_mut() = Box::new(move || {
            updates.send(()).expect("the test goes on");
            Box::pin(std::future::pending())
        });
        let ticket = submit(&client, "");
        let task = worker.take().await;
        let (admin, notes) = (world.pool_admin().await, Notes::default());
        let (told, mut back) = oneshot::channel();
        let update = async {
            admin.update(b"w1", notes.progress()).await.expect("it is updated");
            assert!(back.try_recv().is_ok(), "not before it is back");
        };
        let rest = async {
            notes.until("Running jobs: 1").await;
            assert!(world.show().await.contains("(inactive: shutting down) (1 running)"));
            assert!(asked.try_recv().is_err(), "its job is not over");
            task.finish(Ok("".into()));
            asked.recv().await.expect("it is asked to");
            worker.connection.cut().await;
            world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
            told.send(()).expect("the test goes on");
            world.worker("w1", 1).await
        };
        let ((), worker) = tokio::join!(update, rest);
        assert_eq!(notes.all(), ["Running jobs: 1", "Running jobs: 0"]);
        drop(ticket);
        a_job_goes_through(POOL, &client, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_cannot_update_itself_goes_on() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let admin = world.pool_admin().await;
        let error = admin.update(b"w1", Notes::default().progress()).await.expect_err("it cannot");
        assert_eq!(error, Error::failed("no update"));
        assert_eq!(admin.workers().await.expect("a list"), [info("w1", true, true)]);
        a_job_goes_through(POOL, &client, &worker).await;
        let error = admin.update(b"w2", Notes::default().progress()).await.expect_err("there is none");
        assert_eq!(error, Error::failed("Unknown worker"));
    })
    .await;
}

#[tokio::test]
async fn a_worker_goes_on_when_whoever_wanted_an_update_is_gone() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let ticket = submit(&client, "");
        let task = worker.take().await;
        let (admin, notes) = (world.pool_admin().await, Notes::default());
        tokio::select! {
            _ = admin.update(b"w1", notes.progress()) => panic!("it has a job"),
            () = notes.until("Running jobs: 1") => {}
        }
        admin.connection.cut().await;
        world.until_shown(|text| text.contains("w1 (0): [] (1 running)")).await;
        task.finish(Ok("".into()));
        drop(ticket);
        a_job_goes_through(POOL, &client, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_does_not_come_back_is_given_up() {
    timeless_world(async |world| {
        let worker = world.worker("w1", 1).await;
        *worker.updates.borrow_mut() = Box::new(|| answer(Ok(())));
        let admin = world.pool_admin().await;
        let notes = Notes::default();
        let update = admin.update(b"w1", notes.progress());
        tokio::pin!(update);
        tokio::select! {
            _ = &mut update => panic!("it is not back"),
            () = notes.until("Running jobs: 0") => {}
        }
        // From here on there is nothing to wait for but the clock.
        tokio::time::pause();
        let error = update.await.expect_err("it is not back");
        assert_eq!(error, Error::failed("worker \"w1\" has not come back within 600s"));
        tokio::time::resume();
        assert_eq!(admin.workers().await.expect("a list"), [info("w1", true, true)]);
    })
    .await;
}

#[tokio::test]
async fn only_a_worker_that_is_known_and_gone_is_forgotten() {
    world(async |world| {
        let admin = world.pool_admin().await;
        assert_eq!(admin.forget(b"w1").await, Err(Error::failed("Unknown worker")));
        let worker = world.worker("w1", 1).await;
        assert_eq!(admin.forget(b"w1").await, Err(Error::failed("Worker \"w1\" is still connected!")));
        worker.connection.cut().await;
        world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
        admin.forget(b"w1").await.expect("it is forgotten");
        assert_eq!(admin.workers().await.expect("a list"), []);
    })
    .await;
}

#[tokio::test]
async fn a_rate_is_set_for_clients_that_there_are() {
    world(async |world| {
        let _client = world.client("alice").await;
        let admin = world.pool_admin().await;
        assert_eq!(admin.set_rate(b"nobody", 2.0).await, Err(Error::failed("No such user")));
        admin.set_rate(b"alice", 2.0).await.expect("it is set");
        assert!(world.show().await.contains("clients: alice(2)"));
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = admin.set_rate(b"alice", rate).await.expect_err("it is none");
            assert_eq!(error, Error::failed(format!("a rate must be a number above 0, not {rate}")));
        }
    })
    .await;
}

#[tokio::test]
async fn what_administrators_set_and_pools_learned_survives_a_restart() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        {
            let client: Guest<Submission> = world.open(&uri).await;
            let (one, two) = (world.worker("w1", 1).await, world.worker("w2", 1).await);
            let ticket = submit(&client, "h");
            two.take().await.finish(Ok("".into()));
            ticket.job().result().await.expect("it ends well");
            let admin = world.pool_admin().await;
            admin.set_active(b"w1", false, false).await.expect("it is paused");
            admin.set_rate(b"alice", 3.0).await.expect("it is set");
            drop(one);
        }
        world.stop().await;
        world.start().await;
        assert_eq!(
            world.show().await,
            "capacity: 0\nqueue: (backlog) []\nregistered:\ndisconnected:\n  w1 (paused)\n  w2\nclients: \n"
        );
        let client: Guest<Submission> = world.open(&world.here(&uri)).await;
        // Of two that wait, the one that ran the hint gets the job, though the other was first.
        let (three, two) = (world.worker("w3", 1).await, world.worker("w2", 1).await);
        let waits = three.take();
        let again = async {
            world.until_shown(|text| text.contains("(ready) [w3]")).await;
            let taken = two.take();
            let submitted = async {
                world.until_shown(|text| text.contains("(ready) [w2 w3]")).await;
                submit(&client, "h")
            };
            let (task, ticket) = tokio::join!(taken, submitted);
            assert!(world.show().await.contains("clients: alice(3)"));
            task.finish(Ok("".into()));
            ticket.job().result().await.expect("it ends well");
        };
        tokio::select! {
            _ = waits => panic!("it has no cache"),
            () = again => {}
        }
    })
    .await;
}
