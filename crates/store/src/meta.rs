//! What a result says of itself: `meta.json`.

use serde::{Deserialize, Serialize};

use crate::boot::Stamp;
use crate::{Id, TreeDigest};

/// The description of a result, kept beside its tree. Everything else that is known of results is
/// derived from these files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this description; readers refuse what they do not know.
    pub(crate) format: u32,
    /// The result that this one was cloned from.
    pub parent: Option<Id>,
    /// The result in whose place this one is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<Id>,
    /// For people: the operation.
    pub summary: String,
    /// When it was committed, in milliseconds since 1970.
    pub created_ms: u64,
    /// What this result alone occupies; `None` where the filesystem knows only later.
    pub size_bytes: Option<u64>,
    /// What its tree was when it was committed, if the store was to take digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_digest: Option<TreeDigest>,
    /// When it was committed, for the durable mark.
    #[serde(flatten)]
    pub(crate) stamp: Stamp,
    /// What the caller wants to know again: the step's key, a base image's environment. Of a
    /// failed step: how it failed.
    pub detail: serde_json::Value,
}

/// What a caller says of a draft when committing it.
#[derive(Clone, Debug)]
pub struct Description {
    /// See [`Meta::summary`].
    pub summary: String,
    /// See [`Meta::detail`].
    pub detail: serde_json::Value,
}

pub(crate) const FORMAT: u32 = 1;

impl Meta {
    pub(crate) fn new(description: Description, parent: Option<Id>, size_bytes: Option<u64>, stamp: Stamp) -> Self {
        let Description { summary, detail } = description;
        let created_ms = unix_ms();
        Self { format: FORMAT, parent, renews: None, summary, created_ms, size_bytes, tree_digest: None, stamp, detail }
    }

    /// Parses a description; an unknown format is an error.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let meta: Self = serde_json::from_slice(bytes)?;
        if meta.format == FORMAT {
            return Ok(meta);
        }
        Err(serde::de::Error::custom(format!("format {} is not known to this version", meta.format)))
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a description has string keys only")
    }
}

/// The time of day in milliseconds since 1970; 0 before that.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
