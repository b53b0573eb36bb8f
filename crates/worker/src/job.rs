//! A job, as its client sees it.

use std::sync::Arc;

use bstr::BString;
use kiln_api::{Answer, Error, Job, JobServer, LogChunk, answer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::log::JobLog;

/// How a job ended: with what it made, or with what its client is told.
pub(crate) type Outcome = Result<BString, &'static str>;

/// A job that waits for its description, runs or has ended. Who does it and who refers to it share this.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) log: JobLog,
    /// Fires when the job is no longer wanted.
    pub(crate) cancel: CancellationToken,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Progress {
    pub(crate) fn new(log: JobLog) -> Arc<Self> {
        Arc::new(Self { log, cancel: CancellationToken::new(), outcome: watch::Sender::new(None) })
    }

    /// Ends the job.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Returns a reference for others. When nobody has one any more, the job is cancelled.
    pub(crate) fn serve(self: &Arc<Self>) -> Job {
        Job::serve(Served(Arc::clone(self)))
    }
}

/// What others refer to.
struct Served(Arc<Progress>);

impl JobServer for Served {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        let log = self.0.log.clone();
        Box::pin(async move {
            let (bytes, next) =
                log.read(start).await.map_err(|error| Error::failed(format!("the log cannot be read: {error}")))?;
            Ok(LogChunk { bytes, next: i64::try_from(next).unwrap_or(i64::MAX) })
        })
    }

    fn result(&self) -> Answer<BString> {
        let mut outcome = self.0.outcome.subscribe();
        Box::pin(async move {
            let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
            match outcome {
                Ok(Some(outcome)) => outcome.map_err(Error::failed),
                // It never began.
                _ => Err(Error::failed("Build cancelled")),
            }
        })
    }

    fn cancel(&self) -> Answer<()> {
        self.0.cancel.cancel();
        answer(Ok(()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.cancel.cancel();
    }
}
