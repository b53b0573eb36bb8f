//! A fake that is stricter than the real ones.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use kiln_store::{Backend, Name, Root, Space, StoreError};

use super::{Fixture, Lack};
use crate::{LoopFs, describe};

/// A tree stands on its parent, and on what that stands on, up to so many: then it stands alone.
const CHAIN: usize = 8;

/// Whole copies, and a panic for every breach of the contract by the caller: a name that exists is made again, something
/// that is not sealed is cloned or opened, a tree is removed that another needs, a draft is gone on with whose parent
/// was removed, a sealed tree has changed.
///
/// ```text
/// NAME/tree/    the tree
/// NAME/from     what a draft was cloned from
/// NAME/needs    what a sealed tree needs, one a line
/// NAME/sealed   its description when it was sealed
/// ```
///
/// Everything is on the filesystem, so that several of these, in several processes, agree.
#[derive(Debug)]
pub struct Strict {
    root: PathBuf,
    /// One verb at a time. Which sealed tree is looked through next, besides those that a verb names.
    turn: Mutex<usize>,
}

macro_rules! breach {
    ($($text:tt)+) => { panic!("the store's contract was broken: {}", format_args!($($text)+)) };
}

impl Strict {
    /// Opens the fake below `root`, made if it does not exist.
    ///
    /// # Panics
    ///
    /// The filesystem fails.
    pub fn open(root: &Path) -> Self {
        for directory in ["result", "draft", "failed", "cache", "trash", "state", "state/leases"] {
            let mut private = fs::DirBuilder::new();
            private.recursive(true).mode(0o700).create(root.join(directory)).expect("writable");
        }
        Self { root: root.to_owned(), turn: Mutex::new(0) }
    }

    /// Returns a new one in memory.
    ///
    /// # Panics
    ///
    /// There is no tmpfs. Needs root.
    pub fn fixture() -> Fixture {
        let filesystem = LoopFs::new("tmpfs", 400).expect("a filesystem in memory");
        let path = filesystem.path().join("store");
        Fixture { backend: Box::new(Self::open(&path)), path, guard: Box::new(filesystem) }
    }

    /// What the suite cannot ask of it.
    pub const LACKS: &[Lack] = &[Lack::Sharing];

    fn dir(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Does `act`, a verb on trees of which `sealed` are sealed, when nothing is wrong with those or with one other.
    fn verb<T>(&self, sealed: &[&Name], act: impl FnOnce() -> T) -> T {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for name in sealed {
            self.check(name.as_str());
        }
        let all = self.sealed();
        *turn += 1;
        if let Some(other) = all.get(*turn % all.len().max(1)) {
            self.check(other);
        }
        act()
    }

    /// The names of all sealed trees.
    fn sealed(&self) -> Vec<String> {
        let list = |directory: &str| -> Vec<String> {
            let entries = fs::read_dir(self.root.join(directory)).into_iter().flatten();
            let names = entries.map(|entry| entry.expect("readable").file_name());
            names.map(|name| format!("{directory}/{}", name.to_string_lossy())).collect()
        };
        let generations = list("cache").into_iter().flat_map(|cache| list(&cache));
        list("result").into_iter().chain(generations).collect()
    }

    fn check(&self, name: &str) {
        let dir = self.root.join(name);
        // Another process may be removing it just now.
        let Ok(then) = fs::read_to_string(dir.join("sealed")) else { return };
        let Ok(now) = description(&dir.join("tree")) else { return };
        if now != then && dir.join("tree").exists() {
            breach!("the sealed tree {name} was changed from\n{then}\nto\n{now}");
        }
    }

    fn start(&self, name: &Name) -> Result<PathBuf, StoreError> {
        let dir = self.dir(name);
        if dir.exists() {
            breach!("{} exists already", name.as_str());
        }
        fs::create_dir_all(&dir).map_err(|error| StoreError::disk("create", &dir, error))?;
        Ok(dir.join("tree"))
    }

    /// Breaks unless `name` is a draft that can be gone on with.
    fn must_be_draft(&self, name: &Name) -> Option<String> {
        let dir = self.dir(name);
        if !dir.join("tree").exists() || dir.join("sealed").exists() {
            breach!("{} is no draft", name.as_str());
        }
        let from = fs::read_to_string(dir.join("from")).ok()?;
        if !self.root.join(&from).exists() {
            breach!("{from} was removed under the draft {}", name.as_str());
        }
        Some(from)
    }

    fn must_be_sealed(&self, name: &Name) {
        if !self.dir(name).join("sealed").exists() {
            breach!("{} is not sealed", name.as_str());
        }
    }

    fn needs_of(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.root.join(name).join("needs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn description(tree: &Path) -> io::Result<String> {
    Ok(describe(tree)?.join("\n"))
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Backend for Strict {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        self.verb(&[], || {
            let tree = self.start(name)?;
            fs::create_dir(&tree).map_err(|error| StoreError::disk("create", &tree, error))?;
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).expect("writable");
            Ok(Root::Dir(tree))
        })
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        self.verb(&[from], || {
            self.must_be_sealed(from);
            let tree = self.start(name)?;
            fs::write(self.dir(name).join("from"), from.as_str()).expect("writable");
            // A process that is killed must not leave one that goes on to write.
            run(Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "cp", "-a"])
                .arg(self.dir(from).join("tree"))
                .arg(&tree));
            Ok(Root::Dir(tree))
        })
    }

