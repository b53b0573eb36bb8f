//! Examples of what a pool does, read as stories.

use insta::assert_snapshot;

use super::super::{Cancelled, Effect, End, ForgetError, Gauges, Pool, Request, Saved, UnknownWorker, WorkerInfo};
use super::{at, b, pop, started, submit, worker};

fn show(pool: &Pool, now: u64) -> String {
    pool.show(at(now)).to_string()
}

/// Checks that nothing is held, after every worker has left. Totals are not held.
fn assert_nothing_is_left(pool: &Pool) {
    let totals = pool.gauges();
    let empty = Gauges {
        submitted_total: totals.submitted_total,
        cancelled_total: totals.cancelled_total,
        accepted_total: totals.accepted_total,
        ..Gauges::default()
    };
    assert_eq!(totals, empty);
    assert_eq!(pool.client_jobs().count(), 0);
    assert_eq!(pool.worker_queues().count(), 0);
    pool.check();
}

#[test]
fn jobs_go_to_the_worker_that_waited_longest_and_then_to_the_backlog() {
    let mut pool = Pool::new("p");
    let (w1, w2) = (worker(&mut pool, 0, "w1"), worker(&mut pool, 0, "w2"));
    assert_eq!((pop(&mut pool, 0, w1), pop(&mut pool, 0, w2)), (None, None));
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (ready) [w2 w1]
    registered:
      w1 (0): [] (0 running)
      w2 (0): [] (0 running)
    disconnected:
    clients: 
    ");
    let jobs = ["u:a", "u:b", "u:c"].map(|job| submit(&mut pool, 0, job));
    assert_eq!(started(&mut pool), [(w1, jobs[0]), (w2, jobs[1])]);
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (backlog) [u:c@10m]
    registered:
      w1 (0): [] (1 running)
      w2 (0): [] (1 running)
    disconnected:
    clients: u(1)+20m
    ");
    pool.finished(at(5), jobs[0], End::Finished);
    assert_eq!(pool.take_effects(), [Effect::Running { worker: w1, jobs: 0 }]);
    assert_eq!(pop(&mut pool, 5, w1), Some(jobs[2]));
    jobs.iter().for_each(|&job| pool.finished(at(5), job, End::Finished));
    [w1, w2].iter().for_each(|&worker| pool.unregister(at(5), worker));
    assert_nothing_is_left(&pool);
}

#[test]
fn a_job_goes_where_its_hint_ran_before() {
    let mut pool = Pool::new("p");
    let (w1, w2) = (worker(&mut pool, 0, "w1"), worker(&mut pool, 0, "w2"));
    pool.set_rate(b("u"), 2.0).unwrap();
    assert_eq!((pop(&mut pool, 0, w1), pop(&mut pool, 0, w2)), (None, None));
    let jobs = ["u:a", "u:b", "u:a", "u:a", "u:c"].map(|job| submit(&mut pool, 0, job));
    assert_eq!(
        pool.take_effects(),
        [
            Effect::SaveHint { hint: "a".into(), worker: "w1".into() },
            Effect::Start { worker: w1, job: jobs[0] },
            Effect::SaveHint { hint: "b".into(), worker: "w2".into() },
            Effect::Start { worker: w2, job: jobs[1] },
        ]
    );
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (backlog) [u:c@5m u:a@5m u:a@5m]
    registered:
      w1 (0): [] (1 running)
      w2 (0): [] (1 running)
    disconnected:
    clients: u(2)+10m
    ");
    // The next two are w1's, whose cache they need, though w2 asks.
    assert_eq!(pop(&mut pool, 0, w2), Some(jobs[4]));
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (backlog) []
    registered:
      w1 (20): [u:a@0s(10) u:a@0s(10)] (1 running)
      w2 (0): [] (2 running)
    disconnected:
    clients: u(2)+5m
    ");
    // w1 leaves, and gives them back.
    assert_eq!(pop(&mut pool, 0, w2), None);
    pool.unregister(at(0), w1);
    assert_eq!(
        pool.take_effects(),
        [
            Effect::SaveHint { hint: "a".into(), worker: "w2".into() },
            Effect::Start { worker: w2, job: jobs[2] },
            Effect::Lost { job: jobs[0] },
        ]
    );
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 1
    queue: (backlog) [u:a@5m]
    registered:
      w2 (0): [] (3 running)
    disconnected:
      w1
    clients: u(2)+5m
    ");
    assert_eq!(pop(&mut pool, 0, w2), Some(jobs[3]));
    jobs.iter().for_each(|&job| pool.finished(at(0), job, End::Finished));
    pool.unregister(at(0), w2);
    assert_nothing_is_left(&pool);
}

