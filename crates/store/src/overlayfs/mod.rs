//! Trees as overlayfs layers, on any ext4, xfs or tmpfs directory.
//!
//! ```text
//! NAME/layer/      what this tree changes (overlayfs' upper directory)
//! NAME/work/       overlayfs' work directory, while a draft
//! NAME/lower       the layers below a draft, topmost first
//! NAME/merged-L/   several layers as one, of level L; made when this tree is sealed
//! NAME/chain       the layers that a child of this tree stands on, topmost first
//! ```
//!
//! Overlayfs takes 500 layers at most, and each one costs every lookup of a missing name. So
//! chains are kept short as a log-structured merge tree keeps its runs: when sealing a tree
//! makes [`FANOUT`] layers of one level stand on top of each other, they are merged by hard links
//! into one layer of the next level. A file is linked once a level, and n steps need about
//! `FANOUT * log(n) / log(FANOUT)` layers: 63 at most for 1 000 steps. A base image is never merged.

mod chain;
pub(crate) mod merge;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};

use crate::error::At;
use crate::layout::Layout;
use crate::quota::{self, Project};
use crate::{Backend, Name, Quota, Root, Space, StoreError, attributes, filesystem, remove, user_namespace};

use chain::{Chain, Layer};
use merge::Merged;

/// How many layers of one level are merged into one. Measured: mounting costs 8 µs a layer.
const FANOUT: usize = 32;
/// Caches are rewritten in place, so their old layers hold dead data: merge sooner.
const CACHE_FANOUT: usize = 8;

/// A store on overlayfs.
#[derive(Debug)]
pub struct OverlayfsStore {
    layout: Layout,
    fanout: usize,
}

impl OverlayfsStore {
    /// Opens the store below `root`, which must exist. In a new store, tries one overlay.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unfit`] if overlayfs cannot have its writable layer there or the caller may not
    /// mount.
    pub fn open(root: &Path, is_new: bool) -> Result<Self, StoreError> {
        let store = Self { layout: Layout { root: root.to_owned() }, fanout: FANOUT };
        probe(&store.layout, "overlayfs", is_new)?;
        Ok(store)
    }

    /// Merges so many layers of a level into one: for tests that want many levels soon.
    #[doc(hidden)]
    #[must_use]
    pub fn with_fanout(self, fanout: usize) -> Self {
        Self { fanout, ..self }
    }

    fn layer(&self, name: &Name) -> PathBuf {
        self.layout.tree(name).join("layer")
    }

    fn begin(&self, name: &Name, below: &Chain) -> Result<Root, StoreError> {
        let dir = self.layout.tree(name);
        let layer = dir.join("layer");
        fs::create_dir_all(&dir).at("create", &dir)?;
        fs::create_dir(&layer).at("create", &layer)?;
        // Whatever the umask is: others than root live in there.
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o755)).at("create", &layer)?;
        if below.layers.is_empty() {
            return Ok(Root::Dir(layer));
        }
        below.write(&dir.join("lower"))?;
        let work = dir.join("work");
        fs::create_dir(&work).at("create", &work)?;
        Ok(Root::Overlay { lower: self.paths(below), writable: Some((layer, work)) })
    }

    fn paths(&self, chain: &Chain) -> Vec<PathBuf> {
        chain.layers.iter().map(|layer| self.layout.root.join(&layer.path)).collect()
    }

    /// Returns the chain for children of `draft` once it is sealed as `name`, and makes the merged
    /// layers that it calls for.
    fn extend(&self, draft: &Name, name: &Name) -> Result<Chain, StoreError> {
        let dir = self.layout.tree(draft);
        let mut chain = Chain::read_if_exists(&dir.join("lower"))?;
        let is_base = chain.layers.is_empty() && !name.is_cache();
        let fanout = if name.is_cache() { CACHE_FANOUT } else { self.fanout };
        let level = if is_base { chain::BASE_LEVEL } else { 0 };
        // Where layers of this tree are now, and where they will be after the rename.
        let mut own = vec![("layer".to_owned(), level)];
        while let Some((run, level)) = chain.full_run(own.last().expect("starts with one").1, fanout) {
            let merged = format!("merged-{}", level + 1);
            let layers: Vec<PathBuf> = std::iter::once(dir.join(&own.last().expect("starts with one").0))
                .chain(chain.layers[..run].iter().map(|layer| self.layout.root.join(&layer.path)))
                .collect();
            let is_lowest = run == chain.layers.len();
            merge::layers(&layers, &dir.join(&merged), Merged::Layer { is_lowest })?;
            chain.layers.drain(..run);
            own.push((merged, level + 1));
        }
        let (top, level) = own.pop().expect("starts with one");
        chain.layers.insert(0, Layer { level, path: format!("{}/{top}", name.as_str()) });
        Ok(chain)
    }
}

