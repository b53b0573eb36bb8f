//! A job as its client sees it, wherever it runs, however often, and when it has ended.

use std::rc::{Rc, Weak};

use bstr::BString;
use kiln_api::{Answer, Error, Job, JobKey, JobLog, JobServer, Link, LogChunk, Reference as _, answer};
use tokio::sync::watch;

use super::clients::cannot_read;
use super::logs::{LogError, Logs};
use super::pool::LivePool;
use crate::pool::JobId;

/// How a job ended, for its client.
pub(super) type Outcome = Result<BString, Error>;

/// How far a job has come.
#[derive(Clone)]
pub(super) enum Stage {
    Waiting,
    /// An earlier scheduler had a worker begin it. Its log is as that left it, until somebody needs it: there may be thousands.
    Left(Logs),
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
    /// It is where it is kept, and opened for each who reads: anybody may refer to any number of jobs that have ended.
    Kept(Logs),
}

/// What all who refer to a job share.
pub(super) struct Record {
    pub(super) key: JobKey,
    stage: watch::Sender<Stage>,
    /// How much of its log is in the database, if that is shared. Locked by who adds to that, or opens what was left.
    pub(super) archived: tokio::sync::Mutex<u64>,
}

impl Record {
    pub(super) fn new(key: JobKey, stage: Stage) -> Rc<Self> {
        Rc::new(Self { key, stage: watch::Sender::new(stage), archived: 0.into() })
    }

    /// Returns the log, if it is open.
    pub(super) fn log(&self) -> Option<JobLog> {
        match &*self.stage.borrow() {
            Stage::Waiting | Stage::Left(_) => None,
            Stage::Begun(log) => Some(log.clone()),
            Stage::Ended(Log::Open(log), _) => Some(log.clone()),
            Stage::Ended(Log::None | Log::Kept(_), _) => None,
        }
    }

    /// Returns the log; one that an earlier scheduler left is opened for that. Nothing if no worker has had the job, or if it has ended and its
    /// log is not open.
    pub(super) async fn open_log(&self) -> Result<Option<JobLog>, LogError> {
        if self.left().is_none() {
            return Ok(self.log());
        }
        // Of several who need it, one opens it.
        let mut archived = self.archived.lock().await;
        let Some(logs) = self.left() else { return Ok(self.log()) };
        let log = logs.reopen(self.key).await?;
        // It is as the database has it.
        *archived = log.length();
        self.stage.send_if_modified(|stage| {
            // The job may have ended meanwhile.
            let is_left = matches!(stage, Stage::Left(_));
            if is_left {
                *stage = Stage::Begun(log.clone());
            }
            is_left
        });
        Ok(Some(log))
    }

    /// Returns whether no worker has had the job, and it has not ended.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(&*self.stage.borrow(), Stage::Waiting)
    }

    fn left(&self) -> Option<Logs> {
        if let Stage::Left(logs) = &*self.stage.borrow() { Some(logs.clone()) } else { None }
    }

    pub(super) fn begin(&self, log: JobLog) {
        self.stage.send_replace(Stage::Begun(log));
    }

    /// Ends the job, and its log.
    pub(super) fn end(&self, outcome: Outcome) {
        let log = match (self.log(), self.left()) {
            (Some(log), _) => {
                // Nothing is written, so nothing fails.
                let _ = log.end(b"");
                Log::Open(log)
            }
            (None, Some(logs)) => Log::Kept(logs),
            (None, None) => Log::None,
        };
        self.stage.send_replace(Stage::Ended(log, outcome));
    }

    /// Returns a reference to the job for a client, a promise until a worker has begun it. As long as the ticket of `hold` or
    /// what the promise becomes is there, the job is held.
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
        let record = Rc::clone(&self.record);
        Box::pin(async move {
            record.open_log().await.map_err(|error| cannot_copy(record.key, error))?;
            // Not what was opened: the job may have ended meanwhile.
            let kept = match &*record.stage.borrow() {
                Stage::Ended(Log::Kept(logs), _) => Some(logs.clone()),
                _ => None,
            };
            let log = match kept {
                Some(logs) => logs.complete(record.key).await.map_err(|error| cannot_copy(record.key, error))?,
                None => record.log(),
            };
            // A job that ended without a word, or before it was begun.
            let Some(log) = log else { return Ok(LogChunk { bytes: Vec::new(), next: start.max(0) }) };
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

fn cannot_copy(job: JobKey, error: LogError) -> Error {
    match error {
        LogError::State(error) => cannot_read(error),
        LogError::Forgotten => Error::failed(format!("there is no job {job} any more")),
        LogError::Io(error) => {
            tracing::error!(%job, %error, "cannot read a log");
            Error::failed(format!("the log cannot be read: {error}"))
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