#[test]
fn a_lost_job_is_started_elsewhere_in_its_turn() {
    let mut pool = Pool::new("p");
    let w1 = worker(&mut pool, 0, "w1");
    let first = submit(&mut pool, 0, "u:");
    let second = submit(&mut pool, 0, "u:");
    assert_eq!(pop(&mut pool, 0, w1), Some(first));
    pool.unregister(at(1), w1);
    assert_eq!(pool.take_effects(), [Effect::Lost { job: first }]);
    assert!(pool.requeue(at(1), first));
    let w2 = worker(&mut pool, 1, "w2");
    assert_eq!(pop(&mut pool, 1, w2), Some(first));
    // The answer did not arrive; another pop gets it.
    assert!(pool.requeue(at(1), first));
    assert_eq!(pop(&mut pool, 1, w2), Some(first));
    assert_eq!(pop(&mut pool, 1, w2), Some(second));
    pool.unregister(at(1), w2);
    // One is given up, as its client cancels it; the other by the server.
    assert_eq!(pool.cancel(first), Cancelled::Lost);
    pool.finished(at(1), second, End::Cancelled);
    assert!(!pool.requeue(at(1), second));
    assert_nothing_is_left(&pool);
}

#[test]
fn urgent_jobs_go_first_also_in_a_workers_queue() {
    let mut pool = Pool::new("p");
    let jobs = ["u:a", "u:a!", "u:a!", "u:b"].map(|job| submit(&mut pool, 0, job));
    let w1 = worker(&mut pool, 0, "w1");
    assert_eq!(pop(&mut pool, 0, w1), Some(jobs[1]));
    let w2 = worker(&mut pool, 0, "w2");
    assert_eq!(pop(&mut pool, 0, w2), Some(jobs[3]));
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (backlog) []
    registered:
      w1 (20): [u:a@0s(10) u:a@0s(10+urgent)] (1 running)
      w2 (0): [] (1 running)
    disconnected:
    clients: u(1)+10m
    ");
    pool.unregister(at(0), w1);
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 1
    queue: (backlog) [u:a@10m u:a@10m+urgent]
    registered:
      w2 (0): [] (1 running)
    disconnected:
      w1
    clients: u(1)+10m
    ");
    let late = submit(&mut pool, 0, "u:b!");
    assert_eq!([0; 3].map(|_| pop(&mut pool, 0, w2)), [Some(jobs[2]), Some(late), Some(jobs[0])]);
    jobs.iter().chain([&late]).for_each(|&job| pool.finished(at(0), job, End::Finished));
    pool.unregister(at(0), w2);
    assert_nothing_is_left(&pool);
}

#[test]
fn clients_share_by_their_rates() {
    let mut pool = Pool::new("p");
    pool.set_rate(b("alice"), 5.0).unwrap();
    let alice = [0; 3].map(|_| submit(&mut pool, 0, "alice:"));
    let bob = [0; 3].map(|_| submit(&mut pool, 0, "bob:"));
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 0
    queue: (backlog) [bob:@20m bob:@10m alice:@4m alice:@2m bob:@0s alice:@0s]
    registered:
    disconnected:
    clients: alice(5)+6m bob(1)+30m
    ");
    let w = worker(&mut pool, 0, "w");
    let order = [alice[0], bob[0], alice[1], alice[2], bob[1], bob[2]];
    assert_eq!([0; 6].map(|_| pop(&mut pool, 0, w)), order.map(Some));
    order.iter().for_each(|&job| pool.finished(at(0), job, End::Finished));
    pool.unregister(at(0), w);
    assert_nothing_is_left(&pool);
}

#[test]
fn what_was_not_used_is_given_back() {
    let mut pool = Pool::new("p");
    let first = submit(&mut pool, 0, "u:");
    let second = submit(&mut pool, 0, "u:");
    let third = submit(&mut pool, 0, "u:");
    assert_eq!(pool.cancel(second), Cancelled::Queued);
    assert_eq!(pool.cancel(second), Cancelled::Unknown);
    assert!(show(&pool, 0).contains("clients: u(1)+20m"));
    // Of 600 s, a quarter was used.
    let w = worker(&mut pool, 0, "w");
    assert_eq!(pop(&mut pool, 0, w), Some(first));
    assert_eq!(pool.cancel(first), Cancelled::Running(w));
    pool.finished(at(150), first, End::Cancelled);
    // 1200 s - 450 s
    assert!(show(&pool, 150).contains("clients: u(1)+12m"), "{}", show(&pool, 150));
    // What was not used of long ago is gone.
    assert_eq!(pool.cancel(third), Cancelled::Queued);
    let last = submit(&mut pool, 9000, "u:");
    assert!(show(&pool, 9000).contains("[u:@0s]"));
    assert_eq!(pool.cancel(last), Cancelled::Queued);
    pool.unregister(at(9000), w);
    assert_eq!(pool.gauges().cancelled_total, 3);
    assert_nothing_is_left(&pool);
}

