//! Where a PostgreSQL is, and how it is reached.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_ok;
use rustls::RootCertStore;
use thiserror::Error;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::DatabaseError;

/// How long a server may take to be connected to.
const PATIENCE: Duration = Duration::from_secs(2);

/// After how long a server is given up that acknowledges nothing, `TCP_USER_TIMEOUT` in tcp(7).
const SILENCE: Duration = Duration::from_secs(5);

/// For each session. A transaction of a scheduler that was stopped in it must not keep another from taking over, whether the
/// server waits for what it says next or, the last one, for it to read what was said.
const SESSION: &str =
    "SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '10s'; SET tcp_user_timeout = '3s'";

/// A database of a PostgreSQL server, from a URI as libpq has them:
/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require`, several hosts with commas between them; or the environment's
/// `PGPASSWORD`.
///
/// `Display` shows hosts and database, and no password.
#[derive(Clone)]
pub struct PostgresServer {
    /// What the URI says, with all hosts.
    config: Config,
    /// The same for each host.
    hosts: Vec<Config>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why something names no database.
#[derive(Debug, Error)]
pub enum ServerError {
    /// It cannot be read as a URI. What stands there may be a password, and is not repeated.
    #[error("it is no URI of a PostgreSQL database, `postgres://USER@HOST/DATABASE`: {0}")]
    Uri(String),
}

impl FromStr for PostgresServer {
    type Err = ServerError;

    fn from_str(uri: &str) -> Result<Self, ServerError> {
        if !uri.starts_with("postgres://") && !uri.starts_with("postgresql://") {
            return Err(ServerError::Uri("it begins with another word".to_owned()));
        }
        let unread = |error: &tokio_postgres::Error| {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string())
        };
        let mut config = Config::from_str(uri).map_err(|error| ServerError::Uri(unread(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(ServerError::Uri("it names no host".to_owned()));
        }
        if config.get_password().is_none()
            && let Some(password) = std::env::var_os("PGPASSWORD")
        {
            config.password(password.as_encoded_bytes());
        }
        let tls = (config.get_ssl_mode() != SslMode::Disable).then(|| Arc::new(tls()));
        let hosts = (0..config.get_hosts().len()).map(|at| of_host(&config, at)).collect();
        Ok(Self { config, hosts, tls })
    }
}

/// Returns how one of several hosts is connected to.
fn of_host(all: &Config, at: usize) -> Config {
    let mut one = Config::new();
    match &all.get_hosts()[at] {
        Host::Tcp(name) => one.host(name),
        Host::Unix(path) => one.host_path(path),
    };
    if let Some(&address) = all.get_hostaddrs().get(at) {
        one.hostaddr(address);
    }
    if let Some(&port) = all.get_ports().get(at).or(all.get_ports().first()) {
        one.port(port);
    }
    if let Some(user) = all.get_user() {
        one.user(user);
    }
    if let Some(password) = all.get_password() {
        one.password(password);
    }
    if let Some(name) = all.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = all.get_options() {
        one.options(options);
    }
    one.ssl_mode(all.get_ssl_mode())
        .ssl_negotiation(all.get_ssl_negotiation())
        .channel_binding(all.get_channel_binding())
        // Of servers that replicate, one can be written.
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .application_name("kiln scheduler")
        .connect_timeout(PATIENCE)
        .tcp_user_timeout(SILENCE);
    one
}

/// Returns what is believed of a server that encrypts: what the machine's certificate authorities say.
fn tls() -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl PostgresServer {
    /// Connects to the first host that answers and can be written. The connection is driven by the runtime that this is called
    /// on.
    pub(in crate::state) async fn connect(&self) -> Result<Client, DatabaseError> {
        // All at once: one that is silent must not keep us from another, in the time that a lease leaves.
        let attempts = self.hosts.iter().map(|host| Box::pin(self.connect_to(host)));
        let connecting = select_ok(attempts);
        timeout(PATIENCE, connecting).await.unwrap_or(Err(DatabaseError::Silent)).map(|(client, _)| client)
    }

    async fn connect_to(&self, host: &Config) -> Result<Client, DatabaseError> {
        let client = match &self.tls {
            Some(tls) => {
                let (client, connection) = host.connect(MakeRustlsConnect::new(tls.as_ref().clone())).await?;
                tokio::spawn(connection);
                client
            }
            None => {
                let (client, connection) = host.connect(tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                client
            }
        };
        client.batch_execute(SESSION).await?;
        Ok(client)
    }
}

impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        let ports = self.config.get_ports();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match host {
                Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]")?,
                Host::Tcp(name) => f.write_str(name)?,
                Host::Unix(path) => write!(f, "{}", path.display())?,
            }
            if let Some(port) = ports.get(at).or(ports.first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().or(self.config.get_user()).unwrap_or_default())
    }
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresServer({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_shown_without_its_password() {
        let cases = [
            ("postgres://kiln:geheim@db1:5433,[::1]/jobs?sslmode=disable", "postgres://db1:5433,[::1]:5432/jobs"),
            ("postgresql://kiln@db/jobs?sslmode=disable", "postgres://db:5432/jobs"),
            ("postgres://kiln@/jobs?host=/run/postgresql&sslmode=disable", "postgres:///run/postgresql/jobs"),
        ];
        for (uri, shown) in cases {
            let server: PostgresServer = uri.parse().expect("it is one");
            assert_eq!(server.to_string(), shown);
            assert_eq!(format!("{server:?}"), format!("PostgresServer({shown})"));
        }
    }

    #[test]
    fn what_is_no_uri_is_told_without_its_password() {
        for uri in [
            "mysql://geheim@db/jobs",
            "postgres://u:geheim@db:port/x",
            "postgres://u:geheim@db/x?nonsense=1",
            "postgres:///x",
        ] {
            let error = uri.parse::<PostgresServer>().expect_err(uri).to_string();
            assert!(error.starts_with("it is no URI of a PostgreSQL database"), "{error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
