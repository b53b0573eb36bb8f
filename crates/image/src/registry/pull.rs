//! Reading from registries: manifests, small blobs, big blobs.

use std::io;
use std::time::Instant;

use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;

use super::auth::Scope;
use super::http::{self, Ask};
use super::retry::{Failure, Speed, Tries, in_one_line};
use super::site::Site;
use super::{Patience, Registry, RegistryError, Shared, answer, until_cancelled};
use crate::{Digest, ImageName, Which};

/// What a manifest may be.
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// What manifests were before Docker 1.10.
const TOO_OLD: &str = "application/vnd.docker.distribution.manifest.v1+";
/// A mirror that does not answer is not worth many attempts: the next one, or the registry itself, does.
const MIRROR_ATTEMPTS: u32 = 2;

/// A manifest or index as a registry keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Exactly as they came: their digest is the manifest's name.
    pub bytes: Vec<u8>,
    /// One of the four kinds of OCI and Docker.
    pub media_type: String,
    /// Of the bytes.
    pub digest: Digest,
}

impl Registry {
    /// Fetches a manifest or index of at most `limit` bytes, from the first mirror that has it or from the registry itself.
    ///
    /// If it is asked for by digest, it is that one. By tag, a mirror's word is taken for it.
    ///
    /// # Errors
    ///
    /// The registry's answer to the last attempt; failures of mirrors are only logged.
    pub async fn manifest(
        &self,
        name: &ImageName,
        which: &Which,
        limit: u64,
        cancel: &CancellationToken,
    ) -> Result<Manifest, RegistryError> {
        let shared = &*self.shared;
        let what = match which {
            Which::Tag(_) if name.which() == *which => format!("image `{name}`"),
            _ => format!("manifest {which} of `{}`", name.repository()),
        };
        until_cancelled(shared, cancel, async {
            let mut sites = shared.sites.for_pull(&shared.settings, name);
            let origin = sites.pop().expect("the registry itself");
            for mirror in sites {
                match shared.manifest(&mirror, which, limit, &what, &shared.mirror_patience()).await {
                    Ok(manifest) => return Ok(manifest),
                    Err(error) => shared.pass_over(&mirror, &error),
                }
            }
            shared.manifest(&origin, which, limit, &what, &shared.settings.patience).await
        })
        .await
    }

    /// Fetches a blob of `size` bytes into memory, and checks its digest. The caller has checked that it is small.
    ///
    /// # Errors
    ///
    /// As [`Self::download`], or the content is another.
    pub async fn document(
        &self,
        name: &ImageName,
        digest: Digest,
        size: u64,
        cancel: &CancellationToken,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let mut sink = |chunk: &[u8]| {
            bytes.extend_from_slice(chunk);
            Ok(())
        };
        self.download(name, digest, size, &mut sink, cancel).await?;
        let found = Digest::of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        let (host, what) = (name.host().to_owned(), blob(name, digest));
        Err(RegistryError::WrongDigest { host, what, wanted: digest.to_string(), found: found.to_string() })
    }

    /// Downloads a blob of `size` bytes in order; `sink` sees each byte once, and may take its time.
    ///
    /// Goes on where it stopped when the connection breaks, if need be at the next mirror or the registry itself. The length
    /// is checked, the digest is not: the receiver takes it anyway, and must not believe the content before.
    ///
    /// # Errors
    ///
    /// The registry's answer to the last attempt, a length that does not fit, or the sink's own error, after which nothing
    /// more is read. What the sink was given stays given.
    pub async fn download(
        &self,
        name: &ImageName,
        digest: Digest,
        size: u64,
        sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
        cancel: &CancellationToken,
    ) -> Result<(), RegistryError> {
        let shared = &*self.shared;
        let what = blob(name, digest);
        let mut transfer = Transfer { digest, size, what: &what, done: 0, speed: Speed::new(), sink };
        until_cancelled(shared, cancel, async {
            let mut sites = shared.sites.for_pull(&shared.settings, name);
            let origin = sites.pop().expect("the registry itself");
            for mirror in sites {
                match shared.download(&mirror, &mut transfer, &shared.mirror_patience()).await {
                    Ok(()) => return Ok(()),
                    Err(error @ RegistryError::Sink { .. }) => return Err(error),
                    Err(error) => shared.pass_over(&mirror, &error),
                }
                transfer.speed = Speed::new();
            }
            shared.download(&origin, &mut transfer, &shared.settings.patience).await
        })
        .await
    }
}

/// A download under way.
struct Transfer<'a> {
    digest: Digest,
    size: u64,
    what: &'a str,
    /// So much the sink has.
    done: u64,
    speed: Speed,
    sink: &'a mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
}

impl Shared {
    fn mirror_patience(&self) -> Patience {
        let patience = self.settings.patience;
        Patience { attempts: patience.attempts.min(MIRROR_ATTEMPTS), ..patience }
    }