#[test]
fn what_jobs_cost_is_learned_from_what_they_took() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    for (now, took) in [(0, 100), (1000, 40), (2000, 80)] {
        let job = submit(&mut pool, now, "u:h");
        assert_eq!(pop(&mut pool, now, w), Some(job));
        pool.finished(at(now + took), job, End::Finished);
    }
    // Here it ran first for 40 s and then for 80 s: 40 + (80 - 40) / 4.
    let jobs = [0; 6].map(|_| submit(&mut pool, 3000, "u:h"));
    let shown = show(&pool, 3000);
    assert!(shown.contains(" u:h@3m u:h@2m u:h@100s u:h@50s u:h@0s]"), "{shown}");
    // Elsewhere it is expected to take 100 s. A queue of 200 s is worth the wait, one of 250 s is not.
    let v = worker(&mut pool, 3000, "v");
    assert_eq!(pop(&mut pool, 3000, v), Some(jobs[5]));
    let shown = show(&pool, 3000);
    assert!(shown.contains("w (250): [u:h@0s(50) "), "{shown}");
    // What jobs of other hints took is the best guess for one that is not known.
    let other = submit(&mut pool, 3000, "u:other");
    assert!(show(&pool, 3000).contains("queue: (backlog) [u:other@100s]"));
    assert!(show(&pool, 3000).ends_with("clients: u(1)+3m\n"), "{}", show(&pool, 3000));
    pool.cancel(other);
    pool.finished(at(3000), jobs[5], End::Cancelled);
    jobs[..5].iter().for_each(|&job| assert_eq!(pool.cancel(job), Cancelled::Queued));
    [v, w].iter().for_each(|&worker| pool.unregister(at(3000), worker));
    assert_nothing_is_left(&pool);
}

#[test]
fn a_long_queue_is_not_worth_the_wait() {
    // Elsewhere a job takes 100 s: more than twice that of jobs of 10 s each, which two at once do in half the time.
    for (capacity, queued) in [(1, 21), (2, 41)] {
        let mut pool = Pool::new("p");
        let w1 = pool.register(b("w1"), capacity).unwrap();
        pool.set_active(at(0), w1, true);
        for (now, took) in [(0, 100), (200, 10)] {
            let job = submit(&mut pool, now, "u:h");
            assert_eq!(pop(&mut pool, now, w1), Some(job));
            pool.finished(at(now + took), job, End::Finished);
        }
        (0..50).for_each(|_| _ = submit(&mut pool, 300, "u:h"));
        let w2 = worker(&mut pool, 300, "w2");
        assert!(pop(&mut pool, 300, w2).is_some());
        assert!(show(&pool, 300).contains(&format!("w1 ({queued}0): [")), "{}", show(&pool, 300));
        assert_eq!(pool.gauges().backlog.low, 50 - queued - 1);
    }
}

#[test]
fn a_job_does_not_wait_for_ever_for_a_worker_that_is_stuck() {
    let mut pool = Pool::new("p");
    let w1 = worker(&mut pool, 0, "w1");
    let stuck = submit(&mut pool, 0, "u:h");
    assert_eq!(pop(&mut pool, 0, w1), Some(stuck));
    let w2 = worker(&mut pool, 0, "w2");
    assert_eq!(pop(&mut pool, 0, w2), None);
    let waiting = submit(&mut pool, 10, "u:h");
    assert_eq!((started(&mut pool), pool.gauges().assigned.low), (vec![], 1));
    assert_eq!(pool.next_tick(), Some(at(2410)));
    pool.tick(at(2409));
    assert_eq!(started(&mut pool), []);
    pool.tick(at(2410));
    assert_eq!((started(&mut pool), pool.next_tick()), (vec![(w2, waiting)], None));
}

#[test]
fn a_job_does_not_wait_for_ever_for_a_worker_that_comes_and_goes() {
    let mut pool = Pool::new("p");
    let mut w1 = worker(&mut pool, 0, "w1");
    let lost = submit(&mut pool, 0, "u:h");
    assert_eq!(pop(&mut pool, 0, w1), Some(lost));
    let w2 = worker(&mut pool, 0, "w2");
    assert_eq!(pop(&mut pool, 0, w2), None);
    let waiting = submit(&mut pool, 0, "u:h");
    for now in [1000, 2000] {
        // It is back before w2 asks again.
        pool.give_up_pop(w2);
        pool.unregister(at(now), w1);
        w1 = worker(&mut pool, now, "w1");
        assert_eq!((pop(&mut pool, now, w2), pool.gauges().assigned.low), (None, 1));
    }
    pool.tick(at(2400));
    assert_eq!(started(&mut pool), [(w2, waiting)]);
}

