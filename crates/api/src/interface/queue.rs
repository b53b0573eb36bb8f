//! Where a worker gets its jobs.

use std::rc::Rc;

use super::{Answer, Job, answer, reference};
use crate::description::JobDescription;
use crate::error::Error;
use crate::generated::kiln_capnp::kiln_queue;
use crate::generated::ocluster_capnp::queue;
use crate::job_key::JobKey;

reference! {
    /// A reference to a worker's queue. Dropping the last one is leaving the pool.
    Queue, queue::Client
}

/// What a scheduler does for a registered worker. What has a body here, no object of OCluster's does.
pub trait QueueServer: 'static {
    /// Waits for a job. `job` will be it.
    fn pop(&self, job: Job) -> Answer<JobDescription>;
    /// Says whether the worker wants jobs at all.
    fn set_active(&self, active: bool) -> Answer<()>;
    /// Waits for a job, for a worker that does not end it when the connection is lost.
    fn take(&self, _job: Job) -> Answer<(JobDescription, Run)> {
        answer(Err(Error::unimplemented()))
    }
    /// Takes over a job that the worker has from before. Returns whether it is wanted.
    fn offer(&self, _run: Run, _job: Job) -> Answer<bool> {
        answer(Err(Error::unimplemented()))
    }
    /// Is told that everything has been offered.
    fn ready(&self) -> Answer<()> {
        answer(Err(Error::unimplemented()))
    }
}

/// One try of a worker at a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Which job.
    pub job: JobKey,
    /// Which of its tries, from 1.
    pub number: u32,
}

impl Queue {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl QueueServer) -> Self {
        let kiln: kiln_queue::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(kiln.client.hook))
    }

    /// See [`QueueServer::pop`]. Dropping the future gives the request up.
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached. This holds for all methods here.
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
    /// As [`pop`](Self::pop).
    pub async fn set_active(&self, active: bool) -> Result<(), Error> {
        let mut request = self.0.set_active_request();
        request.get().set_active(active);
        request.send().promise.await?;
        Ok(())
    }

    /// See [`QueueServer::take`]. Dropping the future gives the request up.
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    pub async fn take(&self, job: Job) -> Result<(JobDescription, Run), Error> {
        let mut request = self.as_kiln().take_request();
        request.get().set_job(job.as_kept());
        let response = request.send().promise.await?;
        let response = response.get()?;
        let run = Run { job: JobKey::read(response.get_id()?)?, number: response.get_run() };
        Ok((JobDescription::read(response.get_descr()?)?, run))
    }

    /// See [`QueueServer::offer`].
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    pub async fn offer(&self, run: Run, job: Job) -> Result<bool, Error> {
        let mut request = self.as_kiln().offer_request();
        let mut params = request.get();
        params.set_id(&run.job.0);
        params.set_run(run.number);
        params.set_job(job.as_kept());
        Ok(request.send().promise.await?.get()?.get_wanted())
    }

    /// See [`QueueServer::ready`].
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    pub async fn ready(&self) -> Result<(), Error> {
        self.as_kiln().ready_request().send().promise.await?;
        Ok(())
    }

    fn as_kiln(&self) -> kiln_queue::Client {
        capnp::capability::FromClientHook::new(self.0.client.hook.clone())
    }
}

struct Adapter<T>(T);

impl<T: QueueServer> queue::Server for Adapter<T> {
    async fn pop(self: Rc<Self>, params: queue::PopParams, mut results: queue::PopResults) -> Result<(), capnp::Error> {
        let answer = self.0.pop(Job(params.get()?.get_job()?));
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

impl<T: QueueServer> kiln_queue::Server for Adapter<T> {
    async fn take(
        self: Rc<Self>,
        params: kiln_queue::TakeParams,
        mut results: kiln_queue::TakeResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.take(Job(capnp::capability::FromClientHook::new(params.get()?.get_job()?.client.hook)));
        drop(params);
        drop(self);
        let (description, run) = answer.await?;
        let mut results = results.get();
        results.set_id(&run.job.0);
        results.set_run(run.number);
        description.write(results.init_descr())
    }

    async fn offer(
        self: Rc<Self>,
        params: kiln_queue::OfferParams,
        mut results: kiln_queue::OfferResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            let run = Run { job: JobKey::read(params.get_id()?)?, number: params.get_run() };
            self.0.offer(run, Job(capnp::capability::FromClientHook::new(params.get_job()?.client.hook)))
        };
        drop(params);
        drop(self);
        results.get().set_wanted(answer.await?);
        Ok(())
    }

    async fn ready(
        self: Rc<Self>,
        _: kiln_queue::ReadyParams,
        _: kiln_queue::ReadyResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.ready();
        drop(self);
        Ok(answer.await?)
    }
}
