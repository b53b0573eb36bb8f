//! Clients that submit jobs, and follow them to their end.

use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::{
    Action, CapabilityUri, Connection, Error, ErrorKind, JobDescription, JobKey, KeptSubmission, Key, Limits, LogTail,
    Submission,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::workers::{log, result, spec};
use super::{Plan, Tally};

/// How long to wait before connecting again, first and at most: as a real client.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long the end of a connection may take to be noticed, once calls say that something was lost.
const NOTICE: Duration = Duration::from_secs(1);

/// One client, whatever its connection does.
pub(super) struct Client {
    pool: BString,
    tally: Rc<Tally>,
    line: watch::Sender<Option<Rc<Line>>>,
}

/// A connection of a client's.
struct Line {
    connection: Connection,
    submission: Submission,
}

/// What of a job a client has.
#[derive(Default)]
struct Got {
    position: i64,
    log: Vec<u8>,
}

impl Client {
    pub(super) fn new(plan: &Plan, tally: &Rc<Tally>) -> Rc<Self> {
        Rc::new(Self { pool: plan.pool_name.clone(), tally: Rc::clone(tally), line: watch::Sender::new(None) })
    }

    /// Connects, whenever it is cut off, until `stop`.
    pub(super) async fn connect(self: Rc<Self>, uri: CapabilityUri, stop: CancellationToken) {
        let mut pause = PAUSE.0;
        while !stop.is_cancelled() {
            if let Ok((key, _)) = Key::generate()
                && let Ok(connection) = Connection::open(&uri, &key, Limits::default()).await
            {
                let closed = connection.closed();
                let submission = connection.bootstrap(&uri.service);
                self.line.send_replace(Some(Rc::new(Line { connection, submission })));
                tokio::select! {
                    () = closed => {}
                    () = stop.cancelled() => {}
                }
                self.line.send_replace(None);
                pause = PAUSE.0;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    pub(super) async fn until_connected(&self) {
        self.line().await;
    }

    /// Returns the connection, as soon as there is one.
    async fn line(&self) -> Option<Rc<Line>> {
        self.line.subscribe().wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Has a job done, and looks at what comes of it.
    pub(super) async fn job(self: Rc<Self>, number: usize) {
        let description = JobDescription {
            action: Action::OBuilder(spec(number)),
            cache_hint: "".into(),
            repository: "".into(),
            commits: vec![],
            secrets: vec![],
        };
        let kept = KeptSubmission {
            key: JobKey::random(),
            pool: self.pool.clone(),
            description,
            urgent: false,
            detached: false,
        };
        let mut got = Got::default();
        let mut is_first = true;
        let output = loop {
            let Some(line) = self.line().await else { return };
            match follow(&line, &kept, &mut got, is_first).await {
                Ok(output) => break Ok(output),
                Err(error) => {
                    // Calls learn of a lost connection a little before the connection does.
                    let is_lost = error.kind == ErrorKind::Disconnected
                        && timeout(NOTICE, line.connection.closed()).await.is_ok();
                    if !is_lost {
                        break Err(error);
                    }
                    is_first = false;
                    // The next one, and not this again.
                    let is_next = |now: &Option<Rc<Line>>| now.as_ref().is_some_and(|now| !Rc::ptr_eq(now, &line));
                    let _ = self.line.subscribe().wait_for(is_next).await;
                }
            }
        };
        self.check(number, output, &got.log);
    }

    fn check(&self, number: usize, output: Result<BString, Error>, said: &[u8]) {
        let (worker, runs) = self.tally.ends(number);
        let Some(worker) = worker else {
            return self.tally.wrong(format!("job {number} ended without being begun: {output:?}"));
        };
        let expected = {
            let (begin, end) = log(&worker, number);
            begin + &end
        };
        let is_right = match runs {
            1 => said == expected.as_bytes(),
            _ => said.ends_with(expected.as_bytes()),
        };
        if !is_right {
            self.tally.wrong(format!("the log of job {number} is {:?}", String::from_utf8_lossy(said)));
        }
        match output {
            Ok(output) if output == result(&worker, number) => {}
            other => self.tally.wrong(format!("job {number} on {worker} ended with {other:?}")),
        }
    }
}

/// Submits a job, or finds it, and reads on to its end.
async fn follow(line: &Line, kept: &KeptSubmission, got: &mut Got, is_first: bool) -> Result<BString, Error> {
    let (ticket, is_new) = line.submission.submit_kept(kept)?;
    if is_new.await? && !is_first {
        *got = Got::default();
    }
    let job = ticket.job();
    let ended = job.result();
    let mut tail = LogTail::at(job, got.position);
    loop {
        let part = tail.next().await?;
        if part.is_empty() {
            break;
        }
        got.log.extend(part);
        got.position = tail.position();
    }
    let output = ended.await;
    drop(ticket);
    output
}
