//! What may stand after `from`: where a base image comes from.
//!
//! A reference is either a transport and its argument (`rootfs:base.tar.gz`, `oci:dir:tag`) or a
//! name in a registry (`debian:12`). Both contain colons, so a misspelt transport looks a lot like
//! a name; [`Reference::parse`] tells them apart and suggests the transport that was meant.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The transports, as written before the colon, each with an example for error messages.
const TRANSPORTS: &[(&str, &str)] = &[
    ("rootfs", "rootfs:base.tar.gz"),
    ("dir", "dir:base"),
    ("oci", "oci:layout:12"),
    ("oci-archive", "oci-archive:image.tar:12"),
    ("docker-archive", "docker-archive:image.tar:debian:12"),
    ("debootstrap", "debootstrap:bookworm"),
];

/// The longest tag that registries accept.
const TAG_LENGTH: usize = 128;
/// The longest repository name that registries accept.
const NAME_LENGTH: usize = 255;

/// A parsed `(from REF)`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Reference {
    /// The empty tree.
    Scratch,
    /// A tar archive of a root filesystem, plain or compressed.
    Rootfs(PathBuf),
    /// A directory that is a root filesystem.
    Dir(PathBuf),
    /// A directory in the OCI image layout.
    OciLayout {
        /// The directory, which holds `index.json`.
        dir: PathBuf,
        /// Which image of several.
        tag: Option<String>,
    },
    /// An OCI image layout in a tar archive.
    OciArchive {
        /// The archive.
        file: PathBuf,
        /// Which image of several.
        tag: Option<String>,
    },
    /// What `docker save` writes.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// Which image of several: a full name, as `debian:12`.
        tag: Option<String>,
    },
    /// A Debian suite, installed from its mirror.
    Debootstrap {
        /// The suite's name: `bookworm`, `stable`.
        suite: String,
    },
    /// A name in a registry.
    Registry(String),
}

/// Why a text is not a reference. Always the user's mistake.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing is written.
    #[error("an image reference is empty")]
    Empty,
    /// It looks like a transport and is none.
    #[error("`{text}`: there is no transport `{transport}`; did you mean `{nearest}`, as in `{example}`?")]
    UnknownTransport {
        /// The whole reference.
        text: String,
        /// What stands before the colon.
        transport: String,
        /// The transport that is spelt most like it.
        nearest: &'static str,
        /// How that one is used.
        example: &'static str,
    },
    /// It looks like a transport of other tools.
    #[error("`{text}`: there is no transport `{transport}`; {hint}")]
    ForeignTransport {
        /// The whole reference.
        text: String,
        /// What stands before the colon.
        transport: String,
        /// What to write instead.
        hint: &'static str,
    },
    /// The transport's argument is missing.
    #[error("`{text}` names nothing; write it as in `{example}`")]
    NoArgument {
        /// The whole reference.
        text: String,
        /// How the transport is used.
        example: &'static str,
    },
    /// A suite that could be mistaken for an option, or that cannot exist.
    #[error(
        "`{0}` is not the name of a suite: lower-case letters, digits, `.` and `-`, starting with a letter or digit"
    )]
    BadSuite(String),
    /// Neither a transport nor a name that a registry could have.
    #[error("`{text}` is not an image reference: {reason}")]
    BadName {
        /// The whole reference.
        text: String,
        /// Which rule it breaks.
        reason: String,
    },
}

