//! Which control groups a host has, read from what its kernel says. Pure.
//!
//! * v2, *unified*: one hierarchy for all controllers.
//! * v1: a hierarchy for each controller, or for a few together.
//! * *hybrid*: v1, and a v2 hierarchy with the controllers that no other has; often none.
//!
//! In a container, the mounts show the container's own part, commonly read-only.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::OURS;

/// What of a process is counted and limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Processes,
    Cpu,
    /// Part of `Cpu` in v2, where it needs no controller.
    CpuAccounting,
    Io,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

impl Controller {
    /// Returns the kernel's name for it.
    pub(super) fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, _) => "memory",
            (Self::Processes, _) => "pids",
            (Self::Cpu, _) | (Self::CpuAccounting, Version::Two) => "cpu",
            (Self::CpuAccounting, Version::One) => "cpuacct",
            (Self::Io, Version::One) => "blkio",
            (Self::Io, Version::Two) => "io",
        }
    }

    fn all(version: Version) -> &'static [Self] {
        match version {
            Version::One => &[Self::Memory, Self::Processes, Self::Cpu, Self::CpuAccounting, Self::Io],
            Version::Two => &[Self::Memory, Self::Processes, Self::Cpu, Self::Io],
        }
    }
}

/// One tree of control groups.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// The group below which ours are: its root; or, where it is delegated, the group in which we are.
    pub(super) mount: PathBuf,
    pub(super) is_delegated: bool,
    /// Those of its controllers that we know.
    pub(super) controllers: Vec<Controller>,
}

/// Returns what of `hierarchies` is there for a user without root's rights: the group that this process is in, of v2, if
/// it has been handed over. `own`: `/proc/self/cgroup`.
pub(super) fn delegated(
    hierarchies: Vec<Hierarchy>,
    own: &str,
    is_ours: impl Fn(&Path) -> bool,
    available: impl Fn(&Path) -> Option<String>,
) -> Vec<Hierarchy> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    // Whoever has made room, or was started by somebody who has, is in one of the groups below.
    let path = match Path::new(path) {
        path if path.parent().is_some_and(|ours| ours.ends_with(OURS)) => path.ancestors().nth(2).unwrap_or(path),
        path => path,
    };
    let v2 = hierarchies.into_iter().filter(|hierarchy| hierarchy.version == Version::Two);
    let own = v2.map(|Hierarchy { version, mount, controllers, .. }| {
        let mount = mount.join(path);
        let names = available(&mount.join("cgroup.controllers")).unwrap_or_default();
        let is_there = |controller: &Controller| names.split_whitespace().any(|name| name == controller.name(version));
        let controllers = controllers.into_iter().filter(is_there).collect();
        Hierarchy { version, mount, is_delegated: true, controllers }
    });
    own.filter(|hierarchy| !hierarchy.controllers.is_empty() && is_ours(&hierarchy.mount)).collect()
}

/// Returns the hierarchies in a `/proc/PID/mountinfo`. `available`: what is in a file of a v2 hierarchy's root.
pub(super) fn hierarchies(mountinfo: &str, available: impl Fn(&Path) -> Option<String>) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut after) = (before.split(' ').nth(4), after.split(' ')) else { continue };
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let mount = unescaped(mount);
        let (version, names, separator) = match kind {
            "cgroup" => (Version::One, options.to_owned(), ','),
            "cgroup2" => (Version::Two, available(&mount.join("cgroup.controllers")).unwrap_or_default(), ' '),
            _ => continue,
        };
        // What is mounted over something hides it.
        hierarchies.retain(|hidden| hidden.mount != mount);
        let is_named = |controller: &Controller| {
            names.trim_end().split(separator).any(|name| name == controller.name(version))
                && !hierarchies.iter().any(|other| other.controllers.contains(controller))
        };
        // Only named ones: v1 without, as systemd's own, and what is mounted a second time, are of no use.
        let controllers: Vec<_> = Controller::all(version).iter().copied().filter(is_named).collect();
        if !controllers.is_empty() {
            hierarchies.push(Hierarchy { version, mount, is_delegated: false, controllers });
        }
    }
    hierarchies
}

