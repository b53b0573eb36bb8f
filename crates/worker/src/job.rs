//! A job, as its client sees it.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

use bstr::BString;
use kiln_api::{Answer, Error, Job, JobServer, LogChunk, answer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use kiln_api::JobLog;

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

    /// Answers `Job.log`.
    pub(crate) fn log(&self, start: i64) -> Answer<LogChunk> {
        let log = self.log.clone();
        Box::pin(async move {
            log.chunk(start).await.map_err(|error| Error::failed(format!("the log cannot be read: {error}")))
        })
    }

    /// Answers `Job.result`.
    pub(crate) fn result(&self) -> Answer<BString> {
        let mut outcome = self.outcome.subscribe();
        Box::pin(async move {
            let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
            match outcome {
                Ok(Some(outcome)) => outcome.map_err(Error::failed),
                // It never began.
                _ => Err(Error::failed("Build cancelled")),
            }
        })
    }

    /// Returns a reference for others. When nobody has one any more, the job is cancelled, and `lent` is dropped.
    pub(crate) fn serve(self: &Arc<Self>, lent: Rc<dyn Any>) -> Job {
        Job::serve(Served { progress: Arc::clone(self), _lent: lent })
    }
}

/// What others refer to.
struct Served {
    progress: Arc<Progress>,
    _lent: Rc<dyn Any>,
}

impl JobServer for Served {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        self.progress.log(start)
    }

    fn result(&self) -> Answer<BString> {
        self.progress.result()
    }

    fn cancel(&self) -> Answer<()> {
        self.progress.cancel.cancel();
        answer(Ok(()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.progress.cancel.cancel();
    }
}
