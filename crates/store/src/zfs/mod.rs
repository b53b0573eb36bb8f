//! Trees as ZFS datasets, each a clone of its parent's snapshot.
//!
//! ```text
//! NAME/dataset          the last part of the name of the tree's dataset: TREE.UNIQUE
//! NAME/limited          a draft whose dataset has a quota
//! POOL/DATASET/TREE.UNIQUE          the tree
//! POOL/DATASET/TREE.UNIQUE@UNIQUE   the tree as it was sealed
//! ```
//!
//! The directories of trees lie on the store's own dataset, so that a result appears by one rename as in every other
//! store; `dataset` is written before the dataset is made, so that none is ever without a directory that names it.
//! Names are never used twice: what cannot be destroyed now, because someone still has it mounted, is in nobody's way.
//!
//! A step costs two commands, `zfs clone` and `zfs snapshot`. Mounting costs none: the kernel mounts a
//! dataset behind a file descriptor. ZFS' program waits for the disk, so what is sealed is on it.

mod command;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::At;
use crate::layout::{Layout, META};
use crate::{Backend, Name, Quota, Root, Space, StoreError, remove, user_namespace};

use command::{Complaint, Kind, Verb};

const DATASET: &str = "dataset";
const LIMITED: &str = "limited";
const FILESYSTEM: &str = "zfs";

/// A store on ZFS.
#[derive(Debug)]
pub struct ZfsStore {
    layout: Layout,
    /// The store's own, as `tank/kiln`.
    dataset: String,
}

/// Returns where the dataset of a store is mounted. Makes it if it does not exist, mounts it if it is not mounted.
///
/// # Errors
///
/// [`StoreError::Unfit`], which says what is missing.
pub(crate) fn directory(dataset: &Path) -> Result<PathBuf, StoreError> {
    let unfit = |reason: &str| StoreError::Unfit { kind: "zfs", path: dataset.to_owned(), reason: reason.to_owned() };
    let name = dataset.to_str().ok_or_else(|| unfit("no dataset has such a name"))?;
    let find = || Ok(mounted()?.into_iter().find(|(source, _)| source == name).map(|(_, place)| place));
    if let Some(place) = find()? {
        return Ok(place);
    }
    let complain = |complaint: Complaint| complaint.into_error(dataset, name);
    match Verb::CreateStore(name).run() {
        Ok(_) => {}
        // It exists, and is not mounted.
        Err(_) if Verb::Space(name).run().is_ok() => {
            Verb::Mount(name).run().map_err(complain)?;
        }
        Err(complaint) => return Err(complain(complaint)),
    }
    find()?.ok_or_else(|| unfit("it is not mounted; give it a mount point, `zfs set mountpoint=/path` and `zfs mount`"))
}

/// Returns the ZFS datasets that are mounted whole, and where; see `proc_pid_mountinfo(5)`.
fn mounted() -> Result<Vec<(String, PathBuf)>, StoreError> {
    let file = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(file).at("read", file)?;
    Ok(text.lines().filter_map(of_line).collect())
}

fn of_line(line: &str) -> Option<(String, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    let (kind, rest) = after.split_once(' ')?;
    let source = rest.split(' ').next()?;
    (kind == FILESYSTEM && root == "/").then(|| (unescape(source), PathBuf::from(unescape(place))))
}

/// Returns a field of mountinfo, in which blanks and backslashes are octal: `\040`.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

impl ZfsStore {
    /// Opens the store below `root`, where a dataset is mounted. A new one is prepared.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unfit`] if no dataset is mounted there, or the caller may not use it.
    pub fn open(root: &Path, is_new: bool) -> Result<Self, StoreError> {
        let unfit = |reason: &str| StoreError::Unfit { kind: "zfs", path: root.to_owned(), reason: reason.to_owned() };
        if !rustix::process::geteuid().is_root() || !user_namespace::is_hosts() {
            return Err(unfit("mounting datasets needs real root; run kiln as root, or use `overlayfs:`"));
        }
        let found = mounted()?.into_iter().rev().find(|(_, place)| place == root);
        let (dataset, _) =
            found.ok_or_else(|| unfit("no ZFS dataset is mounted there; name one, `zfs:pool/dataset`"))?;
        let store = Self { layout: Layout { root: root.to_owned() }, dataset };
        if is_new {
            store.run(&Verb::Prepare(&store.dataset))?;
        }
        Ok(store)
    }

    fn run(&self, verb: &Verb<'_>) -> Result<String, StoreError> {
        verb.run().map_err(|complaint| complaint.into_error(&self.layout.root, &self.dataset))
    }

