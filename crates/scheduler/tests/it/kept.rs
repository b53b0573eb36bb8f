//! Jobs that outlive connections, workers and schedulers.

use std::fs;

use kiln_api::{Error, ErrorKind, JobKey, JobState, KeptSubmission, LogTail, Secret, Submission, Ticket};
use kiln_scheduler::Keeping;

use crate::peers::{JobDescriptions as _, KeptWorker, TestWorker, submit, whole_log};
use crate::world::{Guest, POOL, World, impatient, insecure_world, keeping_world, world};

fn kept(hint: &str, detached: bool) -> KeptSubmission {
    KeptSubmission { key: JobKey::random(), pool: POOL.into(), description: hint.job(), urgent: false, detached }
}

/// Submits a job that is kept, and returns its ticket, and whether it was new.
async fn keep(client: &Submission, kept: &KeptSubmission) -> (Ticket, bool) {
    let (ticket, is_new) = client.submit_kept(kept).expect("it is small");
    (ticket, is_new.await.expect("it is accepted"))
}

/// A restart, after which `alice` is another connection.
async fn restart(world: &World, alice: Guest<Submission>, uri: &kiln_api::CapabilityUri) -> Guest<Submission> {
    world.stop().await;
    drop(alice);
    world.start().await;
    world.open(&world.here(uri)).await
}

#[tokio::test]
async fn queued_and_running_jobs_outlive_the_scheduler() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        worker.queue.ready().await.expect("it is welcome");
        let jobs = [kept("running", true), kept("attached", false), kept("queued", true)];
        let mut tickets = Vec::new();
        for job in &jobs {
            tickets.push(keep(&client, job).await);
        }
        assert!(tickets.iter().all(|(_, is_new)| *is_new));
        let task = worker.take().await;
        task.write("one\n");
        let mut tail = LogTail::new(tickets[0].0.job());
        assert_eq!(tail.next().await.expect("a part"), b"one\n");
        let position = tail.position();

        let client = restart(world, client, &uri).await;
        drop(tickets);
        let states =
            |jobs: Vec<kiln_api::JobInfo>| jobs.into_iter().map(|job| (job.key, job.state)).collect::<Vec<_>>();
        let listed = states(client.list().await.expect("a list"));
        let expected = [
            (jobs[2].key, JobState::Waiting),
            (jobs[1].key, JobState::Waiting),
            (jobs[0].key, JobState::Lost("w1".into())),
        ];
        assert_eq!(listed, expected);
        task.write("two\n");
        let back = worker.away().enter(world).await;
        assert!(back.offer(&task).await);
        back.queue.ready().await.expect("it is welcome");
        // Submitting again is finding.
        let (ticket, is_new) = keep(&client, &jobs[1]).await;
        assert!(!is_new);
        task.finish(Ok("first".into()));
        let (job, info) = client.find(jobs[0].key).await.expect("it is known");
        assert_eq!((info.runs, info.state), (1, JobState::Running("w1".into())));
        assert_eq!(job.result().await.expect("it ends well"), "first");
        let mut rest = LogTail::at(job.clone(), position);
        assert_eq!(rest.next().await.expect("a part"), b"two\n");
        assert_eq!(rest.next().await.expect("the end"), b"");
        for (index, result) in [(1, "second"), (2, "third")] {
            let task = back.take().await;
            assert_eq!(task.description, jobs[index].description);
            task.finish(Ok(result.into()));
            let (job, _) = client.find(jobs[index].key).await.expect("it is known");
            assert_eq!(job.result().await.expect("it ends well"), result);
        }
        assert_eq!(ticket.job().result().await.expect("it ends well"), "second");

        // What has ended has too.
        let client = restart(world, client, &uri).await;
        for (index, result) in [(0, "first"), (1, "second"), (2, "third")] {
            let (job, info) = client.find(jobs[index].key).await.expect("it is known");
            assert_eq!(info.state, JobState::Succeeded(result.into()));
            assert_eq!(job.result().await.expect("it ended well"), result);
            let (ticket, is_new) = keep(&client, &jobs[index]).await;
            assert!(!is_new);
            assert_eq!(ticket.job().result().await.expect("it ended well"), result);
        }
        let (job, _) = client.find(jobs[0].key).await.expect("it is known");
        assert_eq!(whole_log(&job).await.expect("a log"), "one\ntwo\n");
    })
    .await;
}

