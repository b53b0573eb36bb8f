//! From commits in a clone to files in a directory.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bstr::{BStr, BString, ByteSlice};
use tokio_util::sync::CancellationToken;

use super::ContextError;
use super::clone::{Clone, Trouble, Wanted};
use super::contexts::Contexts;
use super::error::At;
use super::git::{self, Failure, Git};
use super::repository::{Commit, Repository};
use crate::command::Command;
use kiln_api::JobLog;

/// How many submodules a context may have, and how many in each other. The largest projects have some hundred.
const MOST: usize = 2000;
const DEEPEST: usize = 32;

/// Fills the directory of one job.
pub(super) struct Filler<'a> {
    contexts: &'a Contexts,
    /// Where the job's own repositories go.
    scratch: &'a Path,
    include_git: bool,
    log: &'a JobLog,
    cancel: &'a CancellationToken,
    /// How many repositories there are.
    filled: AtomicUsize,
}

/// A directory of the tree that is a commit of another repository.
#[derive(Debug, Eq, PartialEq)]
struct Submodule {
    path: BString,
    commit: Commit,
    url: BString,
}

impl<'a> Filler<'a> {
    pub(super) fn new(
        contexts: &'a Contexts,
        scratch: &'a Path,
        include_git: bool,
        log: &'a JobLog,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { contexts, scratch, include_git, log, cancel, filled: AtomicUsize::new(0) }
    }

    /// Checks out the first of `commits` into the empty directory `target`, merges the others into it, and fills the submodules.
    pub(super) async fn fill(
        &self,
        repository: &Repository,
        commits: &[Commit],
        target: &Path,
    ) -> Result<(), ContextError> {
        self.fill_at(repository, commits, target, 0).await
    }

    async fn fill_at(
        &self,
        repository: &Repository,
        commits: &[Commit],
        target: &Path,
        depth: usize,
    ) -> Result<(), ContextError> {
        let number = self.filled.fetch_add(1, Ordering::Relaxed);
        if number > MOST || depth > DEEPEST {
            return Err(ContextError::TooMany { most: MOST, deepest: DEEPEST });
        }
        let clone = self.contexts.clone_of(repository, commits[0].ids());
        let wanted = Wanted { commits, references: self.include_git, log: self.log, cancel: self.cancel };
        let mut again = false;
        let submodules = loop {
            let generation = clone.generation();
            let directory =
                if self.include_git { target.join(".git") } else { self.scratch.join(format!("git-{number}")) };
            let worktree = Worktree { git: &self.contexts.git, clone: &clone, directory, target, wanted };
            match worktree.fill(repository, self.include_git).await {
                Ok(submodules) => break submodules,
                Err(Trouble::Told(error)) => return Err(error),
                // Damage that another job has seen to meanwhile does not count.
                Err(Trouble::Damaged(failure)) if again && clone.generation() == generation => {
                    return Err(clone.told(failure.error));
                }
                Err(Trouble::Damaged(_)) => {
                    again |= clone.renew(generation, self.log).await?;
                    worktree.clear()?;
                }
            }
        };
        for submodule in submodules {
            self.fill_submodule(repository, &submodule, target, depth).await.map_err(|error| match error {
                ContextError::Cancelled => error,
                source => ContextError::Submodule { path: submodule.path.to_string(), source: Box::new(source) },
            })?;
        }
        Ok(())
    }

    async fn fill_submodule(
        &self,
        parent: &Repository,
        submodule: &Submodule,
        target: &Path,
        depth: usize,
    ) -> Result<(), ContextError> {
        let repository = parent.submodule(&submodule.url)?;
        let directory = empty_directory(target, submodule.path.as_bstr())?;
        let commits = std::slice::from_ref(&submodule.commit);
        Box::pin(self.fill_at(&repository, commits, &directory, depth + 1)).await
    }
}