    /// Returns the whole name of the dataset that the directory of a tree names; `None` if it names none: its maker died
    /// before there was one, or the directory is no tree's.
    fn dataset_in(&self, directory: &Path) -> Result<Option<String>, StoreError> {
        let file = directory.join(DATASET);
        match fs::read_to_string(&file) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            read => {
                let name = read.at("read", &file)?;
                Ok(is_name(&name).then(|| format!("{}/{name}", self.dataset)))
            }
        }
    }

    fn dataset_of(&self, name: &Name) -> Result<String, StoreError> {
        let directory = self.layout.tree(name);
        let unnamed = || Err(io::Error::new(ErrorKind::InvalidData, "it names no dataset"));
        self.dataset_in(&directory)?.map_or_else(unnamed, Ok).at("read", &directory.join(DATASET))
    }

    /// Makes the directory of a draft, and its dataset as `make` does.
    fn begin(&self, name: &Name, make: impl FnOnce(&str) -> Result<String, StoreError>) -> Result<Root, StoreError> {
        let directory = self.layout.tree(name);
        fs::create_dir_all(&directory).at("create", &directory)?;
        let tree = name.as_str().rsplit('/').next().unwrap_or_default();
        let file = directory.join(DATASET);
        fs::write(&file, format!("{tree}.{}", remove::unique())).at("write", &file)?;
        let dataset = self.dataset_of(name)?;
        if let Err(error) = make(&dataset) {
            // It may be there all the same: Ctrl-C reaches zfs too.
            self.remove(name)?;
            return Err(error);
        }
        Ok(Root::Filesystem { kind: FILESYSTEM, source: dataset, is_sealed: false })
    }

    /// Destroys the dataset that a directory in the trash names. Returns false if someone still has it mounted.
    fn destroy(&self, place: &Path) -> Result<bool, StoreError> {
        let Some(dataset) = self.dataset_in(place)? else { return Ok(true) };
        loop {
            match Verb::Destroy(&dataset).run() {
                Err(Complaint { kind: Kind::Missing, .. }) | Ok(_) => return Ok(true),
                Err(Complaint { kind: Kind::Busy, .. }) => return Ok(false),
                Err(Complaint { kind: Kind::HasClones, .. }) if self.give_up(&dataset)? => {}
                Err(Complaint { kind: Kind::HasClones, .. }) => return Ok(false),
                Err(complaint) => return Err(complaint.into_error(&self.layout.root, &self.dataset)),
            }
        }
    }

    /// Makes the clones of a dataset independent of it: the first gets the snapshot, and the others with it. Returns false
    /// if someone has the snapshot mounted.
    fn give_up(&self, dataset: &str) -> Result<bool, StoreError> {
        let listed = self.run(&Verb::Clones(dataset))?;
        let mut clones = listed.split(['\n', ',']).filter(|name| !name.is_empty() && *name != "-");
        let Some(clone) = clones.next() else { return Ok(true) };
        match Verb::Promote(clone).run() {
            Err(Complaint { kind: Kind::Busy, .. }) => Ok(false),
            // It went meanwhile: look again.
            Err(Complaint { kind: Kind::Missing, .. }) | Ok(_) => Ok(true),
            Err(complaint) => Err(complaint.into_error(&self.layout.root, &self.dataset)),
        }
    }
}

/// Returns whether this is what [`ZfsStore::begin`] writes. What is not is never destroyed.
fn is_name(name: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    name.split_once('.').is_some_and(|(tree, unique)| is_part(tree) && is_part(unique))
}

/// Returns the snapshot of a sealed dataset. Its name is as unique as the dataset's, so that a clone can be promoted.
fn snapshot_of(dataset: &str) -> String {
    let unique = dataset.rsplit('.').next().unwrap_or_default();
    format!("{dataset}@{unique}")
}

