//! Jobs that an earlier scheduler began: on the same state, or on a database that several share, from another machine.

use std::fs;
use std::path::PathBuf;

use futures::stream::{FuturesUnordered, StreamExt as _};
use kiln_api::{Error, Job, JobKey, JobState, KeptSubmission, LogTail, Submission};
use kiln_testkit::{Need, need};

use crate::peers::{JobDescriptions as _, KeptWorker, Task, whole_log};
use crate::world::{Guest, POOL, World, shared_world, world};

#[tokio::test]
async fn logs_go_on_where_an_earlier_scheduler_left_them() {
    world(async |world| logs_go_on(world).await).await;
}

#[tokio::test]
async fn logs_go_on_where_another_scheduler_left_them() {
    need!(Need::Postgres);
    shared_world(async |world| logs_go_on(world).await).await;
}

/// Returns numbered lines, so that a hole shows, and what is there twice.
fn lines(of: &str, numbers: std::ops::Range<u32>) -> String {
    numbers.map(|number| format!("{of} {number:08}\n")).collect()
}

/// Submits a job, which needs no client from then on.
async fn submit(client: &Submission, hint: &str) -> JobKey {
    let key = JobKey::random();
    let job = KeptSubmission { key, pool: POOL.into(), description: hint.job(), urgent: false, detached: true };
    let (_ticket, is_new) = client.submit_kept(&job).expect("it is small");
    assert!(is_new.await.expect("it is accepted"));
    key
}

async fn find(client: &Submission, key: JobKey) -> Job {
    client.find(key).await.expect("it is known").0
}

/// Returns how many logs have been copied out of a database.
fn copied(world: &World) -> usize {
    let turns = fs::read_dir(world.scheduler_state().join("log-copies")).expect("a directory").flatten();
    // Those of an earlier turn go meanwhile.
    turns.map(|turn| fs::read_dir(turn.path()).map_or(0, Iterator::count)).sum()
}

/// Returns the directory in which the scheduler has logs now.
fn logs_directory(world: &World) -> PathBuf {
    if world.shared.is_none() {
        return world.scheduler_state().join("logs");
    }
    let mut turns = fs::read_dir(world.scheduler_state().join("log-copies")).expect("a directory");
    turns.next().expect("there is one").expect("a directory").path()
}

/// Submits a job, lets a worker take it, and waits until the scheduler has what that prints first.
async fn begin(client: &Submission, worker: &KeptWorker, hint: &str, said: &str) -> (JobKey, Task) {
    let key = submit(client, hint).await;
    let task = worker.take().await;
    task.write(said);
    let mut tail = LogTail::new(find(client, key).await);
    while tail.position() < i64::try_from(said.len()).expect("it is small") {
        tail.next().await.expect("a part");
    }
    (key, task)
}

