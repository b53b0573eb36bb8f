//! A job that was submitted.

use std::rc::Rc;

use super::{Answer, Job, answer, reference};
use crate::error::Error;
use crate::generated::kiln_capnp::kiln_ticket;
use crate::generated::ocluster_capnp::ticket;

reference! {
    /// A reference to a ticket. A job that waits is cancelled when no reference to its ticket is left; one that runs, when none is left
    /// to the job either.
    Ticket, ticket::Client
}

/// What a ticket does for those who refer to it. What has a body here, no object of OCluster's does.
pub trait TicketServer: 'static {
    /// Returns the job, which may be a promise until a worker has it.
    fn job(&self) -> Job;
    /// Cancels the job, which then fails.
    fn cancel(&self) -> Answer<()>;
    /// Waits until the job outlives the scheduler.
    fn stored(&self) -> Answer<()> {
        answer(Err(Error::unimplemented()))
    }
}

impl Ticket {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl TicketServer) -> Self {
        let kiln: kiln_ticket::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(kiln.client.hook))
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

    /// See [`TicketServer::stored`].
    ///
    /// # Errors
    ///
    /// As [`cancel`](Self::cancel).
    pub async fn stored(&self) -> Result<(), Error> {
        let kiln: kiln_ticket::Client = capnp::capability::FromClientHook::new(self.0.client.hook.clone());
        kiln.stored_request().send().promise.await?;
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

impl<T: TicketServer> kiln_ticket::Server for Adapter<T> {
    async fn stored(
        self: Rc<Self>,
        _: kiln_ticket::StoredParams,
        _: kiln_ticket::StoredResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.stored();
        drop(self);
        Ok(answer.await?)
    }
}
