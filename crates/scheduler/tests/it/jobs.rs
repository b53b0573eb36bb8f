//! From submission to result, and everything that may come between.

use kiln_api::{Error, ErrorKind};
use kiln_scheduler::Keeping;

use crate::peers::{JobDescriptions as _, submit, whole_log};
use crate::world::{POOL, a_job_goes_through, insecure_world, keeping_world, world};

fn cancelled() -> Error {
    Error::failed("Build cancelled")
}

#[tokio::test]
async fn a_job_that_is_submitted_before_a_worker_is_there_runs_when_one_comes() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let (log, result) = (whole_log(&job), job.result());
        let work = async {
            world.until_shown(|text| text.contains("queue: (backlog) [alice:h@")).await;
            let worker = world.worker("w1", 1).await;
            let task = worker.take().await;
            assert_eq!(task.description, "h".job());
            task.write("Building on w1\n");
            task.write("Job succeeded\n");
            task.finish(Ok("done".into()));
            worker
        };
        // All asked for before anything was there.
        let (log, result, _worker) = tokio::join!(log, result, work);
        assert_eq!(log.expect("a log"), "Building on w1\nJob succeeded\n");
        assert_eq!(result.expect("it ends well"), "done");
    })
    .await;
}

#[tokio::test]
async fn a_job_goes_to_a_worker_that_waits_also_without_encryption() {
    insecure_world(async |world| {
        let worker = world.worker("w1", 1).await;
        a_job_goes_through(POOL, &*world.client("alice").await, &worker).await;
        a_job_goes_through(POOL, &*world.client("bob").await, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn why_a_job_failed_is_told_as_the_worker_said_it() {
    world(async |world| {
        let worker = world.worker("w1", 1).await;
        let client = world.client("alice").await;
        for text in ["Build failed", "remote exception: no, really", "Docker: \u{1b}[31mno\u{1b}[0m\n"] {
            let ticket = submit(&client, "");
            let job = ticket.job();
            worker.take().await.finish(Err(Error::failed(text)));
            let error = job.result().await.expect_err("it fails");
            assert_eq!(error.kind, ErrorKind::Failed);
            assert_eq!(error.message, text.trim_start_matches("remote exception: "));
        }
    })
    .await;
}

#[tokio::test]
async fn a_queued_job_is_cancelled_by_its_ticket() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let result = job.result();
        ticket.cancel().await.expect("it is cancelled");
        assert_eq!(result.await, Err(Error::failed("Ticket cancelled")));
        // What is over stays so.
        ticket.cancel().await.expect("nothing to do");
        assert_eq!(world.metric("ocluster_pool_jobs_cancelled_total{pool=\"linux\"}").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_queued_job_is_cancelled_when_its_ticket_is_dropped() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let result = job.result();
        world.until_shown(|text| text.contains("alice:h@")).await;
        drop(ticket);
        assert_eq!(result.await, Err(Error::failed("Ticket released (cancelled)")));
    })
    .await;
}

#[tokio::test]
async fn a_running_job_is_cancelled_by_its_ticket() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let task = worker.take().await;
        assert!(!task.is_cancelled());
        ticket.cancel().await.expect("it is cancelled");
        task.cancelled().await;
        assert_eq!(job.result().await, Err(cancelled()));
    })
    .await;
}

#[tokio::test]
async fn a_running_job_is_cancelled_when_ticket_and_job_are_dropped_while_its_result_is_asked_for() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let ticket = submit(&client, "h");
        let job = ticket.job();
        let result = job.result();
        let task = worker.take().await;
        task.write("x");
        assert_eq!(job.log(0).await.expect("a log").bytes, b"x");
        drop((ticket, job));
        task.dropped().await;
        assert_eq!(result.await, Err(cancelled()));
    })
    .await;
}