#[test]
fn a_job_that_waited_for_a_stuck_worker_is_not_overtaken_for_ever_in_a_full_pool() {
    let mut pool = Pool::new("p");
    let w1 = worker(&mut pool, 0, "w1");
    let stuck = submit(&mut pool, 0, "u:h");
    assert_eq!(pop(&mut pool, 0, w1), Some(stuck));
    let waiting = submit(&mut pool, 0, "u:h");
    let w2 = worker(&mut pool, 0, "w2");
    let mut now = 0;
    loop {
        submit(&mut pool, now, "v:");
        submit(&mut pool, now, "v:");
        let job = pop(&mut pool, now, w2).expect("there are more jobs than are done");
        if job == waiting {
            break;
        }
        now += 100;
        pool.finished(at(now), job, End::Finished);
        assert!(now < 13_000, "still waiting");
    }
}

#[test]
fn of_a_hint_that_everyone_ran_jobs_go_to_whoever_is_free() {
    let mut pool = Pool::new("p");
    let workers: Vec<_> = (0..66).map(|number| worker(&mut pool, 0, &format!("w{number:02}"))).collect();
    for &worker in &workers {
        submit(&mut pool, 0, "u:h!");
        // The others are paused, so that each gets one.
        workers.iter().for_each(|&other| pool.set_active(at(0), other, other == worker));
        assert!(pop(&mut pool, 0, worker).is_some());
    }
    workers.iter().for_each(|&worker| pool.set_active(at(0), worker, true));
    // w00 is one of those that are no longer remembered. The others are busy.
    let jobs = [0; 2].map(|_| submit(&mut pool, 0, "u:h"));
    assert_eq!(pop(&mut pool, 0, workers[0]), Some(jobs[0]));
    assert_eq!((pool.gauges().backlog.low, pool.gauges().assigned.low), (1, 0));
    pool.cancel(jobs[1]);
    // If one of those that ran it is free, it gets the next one, before others that are free.
    let fresh = worker(&mut pool, 0, "fresh");
    assert_eq!((pop(&mut pool, 0, fresh), pop(&mut pool, 0, workers[65])), (None, None));
    let job = submit(&mut pool, 0, "u:h");
    assert_eq!(started(&mut pool), [(workers[65], job)]);
    pool.check();
}

#[test]
fn pauses_have_three_reasons_and_an_administrators_outlasts_the_connection() {
    let mut pool = Pool::new("p");
    let line = |pool: &Pool| show(pool, 0).lines().nth(3).unwrap_or_default().trim().to_owned();
    let w = pool.register(b("w"), 1).unwrap();
    assert_eq!(pool.take_effects(), [Effect::SaveWorker { worker: "w".into(), paused: false }]);
    assert_eq!(line(&pool), "w (0): (inactive: worker pause) (0 running)");
    pool.set_paused(at(0), b("w"), true, false).unwrap();
    assert_eq!(pool.take_effects(), [Effect::SaveWorker { worker: "w".into(), paused: true }]);
    pool.set_leaving(at(0), w, true);
    assert_eq!(line(&pool), "w (0): (inactive: worker pause, admin pause, shutting down) (0 running)");
    pool.set_active(at(0), w, true);
    assert_eq!(line(&pool), "w (0): (inactive: admin pause, shutting down) (0 running)");
    let job = submit(&mut pool, 0, "u:");
    assert_eq!(pop(&mut pool, 0, w), None);
    pool.unregister(at(0), w);
    assert_eq!(show(&pool, 0).lines().nth(4), Some("  w (paused)"));
    let w = worker(&mut pool, 0, "w");
    assert_eq!(pop(&mut pool, 0, w), None);
    assert_eq!(line(&pool), "w (0): (inactive: admin pause) (0 running)");
    // Its pop has been waiting.
    pool.set_paused(at(0), b("w"), false, false).unwrap();
    assert_eq!(started(&mut pool), [(w, job)]);
    pool.finished(at(0), job, End::Finished);
    pool.unregister(at(0), w);
    assert_nothing_is_left(&pool);
}

