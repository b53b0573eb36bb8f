//! Making room: clones that nobody used for long go, and the longest unused of too many.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::clone::USED;
use super::contexts::{remove, unique};
use super::error::At;
use super::{ContextError, Contexts};

/// What pruning did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pruned {
    /// How many clones were removed.
    pub clones: usize,
    /// How many bytes they had on the disk.
    pub bytes: u64,
}

struct Candidate {
    name: String,
    used: SystemTime,
    bytes: u64,
}

impl Contexts {
    /// Removes the clones that were not used for `unused`, and then the longest unused until all of them have `most` bytes or less.
    /// What a job uses now stays. Jobs go on meanwhile.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or something not be removed.
    pub async fn prune(&self, unused: Duration, most: u64) -> Result<Pruned, ContextError> {
        let clones = self.directory.join("clones");
        let listed = tokio::task::spawn_blocking({
            let clones = clones.clone();
            move || list(&clones)
        });
        let mut candidates = listed.await.map_err(io::Error::from).and_then(|listed| listed).at("read", &clones)?;
        candidates.sort_by_key(|candidate| candidate.used);
        let mut total: u64 = candidates.iter().map(|candidate| candidate.bytes).sum();
        let mut pruned = Pruned::default();
        for candidate in candidates {
            let age = candidate.used.elapsed().unwrap_or_default();
            if age < unused && total <= most {
                break;
            }
            if let Some(removed) = self.take_away(&candidate.name)? {
                remove(removed).await?;
                total -= candidate.bytes;
                pruned.clones += 1;
                pruned.bytes += candidate.bytes;
            }
        }
        Ok(pruned)
    }

    /// Moves a clone out of everybody's sight, unless somebody has it.
    fn take_away(&self, name: &str) -> Result<Option<PathBuf>, ContextError> {
        // Who begins to use it meanwhile waits for this lock, and finds nothing.
        let mut clones = self.clones();
        if clones.get(name).is_some_and(|clone| Arc::strong_count(clone) > 1) {
            return Ok(None);
        }
        clones.remove(name);
        let clone = self.directory.join("clones").join(name);
        let removed = unique(&self.directory.join("trash"));
        fs::rename(&clone, &removed).at("remove", clone)?;
        Ok(Some(removed))
    }
}

fn list(clones: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(clones)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        // One that was never used to the end has no mark.
        let used = fs::metadata(path.join(USED)).or_else(|_| fs::metadata(&path)).and_then(|found| found.modified());
        found.push(Candidate { name, used: used.unwrap_or(SystemTime::UNIX_EPOCH), bytes: size(&path)? });
    }
    Ok(found)
}

/// Returns the bytes of a directory on the disk. What goes away meanwhile has none.
fn size(directory: &Path) -> io::Result<u64> {
    let Some(entries) = unless_gone(fs::read_dir(directory))? else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let Some(found) = unless_gone(entry.metadata())? else { continue };
        bytes += found.blocks() * 512;
        if found.is_dir() {
            bytes += size(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}