impl Reference {
    /// Parses `text`; relative paths in it are relative to `relative_to`, the directory of the spec.
    ///
    /// The argument of `rootfs:` and `dir:` is a path to its end. That of `oci:`, `oci-archive:` and
    /// `docker-archive:` is a path up to the next colon, then a tag.
    ///
    /// # Errors
    ///
    /// See [`ReferenceError`].
    pub fn parse(text: &[u8], relative_to: &Path) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text == b"scratch" {
            return Ok(Self::Scratch);
        }
        let shown = String::from_utf8_lossy(text);
        let bad = |reason: &str| ReferenceError::BadName { text: shown.to_string(), reason: reason.to_owned() };
        if text.contains(&0) {
            return Err(bad("it contains a NUL byte"));
        }
        let Some((transport, argument)) = split(text) else { return registry(text) };
        let known = TRANSPORTS.iter().find(|(name, _)| name.as_bytes() == transport);
        let Some((name, example)) = known else {
            misspelt(&shown, &String::from_utf8_lossy(transport), argument)?;
            return registry(text);
        };
        if argument.is_empty() || argument.starts_with(b":") {
            return Err(ReferenceError::NoArgument { text: shown.to_string(), example });
        }
        let path = |bytes: &[u8]| relative_to.join(OsStr::from_bytes(bytes));
        let tagged = || match split(argument) {
            None => Ok((path(argument), None)),
            Some((_, [])) => Err(bad("the tag after the last colon is empty")),
            Some((file, tag)) => match str::from_utf8(tag) {
                Ok(tag) => Ok((path(file), Some(tag.to_owned()))),
                Err(_) => Err(bad("the tag is not UTF-8")),
            },
        };
        Ok(match *name {
            "rootfs" => Self::Rootfs(path(argument)),
            "dir" => Self::Dir(path(argument)),
            "oci" => tagged().map(|(dir, tag)| Self::OciLayout { dir, tag })?,
            "oci-archive" => tagged().map(|(file, tag)| Self::OciArchive { file, tag })?,
            "docker-archive" => tagged().map(|(file, tag)| Self::DockerArchive { file, tag })?,
            _ => Self::Debootstrap { suite: suite(argument)? },
        })
    }
}

impl fmt::Display for Reference {
    /// Writes the reference so that it parses to the same, whatever the directory, if its paths are absolute.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            Self::Scratch => return f.write_str("scratch"),
            Self::Debootstrap { suite } => return write!(f, "debootstrap:{suite}"),
            Self::Registry(name) => return f.write_str(name),
            Self::Rootfs(file) => ("rootfs", file, &None),
            Self::Dir(dir) => ("dir", dir, &None),
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// Splits at the first colon.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// Fails if `prefix:argument` is more likely a misspelt transport than a name with a tag or port.
fn misspelt(text: &str, prefix: &str, argument: &[u8]) -> Result<(), ReferenceError> {
    if prefix.contains(['/', '.']) || prefix.is_empty() {
        return Ok(());
    }
    let hint = match prefix {
        "docker" | "docker-image" | "registry" if argument.starts_with(b"//") => {
            Some("an image of a registry is written by its plain name, as `debian:12`")
        }
        "docker-daemon" | "containers-storage" => {
            Some("save the image to a file and use `docker-archive:` or `oci-archive:`")
        }
        _ => None,
    };
    if let Some(hint) = hint {
        return Err(ReferenceError::ForeignTransport { text: text.to_owned(), transport: prefix.to_owned(), hint });
    }
    let (distance, (nearest, example)) = TRANSPORTS
        .iter()
        .map(|entry| (strsim::damerau_levenshtein(prefix, entry.0), entry))
        .min_by_key(|(distance, _)| *distance)
        .expect("there are transports");
    // A tag holds no slash (a port may be followed by one) and rarely ends like an archive.
    let port = argument.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let like_a_path = argument.contains(&b'/') && (port == 0 || argument.get(port) != Some(&b'/'));
    let like_an_archive = [".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.zst"]
        .iter()
        .any(|ending| argument.to_ascii_lowercase().ends_with(ending.as_bytes()));
    if like_a_path || like_an_archive || (distance <= 1 && prefix.len() >= 6) {
        return Err(ReferenceError::UnknownTransport {
            text: text.to_owned(),
            transport: prefix.to_owned(),
            nearest,
            example,
        });
    }
    Ok(())
}

fn suite(text: &[u8]) -> Result<String, ReferenceError> {
    let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let shown = String::from_utf8_lossy(text).into_owned();
    // A leading dash would be an option to the program that installs the suite.
    if text.iter().all(fits) && text[0].is_ascii_alphanumeric() && text.len() <= 64 {
        Ok(shown)
    } else {
        Err(ReferenceError::BadSuite(shown))
    }
}

/// Checks `[DOMAIN[:PORT]/]PATH[:TAG][@DIGEST]` by the rules that registries share.
fn registry(text: &[u8]) -> Result<Reference, ReferenceError> {
    let shown = String::from_utf8_lossy(text).into_owned();
    match check_name(&shown) {
        Ok(()) => Ok(Reference::Registry(shown)),
        Err(reason) => Err(ReferenceError::BadName { text: shown, reason }),
    }
}

fn check_name(text: &str) -> Result<(), String> {
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    if let Some(digest) = digest {
        digest.parse::<crate::Digest>().map_err(|error| error.to_string())?;
    }
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let path = match name.split_once('/') {
        Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => {
            check_domain(domain)?;
            path
        }
        _ => name,
    };
    if name.len() > NAME_LENGTH {
        return Err(format!("a name has at most {NAME_LENGTH} characters"));
    }
    path.split('/').try_for_each(check_component)
}

fn check_tag(tag: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if tag.is_empty() || tag.len() > TAG_LENGTH || !tag.chars().all(fits) || tag.starts_with(['.', '-']) {
        return Err(format!(
            "`{tag}` is not a tag: at most {TAG_LENGTH} letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
        ));
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<(), String> {
    let (host, port) = domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port)));
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(format!("`{port}` is not a port"));
    }
    let fits = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(fits) { Ok(()) } else { Err(format!("`{host}` is not the name of a host")) }
}