impl Backend for ZfsStore {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        self.begin(name, |dataset| self.run(&Verb::Create(dataset)))
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        let snapshot = snapshot_of(&self.dataset_of(from)?);
        self.begin(name, |dataset| self.run(&Verb::Clone { snapshot: &snapshot, dataset }))
    }

    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        match quota.files {
            None => Ok(()),
            Some(_) => Err(Quota { bytes: None, ..*quota }.refused("ZFS does not count those of a dataset")),
        }
    }

    fn begin_limited(&self, from: Option<&Name>, name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        self.check_quota(quota)?;
        let root = match from {
            Some(from) => self.clone_tree(from, name)?,
            None => self.create(name)?,
        };
        if let (Some(bytes), Root::Filesystem { source, .. }) = (quota.bytes, &root) {
            let limited = self.layout.tree(name).join(LIMITED);
            fs::write(&limited, "").at("write", &limited)?;
            // What a new clone occupies is a little, and counts; what it shares does not.
            self.run(&Verb::Quota { quota: &format!("quota={bytes}"), dataset: source })?;
        }
        Ok(root)
    }

    fn left(&self, draft: &Name) -> Result<Quota, StoreError> {
        if !self.layout.tree(draft).join(LIMITED).exists() {
            return Ok(Quota::NONE);
        }
        // What is on its way to the disk does not count yet.
        self.flush()?;
        let listed = self.run(&Verb::QuotaAndUsed(&self.dataset_of(draft)?))?;
        let numbers: Vec<u64> = listed.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        Ok(Quota { bytes: numbers.get(1).map(|used| numbers[0].saturating_sub(*used)), files: None })
    }

    fn size_bytes(&self, _draft: &Name) -> Result<Option<u64>, StoreError> {
        // What was just written has no size yet.
        Ok(None)
    }

    fn sizes(&self, names: &[Name]) -> Result<Vec<Option<u64>>, StoreError> {
        // Of few and of many, with a command line that is never too long.
        const AT_ONCE: usize = 500;
        let mut sizes = Vec::new();
        for names in names.chunks(AT_ONCE) {
            let datasets: Vec<Option<String>> = names.iter().map(|name| self.dataset_of(name).ok()).collect();
            let asked: Vec<String> = datasets.iter().flatten().cloned().collect();
            if asked.is_empty() {
                sizes.extend(names.iter().map(|_| None));
                continue;
            }
            let listed = match Verb::Used(&asked).run() {
                // One went meanwhile: the others one by one.
                Err(Complaint { kind: Kind::Missing, .. }) => {
                    asked.iter().filter_map(|dataset| Verb::Used(std::slice::from_ref(dataset)).run().ok()).collect()
                }
                listed => listed.map_err(|complaint| complaint.into_error(&self.layout.root, &self.dataset))?,
            };
            let used: std::collections::HashMap<&str, u64> = listed
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .filter_map(|(dataset, bytes)| Some((dataset, bytes.parse().ok()?)))
                .collect();
            sizes.extend(datasets.iter().map(|dataset| used.get(dataset.as_deref()?).copied()));
        }
        Ok(sizes)
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        let dataset = self.dataset_of(draft)?;
        let limited = self.layout.tree(draft).join(LIMITED);
        if limited.exists() {
            // A clone can only be promoted to what its quota has room for.
            self.run(&Verb::Quota { quota: "quota=none", dataset: &dataset })?;
            fs::remove_file(&limited).at("remove", &limited)?;
        }
        self.run(&Verb::Snapshot(&snapshot_of(&dataset)))?;
        let (directory, target) = (self.layout.tree(draft), self.layout.tree(name));
        fs::rename(&directory, &target).at("rename", &directory)
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        let source = snapshot_of(&self.dataset_of(name)?);
        Ok(Root::Filesystem { kind: FILESYSTEM, source, is_sealed: true })
    }

    fn needs(&self, _name: &Name) -> Result<Vec<Name>, StoreError> {
        Ok(Vec::new())
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        let directory = self.layout.tree(name);
        let place = match remove::to_trash(&self.layout, &directory) {
            // Even a rename needs room, but destroying does not. First goes what makes it a result.
            Err(StoreError::DiskFull { .. }) => {
                let _ = fs::remove_file(directory.join(META));
                self.destroy(&directory)?;
                self.flush()?;
                remove::to_trash(&self.layout, &directory)?
            }
            place => place?,
        };
        match place {
            Some(place) if self.destroy(&place)? => remove::delete(&self.layout, &place),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        // Not `syncfs`, which writes the log of one dataset alone.
        self.run(&Verb::Sync(&self.dataset)).map(drop)
    }

    fn space(&self) -> Result<Space, StoreError> {
        let listed = self.run(&Verb::Space(&self.dataset))?;
        let numbers: Vec<u64> = listed.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        match *numbers {
            [available, used] => Ok(Space { total_bytes: available + used, free_bytes: available }),
            _ => Err(StoreError::disk(
                "ask the space of",
                &self.layout.root,
                std::io::Error::other(format!("zfs said `{}`", listed.trim())),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_found_by_its_mount() {
        let line = "61 28 0:45 / /tank/my\\040store rw,relatime shared:1 - zfs tank/my\\040store rw,xattr,noacl";
        assert_eq!(of_line(line), Some(("tank/my store".to_owned(), PathBuf::from("/tank/my store"))));
        assert_eq!(of_line("61 28 0:45 /sub /mnt rw - zfs tank rw"), None, "a directory of one is no dataset");
        assert_eq!(of_line("61 28 8:1 / / rw - ext4 /dev/vda1 rw"), None);
    }

    #[test]
    fn only_names_of_trees_are_names() {
        let tree = format!("{}.{}", "0a".repeat(32), remove::unique());
        assert!(is_name(&tree) && is_name("cache-1-2-3.7-0-9"));
        for text in ["", ".", "tree", "tree.", ".1", "tree.1.2", "a/b.1", "tree.1@2", "../a.1", "tree.1\n"] {
            assert!(!is_name(text), "{text:?}");
        }
    }

    #[test]
    fn a_snapshot_has_a_name_of_its_own() {
        assert_eq!(snapshot_of("tank/kiln/cache-1-2-3.7-0-9"), "tank/kiln/cache-1-2-3.7-0-9@7-0-9");
    }
}
