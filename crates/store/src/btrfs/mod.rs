//! Trees as btrfs subvolumes.
//!
//! ```text
//! NAME/tree/       a subvolume; a clone's is a snapshot
//! ```
//!
//! A tree becomes visible by the rename of NAME, a plain directory. Its subvolume is not made read-only, which would be a
//! commit of the filesystem (6 ms): nobody but the store's owner gets into the store's directory, and whoever is
//! given a sealed tree gets a mount that is read-only.

mod search;
mod subvolume;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::statfs;
use rustix::io::Errno;

use crate::error::At;
use crate::layout::{Layout, META};
use crate::walk::open_path;
use crate::{Backend, Name, Quota, Root, Space, StoreError, filesystem, remove, sys, user_namespace};

pub(crate) use subvolume::destroy;

/// A store on btrfs.
#[derive(Debug)]
pub struct BtrfsStore {
    layout: Layout,
}

impl BtrfsStore {
    /// Opens the store below `root`, which must exist. In a new store, tries one subvolume.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unfit`] if that is not on btrfs or the caller may not mount.
    pub fn open(root: &Path, is_new: bool) -> Result<Self, StoreError> {
        let store = Self { layout: Layout { root: root.to_owned() } };
        store.probe(is_new)?;
        Ok(store)
    }

    /// Makes a tree and a clone of it, to fail now and clearly rather than in the middle of a build.
    fn probe(&self, is_new: bool) -> Result<(), StoreError> {
        let root = &self.layout.root;
        let unfit = |reason: String| StoreError::Unfit { kind: "btrfs", path: root.clone(), reason };
        if !rustix::process::geteuid().is_root() || !user_namespace::is_hosts() {
            return Err(unfit(
                "searching and removing subvolumes needs real root; run kiln as root, or use `overlayfs:`".into(),
            ));
        }
        if !is_new {
            return Ok(());
        }
        if !filesystem::is_btrfs(&statfs(root).at("look at", root)?) {
            return Err(unfit("it is not on btrfs; put it there, or choose another kind of store".into()));
        }
        // The caller holds the lock of `state/`, so only a dead process can have left one.
        let dir = self.layout.state("probe");
        remove::tree(&self.layout, &dir)?;
        let made = begin(&dir, None)
            .and_then(|_| begin(&dir.join("clone"), Some(&dir)))
            .and_then(|root| root.mount().at("mount", &dir));
        remove::tree(&self.layout, &dir)?;
        match made {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Err(unfit(
                format!("subvolumes or mounts are not permitted ({source}); run kiln as root, not in a container"),
            )),
            made => made.map(|_| ()),
        }
    }

    /// Waits until there is room or all that was destroyed is free, but not for long.
    fn reclaim(&self) -> Result<(), StoreError> {
        let root = &self.layout.root;
        let directory: OwnedFd = File::open(root).at("open", root)?.into();
        let began = Instant::now();
        loop {
            let is_last = !search::has_destroyed(&directory).at("free the space of", root)?;
            // Wakes the thread that frees, and what that has freed counts from the commit on.
            sys::commit_btrfs(&directory).at("flush", root)?;
            if is_last || self.space()?.free_bytes >= SCARCE_BYTES || began.elapsed() > RECLAIM_PATIENCE {
                return Ok(());
            }
        }
    }
}

const TREE: &str = "tree";
/// With less than this free, a removal waits for the space that it frees: the kernel leaves that to a thread that wakes
/// every 30 seconds, and until then the next step would find the disk full.
const SCARCE_BYTES: u64 = 256 << 20;
const RECLAIM_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the directory `dir` of a tree: empty, or as the one whose directory `from` is.
fn begin(dir: &Path, from: Option<&Path>) -> Result<Root, StoreError> {
    fs::create_dir_all(dir).at("create", dir)?;
    let into = open_path(dir).at("open", dir)?;
    let tree = dir.join(TREE);
    match from {
        None => {
            sys::create_subvolume(&into, c"tree").at("create the subvolume", &tree)?;
            // Whatever the umask is: others than root live in there.
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).at("create", &tree)?;
        }
        Some(from) => {
            let from = from.join(TREE);
            let source = subvolume::open(&from).at("open the subvolume", &from)?;
            subvolume::snapshot(&source, &into, c"tree").at("snapshot", &from)?;
        }
    }
    Ok(Root::Dir(tree))
}

impl Backend for BtrfsStore {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        begin(&self.layout.tree(name), None)
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        begin(&self.layout.tree(name), Some(&self.layout.tree(from)))
    }

    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        // A limit on a tree does not hold for the subvolumes that anybody can make in it.
        Err(quota.refused(
            "on btrfs a step leaves its quota by making a subvolume; use a store on overlayfs on xfs or ext4, or on ZFS",
        ))
    }

    fn size_bytes(&self, _draft: &Name) -> Result<Option<u64>, StoreError> {
        // Where the data goes is not decided before it is written out.
        Ok(None)
    }

    fn sizes(&self, names: &[Name]) -> Result<Vec<Option<u64>>, StoreError> {
        self.flush()?;
        let measure = |name: &Name| {
            let tree = self.layout.tree(name).join(TREE);
            match subvolume::open(&tree).and_then(|root| subvolume::own_bytes(&root)) {
                Err(Errno::NOENT) => Ok(None),
                bytes => bytes.map(Some).at("measure", &tree),
            }
        };
        names.iter().map(measure).collect()
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        let (dir, target) = (self.layout.tree(draft), self.layout.tree(name));
        fs::rename(&dir, &target).at("rename", &dir)
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        let tree = self.layout.tree(name).join(TREE);
        subvolume::open(&tree).at("open the subvolume", &tree)?;
        Ok(Root::Sealed(tree))
    }

    fn needs(&self, _name: &Name) -> Result<Vec<Name>, StoreError> {
        Ok(Vec::new())
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        let dir = self.layout.tree(name);
        match remove::tree(&self.layout, &dir) {
            // Even a rename needs room, but destroying does not. First goes what makes it a result.
            Err(StoreError::DiskFull { .. }) => {
                let _ = fs::remove_file(dir.join(META));
                open_path(&dir).and_then(|dir| destroy(&dir, c"tree")).at("remove", &dir)?;
                self.reclaim()?;
                remove::tree(&self.layout, &dir)
            }
            removed => {
                removed?;
                if self.space()?.free_bytes < SCARCE_BYTES { self.reclaim() } else { Ok(()) }
            }
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        filesystem::flush(&self.layout.root)
    }

    fn space(&self) -> Result<Space, StoreError> {
        filesystem::space(&self.layout.root)
    }
}
