//! Workers come and go.

use kiln_api::{Error, Job, Reference as _, Worker};

use crate::peers::{JobDescriptions as _, TestWorker, submit};
use crate::world::{POOL, a_job_goes_through, world};

#[tokio::test]
async fn a_worker_gets_jobs_as_soon_as_it_is_registered() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("w1", 1).await;
        assert!(world.show().await.contains("  w1 (0): [] (0 running)"));
        a_job_goes_through(POOL, &client, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_worker_of_one_name_is_refused_until_the_first_is_gone() {
    world(async |world| {
        let worker = world.worker("w1", 1).await;
        let second = TestWorker::register(world, "w1", 1).await.err().expect("the name is taken");
        assert_eq!(second, Error::failed("Worker already registered!"));
        // In the other pool it is another name.
        let arm = world.open(&world.running().pools[&bstr::BString::from("arm")]).await;
        let _arm = TestWorker::register_at(arm, "w1", 1).await.expect("it is free there");
        // Leaving is dropping the queue; the connection may stay.
        drop(worker.queue);
        let again = world.until_registered("w1").await;
        // So is losing the connection.
        again.connection.cut().await;
        let again = world.until_registered("w1").await;
        a_job_goes_through(POOL, &*world.client("alice").await, &again).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_gives_up_what_it_asked_for_gets_nothing() {
    world(async |world| {
        let worker = world.worker("w1", 3).await;
        {
            let pops = [worker.try_take(), worker.try_take(), worker.try_take()];
            tokio::select! {
                _ = futures::future::join_all(pops) => panic!("there is nothing"),
                () = world.until_shown(|text| text.contains("(ready) [w1 w1 w1]")) => {}
            }
        }
        world.until_shown(|text| !text.contains("w1 w1") && !text.contains("[w1]")).await;
        let client = world.client("alice").await;
        let ticket = submit(&client, "h");
        world.until_shown(|text| text.contains("(backlog) [alice:h@")).await;
        let task = worker.take().await;
        task.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_pauses_itself_gets_nothing_until_it_goes_on() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("w1", 1).await;
        worker.queue.set_active(false).await.expect("it is told");
        let ticket = submit(&client, "");
        let taken = worker.take();
        let rest = async {
            world.until_shown(|text| text.contains("w1 (0): (inactive: worker pause) (0 running)")).await;
            worker.queue.set_active(true).await.expect("it is told");
        };
        let (task, ()) = tokio::join!(taken, rest);
        task.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn a_worker_never_has_more_jobs_than_it_asked_for() {
    world(async |world| {
        let client = world.client("alice").await;
        let tickets: Vec<_> = (0..10).map(|_| submit(&client, "")).collect();
        world.until_shown(|text| text.contains("(backlog)")).await;
        let worker = world.worker("w1", 3).await;
        let tasks = [worker.take().await, worker.take().await, worker.take().await];
        assert_eq!(world.metric("ocluster_pool_jobs_running{pool=\"linux\"}").await, 3);
        assert_eq!(world.metric("ocluster_pool_workers_capacity{pool=\"linux\"}").await, 3);
        assert!(world.show().await.contains("(3 running)"));
        tasks[1].finish(Ok("".into()));
        worker.take().await.finish(Ok("".into()));
        for task in &tasks {
            task.finish(Ok("".into()));
        }
        drop(tickets);
    })
    .await;
}

#[tokio::test]
async fn a_capacity_that_is_none_is_refused() {
    world(async |world| {
        for capacity in [-1, i32::MIN, 10_001, i32::MAX] {
            let error = TestWorker::register(world, "w1", capacity).await.err().expect("it is refused");
            assert_eq!(error, Error::failed("a capacity is between 0 and 10000"));
        }
        let long = "x".repeat(256);
        let error = TestWorker::register(world, &long, 1).await.err().expect("it is refused");
        assert_eq!(error, Error::failed("a worker's name is at most 255 bytes long"));
        assert!(!world.show().await.contains('x'));
    })
    .await;
}

#[tokio::test]
async fn a_job_that_a_worker_does_not_serve_fails_for_its_client_alone() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("w1", 2).await;
        // It says no to everything, whatever it is asked.
        let broken = Job::broken(Error::failed("no such thing"));
        let ticket = submit(&client, "");
        worker.queue.pop(broken).await.expect("there is a job");
        assert_eq!(ticket.job().result().await, Err(Error::failed("no such thing")));
        a_job_goes_through(POOL, &client, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn the_metrics_of_workers_are_had_over_http() {
    world(async |world| {
        let _worker = world.worker("w1", 1).await;
        let own = world.get("/pool/linux/worker/w1/metrics").await;
        assert!(own.starts_with("HTTP/1.1 200") && own.contains("metrics of w1 (Agent)\n"), "{own}");
        let host = world.get("/pool/linux/worker/w1/host-metrics").await;
        assert!(host.contains("metrics of w1 (Host)\n"), "{host}");
        for (path, text) in [
            ("/pool/linux/worker/w1/other", "the worker has no such metrics"),
            ("/pool/linux/worker/w2/metrics", "no such worker is connected"),
            ("/pool/mac/worker/w1/metrics", "no such pool"),
        ] {
            let answer = world.get(path).await;
            assert!(answer.starts_with("HTTP/1.1 404") && answer.contains(text), "{answer}");
        }
        // A page for a browser is no page here.
        let page = world.get("/pool/linux/worker/w1/page").await;
        assert!(page.contains("content-type: text/plain\r\n") && page.contains("nosniff"), "{page}");
    })
    .await;
}

#[tokio::test]
async fn administrators_reach_a_worker_through_its_pool() {
    world(async |world| {
        let _worker = world.worker("w1", 1).await;
        let admin = world.pool_admin().await;
        let worker: Worker = admin.worker(b"w1");
        let metric = worker.metrics(kiln_api::MetricsSource::Agent).await.expect("it answers");
        assert_eq!(metric.data, "metrics of w1 (Agent)\n");
        let error = admin.worker(b"w2").self_update().await.expect_err("there is none");
        assert_eq!(error, Error::failed("Unknown worker"));
    })
    .await;
}

#[tokio::test]
async fn jobs_go_where_their_cache_is() {
    world(async |world| {
        let client = world.client("alice").await;
        let (one, two) = (world.worker("w1", 1).await, world.worker("w2", 1).await);
        let ticket = client.submit(POOL, &"h".job(), false).expect("it is small");
        let task = two.take().await;
        task.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
        // The other waits longer, but has no cache.
        let waits = one.take();
        let again = async {
            world.until_shown(|text| text.contains("(ready) [w1]")).await;
            let ticket = submit(&client, "h");
            world.until_shown(|text| text.contains("w2 (10): [alice:h@")).await;
            two.take().await.finish(Ok("".into()));
            ticket.job().result().await.expect("it ends well");
        };
        tokio::select! {
            _ = waits => panic!("it has no cache"),
            () = again => {}
        }
    })
    .await;
}
