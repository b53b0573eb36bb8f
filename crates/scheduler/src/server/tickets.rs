//! Jobs that were submitted.

use std::rc::Rc;

use kiln_api::{Answer, Job, Reference as _, Ticket, TicketServer, answer};

use super::pool::{LivePool, Started};
use crate::pool::{Cancelled, JobId};

/// What a client has of its job. Dropping it cancels a job that waits.
struct Held {
    pool: Rc<LivePool>,
    id: JobId,
    /// A promise until a worker has the job. As long as this is here, the worker goes on.
    job: Job,
}

/// Returns the ticket of a job.
pub(super) fn ticket(pool: Rc<LivePool>, id: JobId, started: Started) -> Ticket {
    let job = Job::promise(async move {
        // The pool tells how it is with each job that it has.
        started.await.unwrap_or_else(|_| Err(kiln_api::Error::disconnected("the scheduler has ended")))
    });
    Ticket::serve(Held { pool, id, job })
}

impl TicketServer for Held {
    fn job(&self) -> Job {
        self.job.clone()
    }

    fn cancel(&self) -> Answer<()> {
        match self.pool.cancel(self.id, "Ticket cancelled") {
            Cancelled::Running(_) => Box::pin(self.job.cancel()),
            Cancelled::Queued | Cancelled::Lost | Cancelled::Unknown => answer(Ok(())),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // One that runs is cancelled by its worker, when nobody holds the job either.
        self.pool.release(self.id);
    }
}
