//! Who may administrate a scheduler, and one of its pools.

use std::rc::Rc;

use bstr::BString;

use super::{Answer, Progress, Submission, Worker, reference};
use crate::error::Error;
use crate::generated::ocluster_capnp::{admin, pool_admin};
use crate::text::{bytes, length, text, texts};

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its name.
    pub name: BString,
    /// Whether no administrator paused it.
    pub active: bool,
    /// Whether it is there.
    pub connected: bool,
}

reference! {
    /// A reference to a scheduler, for its administrators.
    Admin, admin::Client
}

reference! {
    /// A reference to a pool, for its administrators.
    PoolAdmin, pool_admin::Client
}

/// What a scheduler does for its administrators.
pub trait AdminServer: 'static {
    /// Returns the names of all pools.
    fn pools(&self) -> Answer<Vec<BString>>;
    /// Returns a pool. One that does not exist is a reference that fails.
    fn pool(&self, name: BString) -> PoolAdmin;
    /// Allows another client.
    fn add_client(&self, id: BString) -> Answer<Submission>;
    /// No longer allows a client.
    fn remove_client(&self, id: BString) -> Answer<()>;
    /// Returns the ids of all clients.
    fn list_clients(&self) -> Answer<Vec<BString>>;
}

/// What a pool does for its administrators.
pub trait PoolAdminServer: 'static {
    /// Returns a description for people.
    fn show(&self) -> Answer<BString>;
    /// Returns every worker that was ever seen and not forgotten.
    fn workers(&self) -> Answer<Vec<WorkerInfo>>;
    /// Pauses a worker, or lets it go on; with `auto_create` also one that was never seen.
    fn set_active(&self, worker: BString, active: bool, auto_create: bool) -> Answer<()>;
    /// Returns a connected worker.
    fn worker(&self, worker: BString) -> Answer<Worker>;
    /// Has a worker finish what it does and update itself, and waits until it is back.
    fn update(&self, worker: BString, progress: Option<Progress>) -> Answer<()>;
    /// Sets a client's share.
    fn set_rate(&self, client: BString, rate: f64) -> Answer<()>;
    /// Forgets a worker that is not connected.
    fn forget(&self, worker: BString) -> Answer<()>;
    /// Pauses a worker, and waits until it has no job.
    fn drain(&self, worker: BString, progress: Option<Progress>) -> Answer<()>;
}

impl Admin {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl AdminServer) -> Self {
        Self(capnp_rpc::new_client(Adapter(server)))
    }

    /// See [`AdminServer::pools`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn pools(&self) -> Result<Vec<BString>, Error> {
        let response = self.0.pools_request().send().promise.await?;
        Ok(texts(response.get()?.get_names()?)?)
    }

    /// Returns a pool, without waiting for anything: calls on it wait.
    pub fn pool(&self, name: &[u8]) -> PoolAdmin {
        let mut request = self.0.pool_request();
        request.get().set_name(text(name));
        PoolAdmin(request.send().pipeline.get_pool())
    }

    /// Allows another client, and returns its reference without waiting: calls on it wait, and tell what went wrong.
    pub fn add_client(&self, id: &[u8]) -> Submission {
        let mut request = self.0.add_client_request();
        request.get().set_id(text(id));
        Submission(request.send().pipeline.get_cap())
    }

    /// See [`AdminServer::remove_client`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn remove_client(&self, id: &[u8]) -> Result<(), Error> {
        let mut request = self.0.remove_client_request();
        request.get().set_id(text(id));
        request.send().promise.await?;
        Ok(())
    }

    /// See [`AdminServer::list_clients`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached.
    pub async fn list_clients(&self) -> Result<Vec<BString>, Error> {
        let response = self.0.list_clients_request().send().promise.await?;
        Ok(texts(response.get()?.get_clients()?)?)
    }
}

impl PoolAdmin {
    /// Returns a reference to `server`, which is dropped with the last one.
    pub fn serve(server: impl PoolAdminServer) -> Self {
        Self(capnp_rpc::new_client(PoolAdapter(server)))
    }

    /// See [`PoolAdminServer::show`].
    ///
    /// # Errors
    ///
    /// What the scheduler says, or that it cannot be reached. This holds for all methods here.
    pub async fn show(&self) -> Result<BString, Error> {
        let response = self.0.show_request().send().promise.await?;
        Ok(bytes(response.get()?.get_state()?))
    }

