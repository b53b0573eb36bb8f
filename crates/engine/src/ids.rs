//! Whose users those of a step are: of a user namespace with ids of its own, or the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kiln_sandbox::UserNamespace;
use kiln_store::{Draft, IdMap, Root};

use crate::build::{Build, blocking};
use crate::engine::UserIds;
use crate::error::{At, BuildError};

impl Build {
    /// Returns a user namespace for a step, and the draft mounted for it.
    ///
    /// Where there is none to be had, or the store's filesystem cannot show files with other owners than they have, it is
    /// the host's, for all steps from then on; the build is told.
    pub(crate) async fn enter(&self, draft: &Draft) -> Result<(UserNamespace, OwnedFd), BuildError> {
        let shared = &self.shared;
        if shared.settings.isolation.user_ids == UserIds::Own && shared.no_own_ids.get().is_none() {
            let sandbox = Arc::clone(&shared.sandbox);
            let entered = match blocking(move || Ok(sandbox.user_namespace())).await? {
                Ok(namespace) => match mount(draft.root(), &namespace) {
                    Ok(root) => return Ok((namespace, root)),
                    Err(error) => {
                        format!("{} cannot be mounted with other owners ({error})", shared.store.path().display())
                    }
                },
                Err(error) => match std::error::Error::source(&error) {
                    Some(source) => format!("{error} ({source})"),
                    None => error.to_string(),
                },
            };
            // The first reason is as good as those that come at the same time.
            let _ = shared.no_own_ids.set(entered);
        }
        if let Some(reason) = shared.no_own_ids.get() {
            self.notice(&format!(
                "root in steps is root of this machine: {reason}; `--userns host` takes that for granted"
            ));
        }
        let root = draft.root().mount().at("mount", shared.store.path())?;
        Ok((UserNamespace::Host, root))
    }
}

/// Mounts a tree for those in a user namespace.
pub(crate) fn mount(root: &Root, namespace: &UserNamespace) -> std::io::Result<OwnedFd> {
    let map = namespace.mapped().filter(|ids| !ids.are_the_callers()).map(|ids| IdMap { namespace: ids.as_fd(), first: ids.first() });
    root.mount_mapped(map)
}
