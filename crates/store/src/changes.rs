//! What a result changed: for whoever hands results on as layers.

use std::path::PathBuf;

use crate::{Name, Root, Snapshot, Store, StoreError};

/// A result's tree beside the one that it was made from.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The parent's tree. `None`: the result has no parent, and all of its tree is new.
    pub below: Option<Root>,
    /// The result's tree.
    pub tree: Root,
    /// A directory whose entries name, at their places, all that may differ between the two trees: what changed, what was
    /// removed, and possibly more. It says where to look and never what is there. `None`: look everywhere.
    pub own: Option<PathBuf>,
}

impl Store {
    /// Returns how to see what a result changed. All of it can be read as long as `snapshot` is held: a
    /// parent is not removed before its children.
    ///
    /// # Errors
    ///
    /// The result's tree or its parent's is damaged.
    pub fn changes(&self, snapshot: &Snapshot) -> Result<Changes, StoreError> {
        let name = Name::result(snapshot.id());
        let parent = snapshot.meta().parent.map(|parent| Name::result(&parent));
        let own = match &parent {
            Some(_) => self.backend.own(&name)?,
            None => None,
        };
        let below = parent.map(|parent| self.backend.open(&parent)).transpose()?;
        Ok(Changes { below, tree: self.backend.open(&name)?, own })
    }
}
