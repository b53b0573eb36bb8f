//! Logs of failed steps.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::Path;

use super::{Draft, Store};
use crate::boot::Stamp;
use crate::error::At;
use crate::layout::{LOG, META, log_in};
use crate::lease::InUse;
use crate::meta::{Description, Meta};
use crate::{Id, StoreError, remove};

/// How many failed steps keep their log.
const FAILURES_KEPT: usize = 100;

impl Store {
    /// Discards the draft of a failed step but keeps its log, with `description`, for [`Store::find`].
    ///
    /// # Errors
    ///
    /// The filesystem fails; the draft is discarded all the same or, if that fails, swept when the store is
    /// opened next.
    pub fn fail(&self, draft: Draft, description: Description) -> Result<(), StoreError> {
        let id = *draft.id();
        let parent = draft.parent.as_ref().map(|parent| *parent.id());
        let meta = Meta::new(description, parent, Some(0), Stamp::now(&self.boot_id));
        let new = self.layout.new_failure(&id);
        let make = || fs::create_dir_all(&new).at("create", &new);
        let name = log_in(&self.layout.draft(&id));
        let rescued = make().and_then(|()| fs::rename(&name, log_in(&new)).at("keep", &name));
        // Before more is written: it may be what fills the disk. The lease stays ours.
        self.remove_draft(&id)?;
        if rescued.is_err() {
            make()?;
            copy_log(&draft.log, &log_in(&new)).at("keep", &name)?;
        }
        self.keep_failure(&id, &meta)?;
        self.forget_old_failures()
    }

    /// Puts a failure in its place, whose log is there. The caller holds the lease.
    pub(crate) fn keep_failure(&self, id: &Id, meta: &Meta) -> Result<(), StoreError> {
        let new = self.layout.new_failure(id);
        let path = new.join(META);
        fs::write(&path, meta.to_json()).at("write", &path)?;
        let kept = self.layout.failed(id);
        remove::tree(&self.layout, &kept)?;
        fs::rename(&new, &kept).at("keep", &kept)
    }

    pub(crate) fn forget_old_failures(&self) -> Result<(), StoreError> {
        let failures = self.layout.failures();
        let mut kept = Vec::new();
        for entry in fs::read_dir(&failures).at("read", &failures)? {
            let entry = entry.at("read", &failures)?;
            if let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) {
                kept.push((modified, entry.path()));
            }
        }
        kept.sort();
        for (_, path) in kept.iter().rev().skip(FAILURES_KEPT) {
            remove::tree(&self.layout, path)?;
        }
        Ok(())
    }

    /// Removes the log of a failed step.
    ///
    /// # Errors
    ///
    /// The filesystem fails.
    pub fn forget_failure(&self, id: &Id) -> Result<(), StoreError> {
        remove::tree(&self.layout, &self.layout.failed(id))
    }

    /// Opens the log of a failed step, and what was said of the failure; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The files cannot be read.
    pub fn failure(&self, id: &Id) -> Result<Option<(Meta, File)>, StoreError> {
        let dir = self.layout.failed(id);
        let Some(in_use) = InUse::share(&dir)? else { return Ok(None) };
        let bytes = in_use.read(META).at("read", &dir)?;
        let meta = Meta::parse(&bytes).map_err(|source| StoreError::Meta { id: *id, source })?;
        Ok(Some((meta, in_use.open(LOG).at("open", &log_in(&dir))?)))
    }
}

/// Copies a log that has lost its name.
fn copy_log(mut log: &File, to: &Path) -> io::Result<()> {
    log.rewind()?;
    io::copy(&mut log, &mut File::create(to)?).map(|_| ())
}
