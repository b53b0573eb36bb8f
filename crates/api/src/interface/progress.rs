//! Whoever is told what happens while a call waits.

use std::rc::Rc;

use super::{Answer, reference};
use crate::error::Error;
use crate::generated::ocluster_capnp::progress;
use crate::text::text;

reference! {
    /// A reference to who wants to know.
    Progress, progress::Client
}

/// What is done with reports.
pub trait ProgressServer: 'static {
    /// Takes a line of text, without its end.
    fn report(&self, status: &[u8]) -> Answer<()>;
}

impl Progress {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl ProgressServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// Reports `status`, and waits until it is taken.
    ///
    /// # Errors
    ///
    /// That there is nobody any more.
    pub async fn report(&self, status: &str) -> Result<(), Error> {
        let mut request = self.0.report_request();
        request.get().set_status(text(status.as_bytes()));
        request.send().promise.await?;
        Ok(())
    }
}

struct Adapter<T>(T);

impl<T: ProgressServer> progress::Server for Adapter<T> {
    async fn report(
        self: Rc<Self>,
        params: progress::ReportParams,
        _: progress::ReportResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.report(params.get()?.get_status()?.as_bytes());
        drop(self);
        Ok(answer.await?)
    }
}