async fn logs_go_on(world: &World) {
    let is_shared = world.shared.is_some();
    let uri = world.add_client("alice").await;
    let client: Guest<Submission> = world.open(&uri).await;
    let worker = KeptWorker::enter(world, "w1", b"p1").await;
    let mut begun = Vec::new();
    // The first one is longer than what is copied at once.
    for (name, said) in [("long", 90_000), ("again", 5), ("silent", 0), ("cancelled", 5)] {
        begun.push(begin(&client, &worker, name, &lines(name, 0..said)).await);
    }
    let [(long, long_task), (again, _), (silent, _), (cancelled, _)] =
        <[_; 4]>::try_from(begun).unwrap_or_else(|_| panic!("there are four"));
    world
        .until_archived(lines("long", 0..90_000).len() + lines("again", 0..5).len() + lines("cancelled", 0..5).len())
        .await;
    world.stop().await;
    drop(client);

    world.start().await;
    let client: Guest<Submission> = world.open(&world.here(&uri)).await;
    if is_shared {
        assert_eq!(copied(world), 0);
    }
    // Nobody needs the logs of these two: they end as they are.
    for key in [silent, cancelled] {
        client.cancel(key).await.expect("it is cancelled");
        assert_eq!(find(&client, key).await.result().await, Err(Error::failed("Build cancelled")));
    }
    // Of the others, a worker has one, which it and two clients want at once.
    long_task.write(&lines("long", 90_000..90_100));
    let back = worker.away().enter(world).await;
    let readers = [find(&client, long).await, find(&client, long).await];
    let (first, second, is_wanted) = tokio::join!(readers[0].log(0), readers[1].log(600), back.offer(&long_task));
    assert!(is_wanted);
    assert!(first.expect("a part").bytes.starts_with(b"long 00000000\n"));
    assert!(!second.expect("a part").bytes.is_empty());
    if is_shared {
        // Other logs are where they were.
        assert_eq!(copied(world), 1);
    }
    long_task.write(&lines("long", 90_100..90_200));
    long_task.finish(Ok("fine".into()));
    assert_eq!(readers[0].result().await.expect("it ends well"), "fine");
    // Another it has not: it is begun again.
    let task = back.take().await;
    assert_eq!(task.description, "again".job());
    task.write(&lines("again", 5..10));
    task.finish(Ok("fine".into()));
    assert_eq!(find(&client, again).await.result().await.expect("it ends well"), "fine");

    let note = "\n[worker w1 is lost; the job starts again on w1]\n";
    let logs = [
        (long, lines("long", 0..90_200)),
        (again, lines("again", 0..5) + note + &lines("again", 5..10)),
        (silent, String::new()),
        (cancelled, lines("cancelled", 0..5)),
    ];
    for (key, log) in &logs {
        assert!(whole_log(&find(&client, *key).await).await.expect("a log") == *log);
    }
    world.stop().await;
    drop(client);
    // The next one finds them too, and one that serves again where it did before.
    world.start().await;
    let client: Guest<Submission> = world.open(&world.here(&uri)).await;
    for (key, log) in &logs {
        assert!(whole_log(&find(&client, *key).await).await.expect("a log") == *log);
    }
    if is_shared {
        // Of the silent one there is nothing.
        assert_eq!(copied(world), 3);
    }
    world.stop().await;
    drop(client);
    world.start_with(world.settings()).await;
    if is_shared {
        while copied(world) > 0 {
            tokio::task::yield_now().await;
        }
    }
    let client: Guest<Submission> = world.open(&world.here(&uri)).await;
    assert!(whole_log(&find(&client, long).await).await.expect("a log") == logs[0].1);
}

#[tokio::test]
async fn whoever_reads_a_log_that_was_left_learns_that_it_cannot_be_had() {
    world(async |world| no_log_can_be_had(world).await).await;
}

#[tokio::test]
async fn whoever_reads_a_log_that_another_left_learns_that_it_cannot_be_had() {
    need!(Need::Postgres);
    shared_world(async |world| no_log_can_be_had(world).await).await;
}

async fn no_log_can_be_had(world: &World) {
    let uri = world.add_client("alice").await;
    let client: Guest<Submission> = world.open(&uri).await;
    let worker = KeptWorker::enter(world, "w1", b"p1").await;
    let (on, on_task) = begin(&client, &worker, "on", "one\n").await;
    let (ends, ends_task) = begin(&client, &worker, "ends", "one\n").await;
    world.until_archived(8).await;
    world.stop().await;
    drop(client);

    world.start().await;
    let client: Guest<Submission> = world.open(&world.here(&uri)).await;
    let (directory, away) = (logs_directory(world), world.scheduler_state().join("away"));
    fs::rename(&directory, &away).expect("it is moved");
    let reads_in_vain = async |key| {
        let error = find(&client, key).await.log(0).await.expect_err("there is no directory");
        assert!(error.message.starts_with("the log cannot be read: "), "{error}");
    };
    reads_in_vain(on).await;
    // Their worker brings both jobs back, whose logs are waited for; it leaves, and one of them ends without anybody having had its log.
    let itself = worker.away();
    let back = itself.enter(world).await;
    assert!(back.offer(&on_task).await && back.offer(&ends_task).await);
    reads_in_vain(ends).await;
    let connected = back.leave();
    while client.find(ends).await.expect("it is known").1.state != JobState::Lost("w1".into()) {
        tokio::task::yield_now().await;
    }
    client.cancel(ends).await.expect("it is cancelled");
    assert_eq!(find(&client, ends).await.result().await, Err(Error::failed("Build cancelled")));
    fs::rename(&away, &directory).expect("it is moved back");
    // Whoever waited for its log has had it, or not.
    while ends_task.is_referred_to() {
        tokio::task::yield_now().await;
    }
    assert_eq!(whole_log(&find(&client, ends).await).await.expect("a log"), "one\n");
    drop(connected);
    let back = itself.enter(world).await;
    assert!(back.offer(&on_task).await);
    on_task.write("two\n");
    on_task.finish(Ok("fine".into()));
    assert_eq!(find(&client, on).await.result().await.expect("it ends well"), "fine");
    assert_eq!(whole_log(&find(&client, on).await).await.expect("a log"), "one\ntwo\n");
}