/// Returns a path of mountinfo, where blanks and backslashes are three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                at += 4;
            }
            None => {
                path.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mountinfo: &str, controllers: &str) -> Vec<String> {
        let available = |path: &Path| path.ends_with("cgroup.controllers").then(|| controllers.to_owned());
        let shown = |found: Hierarchy| format!("{:?} {} {:?}", found.version, found.mount.display(), found.controllers);
        hierarchies(mountinfo, available).into_iter().map(shown).collect()
    }

    #[test]
    fn debian_12_is_unified() {
        let mountinfo = "\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
24 28 0:22 / /dev/pts rw,nosuid,noexec,relatime shared:3 - devpts devpts rw,gid=5,mode=620,ptmxmode=000
30 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 22 0:27 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw";
        let controllers = "cpuset cpu io memory hugetlb pids rdma misc\n";
        assert_eq!(found(mountinfo, controllers), ["Two /sys/fs/cgroup [Memory, Processes, Cpu, Io]"]);
    }

    #[test]
    fn a_hybrid_host_has_each_controller_once() {
        let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let expected = [
            "One /sys/fs/cgroup/cpu [Cpu]",
            "One /sys/fs/cgroup/cpuacct [CpuAccounting]",
            "One /sys/fs/cgroup/memory [Memory]",
            "One /sys/fs/cgroup/blkio [Io]",
        ];
        assert_eq!(found(mountinfo, "hugetlb\n"), expected);
        let expected: Vec<_> = expected.into_iter().chain(["Two /sys/fs/cgroup/unified [Processes]"]).collect();
        assert_eq!(found(mountinfo, "pids hugetlb\n"), expected);
    }

    #[test]
    fn controllers_of_v1_share_a_hierarchy() {
        let mountinfo = "\
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,net_cls,net_prio
28 25 0:25 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,pids";
        let expected = ["One /sys/fs/cgroup/cpu,cpuacct [Cpu, CpuAccounting]", "One /sys/fs/cgroup/pids [Processes]"];
        assert_eq!(found(mountinfo, ""), expected);
    }

    #[test]
    fn a_container_sees_its_own_part() {
        let mountinfo = "\
1390 1389 0:101 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
1391 1390 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot";
        assert_eq!(found(mountinfo, "cpu memory pids\n"), ["Two /sys/fs/cgroup [Memory, Processes, Cpu]"]);
        let mountinfo = "\
900 899 0:32 /docker/0af3 /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory";
        assert_eq!(found(mountinfo, ""), ["One /sys/fs/cgroup/memory [Memory]"]);
        assert!(found("1390 1389 0:101 / /sys ro - sysfs sysfs ro", "").is_empty());
    }

    #[test]
    fn a_user_has_the_group_that_is_handed_over_and_what_it_has() {
        let mountinfo =
            "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n33 23 0:30 / /v1 rw - cgroup cgroup rw,blkio";
        let own = "5:blkio:/\n0::/user.slice/run-7.scope\n";
        let found = |own: &str, is_ours: bool| {
            let available = |path: &Path| {
                let names =
                    if path.starts_with("/sys/fs/cgroup/user.slice") { "memory pids" } else { "cpu memory pids" };
                Some(names.to_owned())
            };
            let found = delegated(hierarchies(mountinfo, available), own, |_| is_ours, available);
            let shown = |found: Hierarchy| (found.mount.display().to_string(), found.controllers);
            found.into_iter().map(shown).collect::<Vec<_>>()
        };
        let controllers = vec![Controller::Memory, Controller::Processes];
        let ours = [("/sys/fs/cgroup/user.slice/run-7.scope".to_owned(), controllers)];
        assert_eq!(found(own, true), ours);
        assert_eq!(found("0::/user.slice/run-7.scope/kiln/12-0\n", true), ours);
        assert_eq!(found(own, false), []);
        assert_eq!(found("5:blkio:/\n", true), []);
    }

    #[test]
    fn what_is_mounted_twice_or_over_something_counts_once() {
        let mountinfo = "\
30 22 0:26 / /a\\040b rw - cgroup cgroup rw,memory
31 22 0:26 / /c rw - cgroup cgroup rw,memory
32 22 0:27 / /d rw - cgroup cgroup rw,pids
33 22 0:28 / /d rw - cgroup2 cgroup2 rw
nonsense";
        assert_eq!(found(mountinfo, "pids"), ["One /a b [Memory]", "Two /d [Processes]"]);
    }
}
