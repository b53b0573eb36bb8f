//! Who we are: the files in which Docker and Podman keep credentials.
//!
//! A file is searched for the longest of its `auths` that begins like the image's name, then for a program that keeps the
//! credentials of this host (`credHelpers`), then for one that keeps all (`credsStore`). Secrets never reach errors: where
//! a parser would quote what it read, its words are left out.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::{RegistryError, RegistrySettings, helper};
use crate::name::DOCKER_HUB;

/// Longer files are not written by these programs.
const FILE_BYTES: u64 = 1 << 20;
/// How credentials of Docker Hub are called.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What proves who we are.
#[derive(Clone, Eq, PartialEq)]
pub(super) enum Credential {
    /// A name and a password.
    Basic { user: String, password: String },
    /// A token to get tokens by.
    IdentityToken(String),
}

impl Credential {
    /// Returns the header that proves it, if it is a password.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Self::Basic { user, password } = self else { return None };
        secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::IdentityToken(_) => "IdentityToken",
        })
    }
}

/// Returns a header's value that no log shows; `None` if it cannot stand in a header.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Finds the credentials for a repository in the files of the settings, and the file that has them or names who does.
/// `None` means that nobody knows any.
///
/// # Errors
///
/// The file that should know is malformed, or its program fails.
pub(super) async fn find(
    settings: &RegistrySettings,
    host: &str,
    repository: &str,
) -> Result<Option<(Credential, PathBuf)>, RegistryError> {
    for path in &settings.auth_files {
        let Some(file) = read(path).await? else { continue };
        if let Some(entry) = file.entry(host, repository)
            && let Some(credential) = entry.credential(path, host)?
        {
            return Ok(Some((credential, path.clone())));
        }
        let names = [file.helper(host), file.creds_store.as_ref().filter(|name| !name.is_empty())];
        for name in names.into_iter().flatten() {
            let keys: &[&str] = if host == DOCKER_HUB { &[DOCKER_HUB_KEY, DOCKER_HUB] } else { &[host] };
            for key in keys {
                let asked = helper::ask(name, key, path, settings.helper_path.as_deref()).await?;
                if let Some(credential) = asked {
                    return Ok(Some((credential, path.clone())));
                }
            }
        }
    }
    Ok(None)
}

/// What matters to us in such a file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthFile {
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Reads a file; `None` if it is not there.
async fn read(path: &Path) -> Result<Option<AuthFile>, RegistryError> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_bounded(&owned)).await;
    let bytes = match read.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(RegistryError::ReadAuthFile { path: path.to_owned(), source }),
    };
    // Docker itself makes an empty file now and then.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| RegistryError::BadAuthFile {
        path: path.to_owned(),
        // The parser's own message may quote a password.
        reason: format!("line {}, column {}", error.line(), error.column()),
    })
}

fn read_bounded(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

impl AuthFile {
    /// Returns the entry with the longest key that the name begins with.
    fn entry(&self, host: &str, repository: &str) -> Option<&Entry> {
        let name = format!("{host}/{repository}");
        let fits = |key: &str| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('/') || rest.is_empty());
        let entries = self.auths.iter().flatten().map(|(key, entry)| (normal(key), entry));
        entries.filter(|(key, _)| fits(key)).max_by_key(|(key, _)| key.len()).map(|(_, entry)| entry)
    }

    /// Returns the program that keeps the credentials of this host.
    fn helper(&self, host: &str) -> Option<&String> {
        let helpers = self.cred_helpers.iter().flatten();
        helpers.filter(|(key, name)| !name.is_empty() && normal(key) == host).map(|(_, name)| name).next()
    }
}

impl Entry {
    /// Returns what the entry says; `None` if it only marks that a program knows more.
    fn credential(&self, path: &Path, host: &str) -> Result<Option<Credential>, RegistryError> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let bad = || RegistryError::BadAuthFile {
            path: path.to_owned(),
            reason: format!("`auth` of {host} is not USER:PASSWORD in base64"),
        };
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = set(&self.auth) {
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
            let text = String::from_utf8(bytes).map_err(|_| bad())?;
            let (user, password) = text.split_once(':').ok_or_else(bad)?;
            // Old versions of Docker pad the password.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() }));
        }
        let both = set(&self.username).zip(set(&self.password));
        Ok(both.map(|(user, password)| Credential::Basic { user, password }))
    }
}

/// Returns a key as names are written: `https://index.docker.io/v1/` is `docker.io`.
fn normal(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, path) = key.split_once('/').map_or((key, ""), |(host, path)| (host, path));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ => host.to_ascii_lowercase(),
    };
    if path.is_empty() { host } else { format!("{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(json: &str, host: &str, repository: &str) -> Result<Option<Credential>, RegistryError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).expect("a file");
        let missing = dir.path().join("missing.json");
        let settings = RegistrySettings { auth_files: vec![missing, path], ..RegistrySettings::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        Ok(runtime.block_on(find(&settings, host, repository))?.map(|(credential, _)| credential))
    }

    fn user(json: &str, name: &str) -> String {
        let (host, repository) = name.split_once('/').expect("a host");
        match search(json, host, repository) {
            Ok(Some(Credential::Basic { user, password })) => format!("{user} {password}"),
            Ok(Some(Credential::IdentityToken(token))) => token,
            Ok(None) => "nobody".to_owned(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_longest_key_that_fits_wins() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA6dw=="},
            "ghcr.io": {"username": "all", "password": "p"},
            "ghcr.io/x": {"username": "x", "password": "p"},
            "https://ghcr.io/x/y/": {"username": "xy", "password": "p"},
            "Localhost:5000": {"identitytoken": "token", "auth": "dTpw"},
            "marked": {}
        }, "HttpHeaders": {"a": 1}}"#;
        assert_eq!(user(json, "docker.io/library/debian"), "hub p:w");
        assert_eq!(user(json, "ghcr.io/z"), "all p");
        assert_eq!(user(json, "ghcr.io/xx/y"), "all p");
        assert_eq!(user(json, "ghcr.io/x/z"), "x p");
        assert_eq!(user(json, "ghcr.io/x/y/z"), "xy p");
        assert_eq!(user(json, "localhost:5000/z"), "token");
        assert_eq!(user(json, "localhost:5001/z"), "nobody");
        assert_eq!(user(json, "marked/z"), "nobody");
        assert_eq!(user("", "ghcr.io/z"), "nobody");
        assert_eq!(user("{}", "ghcr.io/z"), "nobody");
    }

    #[test]
    fn malformed_files_are_named_and_not_quoted() {
        for json in [
            r#"{"auths": {"ghcr.io": "SECRET"}}"#,
            r#"{"auths": {"ghcr.io": {"auth": "SECRET!"}}}"#,
            r#"{"auths": {"ghcr.io": {"auth": "U0VDUkVU"}}}"#,
            r#"{"auths": {"ghcr.io": {"auth": "/////w=="}}}"#,
            "SECRET",
        ] {
            let error = search(json, "ghcr.io", "x").expect_err(json);
            let told = format!("{error} {error:?}");
            assert!(told.contains("config.json") && !told.contains("SECRET"), "{told}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let credential = Credential::Basic { user: "SECRET".into(), password: "SECRET".into() };
        let told = format!("{credential:?} {:?}", credential.basic());
        assert_eq!(told, "Basic Some(Sensitive)");
    }
}