#[tokio::test]
async fn a_run_that_was_begun_when_the_machine_failed_is_taken_over() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        worker.queue.ready().await.expect("it is welcome");
        let job = kept("h", true);
        let _ticket = keep(&client, &job).await;
        let task = worker.take().await;
        world.stop().await;
        // That it was begun had not reached the disk.
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        database.execute("UPDATE kiln_jobs SET runs = 0, worker = NULL", []).expect("it is changed");
        drop(database);
        world.start().await;
        let client: Guest<Submission> = world.open(&world.here(&uri)).await;
        let back = worker.away().enter(world).await;
        assert!(back.offer(&task).await);
        task.write("all\n");
        task.finish(Ok("fine".into()));
        let (job, _) = client.find(job.key).await.expect("it is known");
        assert_eq!(job.result().await.expect("it ends well"), "fine");
        assert_eq!(whole_log(&job).await.expect("a log"), "all\n");
    })
    .await;
}

#[tokio::test]
async fn a_detached_job_needs_no_client_and_one_that_is_not_does() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let (detached, attached) = (kept("d", true), kept("a", false));
        for job in [&detached, &attached] {
            let (ticket, _) = keep(&client, job).await;
            ticket.stored().await.expect("it is stored");
        }
        client.connection.cut().await;
        world.until_shown(|text| text.contains("(backlog) [alice:d@") && !text.contains("alice:a@")).await;
        let client: Guest<Submission> = world.open(&uri).await;
        let (job, info) = client.find(attached.key).await.expect("it is known");
        assert_eq!(info.state, JobState::Failed("Ticket released (cancelled)".into()));
        assert_eq!(job.result().await, Err(Error::failed("Ticket released (cancelled)")));
        // Only by its id, and by its own client.
        let other = world.client("bob").await;
        let unknown = Error::failed(format!("there is no job {}", detached.key));
        assert_eq!(other.cancel(detached.key).await, Err(unknown.clone()));
        assert_eq!(other.find(detached.key).await.err(), Some(unknown));
        assert_eq!(other.list().await.expect("a list"), []);
        let taken = other.submit_kept(&detached).expect("it is small").1.await.expect_err("it is alice's");
        assert_eq!(taken, Error::failed(format!("job {} is another client's", detached.key)));
        client.cancel(detached.key).await.expect("it is cancelled");
        client.cancel(detached.key).await.expect("it is over");
        let (job, _) = client.find(detached.key).await.expect("it is known");
        assert_eq!(job.result().await, Err(Error::failed("Build cancelled")));
        assert!(job.cancel().await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_client_does_not_come_back_after_a_restart_is_cancelled() {
    keeping_world(impatient(), async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let job = kept("h", false);
        let _ticket = keep(&client, &job).await;
        let client = restart(world, client, &uri).await;
        let (found, _) = client.find(job.key).await.expect("it is known");
        let error = found.result().await.expect_err("it is cancelled");
        assert_eq!(error, Error::failed("the job's client was lost, and has not come back"));
    })
    .await;
}