    /// See [`PoolAdminServer::workers`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>, Error> {
        let response = self.0.workers_request().send().promise.await?;
        let workers = response.get()?.get_workers()?;
        workers
            .iter()
            .map(|worker| {
                let name = bytes(worker.get_name()?);
                Ok(WorkerInfo { name, active: worker.get_active(), connected: worker.get_connected() })
            })
            .collect()
    }

    /// See [`PoolAdminServer::set_active`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn set_active(&self, worker: &[u8], active: bool, auto_create: bool) -> Result<(), Error> {
        let mut request = self.0.set_active_request();
        let mut params = request.get();
        params.set_worker(text(worker));
        params.set_active(active);
        params.set_auto_create(auto_create);
        request.send().promise.await?;
        Ok(())
    }

    /// Returns a worker, without waiting for anything: calls on it wait, and tell what went wrong.
    pub fn worker(&self, worker: &[u8]) -> Worker {
        let mut request = self.0.worker_request();
        request.get().set_worker(text(worker));
        Worker(request.send().pipeline.get_worker())
    }

    /// See [`PoolAdminServer::update`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn update(&self, worker: &[u8], progress: Progress) -> Result<(), Error> {
        let mut request = self.0.update_request();
        let mut params = request.get();
        params.set_worker(text(worker));
        params.set_progress(progress.0);
        request.send().promise.await?;
        Ok(())
    }

    /// See [`PoolAdminServer::set_rate`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn set_rate(&self, client: &[u8], rate: f64) -> Result<(), Error> {
        let mut request = self.0.set_rate_request();
        let mut params = request.get();
        params.set_id(text(client));
        params.set_rate(rate);
        request.send().promise.await?;
        Ok(())
    }

    /// See [`PoolAdminServer::forget`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn forget(&self, worker: &[u8]) -> Result<(), Error> {
        let mut request = self.0.forget_request();
        request.get().set_worker(text(worker));
        request.send().promise.await?;
        Ok(())
    }

    /// See [`PoolAdminServer::drain`].
    ///
    /// # Errors
    ///
    /// As [`PoolAdmin::show`].
    pub async fn drain(&self, worker: &[u8], progress: Progress) -> Result<(), Error> {
        let mut request = self.0.drain_request();
        let mut params = request.get();
        params.set_worker(text(worker));
        params.set_progress(progress.0);
        request.send().promise.await?;
        Ok(())
    }
}

struct Adapter<T>(T);

impl<T: AdminServer> admin::Server for Adapter<T> {
    async fn pools(
        self: Rc<Self>,
        _: admin::PoolsParams,
        mut results: admin::PoolsResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.pools();
        drop(self);
        let names = answer.await?;
        let mut list = results.get().init_names(length(names.len())?);
        for (index, name) in (0..).zip(&names) {
            list.set(index, text(name));
        }
        Ok(())
    }

    async fn pool(
        self: Rc<Self>,
        params: admin::PoolParams,
        mut results: admin::PoolResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_pool(self.0.pool(bytes(params.get()?.get_name()?)).0);
        Ok(())
    }

    async fn add_client(
        self: Rc<Self>,
        params: admin::AddClientParams,
        mut results: admin::AddClientResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.add_client(bytes(params.get()?.get_id()?));
        drop(self);
        results.get().set_cap(answer.await?.0);
        Ok(())
    }

    async fn remove_client(
        self: Rc<Self>,
        params: admin::RemoveClientParams,
        _: admin::RemoveClientResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.remove_client(bytes(params.get()?.get_id()?));
        drop(self);
        Ok(answer.await?)
    }

    async fn list_clients(
        self: Rc<Self>,
        _: admin::ListClientsParams,
        mut results: admin::ListClientsResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.list_clients();
        drop(self);
        let clients = answer.await?;
        let mut list = results.get().init_clients(length(clients.len())?);
        for (index, client) in (0..).zip(&clients) {
            list.set(index, text(client));
        }
        Ok(())
    }
}

struct PoolAdapter<T>(T);

impl<T: PoolAdminServer> pool_admin::Server for PoolAdapter<T> {
    async fn show(
        self: Rc<Self>,
        _: pool_admin::ShowParams,
        mut results: pool_admin::ShowResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.show();
        drop(self);
        results.get().set_state(text(&answer.await?));
        Ok(())
    }

    async fn workers(
        self: Rc<Self>,
        _: pool_admin::WorkersParams,
        mut results: pool_admin::WorkersResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.workers();
        drop(self);
        let workers = answer.await?;
        let mut list = results.get().init_workers(length(workers.len())?);
        for (index, worker) in (0..).zip(&workers) {
            let mut info = list.reborrow().get(index);
            info.set_name(text(&worker.name));
            info.set_active(worker.active);
            info.set_connected(worker.connected);
        }
        Ok(())
    }

    async fn set_active(
        self: Rc<Self>,
        params: pool_admin::SetActiveParams,
        _: pool_admin::SetActiveResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let answer = self.0.set_active(bytes(params.get_worker()?), params.get_active(), params.get_auto_create());
        drop(self);
        Ok(answer.await?)
    }

    async fn worker(
        self: Rc<Self>,
        params: pool_admin::WorkerParams,
        mut results: pool_admin::WorkerResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.worker(bytes(params.get()?.get_worker()?));
        drop(self);
        results.get().set_worker(answer.await?.0);
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: pool_admin::UpdateParams,
        _: pool_admin::UpdateResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            self.0.update(bytes(params.get_worker()?), params.get_progress().ok().map(Progress))
        };
        drop(self);
        Ok(answer.await?)
    }

    async fn set_rate(
        self: Rc<Self>,
        params: pool_admin::SetRateParams,
        _: pool_admin::SetRateResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let answer = self.0.set_rate(bytes(params.get_id()?), params.get_rate());
        drop(self);
        Ok(answer.await?)
    }

    async fn forget(
        self: Rc<Self>,
        params: pool_admin::ForgetParams,
        _: pool_admin::ForgetResults,
    ) -> Result<(), capnp::Error> {
        let answer = self.0.forget(bytes(params.get()?.get_worker()?));
        drop(self);
        Ok(answer.await?)
    }

    async fn drain(
        self: Rc<Self>,
        params: pool_admin::DrainParams,
        _: pool_admin::DrainResults,
    ) -> Result<(), capnp::Error> {
        let answer = {
            let params = params.get()?;
            self.0.drain(bytes(params.get_worker()?), params.get_progress().ok().map(Progress))
        };
        drop(self);
        Ok(answer.await?)
    }
}