#[test]
fn a_paused_workers_queue_goes_to_others() {
    let mut pool = Pool::new("p");
    let (w1, w2) = (worker(&mut pool, 0, "w1"), worker(&mut pool, 0, "w2"));
    let first = submit(&mut pool, 0, "u:a");
    assert_eq!((pop(&mut pool, 0, w1), pop(&mut pool, 0, w2)), (Some(first), None));
    let second = submit(&mut pool, 0, "u:a");
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (ready) [w2]
    registered:
      w1 (10): [u:a@0s(10)] (1 running)
      w2 (0): [] (0 running)
    disconnected:
    clients: u(1)+10s
    ");
    pool.set_active(at(0), w1, false);
    assert_eq!(started(&mut pool), [(w2, second)]);
    let third = submit(&mut pool, 0, "u:a");
    pool.set_active(at(0), w2, false);
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 2
    queue: (backlog) [u:a@10m]
    registered:
      w1 (0): (inactive: worker pause) (1 running)
      w2 (0): (inactive: worker pause) (1 running)
    disconnected:
    clients: u(1)+10m
    ");
    pool.set_active(at(0), w2, true);
    assert_eq!(pop(&mut pool, 0, w2), Some(third));
    [w1, w2].iter().for_each(|&worker| pool.unregister(at(0), worker));
    [first, second, third].iter().for_each(|&job| pool.finished(at(0), job, End::Cancelled));
    assert_nothing_is_left(&pool);
}

#[test]
fn a_pop_that_is_given_up_gets_nothing() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    assert_eq!((pop(&mut pool, 0, w), pop(&mut pool, 0, w)), (None, None));
    assert_eq!(pool.gauges().ready, 2);
    pool.give_up_pop(w);
    let jobs = [0; 2].map(|_| submit(&mut pool, 0, "u:"));
    assert_eq!(started(&mut pool), [(w, jobs[0])]);
    pool.give_up_pop(w);
    assert_eq!(pop(&mut pool, 0, w), Some(jobs[1]));
}

#[test]
fn workers_are_known_until_they_are_forgotten() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    assert!(pool.register(b("w"), 1).is_err_and(|error| error.to_string() == "Worker already registered!"));
    assert_eq!(pool.set_paused(at(0), b("ghost"), true, false), Err(UnknownWorker));
    pool.set_paused(at(0), b("ghost"), true, true).unwrap();
    let info = |name: &str, active, connected| WorkerInfo { name: name.into(), active, connected };
    assert_eq!(pool.workers().collect::<Vec<_>>(), [info("ghost", false, false), info("w", true, true)]);
    let error = pool.forget(b("w")).unwrap_err();
    assert_eq!(error.to_string(), "Worker \"w\" is still connected!");
    assert_eq!(pool.forget(b("nobody")), Err(ForgetError::Unknown));
    pool.unregister(at(0), w);
    let _ = pool.take_effects();
    pool.forget(b("ghost")).unwrap();
    assert_eq!(pool.take_effects(), [Effect::ForgetWorker { worker: "ghost".into() }]);
    assert_eq!(pool.workers().collect::<Vec<_>>(), [info("w", true, false)]);
}

#[test]
fn a_pool_begins_with_what_was_saved() {
    let saved = Saved {
        workers: vec![("w1".into(), false), ("w2".into(), true)],
        hints: vec![("a".into(), "w1".into()), ("".into(), "w1".into())],
        rates: vec![("bob".into(), 2.0), ("eve".into(), f64::NAN)],
    };
    let mut pool = Pool::restore("p", &saved);
    assert_eq!(pool.take_effects(), []);
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 0
    queue: (backlog) []
    registered:
    disconnected:
      w1
      w2 (paused)
    clients: 
    ");
    let (w3, w1) = (worker(&mut pool, 0, "w3"), worker(&mut pool, 0, "w1"));
    assert_eq!((pop(&mut pool, 0, w3), pop(&mut pool, 0, w1)), (None, None));
    let job = submit(&mut pool, 0, "bob:a");
    assert_eq!(started(&mut pool), [(w1, job)]);
    assert!(show(&pool, 0).ends_with("clients: bob(2)+5s\n"));
}

#[test]
fn a_client_that_is_removed_is_forgotten_with_its_last_job() {
    let mut pool = Pool::new("p");
    let job = submit(&mut pool, 0, "u:");
    pool.remove_client(b("u"));
    assert_eq!(pool.take_effects(), [Effect::SaveRate { client: "u".into(), rate: None }]);
    assert!(show(&pool, 0).ends_with("clients: \n"));
    assert_eq!(pool.client_jobs().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["u"]);
    pool.cancel(job);
    assert_eq!(pool.clients.iter().count(), 0);
    for rate in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(pool.set_rate(b("u"), rate).is_err());
    }
}

