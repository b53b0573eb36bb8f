//! Jobs that were submitted.

use std::rc::Rc;

use kiln_api::{Answer, Job, Ticket, TicketServer, answer};

use super::record::{Hold, Record};

/// What a client has of its job.
struct Held {
    job: Job,
    /// `None`: the job has ended.
    hold: Option<Rc<Hold>>,
}

/// Returns a ticket of a job. Its client lets the job go when it has neither the ticket nor the job.
pub(super) fn ticket(record: &Rc<Record>, hold: Option<Rc<Hold>>) -> Ticket {
    Ticket::serve(Held { job: record.job(hold.as_ref()), hold })
}

impl TicketServer for Held {
    fn job(&self) -> Job {
        self.job.clone()
    }

    fn cancel(&self) -> Answer<()> {
        self.hold.as_ref().map_or_else(|| answer(Ok(())), |hold| hold.cancel("Ticket cancelled"))
    }

    fn stored(&self) -> Answer<()> {
        self.hold.as_ref().map_or_else(|| answer(Ok(())), |hold| hold.stored())
    }
}
