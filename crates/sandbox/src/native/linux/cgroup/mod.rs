//! Control groups: what a run may use of the host, and what it used.
//!
//! ```text
//! MOUNT/            of each hierarchy with a controller that is of use
//!   kiln/
//!     PID-NUMBER/   a run's, with a lock on the directory while its caller lives
//! ```
//!
//! They stand below the root and not below the caller's own group, because in v2 a group with processes in it cannot give
//! controllers to groups below it. So whatever limits the caller's own group has do not hold for runs.
//!
//! Without root's rights, they stand below the caller's own group if that has been handed over to the user, and the caller goes from there
//! into one of the groups below.
//!
//! Init joins first of all, before the cgroup namespace is made: that begins at the group in which its maker is. The helper stays
//! outside, so that what kills or starves the run lets the watcher live.
//!
//! `join` is the helper's part. `host` (which hierarchies there are), `settings` (what is written) and `usage` (what is read) are pure.

mod host;
mod join;
mod settings;
mod usage;

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Access, FlockOperation, Mode, OFlags, flock, fstat, open, stat};

pub(super) use self::join::Joins;

use super::user_namespace;

use self::host::{Controller, Hierarchy, Version};
use crate::oci::until_left;
use crate::{Limit, Limits, SandboxError, Usage};

/// The directory of all runs.
const OURS: &str = "kiln";

/// What starts a program in a control group that its user may divide.
const GIVE: &str = "systemd-run --user --scope -p Delegate=yes kiln …";

/// The control groups that this host has.
#[derive(Debug)]
pub(super) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// They are those of a user without root's rights.
    is_users: bool,
}

impl Cgroups {
    /// Looks what there is, and removes what callers that were killed have left.
    pub(super) fn of_this_host() -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let read = |path: &Path| fs::read_to_string(path).ok();
        let mut hierarchies = host::hierarchies(&mountinfo, read);
        let is_users = user_namespace::is_ours();
        if is_users {
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            hierarchies = host::delegated(hierarchies, &own, is_handed_over, read);
        }
        for hierarchy in &hierarchies {
            sweep(&hierarchy.mount.join(OURS));
        }
        Self { hierarchies, is_users }
    }

    /// Makes the groups of one run. What is only counted, and not limited, is left out where that fails.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Limit`]: a limit cannot be kept.
    pub(super) fn group(&self, limits: &Limits) -> Result<Group, SandboxError> {
        let asked = settings::asked(limits);
        for (controller, limit) in &asked {
            if !self.hierarchies.iter().any(|hierarchy| hierarchy.controllers.contains(controller)) {
                let name = controller.name(Version::Two);
                let what = match self.is_users {
                    false => format!("this host has no control groups for `{name}`"),
                    true => format!(
                        "this user has been given no control group with `{name}`; where control groups are v2, `{GIVE}` gives one"
                    ),
                };
                return Err(SandboxError::Limit { limit, what, source: None });
            }
        }
        let mut group = Group { parts: Vec::new(), limits: limits.clone() };
        for hierarchy in &self.hierarchies {
            let asked: Vec<_> =
                asked.iter().filter(|(controller, _)| hierarchy.controllers.contains(controller)).copied().collect();
            match Part::make(hierarchy, limits, &asked) {
                Ok(part) => group.parts.extend(part),
                Err(failed) => match asked.first() {
                    Some((_, first)) => return Err(failed.into_error(first)),
                    None => tracing::debug!(what = failed.what, error = ?failed.source, "a run is not counted"),
                },
            }
        }
        Ok(group)
    }
}

/// Removes groups whose maker is dead. What is in use stays: its directory is locked, or has processes.
fn sweep(ours: &Path) {
    let Ok(entries) = fs::read_dir(ours) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        let Ok(dir) = open_dir(&path) else { continue };
        // Held until it is gone: who has just made it may be about to lock it.
        let is_free = flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_free && let Err(error) = fs::remove_dir(&path) {
            tracing::debug!(path = %path.display(), %error, "a control group is left");
        }
    }
}

/// Returns whether a group's directory, and the files of it by which it is divided, are ours to write.
fn is_handed_over(group: &Path) -> bool {
    let files = ["", "cgroup.procs", "cgroup.subtree_control"].map(|file| group.join(file));
    files.iter().all(|file| rustix::fs::access(file, Access::WRITE_OK).is_ok())
}

