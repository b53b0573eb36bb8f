//! What a pool wants done.

use std::fmt;

use bstr::BString;

use super::rows::Key;

/// A job in a pool. Later jobs have greater ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Key);

/// One registration of a worker: a worker that connects again gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(Key);

macro_rules! id {
    ($id:ident) => {
        impl $id {
            /// Returns an id that no pool ever gives: for who decides in its place.
            pub(crate) fn of_no_pool(number: u64) -> Self {
                $id(Key::of_none(number))
            }

            /// Returns how many there were before.
            pub fn number(self) -> u64 {
                self.0.number
            }
        }

        impl From<Key> for $id {
            fn from(key: Key) -> Self {
                $id(key)
            }
        }

        impl From<$id> for Key {
            fn from(id: $id) -> Key {
                id.0
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.number)
            }
        }
    };
}

id!(JobId);
id!(WorkerId);

/// What is to be done after an operation, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answer one `pop` of the worker with the job, which runs from now on. End it with
    /// [`Pool::finished`](super::Pool::finished); if the answer cannot be delivered, with
    /// [`Pool::requeue`](super::Pool::requeue).
    Start {
        /// Who runs it.
        worker: WorkerId,
        /// What.
        job: JobId,
    },
    /// The worker that ran the job is gone. Say how it goes on: [`Pool::requeue`](super::Pool::requeue) or
    /// [`Pool::finished`](super::Pool::finished).
    Lost {
        /// The job that it ran.
        job: JobId,
    },
    /// A job of the worker ended, and this many run there now: whoever waits for the worker to have nothing to do looks
    /// at this.
    Running {
        /// Whose number it is.
        worker: WorkerId,
        /// Jobs that run there.
        jobs: usize,
    },
    /// Keep: the worker ran a job with this hint, for the first time.
    SaveHint {
        /// The hint, never empty.
        hint: BString,
        /// The worker's name.
        worker: BString,
    },
    /// Keep: the worker is known, and paused by an administrator or not.
    SaveWorker {
        /// The worker's name.
        worker: BString,
        /// Whether an administrator paused it.
        paused: bool,
    },
    /// Keep no longer that the worker is known.
    ForgetWorker {
        /// The worker's name.
        worker: BString,
    },
    /// Keep the client's rate; `None`: keep none.
    SaveRate {
        /// The client's name.
        client: BString,
        /// Workers' worth of share.
        rate: Option<f64>,
    },
}