impl Backend for OverlayfsStore {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        self.begin(name, &Chain::default())
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        let chain = Chain::read(&self.layout.tree(from).join("chain"))?;
        let root = self.begin(name, &chain)?;
        // The root directory of an overlay shows the attributes of the topmost layer's.
        let top = self.layout.root.join(&chain.layers.first().expect("a sealed tree has a layer").path);
        attributes::copy_path(&top, &self.layer(name))?;
        Ok(root)
    }

    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        quota::check(&self.layout, quota)
    }

    fn begin_limited(&self, from: Option<&Name>, name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        let root = match from {
            Some(from) => self.clone_tree(from, name)?,
            None => self.create(name)?,
        };
        let (layer, work) = (self.layer(name), self.layout.tree(name).join("work"));
        // Of one project: overlayfs moves files from one directory to the other.
        let both = [layer.as_path(), &work];
        let directories = if from.is_some() { &both[..] } else { &both[..1] };
        Project::begin(&self.layout, directories)?.limit(&self.layout, quota)?;
        Ok(root)
    }

    fn left(&self, draft: &Name) -> Result<Quota, StoreError> {
        quota::left(&self.layout, &self.layer(draft))
    }

    fn size_bytes(&self, draft: &Name) -> Result<Option<u64>, StoreError> {
        crate::size::all(&self.layer(draft)).map(Some)
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        let dir = self.layout.tree(draft);
        quota::lift(&self.layout, &self.layer(draft))?;
        let chain = self.extend(draft, name)?;
        chain.write(&dir.join("chain"))?;
        remove::below(&self.layout, &dir.join("work"))?;
        let target = self.layout.tree(name);
        fs::rename(&dir, &target).at("rename", &dir)
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        let lower = self.paths(&Chain::read(&self.layout.tree(name).join("chain"))?);
        Ok(Root::Overlay { lower, writable: None })
    }

    fn needs(&self, name: &Name) -> Result<Vec<Name>, StoreError> {
        let chain = Chain::read(&self.layout.tree(name).join("chain"))?;
        Ok(chain.trees().filter(|tree| tree != name).collect())
    }

    fn own(&self, name: &Name) -> Result<Option<PathBuf>, StoreError> {
        // Kept also where children stand on a merged layer: the chain of this tree may begin with that one.
        Ok(Some(self.layer(name)))
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        if name.is_draft() {
            quota::lift(&self.layout, &self.layer(name))?;
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

/// Makes one overlay, to fail now and clearly rather than in the middle of a build.
pub(crate) fn probe(layout: &Layout, kind: &'static str, is_new: bool) -> Result<(), StoreError> {
    let unfit = |reason: String| StoreError::Unfit { kind, path: layout.root.clone(), reason };
    if !rustix::process::geteuid().is_root() {
        return Err(unfit("it needs root, of the host or of a user namespace".into()));
    }
    if !is_new {
        return Ok(());
    }
    // The caller holds the lock of `state/`, so only a dead process can have left one.
    let dir = layout.state("probe");
    remove::tree(layout, &dir)?;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.join(name));
    for path in [&lower, &upper, &work] {
        fs::create_dir_all(path).at("create", path)?;
    }
    let marked = merge::mark(&upper);
    let made = crate::mount::overlay(&[&lower], Some((&upper, &work)), None);
    remove::tree(layout, &dir)?;
    match made {
        // Overlayfs mounts there all the same, and fails when it needs a mark.
        Ok(_) if marked.is_err() => {
            let attribute = user_namespace::overlay_marks();
            Err(unfit(format!(
                "its filesystem has no attributes `{attribute}*`; use ext4, xfs or btrfs, or tmpfs of Linux 6.6"
            )))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(unfit(format!("mounting is not permitted ({error}); run kiln as root, not in a container")))
        }
        Err(error) => Err(unfit(format!(
            "the kernel refuses an overlay there ({error}); put the store on ext4, xfs or tmpfs, not on another overlay"
        ))),
    }
}

/// Makes a whiteout: what overlayfs puts into a layer where a lower name was deleted.
fn whiteout(dir: impl rustix::fd::AsFd, name: &std::ffi::CStr) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0))
}

/// Returns true for an entry that [`whiteout`] or overlayfs made.
fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