#[tokio::test]
async fn the_log_of_a_job_that_is_forgotten_before_it_is_copied_does_not_pass_for_an_empty_one() {
    need!(Need::Postgres);
    shared_world(async |world| {
        let uri = world.add_client("alice").await;
        let client: Guest<Submission> = world.open(&uri).await;
        let worker = KeptWorker::enter(world, "w1", b"p1").await;
        let (key, task) = begin(&client, &worker, "ends", "one\n").await;
        task.finish(Ok("fine".into()));
        assert_eq!(find(&client, key).await.result().await.expect("it ends well"), "fine");
        world.stop().await;
        drop(client);

        world.start().await;
        let client: Guest<Submission> = world.open(&world.here(&uri)).await;
        let job = find(&client, key).await;
        let shared = world.shared.as_ref().expect("it is shared");
        shared.query("DELETE FROM kiln_jobs").expect("it is forgotten");
        assert_eq!(whole_log(&job).await, Err(Error::failed(format!("there is no job {key} any more"))));
        assert_eq!(copied(world), 0);
    })
    .await;
}

#[tokio::test]
async fn all_logs_are_wanted_at_once_and_some_who_read_hang_up() {
    world(async |world| all_are_wanted_at_once(world).await).await;
}

#[tokio::test]
async fn all_logs_of_another_scheduler_are_wanted_at_once_and_some_who_read_hang_up() {
    need!(Need::Postgres);
    shared_world(async |world| all_are_wanted_at_once(world).await).await;
}

async fn all_are_wanted_at_once(world: &World) {
    const LINES: u32 = 7_000;
    let uri = world.add_client("alice").await;
    let client: Guest<Submission> = world.open(&uri).await;
    let (mut workers, mut begun) = (Vec::new(), Vec::new());
    for name in ["w1", "w2", "w3"] {
        let worker = KeptWorker::enter(world, name, b"p").await;
        for number in 0..4 {
            let hint = format!("{name}-{number}");
            let (key, task) = begin(&client, &worker, &hint, &lines(&hint, 0..LINES)).await;
            begun.push((workers.len(), key, hint, task));
        }
        workers.push(worker);
    }
    world.until_archived(begun.iter().map(|(_, _, hint, _)| lines(hint, 0..LINES).len()).sum()).await;
    world.stop().await;
    drop(client);

    world.start().await;
    let client: Guest<Submission> = world.open(&world.here(&uri)).await;
    let mut back = Vec::new();
    for worker in workers {
        back.push(worker.away().enter(world).await);
    }
    let are_whole = async |client: &Submission| {
        futures::future::join_all(begun.iter().map(async |(_, key, hint, _)| {
            assert!(whole_log(&find(client, *key).await).await.expect("a log") == lines(hint, 0..LINES + 10));
        }))
        .await;
    };
    // More want one than are copied at once. Some go as soon as they have a part of one, and others come at once.
    let mut gone = Vec::new();
    for _ in 0..3 {
        let impatient: Guest<Submission> = world.open(&world.here(&uri)).await;
        let read = async |key| find(&impatient, key).await.log(0).await;
        let mut reading: FuturesUnordered<_> = begun.iter().map(|(_, key, _, _)| read(*key)).collect();
        reading.next().await.expect("there are some").expect("a part");
        drop(reading);
        gone.push(impatient.connection.cut());
    }
    let hang_up = futures::future::join_all(gone);
    let read = are_whole(&client);
    let offer = futures::future::join_all(begun.iter().map(async |(worker, _, hint, task)| {
        assert!(back[*worker].offer(task).await);
        task.write(&lines(hint, LINES..LINES + 10));
        task.finish(Ok("fine".into()));
    }));
    tokio::join!(hang_up, read, offer);
    for (_, key, _, _) in &begun {
        assert_eq!(find(&client, *key).await.result().await.expect("it ends well"), "fine");
    }
    are_whole(&client).await;
    world.stop().await;
    drop(client);
    world.start().await;
    are_whole(&*world.open(&world.here(&uri)).await).await;
}
