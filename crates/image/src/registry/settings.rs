//! How to talk to registries. Plain values: the program reads environment and files and passes them in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

/// All that a [`Registry`](super::Registry) is told.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// Files with credentials as Docker and Podman write them; the first that knows a host wins. Missing files are fine.
    pub auth_files: Vec<PathBuf>,
    /// Where the programs are that such files can refer to (`docker-credential-NAME`), as a search path. `None` is the
    /// search path of this process.
    pub helper_path: Option<OsString>,
    /// What differs from the defaults, by host as it stands in names (`ghcr.io`, `localhost:5000`). Docker Hub is
    /// `docker.io`.
    pub hosts: BTreeMap<String, HostSettings>,
    /// Proxies between here and there.
    pub proxies: Proxies,
    /// How long to wait and how often to try.
    pub patience: Patience,
    /// Hears why it takes longer.
    pub notices: Notices,
}

/// Hears, in a line each, what a user should know while it still goes on: why there is a wait, which mirror is passed over.
/// By default nobody does. Called from any thread; must return at once.
#[derive(Clone, Default)]
pub struct Notices(Option<Arc<Hear>>);

type Hear = dyn Fn(&str) + Send + Sync;

impl Notices {
    /// Calls this with each line.
    pub fn to(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    /// Tells a line.
    pub fn tell(&self, text: impl fmt::Display) {
        if let Some(hear) = &self.0 {
            hear(&text.to_string());
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Notices").field(&self.0.is_some()).finish()
    }
}

/// What is special about one host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostSettings {
    /// Asked before the host itself, in this order, and only for pulls: `HOST[:PORT][/PREFIX]`, with or without a scheme.
    /// The prefix becomes the beginning of the repository's name, as Podman has it.
    pub mirrors: Vec<String>,
    /// Talks to whoever answers, and without TLS if need be. Loopback hosts are always so, unless they have a `ca_file`.
    pub insecure: bool,
    /// Certificate authorities in PEM that vouch for this host, besides the ones that the machine trusts.
    pub ca_file: Option<PathBuf>,
}

/// Proxies as the environment names them. The loopback interface is never reached through one.
#[derive(Clone, Default)]
pub struct Proxies {
    /// For `http://`: `http://[USER:PASSWORD@]HOST:PORT`. Empty is none.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// What to reach directly: hosts, domains, addresses, networks; separated by commas.
    pub no_proxy: Option<String>,
}

/// How long to wait and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the beginning of an answer, and for the next bytes of one. Then a new connection is tried.
    pub idle: Duration,
    /// How often to try without getting any further.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles from one to the next, and varies.
    pub first_wait: Duration,
    /// The longest wait between attempts, also if the registry asks for longer.
    pub longest_wait: Duration,
    /// A transfer that is slower than this on average, over [`slow_for`](Self::slow_for) and all attempts, has failed.
    pub lowest_bytes_per_second: u64,
    /// How long a transfer may be slower.
    pub slow_for: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            // Registries that pull through from another one take their time to answer.
            idle: Duration::from_secs(30),
            attempts: 6,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            lowest_bytes_per_second: 1 << 10,
            slow_for: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for Proxies {
    /// Tells only which are set, for they may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}