/// Moves this process, which is to outlive its runs, out of the group that is divided: in v2 a group has processes in it or
/// gives controllers to groups below it.
fn make_room(ours: &Path) -> Result<(), Failed> {
    static OWN: Mutex<Option<OwnedFd>> = Mutex::new(None);
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if own.is_none() {
        let (path, lock) = make_locked(ours)?;
        let file = path.join("cgroup.procs");
        write(&file, "0").map_err(|error| Failed::new(format!("cannot write to {}", file.display()), error))?;
        *own = Some(lock);
    }
    Ok(())
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The control groups of one run.
#[derive(Debug)]
pub(super) struct Group {
    parts: Vec<Part>,
    limits: Limits,
}

impl Group {
    /// Returns how init gets in, for [`Joins::open`]: files of v1, the directory of v2.
    pub(super) fn joins(&self) -> (Vec<CString>, Option<CString>) {
        let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("the kernel's paths have no NUL");
        let of = |version| self.parts.iter().filter(move |part| part.version == version);
        let files = of(Version::One).map(|part| c_string(&part.path.join("tasks"))).collect();
        (files, of(Version::Two).map(|part| c_string(&part.path)).next())
    }

    /// Returns the path of the group in the v2 hierarchy, if there is one.
    pub(super) fn unified(&self) -> Option<String> {
        let part = self.parts.iter().find(|part| part.version == Version::Two)?;
        Some(format!("/{OURS}/{}", part.path.file_name()?.to_str()?))
    }

    /// Kills every process faster than the end of its pid namespace does, in v2; and lifts the quota of processor time, which
    /// dying takes too.
    pub(super) async fn kill(&self) {
        let mut writes = Vec::new();
        for part in &self.parts {
            if self.limits.cpu_millis.is_some() && part.controllers.contains(&Controller::Cpu) {
                let (file, value) = settings::without_quota(part.version);
                writes.push((part.path.join(file), value));
            }
            if part.version == Version::Two {
                // Linux 5.14.
                writes.push((part.path.join("cgroup.kill"), "1"));
            }
        }
        // The kernel takes its time for thousands.
        let written = tokio::task::spawn_blocking(move || {
            for (file, value) in writes {
                if let Err(error) = write(&file, value) {
                    tracing::debug!(file = %file.display(), %error, "cannot hurry a run's end");
                }
            }
        });
        let _ = written.await;
    }

    /// Returns the limit that the run came up against. Memory first: whose processes are killed may then be refused more.
    pub(super) fn hit(&self) -> Option<Limit> {
        let hit = |wanted| {
            let mut parts = self.parts.iter().filter(|part| part.controllers.contains(&wanted));
            parts.find_map(|part| usage::hit(&self.limits, wanted, part.version, part.reader()))
        };
        hit(Controller::Memory).or_else(|| hit(Controller::Processes))
    }

    /// Returns what the run used.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for part in &self.parts {
            for controller in &part.controllers {
                usage::add(&mut usage, *controller, part.version, part.reader());
            }
        }
        usage
    }

    /// Removes the groups, when every process is dead.
    pub(super) async fn remove(mut self) {
        while let Some(part) = self.parts.pop() {
            until_left(|| !matches!(fs::remove_dir(&part.path), Err(error) if error.kind() == ErrorKind::ResourceBusy))
                .await;
        }
    }
}

impl Drop for Group {
    /// What cannot be removed now is swept later.
    fn drop(&mut self) {
        for part in &self.parts {
            let _ = fs::remove_dir(&part.path);
        }
    }
}

/// The group of a run in one hierarchy.
#[derive(Debug)]
struct Part {
    version: Version,
    controllers: Vec<Controller>,
    path: PathBuf,
    /// The directory, locked: its maker lives.
    _lock: OwnedFd,
}

/// Why a group could not be made.
struct Failed {
    limit: Option<&'static str>,
    what: String,
    source: Option<io::Error>,
}

impl Failed {
    fn new(what: String, source: io::Error) -> Self {
        Self { limit: None, what, source: Some(source) }
    }

    fn into_error(self, otherwise: &'static str) -> SandboxError {
        SandboxError::Limit { limit: self.limit.unwrap_or(otherwise), what: self.what, source: self.source }
    }
}

