//! Logging in: from a registry's challenge to the header that answers it.
//!
//! Requests go without a login first, unless one is remembered. A challenge is answered by a password (`Basic`), or by a
//! token that is fetched from where the challenge says (`Bearer`). What was let in is remembered until it expires.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::credentials::{self, Credential, secret};
use super::http::{Ask, Payload, Proof, is_link_local};
use super::retry::Failure;
use super::site::{Site, lock};
use super::{RegistryError, Shared, answer};

/// Tokens are a few KiB.
const TOKEN_BYTES: u64 = 256 << 10;
/// How long a token lives if its server does not say.
const TOKEN_LIFE: u64 = 60;
/// Tokens are not used in the last part of their life: the request has to arrive, and clocks differ.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// Who we are to token servers that keep statistics.
const CLIENT_ID: &str = "kiln";

/// What a request must be allowed to do.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Scope(Vec<String>);

impl Scope {
    /// Reading a repository.
    pub(super) fn pull(site: &Site) -> Self {
        Self(vec![format!("repository:{}:pull", site.repository)])
    }

    /// Reading and writing a repository.
    pub(super) fn push(site: &Site) -> Self {
        Self(vec![format!("repository:{}:pull,push", site.repository)])
    }

    /// Writing a repository with what is in another.
    pub(super) fn mount(site: &Site, from: &str) -> Self {
        let Self(mut scopes) = Self::push(site);
        scopes.push(format!("repository:{from}:pull"));
        Self(scopes)
    }

    /// Returns all that should be asked for when the challenge names a scope, too.
    fn with<'a>(&'a self, challenge: Option<&'a String>) -> Vec<&'a str> {
        let ours = self.0.iter().map(String::as_str);
        let theirs = challenge.into_iter().flat_map(|text| text.split(' '));
        ours.chain(theirs.filter(|scope| !self.covers(scope))).collect()
    }

    fn covers(&self, scope: &str) -> bool {
        let Some((resource, actions)) = scope.rsplit_once(':') else { return scope.is_empty() };
        let mut ours = self.0.iter().filter_map(|ours| ours.rsplit_once(':'));
        ours.any(|(name, allowed)| {
            name == resource && actions.split(',').all(|action| allowed.split(',').any(|other| other == action))
        })
    }
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Auth {
    grants: Mutex<HashMap<(String, Scope), Grant>>,
    /// By host: the file with the credentials that were shown.
    shown: Mutex<HashMap<String, PathBuf>>,
    /// By host: held while one asks for a token, so that others who need the same wait for it instead of asking, too.
    asking: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Clone, Debug)]
struct Grant {
    header: HeaderValue,
    until: Option<Instant>,
}

impl Auth {
    /// Returns the header by which such a request was let in before.
    pub(super) fn remembered(&self, site: &Site, scope: &Scope) -> Option<HeaderValue> {
        let grants = lock(&self.grants);
        let grant = grants.get(&(site.host.clone(), scope.clone()))?;
        grant.until.is_none_or(|until| Instant::now() < until).then(|| grant.header.clone())
    }

    fn remember(&self, site: &Site, scope: &Scope, grant: Grant) {
        lock(&self.grants).insert((site.host.clone(), scope.clone()), grant);
    }

    /// Returns the file with the credentials that a host was shown.
    pub(super) fn shown(&self, host: &str) -> Option<Box<Path>> {
        lock(&self.shown).get(host).map(|file| file.clone().into())
    }

    fn asking(&self, host: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.asking).entry(host.to_owned()).or_default())
    }
}

