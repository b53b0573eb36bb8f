//! Jobs that wait until something is given again that is missing of them.

use super::{Pool, at, b, pop, submit, worker};
use crate::pool::{Cancelled, End, JobId, Request};

/// Returns a pool with a withheld job, and a worker that is idle.
fn withheld() -> (Pool, JobId) {
    let mut pool = Pool::new("p");
    let job = pool.submit_withheld(b("alice"), Request { hint: b("h"), urgent: false });
    pool.check();
    (pool, job)
}

#[test]
fn a_withheld_job_neither_runs_nor_is_charged_and_is_shown() {
    let (mut pool, job) = withheld();
    let w = worker(&mut pool, 0, "w");
    assert_eq!(pop(&mut pool, 0, w), None);
    let gauges = pool.gauges();
    assert_eq!((gauges.withheld, gauges.running, gauges.backlog.low), (1, 0, 0));
    let shown = pool.show(at(0)).to_string();
    assert!(
        shown.contains("\nwithheld: 1 (until their clients give their secrets again)\nclients: alice(1)\n"),
        "{shown}"
    );
    assert!(pool.requeue(at(0), job));
    assert_eq!((pool.gauges().withheld, pool.gauges().running), (0, 1));
    assert!(!pool.show(at(0)).to_string().contains("withheld"));
    pool.check();
}

#[test]
fn a_withheld_job_waits_like_others_once_it_is_whole() {
    let (mut pool, job) = withheld();
    let other = submit(&mut pool, 0, "alice:");
    assert!(pool.requeue(at(0), job));
    let w = worker(&mut pool, 0, "w");
    assert_eq!([0; 2].map(|_| pop(&mut pool, 0, w)), [Some(job), Some(other)]);
    assert!(!pool.requeue(at(0), JobId::of_no_pool(99)));
}

#[test]
fn a_withheld_job_can_be_cancelled_and_given_up_and_brought_back_by_a_worker() {
    let (mut pool, job) = withheld();
    assert_eq!(pool.cancel(job), Cancelled::Queued);
    assert_eq!((pool.gauges().withheld, pool.gauges().cancelled_total), (0, 1));
    assert_eq!(pool.cancel(job), Cancelled::Unknown);

    let (mut pool, job) = withheld();
    pool.finished(at(0), job, End::Cancelled);
    assert_eq!((pool.gauges().withheld, pool.gauges().running), (0, 0));
    pool.check();

    let (mut pool, job) = withheld();
    let w = worker(&mut pool, 0, "w");
    assert!(pool.resume(at(0), job, w));
    assert_eq!((pool.gauges().withheld, pool.gauges().running), (0, 1));
    pool.check();
    pool.finished(at(9), job, End::Finished);
    assert_eq!(pool.gauges().running, 0);
    pool.check();
}
