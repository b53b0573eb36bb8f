//! Whole trees, each complete by itself, on any filesystem.
//!
//! ```text
//! NAME/tree/     the tree
//! NAME/cloned    its time is that when the clone was complete, while a draft (`xfs`)
//! NAME/below     names the tree that a draft is an overlay over; then there is no `tree` yet (`copy` by hard links)
//! NAME/layer/    that overlay's writable layer
//! NAME/work/     its work directory
//! ```
//!
//! A clone is made by a walk of our own: `rsync` of macOS knows neither nanoseconds nor Linux's extended attributes, and a
//! process that reads trees by their paths is a process to be attacked through them. It is faster, too.
//!
//! By hard links, a step that wrote to a file in place would change its parent. So it gets an overlay over the parent's
//! tree, and sealing makes a whole tree of both.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::ioctl_ficlone;

use crate::copy::{self, Content};
use crate::error::At;
use crate::layout::Layout;
use crate::overlayfs::merge::{self, Merged};
use crate::quota::{self, Project};
use crate::walk::open_path;
use crate::{
    Backend, CopyMode, Kind, Name, Quota, Root, Space, StoreError, attributes, filesystem, overlayfs, remove, size,
};

/// A store of whole trees.
#[derive(Debug)]
pub struct TreeStore {
    layout: Layout,
    clones: Clones,
}

/// What a clone and what it was cloned from have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clones {
    /// Blocks.
    Blocks,
    /// Nothing.
    Nothing,
    /// Files.
    Files,
}

impl TreeStore {
    /// Opens the store below `root`, which must exist, as one that shares blocks ([`Kind::Xfs`]) or what the mode of
    /// [`Kind::Copy`] says; no other kind means anything here. In a new store, tries what that needs.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unfit`] if the filesystem cannot do that, or the caller may not mount.
    pub fn open(root: &Path, kind: Kind, is_new: bool) -> Result<Self, StoreError> {
        let clones = match kind {
            Kind::Xfs => Clones::Blocks,
            Kind::Copy(CopyMode::Hardlink) => Clones::Files,
            _ => Clones::Nothing,
        };
        let store = Self { layout: Layout { root: root.to_owned() }, clones };
        let unfit = |reason: String| StoreError::Unfit { kind: kind.name(), path: root.to_owned(), reason };
        if clones == Clones::Files {
            overlayfs::probe(&store.layout, kind.name(), is_new)?;
        } else if !rustix::process::geteuid().is_root() {
            return Err(unfit("it needs root, of the host or of a user namespace".into()));
        } else if is_new {
            Root::Dir(root.to_owned()).mount().map_err(|error| {
                unfit(format!("mounting is not permitted ({error}); run kiln as root, not in a container"))
            })?;
        }
        if clones == Clones::Blocks && is_new {
            store.probe_shared_blocks()?.map_err(|error| {
                unfit(format!(
                    "files cannot share blocks there ({error}); make the filesystem with `mkfs.xfs -m reflink=1`, or use \
                     `copy:` for whole copies"
                ))
            })?;
        }
        Ok(store)
    }

    /// Returns what the filesystem says when one file is to share another's block.
    fn probe_shared_blocks(&self) -> Result<io::Result<()>, StoreError> {
        let dir = self.layout.state("probe");
        // The caller holds the lock of `state/`, so only a dead process can have left one.
        remove::tree(&self.layout, &dir)?;
        fs::create_dir(&dir).at("create", &dir)?;
        let [one, other] = ["one", "other"].map(|name| dir.join(name));
        fs::write(&one, [1; 4096]).at("write", &one)?;
        let shared =
            File::create(&other).and_then(|other| ioctl_ficlone(&other, File::open(&one)?).map_err(io::Error::from));
        remove::tree(&self.layout, &dir)?;
        Ok(shared)
    }

    fn tree(&self, name: &Name) -> PathBuf {
        self.layout.tree(name).join("tree")
    }

    /// Makes a directory in that of a draft.
    fn begin(&self, draft: &Name, directory: &str) -> Result<PathBuf, StoreError> {
        let path = self.layout.tree(draft).join(directory);
        fs::create_dir_all(&path).at("create", &path)?;
        // Whatever the umask is: others than root live in there.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("create", &path)?;
        Ok(path)
    }

