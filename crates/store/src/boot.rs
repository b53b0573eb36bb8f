//! What survives a crash of the machine.
//!
//! Results are renamed into place without waiting for the disk, so after a power cut a result can
//! be visible whose data never arrived. Instead of a flush for every step, a flush of the whole
//! filesystem now and then marks everything committed before it as durable. The first open after a
//! boot drops what was committed in the boot before and not marked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::error::At;
use crate::layout::Layout;

/// When something was committed: comparable within one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot_id: String,
    /// Nanoseconds since that boot.
    pub(crate) boot_ns: u64,
}

impl Stamp {
    pub(crate) fn now(boot_id: &str) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self {
            boot_id: boot_id.to_owned(),
            boot_ns: now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs(),
        }
    }
}

/// Returns the id of the running boot.
pub(crate) fn current_id() -> Result<String, StoreError> {
    let file = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(file).at("read", file)?.trim().to_owned())
}

/// `state/boot.json`: everything committed in `boot_id` up to `boot_ns` is on the disk, as is
/// everything of earlier boots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Durable {
    #[serde(flatten)]
    upto: Stamp,
}

impl Durable {
    /// Returns the mark for a boot in which nothing is marked yet.
    pub(crate) fn none(boot_id: &str) -> Self {
        Self { upto: Stamp { boot_id: boot_id.to_owned(), boot_ns: 0 } }
    }

    /// Reads the mark; `None` if there is none. One that is damaged is `InvalidData`.
    pub(crate) fn read(layout: &Layout) -> Result<Option<Self>, StoreError> {
        let file = layout.state("boot.json");
        match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let parsed = serde_json::from_slice(&read.at("read", &file)?);
                let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                parsed.map(Some).map_err(damaged).at("read", &file)
            }
        }
    }

    /// Replaces the mark, by way of the disk: a torn mark would condemn every result.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), StoreError> {
        let file = layout.state("boot.json");
        let new = layout.state(&format!("boot.json.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut out = File::create(&new)?;
            out.write_all(&serde_json::to_vec(self)?)?;
            out.sync_all()?;
            fs::rename(&new, &file)?;
            // Nothing that is committed from now on may reach the disk before this does.
            File::open(layout.root.join("state"))?.sync_all()
        };
        write().at("write", &file)
    }

    pub(crate) fn is_of_boot(&self, boot_id: &str) -> bool {
        self.upto.boot_id == boot_id
    }

    /// Returns true if what was committed at `stamp` is known to be on the disk.
    pub(crate) fn covers(&self, stamp: &Stamp) -> bool {
        stamp.boot_id != self.upto.boot_id || stamp.boot_ns <= self.upto.boot_ns
    }

    /// Returns true if this mark covers more than `other`, of the same boot.
    pub(crate) fn is_later_than(&self, other: &Self) -> bool {
        !other.covers(&self.upto)
    }
}

impl From<Stamp> for Durable {
    fn from(upto: Stamp) -> Self {
        Self { upto }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_covers_what_came_before_it_and_earlier_boots() {
        let at = |boot: &str, boot_ns| Stamp { boot_id: boot.to_owned(), boot_ns };
        let mark = Durable::from(at("now", 10));
        assert!(mark.covers(&at("now", 10)));
        assert!(!mark.covers(&at("now", 11)));
        assert!(mark.covers(&at("before", 99)));
        assert!(Durable::from(at("now", 11)).is_later_than(&mark));
        assert!(!mark.is_later_than(&mark));
    }
}
