//! The only place that builds paths in a store.
//!
//! ```text
//! ROOT/
//!   result/ID/         committed: the backend's tree, log, meta.json, and perhaps:
//!     parent           a hard link to the parent's meta.json: by its links, that file counts the children and drafts
//!     many-children    more children than a file can have links, once
//!     pinned           not to be removed
//!   failed/ID/         log and meta.json of the last failed run of a step: no tree
//!   draft/ID/          being written by the holder of leases/ID; has the link `parent` too
//!   draft/cache-*/     a copy of a cache in use by a running step; flock held on the directory
//!   cache/NAME/N/      generation N of a cache (NAME percent-escaped)
//!   trash/*/           renamed here to vanish at once, then deleted
//!   state/format       version of this layout, and the kind of the store; without root's rights, whose its files are
//!   state/boot.json    which boot wrote last, and up to when its results are on the disk
//!   state/index.sqlite derived: results, digests of source files, what references stood for
//!   state/index.lock   flock held while the index is opened, and made if there is none
//!   state/projects     flock held while a limited draft gets a project of its own (`quota.rs`)
//!   state/maintainer   flock held by the one process that tidies up
//!   state/leases/ID    flock held by the builder of ID; its content is the builder's pid
//! ```

use std::path::{Path, PathBuf};

use crate::Id;

/// Written to `state/format`, before the kind. A change of the layout changes the number.
pub(crate) const FORMAT: &str = "kiln-store 2";

/// A tree's name: its directory below the store's root.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// A committed result.
    pub fn result(id: &Id) -> Self {
        Self(format!("result/{id}"))
    }

    /// The draft of a result.
    pub fn draft(id: &Id) -> Self {
        Self(format!("draft/{id}"))
    }

    /// A step's copy of a cache; `unique` differs for every copy that lives.
    pub fn cache_draft(unique: &str) -> Self {
        Self(format!("draft/cache-{unique}"))
    }

    /// Generation `generation` of the cache `cache`, a name that is one harmless path component.
    pub fn cache(cache: &str, generation: u64) -> Self {
        Self(format!("cache/{cache}/{generation}"))
    }

    /// What [`Store`](crate::Store) took out of sight and nobody uses.
    pub fn trash(unique: &str) -> Self {
        Self(format!("trash/{unique}"))
    }

    /// Returns true for a generation of a cache.
    pub fn is_cache(&self) -> bool {
        self.0.starts_with("cache/")
    }

    /// Returns true for the draft of a result, and for a step's copy of a cache.
    pub(crate) fn is_draft(&self) -> bool {
        self.0.starts_with("draft/")
    }

    /// Returns the name as a path below the store's root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Paths below one store's root.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn tree(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.root.join("result")
    }

    pub(crate) fn result(&self, id: &Id) -> PathBuf {
        self.tree(&Name::result(id))
    }

    pub(crate) fn drafts(&self) -> PathBuf {
        self.root.join("draft")
    }

    pub(crate) fn draft(&self, id: &Id) -> PathBuf {
        self.tree(&Name::draft(id))
    }

    pub(crate) fn failures(&self) -> PathBuf {
        self.root.join("failed")
    }

    pub(crate) fn failed(&self, id: &Id) -> PathBuf {
        self.failures().join(id.to_string())
    }

    /// Where a failure is written, before it is in its place.
    pub(crate) fn new_failure(&self, id: &Id) -> PathBuf {
        self.failures().join(format!(".{id}"))
    }

    pub(crate) fn cache(&self, escaped: &str) -> PathBuf {
        self.caches().join(escaped)
    }

    pub(crate) fn caches(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn state(&self, file: &str) -> PathBuf {
        self.root.join("state").join(file)
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.state("leases")
    }

    pub(crate) fn lease(&self, id: &Id) -> PathBuf {
        self.leases().join(id.to_string())
    }

    /// Every directory that an empty store has.
    pub(crate) fn directories(&self) -> [PathBuf; 7] {
        [
            self.results(),
            self.drafts(),
            self.failures(),
            self.caches(),
            self.trash(),
            self.root.join("state"),
            self.leases(),
        ]
    }
}

/// Never replaced once the result is visible: its links are counted.
pub(crate) const META: &str = "meta.json";
/// In `state/`.
pub(crate) const INDEX: &str = "index.sqlite";
pub(crate) const PARENT: &str = "parent";
pub(crate) const MANY_CHILDREN: &str = "many-children";
pub(crate) const PINNED: &str = "pinned";
pub(crate) const LOG: &str = "log";

/// Returns `name` as one path component: letters, digits, `-`, `_` and inner dots stay, all
/// else becomes `%XX`. A name too long for a component is cut and ends in its digest.
pub(crate) fn escape(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let mut escaped = String::new();
    for (at, byte) in name.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(*byte)),
            b'.' if at > 0 => escaped.push('.'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    if escaped.len() > LONGEST {
        escaped.truncate(LONGEST - 68);
        escaped.push_str(&format!("%%{}", blake3::hash(name).to_hex()));
    }
    if escaped.is_empty() { "%".to_owned() } else { escaped }
}

/// Returns the path of a file in a result's or a failure's directory.
pub(crate) fn log_in(dir: &Path) -> PathBuf {
    dir.join(LOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_name_is_always_one_harmless_component() {
        assert_eq!(escape(b"cargo-registry"), "cargo-registry");
        assert_eq!(escape(b"../../etc"), "%2E.%2F..%2Fetc");
        assert_eq!(escape(b""), "%");
        assert_eq!(escape(b"."), "%2E");
        assert_eq!(escape(b"a.b"), "a.b");
        let long = escape(&[b'/'; 300]);
        assert!(long.len() <= 255 && !long.contains('/'), "{long}");
        assert_ne!(long, escape(&[b'/'; 301]));
    }
}