#[test]
fn hints_that_nobody_uses_are_forgotten_the_oldest_first() {
    let mut pool = Pool::new("p");
    pool.hints.most_unused = 4;
    let kept = submit(&mut pool, 0, "u:kept");
    for hint in ["1", "2", "3", "4", "2", "5"] {
        let job = submit(&mut pool, 0, &format!("u:{hint}"));
        pool.cancel(job);
    }
    let hints: Vec<_> = pool.hints.names.iter().map(|(name, ..)| name.to_string()).collect();
    assert_eq!(hints, ["2", "3", "4", "5", "kept"]);
    pool.cancel(kept);
}

/// Returns the text of `show` in what a scheduler of OCluster's sent.
fn recorded(bytes: &[u8]) -> String {
    let text = bytes.windows(9).position(|window| window == b"capacity:").map(|start| &bytes[start..]);
    let text = text.expect("the recording has an answer to show");
    let end = text.iter().position(|&byte| byte == 0).expect("texts end with a zero");
    String::from_utf8(text[..end].to_vec()).expect("ASCII")
}

#[test]
fn what_is_shown_is_what_oclusters_scheduler_showed() {
    let mut pool = Pool::new("linux-x86_64");
    let w1 = pool.register(b("w1"), 2).unwrap();
    pool.set_active(at(0), w1, true);
    pool.pop(at(0), w1);
    assert_eq!(show(&pool, 0), recorded(include_bytes!("../../../tests/vectors/admin-show-pool.s2c")));
    pool.set_rate(b("bob"), 2.0).unwrap();
    pool.set_paused(at(0), b("w1"), true, false).unwrap();
    assert_eq!(show(&pool, 0), recorded(include_bytes!("../../../tests/vectors/admin-show-paused.s2c")));
    pool.set_paused(at(0), b("w1"), false, false).unwrap();
    pool.set_paused(at(0), b("ghost"), true, true).unwrap();
    assert_eq!(show(&pool, 0), recorded(include_bytes!("../../../tests/vectors/admin-show-ghost.s2c")));
    pool.forget(b("ghost")).unwrap();

    let mut pool = Pool::new("linux-arm64");
    let w1 = worker(&mut pool, 0, "w1");
    let before = submit(&mut pool, 0, "alice:");
    assert_eq!(pop(&mut pool, 0, w1), Some(before));
    pool.finished(at(1), before, End::Finished);
    pool.unregister(at(1), w1);
    pool.forget(b("w1")).unwrap();
    let job = submit(&mut pool, 572, "alice:hq");
    // OCluster has charged 600 s for the job before; ours knows that it took one.
    let theirs = recorded(include_bytes!("../../../tests/vectors/submit-queued-released-2.s2c"));
    assert_eq!(show(&pool, 572), theirs.replace("@28s", "@0s"));
    // It keeps the charge: `clients: alice(1)+10m`. Ours has not charged what has not begun.
    pool.cancel(job);
    let theirs = recorded(include_bytes!("../../../tests/vectors/submit-queued-released-3.s2c"));
    assert_eq!(show(&pool, 572), theirs.replace("+10m", ""));
}

