//! Stories of jobs that are done best where their hint ran.

use insta::assert_snapshot;

use super::super::{Cancelled, Effect, End, JobId, Pool, WorkerId};
use super::{assert_nothing_is_left, at, b, pop, show, started, submit, worker};

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
      w1 (20): [u:a@5m(10) u:a@5m(10)] (1 running)
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
fn a_long_queue_is_not_worth_the_wait() {
    // A job takes 1000 s where it ran: an hour of that, which two at once do in half the time.
    for (capacity, queued) in [(1, 4), (2, 8)] {
        let mut pool = Pool::new("p");
        let w1 = pool.register(b("w1"), capacity).unwrap();
        pool.set_active(at(0), w1, true);
        for (now, took) in [(0, 5000), (6000, 1000)] {
            let job = submit(&mut pool, now, "u:h");
            assert_eq!(pop(&mut pool, now, w1), Some(job));
            pool.finished(at(now + took), job, End::Finished);
        }
        (0..30).for_each(|_| _ = submit(&mut pool, 8000, "u:h"));
        let w2 = worker(&mut pool, 8000, "w2");
        assert!(pop(&mut pool, 8000, w2).is_some());
        assert!(show(&pool, 8000).contains(&format!("w1 ({queued}000): [")), "{}", show(&pool, 8000));
        assert_eq!(pool.gauges().backlog.low, 30 - queued - 1);
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
        assert!(now < 16_000, "still waiting");
    }
}

