//! Jobs whose workers are lost, or seem to be.

use std::time::Duration;

use kiln_api::{Error, Job, LogTail};
use kiln_scheduler::Keeping;

use crate::peers::{JobDescriptions as _, KeptWorker, submit, whole_log};
use crate::world::{POOL, a_job_goes_through, impatient, keeping_world, world};

#[tokio::test]
async fn a_job_whose_worker_is_lost_starts_again_elsewhere_and_its_client_sees_one_log() {
    world(async |world| {
        let client = world.client("alice").await;
        let first = world.worker("w1", 1).await;
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let task = first.take().await;
        assert_eq!(task.description, "h".job());
        task.write("begun\n");
        let mut tail = LogTail::new(job.clone());
        assert_eq!(tail.next().await.expect("a part"), b"begun\n");
        first.connection.cut().await;
        let second = world.worker("w2", 1).await;
        let task = second.take().await;
        assert_eq!(task.description, "h".job());
        task.write("begun again\n");
        task.finish(Ok("fine".into()));
        assert_eq!(job.result().await.expect("it ends well"), "fine");
        let log = whole_log(&job).await.expect("a log");
        assert_eq!(log, "begun\n\n[worker w1 is lost; the job starts again on w2]\nbegun again\n");
        let mut rest = Vec::new();
        while let Some(part) = Some(tail.next().await.expect("a part")).filter(|part| !part.is_empty()) {
            rest.extend(part);
        }
        assert_eq!(log.as_bytes().strip_prefix(b"begun\n"), Some(rest.as_slice()));
    })
    .await;
}

#[tokio::test]
async fn a_job_that_loses_every_worker_is_given_up() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        for name in ["w1", "w2", "w3"] {
            let worker = world.worker(name, 1).await;
            worker.take().await;
            worker.connection.cut().await;
        }
        let error = job.result().await.expect_err("it is given up");
        assert_eq!(error, Error::disconnected("worker w3 is lost"));
        assert_eq!(world.metric("ocluster_pool_jobs_retried_total{pool=\"linux\"}").await, 2);
        assert_eq!(world.metric("ocluster_pool_jobs_abandoned_total{pool=\"linux\"}").await, 1);
        a_job_goes_through(POOL, &client, &world.worker("w4", 1).await).await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_told_all_but_its_result_is_not_run_again() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("w1", 1).await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        let task = worker.take().await;
        task.write("Job succeeded\n");
        task.end_log();
        let mut tail = LogTail::new(job.clone());
        assert_eq!(tail.next().await.expect("a part"), b"Job succeeded\n");
        // The end of the log has reached the scheduler when a later question of the same connection has been answered.
        worker.until_asked_again(&*world.pool_admin().await).await;
        worker.connection.cut().await;
        let error = job.result().await.expect_err("nobody knows it");
        assert_eq!(error, Error::disconnected("worker w1 is lost, and the job's result with it"));
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_comes_back_goes_on_with_its_job() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let task = worker.take().await;
        task.write("one\n");
        let mut tail = LogTail::new(job.clone());
        assert_eq!(tail.next().await.expect("a part"), b"one\n");
        let away = worker.cut().await;
        // What it does meanwhile is not lost.
        task.write("two\n");
        world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
        // Another does not get it.
        let other = world.worker("w2", 1).await;
        a_job_goes_through(POOL, &client, &other).await;
        let back = away.enter(world).await;
        assert!(back.offer(&task).await);
        back.queue.ready().await.expect("it is welcome");
        task.write("three\n");
        task.finish(Ok("fine".into()));
        assert_eq!(job.result().await.expect("it ends well"), "fine");
        assert_eq!(whole_log(&job).await.expect("a log"), "one\ntwo\nthree\n");
        task.forgotten().await;
        assert!(!task.is_cancelled());
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_comes_back_without_its_job_has_lost_it() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        worker.take().await;
        worker.cut().await;
        world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
        // It was started anew. It gets what is there, which is the same job.
        let again = KeptWorker::enter(world, "w1", b"p2").await;
        again.queue.ready().await.expect("it is welcome");
        let task = again.take().await;
        assert_eq!(task.run().number, 2);
        task.finish(Ok("fine".into()));
        assert_eq!(job.result().await.expect("it ends well"), "fine");
    })
    .await;
}

