//! A job that was submitted.

use std::rc::Rc;

use super::{Answer, Job, reference};
use crate::error::Error;
use crate::generated::ocluster_capnp::ticket;

reference! {
    /// A reference to a ticket. A job that waits is cancelled when no reference to its ticket is left; one that runs, when none is left
    /// to the job either.
    Ticket, ticket::Client
}

/// What a ticket does for those who refer to it.
pub trait TicketServer: 'static {
    /// Returns the job, which may be a promise until a worker has it.
    fn job(&self) -> Job;
    /// Cancels the job, which then fails.
    fn cancel(&self) -> Answer<()>;
}

impl Ticket {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl TicketServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// Returns the job, without waiting for anything: calls on it wait.
    pub fn job(&self) -> Job {
        Job(self.0.job_request().send().pipeline.get_job())
    }

    /// Cancels the job.
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn cancel(&self) -> Result<(), Error> {
        self.0.cancel_request().send().promise.await?;
        Ok(())
    }
}

struct Adapter<T>(T);

impl<T: TicketServer> ticket::Server for Adapter<T> {
    async fn job(self: Rc<Self>, _: ticket::JobParams, mut results: ticket::JobResults) -> Result<(), capnp::Error> {
        results.get().set_job(self.0.job().0);
        Ok(())
    }

    async fn cancel(self: Rc<Self>, _: ticket::CancelParams, _: ticket::CancelResults) -> Result<(), capnp::Error> {
        let answer = self.0.cancel();
        drop(self);
        Ok(answer.await?)
    }
}
