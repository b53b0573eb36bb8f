//! A job as its client sees it, wherever it runs, however often, and when it has ended.

use std::rc::{Rc, Weak};

use bstr::BString;
use kiln_api::{Answer, Error, Job, JobKey, JobLog, JobServer, Link, LogChunk, Reference as _, answer};
use tokio::sync::watch;

use super::logs::Logs;
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
    Ended(Log, Outcome),
}

/// The log of a job that has ended.
#[derive(Clone)]
pub(super) enum Log {
    /// No worker ever had it.
    None,
    Open(JobLog),
    /// It is in its file, which is opened for each who reads: anybody may refer to any number of jobs that have ended.
    OnDisk(Logs),
}

/// What all who refer to a job share.
pub(super) struct Record {
    pub(super) key: JobKey,
    stage: watch::Sender<Stage>,
    /// How much of its log is in the database, if that is shared. Locked by who adds to that.
    pub(super) archived: tokio::sync::Mutex<u64>,
}

impl Record {
    pub(super) fn new(key: JobKey, stage: Stage) -> Rc<Self> {
        // What an earlier scheduler has begun is here because it was there.
        let archived = if let Stage::Begun(log) = &stage { log.length() } else { 0 };
        Rc::new(Self { key, stage: watch::Sender::new(stage), archived: archived.into() })
    }

    pub(super) fn log(&self) -> Option<JobLog> {
        match &*self.stage.borrow() {
            Stage::Waiting => None,
            Stage::Begun(log) => Some(log.clone()),
            Stage::Ended(Log::Open(log), _) => Some(log.clone()),
            Stage::Ended(Log::None | Log::OnDisk(_), _) => None,
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
        self.stage.send_replace(Stage::Ended(log.map_or(Log::None, Log::Open), outcome));
    }

    /// Returns a reference to the job for a client, a promise until a worker has begun it. As long as the ticket of `hold` or what the promise
    /// becomes is there, the job is held.
    pub(super) fn job(self: &Rc<Self>, hold: Option<&Rc<Hold>>) -> Job {
        let mut stage = self.stage.subscribe();
        let (record, hold) = (Rc::clone(self), hold.map(Rc::downgrade));
        Job::promise(async move {
            let now = stage.wait_for(|stage| !matches!(stage, Stage::Waiting)).await.map(|stage| stage.clone());
            match now {
                Ok(Stage::Ended(Log::None, Err(error))) => return Err(error),
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
        let (log, key) = (self.record.log(), self.record.key);
        let on_disk = match &*self.record.stage.borrow() {
            Stage::Ended(Log::OnDisk(logs), _) => Some(logs.clone()),
            _ => None,
        };
        Box::pin(async move {
            let log = match on_disk {
                Some(logs) => logs.complete(key).await,
                None => log,
            };
            let log = log.ok_or_else(|| Error::failed("there is no log"))?;
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
