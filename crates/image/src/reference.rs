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

use crate::{ImageName, NameError};

/// The transports, as written before the colon, each with an example for error messages.
const TRANSPORTS: &[(&str, &str)] = &[
    ("rootfs", "rootfs:base.tar.gz"),
    ("dir", "dir:base"),
    ("oci", "oci:layout:12"),
    ("oci-archive", "oci-archive:image.tar:12"),
    ("docker-archive", "docker-archive:image.tar:debian:12"),
    ("docker-daemon", "docker-daemon:debian:12"),
    ("containers-storage", "containers-storage:debian:12"),
    ("debootstrap", "debootstrap:bookworm"),
];

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
    /// An image that the Docker daemon of this machine keeps.
    DockerDaemon {
        /// Its name or id, as the daemon knows it.
        name: String,
    },
    /// An image that Podman, Buildah or CRI-O keeps on this machine.
    ContainersStorage {
        /// Its name or id, as these programs know it.
        name: String,
    },
    /// A name in a registry.
    Registry(ImageName),
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
    /// Returns true if this names something on this machine, which only its own users may read, and not something that anybody can have.
    pub fn is_on_this_machine(&self) -> bool {
        match self {
            Self::Rootfs(_)
            | Self::Dir(_)
            | Self::OciLayout { .. }
            | Self::OciArchive { .. }
            | Self::DockerArchive { .. }
            | Self::DockerDaemon { .. }
            | Self::ContainersStorage { .. } => true,
            Self::Scratch | Self::Debootstrap { .. } | Self::Registry(_) => false,
        }
    }

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
            "docker-daemon" => Self::DockerDaemon { name: foreign(&shown, argument)? },
            "containers-storage" => Self::ContainersStorage { name: foreign(&shown, argument)? },
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
            Self::DockerDaemon { name } => return write!(f, "docker-daemon:{name}"),
            Self::ContainersStorage { name } => return write!(f, "containers-storage:{name}"),
            Self::Registry(name) => {
                // A repository of Docker Hub can be called like a transport, or nearly.
                let short = name.to_string();
                let unmistakable = Self::parse(short.as_bytes(), Path::new("")).is_ok_and(|parsed| parsed == *self);
                return f.write_str(&if unmistakable { short } else { name.in_full() });
            }
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
    if prefix.contains(['/', '.', '[']) || prefix.is_empty() {
        return Ok(());
    }
    let hint = match prefix {
        "docker" | "docker-image" | "registry" if argument.starts_with(b"//") => {
            Some("an image of a registry is written by its plain name, as `debian:12`")
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

/// Takes what is left: a name in a registry.
fn registry(text: &[u8]) -> Result<Reference, ReferenceError> {
    let shown = String::from_utf8_lossy(text).into_owned();
    match shown.parse() {
        Ok(name) => Ok(Reference::Registry(name)),
        Err(error) => Err(bad_name(shown, &error)),
    }
}

/// Checks the name or id of an image that another program keeps. Any id also has the form of a name.
fn foreign(whole: &str, text: &[u8]) -> Result<String, ReferenceError> {
    let name = String::from_utf8_lossy(text).into_owned();
    match name.parse::<ImageName>() {
        Ok(_) => Ok(name),
        Err(error) => Err(bad_name(whole.to_owned(), &error)),
    }
}

fn bad_name(text: String, error: &NameError) -> ReferenceError {
    ReferenceError::BadName { text, reason: error.to_string() }
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
        assert_eq!(parse("docker-daemon:debian:12"), Ok(Reference::DockerDaemon { name: "debian:12".into() }));
        assert_eq!(
            parse("containers-storage:localhost/a@sha256:x").map_err(|error| error.to_string()),
            Err("`containers-storage:localhost/a@sha256:x` is not an image reference: `sha256:x` is not a digest: \
                 `sha256:` and 64 lower-case hex digits"
                .to_owned())
        );
        assert_eq!(
            parse("containers-storage:localhost/a"),
            Ok(Reference::ContainersStorage { name: "localhost/a".into() })
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
            "[::1]:5000/z",
            &format!("ghcr.io/x/y:tag@{digest}"),
        ] {
            assert_eq!(parse(text), Ok(Reference::Registry(text.parse().expect(text))), "{text}");
        }
    }

    #[test]
    fn what_is_displayed_parses_to_the_same() {
        for text in [
            "scratch",
            "oci:/a:b",
            "docker-archive:/a:b:c",
            "rootfs:/a:b",
            "docker-daemon:a:1",
            "containers-storage:a:1",
            "debootstrap:sid",
            "a.b/c:d",
            "debian",
            "docker.io/library/rootfs:1",
            "docker.io/library/rootfx:1",
            "docker.io/library/scratch",
        ] {
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
            "docker-daemn:debian:12",
            "docker-daemon:",
            "docker-daemon:-x",
            "containers-storage:[overlay@/srv]debian",
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