/// Returns the directory that git made for a submodule in `target`.
///
/// A tree that a stranger made may name a path twice, once as a link that leads elsewhere.
fn empty_directory(target: &Path, path: &BStr) -> Result<PathBuf, ContextError> {
    let refuse = |reason: &str| ContextError::Refused { commit: path.to_string(), reason: reason.to_owned() };
    let relative = path.to_path().map_err(|_| refuse("a path of the submodule is not text"))?;
    let mut directory = target.to_owned();
    for component in relative.components() {
        let Component::Normal(name) = component else { return Err(refuse("the submodule is not in the sources")) };
        directory.push(name);
        match fs::symlink_metadata(&directory) {
            Ok(found) if found.is_dir() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("find", directory),
            _ => return Err(refuse("the submodule is no directory")),
        }
    }
    let mut entries = fs::read_dir(&directory).at("read", &directory)?;
    if entries.next().is_some() { Err(refuse("the submodule's directory is not empty")) } else { Ok(directory) }
}

/// A repository of a job's own, which borrows the objects of a clone and writes its own.
struct Worktree<'a> {
    git: &'a Git,
    clone: &'a Clone,
    /// The repository.
    directory: PathBuf,
    /// Where the files go.
    target: &'a Path,
    wanted: Wanted<'a>,
}

