//! A job that a worker does.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, reference};
use crate::error::Error;
use crate::generated::kiln_capnp::kiln_job;
use crate::generated::ocluster_capnp::job;
use crate::text::{bytes, text};

/// The most bytes of a log that OCluster's programs send at once, and so the most they are sure to take.
pub const MAX_CHUNK: usize = 10_240;

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The bytes; none if the log is complete.
    pub bytes: Vec<u8>,
    /// Where the next part begins.
    pub next: i64,
}

reference! {
    /// A reference to a job. The job is cancelled when no reference to it and its ticket is left.
    Job, job::Client
}

/// What a job does for those who refer to it.
pub trait JobServer: 'static {
    /// Waits until there is something in the log past `start`, and returns it or part of it. A negative start counts from the end.
    fn log(&self, start: i64) -> Answer<LogChunk>;
    /// Waits for the end, and returns what the job made, or why it failed.
    fn result(&self) -> Answer<BString>;
    /// Cancels the job, which then fails.
    fn cancel(&self) -> Answer<()>;
}

/// What a job does that goes on while its scheduler is not there.
pub trait KeptJobServer: JobServer {
    /// Is told that the scheduler has the log and the result for good.
    fn forget(&self) -> Answer<()>;
}

impl Job {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl JobServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// As [`serve`](Self::serve).
    pub fn serve_kept(server: impl KeptJobServer) -> Self {
        let kept: kiln_job::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(kept.client.hook))
    }

    /// See [`JobServer::log`].
    ///
    /// # Errors
    ///
    /// What the job says, or that it cannot be reached. This holds for all methods here.
    ///
    /// The call is made at once. Its future is no reference to the job: a job that nobody refers to is cancelled, and then its calls
    /// say so.
    pub fn log(&self, start: i64) -> impl Future<Output = Result<LogChunk, Error>> + 'static {
        let mut request = self.0.log_request();
        request.get().set_start(start);
        let response = request.send().promise;
        async move {
            let response = response.await?;
            let response = response.get()?;
            Ok(LogChunk { bytes: response.get_log()?.to_vec(), next: response.get_next() })
        }
    }

    /// See [`JobServer::result`].
    ///
    /// # Errors
    ///
    /// Why the job failed; and as [`Job::log`], as everything said there.
    pub fn result(&self) -> impl Future<Output = Result<BString, Error>> + 'static {
        let response = self.0.result_request().send().promise;
        async move { Ok(bytes(response.await?.get()?.get_output()?)) }
    }

    /// See [`JobServer::cancel`].
    ///
    /// # Errors
    ///
    /// As [`Job::log`].
    pub fn cancel(&self) -> impl Future<Output = Result<(), Error>> + 'static {
        let response = self.0.cancel_request().send().promise;
        async move {
            response.await?;
            Ok(())
        }
    }

    /// See [`KeptJobServer::forget`].
    ///
    /// # Errors
    ///
    /// As [`Job::log`].
    pub fn forget(&self) -> impl Future<Output = Result<(), Error>> + 'static {
        let response = self.as_kept().forget_request().send().promise;
        async move {
            response.await?;
            Ok(())
        }
    }

    pub(super) fn as_kept(&self) -> kiln_job::Client {
        capnp::capability::FromClientHook::new(self.0.client.hook.clone())
    }
}

struct Adapter<T>(T);

impl<T: JobServer> job::Server for Adapter<T> {
    async fn log(self: Rc<Self>, params: job::LogParams, mut results: job::LogResults) -> Result<(), capnp::Error> {
        let answer = self.0.log(params.get()?.get_start());
        drop(self);
        let chunk = answer.await?;
        let mut results = results.get();
        results.set_log(&chunk.bytes);
        results.set_next(chunk.next);
        Ok(())
    }

    async fn result(self: Rc<Self>, _: job::ResultParams, mut results: job::ResultResults) -> Result<(), capnp::Error> {
        let answer = self.0.result();
        drop(self);
        let output = answer.await?;
        results.get().set_output(text(&output));
        Ok(())
    }

    async fn cancel(self: Rc<Self>, _: job::CancelParams, _: job::CancelResults) -> Result<(), capnp::Error> {
        let answer = self.0.cancel();
        drop(self);
        Ok(answer.await?)
    }
}

impl<T: KeptJobServer> kiln_job::Server for Adapter<T> {
    async fn forget(self: Rc<Self>, _: kiln_job::ForgetParams, _: kiln_job::ForgetResults) -> Result<(), capnp::Error> {
        let answer = self.0.forget();
        drop(self);
        Ok(answer.await?)
    }
}
