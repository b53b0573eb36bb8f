//! Names of images in registries: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.
//!
//! The rules are the ones that Docker made and registries share. A name without a host means Docker Hub, and one
//! without a slash there means the official image: `debian` is `docker.io/library/debian`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use reqwest::Url;
use thiserror::Error;

use crate::{Digest, DigestError};

/// How Docker Hub is called in names. Its registry answers on another host.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// The repositories of Docker Hub that are written without this.
const OFFICIAL: &str = "library/";
/// The tag that is meant when neither a tag nor a digest is written.
const DEFAULT_TAG: &str = "latest";
/// The longest tag that registries accept.
const TAG_LENGTH: usize = 128;
/// The longest name, host included, that registries accept.
const NAME_LENGTH: usize = 255;

/// The name of an image in a registry.
///
/// Its parts keep to the rules of registries, so they can be put into an address as they are. What it displays is
/// how users write it, and parses to the same name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ImageName {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Which manifest of a repository is meant.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Which {
    /// What the tag stands for now.
    Tag(String),
    /// This one, for ever.
    Digest(Digest),
}

/// Why a text is not the name of an image. Always the user's mistake.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// What stands behind `@` is not a digest that can be checked.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// What stands behind the colon is not a tag.
    #[error("`{0}` is not a tag: at most {TAG_LENGTH} letters, digits, `_`, `.` and `-`, not starting with `.` or `-`")]
    Tag(String),
    /// The host cannot be one.
    #[error("`{0}` is not the name of a host")]
    Host(String),
    /// The port cannot be one.
    #[error("`{0}` is not a port")]
    Port(String),
    /// The name is longer than registries allow.
    #[error("a name has at most {NAME_LENGTH} characters")]
    TooLong,
    /// There is nothing before, between or behind slashes.
    #[error("a part of the name is empty")]
    EmptyPart,
    /// Repositories have no capital letters.
    #[error("`{0}` must be lower-case")]
    UpperCase(String),
    /// A character that no name has.
    #[error("{0:?} cannot be in a name")]
    OddCharacter(char),
    /// Dots, dashes or underscores where they may not be.
    #[error("`{0}` must start and end with a letter or digit, with single joints between")]
    Joints(String),
}

impl ImageName {
    /// Returns the host, with its port if one is written. Docker Hub is `docker.io`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path on the host, as registries know it: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest as written.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns what the name stands for: its digest, or else its tag, or else the tag `latest`.
    pub fn which(&self) -> Which {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Which::Digest(digest),
            (None, Some(tag)) => Which::Tag(tag.clone()),
            (None, None) => Which::Tag(DEFAULT_TAG.to_owned()),
        }
    }

    /// Returns the whole name with its host, also if that is Docker Hub.
    pub(crate) fn in_full(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        let digest = self.digest.iter().map(|digest| format!("@{digest}"));
        format!("{}/{}", self.host, self.repository) + &tag.chain(digest).collect::<String>()
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        let digest = digest.map(Digest::from_str).transpose()?;
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        tag.map_or(Ok(()), check_tag)?;
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => {
                check_host(host)?;
                (host.to_ascii_lowercase(), path)
            }
            _ => (DOCKER_HUB.to_owned(), name),
        };
        if name.len() > NAME_LENGTH {
            return Err(NameError::TooLong);
        }
        path.split('/').try_for_each(check_part)?;
        // What Docker Hub was called once, and is still called in files of credentials.
        let host = if host == "index.docker.io" { DOCKER_HUB.to_owned() } else { host };
        let official = if host == DOCKER_HUB && !path.contains('/') { OFFICIAL } else { "" };
        Ok(Self { host, repository: format!("{official}{path}"), tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.in_full();
        let Some(path) = full.strip_prefix(DOCKER_HUB).and_then(|rest| rest.strip_prefix('/')) else {
            return f.write_str(&full);
        };
        let short = match path.strip_prefix(OFFICIAL) {
            Some(official) if !self.repository[OFFICIAL.len()..].contains('/') => official,
            _ => path,
        };
        // A repository of Docker Hub can be called like a host.
        let ambiguous = short.split_once('/').is_some_and(|(first, _)| is_host(first));
        f.write_str(if ambiguous { &full } else { short })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Returns true if what stands before the first slash is a host and not a part of the path: Docker's rule.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn check_tag(tag: &str) -> Result<(), NameError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if tag.is_empty() || tag.len() > TAG_LENGTH || !tag.chars().all(fits) || tag.starts_with(['.', '-']) {
        return Err(NameError::Tag(tag.to_owned()));
    }
    Ok(())
}

pub(crate) fn check_host(text: &str) -> Result<(), NameError> {
    let bad = || NameError::Host(text.to_owned());
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<Ipv6Addr>().map_err(|_| bad())?;
            (None, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(bad)?) })
        }
        None => text.split_once(':').map_or((Some(text), None), |(host, port)| (Some(host), Some(port))),
    };
    if let Some(port) = port
        && (port.parse::<u16>().is_err() || port.starts_with('+'))
    {
        return Err(NameError::Port(port.to_owned()));
    }
    let fits = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(fits) || !is_plain(host) => Err(NameError::Host(host.to_owned())),
        _ => Ok(()),
    }
}

