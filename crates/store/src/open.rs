//! Which backend serves a store: the kind that it has, or for a new one the kind that was asked for or fits best.

use std::path::{Path, PathBuf};

use crate::error::At;
use crate::layout::Layout;
use crate::prepare::{self, Age};
use crate::{Backend, BtrfsStore, Kind, Location, OverlayfsStore, StoreError, filesystem};

/// Finds or makes the store at `location`.
pub(crate) fn open(location: &Location) -> Result<(Layout, Box<dyn Backend>), StoreError> {
    let layout = Layout { root: directory(location)? };
    let backend = match prepare::look(&layout)? {
        Age::Old(found) => backend(location, agree(location, found, &layout)?, &layout, false)?,
        Age::Nameless => return Err(nameless(&layout)),
        Age::New => prepare::make(&layout, || choose(location, &layout))?,
    };
    Ok((layout, backend))
}

/// Returns what is wrong with a store whose kind is not known.
pub(crate) fn nameless(layout: &Layout) -> StoreError {
    let root = &layout.root;
    let found =
        format!("its `state/format` is gone; with its kind, `kiln store repair KIND:{}` writes it", root.display());
    StoreError::Format { path: root.clone(), found }
}

/// Returns the directory of the store at `location`.
pub(crate) fn directory(location: &Location) -> Result<PathBuf, StoreError> {
    let place = &location.place;
    std::path::absolute(place).at("find", place)
}

/// Returns the kind to open a store of the kind `found` as.
fn agree(location: &Location, found: Kind, layout: &Layout) -> Result<Kind, StoreError> {
    match location.kind {
        Kind::Auto => Ok(found),
        asked if asked.keeps_trees_as(found) => Ok(asked),
        asked => Err(StoreError::Format {
            path: layout.root.clone(),
            found: format!("it is a store of kind {}, not {}", found.name(), asked.name()),
        }),
    }
}

/// Returns the kind of a new store and its backend.
fn choose(location: &Location, layout: &Layout) -> Result<(Kind, Box<dyn Backend>), StoreError> {
    let kind = match location.kind {
        Kind::Auto => best(&layout.root)?,
        kind => kind,
    };
    Ok((kind, backend(location, kind, layout, true)?))
}

/// Returns the kind that the filesystem of `root` serves best.
fn best(root: &Path) -> Result<Kind, StoreError> {
    let stat = rustix::fs::statfs(root).at("look at", root)?;
    Ok(if filesystem::is_btrfs(&stat) { Kind::Btrfs } else { Kind::Overlayfs })
}

fn backend(location: &Location, kind: Kind, layout: &Layout, is_new: bool) -> Result<Box<dyn Backend>, StoreError> {
    let root = &layout.root;
    Ok(match kind {
        Kind::Overlayfs => Box::new(OverlayfsStore::open(root, is_new)?),
        Kind::Btrfs => Box::new(BtrfsStore::open(root, is_new)?),
        Kind::Auto | Kind::Zfs | Kind::Xfs | Kind::Copy(_) => {
            return Err(StoreError::BadLocation {
                text: location.to_string(),
                reason: "not supported yet; use `overlayfs:/path` or `btrfs:/path`".to_owned(),
            });
        }
    })
}
