//! Small simulations, of both policies, and of some that are wrong.

mod traces;
mod wrong;

use std::time::Duration;

use super::*;

/// Twenty machines for two hours of jobs that take them six.
fn busy(seed: u64) -> Workload {
    Workload { seed, jobs: 6000, workers: 20, span: Duration::from_secs(2 * 3600), ..Workload::default() }
}

/// The same with all jobs there at the beginning, none of them urgent.
fn all_at_once(seed: u64) -> Workload {
    Workload { span: Duration::ZERO, urgent: 0.0, jobs: 40_000, ..busy(seed) }
}

#[test]
fn every_job_ends_once_whatever_fails() {
    for seed in 0..4 {
        let trace = Workload { outages: 40.0, cancelled: 0.3, urgent: 0.1, ..busy(seed) }.trace();
        for decider in [Decider::Kiln, Decider::OCluster] {
            let outcome = simulate(&trace, decider);
            assert!(outcome.is_sound(), "{outcome:?}");
            assert_eq!((outcome.waiting, outcome.finished + outcome.cancelled), (0, trace.jobs()));
            assert!(outcome.restarted > 50 && outcome.cancelled > 500, "{outcome:?}");
            assert_eq!(outcome.clients.iter().map(|client| client.finished).sum::<usize>(), outcome.finished);
        }
    }
}

#[test]
fn the_same_trace_has_the_same_outcome() {
    let trace = busy(1).trace();
    for decider in [Decider::Kiln, Decider::OCluster] {
        assert_eq!(simulate(&trace, decider), simulate(&trace, decider));
    }
    assert_ne!(simulate(&busy(2).trace(), Decider::Kiln), simulate(&trace, Decider::Kiln));
}

#[test]
fn clients_that_all_wait_get_what_they_are_promised() {
    for seed in 0..3 {
        let outcome = simulate(&all_at_once(seed).trace(), Decider::Kiln);
        for client in &outcome.clients {
            let share = client.share.expect("much was begun while all had jobs waiting");
            assert!((0.95..1.05).contains(&share), "seed {seed}: {client:?}");
        }
    }
}

#[test]
fn kilns_policy_is_fairer_than_oclusters_and_has_less_waiting() {
    for seed in 0..3 {
        let trace = all_at_once(seed).trace();
        let [kiln, ocluster] = [Decider::Kiln, Decider::OCluster].map(|decider| simulate(&trace, decider));
        let [kiln, ocluster] = [kiln, ocluster].map(|it| it.unfairness.expect("all waited"));
        assert!(kiln < ocluster / 2.0, "{kiln} {ocluster}");
    }
    // A day in which workers are busy, but not all of the time.
    let trace = Workload { jobs: 12_000, workers: 60, capacity: 1, hints: 500, ..Workload::default() }.trace();
    let [kiln, ocluster] = [Decider::Kiln, Decider::OCluster].map(|decider| simulate(&trace, decider));
    assert!(kiln.wait_s.mean < ocluster.wait_s.mean && kiln.wait_s.p99 < ocluster.wait_s.p99);
    assert!(kiln.turnaround_s.mean < ocluster.turnaround_s.mean && kiln.makespan_s <= ocluster.makespan_s);
}

#[test]
fn nearly_all_jobs_run_where_their_hint_ran() {
    let trace = Workload { hints: 100, ..all_at_once(1) }.trace();
    // One in four hundred is the first of its hint.
    for decider in [Decider::Kiln, Decider::OCluster] {
        let outcome = simulate(&trace, decider);
        assert!(outcome.hit_rate > 0.98 && outcome.cache_hits < outcome.hinted_starts, "{outcome:?}");
    }
}