#[test]
fn lines_are_filled_and_continued_below_their_list() {
    let mut pool = Pool::new("p");
    for name in [
        "base-image-builder",
        "docs.ci",
        "mirage-ci",
        "mirage-deployer",
        "multicore-ci",
        "mtelvers",
        "ocaml-ci",
        "ocurrent-deployer",
    ] {
        pool.set_rate(b(name), 900.0).unwrap();
    }
    let workers = ["toxis.caelum.ci.dev", "doris.caelum.ci.dev", "clete.caelum.ci.dev", "eumache"];
    for name in workers {
        let worker = worker(&mut pool, 0, name);
        pool.pop(at(0), worker);
    }
    let first = submit(&mut pool, 0, "ocaml-ci:h");
    for _ in 0..6 {
        submit(&mut pool, 0, "ocaml-ci:h");
    }
    assert_snapshot!(show(&pool, 0), @r"
    capacity: 4
    queue: (ready) [eumache clete.caelum.ci.dev doris.caelum.ci.dev]
    registered:
      clete.caelum.ci.dev (0): [] (0 running)
      doris.caelum.ci.dev (0): [] (0 running)
      eumache (0): [] (0 running)
      toxis.caelum.ci.dev (60): [ocaml-ci:h@0s(10) ocaml-ci:h@0s(10)
                                 ocaml-ci:h@0s(10) ocaml-ci:h@0s(10)
                                 ocaml-ci:h@0s(10) ocaml-ci:h@0s(10)] (1 running)
    disconnected:
    clients: base-image-builder(900) docs.ci(900) mirage-ci(900)
             mirage-deployer(900) mtelvers(900) multicore-ci(900)
             ocaml-ci(900)+0s ocurrent-deployer(900)
    ");
    pool.finished(at(0), first, End::Finished);
    let toxis = pool.connected(b("toxis.caelum.ci.dev")).unwrap();
    for _ in 0..3 {
        pool.pop(at(0), toxis);
    }
    for _ in 0..3 {
        pool.pop(at(0), toxis);
    }
    pool.pop(at(0), toxis);
    assert_eq!(
        show(&pool, 0).lines().skip(1).take(2).collect::<Vec<_>>(),
        ["queue: (ready) [toxis.caelum.ci.dev eumache clete.caelum.ci.dev", "       doris.caelum.ci.dev]"]
    );
}

#[test]
fn much_is_shown_in_part() {
    let mut pool = Pool::new("p");
    for _ in 0..1003 {
        submit(&mut pool, 0, "u:");
    }
    let shown = show(&pool, 0);
    assert_eq!(shown.matches("u:@").count(), 1000);
    assert!(shown.contains("queue: (backlog) [… and 3 more u:@"), "{shown}");
    assert!(shown.contains("u:@0s]\n"), "{shown}");
}

#[test]
fn a_client_pays_for_what_its_jobs_took() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    let mut now = 0;
    // All are there from the beginning, and nobody knows that those of `short` take a tenth of the time.
    for _ in 0..400 {
        submit(&mut pool, 0, "short:");
        submit(&mut pool, 0, "long:");
    }
    let mut given = [0, 0];
    for _ in 0..300 {
        let job = pop(&mut pool, now, w).expect("there are more");
        let is_long = usize::try_from(job.0 % 2).expect("0 or 1");
        let took = [100, 1000][is_long];
        (now, given[is_long]) = (now + took, given[is_long] + took);
        pool.finished(at(now), job, End::Finished);
    }
    assert!(given[0].abs_diff(given[1]) <= 1000, "{given:?}");
}

#[test]
fn who_had_the_pool_alone_does_not_pay_for_that_later() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    for now in 0..100 {
        let job = submit(&mut pool, now * 1000, "first:");
        assert_eq!(pop(&mut pool, now * 1000, w), Some(job));
        pool.finished(at(now * 1000 + 1000), job, End::Finished);
    }
    let jobs = ["first:", "first:", "second:", "second:"].map(|job| submit(&mut pool, 100_000, job));
    let order = [0; 4].map(|_| pop(&mut pool, 100_000, w).expect("there is one"));
    assert_eq!(order, [jobs[0], jobs[2], jobs[1], jobs[3]]);
}

#[test]
fn what_was_given_up_is_not_got_back() {
    let mut pool = Pool::new("p");
    let (w, v) = (worker(&mut pool, 0, "w"), worker(&mut pool, 0, "v"));
    // Charged 600 s.
    let early = submit(&mut pool, 0, "idle:");
    assert_eq!(pop(&mut pool, 0, w), Some(early));
    // Long after that, it has nothing to spare that the others have not.
    let others = [0; 3].map(|_| submit(&mut pool, 50_000, "busy:"));
    assert_eq!(pop(&mut pool, 50_000, v), Some(others[0]));
    let late = [0; 2].map(|_| submit(&mut pool, 50_000, "idle:"));
    pool.unregister(at(50_000), w);
    assert_eq!(pool.cancel(early), Cancelled::Lost);
    let order = [0; 4].map(|_| pop(&mut pool, 50_000, v).expect("there is one"));
    assert_eq!(order, [late[0], others[1], late[1], others[2]]);
}

#[test]
fn urgent_jobs_of_the_backlog_go_before_a_workers_own() {
    let mut pool = Pool::new("p");
    let (w, v) = (worker(&mut pool, 0, "w"), worker(&mut pool, 0, "v"));
    let first = submit(&mut pool, 0, "u:h");
    assert_eq!((pop(&mut pool, 0, w), pop(&mut pool, 0, v)), (Some(first), None));
    let own = submit(&mut pool, 0, "u:h");
    assert_eq!(pool.gauges().assigned.low, 1);
    pool.give_up_pop(v);
    let urgent = submit(&mut pool, 0, "u:!");
    assert_eq!([0; 2].map(|_| pop(&mut pool, 0, w)), [Some(urgent), Some(own)]);
}

