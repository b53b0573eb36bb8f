//! Whose files kiln can own, as root or without root's rights.

use std::io;

use thiserror::Error;

/// To whom files can belong, after [`become_root_in_a_namespace`](crate::become_root_in_a_namespace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// To everybody: this is root.
    All,
    /// To the ids 0 to 65535, of which 0 is the user outside and the others are from its ranges.
    Range,
    /// To one user alone, for this reason.
    One(String),
}

/// Why a user without root's rights cannot have a namespace.
#[derive(Debug, Error)]
pub enum RootlessError {
    /// A setting of the kernel forbids it; `setting` is as `sysctl -w` takes it to allow it.
    #[error(
        "this host lets only root make user namespaces; allow it, as root, with `sysctl -w {setting}`, or run kiln as root"
    )]
    Forbidden {
        /// The setting that would allow it.
        setting: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No known setting forbids it: a container's filter, or a `chroot`.
    #[error("this host refuses a user namespace, as containers and a chroot do; run kiln as root, or outside of it")]
    Refused(#[source] io::Error),
    /// The program said this, when it was too late to do without.
    #[error("cannot map the user's ids: {0}")]
    Map(String),
    /// Anything else.
    #[error("cannot enter a user namespace")]
    Enter(#[source] io::Error),
}
