//! Which backend serves a store: the kind that it has, or for a new one the kind that was asked for or fits best.

use std::path::PathBuf;

use crate::error::At;
use crate::layout::Layout;
use crate::prepare::{self, Age};
use crate::{Backend, BtrfsStore, CopyMode, Kind, Location, OverlayfsStore, StoreError, TreeStore, ZfsStore, zfs};

/// Finds or makes the store at `location`.
pub(crate) fn open(location: &Location) -> Result<(Layout, Box<dyn Backend>), StoreError> {
    let layout = Layout { root: directory(location)? };
    let backend = match prepare::look(&layout)? {
        Age::Old(found) => {
            let kind = agree(location, found, &layout)?;
            backend(kind, &layout, kind != found)?
        }
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
    if location.kind == Kind::Zfs {
        return zfs::directory(place);
    }
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

/// What a new store may be if nobody says of what kind it is to be, the best first.
const CHOICE: [Kind; 4] = [Kind::Overlayfs, Kind::Btrfs, Kind::Xfs, Kind::Copy(CopyMode::Copy)];

/// Returns the kind of a new store and its backend.
fn choose(location: &Location, layout: &Layout) -> Result<(Kind, Box<dyn Backend>), StoreError> {
    let open = |kind| Ok((kind, backend(kind, layout, true)?));
    if location.kind != Kind::Auto {
        return open(location.kind);
    }
    let mut refused = None;
    for kind in CHOICE {
        match open(kind) {
            Err(error @ StoreError::Unfit { .. }) => {
                tracing::debug!(%error, "not the best kind of store");
                refused.get_or_insert(error);
            }
            done => return done,
        }
    }
    // The reason why not the best is the one worth knowing.
    Err(refused.expect("there is a choice"))
}

/// Returns the backend. With `is_new`, what it needs is tried first.
fn backend(kind: Kind, layout: &Layout, is_new: bool) -> Result<Box<dyn Backend>, StoreError> {
    let root = &layout.root;
    Ok(match kind {
        Kind::Overlayfs => Box::new(OverlayfsStore::open(root, is_new)?),
        Kind::Btrfs => Box::new(BtrfsStore::open(root, is_new)?),
        Kind::Zfs => Box::new(ZfsStore::open(root, is_new)?),
        Kind::Xfs | Kind::Copy(_) => Box::new(TreeStore::open(root, kind, is_new)?),
        Kind::Auto => unreachable!("a kind was chosen, or read"),
    })
}
