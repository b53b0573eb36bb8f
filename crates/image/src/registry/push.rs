//! Writing to registries: blobs, by upload or from another repository, and manifests.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio_util::sync::CancellationToken;

use super::auth::Scope;
use super::http::{Ask, Payload, location};
use super::pull::{blob, digest_header};
use super::retry::{Again, Failure, Speed};
use super::site::Site;
use super::{Registry, RegistryError, Shared, answer, until_cancelled};
use crate::{Digest, ImageName};

/// How much is sent in one request. Losing one must not hurt; proxies have limits, often around 100 MB.
const CHUNK_BYTES: u64 = 16 << 20;
/// How a registry says that it wants longer chunks.
const MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// How often an upload may have to start again from its beginning.
const RESTARTS: u32 = 5;
/// How many times longer than other answers the last one may take.
const CLOSING_LENIENCY: u32 = 10;
/// For tidying up, which nothing depends on.
const TIDY: Duration = Duration::from_secs(5);

/// A part of a file.
#[derive(Clone, Debug)]
pub struct FilePart {
    /// Read at its offsets; its position does not matter.
    pub file: Arc<File>,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl Registry {
    /// Returns whether a repository has a blob. Needs the right to push, since nobody else asks.
    ///
    /// # Errors
    ///
    /// The registry's answer to the last attempt, if it is neither yes nor no.
    pub async fn has_blob(
        &self,
        name: &ImageName,
        digest: Digest,
        cancel: &CancellationToken,
    ) -> Result<bool, RegistryError> {
        let (shared, what) = (&*self.shared, blob(name, digest));
        let site = shared.sites.origin(&shared.settings, name);
        until_cancelled(shared, cancel, async {
            let mut tries = shared.tries();
            loop {
                match shared.has_blob(&site, digest, &what).await {
                    Ok(has) => return Ok(has),
                    Err(failure) => tries.again(failure).await?,
                }
            }
        })
        .await
    }

    /// Takes a blob over from another repository of the same registry. Returns false if the registry does not do that; the
    /// upload that it starts instead is given up.
    ///
    /// # Errors
    ///
    /// The registry cannot be reached, or asks for a login that fails. A plain refusal is no error: an upload may do.
    pub async fn mount_blob(
        &self,
        name: &ImageName,
        digest: Digest,
        from_repository: &str,
        cancel: &CancellationToken,
    ) -> Result<bool, RegistryError> {
        let (shared, what) = (&*self.shared, blob(name, digest));
        let site = shared.sites.origin(&shared.settings, name);
        until_cancelled(shared, cancel, async {
            let mut tries = shared.tries();
            loop {
                match shared.mount_blob(&site, digest, from_repository, &what).await {
                    Ok(is_mounted) => return Ok(is_mounted),
                    Err(failure) => tries.again(failure).await?,
                }
            }
        })
        .await
    }

    /// Uploads a blob. `progress` hears how much of it has been sent, which becomes less when something was lost.
    ///
    /// Goes on where the registry says when the connection breaks, or from the beginning if the registry has forgotten the
    /// upload. One that is cancelled or fails stays with the registry, which sweeps such leftovers.
    ///
    /// # Errors
    ///
    /// The registry's answer to the last attempt, or the file cannot be read.
    pub async fn upload(
        &self,
        name: &ImageName,
        digest: Digest,
        part: &FilePart,
        progress: &(dyn Fn(u64) + Sync),
        cancel: &CancellationToken,
    ) -> Result<(), RegistryError> {
        let (shared, what) = (&*self.shared, blob(name, digest));
        let site = shared.sites.origin(&shared.settings, name);
        let upload = Upload { shared, site: &site, scope: Scope::push(&site), digest, part, what: &what, progress };
        until_cancelled(shared, cancel, upload.run()).await
    }

    /// Stores a manifest under a tag, or, without one, only by its digest, which is returned. All that it refers to must be
    /// there.
    ///
    /// # Errors
    ///
    /// The registry's answer to the last attempt, or the registry understood other bytes.
    pub async fn put_manifest(
        &self,
        name: &ImageName,
        tag: Option<&str>,
        media_type: &str,
        bytes: &[u8],
        cancel: &CancellationToken,
    ) -> Result<Digest, RegistryError> {
        let (shared, digest) = (&*self.shared, Digest::of(bytes));
        let site = shared.sites.origin(&shared.settings, name);
        let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let bytes = Bytes::copy_from_slice(bytes);
        until_cancelled(shared, cancel, async {
            let mut tries = shared.tries();
            loop {
                match shared.put_manifest(&site, &reference, media_type, &bytes, digest).await {
                    Ok(()) => return Ok(digest),
                    Err(failure) => tries.again(failure).await?,
                }
            }
        })
        .await
    }
}

impl Shared {
    async fn has_blob(&self, site: &Site, digest: Digest, what: &str) -> Result<bool, Failure> {
        let url = self.address(site, &format!("blobs/{digest}")).await?;
        let response = self.exchange(site, &Ask::new(Method::HEAD, url, what), &Scope::push(site)).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer::refusal(response, &site.host, what, &self.settings.patience).await),
        }
    }

    async fn mount_blob(&self, site: &Site, digest: Digest, from: &str, what: &str) -> Result<bool, Failure> {
        let mut url = self.address(site, "blobs/uploads/").await?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let scope = Scope::mount(site, from);
        let response = self.exchange(site, &Ask::new(Method::POST, url, what), &scope).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                if let Ok(url) = location(&response, site, what) {
                    let ask = Ask::new(Method::DELETE, url, what);
                    let tidied = tokio::time::timeout(TIDY, self.exchange(site, &ask, &scope)).await;
                    tracing::debug!(is_tidied = matches!(tidied, Ok(Ok(_))), "upload given up");
                }
                Ok(false)
            }
            _ => {
                let failure = answer::refusal(response, &site.host, what, &self.settings.patience).await;
                if failure.again == Again::Never { Ok(false) } else { Err(failure) }
            }
        }
    }

    async fn put_manifest(
        &self,
        site: &Site,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
        digest: Digest,
    ) -> Result<(), Failure> {
        let what = format!("manifest {reference} of `{}`", site.repository);
        let url = self.address(site, &format!("manifests/{reference}")).await?;
        let mut ask = Ask::new(Method::PUT, url, &what).header(CONTENT_TYPE, media_type);
        ask.payload = Payload::Bytes(bytes.clone());
        let response = self.exchange(site, &ask, &Scope::push(site)).await?;
        if !matches!(response.status(), StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED) {
            return Err(answer::refusal(response, &site.host, &what, &self.settings.patience).await);
        }
        check_digest(&response, site, &what, digest)
    }
}

