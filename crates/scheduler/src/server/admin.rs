//! What administrators get.

use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::{
    AdminServer, Answer, Error, ErrorKind, Link, PoolAdmin, PoolAdminServer, Progress, Reference as _, ServiceId,
    Submission, Worker, WorkerInfo, answer,
};

use super::clients::{Account, Client};
use super::pool::LivePool;
use super::scheduler::Shared;

/// How long a worker that updates itself may stay away.
const RESTART: Duration = Duration::from_secs(600);

/// The whole scheduler, for administrators.
pub(super) struct Everything(pub(super) Rc<Shared>, pub(super) Link);

/// Tells a peer what went wrong, and why.
fn failed(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    Error::failed(text)
}

/// Waits until what was done to a pool survives a restart.
fn kept(pool: &LivePool) -> Answer<()> {
    let kept = pool.kept();
    Box::pin(async move {
        let told = |error| Error::failed(format!("it is done, but not kept: {}", failed(error)));
        kept.await.map_err(told)
    })
}

impl AdminServer for Everything {
    fn pools(&self) -> Answer<Vec<BString>> {
        answer(Ok(self.0.pools.keys().cloned().collect()))
    }

    fn pool(&self, name: BString) -> PoolAdmin {
        match self.0.pools.get(&name) {
            Some(pool) => PoolAdmin::serve(OnePool { shared: Rc::clone(&self.0), pool: Rc::clone(pool) }),
            None => PoolAdmin::broken(Error::failed("No such pool")),
        }
    }

    fn add_client(&self, name: BString) -> Answer<Submission> {
        let (shared, link) = (Rc::clone(&self.0), self.1.clone());
        Box::pin(async move {
            let id = ServiceId::random();
            shared.keeper.add_client(name.clone(), id.clone()).await.map_err(failed)?;
            let account = Rc::new(Account::default());
            shared.clients.borrow_mut().insert(name.clone(), Rc::clone(&account));
            tracing::info!(client = ?name, "a client is allowed");
            Ok(Submission::serve(Client { shared, name, account, id, link }))
        })
    }

    fn remove_client(&self, name: BString) -> Answer<()> {
        let shared = Rc::clone(&self.0);
        Box::pin(async move {
            if !shared.keeper.remove_client(name.clone()).await.map_err(failed)? {
                return Err(Error::failed("No such user"));
            }
            if let Some(account) = shared.clients.borrow_mut().remove(&name) {
                account.is_removed.set(true);
            }
            for pool in shared.pools.values() {
                pool.act(|pool, _| pool.remove_client(name.as_ref()));
            }
            tracing::info!(client = ?name, "a client is allowed no longer");
            Ok(())
        })
    }

    fn list_clients(&self) -> Answer<Vec<BString>> {
        answer(Ok(self.0.clients.borrow().keys().cloned().collect()))
    }
}

/// A pool, for administrators.
struct OnePool {
    shared: Rc<Shared>,
    pool: Rc<LivePool>,
}

impl PoolAdminServer for OnePool {
    fn show(&self) -> Answer<BString> {
        answer(Ok(self.pool.look(|pool, now| pool.show(now))))
    }

    fn workers(&self) -> Answer<Vec<WorkerInfo>> {
        let workers = self.pool.look(|pool, _| {
            let infos = pool.workers();
            infos.map(|info| WorkerInfo { name: info.name, active: info.active, connected: info.connected }).collect()
        });
        answer(Ok(workers))
    }

    fn set_active(&self, worker: BString, active: bool, auto_create: bool) -> Answer<()> {
        let set = self.pool.act(|pool, now| pool.set_paused(now, worker.as_ref(), !active, auto_create));
        match set {
            Ok(()) => kept(&self.pool),
            Err(error) => answer(Err(failed(error))),
        }
    }

    fn worker(&self, worker: BString) -> Answer<Worker> {
        answer(self.pool.worker(worker.as_ref()).ok_or_else(|| Error::failed("Unknown worker")))
    }

    fn update(&self, name: BString, progress: Option<Progress>) -> Answer<()> {
        let pool = Rc::clone(&self.pool);
        Box::pin(async move {
            let unknown = || Error::failed("Unknown worker");
            let id = pool.look(|pool, _| pool.connected(name.as_ref())).ok_or_else(unknown)?;
            let worker = pool.worker(name.as_ref()).ok_or_else(unknown)?;
            pool.act(|pool, now| pool.set_leaving(now, id, true));
            // Unless it comes to its restart, it goes on: also when whoever asked goes away.
            let _stays = Stays(Rc::clone(&pool), id);
            pool.wait_until_idle(id, progress.as_ref()).await;
            // It may say that it restarts, or be gone before it can.
            worker.self_update().await.or_else(|error| match error.kind {
                ErrorKind::Disconnected => Ok(()),
                _ => Err(error),
            })?;
            drop(worker);
            let back = pool.wait_until_back(name.as_ref(), id);
            tokio::time::timeout(RESTART, back)
                .await
                .map_err(|_| Error::failed(format!("worker {name:?} has not come back within {RESTART:?}")))
        })
    }

    fn set_rate(&self, client: BString, rate: f64) -> Answer<()> {
        if !self.shared.clients.borrow().contains_key(&client) {
            return answer(Err(Error::failed("No such user")));
        }
        match self.pool.act(|pool, _| pool.set_rate(client.as_ref(), rate)) {
            Ok(()) => kept(&self.pool),
            Err(error) => answer(Err(failed(error))),
        }
    }

    fn forget(&self, worker: BString) -> Answer<()> {
        match self.pool.act(|pool, now| pool.forget(now, worker.as_ref())) {
            Ok(()) => kept(&self.pool),
            Err(error) => answer(Err(failed(error))),
        }
    }

    fn drain(&self, name: BString, progress: Option<Progress>) -> Answer<()> {
        let pool = Rc::clone(&self.pool);
        Box::pin(async move {
            pool.act(|pool, now| pool.set_paused(now, name.as_ref(), true, false)).map_err(failed)?;
            kept(&pool).await?;
            if let Some(id) = pool.look(|pool, _| pool.connected(name.as_ref())) {
                pool.wait_until_idle(id, progress.as_ref()).await;
            }
            Ok(())
        })
    }
}

/// Lets a worker go on that was to leave, if it is still there.
struct Stays(Rc<LivePool>, crate::pool::WorkerId);

impl Drop for Stays {
    fn drop(&mut self) {
        self.0.act(|pool, now| pool.set_leaving(now, self.1, false));
    }
}
