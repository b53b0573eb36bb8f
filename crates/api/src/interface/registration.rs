//! The right to be a worker of a pool.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, Queue, Worker, reference};
use crate::error::Error;
use crate::generated::ocluster_capnp::registration;
use crate::text::{bytes, text};

reference! {
    /// A reference to a pool, for its workers.
    Registration, registration::Client
}

/// What a pool does for its workers.
pub trait RegistrationServer: 'static {
    /// Makes a worker part of the pool, until the queue that this returns is dropped. `capacity` is how many jobs it does at once.
    fn register(&self, name: BString, worker: Worker, capacity: i32) -> Answer<Queue>;
}

impl Registration {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl RegistrationServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// See [`RegistrationServer::register`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn register(&self, name: &[u8], worker: Worker, capacity: i32) -> Result<Queue, Error> {
        let mut request = self.0.register_request();
        let mut params = request.get();
        params.set_name(text(name));
        params.set_worker(worker.0);
        params.set_capacity(capacity);
        let response = request.send().promise.await?;
        Ok(Queue(response.get()?.get_queue()?))
    }
}

struct Adapter<T>(T);

impl<T: RegistrationServer> registration::Server for Adapter<T> {
    async fn register(
        self: Rc<Self>,
        params: registration::RegisterParams,
        mut results: registration::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            // Administrators get it.
            let worker = Worker(params.get_worker()?).relayed();
            self.0.register(bytes(params.get_name()?), worker, params.get_capacity())
        };
        drop(params);
        drop(self);
        results.get().set_queue(answer.await?.0);
        Ok(())
    }
}
