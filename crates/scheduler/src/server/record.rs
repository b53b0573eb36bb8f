//! A job as its client sees it, wherever it runs, however often, and when it has ended.

use std::rc::{Rc, Weak};

use bstr::BString;
use kiln_api::{Answer, Error, Job, JobKey, JobLog, JobServer, Link, LogChunk, Reference as _, answer};
use tokio::sync::watch;

use super::pool::LivePool;
use crate::pool::JobId;

/// How a job ended, for its client.
pub(super) type Outcome = Result<BString, Error>;

/// How far a job has come.
#[derive(Clone)]
pub(super) enum Stage {
    Waiting,
    /// A worker has begun it, and perhaps another has since.
    Begun(JobLog),
    /// Without a log if no worker ever had it.
    Ended(Option<JobLog>, Outcome),
}

/// What all who refer to a job share.
pub(super) struct Record {
    pub(super) key: JobKey,
    stage: watch::Sender<Stage>,
}

impl Record {
    pub(super) fn new(key: JobKey, stage: Stage) -> Rc<Self> {
        Rc::new(Self { key, stage: watch::Sender::new(stage) })
    }

    pub(super) fn log(&self) -> Option<JobLog> {
        match &*self.stage.borrow() {
            Stage::Waiting => None,
            Stage::Begun(log) => Some(log.clone()),
            Stage::Ended(log, _) => log.clone(),
        }
    }

    pub(super) fn begin(&self, log: JobLog) {
        self.stage.send_replace(Stage::Begun(log));
    }

    /// Ends the job, and its log.
    pub(super) fn end(&self, outcome: Outcome) {
        let log = self.log();
        if let Some(log) = &log {
            // Nothing is written, so nothing fails.
            let _ = log.end(b"");
        }
        self.stage.send_replace(Stage::Ended(log, outcome));
    }

    /// Returns a reference to the job for a client, a promise until a worker has begun it. As long as the ticket of `hold` or what the promise
    /// becomes is there, the job is held.
    pub(super) fn job(self: &Rc<Self>, hold: Option<&Rc<Hold>>) -> Job {
        let mut stage = self.stage.subscribe();
        let (record, hold) = (Rc::clone(self), hold.map(Rc::downgrade));
        Job::promise(async move {
            let now = stage.wait_for(|stage| !matches!(stage, Stage::Waiting)).await.map(|stage| stage.clone());
            match now {
                Ok(Stage::Ended(None, Err(error))) => return Err(error),
                Ok(_) => {}
                Err(_) => return Err(Error::disconnected("the scheduler has ended")),
            }
            let hold = match hold.as_ref().map(Weak::upgrade) {
                Some(None) => return Err(Error::failed("Ticket released (cancelled)")),
                Some(Some(hold)) => Some(hold),
                None => None,
            };
            Ok(Job::serve(Face { record, hold }))
        })
    }
}

/// What a client's reference refers to.
struct Face {
    record: Rc<Record>,
    /// `None` for one that only looks.
    hold: Option<Rc<Hold>>,
}

impl JobServer for Face {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let Some(log) = self.record.log() else { return answer(Err(Error::failed("there is no log"))) };
        Box::pin(async move {
            log.chunk(start).await.map_err(|error| Error::failed(format!("the log cannot be read: {error}")))
        })
    }

    fn result(&self) -> Answer<BString> {
        let mut stage = self.record.stage.subscribe();
        Box::pin(async move {
            match stage.wait_for(|stage| matches!(stage, Stage::Ended(..))).await.map(|stage| stage.clone()) {
                Ok(Stage::Ended(_, outcome)) => outcome,
                _ => Err(Error::disconnected("the scheduler has ended")),
            }
        })
    }

    fn cancel(&self) -> Answer<()> {
        match &self.hold {
            Some(hold) => hold.cancel("Build cancelled"),
            None => answer(Err(Error::failed("this reference only looks; cancel the job by its id"))),
        }
    }
}

/// A client's interest in a job. The last one that is dropped lets the job go.
pub(super) struct Hold {
    pool: Rc<LivePool>,
    id: JobId,
    /// Where the client is.
    link: Link,
}

impl Hold {
    pub(super) fn new(pool: &Rc<LivePool>, id: JobId, link: Link) -> Rc<Self> {
        pool.hold(id);
        Rc::new(Self { pool: Rc::clone(pool), id, link })
    }

    pub(super) fn cancel(&self, why: &str) -> Answer<()> {
        self.pool.cancel(self.id, why)
    }

    /// Waits until the job survives the scheduler's machine.
    pub(super) fn stored(&self) -> Answer<()> {
        self.pool.stored(self.id)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pool.let_go(self.id, self.link.is_silent());
    }
}
