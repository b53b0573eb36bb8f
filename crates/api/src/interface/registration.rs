//! The right to be a worker of a pool.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, Queue, Worker, answer, reference};
use crate::error::Error;
use crate::generated::kiln_capnp::kiln_registration;
use crate::generated::ocluster_capnp::registration;
use crate::text::{bytes, text};

reference! {
    /// A reference to a pool, for its workers.
    Registration, registration::Client
}

/// What a pool does for its workers. What has a body here, no object of OCluster's does.
pub trait RegistrationServer: 'static {
    /// Makes a worker part of the pool, until the queue that this returns is dropped. `capacity` is how many jobs it does at once.
    fn register(&self, name: BString, worker: Worker, capacity: i32) -> Answer<Queue>;
    /// The same, for a worker that keeps its jobs when the connection is lost. It gets none before [`ready`](super::QueueServer::ready).
    /// `process` is what it calls itself: one of the same name and process is replaced.
    fn enter(&self, _name: BString, _worker: Worker, _capacity: i32, _process: Vec<u8>) -> Answer<Queue> {
        answer(Err(Error::unimplemented()))
    }
}

impl Registration {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl RegistrationServer) -> Self {
        let kiln: kiln_registration::Client = capnp_rpc::new_client(Adapter(server));
        Self(capnp::capability::FromClientHook::new(kiln.client.hook))
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

    /// See [`RegistrationServer::enter`].
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register). OCluster's schedulers have no such method.
    pub async fn enter(&self, name: &[u8], worker: Worker, capacity: i32, process: &[u8]) -> Result<Queue, Error> {
        let kiln: kiln_registration::Client = capnp::capability::FromClientHook::new(self.0.client.hook.clone());
        let mut request = kiln.enter_request();
        let mut params = request.get();
        params.set_name(text(name));
        params.set_worker(worker.0);
        params.set_capacity(capacity);
        params.set_process(process);
        let response = request.send().promise.await?;
        Ok(Queue(capnp::capability::FromClientHook::new(response.get()?.get_queue()?.client.hook)))
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

impl<T: RegistrationServer> kiln_registration::Server for Adapter<T> {
    async fn enter(
        self: Rc<Self>,
        params: kiln_registration::EnterParams,
        mut results: kiln_registration::EnterResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            let worker = Worker(params.get_worker()?).relayed();
            let process = params.get_process()?.to_vec();
            self.0.enter(bytes(params.get_name()?), worker, params.get_capacity(), process)
        };
        drop(params);
        drop(self);
        results.get().set_queue(capnp::capability::FromClientHook::new(answer.await?.0.client.hook));
        Ok(())
    }
}
