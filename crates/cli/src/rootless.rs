//! Running as a user without root's rights: in a user namespace, where kiln is root of the user's own ids.

use std::sync::OnceLock;

use kiln_sandbox::{Owners, become_root_in_a_namespace};

use crate::args::Command;
use crate::exit::Failure;

/// To whom files can belong; not set where nobody needs to know.
static OWNERS: OnceLock<Owners> = OnceLock::new();

/// Goes into the namespace, if this is not root and the command works on a store. To be called before any thread exists.
pub(crate) fn enter(command: &Command) -> Result<(), Failure> {
    use Command as C;
    if let C::Fmt(_) | C::Check(_) | C::Dockerfile(_) | C::Scheduler(_) | C::Submit(_) | C::Admin(_) | C::Simulate(_) =
        command
    {
        return Ok(());
    }
    match become_root_in_a_namespace() {
        Ok(owners) => {
            let _ = OWNERS.set(owners);
            Ok(())
        }
        // It is there to tell why.
        Err(_) if matches!(command, Command::Doctor(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether this is root of the host, or of a namespace that someone else made.
pub(crate) fn is_root() -> bool {
    match OWNERS.get() {
        Some(owners) => *owners == Owners::All,
        None => rustix::process::geteuid().is_root(),
    }
}

/// Returns why files can belong to one user only, if that is so.
pub(crate) fn single_owner() -> Option<&'static str> {
    match OWNERS.get() {
        Some(Owners::One(reason)) => Some(reason),
        _ => None,
    }
}
