//! The sources of jobs, from git.
//!
//! Every repository that a job named is kept as a bare clone. A job's directory is checked out of it, through a repository of the job's
//! own which borrows the clone's objects: so jobs never wait for each other but for a fetch that brings what they need, and what a
//! job merges is in no clone. Git is the program; what it reads from strangers it reads without any configuration, hook, filter or
//! credential of the host.
//!
//! ```text
//! STATE/
//!   clones/NAME-DIGEST.git/     one for each URL and kind of object ids; made by us, so that its configuration is ours
//!     refs/kiln/COMMIT          what jobs asked for
//!     refs/remote/…             all of the remote's references, where a job needed those
//!     used                      its modification time is when the clone was last used
//!   contexts/RANDOM/            a job's
//!     source/                   what the job sees
//!     git-N/                    the repository through which it was checked out
//!   trash/                      on its way out
//! ```
//!
//! One process uses such a directory at a time. Git must be 2.38 or newer, the first that merges without files.

mod checkout;
mod clone;
mod contexts;
mod error;
mod git;
mod prune;
mod repository;

pub use contexts::{Context, Contexts, Settings};
pub use error::ContextError;
pub use prune::Pruned;