#[test]
fn a_rate_of_next_to_nothing_spoils_nobody_elses_share() {
    let mut pool = Pool::new("p");
    let w = worker(&mut pool, 0, "w");
    pool.set_rate(b("slow"), 1e-300).unwrap();
    for _ in 0..3 {
        let job = submit(&mut pool, 0, "slow:");
        assert_eq!(pop(&mut pool, 0, w), Some(job));
        pool.finished(at(0), job, End::Finished);
    }
    pool.set_rate(b("alice"), 2.0).unwrap();
    let bob = [0; 3].map(|_| submit(&mut pool, 0, "bob:"));
    let alice = [0; 3].map(|_| submit(&mut pool, 0, "alice:"));
    let order = [0; 4].map(|_| pop(&mut pool, 0, w).expect("there is one"));
    assert_eq!(order, [bob[0], alice[0], alice[1], bob[1]]);
}

#[test]
fn a_job_that_a_worker_brings_back_leaves_its_line_and_is_charged() {
    let mut pool = Pool::new("p");
    let (w, v) = (worker(&mut pool, 0, "w"), worker(&mut pool, 0, "v"));
    let alice = [0; 2].map(|_| submit(&mut pool, 0, "alice:"));
    let bob = [0; 2].map(|_| submit(&mut pool, 0, "bob:"));
    let _ = pool.take_effects();
    assert!(pool.resume(at(0), alice[1], w));
    assert!(!pool.resume(at(0), alice[1], v), "it runs elsewhere");
    assert_eq!(pool.take_effects(), [Effect::Running { worker: w, jobs: 1 }]);
    pool.check();
    assert_eq!([0; 3].map(|_| pop(&mut pool, 0, v)), [Some(bob[0]), Some(alice[0]), Some(bob[1])]);
    alice.iter().chain(&bob).for_each(|&job| pool.finished(at(5), job, End::Finished));
    // Nobody knows what the job took that was brought back: it costs the 600 s that were expected, to which fair time has come.
    assert_eq!(show(&pool, 5).lines().last(), Some("clients: alice(1)+5s bob(1)"));
    [w, v].iter().for_each(|&worker| pool.unregister(at(5), worker));
    assert_nothing_is_left(&pool);
}

#[test]
fn a_job_that_is_brought_back_from_another_workers_queue_is_charged_once() {
    let mut pool = Pool::new("p");
    let (w, v) = (worker(&mut pool, 0, "w"), worker(&mut pool, 0, "v"));
    let first = submit(&mut pool, 0, "u:h");
    assert_eq!((pop(&mut pool, 0, w), pop(&mut pool, 0, v)), (Some(first), None));
    let second = submit(&mut pool, 0, "u:h");
    assert_eq!(pool.gauges().assigned.low, 1);
    let clients = |pool: &Pool| show(pool, 0).lines().last().map(str::to_owned);
    let before = clients(&pool);
    assert!(pool.resume(at(0), second, v));
    assert_eq!((pool.gauges().assigned.low, pool.gauges().running), (0, 2));
    assert_eq!(clients(&pool), before);
    pool.check();
}

#[test]
fn a_lost_job_is_charged_until_it_is_given_up() {
    let lost = || {
        let mut pool = Pool::new("p");
        let w = worker(&mut pool, 0, "w");
        let lost = pool.submit_lost(at(0), b("alice"), Request { hint: b(""), urgent: false });
        let jobs = ["alice:", "bob:"].map(|job| submit(&mut pool, 0, job));
        (pool, w, lost, jobs)
    };
    let (mut pool, w, _, [alice, bob]) = lost();
    assert_eq!([0; 2].map(|_| pop(&mut pool, 0, w)), [Some(bob), Some(alice)]);

    let (mut pool, w, job, [alice, bob]) = lost();
    assert_eq!(pool.cancel(job), Cancelled::Lost);
    assert_eq!([0; 2].map(|_| pop(&mut pool, 0, w)), [Some(alice), Some(bob)]);

    let (mut pool, w, job, [alice, bob]) = lost();
    pool.finished(at(0), job, End::Cancelled);
    assert_eq!([0; 2].map(|_| pop(&mut pool, 0, w)), [Some(alice), Some(bob)]);

    let (mut pool, w, job, [alice, bob]) = lost();
    assert!(pool.requeue(at(0), job));
    assert_eq!([0; 3].map(|_| pop(&mut pool, 0, w)), [Some(job), Some(bob), Some(alice)]);

    // Its worker comes back with it, goes, and comes back again: that is one charge.
    let (mut pool, w, job, [alice, bob]) = lost();
    assert!(pool.resume(at(0), job, w));
    pool.unregister(at(0), w);
    let w = worker(&mut pool, 0, "w");
    assert!(pool.resume(at(0), job, w));
    let carol = [0; 2].map(|_| submit(&mut pool, 0, "carol:"));
    assert_eq!([0; 4].map(|_| pop(&mut pool, 0, w)), [Some(bob), Some(carol[0]), Some(alice), Some(carol[1])]);
}
