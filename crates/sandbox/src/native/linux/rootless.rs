//! Becomes root of a user namespace, so that a user without root's rights can mount and own files as root does.
//!
//! This process itself goes there, rather than a child: nobody has to wait for anybody, forward signals, or die with someone.
//! Only the map is written from outside, by `newuidmap(1)` and `newgidmap(1)`, which a child starts that stayed behind.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::{WaitOptions, getegid, geteuid, waitpid};
use rustix::thread::UnshareFlags;

use super::sys::{self, SingleThread};
use crate::subordinate::{self, Line};
use crate::{Owners, RootlessError};

/// Where the host says which ids a user has, and who maps them.
const MAPS: [(&str, &str); 2] = [("/etc/subuid", "newuidmap"), ("/etc/subgid", "newgidmap")];
/// What adds them.
const ADD: &str = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER";

/// Makes the calling process root in a user namespace of its own, with a mount namespace. To be called before any thread
/// exists. Does nothing for root.
///
/// # Errors
///
/// [`RootlessError`]: this host does not let its users do that.
pub fn become_root_in_a_namespace() -> Result<Owners, RootlessError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid == 0 {
        return Ok(Owners::All);
    }
    let thread = SingleThread::check().map_err(RootlessError::Enter)?;
    let mut reason = None;
    match ranges(uid, gid) {
        Ok(maps) => match enter_with(&maps, &thread)? {
            Ok(()) => {}
            Err(complaint) => reason = Some(complaint),
        },
        Err(lacking) => {
            sys::unshare(UnshareFlags::NEWUSER).map_err(forbidden)?;
            reason = Some(lacking);
        }
    }
    if reason.is_some() {
        // Without a range, the kernel wants that nobody can leave a group.
        let write = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text);
        write("setgroups", "deny".to_owned())
            .and_then(|()| write("gid_map", format!("0 {gid} 1")))
            .and_then(|()| write("uid_map", format!("0 {uid} 1")))
            .map_err(RootlessError::Enter)?;
    }
    // Where a security module leaves a namespace without rights, this is where it shows.
    sys::unshare(UnshareFlags::NEWNS).map_err(forbidden)?;
    Ok(reason.map_or(Owners::Range, Owners::One))
}

/// Returns the maps of users and of groups, or why there are none.
fn ranges(uid: u32, gid: u32) -> Result<[Vec<Line>; 2], String> {
    let name = Command::new("id").arg("-un").stderr(Stdio::null()).output();
    let name = name.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let map = |file: &str, own| {
        let ranges = fs::read_to_string(file).unwrap_or_default();
        subordinate::map(&ranges, (uid, &name), own)
            .ok_or_else(|| format!("{file} gives this user fewer than 65535 ids; `{ADD}` adds some"))
    };
    Ok([map(MAPS[0].0, uid)?, map(MAPS[1].0, gid)?])
}

/// Goes into a user namespace with these maps. If the programs cannot write them, and wrote neither, returns why.
fn enter_with(maps: &[Vec<Line>; 2], thread: &SingleThread) -> Result<Result<(), String>, RootlessError> {
    let (mut ours, mut theirs) = UnixStream::pair().map_err(RootlessError::Enter)?;
    let target = rustix::process::getpid().as_raw_nonzero().to_string();
    let Some(mapper) = sys::fork(thread).map_err(RootlessError::Enter)? else {
        drop(ours);
        // One byte says that the namespace is there; its end, that it will not be.
        if theirs.read_exact(&mut [0]).is_ok() {
            let said = write_maps(&target, maps).err().unwrap_or_default();
            let _ = theirs.write_all(said.as_bytes());
        }
        sys::exit_now(0)
    };
    drop(theirs);
    let entered = sys::unshare(UnshareFlags::NEWUSER).map_err(forbidden);
    let mut said = String::new();
    let talked = entered.and_then(|()| {
        ours.write_all(&[0]).and_then(|()| ours.read_to_string(&mut said)).map_err(RootlessError::Enter)
    });
    drop(ours);
    let reaped = rustix::io::retry_on_intr(|| waitpid(Some(mapper), WaitOptions::empty()));
    talked?;
    reaped.map_err(|error| RootlessError::Enter(error.into()))?;
    if said.is_empty() {
        return Ok(Ok(()));
    }
    match fs::read_to_string("/proc/self/uid_map") {
        Ok(map) if map.trim().is_empty() => Ok(Err(said)),
        _ => Err(RootlessError::Map(said)),
    }
}

fn write_maps(target: &str, maps: &[Vec<Line>; 2]) -> Result<(), String> {
    for ((_, program), map) in MAPS.iter().zip(maps) {
        let arguments = map.iter().flatten().map(u32::to_string);
        let output = Command::new(program).arg(target).args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no `{program}`; the Debian package `uidmap` has it"),
            _ => format!("cannot run `{program}`: {error}"),
        })?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program} failed: {}", complaint.trim().lines().next().unwrap_or("it says nothing")));
        }
    }
    Ok(())
}

/// Returns the settings of this host that forbid user namespaces, each as `sysctl -w` takes it to allow them, the most
/// particular first. Root is held back by the last one only.
pub fn settings_against_user_namespaces(is_root: bool) -> Vec<&'static str> {
    const SETTINGS: [(&str, &str, &str); 3] = [
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=65536"),
    ];
    let counts = if is_root { &SETTINGS[2..] } else { &SETTINGS[..] };
    let forbids =
        |(file, value, _): &&(&str, &str, _)| fs::read_to_string(file).is_ok_and(|text| text.trim() == *value);
    counts.iter().filter(forbids).map(|(.., setting)| *setting).collect()
}

fn forbidden(source: io::Error) -> RootlessError {
    let found = settings_against_user_namespaces(false).first().copied();
    match found {
        Some(setting) => RootlessError::Forbidden { setting, source },
        None => RootlessError::Refused(source),
    }
}
