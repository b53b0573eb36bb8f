//! Where a store is and of what kind: `--store KIND:PATH`.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// A store's kind and directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// How trees are kept.
    pub kind: Kind,
    /// The store's directory.
    pub path: PathBuf,
}

/// How trees are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The best that the directory's filesystem offers.
    Auto,
    /// Overlayfs layers.
    Overlayfs,
}

/// Kinds that scripts for OBuilder name and this version does not have.
const NOT_YET: [&str; 8] = ["btrfs", "zfs", "xfs", "copy", "rsync", "docker", "qemu", "hcs"];

impl Location {
    /// Parses `KIND:PATH`; `auto` alone stands for the directory `default`.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadLocation`], which says what would be right.
    pub fn parse(text: &str, default: &Path) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadLocation { text: text.to_owned(), reason };
        let (kind, path) = match text.split_once(':') {
            Some((kind, path)) => (kind, Path::new(path)),
            None => (text, default),
        };
        let kind = match kind {
            "auto" => Kind::Auto,
            "overlayfs" if text.contains(':') => Kind::Overlayfs,
            "overlayfs" => return Err(bad("give its directory, `overlayfs:/path`".into())),
            _ if NOT_YET.contains(&kind) => {
                return Err(bad(format!("{kind} stores are not supported yet; use `overlayfs:/path`")));
            }
            _ => return Err(bad("expected `auto` or `overlayfs:/path`".into())),
        };
        if path.as_os_str().is_empty() {
            return Err(bad("the path is empty".into()));
        }
        Ok(Self { kind, path: path.to_owned() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Auto => "auto",
            Kind::Overlayfs => "overlayfs",
        };
        write!(f, "{kind}:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_kind_and_a_path() {
        let parse = |text| Location::parse(text, Path::new("/default"));
        assert_eq!(parse("auto").unwrap().to_string(), "auto:/default");
        assert_eq!(parse("overlayfs:/x:y").unwrap().path, Path::new("/x:y"));
        for text in ["overlayfs", "overlayfs:", "btrfs:/x", "/x", ""] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("overlayfs:/path") || error.contains("empty"), "{error}");
        }
    }
}