/// Checks that a registry stored what it was sent, if it says what that is.
fn check_digest(response: &Response, site: &Site, what: &str, digest: Digest) -> Result<(), Failure> {
    match digest_header(response).filter(|found| *found != digest.to_string()) {
        None => Ok(()),
        Some(found) => {
            let (host, what, wanted) = (site.host.clone(), what.to_owned(), digest.to_string());
            Err(RegistryError::WrongDigest { host, what, wanted, found }.into())
        }
    }
}

/// An upload under way.
struct Upload<'a> {
    shared: &'a Shared,
    site: &'a Site,
    scope: Scope,
    digest: Digest,
    part: &'a FilePart,
    what: &'a str,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// An upload as the registry knows it.
struct Session {
    /// Where the next request goes.
    url: Url,
    /// So much the registry has.
    done: u64,
    /// How much to send at once.
    chunk: u64,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Going,
    Done,
    /// The registry does not know the upload any more.
    Lost,
    /// The registry took one chunk and does not want another.
    Refused,
}

impl Upload<'_> {
    async fn run(&self) -> Result<(), RegistryError> {
        let mut chunk = CHUNK_BYTES;
        for times in 1..=RESTARTS {
            let mut session = self.begin(chunk).await?;
            match self.finish(&mut session).await? {
                Step::Going | Step::Done => return Ok(()),
                Step::Lost if times < RESTARTS => {
                    let notice = format!("{} lost the upload of {}; beginning again", self.site.host, self.what);
                    self.shared.settings.notices.tell(notice);
                }
                Step::Lost => {}
                Step::Refused => chunk = self.part.length,
            }
        }
        let (host, what) = (self.site.host.clone(), self.what.to_owned());
        Err(RegistryError::UploadLost { host, what, times: RESTARTS })
    }

    /// Asks for a new upload.
    async fn begin(&self, chunk: u64) -> Result<Session, RegistryError> {
        let mut tries = self.shared.tries();
        loop {
            match self.try_begin(chunk).await {
                Ok(session) => return Ok(session),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_begin(&self, chunk: u64) -> Result<Session, Failure> {
        let url = self.shared.address(self.site, "blobs/uploads/").await?;
        let response = self.exchange(&Ask::new(Method::POST, url, self.what)).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(response).await);
        }
        let wanted = response.headers().get(MIN_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let chunk = chunk.max(wanted.unwrap_or(0)).max(1);
        Ok(Session { url: location(&response, self.site, self.what)?, done: 0, chunk })
    }

    /// Sends what is missing, and closes the upload.
    async fn finish(&self, session: &mut Session) -> Result<Step, RegistryError> {
        let patience = &self.shared.settings.patience;
        let (mut tries, mut speed) = (self.shared.tries(), Speed::new());
        // What is sent again is no progress, or a registry that forgets would be sent to for ever.
        let mut furthest = session.done;
        loop {
            let before = session.done;
            let is_sent = session.done == self.part.length;
            (self.progress)(before);
            let result = if is_sent { self.close(session).await } else { self.send(session).await };
            let step = match result {
                Ok(step) => step,
                Err(failure) => {
                    tries.again(failure).await?;
                    self.ask_again(session).await?
                }
            };
            if step != Step::Going {
                return Ok(step);
            }
            let more = session.done.saturating_sub(furthest);
            furthest = furthest.max(session.done);
            if more > 0 {
                tries.reset();
            }
            if let Some((bytes, during)) = speed.passed(more, patience).filter(|_| !is_sent) {
                let (host, what) = (self.site.host.clone(), self.what.to_owned());
                return Err(RegistryError::TooSlow { host, what, bytes, during });
            }
        }
    }

    /// Sends the next chunk.
    async fn send(&self, session: &mut Session) -> Result<Step, Failure> {
        let length = session.chunk.min(self.part.length - session.done);
        let end = session.done + length;
        let mut ask = Ask::new(Method::PATCH, session.url.clone(), self.what)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, &format!("{}-{}", session.done, end - 1));
        ask.payload = Payload::Part { part: self.part, offset: session.done, length, progress: self.progress };
        let response = self.exchange(&ask).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                session.url = location(&response, self.site, self.what)?;
                // Registries that do not say how much they have, have all of it.
                session.done = received(&response, true).unwrap_or(end);
                Ok(if session.done > end { Step::Lost } else { Step::Going })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // It has more or less than we think, and tells when asked.
                let Failure { error, .. } = self.refusal(response).await;
                Err(Failure::passing(error))
            }
            _ if session.done > 0 && (is_lost(&response) || is_refused(&response)) => Ok(Step::Refused),
            _ if is_lost(&response) => Ok(Step::Lost),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Says that the blob is complete. The registry may have to read all of it before it answers.
    async fn close(&self, session: &Session) -> Result<Step, Failure> {
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
        let mut ask = Ask::new(Method::PUT, url, self.what).header(CONTENT_TYPE, "application/octet-stream");
        ask.leniency = CLOSING_LENIENCY;
        let response = self.exchange(&ask).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => {
                check_digest(&response, self.site, self.what, self.digest)?;
                Ok(Step::Done)
            }
            _ if is_lost(&response) => Ok(Step::Lost),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Asks how much the registry has, after something broke.
    async fn ask_again(&self, session: &mut Session) -> Result<Step, RegistryError> {
        let mut tries = self.shared.tries();
        loop {
            match self.try_ask_again(session).await {
                Ok(step) => return Ok(step),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_ask_again(&self, session: &mut Session) -> Result<Step, Failure> {
        // The closing request may have arrived: then the upload is gone, and the blob is there.
        if session.done == self.part.length && self.shared.has_blob(self.site, self.digest, self.what).await? {
            return Ok(Step::Done);
        }
        let response = self.exchange(&Ask::new(Method::GET, session.url.clone(), self.what)).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED => {
                if response.headers().contains_key(reqwest::header::LOCATION) {
                    session.url = location(&response, self.site, self.what)?;
                }
                let Some(done) = received(&response, false).filter(|done| *done <= self.part.length) else {
                    return Ok(Step::Lost);
                };
                session.done = done;
                Ok(Step::Going)
            }
            // The docker-registry drops an upload that it has a broken piece of.
            _ if is_lost(&response) || is_refused(&response) => Ok(Step::Lost),
            _ => Err(self.refusal(response).await),
        }
    }

    async fn exchange(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        self.shared.exchange(self.site, ask, &self.scope).await
    }

    async fn refusal(&self, response: Response) -> Failure {
        answer::refusal(response, &self.site.host, self.what, &self.shared.settings.patience).await
    }
}

/// Returns how many bytes a registry says it has: `Range: 0-LAST`.
///
/// `0-0` is one byte after a chunk was taken; of an upload without news, it is how some say that they have nothing.
fn received(response: &Response, has_some: bool) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let (start, last) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    match (start.parse::<u64>().ok()?, last.parse::<u64>().ok()?) {
        (0, 0) if !has_some => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

/// Returns true if the registry does not know the upload.
fn is_lost(response: &Response) -> bool {
    matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Returns true if the registry does not like the request, for reasons that a new upload may not have.
fn is_refused(response: &Response) -> bool {
    matches!(
        response.status(),
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::CONFLICT | StatusCode::NOT_IMPLEMENTED
    )
}
