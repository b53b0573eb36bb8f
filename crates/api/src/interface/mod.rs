//! One module for each interface: what others may ask of an object, and how to be such an object.
//!
//! A type like [`Job`] is a reference: cloning it makes another one to the same object, and when the last one is dropped, on
//! either side of a connection, the object is told so by being dropped. A trait like [`JobServer`] is what an object does.
//!
//! Every method of a server returns a future that does not borrow the object. A call that waits therefore does not keep its object
//! alive, and dropping the last reference is noticed while calls are open.
//!
//! None of this can leave its thread.

mod admin;
mod job;
mod job_info;
mod progress;
mod queue;
mod registration;
mod submission;
mod ticket;
mod worker;

use std::future::Future;
use std::pin::Pin;

pub use admin::{Admin, AdminServer, PoolAdmin, PoolAdminServer, WorkerInfo};
pub use job::{Job, JobServer, KeptJobServer, LogChunk, MAX_CHUNK};
pub use job_info::{JobInfo, JobState};
pub use progress::{Progress, ProgressServer};
pub use queue::{Queue, QueueServer, Run};
pub use registration::{Registration, RegistrationServer};
pub use submission::{KeptSubmission, Submission, SubmissionServer};
pub use ticket::{Ticket, TicketServer};
pub use worker::{Metric, MetricsSource, Worker, WorkerServer};

use crate::error::Error;

/// What a method of a server returns.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>>>>;

/// Returns an answer that is known already.
pub fn answer<T: 'static>(result: Result<T, Error>) -> Answer<T> {
    Box::pin(std::future::ready(result))
}

/// Defines a reference to objects of one interface.
macro_rules! reference {
    ($(#[$doc:meta])* $name:ident, $client:ty) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(pub(crate) $client);

        impl $crate::capability::Reference for $name {
            fn from_hook(hook: Box<dyn capnp::private::capability::ClientHook>) -> Self {
                Self(capnp::capability::FromClientHook::new(hook))
            }

            fn into_hook(self) -> Box<dyn capnp::private::capability::ClientHook> {
                capnp::capability::FromClientHook::into_client_hook(self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}
use reference;
