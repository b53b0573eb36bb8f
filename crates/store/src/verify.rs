//! Whether what is stored can be used, and is what was stored.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::io::Errno;

use crate::boot::Stamp;
use crate::error::At;
use crate::layout::META;
use crate::lease::InUse;
use crate::store::ids_in;
use crate::walk;
use crate::{Id, Name, Store, StoreError, TreeDigest};

/// How to verify.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verify {
    /// Reads all contents too, and compares them with the digests that were taken at commit.
    pub deep: bool,
    /// Drops nothing.
    pub dry_run: bool,
}

/// Something that is broken.
#[derive(Debug)]
pub struct Broken {
    /// A result's id, or `cache NAME, generation N`.
    pub what: String,
    /// For people: the operation, if it is known.
    pub summary: Option<String>,
    /// Why.
    pub why: StoreError,
}

/// What verifying came to.
#[derive(Debug, Default)]
pub struct Verified {
    /// Results that were looked at.
    pub results: usize,
    /// Of these, results whose contents were compared with a digest.
    pub compared: usize,
    /// Generations of caches that were looked at.
    pub generations: usize,
    /// How many of all these were broken.
    pub broken: usize,
    /// How many were dropped: those that were broken and those that stood on them.
    pub dropped: usize,
    /// How many of the broken ones could not be dropped, because they or what stands on them are used or must stay.
    pub kept: usize,
}

impl Store {
    /// Looks at every result and every generation of a cache: its description, its log, its parent and its tree. Tells
    /// `hear` of what is broken, and drops it with all that stands on it. Puts the index right. Looking is no use, and
    /// builds may run meanwhile.
    ///
    /// # Errors
    ///
    /// The store cannot be read for another reason than damage: no right to mount, no descriptors left. Nothing is dropped
    /// then.
    pub fn verify(&self, how: Verify, hear: &mut dyn FnMut(&Broken)) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        self.rebuild_index()?;
        let results = self.verify_results(how, &mut verified, hear)?;
        let caches = self.verify_caches(how, &mut verified, hear)?;
        if how.dry_run {
            return Ok(verified);
        }
        for id in results {
            match self.remove(&id, true) {
                Ok(pruned) => verified.dropped += pruned.removed.len(),
                // It stood on one that was dropped.
                Err(StoreError::NoSuchResult(_)) => {}
                Err(StoreError::InUse(_) | StoreError::Pinned(_)) => verified.kept += 1,
                Err(error) => return Err(error),
            }
        }
        for (cache, generation) in caches {
            let dropped = self.drop_cache_from(&cache, generation)?;
            verified.dropped += dropped;
            verified.kept += usize::from(dropped == 0);
        }
        Ok(verified)
    }

    /// Returns the results that are broken.
    fn verify_results(
        &self,
        how: Verify,
        verified: &mut Verified,
        hear: &mut dyn FnMut(&Broken),
    ) -> Result<Vec<Id>, StoreError> {
        let mut broken = Vec::new();
        for id in ids_in(&self.layout.results())?.into_iter().collect::<BTreeSet<_>>() {
            verified.results += 1;
            let mut summary = None;
            let checked = self.verify_result(&id, how, &mut summary);
            match checked {
                Ok(is_compared) => verified.compared += usize::from(is_compared),
                Err(why) if is_damage(&why) => {
                    hear(&Broken { what: id.to_string(), summary, why });
                    broken.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        verified.broken += broken.len();
        Ok(broken)
    }

    /// Returns whether its contents were compared. Fills in the summary, if it can be read.
    fn verify_result(&self, id: &Id, how: Verify, summary: &mut Option<String>) -> Result<bool, StoreError> {
        // Pruned just now.
        let Some(snapshot) = self.look_at(id)? else { return Ok(false) };
        let meta = snapshot.meta();
        *summary = Some(meta.summary.clone());
        if let Some(parent) = meta.parent.filter(|parent| !self.layout.result(parent).exists()) {
            return Err(StoreError::NoParent { id: *id, parent });
        }
        snapshot.log()?;
        let digest = self.verify_tree(&Name::result(id), how)?;
        match (digest, meta.tree_digest) {
            (Some(now), Some(then)) if now != then => Err(StoreError::TreeChanged(*id)),
            (now, then) => Ok(now.is_some() && then.is_some()),
        }
    }

    /// Returns the newest generation before which all are whole, for each cache that has a broken one.
    fn verify_caches(
        &self,
        how: Verify,
        verified: &mut Verified,
        hear: &mut dyn FnMut(&Broken),
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let mut broken = Vec::new();
        for (cache, _) in self.caches()? {
            let mut first = None;
            for generation in self.generations(&cache)? {
                let name = Name::cache(&cache, generation);
                let Some(_in_use) = InUse::share(&self.layout.tree(&name))? else { continue };
                verified.generations += 1;
                match self.verify_stamp(&name).and_then(|()| self.verify_tree(&name, how)) {
                    Ok(_) => {}
                    Err(why) if is_damage(&why) => {
                        hear(&Broken { what: format!("cache {cache}, generation {generation}"), summary: None, why });
                        verified.broken += 1;
                        first = first.or(Some(generation));
                    }
                    Err(error) => return Err(error),
                }
            }
            broken.extend(first.map(|generation| (cache, generation)));
        }
        Ok(broken)
    }

    fn verify_stamp(&self, name: &Name) -> Result<(), StoreError> {
        let path = self.layout.tree(name).join(META);
        let bytes = fs::read(&path).at("read", &path)?;
        let parsed = serde_json::from_slice::<Stamp>(&bytes);
        parsed.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)).at("read", &path)
    }

    /// Looks whether a tree can be reached; returns its digest if it is read whole.
    fn verify_tree(&self, name: &Name, how: Verify) -> Result<Option<TreeDigest>, StoreError> {
        let root = self.backend.open(name)?;
        let place = self.layout.tree(name);
        if how.deep {
            return TreeDigest::of(&root, &place).map(Some);
        }
        let tree = root.mount().at("mount", &place)?;
        walk::open(&tree, c".").and_then(|tree| walk::names(&tree)).at("read", &place)?;
        Ok(None)
    }
}

/// Returns true if what is stored is at fault, and not this process or the machine: what is dropped for that would have
/// been dropped for nothing.
fn is_damage(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else {
        return matches!(error, StoreError::Meta { .. } | StoreError::NoParent { .. } | StoreError::TreeChanged(_));
    };
    // `UCLEAN` and `BADMSG` are what filesystems say of their own damage.
    const DAMAGE: [Errno; 7] =
        [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::LOOP];
    match source.raw_os_error() {
        Some(code) => DAMAGE.iter().any(|errno| errno.raw_os_error() == code),
        None => matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
    }
}
