//! The right to submit jobs.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, Job, JobInfo, Ticket, answer, reference};
use crate::description::JobDescription;
use crate::error::{Error, ErrorKind};
use crate::generated::kiln_capnp::kiln_submission;
use crate::generated::ocluster_capnp::submission;
use crate::generated::vat_capnp::persistent;
use crate::job_key::JobKey;
use crate::text::{bytes, length, text};
use crate::uri::{CapabilityUri, UriError};

reference! {
    /// A reference to a scheduler, as one of its clients.
    Submission, submission::Client
}

/// What a scheduler does for a client. What has a body here, no object of OCluster's does.
pub trait SubmissionServer: 'static {
    /// Puts a job into the queue of `pool`. A pool that does not exist is a ticket that fails.
    fn submit(&self, pool: BString, description: JobDescription, urgent: bool) -> Ticket;
    /// Returns the URI that this client can be reached by again.
    fn save(&self) -> Answer<CapabilityUri>;
    /// Submits a job that outlives the scheduler, or finds the one that this client submitted under this key. Returns whether it is new.
    fn submit_kept(&self, _kept: KeptSubmission) -> Answer<(Ticket, bool)> {
        answer(Err(Error::unimplemented()))
    }
    /// Returns a job that was submitted so, without holding it.
    fn find(&self, _key: JobKey) -> Answer<(Job, JobInfo)> {
        answer(Err(Error::unimplemented()))
    }
    /// Cancels such a job, if it has not ended.
    fn cancel(&self, _key: JobKey) -> Answer<()> {
        answer(Err(Error::unimplemented()))
    }
    /// Returns such jobs that have not ended, and the latest that have.
    fn list(&self) -> Answer<Vec<JobInfo>> {
        answer(Err(Error::unimplemented()))
    }
}

/// A job that is to outlive its scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSubmission {
    /// What it is called from now on.
    pub key: JobKey,
    /// The pool that is to do it.
    pub pool: BString,
    /// What is to be done.
    pub description: JobDescription,
    /// It goes before all that are not.
    pub urgent: bool,
    /// It goes on without its client.
    pub detached: bool,
}

impl Submission {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl SubmissionServer) -> Self {
        let kiln: kiln_submission::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(kiln.client.hook))
    }

    /// Submits a job, and returns its ticket without waiting: calls on it wait, and tell what went wrong. An urgent job goes before all
    /// that are not.
    ///
    /// # Errors
    ///
    /// If the description cannot be written as a message.
    pub fn submit(&self, pool: &[u8], description: &JobDescription, urgent: bool) -> Result<Ticket, Error> {
        let mut request = self.0.submit_request();
        let mut params = request.get();
        params.set_pool(text(pool));
        params.set_urgent(urgent);
        description.write(params.init_descr())?;
        Ok(Ticket(request.send().pipeline.get_ticket()))
    }

    /// Returns the URI that this client can be reached by again.
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn save(&self) -> Result<CapabilityUri, Error> {
        let persistent: persistent::Client = capnp::capability::FromClientHook::new(self.0.client.hook.clone());
        let response = persistent.save_request().send().promise.await?;
        let uri = response.get()?.get_sturdy_ref().get_as::<capnp::text::Reader<'_>>()?;
        let uri = uri.to_str().map_err(capnp::Error::from)?;
        uri.parse().map_err(|error: UriError| Error { kind: ErrorKind::Failed, message: error.to_string() })
    }
}

impl Submission {
    /// See [`SubmissionServer::submit_kept`]. Returns the ticket without waiting, and what tells whether the job is new.
    ///
    /// # Errors
    ///
    /// If the description cannot be written as a message. OCluster's schedulers have no such methods: the future says so.
    pub fn submit_kept(
        &self,
        kept: &KeptSubmission,
    ) -> Result<(Ticket, impl Future<Output = Result<bool, Error>> + 'static), Error> {
        let mut request = self.as_kiln().submit_kept_request();
        let mut params = request.get();
        params.set_id(&kept.key.0);
        params.set_pool(text(&kept.pool));
        params.set_urgent(kept.urgent);
        params.set_detached(kept.detached);
        kept.description.write(params.init_descr())?;
        let sent = request.send();
        let ticket = Ticket(capnp::capability::FromClientHook::new(sent.pipeline.get_ticket().client.hook));
        Ok((ticket, async move { Ok(sent.promise.await?.get()?.get_is_new()) }))
    }