    fn pass_over(&self, mirror: &Site, error: &RegistryError) {
        // Whether a connection is refused or broken off at once is a matter of chance.
        if matches!(error, RegistryError::Connect { .. } | RegistryError::Untrusted { .. } | RegistryError::Cut { .. })
        {
            self.sites.is_dead(mirror);
        }
        tracing::info!(mirror = mirror.host, error = error as &dyn std::error::Error, "mirror passed over");
        self.settings.notices.tell(format_args!("mirror {} passed over: {}", mirror.host, in_one_line(error)));
    }

    async fn manifest(
        &self,
        site: &Site,
        which: &Which,
        limit: u64,
        what: &str,
        patience: &Patience,
    ) -> Result<Manifest, RegistryError> {
        let mut tries = Tries::new(patience, &self.settings.notices);
        loop {
            match self.try_manifest(site, which, limit, what).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    async fn try_manifest(&self, site: &Site, which: &Which, limit: u64, what: &str) -> Result<Manifest, Failure> {
        let url = self.address(site, &format!("manifests/{which}")).await?;
        let ask = Ask::new(Method::GET, url, what).header(ACCEPT, &MANIFESTS.join(", "));
        let response = self.exchange(site, &ask, &Scope::pull(site)).await?;
        let patience = &self.settings.patience;
        if response.status() != StatusCode::OK || answer::is_page(&response) {
            return Err(answer::refusal(response, &site.host, what, patience).await);
        }
        let announced = digest_header(&response);
        let content_type = media_type(&response);
        let bytes = answer::read(response, &site.host, what, limit, patience).await?;
        let found = Digest::of(&bytes);
        let wanted = match which {
            Which::Digest(digest) => Some(digest.to_string()),
            Which::Tag(_) => announced,
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found.to_string()) {
            let (host, what, found) = (site.host.clone(), what.to_owned(), found.to_string());
            return Err(RegistryError::WrongDigest { host, what, wanted, found }.into());
        }
        let media_type = kind(&bytes, &content_type).map_err(|reason| match reason {
            None => RegistryError::TooOld { host: site.host.clone(), what: what.to_owned() },
            Some(reason) => RegistryError::NotAManifest { host: site.host.clone(), what: what.to_owned(), reason },
        })?;
        Ok(Manifest { bytes, media_type, digest: found })
    }

    /// Goes on with a download until it is done, or there is no point.
    async fn download(
        &self,
        site: &Site,
        transfer: &mut Transfer<'_>,
        patience: &Patience,
    ) -> Result<(), RegistryError> {
        let mut tries = Tries::new(patience, &self.settings.notices);
        loop {
            let before = transfer.done;
            let Err(failure) = self.download_some(site, transfer, patience).await else { return Ok(()) };
            if transfer.done > before {
                // However often it breaks, it comes to an end: slow ones are noticed.
                tries.reset();
            }
            tries.again(failure).await?;
            if let Some((bytes, during)) = transfer.speed.passed(0, patience) {
                let (host, what) = (site.host.clone(), transfer.what.to_owned());
                return Err(RegistryError::TooSlow { host, what, bytes, during });
            }
        }
    }

    /// Downloads as much as one connection brings.
    async fn download_some(
        &self,
        site: &Site,
        transfer: &mut Transfer<'_>,
        patience: &Patience,
    ) -> Result<(), Failure> {
        let what = transfer.what;
        let url = self.address(site, &format!("blobs/{}", transfer.digest)).await?;
        let mut ask = Ask::new(Method::GET, url, what);
        if transfer.done > 0 {
            ask = ask.header(RANGE, &format!("bytes={}-", transfer.done));
        }
        let mut response = self.exchange(site, &ask, &Scope::pull(site)).await?;
        // The beginning that is there already, from registries that cannot start in the middle.
        let mut skip = match response.status() {
            StatusCode::OK => transfer.done,
            StatusCode::PARTIAL_CONTENT => 0,
            _ => return Err(answer::refusal(response, &site.host, what, patience).await),
        };
        if answer::is_page(&response) {
            return Err(answer::refusal(response, &site.host, what, patience).await);
        }
        transfer.check(&response, site)?;
        while let Some(chunk) = http::chunk(&mut response, &site.host, what, patience, &mut transfer.speed).await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let new = &chunk[usize::try_from(skipped).expect("not more than the chunk")..];
            let found = transfer.done + new.len() as u64;
            if found > transfer.size {
                return Err(transfer.wrong_length(site, found).into());
            }
            let started = Instant::now();
            // What comes again is no progress, or a registry that starts anew each time would never be too slow.
            transfer.speed.uncount(skipped);
            (transfer.sink)(new).map_err(|source| RegistryError::Sink { what: what.to_owned(), source })?;
            transfer.speed.excuse(started.elapsed());
            transfer.done = found;
        }
        if transfer.done == transfer.size {
            return Ok(());
        }
        let (host, what) = (site.host.clone(), what.to_owned());
        let (received, size) = (transfer.done, transfer.size);
        Err(Failure::passing(RegistryError::Short { host, what, received, size }))
    }
}

impl Transfer<'_> {
    /// Checks that an answer is about to bring what is missing.
    fn check(&self, response: &Response, site: &Site) -> Result<(), RegistryError> {
        if response.status() == StatusCode::OK {
            return match response.content_length() {
                Some(length) if length != self.size => Err(self.wrong_length(site, length)),
                _ => Ok(()),
            };
        }
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let range = header.and_then(parse_range);
        match range {
            Some((start, _, Some(total))) if start == self.done && total != self.size => {
                Err(self.wrong_length(site, total))
            }
            Some((start, end, _)) if start == self.done && start <= end && end < self.size => Ok(()),
            _ => {
                let found = header.map_or("a part without saying which".to_owned(), |text| {
                    format!("`{}`", answer::printable(text.as_bytes()))
                });
                let (host, what) = (site.host.clone(), self.what.to_owned());
                Err(RegistryError::WrongRange { host, what, offset: self.done, found })
            }
        }
    }