    fn size_bytes(&self, draft: &Name) -> Result<Option<u64>, StoreError> {
        self.verb(&[], || {
            self.must_be_draft(draft);
            let measured = Command::new("du").args(["-s", "-B1"]).arg(self.dir(draft).join("tree")).output();
            let text = String::from_utf8(measured.expect("it starts").stdout).expect("a number and a path");
            Ok(Some(text.split('\t').next().and_then(|bytes| bytes.parse().ok()).expect("a number")))
        })
    }

    fn sizes(&self, names: &[Name]) -> Result<Vec<Option<u64>>, StoreError> {
        self.verb(&names.iter().collect::<Vec<_>>(), || Ok(vec![None; names.len()]))
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        self.verb(&[], || {
            let from = self.must_be_draft(draft);
            let (dir, target) = (self.dir(draft), self.dir(name));
            if target.exists() {
                breach!("{} exists already", name.as_str());
            }
            if target.parent().is_none_or(|parent| !parent.exists()) {
                breach!("there is no directory for {}", name.as_str());
            }
            let below = from.map(|from| (self.needs_of(&from), from));
            let needs = match below {
                Some((mut needs, from)) if needs.len() + 1 < CHAIN => {
                    needs.push(from);
                    needs
                }
                _ => Vec::new(),
            };
            fs::write(dir.join("needs"), needs.join("\n")).expect("writable");
            fs::write(dir.join("sealed"), description(&dir.join("tree")).expect("readable")).expect("writable");
            fs::rename(&dir, &target).map_err(|error| StoreError::disk("rename", &dir, error))
        })
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        self.verb(&[name], || {
            let dir = self.dir(name);
            if !dir.exists() {
                return Err(StoreError::disk("open", dir, io::ErrorKind::NotFound.into()));
            }
            self.must_be_sealed(name);
            Ok(Root::Sealed(dir.join("tree")))
        })
    }

    fn needs(&self, name: &Name) -> Result<Vec<Name>, StoreError> {
        self.verb(&[name], || {
            self.must_be_sealed(name);
            let parse = |text: &String| match &*text.split('/').collect::<Vec<_>>() {
                ["result", id] => Name::result(&id.parse().expect("an id")),
                ["cache", cache, generation] => Name::cache(cache, generation.parse().expect("a number")),
                _ => panic!("{text} is no sealed tree"),
            };
            Ok(self.needs_of(name.as_str()).iter().map(parse).collect())
        })
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        self.verb(&[name], || {
            for other in self.sealed() {
                for needed in self.needs_of(&other) {
                    // The caller may have renamed it into the trash. What vanishes meanwhile vanishes before what it needs.
                    let is_gone = needed == name.as_str() || !self.root.join(&needed).exists();
                    if is_gone && self.root.join(&other).exists() {
                        breach!("{other} needs {needed}, which is removed");
                    }
                }
            }
            static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let trash = self.root.join(format!("trash/{}-{number}", std::process::id()));
            match fs::rename(self.dir(name), &trash) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                renamed => renamed.map_err(|error| StoreError::disk("remove", self.dir(name), error))?,
            }
            // The standard library needs a descriptor for each level.
            if fs::remove_dir_all(&trash).is_err() {
                run(Command::new("rm").arg("-rf").arg(&trash));
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.verb(&[], || Ok(()))
    }

    fn space(&self) -> Result<Space, StoreError> {
        let stat =
            rustix::fs::statvfs(&self.root).map_err(|error| StoreError::disk("ask", &self.root, error.into()))?;
        Ok(Space { total_bytes: stat.f_blocks * stat.f_frsize, free_bytes: stat.f_bavail * stat.f_frsize })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::{Case, Sizes, Suite};
    use super::*;
    use crate::{Need, Tree, need};

    /// Returns what the breach was; fails if there was none.
    fn breach(act: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("the fake allows it");
        *panic.downcast::<String>().expect("a message")
    }

    #[test]
    fn every_breach_of_the_contract_is_told() {
        need!(Need::Root);
        let case = Case::new(Strict::fixture(), &Suite { sizes: Sizes::FULL, lacks: &[] });
        let base = case.make(None, |tree| fs::write(tree.join("file"), "text").expect("writable"));
        let child = case.make(Some(&base), |_| {});
        let (draft, result) = case.names();
        case.begin(Some(&child), &draft);
        let (unsealed, other) = case.names();
        case.begin(None, &unsealed);
        let store = case.backend();
        let said = [
            breach(|| drop(store.create(&draft))),
            breach(|| drop(store.clone_tree(&base, &draft))),
            breach(|| drop(store.clone_tree(&unsealed, &other))),
            breach(|| drop(store.open(&unsealed))),
            breach(|| drop(store.seal(&draft, &base))),
            breach(|| drop(store.seal(&base, &result))),
            breach(|| drop(store.seal(&result, &other))),
            breach(|| drop(store.remove(&base))),
        ];
        for (said, expected) in std::iter::zip(
            said,
            [
                "exists already",
                "exists already",
                "not sealed",
                "not sealed",
                "exists already",
                "no draft",
                "no draft",
                "needs",
            ],
        ) {
            assert!(said.contains(expected), "{said}: not `{expected}`");
        }
        store.remove(&child).expect("nothing sealed needs it");
        assert!(breach(|| drop(store.seal(&draft, &result))).contains("was removed under the draft"));
        fs::write(Tree::mount(&Root::Dir(case.path(&base).join("tree"))).join("file"), "else").expect("writable");
        assert!(breach(|| drop(store.clone_tree(&base, &other))).contains("was changed"));
    }

    #[test]
    fn the_fake_conforms() {
        need!(Need::Root);
        Suite { sizes: Sizes { chain: 100, ..Sizes::FULL }, lacks: Strict::LACKS }.run(Strict::fixture);
    }
}