    /// See [`SubmissionServer::find`].
    ///
    /// # Errors
    ///
    /// There is no such job, or the scheduler cannot be reached.
    pub async fn find(&self, key: JobKey) -> Result<(Job, JobInfo), Error> {
        let mut request = self.as_kiln().find_request();
        request.get().set_id(&key.0);
        let response = request.send().promise.await?;
        let response = response.get()?;
        Ok((Job(response.get_job()?), JobInfo::read(response.get_info()?)?))
    }

    /// See [`SubmissionServer::cancel`].
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub async fn cancel(&self, key: JobKey) -> Result<(), Error> {
        let mut request = self.as_kiln().cancel_request();
        request.get().set_id(&key.0);
        request.send().promise.await?;
        Ok(())
    }

    /// See [`SubmissionServer::list`].
    ///
    /// # Errors
    ///
    /// The scheduler cannot be reached.
    pub async fn list(&self) -> Result<Vec<JobInfo>, Error> {
        let response = self.as_kiln().list_request().send().promise.await?;
        let jobs = response.get()?.get_jobs()?;
        jobs.iter().map(|job| JobInfo::read(job).map_err(Error::from)).collect()
    }

    fn as_kiln(&self) -> kiln_submission::Client {
        capnp::capability::FromClientHook::new(self.0.client.hook.clone())
    }
}

struct Adapter<T>(T);

impl<T: SubmissionServer> submission::Server for Adapter<T> {
    async fn submit(
        self: Rc<Self>,
        params: submission::SubmitParams,
        mut results: submission::SubmitResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let description = JobDescription::read(params.get_descr()?)?;
        let ticket = self.0.submit(bytes(params.get_pool()?), description, params.get_urgent());
        results.get().set_ticket(ticket.0);
        Ok(())
    }
}

impl<T: SubmissionServer> persistent::Server for Adapter<T> {
    async fn save(
        self: Rc<Self>,
        _: persistent::SaveParams,
        mut results: persistent::SaveResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.save();
        drop(self);
        let uri = answer.await?.to_string();
        results.get().get_sturdy_ref().set_as(text(uri.as_bytes()))
    }
}

impl<T: SubmissionServer> kiln_submission::Server for Adapter<T> {
    async fn submit_kept(
        self: Rc<Self>,
        params: kiln_submission::SubmitKeptParams,
        mut results: kiln_submission::SubmitKeptResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            self.0.submit_kept(KeptSubmission {
                key: JobKey::read(params.get_id()?)?,
                pool: bytes(params.get_pool()?),
                description: JobDescription::read(params.get_descr()?)?,
                urgent: params.get_urgent(),
                detached: params.get_detached(),
            })
        };
        drop(params);
        drop(self);
        let (ticket, is_new) = answer.await?;
        let mut results = results.get();
        results.set_ticket(capnp::capability::FromClientHook::new(ticket.0.client.hook));
        results.set_is_new(is_new);
        Ok(())
    }

    async fn find(
        self: Rc<Self>,
        params: kiln_submission::FindParams,
        mut results: kiln_submission::FindResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.find(JobKey::read(params.get()?.get_id()?)?);
        drop(self);
        let (job, info) = answer.await?;
        let mut results = results.get();
        results.set_job(job.0);
        info.write(results.init_info());
        Ok(())
    }

    async fn cancel(
        self: Rc<Self>,
        params: kiln_submission::CancelParams,
        _: kiln_submission::CancelResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.cancel(JobKey::read(params.get()?.get_id()?)?);
        drop(self);
        Ok(answer.await?)
    }

    async fn list(
        self: Rc<Self>,
        _: kiln_submission::ListParams,
        mut results: kiln_submission::ListResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.list();
        drop(self);
        let jobs = answer.await?;
        let mut list = results.get().init_jobs(length(jobs.len())?);
        for (index, job) in (0..).zip(&jobs) {
            job.write(list.reborrow().get(index));
        }
        Ok(())
    }
}
