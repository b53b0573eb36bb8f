//! What drafts may take, and how filesystems with project quotas (ext4, xfs) keep them to it.
//!
//! A limited draft gets a project of its own: a number that its directories, and by inheritance all that is made in them,
//! count for. Nothing is written down. A number is free if nothing counts for it; so one that a dead process had is free when its
//! draft is swept. A result goes on to count for its number, without a limit, until it is removed. The kernel lets only who is in the
//! host's user namespace change what an entry counts for.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::StoreError;
use crate::error::At;
use crate::layout::Layout;
use crate::sys::{self, ProjectUsage};
use crate::walk::open_path;

/// What a draft may take on the disk beside what it starts with. `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Space, in bytes.
    pub bytes: Option<u64>,
    /// Files, directories, links and whatever else has an inode.
    pub files: Option<u64>,
}

impl Quota {
    /// No limits.
    pub const NONE: Self = Self { bytes: None, files: None };

    /// Returns what must be limited, for messages.
    pub(crate) fn what(&self) -> &'static str {
        if self.bytes.is_some() { "disk space" } else { "files" }
    }

    /// Returns the error of who cannot keep this.
    pub(crate) fn refused(&self, reason: impl Into<String>) -> StoreError {
        StoreError::CannotLimit { what: self.what(), reason: reason.into() }
    }
}

/// The first of our projects' numbers: above those of Docker and Kubernetes, which count from their directories' and from
/// 1048577.
const FIRST: u32 = 0x6b60_0000;
/// How many there are.
const COUNT: u32 = 1 << 20;
/// How many the search for a free one may begin with. Not all: xfs keeps what it once knew of a number, a block for thirty of
/// them.
const STARTS: u32 = 1 << 16;

/// Looks whether the filesystem of the store keeps project quotas.
pub(crate) fn check(layout: &Layout, quota: &Quota) -> Result<(), StoreError> {
    let root = &layout.root;
    if !rustix::process::geteuid().is_root() || !crate::user_namespace::is_hosts() {
        return Err(quota.refused("quotas need real root; run kiln as root"));
    }
    let directory = open_path(root).at("open", root)?;
    // Any error means that there are none: of a kernel before 5.14 too.
    match sys::limits_projects(&directory) {
        Ok(true) => Ok(()),
        _ => Err(quota.refused(format!(
            "{} is on a filesystem without project quotas; put the store on xfs, or on ext4 made with `mkfs.ext4 -O \
             quota,project`, mounted with `-o prjquota`",
            root.display()
        ))),
    }
}

/// A project of ours, with nothing in it yet but the directories that it was begun with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Project(u32);

impl Project {
    /// Makes empty directories of a draft a project, without limits.
    pub(crate) fn begin(layout: &Layout, directories: &[&Path]) -> Result<Self, StoreError> {
        let root = open_path(&layout.root).at("open", &layout.root)?;
        let lock = layout.state("projects");
        // Until something counts for it. Stores on one filesystem do not lock each other out; but each begins somewhere else.
        let file = File::options().create(true).truncate(false).write(true).open(&lock).at("open", &lock)?;
        flock(&file, FlockOperation::LockExclusive).at("lock", &lock)?;
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).at("number a project in", &lock)?;
        let start = u32::from_ne_bytes(random) % STARTS;
        for number in (0..COUNT).map(|step| FIRST + (start + step) % COUNT) {
            let usage = sys::project_usage(&root, number).at("ask for the quota of", &layout.root)?;
            if usage.files > 0 || usage.bytes > 0 {
                continue;
            }
            sys::limit_project(&root, number, 0, 0).at("set a quota in", &layout.root)?;
            for directory in directories {
                let entry = open_path(directory).at("open", directory)?;
                sys::set_project(&entry, number).at("make a project of", directory)?;
            }
            // `file`, and with it the lock, goes only now.
            return Ok(Self(number));
        }
        Err(Errno::USERS).at("number a project in", &lock)
    }

    /// Returns the project of a directory, if that is one of ours.
    pub(crate) fn of(directory: &Path) -> Result<Option<Self>, StoreError> {
        let entry = match open_path(directory) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            opened => opened.at("open", directory)?,
        };
        // Most kinds of filesystem have no projects.
        let number = sys::project(&entry).unwrap_or_default();
        Ok((FIRST..FIRST + COUNT).contains(&number).then_some(Self(number)))
    }

    /// Lets it take `quota` more than it has now.
    pub(crate) fn limit(self, layout: &Layout, quota: &Quota) -> Result<(), StoreError> {
        let root = open_path(&layout.root).at("open", &layout.root)?;
        let usage = sys::project_usage(&root, self.0).at("ask for the quota of", &layout.root)?;
        let units = quota.bytes.map_or(0, |bytes| usage.bytes.saturating_add(bytes).div_ceil(ProjectUsage::UNIT));
        let files = quota.files.map_or(0, |files| usage.files.saturating_add(files));
        sys::limit_project(&root, self.0, units, files).at("set a quota in", &layout.root)
    }

    /// Returns what it may still take.
    pub(crate) fn left(self, layout: &Layout) -> Result<Quota, StoreError> {
        let root = open_path(&layout.root).at("open", &layout.root)?;
        let usage = sys::project_usage(&root, self.0).at("ask for the quota of", &layout.root)?;
        let left = |most: u64, used: u64| (most > 0).then(|| most.saturating_sub(used));
        Ok(Quota {
            bytes: left(usage.most_units.saturating_mul(ProjectUsage::UNIT), usage.bytes),
            files: left(usage.most_files, usage.files),
        })
    }
}

/// Takes the limit of a draft back, if it has one: `directory` is one of those that it was begun with.
pub(crate) fn lift(layout: &Layout, directory: &Path) -> Result<(), StoreError> {
    match Project::of(directory)? {
        Some(project) => project.limit(layout, &Quota::NONE),
        None => Ok(()),
    }
}

/// Returns what a draft may still take.
pub(crate) fn left(layout: &Layout, directory: &Path) -> Result<Quota, StoreError> {
    Project::of(directory)?.map_or(Ok(Quota::NONE), |project| project.left(layout))
}
