//! The directory of a store: found, or made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::error::At;
use crate::layout::{FORMAT, Layout};
use crate::store::lock;
use crate::{Kind, StoreError, user_namespace};

/// Whether a directory is a store already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It is, of this kind.
    Old(Kind),
    /// It is, but the file that says of what kind is gone.
    Nameless,
    /// It is empty, does not exist, or someone is making or once began to make a store there.
    New,
}

/// Looks what is there.
pub(crate) fn look(layout: &Layout) -> Result<Age, StoreError> {
    let root = &layout.root;
    let format = layout.state("format");
    let foreign = |found: String| Err(StoreError::Format { path: root.clone(), found });
    match fs::read(&format) {
        Ok(found) => {
            let found = String::from_utf8_lossy(&found);
            let (first, owners) =
                found.trim().split_once('\n').map_or((found.trim(), None), |(first, owners)| (first, Some(owners)));
            let kind = first.strip_prefix(FORMAT).and_then(|kind| Kind::named(kind.trim()));
            return match kind {
                Some(_) if owners != user_namespace::owners() => {
                    foreign(other_owners(owners, user_namespace::owners()))
                }
                Some(kind) => Ok(Age::Old(kind)),
                None => foreign(format!("its format is `{}`", found.trim())),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return foreign("it is not a directory".into()),
        failed @ Err(_) => return failed.at("read", &format).map(|_| Age::New),
    }
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Age::New),
        entries => entries.at("read", root)?,
    };
    for entry in entries {
        let name = entry.at("read", root)?.file_name();
        // A new ext4 filesystem has the one; a store being made has the others.
        let is_ours = |path: &Path| path.parent() == Some(root) && path.file_name() == Some(&name);
        if name != OsStr::new("lost+found") && !layout.directories().iter().any(|path| is_ours(path)) {
            return foreign("the directory is not empty, and no store".into());
        }
    }
    let holds_something = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    let is_used = [layout.results(), layout.caches()].iter().any(|path| holds_something(path));
    Ok(if is_used { Age::Nameless } else { Age::New })
}

/// Says why the files of a store, or overlayfs' marks in it, would be read wrong.
fn other_owners(found: Option<&str>, ours: Option<&str>) -> String {
    match (found, ours) {
        (None, _) => "root made it; run kiln as root, or name another directory".to_owned(),
        (Some(_), None) => {
            "a user without root's rights made it; run kiln as that user, or name another directory".to_owned()
        }
        (Some(found), Some(ours)) => format!(
            "its files belong to other users than this user's ids are now (`{found}`, now `{ours}`); \
             give back the ranges in /etc/subuid and /etc/subgid, or name another directory"
        ),
    }
}

/// Makes the directories that every store has, as far as they are missing.
pub(crate) fn make_directories(layout: &Layout) -> Result<(), StoreError> {
    // Trees hold set-user-id programs of strangers: nobody but the owner may reach them. Not even if the
    // store's directory itself was made by someone more generous.
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(&layout.root).at("create the store", &layout.root)?;
    layout.directories().iter().try_for_each(|directory| private.create(directory).at("create", directory))
}

/// Makes a store of a directory that is none, of the kind that `fits` returns, and returns what else that returns. Of
/// several that make one, each calls `fits`, in turn.
pub(crate) fn make<T>(layout: &Layout, fits: impl FnOnce() -> Result<(Kind, T), StoreError>) -> Result<T, StoreError> {
    make_directories(layout)?;
    let _lock = lock(&layout.root.join("state"), FlockOperation::LockExclusive)?;
    let (kind, fitting) = fits().inspect_err(|_| leave(layout))?;
    // Last, so that a store on an unfit filesystem is refused again the next time.
    write_format(layout, kind)?;
    Ok(fitting)
}

/// Writes down that this is a store, and of what kind.
pub(crate) fn write_format(layout: &Layout, kind: Kind) -> Result<(), StoreError> {
    let (new, format) = (layout.state("format.new"), layout.state("format"));
    let write = || -> io::Result<()> {
        let mut out = File::create(&new)?;
        writeln!(out, "{FORMAT} {}", kind.name())?;
        if let Some(owners) = user_namespace::owners() {
            writeln!(out, "{owners}")?;
        }
        out.sync_all()?;
        fs::rename(&new, &format)
    };
    write().at("write", &format)
}

/// Takes away the directories of a store that was not to be. What someone else put there stays.
fn leave(layout: &Layout) {
    for directory in layout.directories().iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}
