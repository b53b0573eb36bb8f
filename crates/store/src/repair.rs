//! Putting right what someone deleted or a disk lost, as far as it can be found out again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::error::At;
use crate::layout::{Layout, MANY_CHILDREN, META, PARENT};
use crate::lease::InUse;
use crate::prepare::{self, Age};
use crate::store::ids_in;
use crate::{Kind, Location, Name, Store, StoreError, boot, open};

/// What repairing a store did.
#[derive(Debug)]
pub struct Repaired {
    /// Directories that every store has and this one did not.
    pub directories: Vec<PathBuf>,
    /// Whether the file that says of what kind the store is was missing.
    pub wrote_format: bool,
    /// Drafts of dead processes that were removed.
    pub drafts: usize,
    /// What was in the trash and is deleted.
    pub trash: usize,
    /// Results whose links to their parents were lost, as by a copy of the store without hard links.
    pub linked: usize,
    /// How many results the index knows now; it was made anew.
    pub results: usize,
}

impl Store {
    /// Makes a store whole that someone or something took a part of: directories, the file with its kind, the index.
    /// Removes what dead processes left. Trees are not looked at: see [`Store::verify`].
    ///
    /// # Errors
    ///
    /// There is no store. Its kind is not known any more and `location` does not say it, or says another than the trees are
    /// of.
    pub fn repair(location: &Location) -> Result<Repaired, StoreError> {
        let layout = Layout { root: open::directory(location)? };
        let wrote_format = match prepare::look(&layout)? {
            Age::New => return Err(no_store(&layout)),
            Age::Old(_) => false,
            Age::Nameless if location.kind == Kind::Auto => return Err(open::nameless(&layout)),
            Age::Nameless => {
                prepare::write_format(&layout, location.kind)?;
                true
            }
        };
        let directories: Vec<PathBuf> = layout.directories().into_iter().filter(|path| !path.exists()).collect();
        prepare::make_directories(&layout)?;
        let count = |path: PathBuf| fs::read_dir(&path).map(Iterator::count).at("read", &path);
        let left = || Ok::<_, StoreError>((count(layout.drafts())?, count(layout.trash())?));
        let before = left()?;
        let repaired = Self::open(location).and_then(|store| {
            if wrote_format {
                store.try_trees()?;
            }
            Ok((store.link_to_parents()?, store.rebuild_index()?))
        });
        if repaired.is_err() && wrote_format {
            let format = layout.state("format");
            fs::remove_file(&format).at("remove", &format)?;
        }
        let (linked, results) = repaired?;
        let after = left()?;
        let (drafts, trash) = (before.0.saturating_sub(after.0), before.1.saturating_sub(after.1));
        Ok(Repaired { directories, wrote_format, drafts, trash, linked, results })
    }

    /// Sees to it that each result counts among its parent's children. Returns how many did not.
    fn link_to_parents(&self) -> Result<usize, StoreError> {
        let mut linked = 0;
        for id in ids_in(&self.layout.results())? {
            // What is damaged is told by `verify`.
            let Ok(Some(child)) = self.look_at(&id) else { continue };
            let Some(parent) = child.meta().parent else { continue };
            let Some(in_use) = InUse::share(&self.layout.result(&parent))? else { continue };
            let path = self.layout.result(&id);
            let identity = |file: PathBuf| fs::symlink_metadata(file).ok().map(|meta| (meta.dev(), meta.ino()));
            let is_linked = identity(path.join(PARENT)) == identity(self.layout.result(&parent).join(META));
            if !is_linked && !in_use.has(MANY_CHILDREN).at("read", &self.layout.result(&parent))? {
                self.uncount_child(&path);
                self.count_child(&parent, &path)?;
                linked += 1;
            }
        }
        Ok(linked)
    }

    /// Fails if there are results and not one has a tree of this store's kind.
    fn try_trees(&self) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for id in ids_in(&self.layout.results())? {
            let name = Name::result(&id);
            match self.backend.open(&name).and_then(|root| root.mount().at("mount", &self.layout.tree(&name))) {
                Ok(_) => return Ok(()),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// As [`Store::open`], of a store that must be there already.
    ///
    /// # Errors
    ///
    /// As [`Store::open`]; [`StoreError::Format`] if there is no store.
    pub fn open_existing(location: &Location) -> Result<Self, StoreError> {
        let layout = Layout { root: open::directory(location)? };
        if prepare::look(&layout)? == Age::New {
            return Err(no_store(&layout));
        }
        Self::open_in_boot(location, boot::current_id()?)
    }
}

fn no_store(layout: &Layout) -> StoreError {
    StoreError::Format { path: layout.root.clone(), found: "there is no store".to_owned() }
}
