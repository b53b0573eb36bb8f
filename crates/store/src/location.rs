//! Where a store is and of what kind: `--store KIND:PLACE`.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::StoreError;

/// A store's kind and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// How trees are kept.
    pub kind: Kind,
    /// The store's directory; for [`Kind::Zfs`] the name of its dataset, as `tank/kiln`.
    pub place: PathBuf,
}

/// How trees are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As the store there does; in a new one, the best that the directory's filesystem offers.
    Auto,
    /// Overlayfs layers.
    Overlayfs,
    /// Subvolumes and their snapshots.
    Btrfs,
    /// Datasets and their clones.
    Zfs,
    /// Whole trees, whose files share their blocks where the filesystem can: xfs, btrfs, bcachefs.
    Xfs,
    /// Whole trees.
    Copy(CopyMode),
}

/// What the whole trees of [`Kind::Copy`] share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Nothing. Needs nothing of the filesystem.
    #[default]
    Copy,
    /// Files that a step did not change, by hard links. Needs overlayfs while a step runs.
    Hardlink,
}

/// Kinds that scripts for OBuilder name and this version does not have.
const NOT_YET: [&str; 3] = ["docker", "qemu", "hcs"];
const EXPECTED: &str =
    "expected `auto`, `overlayfs:/path`, `btrfs:/path`, `zfs:pool/dataset`, `xfs:/path` or `copy:/path`";

impl Location {
    /// Parses `KIND:PLACE`; `auto` alone stands for the directory `default`.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadLocation`], which says what would be right.
    pub fn parse(text: &str, default: &Path) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadLocation { text: text.to_owned(), reason };
        let (name, place) = match text.split_once(':') {
            Some((name, place)) => (name, Path::new(place)),
            None => (text, default),
        };
        let kind = match name {
            "auto" => Kind::Auto,
            "copy" | "rsync" => Kind::Copy(CopyMode::default()),
            _ if NOT_YET.contains(&name) => {
                return Err(bad(format!("{name} stores are not supported yet; {EXPECTED}")));
            }
            _ => Kind::named(name).ok_or_else(|| bad(EXPECTED.into()))?,
        };
        if kind != Kind::Auto && !text.contains(':') {
            let place = if kind == Kind::Zfs { "pool/dataset" } else { "/path" };
            return Err(bad(format!("give its place, `{name}:{place}`")));
        }
        if place.as_os_str().is_empty() {
            return Err(bad("the path is empty".into()));
        }
        if kind == Kind::Zfs && place.is_absolute() {
            return Err(bad("give the dataset, `zfs:pool/dataset`, not its directory".into()));
        }
        Ok(Self { kind, place: place.to_owned() })
    }

    /// Returns the location of a store of copies that share what `mode` says.
    ///
    /// # Errors
    ///
    /// [`StoreError::BadLocation`]: it is of another kind.
    pub fn with_copy_mode(self, mode: CopyMode) -> Result<Self, StoreError> {
        match self.kind {
            Kind::Copy(_) => Ok(Self { kind: Kind::Copy(mode), ..self }),
            _ => Err(StoreError::BadLocation {
                text: self.to_string(),
                reason: "only `copy:` and `rsync:` stores have a mode".to_owned(),
            }),
        }
    }
}

impl Kind {
    /// Every kind that a store can be.
    const ALL: [Self; 6] = [
        Self::Overlayfs,
        Self::Btrfs,
        Self::Zfs,
        Self::Xfs,
        Self::Copy(CopyMode::Copy),
        Self::Copy(CopyMode::Hardlink),
    ];

    /// Returns the kind's name, as a store keeps it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Overlayfs => "overlayfs",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
            Self::Xfs => "xfs",
            Self::Copy(CopyMode::Copy) => "copy",
            Self::Copy(CopyMode::Hardlink) => "hardlink",
        }
    }

    /// Returns the kind of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns whether a store of this kind can be opened as one of the `other`: all that keep whole trees can.
    pub(crate) fn keeps_trees_as(self, other: Self) -> bool {
        let are_whole = |kind| matches!(kind, Self::Xfs | Self::Copy(_));
        self == other || (are_whole(self) && are_whole(other))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if let Kind::Copy(_) = self.kind { "copy" } else { self.kind.name() };
        write!(f, "{kind}:{}", self.place.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_kind_and_a_place() {
        let parse = |text| Location::parse(text, Path::new("/default"));
        assert_eq!(parse("auto").unwrap().to_string(), "auto:/default");
        assert_eq!(parse("overlayfs:/x:y").unwrap().place, Path::new("/x:y"));
        assert_eq!(parse("zfs:tank/kiln").unwrap().kind, Kind::Zfs);
        assert_eq!(parse("rsync:/x").unwrap(), parse("copy:/x").unwrap());
        for text in ["overlayfs", "btrfs:", "zfs", "zfs:/tank", "hardlink", "docker:/x", "/x", ""] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(":/path") || error.contains("pool/dataset") || error.contains("empty"), "{error}");
        }
    }

    #[test]
    fn only_copies_have_a_mode() {
        let parse = |text| Location::parse(text, Path::new("/default"))?.with_copy_mode(CopyMode::Hardlink);
        assert_eq!(parse("rsync:/x").unwrap().kind, Kind::Copy(CopyMode::Hardlink));
        assert!(parse("xfs:/x").is_err());
        assert!(parse("auto").is_err());
    }
}