impl Worktree<'_> {
    /// Fetches, merges and checks out. Returns the submodules, whose directories are empty.
    async fn fill(&self, repository: &Repository, include_git: bool) -> Result<Vec<Submodule>, Trouble> {
        self.clone.ensure(self.wanted).await?;
        self.init().await?;
        let head = self.merge().await?;
        let checkout = self.at("read-tree").args(["--reset", "-u", &head]).env("GIT_WORK_TREE", git::path(self.target));
        self.output(&checkout).await.map_err(|failure| self.refused(&head, failure))?;
        let submodules = self.submodules(&head).await?;
        if include_git {
            self.keep(repository, &head).await?;
        }
        Ok(submodules)
    }

    /// Removes everything, for another attempt.
    fn clear(&self) -> Result<(), ContextError> {
        for directory in [&*self.directory, self.target] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.at("remove", directory)?,
            }
        }
        fs::create_dir(self.target).at("make", self.target)
    }

    async fn init(&self) -> Result<(), Trouble> {
        let init = self.git.init(self.wanted.commits[0].ids().name());
        let inside = self.directory.starts_with(self.target);
        let init =
            if inside { init.arg(git::path(self.target)) } else { init.arg("--bare").arg(git::path(&self.directory)) };
        self.output(&init).await.map_err(|failure| self.clone.trouble(failure))?;
        let alternates = self.directory.join("objects/info/alternates");
        let mut line = self.clone.directory.join("objects").into_os_string();
        line.push("\n");
        fs::write(&alternates, line.as_encoded_bytes()).at("write", alternates).map_err(Trouble::Told)
    }

    /// Merges the commits as `git merge` would, in memory. Returns the id of what comes out.
    async fn merge(&self) -> Result<String, Trouble> {
        let (first, others) = self.wanted.commits.split_first().expect("there are commits");
        let mut head = first.as_str().to_owned();
        for other in others {
            let other = other.as_str();
            if self.is_ancestor(other, &head).await? {
                continue;
            }
            if self.is_ancestor(&head, other).await? {
                other.clone_into(&mut head);
                continue;
            }
            self.say(&format!("Merging {other}\n"))?;
            let command = self.at("merge-tree").args(["--write-tree", "--messages", &head, other]);
            let (status, output, said) = self.status(&command).await?;
            let conflict = || ContextError::Conflict { commit: other.to_owned(), head: head.clone() };
            if status.code() == Some(1) {
                self.say_conflicts(&output)?;
                return Err(conflict().into());
            }
            if let Some(failure) = git::failure(&command, status, said) {
                // There is nothing that they have in common.
                return Err(if failure.says(&["unrelated histories"]) {
                    conflict().into()
                } else {
                    self.trouble(failure)
                });
            }
            let tree = first_line(&output);
            let dates = self.output(&self.at("show").args(["--no-patch", "--format=%ct", &head, other])).await;
            let dates = dates.map_err(|failure| self.trouble(failure))?;
            // The merge is as old as the younger of the two, so that it is the same every time.
            let date =
                dates.to_str_lossy().lines().filter_map(|line| line.parse::<u64>().ok()).max().unwrap_or_default();
            let date = format!("@{date} +0000");
            let commit = self.at("commit-tree").args([&*tree, "-p", &head, "-p", other, "-m"]);
            let commit = commit.arg(format!("Merge commit '{other}'"));
            let commit = commit.env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date);
            head = first_line(&self.output(&commit).await.map_err(|failure| self.trouble(failure))?);
        }
        Ok(head)
    }

    async fn is_ancestor(&self, one: &str, other: &str) -> Result<bool, Trouble> {
        let command = self.at("merge-base").args(["--is-ancestor", one, other]);
        let (status, _, said) = self.status(&command).await?;
        match status.code() {
            Some(1) => Ok(false),
            _ => match git::failure(&command, status, said) {
                Some(failure) => Err(self.trouble(failure)),
                None => Ok(true),
            },
        }
    }

    /// What `git merge-tree` says of conflicts stands behind the tree and the versions of the files.
    fn say_conflicts(&self, output: &[u8]) -> Result<(), ContextError> {
        let start = output.find(b"\n\n").map_or(0, |blank| blank + 2);
        self.wanted.log.append(&output[start..]).at("write", "the log")
    }

    /// Lists the submodules of `head` that can be fetched.
    async fn submodules(&self, head: &str) -> Result<Vec<Submodule>, Trouble> {
        let modules = self.list(&["-z", head, "--", ".gitmodules"]).await?;
        if modules.is_empty() {
            return Ok(Vec::new());
        }
        if !modules.starts_with(b"100") {
            let reason = ".gitmodules is no file".to_owned();
            return Err(ContextError::Refused { commit: head.to_owned(), reason }.into());
        }
        let config =
            self.at("config").args(["--null", "--no-includes", "--blob", &format!("{head}:.gitmodules"), "--list"]);
        let config = self.output(&config).await.map_err(|failure| self.refused(head, failure))?;
        let tree = self.list(&["-r", "-z", "--full-tree", head]).await?;
        let mut found = Vec::new();
        for (path, commit) in links(&tree) {
            match submodule_url(&config, path) {
                Ok(url) => {
                    found.push(Submodule { path: path.to_owned(), commit: Commit::parse(commit)?, url: url.into() })
                }
                Err(why) => self.say(&format!("Submodule {path} is left empty: {why}\n"))?,
            }
        }
        Ok(found)
    }

    async fn list(&self, arguments: &[&str]) -> Result<Vec<u8>, Trouble> {
        self.output(&self.at("ls-tree").args(arguments)).await.map_err(|failure| self.trouble(failure))
    }

    /// Makes the repository one that stands alone.
    async fn keep(&self, repository: &Repository, head: &str) -> Result<(), Trouble> {
        let clone = &self.clone.directory;
        let _packs = self.clone.packs.read().await;
        let set = |name: &str, value: &str| self.at("config").args([name, value]);
        let commands = [
            self.at("update-ref").args(["--no-deref", "HEAD", head]),
            set("remote.origin.url", repository.url()),
            set("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
            // Objects are shared, so this copies names.
            self.at("fetch")
                .env("GIT_ALLOW_PROTOCOL", "file")
                .args(["--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--"])
                .arg(git::path(clone))
                .args(["+refs/remote/heads/*:refs/remotes/origin/*", "+refs/remote/tags/*:refs/tags/*"]),
        ];
        for command in commands {
            self.output(&command).await.map_err(|failure| self.trouble(failure))?;
        }
        let (from, to) = (clone.join("objects"), self.directory.join("objects"));
        let copied = tokio::task::spawn_blocking({
            let (from, to) = (from.clone(), to.clone());
            move || copy_objects(&from, &to)
        });
        copied.await.map_err(io::Error::from).and_then(|copied| copied).at("copy", from)?;
        let alternates = to.join("info/alternates");
        fs::remove_file(&alternates).at("remove", alternates).map_err(Trouble::Told)
    }

    fn at(&self, subcommand: &str) -> Command {
        self.git.at(&self.directory, subcommand)
    }

    async fn output(&self, command: &Command) -> Result<Vec<u8>, Failure> {
        git::output(command, self.wanted.log, self.wanted.cancel).await
    }

    async fn status(&self, command: &Command) -> Result<(std::process::ExitStatus, Vec<u8>, String), Trouble> {
        git::status(command, self.wanted.log, self.wanted.cancel).await.map_err(|failure| self.trouble(failure))
    }

    fn trouble(&self, failure: Failure) -> Trouble {
        self.clone.trouble(failure)
    }

    /// What git refuses to read or write of a whole clone is the commit's fault.
    fn refused(&self, head: &str, failure: Failure) -> Trouble {
        if failure.says(&["invalid path", "malformed", "bad config line"]) {
            return ContextError::Refused { commit: head.to_owned(), reason: failure.last_line() }.into();
        }
        self.trouble(failure)
    }

    fn say(&self, line: &str) -> Result<(), ContextError> {
        self.wanted.log.append(line.as_bytes()).at("write", "the log")
    }
}

