//! The right to submit jobs.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, Ticket, reference};
use crate::description::JobDescription;
use crate::error::{Error, ErrorKind};
use crate::generated::ocluster_capnp::submission;
use crate::generated::vat_capnp::{durable_submission, persistent};
use crate::text::{bytes, text};
use crate::uri::{CapabilityUri, UriError};

reference! {
    /// A reference to a scheduler, as one of its clients.
    Submission, submission::Client
}

/// What a scheduler does for a client.
pub trait SubmissionServer: 'static {
    /// Puts a job into the queue of `pool`. A pool that does not exist is a ticket that fails.
    fn submit(&self, pool: BString, description: JobDescription, urgent: bool) -> Ticket;
    /// Returns the URI that this client can be reached by again.
    fn save(&self) -> Answer<CapabilityUri>;
}

impl Submission {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl SubmissionServer) -> Self {
        let durable: durable_submission::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(durable.client.hook))
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

impl<T: SubmissionServer> durable_submission::Server for Adapter<T> {}
