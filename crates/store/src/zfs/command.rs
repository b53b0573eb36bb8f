//! The `zfs` program: which arguments each verb has, and what its complaints mean.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StoreError;

/// What zfs is asked to do. Names are whole: `tank/kiln/tree`, snapshots `tank/kiln/tree@name`.
#[derive(Clone, Debug)]
pub(super) enum Verb<'a> {
    /// Makes the dataset of a store.
    CreateStore(&'a str),
    /// Sets what trees need of the dataset that they inherit from.
    Prepare(&'a str),
    /// Lets a dataset with its snapshots, but for what it shares, occupy so much; `none` for any.
    Quota {
        quota: &'a str,
        dataset: &'a str,
    },
    /// Prints the quota of a dataset and what it occupies, in bytes.
    QuotaAndUsed(&'a str),
    /// Makes an empty tree.
    Create(&'a str),
    Snapshot(&'a str),
    /// Makes a tree of a snapshot.
    Clone {
        snapshot: &'a str,
        dataset: &'a str,
    },
    /// Swaps a clone with what it was cloned from.
    Promote(&'a str),
    /// Destroys a dataset with its snapshots.
    Destroy(&'a str),
    /// Lists the clones of all snapshots of a dataset.
    Clones(&'a str),
    /// Lists what each of these datasets alone occupies, in bytes.
    Used(&'a [String]),
    Mount(&'a str),
    /// Lists what the pool could still give to a dataset and what that occupies.
    Space(&'a str),
    /// Waits until the pool is on the disk.
    Sync(&'a str),
}

/// Trees are mounted by the kernel alone, never by zfs itself at a boot.
const NOT_MOUNTED: [&str; 4] = ["-o", "mountpoint=legacy", "-o", "canmount=noauto"];

impl Verb<'_> {
    /// Returns the program and its arguments.
    pub(super) fn arguments(&self) -> (&'static str, Vec<&str>) {
        let arguments = match self {
            Self::CreateStore(dataset) => vec!["create", dataset],
            // Attributes in the inode: those in hidden directories are slow. ACLs as Linux has them.
            Self::Prepare(dataset) => vec!["set", "xattr=sa", "acltype=posix", "atime=off", dataset],
            Self::Quota { quota, dataset } => vec!["set", quota, dataset],
            Self::QuotaAndUsed(dataset) => vec!["list", "-H", "-p", "-o", "quota,used", dataset],
            Self::Create(dataset) => [&["create"][..], &NOT_MOUNTED, &[dataset]].concat(),
            Self::Snapshot(snapshot) => vec!["snapshot", snapshot],
            Self::Clone { snapshot, dataset } => [&["clone"][..], &NOT_MOUNTED, &[snapshot, dataset]].concat(),
            Self::Promote(dataset) => vec!["promote", dataset],
            Self::Destroy(dataset) => vec!["destroy", "-r", dataset],
            Self::Clones(dataset) => {
                vec!["list", "-H", "-p", "-t", "snapshot", "-d", "1", "-o", "clones", dataset]
            }
            Self::Used(datasets) => {
                let mut arguments = vec!["list", "-H", "-p", "-o", "name,used"];
                arguments.extend(datasets.iter().map(String::as_str));
                arguments
            }
            Self::Mount(dataset) => vec!["mount", dataset],
            Self::Space(dataset) => vec!["list", "-H", "-p", "-o", "available,used", dataset],
            Self::Sync(dataset) => {
                return ("zpool", vec!["sync", dataset.split('/').next().unwrap_or(dataset)]);
            }
        };
        ("zfs", arguments)
    }

    /// Does it, and returns what was printed.
    pub(super) fn run(&self) -> Result<String, Complaint> {
        let (program, arguments) = self.arguments();
        let output = Command::new(program).args(&arguments).env("LC_ALL", "C").output();
        let command = format!("{program} {}", arguments.join(" "));
        match output {
            Err(source) => Err(Complaint { command, kind: Kind::NoProgram, said: source.to_string() }),
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
                Err(Complaint { command, kind: Kind::of(&said), said })
            }
        }
    }
}

/// Why zfs did not do something.
#[derive(Debug)]
pub(super) struct Complaint {
    command: String,
    pub(super) kind: Kind,
    said: String,
}

/// What a complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NoProgram,
    /// The dataset does not exist.
    Missing,
    /// Someone has it mounted.
    Busy,
    /// Clones stand on it.
    HasClones,
    Full,
    NotPermitted,
    Other,
}

impl Kind {
    /// Returns what zfs' words mean: it has but one exit code for all failures.
    fn of(said: &str) -> Self {
        let words = [
            ("does not exist", Self::Missing),
            ("has dependent clones", Self::HasClones),
            ("busy", Self::Busy),
            ("out of space", Self::Full),
            ("quota exceeded", Self::Full),
            ("permission denied", Self::NotPermitted),
            ("must be superuser", Self::NotPermitted),
        ];
        words.into_iter().find(|(word, _)| said.contains(word)).map_or(Self::Other, |(_, kind)| kind)
    }
}

impl Complaint {
    /// Returns the error of a store at `root` on `dataset`.
    pub(super) fn into_error(self, root: &Path, dataset: &str) -> StoreError {
        let Self { command, kind, said } = self;
        let unfit = |reason: String| StoreError::Unfit { kind: "zfs", path: PathBuf::from(dataset), reason };
        match kind {
            Kind::NoProgram => unfit(format!("cannot run `{command}` ({said}); install zfsutils-linux")),
            Kind::Full => StoreError::disk("store in", root, io::Error::new(io::ErrorKind::StorageFull, said)),
            Kind::NotPermitted => unfit(format!(
                "`{command}` is not permitted ({said}); run kiln as root, or let root run `zfs allow -u USER \
                 clone,create,destroy,mount,promote,snapshot {dataset}`"
            )),
            _ => StoreError::disk("store in", root, io::Error::other(format!("`{command}`: {said}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verb: &Verb<'_>) -> String {
        let (program, arguments) = verb.arguments();
        format!("{program} {}", arguments.join(" "))
    }

    #[test]
    fn each_verb_is_one_command() {
        let clone = Verb::Clone { snapshot: "tank/a@s", dataset: "tank/b" };
        assert_eq!(line(&clone), "zfs clone -o mountpoint=legacy -o canmount=noauto tank/a@s tank/b");
        assert_eq!(line(&Verb::Destroy("tank/a")), "zfs destroy -r tank/a");
        assert_eq!(line(&Verb::Sync("tank/kiln")), "zpool sync tank");
        let both = ["tank/a".to_owned(), "tank/b".to_owned()];
        assert_eq!(line(&Verb::Used(&both)), "zfs list -H -p -o name,used tank/a tank/b");
    }

    #[test]
    fn what_zfs_says_is_understood() {
        let kinds = [
            ("cannot open 'tank/x': dataset does not exist", Kind::Missing),
            ("cannot destroy 'tank/x': dataset is busy", Kind::Busy),
            ("cannot destroy 'tank/x': filesystem has dependent clones", Kind::HasClones),
            ("cannot create 'tank/x': out of space", Kind::Full),
            ("cannot create snapshot 'tank/x@y': permission denied", Kind::NotPermitted),
            ("internal error", Kind::Other),
        ];
        for (said, kind) in kinds {
            assert_eq!(Kind::of(said), kind, "{said}");
        }
    }

    #[test]
    fn a_full_pool_is_a_full_disk_and_a_refusal_names_the_way_out() {
        let error = |kind, said: &str| {
            let complaint = Complaint { command: "zfs clone".to_owned(), kind, said: said.to_owned() };
            complaint.into_error(Path::new("/tank"), "tank")
        };
        assert!(matches!(error(Kind::Full, "out of space"), StoreError::DiskFull { .. }));
        assert!(error(Kind::NotPermitted, "permission denied").to_string().contains("zfs allow -u USER"));
    }
}
