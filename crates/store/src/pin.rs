//! Results that stay whatever is pruned.

use std::io;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::error::At;
use crate::layout::PINNED;
use crate::lease::InUse;
use crate::{Id, Store, StoreError};

impl Store {
    /// Keeps a result, and with it all that it stands on, from being removed. Counts as a use.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchResult`]; the filesystem fails.
    pub fn pin(&self, id: &Id) -> Result<(), StoreError> {
        let result = self.held(id)?;
        let pin = || -> io::Result<()> {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&result.directory, PINNED, flags, Mode::RUSR | Mode::WUSR)?;
            // Someone relies on it.
            result.directory.sync_all()
        };
        pin().at("pin", &self.layout.result(id))
    }

    /// Takes back [`Store::pin`]. Counts as a use.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchResult`]; the filesystem fails.
    pub fn unpin(&self, id: &Id) -> Result<(), StoreError> {
        match unlinkat(&self.held(id)?.directory, PINNED, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.at("unpin", &self.layout.result(id)),
        }
    }

    fn held(&self, id: &Id) -> Result<InUse, StoreError> {
        InUse::share(&self.layout.result(id))?.ok_or_else(|| StoreError::NoSuchResult(id.to_string()))
    }
}
