//! Builds of one engine share their steps.

use crate::fake::World;

const STEP: &str = "(run (shell step))";

#[tokio::test]
async fn two_builds_share_a_step_and_both_hear_its_whole_log() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(4);
    let one = world.start(world.request(STEP));
    let command = world.command().await;
    let two = world.start(world.request(STEP));
    two.reached(1).await;
    command.end("out\n", 0);
    let heard = [one.heard.clone(), two.heard.clone()];
    assert_eq!(one.end().await.unwrap(), two.end().await.unwrap());
    for heard in heard {
        assert!(heard.lines().contains(&"output 1 out\n".to_owned()), "{:?}", heard.lines());
    }
    world.end().await;
}

#[tokio::test]
async fn a_step_goes_on_when_one_of_two_builds_is_cancelled() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    for cancels_first in [true, false] {
        let mut world = World::new(4);
        let one = world.start(world.request(STEP));
        let command = world.command().await;
        let two = world.start(world.request(STEP));
        two.reached(1).await;
        // The second is surely following before the first leaves: it has been polled since it reached the step.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let (leaves, stays) = if cancels_first { (one, two) } else { (two, one) };
        leaves.cancel.cancel();
        assert_eq!(leaves.end().await.unwrap_err(), "cancelled");
        assert!(!command.killed.is_cancelled());
        command.end("out\n", 0);
        let heard = stays.heard.clone();
        stays.end().await.unwrap();
        assert!(heard.lines().contains(&"saved 1".to_owned()), "{:?}", heard.lines());
        world.end().await;
    }
}

#[tokio::test]
async fn a_step_is_killed_when_the_last_build_leaves() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(4);
    let (one, two) = (world.start(world.request(STEP)), world.start(world.request(STEP)));
    let command = world.command().await;
    one.reached(1).await;
    two.reached(1).await;
    one.cancel.cancel();
    two.cancel.cancel();
    assert_eq!(one.end().await.unwrap_err(), "cancelled");
    assert_eq!(two.end().await.unwrap_err(), "cancelled");
    command.killed.cancelled().await;
    world.end().await;
}

#[tokio::test]
async fn a_step_wanted_again_while_it_is_being_killed_is_made_anew() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(4);
    let one = world.start(world.request(STEP));
    let first = world.command().await;
    one.cancel.cancel();
    let two = world.start(world.request(STEP));
    assert_eq!(one.end().await.unwrap_err(), "cancelled");
    first.killed.cancelled().await;
    world.command().await.end("again\n", 0);
    two.end().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_failed_step_fails_all_who_wait_for_it_and_is_tried_again_by_the_next() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(4);
    let one = world.start(world.request(STEP));
    let command = world.command().await;
    let two = world.start(world.request(STEP));
    two.reached(1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    command.end("why\n", 3);
    for build in [one, two] {
        let heard = build.heard.clone();
        assert_eq!(build.end().await.unwrap_err(), "step `/: (run (shell step))` exited with status 3");
        assert!(heard.lines().contains(&"failed 1 Code(3)".to_owned()), "{:?}", heard.lines());
    }
    let again = world.start(world.request(STEP));
    world.command().await.end("", 0);
    again.end().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_there_are_jobs() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(2);
    let builds: Vec<_> = (0..5).map(|at| world.start(world.request(&format!("(run (shell {at}))")))).collect();
    let mut running = vec![world.command().await, world.command().await];
    for _ in 2..5 {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(world.commands.try_recv().is_err(), "three steps at once");
        running.remove(0).end("", 0);
        running.push(world.command().await);
    }
    running.into_iter().for_each(|command| command.end("", 0));
    for build in builds {
        build.end().await.unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn steps_are_told_in_the_order_of_the_spec_and_found_the_next_time() {
    kiln_testkit::need!(kiln_testkit::Need::Root);
    let mut world = World::new(1);
    let spec = "(run (shell a)) (comment x) (run (shell b))";
    let first = world.start(world.request(spec));
    for text in ["a", "b"] {
        let command = world.command().await;
        assert_eq!(command.text, text);
        command.end(text, 0);
    }
    let heard = first.heard.clone();
    let id = first.end().await.unwrap();
    let told = ["started 0", "saved 0", "started 1", "output 1 a", "saved 1", "started 3", "output 3 b", "saved 3"];
    assert_eq!(heard.lines(), told);
    let second = world.start(world.request(spec));
    let heard = second.heard.clone();
    assert_eq!(second.end().await.unwrap(), id);
    assert_eq!(heard.lines(), told.map(|line| line.replace("saved", "cached")));
    world.end().await;
}
