//! OCluster's wire: what scheduler, workers, clients and administrators say to each other, and how they reach each other.
//!
//! * [`JobDescription`] and the other plain values are what is said;
//! * [`interface`](Job) has a reference type and a server trait for each interface of `schema/ocluster.capnp`;
//! * [`Listener`] and [`Connection`] are a vat: TLS with pinned keys, several services for each connection, limits;
//! * [`CapabilityUri`], [`cap_file`] and [`Key`] say where a service is and who may use it.
//!
//! Cap'n Proto's generated code stays in here. Knows nothing of pools, builds or databases.
#![forbid(unsafe_code)]

pub mod cap_file;
mod capability;
mod description;
mod error;
mod interface;
mod job_key;
mod job_log;
mod key;
mod log_tail;
mod retries;
mod text;
mod tls;
pub mod transcript;
mod uri;
mod vat;

/// What `capnp` makes of the schemas. `tests/it/current.rs` makes it again.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::unimplemented,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_qualifications,
    reason = "not written by hand"
)]
#[rustfmt::skip]
mod generated {
    pub(crate) mod ocluster_capnp;
    pub(crate) mod vat_capnp;
    pub(crate) mod kiln_capnp;
}

pub use capability::{Capability, Reference};
pub use description::{Action, DockerBuild, Dockerfile, JobDescription, Secret};
pub use error::{Error, ErrorKind};
pub use interface::*;
pub use job_key::{JobKey, JobKeyError};
pub use job_log::JobLog;
pub use key::{Key, KeyError};
pub use log_tail::LogTail;
pub use retries::Retries;
pub use uri::{Address, Addresses, CapabilityUri, Fingerprint, Identity, ServiceId, UriError};
#[doc(hidden)]
pub use vat::converse_over;
pub use vat::{ConnectError, Connection, Limits, Link, ListenError, Listener, Security, Services, Silence};
