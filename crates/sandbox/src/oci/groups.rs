//! Control groups that a runtime makes for a run, and their removal.
//!
//! A runtime removes its groups when it ends; when it is killed, for cancelling or with kiln, they stay. So each run has a
//! file beside the place where init works:
//!
//! ```text
//! /run/kiln/oci/
//!   PID-NUMBER    holds the groups' path; locked while a process of the run lives
//! ```
//!
//! Files that nobody locks are those of dead runs: the next sandbox removes their groups, and then them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::PLACE;
use crate::SandboxError;
use crate::plan::RuntimeGroups;

/// The groups of one run.
#[derive(Debug)]
pub(crate) struct RunGroups {
    file: PathBuf,
    lock: File,
    path: String,
    devices: Option<PathBuf>,
}

impl RunGroups {
    /// Says whose the groups will be, before there are any. `unified` is the run's group in v2: theirs must be below it, or its limits
    /// do not hold for them.
    ///
    /// # Errors
    ///
    /// [`SandboxError::RunDirectory`].
    pub(crate) fn new(unified: Option<String>) -> Result<Self, SandboxError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let devices = devices(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
        let above = unified.filter(|_| devices.is_none()).unwrap_or_else(|| "/kiln".to_owned());
        Self::make(Path::new(PLACE), &name, &above, devices)
            .map_err(|source| SandboxError::RunDirectory { path: PLACE.into(), source })
    }

    fn make(place: &Path, name: &str, above: &str, devices: Option<PathBuf>) -> io::Result<Self> {
        prepare(place)?;
        let file = place.join(name);
        // Locked before anybody can find it without a lock.
        let hidden = place.join(format!(".{name}"));
        let lock = File::create(&hidden)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let path = format!("{above}/oci-{name}");
        (&lock).write_all(path.as_bytes())?;
        fs::rename(&hidden, &file)?;
        Ok(Self { file, lock, path, devices })
    }

    /// Returns where the runtime shall make them, below each hierarchy's root.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns which hierarchies the runtime shall see.
    pub(crate) fn seen(&self) -> RuntimeGroups {
        let path = self.devices.as_deref().map(|path| CString::new(path.as_os_str().as_bytes()));
        match path {
            Some(Ok(path)) => RuntimeGroups::Devices(path),
            _ => RuntimeGroups::All,
        }
    }

    /// Returns what the run's processes hold, so that nobody takes its groups while one of them lives.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Removes the groups, when every process is dead.
    pub(crate) async fn remove(self) {
        let mounts = mounts();
        until_left(|| remove(&mounts, &self.path)).await;
    }
}

/// Calls `remove`, which returns whether groups of dead processes are gone, until they are, or for some time. Who has been reaped
/// may still be on its way out of its group, and v1 tells nobody when it is empty.
pub(crate) async fn until_left(mut remove: impl FnMut() -> bool) {
    for _ in 0..50 {
        if remove() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Drop for RunGroups {
    /// If processes of this run live, the lock stays theirs, and a later sandbox removes the rest.
    fn drop(&mut self) {
        if remove(&mounts(), &self.path) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Makes the directory in which runs are noted. What init mounts over it, the users of a run must reach.
fn prepare(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    for (dir, mode) in place.parent().map(|dir| (dir, 0o755)).into_iter().chain([(place, 0o700)]) {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Removes what dead runs have left.
pub(super) fn sweep() {
    sweep_in(Path::new(PLACE), &mounts());
}

fn sweep_in(place: &Path, mounts: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let file = entry.path();
        let Ok(lock) = File::open(&file) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let path = fs::read_to_string(&file).unwrap_or_default();
        if remove(mounts, path.trim()) {
            let _ = fs::remove_file(&file);
        }
    }
}

/// Removes a path's groups in all hierarchies. Returns whether none is left.
fn remove(mounts: &[PathBuf], path: &str) -> bool {
    // What is not ours is not touched, whatever stands in the file.
    if !is_ours(path) {
        return true;
    }
    let mut is_gone = true;
    for mount in mounts {
        let group = mount.join(path.trim_start_matches('/'));
        match fs::remove_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = %group.display(), %error, "a control group is left");
                is_gone = false;
            }
            _ => {}
        }
    }
    is_gone
}

/// Returns whether this is `/kiln/oci-NAME` or `/kiln/RUN/oci-NAME`.
fn is_ours(path: &str) -> bool {
    let plain = |name: &str| !name.is_empty() && !name.contains('.');
    let words: Vec<_> = path.strip_prefix("/kiln/").unwrap_or_default().split('/').collect();
    let named = |word: &str| word.strip_prefix("oci-").is_some_and(plain);
    match words[..] {
        [last] => named(last),
        [run, last] => plain(run) && named(last),
        _ => false,
    }
}

/// Returns where the v1 hierarchy with the controller of devices is mounted.
fn devices(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (kind, options) = (after.split(' ').next()?, after.rsplit(' ').next()?);
        let is_it = kind == "cgroup" && options.split(',').any(|option| option == "devices");
        is_it.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Returns where hierarchies of control groups are mounted.
fn mounts() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_the_dead_are_removed_and_those_of_the_living_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (place, hierarchy) = (dir.path().join("run"), dir.path().join("cgroup"));
        let run = |name: &str| {
            let run = RunGroups::make(&place, name, "/kiln", None).unwrap();
            fs::create_dir_all(hierarchy.join(run.path.trim_start_matches('/'))).unwrap();
            run
        };
        let (living, dead) = (run("1-0"), run("1-1"));
        let file = dead.file.clone();
        // As if its process was killed: the lock is gone, and nothing is removed.
        flock(&dead.lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(dead);
        sweep_in(&place, std::slice::from_ref(&hierarchy));
        assert!(!file.exists() && !hierarchy.join("kiln/oci-1-1").exists());
        assert!(living.file.exists() && hierarchy.join("kiln/oci-1-0").exists());
        // What is still in use is found once more.
        fs::create_dir(hierarchy.join("kiln/oci-1-0/child")).unwrap();
        flock(&living.lock, FlockOperation::Unlock).unwrap();
        sweep_in(&place, std::slice::from_ref(&hierarchy));
        assert!(living.file.exists());
        fs::remove_dir(hierarchy.join("kiln/oci-1-0/child")).unwrap();
        sweep_in(&place, std::slice::from_ref(&hierarchy));
        assert!(!living.file.exists());
    }

    #[test]
    fn the_controller_of_devices_is_found() {
        let v1 = "38 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices";
        assert_eq!(devices(v1), Some("/sys/fs/cgroup/devices".into()));
        assert_eq!(devices("30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"), None);
    }

    #[test]
    fn nothing_else_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kiln/oci-")).unwrap();
        fs::create_dir_all(dir.path().join("kiln/other")).unwrap();
        for path in [
            "",
            "/",
            "/kiln",
            "/kiln/other",
            "/kiln/oci-",
            "/kiln/oci-../other",
            "/kiln/../oci-1",
            "/kiln/a/b/oci-1",
            "/kiln/oci-1/../other",
        ] {
            assert!(remove(&[dir.path().to_owned()], path));
        }
        assert!(is_ours("/kiln/oci-1-0") && is_ours("/kiln/7-3/oci-1-0"));
        assert!(dir.path().join("kiln/other").exists() && dir.path().join("kiln/oci-").exists());
    }
}
