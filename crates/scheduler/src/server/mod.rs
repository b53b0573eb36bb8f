//! The scheduler as others see it: services over the network, around the pools that decide and the database that remembers.
//!
//! All objects live on one thread, in a `LocalSet`. [`LivePool`] does what a [`Pool`](crate::pool::Pool) wants done;
//! what is to be kept goes to a thread of its own ([`Keeper`](keeper::Keeper)), so that nothing here waits for a disk.
//!
//! | a service with this id | is | for whoever has |
//! |---|---|---|
//! | derived from the key and `admin` | [`Admin`](kiln_api::Admin) | `admin.cap` |
//! | derived from the key and `pool-NAME` | [`Registration`](kiln_api::Registration) | `pool-NAME.cap` |
//! | random, its digest in the database | [`Submission`](kiln_api::Submission) | what `add-client` printed |

mod admin;
mod clients;
mod keeper;
mod pool;
mod scheduler;
mod tickets;
mod workers;

pub(crate) use pool::LivePool;
pub use scheduler::{Provided, Running, Scheduler, SchedulerError, Settings};
