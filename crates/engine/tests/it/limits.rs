//! Limits that the engine itself keeps: time and log.

use std::time::Duration;

use kiln_engine::Isolation;

use crate::fake::World;

fn isolation(set: impl FnOnce(&mut Isolation)) -> Isolation {
    let mut isolation = Isolation::default();
    set(&mut isolation);
    isolation
}

const STEP: &str = "(run (shell step))";

#[tokio::test]
async fn a_step_that_takes_too_long_is_killed_and_fails() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::isolated(1, isolation(|isolation| isolation.timeout = Some(Duration::from_millis(1))));
    let build = world.start(world.request(STEP));
    let command = world.command().await;
    command.killed.cancelled().await;
    drop(command);
    let heard = build.heard.clone();
    assert_eq!(build.end().await.unwrap_err(), "step `/: (run (shell step))` was killed: ran longer than 1ms");
    assert!(heard.lines().contains(&"failed 1 Signal(9)".to_owned()), "{:?}", heard.lines());
    world.end().await;
}

#[tokio::test]
async fn time_in_which_a_step_waits_for_its_turn_does_not_count() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let timeout = Duration::from_secs(3);
    let mut world = World::isolated(1, isolation(|isolation| isolation.timeout = Some(timeout)));
    let one = world.start(world.request("(run (shell one))"));
    let first = world.command().await;
    let two = world.start(world.request("(run (shell two))"));
    two.reached(1).await;
    // All the time that a step may have has passed then.
    first.killed.cancelled().await;
    drop(first);
    one.end().await.unwrap_err();
    world.command().await.end("", 0);
    two.end().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_step_that_writes_too_much_is_killed_and_its_log_is_cut() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::isolated(1, isolation(|isolation| isolation.log_limit_bytes = Some(1 << 10)));
    let build = world.start(world.request(STEP));
    let command = world.command().await;
    command.write(&"x".repeat(1 << 10));
    command.killed.cancelled().await;
    drop(command);
    let heard = build.heard.clone();
    assert_eq!(build.end().await.unwrap_err(), "step `/: (run (shell step))` was killed: the log reached 1 KiB");
    let written: usize =
        heard.lines().iter().filter_map(|line| line.strip_prefix("output 1 ")).map(|text| text.len()).sum();
    assert_eq!(written, 1 << 10);
    world.end().await;
}

#[tokio::test]
async fn who_ends_with_too_much_in_the_pipe_has_failed_all_the_same() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::isolated(1, isolation(|isolation| isolation.log_limit_bytes = Some(1 << 10)));
    let build = world.start(world.request(STEP));
    world.command().await.end(&"x".repeat(2 << 10), 0);
    assert_eq!(build.end().await.unwrap_err(), "step `/: (run (shell step))` was killed: the log reached 1 KiB");
    world.end().await;
}

#[tokio::test]
async fn a_cancelled_step_is_cancelled_and_no_failure() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::isolated(1, isolation(|isolation| isolation.timeout = Some(Duration::from_secs(3600))));
    let build = world.start(world.request(STEP));
    let command = world.command().await;
    build.cancel.cancel();
    command.killed.cancelled().await;
    drop(command);
    assert_eq!(build.end().await.unwrap_err(), "cancelled");
    world.end().await;
}