/// Returns true if addresses have the host as it is. `127.1` and `0x7f.1` are 127.0.0.1 there, and `1.2.3.999` and ill-formed
/// `xn--` names are nothing.
fn is_plain(host: &str) -> bool {
    let url = Url::parse(&format!("https://{host}/"));
    url.is_ok_and(|url| url.host_str().is_some_and(|found| found.eq_ignore_ascii_case(host)))
}

/// Checks one part of a path: lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
pub(crate) fn check_part(part: &str) -> Result<(), NameError> {
    if part.is_empty() {
        return Err(NameError::EmptyPart);
    }
    if part.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(NameError::UpperCase(part.to_owned()));
    }
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(odd) = part.chars().find(|&c| !word(c) && !matches!(c, '.' | '_' | '-')) {
        return Err(NameError::OddCharacter(odd));
    }
    let joined = part.split(word).filter(|joint| !joint.is_empty());
    let fits = |joint: &str| matches!(joint, "." | "_" | "__") || joint.chars().all(|c| c == '-');
    if !part.starts_with(word) || !part.ends_with(word) || !joined.into_iter().all(fits) {
        return Err(NameError::Joints(part.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, Option<String>, Option<Digest>) {
        let name: ImageName = text.parse().expect(text);
        (name.host, name.repository, name.tag, name.digest)
    }

    #[test]
    fn a_name_has_four_parts() {
        let digest = Digest::of(b"");
        let owned = |text: &str| text.to_owned();
        assert_eq!(parts("debian"), (owned("docker.io"), owned("library/debian"), None, None));
        assert_eq!(parts("debian:12"), (owned("docker.io"), owned("library/debian"), Some(owned("12")), None));
        assert_eq!(parts("a/b"), (owned("docker.io"), owned("a/b"), None, None));
        assert_eq!(parts("index.docker.io/b"), (owned("docker.io"), owned("library/b"), None, None));
        assert_eq!(parts("localhost/z"), (owned("localhost"), owned("z"), None, None));
        assert_eq!(parts("LocalHost:5000/z:1"), (owned("localhost:5000"), owned("z"), Some(owned("1")), None));
        assert_eq!(parts("[::1]:5000/z"), (owned("[::1]:5000"), owned("z"), None, None));
        assert_eq!(
            parts(&format!("ghcr.io/x/y:tag@{digest}")),
            (owned("ghcr.io"), owned("x/y"), Some(owned("tag")), Some(digest))
        );
    }

    #[test]
    fn a_host_that_an_address_would_not_keep_is_refused() {
        for host in ["127.1:5", "0x7f.1", "2130706433:5", "1.2.3.999", "1.2.3.4.5", "foo.0x:80", "xn--a.com", "a.xn--0"]
        {
            let text = format!("{host}/x");
            assert!(matches!(text.parse::<ImageName>(), Err(NameError::Host(_))), "{text}");
        }
        for host in ["127.0.0.1:5", "EXAMPLE.com", "xn--bcher-kva.example", "a-b.c:1", "1a.b"] {
            let text = format!("{host}/x");
            assert!(text.parse::<ImageName>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_digest_counts_more_than_a_tag() {
        let digest = Digest::of(b"");
        let which = |text: &str| text.parse::<ImageName>().expect(text).which();
        assert_eq!(which("debian"), Which::Tag("latest".to_owned()));
        assert_eq!(which("debian:12"), Which::Tag("12".to_owned()));
        assert_eq!(which(&format!("debian:12@{digest}")), Which::Digest(digest));
    }

    #[test]
    fn what_is_displayed_parses_to_the_same() {
        let digest = Digest::of(b"");
        for (text, shown) in [
            ("debian", "debian"),
            ("docker.io/library/debian:12", "debian:12"),
            ("library/debian", "debian"),
            ("library/debian/x", "library/debian/x"),
            ("docker.io/a.b/c:1", "docker.io/a.b/c:1"),
            ("docker.io/localhost/c", "docker.io/localhost/c"),
            ("docker.io/library/a.b", "a.b"),
            ("localhost:5000/z", "localhost:5000/z"),
            ("[::1]/z", "[::1]/z"),
            (&format!("a@{digest}"), &format!("a@{digest}")),
            (&format!("ghcr.io/library/a:1@{digest}"), &format!("ghcr.io/library/a:1@{digest}")),
        ] {
            let name: ImageName = text.parse().expect(text);
            assert_eq!(name.to_string(), shown);
            assert_eq!(shown.parse(), Ok(name), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_an_address() {
        for text in ["a/../b", "h.x/a?b", "h.x/a#b", "h.x/a%2e", "u@h.x/a", "h.x:+80/a", "[::1/a", "[::1]x/a", "h..x/a"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }
}
