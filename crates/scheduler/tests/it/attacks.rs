//! Workers, clients and strangers that mean harm.

use std::cell::RefCell;
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Answer, Error, ErrorKind, Job, JobKey, JobServer, KeptSubmission, Limits, LogChunk, Metric, MetricsSource,
    Reference as _, Submission, Worker, WorkerServer, answer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::peers::{JobDescriptions as _, submit, whole_log};
use crate::world::{Guest, POOL, World, a_job_goes_through, limited_world, timeless_world, world};

/// A job that never answers.
struct Silent;

impl JobServer for Silent {
    fn log(&self, _: i64) -> Answer<LogChunk> {
        Box::pin(std::future::pending())
    }
    fn result(&self) -> Answer<BString> {
        Box::pin(std::future::pending())
    }
    fn cancel(&self) -> Answer<()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_worker_that_takes_jobs_and_does_nothing_holds_up_its_own_clients_only_until_they_give_up() {
    world(async |world| {
        let (client, other) = (world.client("alice").await, world.client("bob").await);
        let bad = world.worker("bad", 10).await;
        let tickets: Vec<_> = (0..10).map(|_| submit(&client, "")).collect();
        for _ in &tickets {
            bad.queue.pop(Job::serve(Silent)).await.expect("there is a job");
        }
        let good = world.worker("good", 1).await;
        a_job_goes_through(POOL, &other, &good).await;
        // Cancelling is for the worker to do; but a client that goes is let go.
        let cancelled = tickets[0].cancel();
        tokio::select! {
            _ = cancelled => panic!("it does not answer"),
            () = a_job_goes_through(POOL, &client, &good) => {}
        }
        client.connection.cut().await;
        a_job_goes_through(POOL, &other, &good).await;
        // What it took is its own until it is gone.
        assert!(world.show().await.contains("bad (0): [] (10 running)"));
        bad.connection.cut().await;
        world.until_shown(|text| text.contains("disconnected:\n  bad")).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_keeps_all_that_it_is_given_loses_its_connection_and_others_go_on() {
    let limits = Limits { references: 1000, calls: 1000, ..Limits::default() };
    limited_world(limits, async |world| {
        let uri = world.add_client("alice").await;
        let (good, worker) = (world.client("bob").await, world.worker("w1", 1).await);
        // Jobs that have ended are in no queue, and cost nothing but this: answers of which it goes on asking for parts.
        let bad: Guest<Submission> = world.open(&uri).await;
        let mut kept = Vec::new();
        let error = loop {
            let ticket = submit(&bad, "");
            // What this says when the connection has gone, the job says too.
            let _ = ticket.cancel().await;
            let job = ticket.job();
            let error = job.result().await.expect_err("it is cancelled");
            kept.push((ticket, job));
            if error.message != "Ticket cancelled" {
                break error;
            }
        };
        assert_eq!(error.message, "more than 1000 calls at once");
        a_job_goes_through(POOL, &good, &worker).await;
        // Or the same job, as often as it likes.
        let bad: Guest<Submission> = world.open(&uri).await;
        let job = KeptSubmission {
            key: JobKey::random(),
            pool: POOL.into(),
            description: "".job(),
            urgent: false,
            detached: true,
        };
        assert!(bad.submit_kept(&job).expect("it is small").1.await.expect("it is accepted"));
        bad.cancel(job.key).await.expect("it is there");
        let mut kept = Vec::new();
        let error = loop {
            match bad.find(job.key).await {
                Ok((job, _)) => kept.push(job),
                Err(error) => break error,
            }
        };
        assert_eq!(error.message, "more than 1000 references to objects here at once");
        assert!(kept.len() >= 900, "{}", kept.len());
        a_job_goes_through(POOL, &good, &worker).await;
        // Who lets go of what it had has no end of it.
        for _ in 0..1100 {
            submit(&good, "").cancel().await.expect("it is there");
        }
        a_job_goes_through(POOL, &good, &worker).await;
    })
    .await;
}

/// A job with a log of one chunk.
struct Chunk(LogChunk);

impl JobServer for Chunk {
    fn log(&self, _: i64) -> Answer<LogChunk> {
        answer(Ok(self.0.clone()))
    }
    fn result(&self) -> Answer<BString> {
        Box::pin(std::future::pending())
    }
    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

#[tokio::test]
async fn a_log_that_is_too_much_for_a_message_costs_the_worker_its_connection() {
    world(async |world| {
        let client = world.client("alice").await;
        let (bad, good) = (world.worker("bad", 1).await, world.worker("good", 1).await);
        let ticket = submit(&client, "");
        let huge = Job::serve(Chunk(LogChunk { bytes: vec![b'x'; 100 << 20], next: 100 << 20 }));
        bad.queue.pop(huge).await.expect("there is a job");
        // Whoever sends that is lost, and the job is another's.
        let task = good.take().await;
        task.finish(Ok("".into()));
        let log = whole_log(&ticket.job()).await.expect("a log");
        assert_eq!(log, "\n[worker bad is lost; the job starts again on good]\n");
        world.until_shown(|text| text.contains("disconnected:\n  bad")).await;
        a_job_goes_through(POOL, &client, &good).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_leaves_and_stays_connected_holds_nobody_up() {
    world(async |world| {
        let client = world.client("alice").await;
        let (bad, good) = (world.worker("bad", 1).await, world.worker("good", 1).await);
        let ticket = submit(&client, "");
        bad.queue.pop(Job::serve(Silent)).await.expect("there is a job");
        let crate::peers::TestWorker { connection, queue, .. } = bad;
        drop(queue);
        // Nothing of what was asked of it has been answered, nor will be.
        good.take().await.finish(Ok("fine".into()));
        assert_eq!(ticket.job().result().await.expect("it ends well"), "fine");
        connection.cut().await;
    })
    .await;
}

#[tokio::test]
async fn a_log_that_goes_backwards_is_read_no_further() {
    world(async |world| {
        let client = world.client("alice").await;
        let worker = world.worker("bad", 2).await;
        for next in [i64::MIN, -1, 0, i64::MAX] {
            let ticket = submit(&client, "");
            let odd = Job::serve(Chunk(LogChunk { bytes: b"x".to_vec(), next }));
            worker.queue.pop(odd).await.expect("there is a job");
            let log = ticket.job().log(0).await.expect("a chunk").bytes;
            assert_eq!(
                String::from_utf8_lossy(&log),
                format!("\n[the rest of the log cannot be read: the log goes on at {next} after 0]\n")
            );
        }
        worker.connection.cut().await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_registers_under_many_names_is_gone_with_its_connection() {
    world(async |world| {
        let registration = world.registration().await;
        let mut queues = Vec::new();
        for number in 0..2000 {
            let worker = Worker::serve(Odd(Rc::new(|| answer(Err(Error::failed("no"))))));
            let name = format!("w{number}");
            queues.push(registration.register(name.as_bytes(), worker, 10_000).await.expect("it is free"));
        }
        assert_eq!(world.metric("ocluster_pool_workers_connected{pool=\"linux\"}").await, 2000);
        let good = world.worker("good", 1).await;
        a_job_goes_through(POOL, &*world.client("alice").await, &good).await;
        registration.connection.cut().await;
        world.until_shown(|text| text.contains("registered:\n  good (0): [] (0 running)\ndisconnected:\n  w0\n")).await;
    })
    .await;
}

/// A worker with odd metrics.
struct Odd(Rc<dyn Fn() -> Answer<Metric>>);

impl WorkerServer for Odd {
    fn metrics(&self, _: MetricsSource) -> Answer<Metric> {
        (self.0)()
    }
    fn self_update(&self) -> Answer<()> {
        answer(Ok(()))
    }
    fn additional_metric(&self, _: BString) -> Answer<Option<Metric>> {
        answer(Ok(None))
    }
}

async fn odd_worker(world: &World, metrics: impl Fn() -> Answer<Metric> + 'static) -> (kiln_api::Queue, impl Sized) {
    let registration = world.registration().await;
    let worker = Worker::serve(Odd(Rc::new(metrics)));
    (registration.register(b"odd", worker, 1).await.expect("it is free"), registration)
}

#[tokio::test]
async fn metrics_that_are_too_long_are_not_passed_on() {
    world(async |world| {
        let long = || answer(Ok(Metric { content_type: "text/plain".into(), data: vec![b'x'; 20 << 20].into() }));
        let _odd = odd_worker(world, long).await;
        let text = world.get("/pool/linux/worker/odd/metrics").await;
        assert!(text.starts_with("HTTP/1.1 502"), "{}", &text[..100]);
        assert_eq!(world.metric("ocluster_pool_workers_connected{pool=\"linux\"}").await, 0);
    })
    .await;
}

#[tokio::test]
async fn metrics_that_do_not_come_are_not_waited_for() {
    timeless_world(async |world| {
        let asked = Rc::new(Notify::new());
        let told = Rc::clone(&asked);
        let never = move || -> Answer<Metric> {
            told.notify_one();
            Box::pin(std::future::pending())
        };
        let _odd = odd_worker(world, never).await;
        let get = world.get("/pool/linux/worker/odd/metrics");
        tokio::pin!(get);
        tokio::select! {
            _ = &mut get => panic!("it does not come"),
            () = asked.notified() => {}
        }
        tokio::time::pause();
        let text = get.await;
        tokio::time::resume();
        assert!(text.starts_with("HTTP/1.1 504"), "{text}");
        assert!(text.ends_with("the worker does not answer\n"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_submits_many_jobs_delays_others_by_one_and_leaves_nothing_behind() {
    world(async |world| {
        let (many, other) = (world.client("many").await, world.client("other").await);
        let tickets: Vec<_> = (0..10_000).map(|number| submit(&many, &format!("h{number}"))).collect();
        world.until_shown(|text| text.contains("more many:h")).await;
        // Late is not last.
        let ticket = submit(&other, "late");
        world.until_shown(|text| text.contains("other:late")).await;
        let worker = world.worker("w1", 1).await;
        let mut before = 0;
        loop {
            let task = worker.take().await;
            task.finish(Ok("".into()));
            if task.description.cache_hint == "late" {
                break;
            }
            before += 1;
        }
        assert!(before <= 1, "{before}");
        ticket.job().result().await.expect("it ends well");
        drop(tickets);
        many.connection.cut().await;
        world.until_shown(|text| text.contains("queue: (backlog) []")).await;
        a_job_goes_through(POOL, &other, &worker).await;
    })
    .await;
}

#[tokio::test]
async fn a_hint_is_bounded() {
    world(async |world| {
        let client = world.client("alice").await;
        let ticket = submit(&client, &"h".repeat(1025));
        let error = ticket.job().result().await.expect_err("it is refused");
        assert_eq!(error, Error::failed("a cache hint is at most 1024 bytes long"));
        let ticket = client.submit(POOL, &"h".repeat(1024).job(), false).expect("it is small");
        world.until_shown(|text| text.contains("alice:hhh")).await;
        drop(ticket);
    })
    .await;
}

#[tokio::test]
async fn names_cannot_write_to_a_terminal_or_add_metrics() {
    world(async |world| {
        let name = "w\n\u{1b}[31m\"} 7\nocluster_evil 1\n\u{202e}\u{9b}";
        let client = world.client(name).await;
        let worker = world.worker(name, 1).await;
        let tickets = [submit(&client, name), submit(&client, name)];
        worker.take().await.finish(Ok("".into()));
        world.until_shown(|text| text.matches(":w\\n").count() == 1).await;
        let text = world.show().await;
        assert!(text.chars().all(|char| char == '\n' || !char.is_control() && char != '\u{202e}'), "{text:?}");
        assert!(text.contains(r#"  w\n\u{1b}[31m"} 7\nocluster_evil 1\n\u{202e}\u{9b} ("#), "{text}");
        let metrics = world.get("/metrics").await;
        assert!(metrics.contains(r#"client="w\n"#) && metrics.contains(r#"[31m\"} 7\nocluster_evil"#), "{metrics}");
        assert!(!metrics.lines().any(|line| line.starts_with("ocluster_evil")), "{metrics}");
        drop(tickets);
    })
    .await;
}

#[tokio::test]
async fn a_text_that_a_worker_says_is_passed_on_as_it_is() {
    world(async |world| {
        // What is not for terminals in a log is for whoever shows it: it is the build's output.
        let (client, worker) = (world.client("alice").await, world.worker("w1", 1).await);
        let ticket = submit(&client, "");
        let task = worker.take().await;
        task.write("\u{1b}[31mred\u{1b}[0m\0");
        task.finish(Ok("\u{1b}".into()));
        let job = ticket.job();
        assert_eq!(whole_log(&job).await.expect("a log"), "\u{1b}[31mred\u{1b}[0m\0");
        assert_eq!(job.result().await.expect("it ends well"), "\u{1b}");
    })
    .await;
}

#[tokio::test]
async fn who_sends_a_request_byte_by_byte_is_cut_off() {
    timeless_world(async |world| {
        let address = world.running().web.expect("there is HTTP");
        let mut slow = Vec::new();
        for _ in 0..64 {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await.expect("it reads");
            slow.push(stream);
        }
        // Served, so that all of them are known to be accepted before the clock runs.
        a_job_goes_through(POOL, &*world.client("alice").await, &world.worker("w1", 1).await).await;
        let text = RefCell::new(None);
        let get = async { *text.borrow_mut() = Some(world.get("/metrics").await) };
        tokio::time::pause();
        get.await;
        tokio::time::resume();
        assert!(text.borrow().as_deref().is_some_and(|text| text.starts_with("HTTP/1.1 200")));
        for mut stream in slow {
            let mut rest = Vec::new();
            // It may be reset.
            let _ = stream.read_to_end(&mut rest).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_head_of_a_request_is_bounded() {
    world(async |world| {
        let address = world.running().web.expect("there is HTTP");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let head = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        // It may be cut off before it has said all that.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        let text = String::from_utf8_lossy(&text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
        assert!(world.get("/metrics").await.starts_with("HTTP/1.1 200"));
        assert!(world.get(&format!("/{}", "x".repeat(10_000))).await.starts_with("HTTP/1.1 404"));
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_says_it_is_its_own_queue_is_gone_with_its_connection() {
    world(async |world| {
        let registration = world.registration().await;
        let (resolve, resolved) = tokio::sync::oneshot::channel();
        let itself = Worker::promise(async move { Ok(resolved.await.expect("it is told")) });
        let queue = registration.register(b"odd", itself, 1).await.expect("it is free");
        // The scheduler would hold on to what says that the worker is there, by what the worker is.
        assert!(resolve.send(Worker::from_hook(queue.clone().into_hook())).is_ok());
        // It has heard of that when the worker, which is no worker, answers.
        let admin = world.pool_admin().await;
        let error = admin.worker(b"odd").self_update().await.expect_err("it is a queue");
        assert_eq!(error.kind, ErrorKind::Unimplemented, "{error}");
        drop(queue);
        registration.connection.cut().await;
        world.until_shown(|text| text.contains("disconnected:\n  odd")).await;
    })
    .await;
}
