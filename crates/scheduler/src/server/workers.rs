//! What workers get: a place in a pool, and jobs.

use std::rc::Rc;

use bstr::{BStr, BString};
use kiln_api::{
    Answer, Error, Job, JobDescription, Link, Queue, QueueServer, RegistrationServer, Run, Silence, Worker, answer,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::clients::cannot_read;
use super::pool::LivePool;
use crate::pool::{AlreadyRegistered, WorkerId};

/// The most jobs that a worker may say it runs at once.
const MAX_CAPACITY: u32 = 10_000;

/// The longest name of a worker, in bytes, and how many names a pool takes note of. They are kept for ever, and an
/// administrator who lists them has them in one message, of 16 MiB at most.
const MAX_NAME: usize = 255;
const MAX_NAMES: usize = 50_000;

/// The most bytes that a worker may call its process.
const MAX_PROCESS: usize = 64;

/// The right to be a worker of a pool.
pub(super) struct Entrance {
    pub(super) pool: Rc<LivePool>,
    /// The connection through which it was had.
    pub(super) link: Link,
}

impl RegistrationServer for Entrance {
    fn register(&self, name: BString, worker: Worker, capacity: i32) -> Answer<Queue> {
        let register = |pool: &Rc<LivePool>, capacity| pool.register(name.as_ref(), worker, capacity);
        answer(self.admit(name.as_ref(), capacity, register))
    }

    fn enter(&self, name: BString, worker: Worker, capacity: i32, process: Vec<u8>) -> Answer<Queue> {
        if !(1..=MAX_PROCESS).contains(&process.len()) {
            return answer(Err(Error::failed(format!("a worker's process has 1 to {MAX_PROCESS} bytes"))));
        }
        let enter = |pool: &Rc<LivePool>, capacity| pool.enter(name.as_ref(), worker, capacity, process);
        answer(self.admit(name.as_ref(), capacity, enter))
    }
}

impl Entrance {
    fn admit(
        &self,
        name: &BStr,
        capacity: i32,
        enter: impl FnOnce(&Rc<LivePool>, u32) -> Result<WorkerId, AlreadyRegistered>,
    ) -> Result<Queue, Error> {
        let capacity = u32::try_from(capacity).ok().filter(|capacity| *capacity <= MAX_CAPACITY);
        let capacity = capacity.ok_or_else(|| Error::failed(format!("a capacity is between 0 and {MAX_CAPACITY}")))?;
        if name.len() > MAX_NAME {
            return Err(Error::failed(format!("a worker's name is at most {MAX_NAME} bytes long")));
        }
        let pool = &self.pool;
        if pool.look(|pool, _| pool.worker_names() >= MAX_NAMES && !pool.is_known(name)) {
            return Err(Error::failed(format!(
                "this pool has seen {MAX_NAMES} names of workers, and takes no new ones"
            )));
        }
        let id = enter(pool, capacity).map_err(|error| Error::failed(error.to_string()))?;
        tracing::info!(pool = %pool.name, worker = ?name, capacity, "a worker has come");
        let left = CancellationToken::new();
        let silence = pool.keeping.worker_silence;
        if !silence.is_zero() {
            // A worker that is given up learns it when it finds its connection closed: it connects again, and offers what it
            // does. OCluster's have as long as Kiln's.
            let (quiet, rest) = (silence / 2, silence - silence / 2);
            self.link.watch(Silence { quiet, kiln: rest, other: rest });
        }
        // A worker can make its queue hold on to itself, by saying that the one is the other.
        let (ended, gone, of) = (self.link.ended().clone(), left.clone(), Rc::clone(pool));
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = ended.cancelled() => of.unregister(id),
                () = gone.cancelled() => {}
            }
        });
        Ok(Queue::serve(Membership { pool: Rc::clone(pool), id, name: name.to_owned(), _left: left.drop_guard() }))
    }
}

/// A worker's place in a pool. Dropping it is leaving.
struct Membership {
    pool: Rc<LivePool>,
    id: WorkerId,
    name: BString,
    _left: DropGuard,
}

impl QueueServer for Membership {
    fn pop(&self, job: Job) -> Answer<JobDescription> {
        let (number, popped) = self.pool.pop(self.id, job);
        let request = Request { pool: Rc::clone(&self.pool), worker: self.id, number };
        Box::pin(async move {
            let _request = request;
            let (description, _) = popped.await.map_err(|_| Error::failed("the worker has left the pool"))?;
            Ok(description)
        })
    }

    fn take(&self, job: Job) -> Answer<(JobDescription, Run)> {
        let (number, popped) = self.pool.pop(self.id, job);
        let request = Request { pool: Rc::clone(&self.pool), worker: self.id, number };
        Box::pin(async move {
            let _request = request;
            popped.await.map_err(|_| Error::failed("the worker has left the pool"))
        })
    }

    fn offer(&self, run: Run, job: Job) -> Answer<bool> {
        let is_wanted = self.pool.offer(self.id, run, job);
        tracing::info!(pool = %self.pool.name, worker = ?self.name, job = %run.job, run = run.number, is_wanted, "a worker brings a job back");
        if is_wanted {
            return answer(Ok(true));
        }
        // It is given up for good by that, so it is said by the scheduler that serves: not by one that does not know that it
        // was taken over from.
        let keeper = self.pool.keeper.clone();
        Box::pin(async move { keeper.still_serves().await.map(|()| false).map_err(cannot_read) })
    }

    fn ready(&self) -> Answer<()> {
        self.pool.welcome(self.id);
        answer(Ok(()))
    }

    fn set_active(&self, active: bool) -> Answer<()> {
        self.pool.act(|pool, now| pool.set_active(now, self.id, active));
        answer(Ok(()))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        tracing::info!(pool = %self.pool.name, worker = ?self.name, "a worker has gone");
        self.pool.unregister(self.id);
    }
}

/// A request for a job that may be given up: its future is dropped.
struct Request {
    pool: Rc<LivePool>,
    worker: WorkerId,
    number: u64,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.pool.give_up_pop(self.worker, self.number);
    }
}