    /// Starts a draft. `prepare` is given the directories that it consists of while they are empty.
    fn start(
        &self,
        from: Option<&Name>,
        name: &Name,
        prepare: impl FnOnce(&[&Path]) -> Result<(), StoreError>,
    ) -> Result<Root, StoreError> {
        let Some(from) = from else {
            let tree = self.begin(name, "tree")?;
            prepare(&[&tree])?;
            return Ok(Root::Dir(tree));
        };
        let from_tree = self.tree(from);
        if self.clones == Clones::Files {
            let layer = self.begin(name, "layer")?;
            let work = self.begin(name, "work")?;
            prepare(&[&layer, &work])?;
            // The root directory of an overlay shows the attributes of its writable layer's.
            attributes::copy_path(&from_tree, &layer)?;
            let below = self.layout.tree(name).join("below");
            fs::write(&below, from.as_str()).at("write", &below)?;
            return Ok(Root::Overlay { lower: vec![from_tree], writable: Some((layer, work)) });
        }
        let tree = self.begin(name, "tree")?;
        prepare(&[&tree])?;
        let content = if self.clones == Clones::Blocks { Content::Shared } else { Content::Copied };
        let (source, target) = (open_path(&from_tree).at("read", &from_tree)?, open_path(&tree).at("read", &tree)?);
        copy::tree(source, target, content).at("copy a tree to", &tree)?;
        if self.clones == Clones::Blocks {
            let cloned = self.layout.tree(name).join("cloned");
            File::create(&cloned).at("write", &cloned)?;
        }
        Ok(Root::Dir(tree))
    }

    /// Returns the directory that a draft's changes are in: `layer` where it is an overlay.
    fn written(&self, draft: &Name) -> PathBuf {
        let layer = self.layout.tree(draft).join("layer");
        if layer.exists() { layer } else { self.tree(draft) }
    }

    /// Makes a whole tree of a draft that is an overlay.
    fn merge(&self, draft: &Name) -> Result<(), StoreError> {
        let dir = self.layout.tree(draft);
        let [below, layer, work] = ["below", "layer", "work"].map(|name| dir.join(name));
        let parent = match fs::read_to_string(&below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => self.layout.root.join(read.at("read", &below)?),
        };
        merge::layers(&[&layer, &parent.join("tree")], &dir.join("tree"), Merged::Tree)?;
        for path in [layer, work] {
            remove::below(&self.layout, &path)?;
        }
        fs::remove_file(&below).at("remove", &below)
    }
}

impl Backend for TreeStore {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        self.start(None, name, |_| Ok(()))
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        self.start(Some(from), name, |_| Ok(()))
    }

    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        quota::check(&self.layout, quota)
    }

    fn begin_limited(&self, from: Option<&Name>, name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        let mut project = None;
        // Before the copy: what is not a file or directory gets a project only when it is made.
        let root = self.start(from, name, |directories| {
            project = Some(Project::begin(&self.layout, directories)?);
            Ok(())
        })?;
        if let Some(project) = project {
            project.limit(&self.layout, quota)?;
        }
        Ok(root)
    }

    fn left(&self, draft: &Name) -> Result<Quota, StoreError> {
        quota::left(&self.layout, &self.written(draft))
    }

    fn size_bytes(&self, draft: &Name) -> Result<Option<u64>, StoreError> {
        let dir = self.layout.tree(draft);
        let tree = dir.join("tree");
        if let Ok(cloned) = fs::symlink_metadata(dir.join("cloned")) {
            return size::unshared_since(&tree, (cloned.ctime(), cloned.ctime_nsec().cast_unsigned())).map(Some);
        }
        size::all(&self.written(draft)).map(Some)
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        let (dir, target) = (self.layout.tree(draft), self.layout.tree(name));
        quota::lift(&self.layout, &self.written(draft))?;
        self.merge(draft)?;
        let cloned = dir.join("cloned");
        match fs::remove_file(&cloned) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.at("remove", &cloned)?,
        }
        fs::rename(&dir, &target).at("rename", &dir)
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        let tree = self.tree(name);
        fs::symlink_metadata(&tree).at("open", &tree)?;
        Ok(Root::Sealed(tree))
    }

    fn needs(&self, _name: &Name) -> Result<Vec<Name>, StoreError> {
        Ok(Vec::new())
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        if name.is_draft() {
            quota::lift(&self.layout, &self.written(name))?;
        }
        remove::tree(&self.layout, &self.layout.tree(name))
    }

    fn flush(&self) -> Result<(), StoreError> {
        filesystem::flush(&self.layout.root)
    }

    fn space(&self) -> Result<Space, StoreError> {
        filesystem::space(&self.layout.root)
    }
}
