//! What this host has: looked at, not judged.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_sandbox::{Limits, NativeSandbox, Sandbox as _, check_tun, settings_against_user_namespaces};
use kiln_store::{CopyMode, IdMap, Kind, Location, Quota, Root, Store, StoreError};

/// Programs that kiln can use, each with the Debian package that it is in.
pub(super) const PROGRAMS: [(&str, &str); 8] = [
    ("newuidmap", "uidmap"),
    ("pasta", "passt"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("youki", "youki"),
    ("zfs", "zfsutils-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("docker", "docker.io"),
];

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The kernel's release, as `6.1.0-18-amd64`.
    pub(super) kernel: String,
    pub(super) is_root: bool,
    /// Kinds of namespaces that the kernel does not have.
    pub(super) missing_namespaces: Vec<&'static str>,
    pub(super) has_seccomp: bool,
    /// Settings that forbid user namespaces, as `sysctl` wants them to allow it.
    pub(super) forbids_user_namespaces: Vec<&'static str>,
    /// Whether files in that place can have other owners inside a sandbox; the reason why not.
    pub(super) id_mapping: Result<(), String>,
    /// What steps can be limited in; the reason why not.
    pub(super) limits: Vec<(&'static str, Result<(), String>)>,
    /// Those of [`PROGRAMS`] that were found.
    pub(super) programs: Vec<&'static str>,
    /// Why the user has no ids for its own user namespaces, if so.
    pub(super) lacks_ids: Option<String>,
    /// Why private networks do not get their device, and the command that mends it.
    pub(super) lacks_tun: Option<(String, Option<&'static str>)>,
    pub(super) has_kvm: bool,
    /// The directory that stores were tried in.
    pub(super) place: PathBuf,
    /// Kinds of stores that are possible there, the best first; and why others are not.
    pub(super) stores: Vec<(Kind, Result<(), String>)>,
    /// Whether the best of them can limit what steps take on the disk; the reason why not.
    pub(super) quotas: Result<(), String>,
}

impl Facts {
    /// Looks. Stores are tried in a directory of their own in `place`, which is removed again.
    pub(super) fn gather(place: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let is_root = crate::rootless::is_root();
        let kinds = [("user", "user"), ("pid", "pid"), ("mnt", "mount"), ("uts", "uts"), ("ipc", "ipc")];
        let kinds = kinds.into_iter().chain([("cgroup", "cgroup"), ("net", "network")]);
        let missing = kinds.filter(|(file, _)| !Path::new("/proc/self/ns").join(file).exists());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            is_root,
            missing_namespaces: missing.map(|(_, name)| name).collect(),
            has_seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            forbids_user_namespaces: settings_against_user_namespaces(is_root),
            id_mapping: id_mapping(place),
            limits: limits(),
            programs: PROGRAMS.into_iter().map(|(name, _)| name).filter(|name| find_program(name).is_some()).collect(),
            lacks_ids: crate::rootless::single_owner().map(str::to_owned),
            lacks_tun: check_tun().err().map(|error| (chain(&error), error.way_out())),
            has_kvm: fs::File::options().read(true).write(true).open("/dev/kvm").is_ok(),
            place: place.to_owned(),
            stores: stores(place),
            quotas: try_store(place, Kind::Auto, |store| {
                store.check_quota(&Quota { bytes: Some(1 << 30), files: None })
            }),
        }
    }
}

/// Tries whether a directory can be mounted with other owners than its files have.
fn id_mapping(place: &Path) -> Result<(), String> {
    let sandbox = NativeSandbox::new("/proc/self/exe").map_err(|error| chain(&error))?;
    let namespace = sandbox.user_namespace().map_err(|error| chain(&error))?;
    let map = namespace
        .mapped()
        .filter(|ids| !ids.are_the_callers())
        .map(|ids| IdMap { namespace: ids.as_fd(), first: ids.first() });
    Root::Dir(place.to_owned()).mount_mapped(map).map(drop).map_err(|error| error.to_string())
}

/// Tries what steps can be limited in.
fn limits() -> Vec<(&'static str, Result<(), String>)> {
    let sandbox = NativeSandbox::new("/proc/self/exe").map_err(|error| chain(&error));
    type Set = fn(&mut Limits);
    let limited: [(&str, Set); 4] = [
        ("memory", |limits| limits.memory_bytes = Some(1 << 30)),
        ("processes", |limits| limits.processes = Some(1 << 10)),
        ("processor time", |limits| limits.cpu_millis = Some(1000)),
        ("shares of the disk", |limits| limits.io_weight = Some(100)),
    ];
    let tried = limited.into_iter().map(|(what, set)| {
        let mut limits = Limits::default();
        set(&mut limits);
        let kept = sandbox.as_ref().map_err(Clone::clone);
        (what, kept.and_then(|sandbox| sandbox.check(&limits).map_err(|error| chain(&error))))
    });
    tried.collect()
}

/// Returns where a program is, by `PATH`.
fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(is_program)
}

/// Tries which kinds of stores `place` can hold.
fn stores(place: &Path) -> Vec<(Kind, Result<(), String>)> {
    let kinds = [Kind::Overlayfs, Kind::Btrfs, Kind::Xfs, Kind::Copy(CopyMode::Hardlink), Kind::Copy(CopyMode::Copy)];
    kinds.into_iter().map(|kind| (kind, try_store(place, kind, |_| Ok(())))).collect()
}

/// Makes a store in a directory of its own in `place`, asks it something, and removes it again.
fn try_store(place: &Path, kind: Kind, ask: impl FnOnce(&Store) -> Result<(), StoreError>) -> Result<(), String> {
    let dir = place.join(format!(".kiln-doctor-{}-{}", std::process::id(), kind.name()));
    let asked = Store::open(&Location { kind, place: dir.clone() }).and_then(|store| ask(&store));
    let removed = match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("cannot remove {}: {error}", dir.display())),
        _ => Ok(()),
    };
    asked.map_err(|error| chain(&error)).and(removed)
}

/// Returns an error with its causes, in a line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns the first directory that there is, on the way up from `path`.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new(OsStr::new("/")))
}