#[test]
fn times_are_counted_as_they_are() {
    let text = r#"
        {"event":"connect","at_s":0,"worker":"w"}
        {"event":"job","at_s":10,"client":"a","hint":"h","warm_s":10,"cold_s":100}
        {"event":"job","at_s":20,"client":"a","hint":"h","warm_s":10,"cold_s":100}
        {"event":"job","at_s":30,"client":"b","warm_s":0,"cold_s":5}
        {"event":"job","at_s":40,"client":"b","warm_s":1,"cold_s":1,"cancel_after_s":50}
        {"event":"disconnect","at_s":60,"worker":"w"}
        {"event":"connect","at_s":70,"worker":"w"}
    "#;
    let trace = Trace::read(text.as_bytes()).expect("it is a trace");
    for decider in [Decider::Kiln, Decider::OCluster] {
        let outcome = simulate(&trace, decider);
        // The first is begun again, after half of it was lost.
        assert_eq!((outcome.finished, outcome.cancelled, outcome.restarted), (3, 1, 1), "{outcome:?}");
        assert_eq!((outcome.hinted_starts, outcome.cache_hits), (3, 1));
        assert_eq!((outcome.work_s, outcome.makespan_s), (50.0 + 100.0 + 10.0 + 5.0, 175.0));
        // The first at 70, where it was in the order of things; then the other client's, then the second. In OCluster, the
        // first is submitted and charged anew, and comes last.
        let waits = if decider == Decider::Kiln { (155.0, 140.0) } else { (165.0, 40.0) };
        assert_eq!((outcome.clients[0].wait_s.max, outcome.clients[1].wait_s.max), waits);
        assert_eq!(outcome.clients[0].share, None, "so few jobs tell nothing");
    }
}

#[test]
fn a_job_shares_what_another_of_its_hint_is_making() {
    let text = r#"
        {"event":"connect","at_s":0,"worker":"w","capacity":2}
        {"event":"job","at_s":0,"client":"a","hint":"h","warm_s":10,"cold_s":100}
        {"event":"job","at_s":40,"client":"a","hint":"h","warm_s":10,"cold_s":100}
    "#;
    let trace = Trace::read(text.as_bytes()).expect("it is a trace");
    let outcome = simulate(&trace, Decider::Kiln);
    assert_eq!((outcome.makespan_s, outcome.cache_hits, outcome.wait_s.max), (110.0, 1, 0.0));
    // From 40 to 110, 70 s.
    assert_eq!((outcome.turnaround_s.mean, outcome.turnaround_s.max), (85.0, 100.0));
}

#[test]
fn jobs_that_have_no_worker_wait_at_the_end() {
    let text = r#"
        {"event":"job","at_s":0,"client":"a","warm_s":1,"cold_s":1}
        {"event":"job","at_s":0,"client":"a","hint":"h","warm_s":1,"cold_s":1}
        {"event":"connect","at_s":5,"worker":"w"}
        {"event":"disconnect","at_s":6,"worker":"w"}
    "#;
    let trace = Trace::read(text.as_bytes()).expect("it is a trace");
    for decider in [Decider::Kiln, Decider::OCluster] {
        let outcome = simulate(&trace, decider);
        assert!(outcome.is_sound());
        assert_eq!((outcome.finished, outcome.waiting), (1, 1));
    }
}

#[test]
fn costs_are_measured() {
    let costs = measure(20, 500);
    assert_eq!((costs.workers, costs.jobs), (20, 500));
    for of in [costs.submit_us, costs.pop_us, costs.finish_us, costs.cancel_us] {
        assert!(of.mean > 0.0 && of.median <= of.p99 && of.p99 <= of.max, "{costs:?}");
    }
    assert_eq!(costs.memory_bytes.is_some(), cfg!(target_os = "linux"));
}

#[test]
fn distributions_are_of_their_values() {
    let mut values: Vec<f64> = (1..=200).map(f64::from).rev().collect();
    assert_eq!(Distribution::of(&mut values), Distribution { mean: 100.5, median: 100.0, p99: 198.0, max: 200.0 });
    assert_eq!(Distribution::of(&mut [7.0]), Distribution { mean: 7.0, median: 7.0, p99: 7.0, max: 7.0 });
    assert_eq!(Distribution::of(&mut []), Distribution::default());
}