#[test]
fn of_a_hint_that_everyone_ran_jobs_go_to_whoever_is_free() {
    let mut pool = Pool::new("p");
    let workers: Vec<_> = (0..258).map(|number| worker(&mut pool, 0, &format!("w{number:03}"))).collect();
    for &worker in &workers {
        submit(&mut pool, 0, "u:h!");
        // The others are paused, so that each gets one.
        workers.iter().for_each(|&other| pool.set_active(at(0), other, other == worker));
        assert!(pop(&mut pool, 0, worker).is_some());
    }
    workers.iter().for_each(|&worker| pool.set_active(at(0), worker, true));
    // w000 is one of those that are no longer remembered. The others are busy.
    let jobs = [0; 2].map(|_| submit(&mut pool, 0, "u:h"));
    assert_eq!(pop(&mut pool, 0, workers[0]), Some(jobs[0]));
    assert_eq!((pool.gauges().backlog.low, pool.gauges().assigned.low), (1, 0));
    pool.cancel(jobs[1]);
    // If one of those that ran it is free, it gets the next one, before others that are free.
    let fresh = worker(&mut pool, 0, "fresh");
    assert_eq!((pop(&mut pool, 0, fresh), pop(&mut pool, 0, workers[257])), (None, None));
    let job = submit(&mut pool, 0, "u:h");
    assert_eq!(started(&mut pool), [(workers[257], job)]);
    pool.check();
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

#[test]
fn jobs_that_are_overdue_are_placed_a_few_at_a_time() {
    let mut pool = Pool::new("p");
    let w1 = worker(&mut pool, 0, "w1");
    let longer = submit(&mut pool, 0, "u:h");
    assert_eq!(pop(&mut pool, 0, w1), Some(longer));
    pool.set_active(at(0), w1, false);
    // Elsewhere it takes 100 s, and a second where it ran.
    let w2 = worker(&mut pool, 0, "w2");
    for (now, took) in [(0, 100), (100, 1)] {
        let job = submit(&mut pool, now, "u:h");
        assert_eq!(pop(&mut pool, now, w2), Some(job));
        pool.finished(at(now + took), job, End::Finished);
    }
    let stuck = submit(&mut pool, 200, "u:h");
    assert_eq!(pop(&mut pool, 200, w2), Some(stuck));
    let w3 = worker(&mut pool, 200, "w3");
    assert_eq!(pop(&mut pool, 200, w3), None);
    (0..90).for_each(|_| _ = submit(&mut pool, 200, "u:h"));
    let overdue = |pool: &Pool| pool.overdue.range(..=(at(600), JobId::of_no_pool(u64::MAX))).count();
    assert_eq!((overdue(&pool), pool.next_tick()), (90, Some(at(600))));
    // It may take longer than was thought, so the place that is found is the same queue again. Its worker is looked at each time:
    // if that led to the next job that is overdue, one operation would do all of them, each inside the one before.
    pool.finished(at(599), longer, End::Finished);
    pool.tick(at(600));
    let left = overdue(&pool);
    assert!((1..90).contains(&left), "{left}");
    assert_eq!((started(&mut pool), pool.next_tick()), (vec![], Some(at(600))));
    pool.tick(at(600));
    assert_eq!((overdue(&pool), pool.gauges().assigned.low), (0, 90));
    pool.check();
}

#[test]
fn a_job_is_not_left_waiting_by_who_is_idle_if_it_is_done_sooner_there() {
    let mut pool = Pool::new("p");
    let w1 = worker(&mut pool, 0, "w1");
    for (now, took) in [(0, 100), (200, 40)] {
        let job = submit(&mut pool, now, "u:h");
        assert_eq!(pop(&mut pool, now, w1), Some(job));
        pool.finished(at(now + took), job, End::Finished);
    }
    let jobs = [0; 5].map(|_| submit(&mut pool, 300, "u:h"));
    assert_eq!(pop(&mut pool, 300, w1), Some(jobs[0]));
    // While there is other work, they wait.
    let w2 = worker(&mut pool, 300, "w2");
    let other = submit(&mut pool, 300, "v:");
    assert_eq!(pop(&mut pool, 300, w2), Some(other));
    pool.finished(at(310), other, End::Finished);
    // Whoever has nothing else takes what would wait there for longer than the cache saves, 60 s.
    assert!(jobs.contains(&pop(&mut pool, 310, w2).expect("there is enough")));
    pool.check();
}

/// Returns a pool whose worker `w1` ran the hint `h` and left after 60 s, and another worker.
fn w1_is_gone() -> (Pool, WorkerId) {
    let mut pool = Pool::new("p");
    let (w1, w2) = (worker(&mut pool, 0, "w1"), worker(&mut pool, 0, "w2"));
    let job = submit(&mut pool, 0, "u:h");
    assert_eq!(pop(&mut pool, 0, w1), Some(job));
    pool.finished(at(50), job, End::Finished);
    pool.unregister(at(60), w1);
    (pool, w2)
}

#[test]
fn a_worker_that_restarts_gets_what_it_has_cached() {
    let (mut pool, w2) = w1_is_gone();
    let jobs = ["u:h", "u:h", "u:"].map(|job| submit(&mut pool, 70, job));
    // While there is other work, that is done first.
    assert_eq!(pop(&mut pool, 70, w2), Some(jobs[2]));
    assert_eq!((pool.gauges().backlog.low, pool.gauges().assigned.low), (0, 2));
    assert!(show(&pool, 70).contains("disconnected:\n  w1 (2 waiting)\n"), "{}", show(&pool, 70));
    pool.check();
    let w1 = worker(&mut pool, 80, "w1");
    assert_eq!(pop(&mut pool, 80, w1), Some(jobs[0]));
    assert_eq!(pool.cancel(jobs[1]), Cancelled::Queued);
    pool.check();
}

#[test]
fn a_worker_that_does_not_come_back_is_not_waited_for() {
    let away = || {
        let (mut pool, w2) = w1_is_gone();
        let jobs = ["u:h", "u:", "u:"].map(|job| submit(&mut pool, 60, job));
        assert_eq!(pop(&mut pool, 60, w2), Some(jobs[1]));
        assert_eq!(pool.gauges().assigned.low, 1);
        (pool, w2, jobs)
    };
    let (mut pool, w2, jobs) = away();
    assert_eq!(pop(&mut pool, 1861, w2), Some(jobs[0]), "half an hour is enough");
    let (mut pool, w2, jobs) = away();
    assert_eq!([0; 2].map(|_| pop(&mut pool, 70, w2)), [Some(jobs[2]), Some(jobs[0])], "nobody is idle meanwhile");
    pool.check();
    let (mut pool, _, jobs) = away();
    assert_eq!(pool.cancel(jobs[0]), Cancelled::Queued);
    pool.check();
}

#[test]
fn a_worker_that_comes_and_goes_is_not_waited_for_for_ever() {
    let (mut pool, w2) = w1_is_gone();
    let waits = submit(&mut pool, 60, "u:h");
    let mut other = submit(&mut pool, 60, "u:");
    for round in 0.. {
        let now = 60 + round * 1500;
        assert!(now < 6 * 3600, "it still waits");
        let next = submit(&mut pool, now, "u:");
        // Somebody always has something else to do.
        let taken = pop(&mut pool, now, w2).expect("there is enough");
        if taken == waits {
            break;
        }
        assert_eq!(taken, other);
        pool.finished(at(now + 1), taken, End::Finished);
        other = next;
        let w1 = worker(&mut pool, now + 2, "w1");
        pool.unregister(at(now + 3), w1);
    }
    pool.check();
}

#[test]
fn a_worker_that_is_forgotten_or_paused_is_not_waited_for() {
    for forget in [true, false] {
        let (mut pool, w2) = w1_is_gone();
        let jobs = ["u:h", "u:"].map(|job| submit(&mut pool, 60, job));
        assert_eq!(pop(&mut pool, 60, w2), Some(jobs[1]));
        assert_eq!((pool.gauges().backlog.low, pool.gauges().assigned.low), (0, 1));
        match forget {
            true => pool.forget(at(70), b("w1")).unwrap(),
            false => pool.set_paused(at(70), b("w1"), true, false).unwrap(),
        }
        assert_eq!((pool.gauges().backlog.low, pool.gauges().assigned.low), (1, 0));
        pool.check();
        submit(&mut pool, 80, "u:");
        assert_eq!(pop(&mut pool, 80, w2), Some(jobs[0]));
    }
}
