//! Traces, made up and in files.

use std::io::{self, BufReader, Read};

use super::super::trace::TraceError;
use super::*;

fn refused(text: &str) -> String {
    Trace::read(text.as_bytes()).expect_err("it is no trace").to_string()
}

#[test]
fn a_trace_that_is_written_and_read_is_the_same() {
    let trace = Workload { cancelled: 0.2, outages: 20.0, ..busy(3) }.trace();
    let mut file = Vec::new();
    trace.write(&mut file).expect("memory takes everything");
    let read = Trace::read(&*file).expect("it was written as it is read");
    // Names come in the order of the events that use them, and all that is said of them is the same.
    assert_eq!(read.clients, trace.clients);
    assert_eq!(read.events.len(), trace.events.len());
    let names = |trace: &Trace| {
        let of = |event: &Event| match *event {
            Event::Connect { worker } => format!("connect {:?}", trace.workers[worker as usize]),
            Event::Disconnect { worker } => format!("disconnect {:?}", trace.workers[worker as usize]),
            Event::Submit(job) => {
                let (client, hint) =
                    (&trace.clients[job.client as usize], job.hint.map(|hint| &trace.hints[hint as usize]));
                let Job { urgent, warm, cold, cancel_after, .. } = job;
                format!("{client:?} {hint:?} {urgent} {warm:?} {cold:?} {cancel_after:?}")
            }
        };
        trace.events.iter().map(|(at, event)| format!("{at:?} {}", of(event))).collect::<Vec<_>>()
    };
    assert_eq!(names(&read), names(&trace));
    assert_eq!(simulate(&read, Decider::Kiln), simulate(&trace, Decider::Kiln));
}

#[test]
fn a_made_up_trace_is_as_it_was_asked_for() {
    let workload = Workload { jobs: 20_000, burst: 10.0, cancelled: 0.25, ..busy(5) };
    let trace = workload.trace();
    let jobs: Vec<(Duration, Job)> = trace
        .events
        .iter()
        .filter_map(|(at, event)| if let Event::Submit(job) = event { Some((*at, *job)) } else { None })
        .collect();
    assert!((20_000..20_200).contains(&jobs.len()), "{}", jobs.len());
    assert!(trace.events.is_sorted_by_key(|(at, _)| *at));
    assert!(jobs.iter().all(|(at, job)| *at <= workload.span + Duration::from_secs(60) && job.warm <= job.cold));
    let share = |is: &dyn Fn(&Job) -> bool| jobs.iter().filter(|(_, job)| is(job)).count() as f64 / jobs.len() as f64;
    assert!((0.20..0.30).contains(&share(&|job| job.cancel_after.is_some())));
    assert!((0.22..0.28).contains(&share(&|job| job.client == 0)), "clients differ in rate, not in jobs");
    let first = share(&|job| job.hint == Some(0));
    let second = share(&|job| job.hint == Some(1));
    assert!((1.5..2.5).contains(&(first / second)), "{first} {second}");
    let mut cold: Vec<Duration> = jobs.iter().map(|(_, job)| job.cold).collect();
    cold.sort();
    assert!((0.7..1.4).contains(&(cold[cold.len() / 2].as_secs_f64() / workload.cold.as_secs_f64())));
    assert_eq!(workload.trace(), trace);
    assert_ne!(Workload { seed: 6, ..workload }.trace(), trace);
}

#[test]
fn lines_that_cannot_be_are_named() {
    let messages = [
        r#"{"event":"job"}"#,
        r#"{"event":"explode","at_s":1}"#,
        r#"{"event":"client","client":"a","rate":0}"#,
        r#"{"event":"client","client":"a","rate":"much"}"#,
        r#"{"event":"connect","at_s":-1,"worker":"w"}"#,
        r#"{"event":"connect","at_s":1,"worker":"w","capacity":0}"#,
        r#"{"event":"connect","at_s":1,"worker":"w","size":2}"#,
        r#"{"event":"disconnect","at_s":1,"worker":"w"}"#,
        r#"{"event":"job","at_s":1,"client":"a","warm_s":1e300,"cold_s":1}"#,
        "{\"event\":\"connect\",\"at_s\":1,\"worker\":\"w\"}\n\n{\"event\":\"connect\",\"at_s\":0,\"worker\":\"w\"}",
        "{\"event\":\"connect\",\"at_s\":1,\"worker\":\"w\"}\n{\"event\":\"connect\",\"at_s\":2,\"worker\":\"w\",\"capacity\":2}",
        "\n  \nhello",
    ]
    .map(refused);
    insta::assert_snapshot!(messages.join("\n"), @r#"
    1: missing field `at_s`
    1: unknown variant `explode`, expected one of `client`, `connect`, `disconnect`, `job` (column 18)
    1: a rate must be a number above 0, not 0
    1: invalid type: string "much", expected f64
    1: `at_s` must be from 0 to 3e9 seconds, not -1.0
    1: a capacity must be 1 or more, not 0
    1: unknown field `size`, expected one of `at_s`, `worker`, `capacity`
    1: no line before says that worker "w" connects
    1: `warm_s` must be from 0 to 3e9 seconds, not 1e300
    1: worker "w" is connected already then
    2: worker "w" had another capacity before
    3: expected value (column 1)
    "#);
    let Err(TraceError::Line { line, .. }) = Trace::read(&b"\n\n\xff\n"[..]) else { panic!("it is not UTF-8") };
    assert_eq!(line, 3);
}

#[test]
fn a_file_that_cannot_be_read_is_no_bad_line() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    assert!(matches!(Trace::read(BufReader::new(Broken)), Err(TraceError::Read(_))));
}