impl Shared {
    /// Answers the challenge in the headers of a refusal, of a request with the login `rejected`. Returns `None` if there is nothing to say:
    /// no credentials are known, or just these were rejected.
    pub(super) async fn authorize(
        &self,
        site: &Site,
        home: &Url,
        scope: &Scope,
        (headers, rejected): (&HeaderMap, Option<&HeaderValue>),
        what: &str,
    ) -> Result<Option<HeaderValue>, Failure> {
        let asking = self.auth.asking(&site.host);
        let _asking = asking.lock().await;
        if let Some(header) = self.auth.remembered(site, scope)
            && Some(&header) != rejected
        {
            return Ok(Some(header));
        }
        let texts: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|text| text.to_str().ok()).collect();
        let challenges: Vec<_> = texts.iter().flat_map(|text| challenge::parse(text)).collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let credential = if home.scheme() == "https" || site.is_insecure() {
            let found = credentials::find(&self.settings, &site.host, &site.repository).await?;
            found.map(|(credential, file)| {
                lock(&self.auth.shown).insert(site.host.clone(), file);
                credential
            })
        } else {
            None
        };
        let grant = match (find("bearer"), find("basic")) {
            (Some(bearer), _) => self.token(site, home, scope, (bearer, credential), what).await?,
            (None, Some(_)) => match credential.as_ref().and_then(Credential::basic) {
                Some(header) if Some(&header) != rejected => Grant { header, until: None },
                _ => return Ok(None),
            },
            // Some refuse without saying what they want.
            (None, None) if challenges.is_empty() => return Ok(None),
            (None, None) => {
                let challenge = answer::printable(texts.join(", ").as_bytes());
                return Err(RegistryError::Challenge { host: site.host.clone(), challenge }.into());
            }
        };
        self.auth.remember(site, scope, grant.clone());
        Ok(Some(grant.header))
    }

    /// Fetches a token.
    async fn token(
        &self,
        site: &Site,
        home: &Url,
        scope: &Scope,
        (challenge, credential): (&Challenge, Option<Credential>),
        what: &str,
    ) -> Result<Grant, Failure> {
        let host = || site.host.clone();
        let realm = challenge.parameters.get("realm").and_then(|realm| Url::parse(realm).ok());
        let Some(mut realm) = realm.filter(|realm| {
            let is_elsewhere = !is_link_local(realm) || is_link_local(home);
            matches!(realm.scheme(), "https" | "http") && realm.has_host() && is_elsewhere
        }) else {
            return Err(RegistryError::Challenge { host: host(), challenge: "a token from nowhere".to_owned() }.into());
        };
        let realm_host = realm.host_str().unwrap_or_default().to_owned();
        // Both the credentials and the token would be anybody's.
        if realm.scheme() == "http" && (home.scheme() == "https" && !site.is_insecure()) {
            return Err(RegistryError::Plain { host: host(), to: realm_host }.into());
        }
        let scopes = scope.with(challenge.parameters.get("scope"));
        let service = challenge.parameters.get("service");
        let mut headers = HeaderMap::new();
        let (method, payload) = match &credential {
            Some(Credential::IdentityToken(token)) => {
                let mut form = Url::parse("form:").expect("a constant");
                let mut pairs = form.query_pairs_mut();
                pairs.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
                pairs.append_pair("client_id", CLIENT_ID).append_pair("scope", &scopes.join(" "));
                pairs.extend_pairs(service.map(|service| ("service", service)));
                drop(pairs);
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                (Method::POST, Payload::Bytes(form.query().unwrap_or_default().to_owned().into()))
            }
            _ => {
                let mut pairs = realm.query_pairs_mut();
                pairs.extend_pairs(service.map(|service| ("service", service)));
                pairs.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
                (Method::GET, Payload::Empty)
            }
        };
        let header = credential.as_ref().and_then(Credential::basic);
        let proof = header.map(|header| Proof { header, home: realm.clone() });
        let ask = Ask { headers, payload, ..Ask::new(method, realm, what) };
        let asked = Instant::now();
        let response = self.follow(site, &ask, proof.as_ref()).await?;
        let patience = &self.settings.patience;
        let bad = || RegistryError::BadToken { host: host(), realm: realm_host.clone() };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(bad().into()),
            _ => return Err(answer::refusal(response, &site.host, what, patience).await),
        }
        let bytes = answer::read(response, &realm_host, what, TOKEN_BYTES, patience).await?;
        let token: Token = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = token.token.or(token.access_token).filter(|text| !text.is_empty());
        let header = secret(&format!("Bearer {}", text.ok_or_else(bad)?)).ok_or_else(bad)?;
        let life = Duration::from_secs(token.expires_in.filter(|life| *life > 0).unwrap_or(TOKEN_LIFE).min(24 * 3600));
        Ok(Grant { header, until: Some(asked + life.saturating_sub(TOKEN_MARGIN.min(life / 2))) })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Adds a login to a request's headers.
pub(super) fn add(headers: &mut HeaderMap, header: &HeaderValue) {
    headers.insert(AUTHORIZATION, header.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_asks_for_what_the_challenge_wants_besides() {
        let scope = Scope(vec!["repository:a:pull,push".to_owned(), "repository:b:pull".to_owned()]);
        let with = |challenge: &str| scope.with(Some(&challenge.to_owned())).join(" ");
        let ours = "repository:a:pull,push repository:b:pull";
        assert_eq!(scope.with(None).join(" "), ours);
        assert_eq!(with("repository:a:pull"), ours);
        assert_eq!(with("repository:a:push,pull repository:b:pull"), ours);
        assert_eq!(with(""), ours);
        assert_eq!(with("repository:a:delete"), format!("{ours} repository:a:delete"));
        assert_eq!(with("registry:catalog:*"), format!("{ours} registry:catalog:*"));
    }
}
