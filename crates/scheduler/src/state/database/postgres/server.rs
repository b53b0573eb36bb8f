//! Where a PostgreSQL is, and how it is reached.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use thiserror::Error;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::DatabaseError;

/// How long a server may take to be connected to.
const PATIENCE: Duration = Duration::from_secs(3);

/// After how long a server is given up that acknowledges nothing, `TCP_USER_TIMEOUT` in tcp(7).
const SILENCE: Duration = Duration::from_secs(5);

/// For each session. A transaction of a scheduler that was stopped in it must not keep another from taking over.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '10s'";

/// A database of a PostgreSQL server, from a URI as libpq has them: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require`,
/// several hosts with commas between them; or the environment's `PGPASSWORD`.
///
/// `Display` shows hosts and database, and no password.
#[derive(Clone)]
pub struct PostgresServer {
    config: Config,
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
        config.application_name("kiln scheduler").connect_timeout(PATIENCE).tcp_user_timeout(SILENCE);
        let tls = (config.get_ssl_mode() != SslMode::Disable).then(|| Arc::new(tls()));
        Ok(Self { config, tls })
    }
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
    /// Connects. The connection is driven by the runtime that this is called on.
    pub(in crate::state) async fn connect(&self) -> Result<Client, DatabaseError> {
        let connecting = async {
            let client = match &self.tls {
                Some(tls) => {
                    let (client, connection) =
                        self.config.connect(MakeRustlsConnect::new(tls.as_ref().clone())).await?;
                    tokio::spawn(connection);
                    client
                }
                None => {
                    let (client, connection) = self.config.connect(tokio_postgres::NoTls).await?;
                    tokio::spawn(connection);
                    client
                }
            };
            client.batch_execute(SESSION).await?;
            Ok(client)
        };
        let hosts = u32::try_from(self.config.get_hosts().len()).unwrap_or(1);
        tokio::time::timeout(PATIENCE * hosts, connecting).await.unwrap_or(Err(DatabaseError::Silent))
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