/// Checks one part of a path: lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_component(part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err("a part of the name is empty".to_owned());
    }
    if part.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(format!("`{part}` must be lower-case"));
    }
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(odd) = part.chars().find(|&c| !word(c) && !matches!(c, '.' | '_' | '-')) {
        return Err(format!("{odd:?} cannot be in a name"));
    }
    let joined = part.split(word).filter(|joint| !joint.is_empty());
    let fits = |joint: &str| matches!(joint, "." | "_" | "__") || joint.chars().all(|c| c == '-');
    if !part.starts_with(word) || !part.ends_with(word) || !joined.into_iter().all(fits) {
        return Err(format!("`{part}` must start and end with a letter or digit, with single joints between"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text.as_bytes(), Path::new("/spec"))
    }

    #[test]
    fn transports_take_their_arguments() {
        let tag = |text: &str| Some(text.to_owned());
        assert_eq!(parse("scratch"), Ok(Reference::Scratch));
        assert_eq!(parse("rootfs:a:b.tar"), Ok(Reference::Rootfs("/spec/a:b.tar".into())));
        assert_eq!(parse("dir:/srv/root"), Ok(Reference::Dir("/srv/root".into())));
        assert_eq!(parse("oci:d"), Ok(Reference::OciLayout { dir: "/spec/d".into(), tag: None }));
        assert_eq!(parse("oci:d:1"), Ok(Reference::OciLayout { dir: "/spec/d".into(), tag: tag("1") }));
        assert_eq!(
            parse("docker-archive:x.tar:debian:12"),
            Ok(Reference::DockerArchive { file: "/spec/x.tar".into(), tag: tag("debian:12") })
        );
        assert_eq!(parse("debootstrap:bookworm"), Ok(Reference::Debootstrap { suite: "bookworm".into() }));
    }

    #[test]
    fn names_of_registries_are_kept() {
        let digest = "sha256:".to_owned() + &"0a".repeat(32);
        for text in [
            "debian",
            "debian:12",
            "localhost:5000/z",
            "localhost:5000/z:1",
            "ghcr.io/x/y__z:tag",
            "docker:dind",
            &format!("ghcr.io/x/y:tag@{digest}"),
        ] {
            assert_eq!(parse(text), Ok(Reference::Registry(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_is_displayed_parses_to_the_same() {
        for text in ["scratch", "oci:/a:b", "docker-archive:/a:b:c", "rootfs:/a:b", "debootstrap:sid", "a.b/c:d"] {
            assert_eq!(parse(text).expect("valid").to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_explained() {
        let mut told = String::new();
        for text in [
            "",
            "rootf:debian.tar",
            "docker-achive:x",
            "rotfs:./x.tar",
            "oic:./layout",
            "docker://debian",
            "docker-daemon:debian:12",
            "rootfs:",
            "oci::12",
            "oci:dir:",
            "debootstrap:-x",
            "debootstrap:Sid",
            "Debian",
            "debian:",
            "debian:b@d",
            "a..b",
            "a b",
            "host:99999/a",
            "-x",
        ] {
            told += &format!("{text:?}: {}\n", parse(text).expect_err(text));
        }
        insta::assert_snapshot!(told);
    }
}