#[tokio::test]
async fn secrets_are_in_memory_only_and_a_client_that_comes_back_gives_them_again() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let secret = |job: &mut KeptSubmission| {
            job.description.secrets = vec![Secret { id: "token".into(), value: "hunter2-hunter2".into() }];
        };
        let (mut attached, mut detached) = (kept("a", false), kept("d", true));
        secret(&mut attached);
        secret(&mut detached);
        let tickets = [keep(&client, &attached).await, keep(&client, &detached).await];
        tickets[0].0.stored().await.expect("it is stored");
        for file in fs::read_dir(world.state()).expect("a directory") {
            let path = file.expect("a file").path();
            if path.is_file() {
                let bytes = fs::read(path).expect("readable");
                assert!(bstr::ByteSlice::find(bytes.as_slice(), "hunter2").is_none());
            }
        }
        let client = restart(world, client, &uri).await;
        drop(tickets);
        let (job, _) = client.find(detached.key).await.expect("it is known");
        let error = job.result().await.expect_err("they are gone");
        assert!(error.message.contains("secrets were in its memory only"), "{error}");
        // It neither runs nor could, and everybody says so.
        let (_, info) = client.find(attached.key).await.expect("it is known");
        assert_eq!(info.state, JobState::Waiting);
        assert_eq!(world.metric("ocluster_pool_jobs_withheld{pool=\"linux\"}").await, 1);
        assert_eq!(world.metric("ocluster_pool_jobs_running{pool=\"linux\"}").await, 0);
        assert!(world.show().await.contains("\nwithheld: 1 (until their clients give their secrets again)\n"));
        let worker = world.worker("w1", 1).await;
        let taken = worker.take();
        let back = async {
            let (job, _) = client.find(attached.key).await.expect("it is known");
            let (ticket, is_new) = keep(&client, &attached).await;
            assert!(!is_new);
            (job, ticket)
        };
        let (task, (job, _ticket)) = tokio::join!(taken, back);
        assert_eq!(task.description, attached.description);
        assert!(!world.show().await.contains("withheld"));
        task.finish(Ok("".into()));
        job.result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn secrets_that_are_given_again_count_for_their_client() {
    insecure_world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let secret = |bytes| vec![Secret { id: "token".into(), value: vec![b'x'; bytes].into() }];
        let mut jobs: Vec<_> = (0..18).map(|_| kept("", false)).collect();
        let mut tickets = Vec::new();
        for job in &mut jobs {
            job.description.secrets = secret(1);
            tickets.push(keep(&client, job).await.0);
        }
        let client = restart(world, client, &uri).await;
        drop(tickets);
        let mut tickets = Vec::new();
        for job in &mut jobs {
            // Nobody knows what they were.
            job.description.secrets = secret(15 << 20);
            let (ticket, is_new) = client.submit_kept(job).expect("it fits into a message");
            tickets.push((ticket, is_new.await));
        }
        let (_, last) = tickets.pop().expect("there are some");
        let error = last.expect_err("it is too much");
        assert_eq!(error.kind, ErrorKind::Overloaded, "{error}");
        assert!(error.message.starts_with("the jobs that wait for this client hold 256 MB"), "{error}");
        assert!(tickets.iter().all(|(_, is_new)| *is_new == Ok(false)));
        assert_eq!(world.metric("ocluster_pool_jobs_withheld{pool=\"linux\"}").await, 1);
        // Others have their own, and so has it again when something is done.
        assert!(keep(&*world.client("bob").await, &kept("", false)).await.1);
        drop(tickets.pop());
        let last = jobs.last().expect("there are some");
        while client.submit_kept(last).expect("it fits into a message").1.await.is_err() {}
    })
    .await;
}

#[tokio::test]
async fn secrets_that_are_stored_outlive_the_scheduler() {
    keeping_world(Keeping { store_secrets: true, ..Keeping::default() }, async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let mut job = kept("h", true);
        job.description.secrets = vec![Secret { id: "token".into(), value: "hunter2".into() }];
        let _ticket = keep(&client, &job).await;
        let client = restart(world, client, &uri).await;
        let worker = world.worker("w1", 1).await;
        let task = worker.take().await;
        assert_eq!(task.description, job.description);
        task.finish(Ok("".into()));
        let (found, _) = client.find(job.key).await.expect("it is known");
        found.result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_refuses_new_jobs_and_loses_none_that_there_are() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        worker.queue.ready().await.expect("it is welcome");
        let submission = kept("h", true);
        let (ticket, _) = keep(&client, &submission).await;
        let task = worker.take().await;
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        let full = "SELECT RAISE(ABORT, 'database or disk is full')";
        let refuse = format!(
            "CREATE TRIGGER i BEFORE INSERT ON kiln_jobs BEGIN {full}; END; \
             CREATE TRIGGER u BEFORE UPDATE ON kiln_jobs BEGIN {full}; END"
        );
        database.execute_batch(&refuse).expect("it is changed");
        let refused = client.submit_kept(&kept("other", true)).expect("it is small").1.await.expect_err("no room");
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert_eq!(refused.message, "the scheduler cannot store the job now");
        task.finish(Ok("fine".into()));
        // Its end is told when it is stored, and not before.
        let job = ticket.job();
        let result = job.result();
        let mended = async {
            world.until_shown(|text| text.contains("w1 (0): [] (0 running)")).await;
            assert!(!task.is_forgotten());
            // Neither its client nor its worker is refused meanwhile.
            let (again, is_new) = keep(&client, &submission).await;
            assert!(!is_new);
            let back = worker.cut().await.enter(world).await;
            assert!(back.offer(&task).await);
            assert!(!task.is_cancelled());
            database.execute_batch("DROP TRIGGER i; DROP TRIGGER u").expect("it is changed");
            assert_eq!(again.job().result().await.expect("it ends well"), "fine");
            task.forgotten().await;
        };
        let (result, ()) = tokio::join!(result, mended);
        assert_eq!(result.expect("it ends well"), "fine");
    })
    .await;
}

