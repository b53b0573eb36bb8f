//! Examples of what a pool does, read as stories.

use insta::assert_snapshot;

use super::super::{Cancelled, Effect, End, ForgetError, Pool, Saved, UnknownWorker, WorkerInfo};
use super::{assert_nothing_is_left, at, b, pop, show, started, submit, worker};

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
      w1 (20): [u:a@10m(10) u:a@10m(10+urgent)] (1 running)
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
      w1 (10): [u:a@10m(10)] (1 running)
      w2 (0): [] (0 running)
    disconnected:
    clients: u(1)+10m
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
    let error = pool.forget(at(1000), b("w")).unwrap_err();
    assert_eq!(error.to_string(), "Worker \"w\" is still connected!");
    assert_eq!(pool.forget(at(1000), b("nobody")), Err(ForgetError::Unknown));
    pool.unregister(at(0), w);
    let _ = pool.take_effects();
    pool.forget(at(1000), b("ghost")).unwrap();
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
    pool.forget(at(1000), b("ghost")).unwrap();

    let mut pool = Pool::new("linux-arm64");
    let w1 = worker(&mut pool, 0, "w1");
    let before = submit(&mut pool, 0, "alice:");
    assert_eq!(pop(&mut pool, 0, w1), Some(before));
    pool.finished(at(1), before, End::Finished);
    pool.unregister(at(1), w1);
    pool.forget(at(1000), b("w1")).unwrap();
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
      toxis.caelum.ci.dev (60): [ocaml-ci:h@1s(10) ocaml-ci:h@1s(10)
                                 ocaml-ci:h@1s(10) ocaml-ci:h@1s(10)
                                 ocaml-ci:h@1s(10) ocaml-ci:h@1s(10)] (1 running)
    disconnected:
    clients: base-image-builder(900) docs.ci(900) mirage-ci(900)
             mirage-deployer(900) mtelvers(900) multicore-ci(900)
             ocaml-ci(900)+1s ocurrent-deployer(900)
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
    // 600 s for the first; what the second takes, 10 s, is to come. Then it has begun, and fair time with it.
    let clients = |pool: &Pool| show(pool, 0).lines().last().map(str::to_owned);
    assert_eq!(clients(&pool).as_deref(), Some("clients: u(1)+10m"));
    assert!(pool.resume(at(0), second, v));
    assert_eq!((pool.gauges().assigned.low, pool.gauges().running), (0, 2));
    assert_eq!(clients(&pool).as_deref(), Some("clients: u(1)+10s"));
    pool.check();
}
