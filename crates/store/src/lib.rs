//! Snapshots and caches on a filesystem.
//!
//! This room keeps the results of steps: whole trees, immutable, each named by an [`Id`] that its
//! maker computed. It does not know what a step is, runs nothing, and reads neither environment nor
//! configuration.
//!
//! * [`Store`] is all the policy: lookup, leases between processes, drafts and their commit, caches
//!   with generations, failures' logs, pruning, and what a crash calls for.
//! * [`Backend`] is the seam below it: named trees on one kind of filesystem.
//! * [`Changes`] says how to see what a result changed.
//! * [`Root`] says how to reach a tree, and mounts it.
//!
//! The layout on disk is drawn in `layout.rs`, beside the only functions that build its paths.

mod attributes;
mod backend;
mod boot;
mod btrfs;
mod cache;
mod changes;
mod copy;
mod digest;
mod error;
mod filesystem;
mod follow;
mod id;
mod index;
mod layout;
mod lease;
mod list;
mod location;
mod maintain;
mod meta;
mod mount;
mod open;
mod overlayfs;
mod parallel;
mod pin;
mod prepare;
mod prune;
mod quota;
mod recover;
mod remove;
mod repair;
mod size;
mod store;
mod sys;
mod transfer;
mod trees;
mod user_namespace;
mod verify;
mod walk;
mod zfs;

pub use backend::{Backend, Root, Space};
pub use btrfs::BtrfsStore;
pub use cache::CacheDraft;
pub use changes::Changes;
pub use digest::TreeDigest;
pub use error::StoreError;
pub use follow::LogFollower;
pub use id::{BadId, Id};
pub use index::{Digest, FileVersion};
pub use layout::Name;
pub use lease::Lease;
pub use list::Listed;
pub use location::{CopyMode, Kind, Location};
pub use meta::{Description, Meta};
pub use mount::IdMap;
pub use overlayfs::OverlayfsStore;
pub use prune::{Limits, Pruned};
pub use quota::Quota;
pub use repair::Repaired;
pub use store::{Draft, Found, Snapshot, State, Store};
pub use transfer::{Transfer, TransferEvent};
pub use trees::TreeStore;
pub use verify::{Broken, Verified, Verify};
pub use zfs::ZfsStore;