    fn wrong_length(&self, site: &Site, found: u64) -> RegistryError {
        let (host, what) = (site.host.clone(), self.what.to_owned());
        RegistryError::WrongLength { host, what, wanted: self.size, found }
    }
}

/// Returns how errors call a blob.
pub(super) fn blob(name: &ImageName, digest: Digest) -> String {
    format!("blob {digest} of `{}`", name.repository())
}

/// Returns the digest that a registry says the content has, if it is one that we can check.
pub(super) fn digest_header(response: &Response) -> Option<String> {
    let text = response.headers().get("docker-content-digest")?.to_str().ok()?;
    text.starts_with("sha256:").then(|| answer::printable(text.as_bytes()))
}

/// Returns the media type without its parameters.
fn media_type(response: &Response) -> String {
    let text = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Parses `bytes START-END/TOTAL`, where the total may be `*`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, total))
}

/// Returns the kind of a manifest; the error is `None` if it is too old, and else says what is wrong.
///
/// What stands in it counts more than the header, which some registries make up. Both must agree where both are specific:
/// otherwise one client would read a list where another reads an image.
fn kind(bytes: &[u8], content_type: &str) -> Result<String, Option<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<u32>,
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|error| Some(format!("line {}, column {} cannot be understood", error.line(), error.column())))?;
    if shape.schema_version == Some(1) || content_type.starts_with(TOO_OLD) {
        return Err(None);
    }
    let is_list = shape.manifests.is_some();
    if is_list == (shape.config.is_some() || shape.layers.is_some()) {
        return Err(Some("it is neither a list nor an image, or both".to_owned()));
    }
    let known = |text: &str| MANIFESTS.contains(&text);
    let kind = match shape.media_type.as_deref() {
        Some(inside) if !known(inside) => {
            return Err(Some(format!("its media type is `{}`", answer::printable(inside.as_bytes()))));
        }
        Some(inside) if known(content_type) && inside != content_type => {
            return Err(Some(format!("it is sent as `{content_type}`, and calls itself `{inside}`")));
        }
        Some(inside) => inside,
        None if known(content_type) => content_type,
        // OCI's manifests need not say what they are.
        None => MANIFESTS[usize::from(!is_list)],
    };
    if is_list != (kind.contains("index") || kind.contains("list")) {
        return Err(Some(format!("it does not look like `{kind}`")));
    }
    Ok(kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, 9, None)));
        for text in ["", "bytes */10", "bytes 5-/10", "5-9/10", "bytes 5-9", "bytes a-b/c"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_manifest_is_of_one_kind() {
        let [index, manifest, list, docker] = MANIFESTS;
        let inside = |kind: &str| format!(r#"{{"schemaVersion": 2, "mediaType": "{kind}", "layers": []}}"#);
        let ok = |json: &str, header: &str| kind(json.as_bytes(), header).expect(json);
        assert_eq!(ok(r#"{"layers": []}"#, ""), manifest);
        assert_eq!(ok(r#"{"manifests": []}"#, "application/json"), index);
        assert_eq!(ok(r#"{"manifests": []}"#, list), list);
        assert_eq!(ok(&inside(docker), "text/plain"), docker);
        assert_eq!(kind(br#"{"schemaVersion": 1, "fsLayers": []}"#, ""), Err(None));
        assert_eq!(kind(b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws"), Err(None));
        for (json, header) in [
            ("<html>", ""),
            ("{}", manifest),
            (r#"{"layers": [], "manifests": []}"#, ""),
            (r#"{"layers": []}"#, index),
            (&inside(docker), manifest),
            (&inside(list), ""),
            (&inside("a/b"), ""),
        ] {
            assert!(matches!(kind(json.as_bytes(), header), Err(Some(_))), "{json} {header}");
        }
    }
}