fn first_line(output: &[u8]) -> String {
    output.lines().next().unwrap_or_default().to_str_lossy().into_owned()
}

/// Returns paths and ids of the commits in a listing of `git ls-tree -z`: `160000 commit ID\tPATH\0`.
fn links(tree: &[u8]) -> impl Iterator<Item = (&BStr, &[u8])> {
    tree.split(|&byte| byte == 0).filter_map(|line| {
        let (id, path) = line.strip_prefix(b"160000 commit ")?.split_once_str("\t")?;
        Some((path.as_bstr(), id))
    })
}

/// Finds the URL of the submodule at `path` in a listing of `git config --null --list`: `submodule.NAME.KEY\nVALUE\0`.
fn submodule_url<'a>(config: &'a [u8], path: &BStr) -> Result<&'a BStr, &'static str> {
    let entries = || {
        config.split(|&byte| byte == 0).filter_map(|entry| {
            let (key, value) = entry.split_once_str("\n")?;
            let (name, key) = key.strip_prefix(b"submodule.")?.rsplit_once_str(".")?;
            Some((name, key, value))
        })
    };
    let Some((wanted, ..)) = entries().find(|&(_, key, value)| key == b"path" && value == path) else {
        return Err(".gitmodules does not name it");
    };
    // The last one counts, as everywhere in git's files.
    let value = |wanted_key: &[u8]| entries().rfind(|&(name, key, _)| name == wanted && key == wanted_key);
    if value(b"update").is_some_and(|(.., update)| update == b"none") {
        return Err("it is not to be updated");
    }
    value(b"url").map(|(.., url)| url.as_bstr()).ok_or(".gitmodules has no URL for it")
}

/// Copies what a repository needs of its objects: packs, and single ones. They are copies and no links: a job writes where it likes.
fn copy_objects(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_loose = name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if name != "pack" && !is_loose {
            continue;
        }
        let target = to.join(&*name);
        fs::create_dir_all(&target)?;
        for file in fs::read_dir(entry.path())? {
            let file = file?;
            let name = file.file_name();
            // What is being written by a fetch has such a name.
            if !name.to_string_lossy().starts_with("tmp_") && !target.join(&name).exists() {
                fs::copy(file.path(), target.join(&name))?;
            }
        }
    }
    Ok(())
}