#[tokio::test]
async fn a_running_job_goes_on_with_its_ticket_alone_or_its_job_alone() {
    world(async |world| {
        let (client, worker) = (world.client("alice").await, world.worker("w1", 2).await);
        let (one, other) = (submit(&client, "one"), submit(&client, "other"));
        let (one_job, other_job) = (one.job(), other.job());
        let tasks = [worker.take().await, worker.take().await];
        tasks.iter().for_each(|task| task.write("x"));
        one_job.log(0).await.expect("it runs");
        other_job.log(0).await.expect("it runs");
        drop((one, other_job));
        // Whatever follows from that has followed when a later call has been answered.
        one_job.log(0).await.expect("it runs");
        a_job_goes_through(POOL, &client, &worker).await;
        assert!(tasks.iter().all(|task| !task.is_dropped() && !task.is_cancelled()));
        tasks.iter().for_each(|task| task.finish(Ok("fine".into())));
        assert_eq!(one_job.result().await.expect("it ends well"), "fine");
        assert_eq!(other.job().result().await.expect("it ends well"), "fine");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_loses_its_connection_leaves_nothing_behind() {
    world(async |world| {
        let worker = world.worker("w1", 1).await;
        let client = world.client("alice").await;
        let tickets: Vec<_> = ["a", "b", "c"].into_iter().map(|hint| submit(&client, hint)).collect();
        let running = tickets[0].job();
        let task = worker.take().await;
        task.write("x");
        running.log(0).await.expect("it runs");
        client.connection.cut().await;
        task.dropped().await;
        world.until_shown(|text| text.contains("(0 running)") && text.contains("queue: (backlog) []")).await;
        let other = world.client("bob").await;
        a_job_goes_through(POOL, &other, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_is_told_that_the_worker_of_its_job_is_lost() {
    let once = Keeping { retries: 0, ..Keeping::default() };
    keeping_world(once, async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("w1", 1).await;
        let ticket = submit(&client, "h");
        let (job, task) = (ticket.job(), worker.take().await);
        let (log, result) = (job.log(0), job.result());
        worker.connection.cut().await;
        assert_eq!(result.await.expect_err("it is lost").kind, ErrorKind::Disconnected);
        assert_eq!(log.await.expect("it is empty").bytes, b"");
        assert_eq!(job.result().await.expect_err("it is lost").kind, ErrorKind::Disconnected);
        task.dropped().await;
        // Its name is free, and its jobs are nobody's.
        let again = world.until_registered("w1").await;
        assert!(world.show().await.contains("w1 (0): [] (0 running)"));
        a_job_goes_through(POOL, &client, &again).await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_pool_is_a_ticket_that_fails() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = client.submit(b"no\npe", &"".job(), false).expect("it is small");
        let error = ticket.job().result().await.expect_err("no such pool");
        assert_eq!(error, Error::failed("Pool ID \"no\\npe\" not one of {arm, linux}"));
    })
    .await;
}

#[tokio::test]
async fn urgent_jobs_go_first() {
    world(async |world| {
        let client = world.client("alice").await;
        let tickets = [("a", false), ("b", false), ("c", true)]
            .map(|(hint, urgent)| client.submit(POOL, &hint.job(), urgent).expect("it is small"));
        world.until_shown(|text| text.contains("alice:c@") && text.contains("+urgent")).await;
        let worker = world.worker("w1", 1).await;
        for hint in ["c", "a", "b"] {
            let task = worker.take().await;
            assert_eq!(task.description.cache_hint, hint);
            task.finish(Ok("".into()));
        }
        for ticket in tickets {
            ticket.job().result().await.expect("it ends well");
        }
    })
    .await;
}

#[tokio::test]
async fn two_thousand_jobs_are_run_once_each_by_five_workers() {
    world(async |world| {
        let mut workers = Vec::new();
        for (index, lanes) in (1..=5).zip([1, 2, 3, 4, 10]) {
            workers.push((world.worker(&format!("w{index}"), lanes).await, usize::try_from(lanes).expect("small")));
        }
        let clients = [world.client("alice").await, world.client("bob").await];
        let runs = std::cell::RefCell::new(std::collections::BTreeMap::<_, usize>::new());
        let note = |description: &kiln_api::JobDescription| {
            *runs.borrow_mut().entry(description.repository.clone()).or_default() += 1;
        };
        let all = (0..2000).map(async |number: usize| {
            let mut description = format!("hint{}", number % 17).job();
            description.repository = number.to_string().into();
            let ticket =
                clients[number % 2].submit(POOL, &description, number.is_multiple_of(10)).expect("it is small");
            ticket.job().result().await.expect("it ends well");
        });
        let working = futures::future::join_all(workers.iter().map(|(worker, lanes)| worker.work(*lanes, note)));
        tokio::select! {
            _ = futures::future::join_all(all) => {}
            _ = working => panic!("workers go on"),
        }
        assert_eq!(runs.borrow().len(), 2000);
        assert!(runs.borrow().values().all(|&times| times == 1));
        assert_eq!(world.metric("ocluster_pool_jobs_accepted_total{pool=\"linux\"}").await, 2000);
    })
    .await;
}