#[tokio::test]
async fn a_job_whose_client_is_cut_off_while_it_is_stored_is_done() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        database.execute_batch("BEGIN IMMEDIATE").expect("it is held");
        let job = kept("h", true);
        let submitted = client.submit_kept(&job).expect("it is small");
        // Questions of a connection arrive in the order in which they are asked.
        client.save().await.expect("it is answered");
        client.connection.cut().await;
        drop(submitted);
        database.execute_batch("COMMIT").expect("it is let go");
        let client: Guest<Submission> = world.open(&uri).await;
        let (ticket, is_new) = keep(&client, &job).await;
        assert!(!is_new);
        let worker = world.worker("w1", 1).await;
        let task = worker.take().await;
        task.finish(Ok("fine".into()));
        assert_eq!(ticket.job().result().await.expect("it ends well"), "fine");
    })
    .await;
}

#[tokio::test]
async fn a_job_is_stored_whatever_else_could_not_be_written() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        worker.queue.ready().await.expect("it is welcome");
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        let refuse = "CREATE TRIGGER i BEFORE INSERT ON cached BEGIN SELECT RAISE(ABORT, 'disk is full'); END";
        database.execute_batch(refuse).expect("it is changed");
        let (ticket, _) = keep(&client, &kept("h", true)).await;
        let task = worker.take().await;
        ticket.stored().await.expect("it is stored");
        task.finish(Ok("".into()));
        ticket.job().result().await.expect("it ends well");
    })
    .await;
}

#[tokio::test]
async fn a_log_that_could_not_be_opened_at_a_start_goes_on_where_it_was() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        worker.queue.ready().await.expect("it is welcome");
        let job = kept("h", true);
        let (ticket, _) = keep(&client, &job).await;
        let task = worker.take().await;
        task.write("one\n");
        let mut tail = LogTail::new(ticket.job());
        assert_eq!(tail.next().await.expect("a part"), b"one\n");
        world.stop().await;
        let (log, aside) = (world.state().join("logs").join(job.key.to_string()), world.state().join("aside"));
        fs::rename(&log, &aside).expect("it is there");
        fs::create_dir(&log).expect("a directory, which is no log");
        world.start().await;
        fs::remove_dir(&log).expect("it is empty");
        fs::rename(&aside, &log).expect("it is free");
        let client: Guest<Submission> = world.open(&world.here(&uri)).await;
        let back = worker.away().enter(world).await;
        assert!(back.offer(&task).await);
        task.write("two\n");
        task.finish(Ok("fine".into()));
        let (job, _) = client.find(job.key).await.expect("it is known");
        assert_eq!(job.result().await.expect("it ends well"), "fine");
        assert_eq!(whole_log(&job).await.expect("a log"), "one\ntwo\n");
    })
    .await;
}

#[tokio::test]
async fn what_ended_long_ago_is_forgotten_with_its_log() {
    world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let worker = world.worker("w1", 1).await;
        let (old, new) = (kept("old", true), kept("new", true));
        for job in [&old, &new] {
            let (ticket, _) = keep(&client, job).await;
            let task = worker.take().await;
            task.write("x");
            task.finish(Ok("".into()));
            ticket.job().result().await.expect("it ends well");
        }
        world.stop().await;
        let log = |key: JobKey| world.state().join("logs").join(key.to_string());
        assert!(log(old.key).exists() && log(new.key).exists());
        let stray = log(JobKey::random());
        fs::write(&stray, "of nobody").expect("writable");
        let database = rusqlite::Connection::open(world.state().join("scheduler.db")).expect("a database");
        let change = "UPDATE kiln_jobs SET ended = ended - 40 * 86400 WHERE id = ?";
        database.execute(change, [old.key.0]).expect("it is changed");
        drop(database);
        world.start().await;
        let client: Guest<Submission> = world.open(&world.here(&uri)).await;
        while client.find(old.key).await.is_ok() {
            tokio::task::yield_now().await;
        }
        while log(old.key).exists() {
            tokio::task::yield_now().await;
        }
        // It was looked for first.
        assert!(!stray.exists());
        let (job, _) = client.find(new.key).await.expect("it is known");
        assert_eq!(whole_log(&job).await.expect("a log"), "x");
    })
    .await;
}

#[tokio::test]
async fn a_client_cannot_call_its_worker() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker: TestWorker = world.worker("w1", 1).await;
        let ticket = submit(&client, "");
        let job = ticket.job();
        let task = worker.take().await;
        task.write("x");
        job.log(0).await.expect("it runs");
        assert_eq!(job.forget().await.expect_err("it is no worker's").kind, ErrorKind::Unimplemented);
        task.finish(Ok("".into()));
        job.result().await.expect("it ends well");
    })
    .await;
}
