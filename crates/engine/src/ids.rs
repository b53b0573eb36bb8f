//! Whose users those of a step are: of a user namespace with ids of its own, or the host's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kiln_sandbox::{SandboxError, UserNamespace};
use kiln_store::{IdMap, Root};
use rustix::io::Errno;

use crate::build::blocking;
use crate::engine::{Shared, UserIds};
use crate::error::{At, BuildError};

impl Shared {
    /// Returns a user namespace for a command, and what `mount` mounts for it.
    ///
    /// Where the kernel has none, or the store's filesystem cannot show files with other owners than they have, it is
    /// the host's, for all commands from then on, and `notice` hears why; but with [`UserIds::Own`] that is an error. What fails
    /// otherwise always is one: nobody who makes the machine run out of something gets to be its root.
    pub(crate) async fn enter(
        &self,
        mount: impl Fn(Option<IdMap<'_>>) -> io::Result<OwnedFd>,
        notice: impl FnOnce(&str),
    ) -> Result<(UserNamespace, OwnedFd), BuildError> {
        let wanted = self.settings.isolation.user_ids;
        if wanted != UserIds::Host && self.no_own_ids.get().is_none() {
            let sandbox = Arc::clone(&self.sandbox);
            let entered = match blocking(move || Ok(sandbox.user_namespace())).await? {
                Ok(namespace) if wanted == UserIds::Own && namespace.mapped().is_none() => {
                    "this kind of sandbox has none".to_owned()
                }
                Ok(namespace) => match mount(map_of(&namespace)) {
                    Ok(root) => return Ok((namespace, root)),
                    Err(error) if is_unsupported(&error) => {
                        format!("{} cannot be mounted with other owners ({error})", self.store.path().display())
                    }
                    Err(error) => return Err(error).at("mount with other owners", self.store.path()),
                },
                Err(SandboxError::Host { what, source: Some(source) }) if is_unsupported(&source) => {
                    format!("{what} ({source})")
                }
                Err(error) => return Err(BuildError::NoUserNamespace(error)),
            };
            // The first reason is as good as those that come at the same time.
            let _ = self.no_own_ids.set(entered);
        }
        if let Some(reason) = self.no_own_ids.get() {
            if wanted == UserIds::Own {
                return Err(BuildError::NoOwnUsers { reason: reason.clone() });
            }
            notice(&format!("root in steps is root of this machine: {reason}; `--userns host` takes that for granted"));
        }
        let root = mount(None).at("mount", self.store.path())?;
        Ok((UserNamespace::Host, root))
    }
}

/// Whether an error is the answer of a kernel, or a filesystem, that does not have what is asked for.
fn is_unsupported(error: &io::Error) -> bool {
    const ANSWERS: [Errno; 4] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM];
    error.raw_os_error().is_some_and(|errno| ANSWERS.iter().any(|answer| answer.raw_os_error() == errno))
}

/// Mounts a tree for those in a user namespace.
pub(crate) fn mount(root: &Root, namespace: &UserNamespace) -> io::Result<OwnedFd> {
    root.mount_mapped(map_of(namespace))
}

fn map_of(namespace: &UserNamespace) -> Option<IdMap<'_>> {
    namespace
        .mapped()
        .filter(|ids| !ids.are_the_callers())
        .map(|ids| IdMap { namespace: ids.as_fd(), first: ids.first() })
}