#[tokio::test]
async fn a_worker_takes_its_own_place_before_its_old_connection_is_known_to_be_dead() {
    world(async |world| {
        let client = world.client("alice").await;
        let old = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        let task = old.take().await;
        let error = KeptWorker::try_enter(world, "w1", b"p2").await.err().expect("the name is taken");
        assert_eq!(error, Error::failed("Worker already registered!"));
        let new = KeptWorker::enter(world, "w1", b"p1").await;
        assert!(new.offer(&task).await);
        new.queue.ready().await.expect("it is welcome");
        task.finish(Ok("fine".into()));
        assert_eq!(job.result().await.expect("it ends well"), "fine");
        // What the old one had asked for is not answered.
        assert!(old.queue.take(Job::serve_kept(KeptWorker::nothing())).await.is_err());
    })
    .await;
}

/// Workers that say nothing are soon given up. Those that do are asked by the same thread that answers, so one that is slow is slow for both.
fn attentive(worker_grace: Duration) -> Keeping {
    Keeping { worker_silence: Duration::from_secs(1), worker_grace, ..Keeping::default() }
}

#[tokio::test]
async fn a_worker_that_says_nothing_any_more_is_given_up_and_learns_it() {
    keeping_world(attentive(Duration::ZERO), async |world| {
        let client = world.client("alice").await;
        let (stopped, of_ocluster) = (KeptWorker::enter(world, "w1", b"p1").await, world.worker("w2", 1).await);
        let tickets = [submit(&client, "a"), submit(&client, "b")];
        let (first, second) = (stopped.take().await, of_ocluster.take().await);
        let lost = [&first, &second].map(|task| task.description.clone());
        stopped.freeze(true);
        of_ocluster.connection.freeze(true);
        // Nobody has closed a connection, and what they had is another's.
        let other = KeptWorker::enter(world, "w3", b"p3").await;
        let again = [other.take().await, other.take().await];
        assert!(again.iter().all(|task| lost.contains(&task.description)));
        assert_eq!(world.metric("ocluster_pool_jobs_retried_total{pool=\"linux\"}").await, 2);
        // When it goes on, it has lost its connection, comes back, and is told.
        stopped.freeze(false);
        let back = stopped.over().await.enter(world).await;
        assert!(!back.offer(&first).await);
        of_ocluster.connection.freeze(false);
        second.dropped().await;
        for task in again {
            task.finish(Ok("once".into()));
        }
        for ticket in tickets {
            assert_eq!(ticket.job().result().await.expect("it ends well"), "once");
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_was_stopped_for_less_goes_on_with_its_job() {
    keeping_world(attentive(Duration::from_secs(1000)), async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "");
        let task = worker.take().await;
        worker.freeze(true);
        world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
        worker.freeze(false);
        let back = worker.over().await.enter(world).await;
        assert!(back.offer(&task).await);
        back.queue.ready().await.expect("it is welcome");
        task.finish(Ok("fine".into()));
        assert_eq!(ticket.job().result().await.expect("it ends well"), "fine");
        assert_eq!(world.metric("ocluster_pool_jobs_retried_total{pool=\"linux\"}").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_job_is_not_taken_from_a_worker_that_never_had_it_or_that_comes_too_late() {
    keeping_world(impatient(), async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        let task = worker.take().await;
        let thief = KeptWorker::enter(world, "w2", b"p2").await;
        assert!(!thief.offer(&task).await);
        let away = worker.cut().await;
        thief.queue.ready().await.expect("it is welcome");
        let again = thief.take().await;
        assert_eq!(again.run().number, 2);
        let back = away.enter(world).await;
        assert!(!back.offer(&task).await);
        again.finish(Ok("by w2".into()));
        task.finish(Ok("by w1".into()));
        assert_eq!(job.result().await.expect("it ends well"), "by w2");
        assert!(!back.offer(&again).await);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_its_worker_is_away_is_not_wanted_when_it_is_back() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        let task = worker.take().await;
        let away = worker.cut().await;
        world.until_shown(|text| text.contains("disconnected:\n  w1")).await;
        ticket.cancel().await.expect("it is cancelled");
        assert_eq!(job.result().await, Err(Error::failed("Ticket cancelled")));
        assert!(!away.enter(world).await.offer(&task).await);
    })
    .await;
}
