//! Stories of clients and what they get.

use insta::assert_snapshot;

use super::super::{Cancelled, End, Pool, Request};
use super::{assert_nothing_is_left, at, b, pop, show, submit, worker};

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
    let v = worker(&mut pool, 3000, "v");
    // Elsewhere it is expected to take 100 s, 50 s more: who is idle takes one that would wait for longer.
    assert_eq!(pop(&mut pool, 3000, v), Some(jobs[0]));
    let shown = show(&pool, 3000);
    assert!(shown.contains("w (250): [u:h@5m(50) "), "{shown}");
    // What jobs of other hints took is the best guess for one that is not known.
    let other = submit(&mut pool, 3000, "u:other");
    assert!(show(&pool, 3000).contains("queue: (backlog) [u:other@100s]"));
    assert!(show(&pool, 3000).ends_with("clients: u(1)+8m\n"), "{}", show(&pool, 3000));
    pool.cancel(other);
    pool.finished(at(3000), jobs[0], End::Cancelled);
    jobs[1..].iter().for_each(|&job| assert_eq!(pool.cancel(job), Cancelled::Queued));
    [v, w].iter().for_each(|&worker| pool.unregister(at(3000), worker));
    assert_nothing_is_left(&pool);
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
        let is_long = usize::try_from(job.number() % 2).expect("0 or 1");
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

#[test]
fn who_parks_jobs_for_a_cache_and_cancels_them_has_saved_up_nothing() {
    let mut pool = Pool::new("p");
    let (w, v) = (worker(&mut pool, 0, "w"), worker(&mut pool, 0, "v"));
    for (now, ends) in [(0, Some(600)), (600, Some(700)), (700, None)] {
        let job = submit(&mut pool, now, "parks:h");
        assert_eq!(pop(&mut pool, now, w), Some(job));
        ends.into_iter().for_each(|ends| pool.finished(at(ends), job, End::Finished));
    }
    let parked: Vec<_> = (0..30).map(|_| submit(&mut pool, 700, "parks:h")).collect();
    (0..20).for_each(|_| _ = submit(&mut pool, 700, "works:"));
    let next = |pool: &mut Pool, now| {
        let job = pop(pool, now, v).expect("there is one");
        pool.finished(at(now + 600), job, End::Finished);
        job
    };
    (2..12).for_each(|turn| _ = next(&mut pool, turn * 600));
    assert_eq!(pool.gauges().assigned.low, 30, "all of `parks` waits for w");
    // Now it has others, and does not want those.
    let late: Vec<_> = (0..10).map(|_| submit(&mut pool, 7200, "parks:")).collect();
    parked.iter().for_each(|&job| assert_eq!(pool.cancel(job), Cancelled::Queued));
    let given: Vec<_> = (12..18).map(|turn| late.contains(&next(&mut pool, turn * 600))).collect();
    assert_eq!(given.iter().filter(|is_late| **is_late).count(), 3, "{given:?}");
}
