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
//!
//! # The life of a job
//!
//! A client's reference is to a [`record`], not to the worker: the scheduler reads the log of each *run* on a worker into its own
//! [file](logs), and the result ([`runs`]). So a job can change its worker without its client noticing anything but a line in the
//! log.
//!
//! * A worker that says nothing any more, though it is asked, loses its connection ([`workers`]).
//! * A worker of Kiln's that loses its connection goes on, and offers what it does when it is back ([`workers`]). It is waited
//!   for for [`Keeping::worker_grace`]. After that, and at once if the worker cannot come back, the job is begun again
//!   elsewhere, up to [`Keeping::retries`] times, unless its log had come to its end.
//! * A *kept* job is in the database: its submission before it is answered, each run before its worker gets it, its end before
//!   its client hears of it. A scheduler that starts goes on with it ([`jobs`]). Clients of Kiln submit such jobs, and find
//!   them again by their key; others submit again when they lose their connection, as they do with OCluster.
//! * A job that is not *detached* needs its client. When that goes, it is cancelled; when it is only not heard of any more, or
//!   the scheduler was, it is waited for for [`Keeping::client_grace`].

mod admin;
mod archive;
mod clients;
mod housekeeping;
mod jobs;
mod keeper;
mod logs;
mod pool;
mod record;
mod runs;
mod scheduler;
mod tickets;
mod workers;

pub(crate) use pool::{LivePool, Losses};
pub use scheduler::{Keeping, Provided, Running, Scheduler, SchedulerError, Settings};
