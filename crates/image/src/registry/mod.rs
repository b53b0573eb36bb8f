//! The client of registries: the distribution protocol of OCI and Docker over HTTP.
//!
//! ```text
//! pull ┐                    ┌ site: which hosts to ask, and how far each is trusted
//!      ├─► exchange ────────┤ auth ◄─ challenge, credentials ◄─ helper
//! push ┘   (http)           └ connect: connections, TLS, proxies
//!   └─► retry: attempts, waits, stalls      answer: bodies and refusals, bounded
//! ```
//!
//! * [`Registry`]: what the rest of the crate uses. `pull` and `push` hold its methods.
//! * `http`: one request, with its login and redirects. Whoever calls it repeats it as `retry` says, because only the
//!   caller knows how much is already there.
//! * [`RegistrySettings`]: all that it is told. It reads neither environment nor configuration. (The search for the
//!   machine's authorities, and for programs that keep credentials, looks where the system says.)
//!
//! A registry is a stranger: lengths are bounded before anything is read, waits by time, attempts by count. Credentials
//! go to the host that they are for and to the token server that it names, encrypted unless the host is marked
//! insecure; never along a redirect to another host. Content is not believed by its address, but by its digest.

mod answer;
mod auth;
mod body;
mod challenge;
mod connect;
mod credentials;
mod error;
mod helper;
mod http;
mod pull;
mod push;
mod retry;
mod settings;
mod site;

pub use error::{HttpError, RegistryError};
pub use pull::Manifest;
pub use push::FilePart;
pub use settings::{HostSettings, Notices, Patience, Proxies, RegistrySettings};

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// A client for all registries. Clones share connections, tokens, and what was found out about hosts.
///
/// Its methods may be called side by side. Each ends promptly when its token is cancelled.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

/// What clones share.
struct Shared {
    settings: RegistrySettings,
    sites: site::Sites,
    clients: connect::Clients,
    auth: auth::Auth,
}

impl Registry {
    /// Returns a client. Connects to nothing and reads no file yet.
    ///
    /// # Errors
    ///
    /// A mirror or proxy in the settings is not an address.
    pub fn new(settings: RegistrySettings) -> Result<Self, RegistryError> {
        let sites = site::Sites::new(&settings)?;
        let clients = connect::Clients::new(&settings)?;
        let auth = auth::Auth::default();
        Ok(Self { shared: Arc::new(Shared { settings, sites, clients, auth }) })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// Parses a header that says whom a registry wants to know; for the fuzzer.
pub(crate) fn parse_challenges(header: &str) {
    drop(challenge::parse(header));
}

/// Does `work` until `cancel` says otherwise; dropping it is enough to stop it.
async fn until_cancelled<T>(
    shared: &Shared,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let mut result = cancel.run_until_cancelled(work).await.unwrap_or(Err(RegistryError::Cancelled));
    if let Err(RegistryError::Denied { host, login, .. }) = &mut result {
        *login = shared.auth.shown(host);
    }
    result
}

impl Shared {
    /// Counts attempts with the patience of the settings.
    fn tries(&self) -> retry::Tries<'_> {
        retry::Tries::new(&self.settings.patience, &self.settings.notices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Which};

    /// The engine runs these on many threads.
    #[test]
    fn what_a_client_does_can_move_between_threads() {
        fn sent<T: Send>(_: T) {}
        let registry = Registry::new(RegistrySettings::default()).expect("a client");
        let (name, cancel) = ("debian".parse().expect("a name"), CancellationToken::new());
        let digest = Digest::of(b"");
        sent(registry.manifest(&name, &Which::Digest(digest), 0, &cancel));
        sent(registry.document(&name, digest, 0, &cancel));
        sent(registry.has_blob(&name, digest, &cancel));
        sent(registry.mount_blob(&name, digest, "", &cancel));
        sent(registry.put_manifest(&name, None, "", b"", &cancel));
        let file = std::sync::Arc::new(std::fs::File::open("/dev/null").expect("a file"));
        sent(registry.upload(&name, digest, &FilePart { file, offset: 0, length: 0 }, &|_| {}, &cancel));
        sent(registry.download(&name, digest, 0, &mut |_| Ok(()), &cancel));
    }
}
