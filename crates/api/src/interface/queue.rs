//! Where a worker gets its jobs.

use std::rc::Rc;

use super::{Answer, Job, reference};
use crate::description::JobDescription;
use crate::error::Error;
use crate::generated::ocluster_capnp::queue;

reference! {
    /// A reference to a worker's queue. Dropping the last one is leaving the pool.
    Queue, queue::Client
}

/// What a scheduler does for a registered worker.
pub trait QueueServer: 'static {
    /// Waits for a job. `job` will be it.
    fn pop(&self, job: Job) -> Answer<JobDescription>;
    /// Says whether the worker wants jobs at all.
    fn set_active(&self, active: bool) -> Answer<()>;
}

impl Queue {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl QueueServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// See [`QueueServer::pop`]. Dropping the future gives the request up.
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn pop(&self, job: Job) -> Result<JobDescription, Error> {
        let mut request = self.0.pop_request();
        request.get().set_job(job.0);
        let response = request.send().promise.await?;
        Ok(JobDescription::read(response.get()?.get_descr()?)?)
    }

    /// See [`QueueServer::set_active`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn set_active(&self, active: bool) -> Result<(), Error> {
        let mut request = self.0.set_active_request();
        request.get().set_active(active);
        request.send().promise.await?;
        Ok(())
    }
}

struct Adapter<T>(T);

impl<T: QueueServer> queue::Server for Adapter<T> {
    async fn pop(self: Rc<Self>, params: queue::PopParams, mut results: queue::PopResults) -> Result<(), capnp::Error> {
        // It goes on to a client.
        let answer = self.0.pop(Job(params.get()?.get_job()?).relayed());
        drop(params);
        drop(self);
        let description = answer.await?;
        description.write(results.get().init_descr())
    }

    async fn set_active(
        self: Rc<Self>,
        params: queue::SetActiveParams,
        _: queue::SetActiveResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.set_active(params.get()?.get_active());
        drop(self);
        Ok(answer.await?)
    }
}