impl Part {
    /// Makes it, if it is of use in this hierarchy.
    fn make(
        hierarchy: &Hierarchy,
        limits: &Limits,
        asked: &[(Controller, &'static str)],
    ) -> Result<Option<Self>, Failed> {
        let Hierarchy { version, mount, is_delegated, controllers } = hierarchy;
        let limit_of = |wanted| asked.iter().find(|(controller, _)| *controller == wanted).map(|(_, limit)| *limit);
        // It counts nothing, and sharing processors group by group changes who gets how much.
        let mut controllers = controllers.clone();
        controllers.retain(|controller| *controller != Controller::Cpu || limit_of(*controller).is_some());
        if controllers.is_empty() {
            return Ok(None);
        }
        let ours = mount.join(OURS);
        match fs::create_dir(&ours) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Failed::new(format!("cannot make {}", ours.display()), error));
            }
            _ => {}
        }
        if *is_delegated {
            make_room(&ours)?;
        }
        if *version == Version::Two {
            for dir in [mount, &ours] {
                enable(dir, &mut controllers, limit_of)?;
            }
            controllers.push(Controller::CpuAccounting);
        }
        let (path, lock) = make_locked(&ours)?;
        let part = Self { version: *version, controllers, path, _lock: lock };
        match part.set(limits) {
            Ok(()) => Ok(Some(part)),
            Err(failed) => {
                let _ = fs::remove_dir(&part.path);
                Err(failed)
            }
        }
    }

    fn set(&self, limits: &Limits) -> Result<(), Failed> {
        for controller in &self.controllers {
            let settings = settings::settings(limits, *controller, self.version).map_err(|(limit, why)| Failed {
                limit: Some(limit),
                what: why.to_owned(),
                source: None,
            })?;
            for setting in settings {
                let mut is_set = false;
                for (file, value) in &setting.files {
                    match write(&self.path.join(file), value) {
                        Ok(()) => is_set = true,
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(source) => {
                            let what = format!("cannot write {value} to {}", self.path.join(file).display());
                            return Err(Failed { limit: Some(setting.limit), what, source: Some(source) });
                        }
                    }
                }
                if !is_set {
                    let files: Vec<_> = setting.files.iter().map(|(file, _)| *file).collect();
                    let what = format!("this kernel's control groups have no {}", files.join(" and no "));
                    return Err(Failed { limit: Some(setting.limit), what, source: None });
                }
            }
        }
        Ok(())
    }

    fn reader(&self) -> impl Fn(&str) -> Option<String> {
        |file| fs::read_to_string(self.path.join(file)).ok()
    }
}

/// Hands `controllers` to the groups below `dir`. Those that only count are taken from the list if that fails.
fn enable(
    dir: &Path,
    controllers: &mut Vec<Controller>,
    limit_of: impl Fn(Controller) -> Option<&'static str>,
) -> Result<(), Failed> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    let mut kept = Vec::new();
    for controller in controllers.drain(..) {
        let name = controller.name(Version::Two);
        let is_enabled = enabled.split_whitespace().any(|enabled| enabled == name);
        match if is_enabled { Ok(()) } else { write(&file, &format!("+{name}")) } {
            Ok(()) => kept.push(controller),
            Err(source) => {
                let what = format!("cannot enable the controller `{name}` in {}", file.display());
                match limit_of(controller) {
                    Some(limit) => return Err(Failed { limit: Some(limit), what, source: Some(source) }),
                    None => tracing::debug!(what, error = %source, "a run is not counted"),
                }
            }
        }
    }
    *controllers = kept;
    Ok(())
}

/// Makes a directory of a new name, with a lock on it.
fn make_locked(ours: &Path) -> Result<(PathBuf, OwnedFd), Failed> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        // Processes in other pid namespaces can have the same id.
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = ours.join(name);
        let failed = |error: io::Error| Failed::new(format!("cannot make {}", path.display()), error);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made.map_err(failed)?,
        }
        // Between these two calls somebody's sweep may take it for left behind.
        let Ok(dir) = open_dir(&path) else { continue };
        let is_locked = flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        let inode = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(|stat| stat.st_ino).ok();
        if is_locked && inode(fstat(&dir)) == inode(stat(&path)) {
            return Ok((path, dir));
        }
    }
}

/// Writes to a file of the kernel's, which must be there.
fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}
