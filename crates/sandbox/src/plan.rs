//! What the helper shall do, as plain data: made here, without effects, on any Unix.
//!
//! Paths are C strings: that is what the kernel wants, and a NUL byte is refused while an error can still be told.
//! Descriptors travel beside the plan; the plan names them by their index.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::IDS;
use crate::{Io, Network, Process, Root, SandboxError, Source};

/// Longest plan in bytes, secrets included. The kernel takes 2 MiB of arguments and environment by default.
pub(crate) const MAX_PLAN: usize = 16 << 20;
/// Most descriptors in one `SCM_RIGHTS` message (`SCM_MAX_FD`, see `unix(7)`).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
/// Where a command is looked for if the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities of root inside, by number (`capabilities(7)`): what package managers and `sudo` need.
/// Docker's default set, but for `net_raw` and `net_bind_service`, which no build should need, and with `setpcap`.
pub(crate) const CAPABILITIES: u64 = {
    let (chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap) = (0, 1, 3, 4, 5, 6, 7, 8);
    let (sys_chroot, mknod, audit_write, setfcap) = (18, 27, 29, 31);
    1 << chown
        | 1 << dac_override
        | 1 << fowner
        | 1 << fsetid
        | 1 << kill
        | 1 << setgid
        | 1 << setuid
        | 1 << setpcap
        | 1 << sys_chroot
        | 1 << mknod
        | 1 << audit_write
        | 1 << setfcap
};

/// Capabilities that root inside has too if its users are its own. They are over nothing then, as its network belongs to the host's
/// users; but a program whose file has one that it cannot get is not executed at all, such as Debian 12's `ping`.
pub(crate) const OVER_NOTHING: u64 = {
    let (net_bind_service, net_raw) = (10, 13);
    1 << net_bind_service | 1 << net_raw
};

/// `MOUNT_ATTR_*` of `mount_setattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes(pub(crate) u64);

impl Attributes {
    pub(crate) const READ_ONLY: Self = Self(1);
    pub(crate) const NOSUID: Self = Self(2);
    pub(crate) const NODEV: Self = Self(4);
    pub(crate) const NOEXEC: Self = Self(8);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Neither set-user-id programs, nor device nodes, nor programs.
const INERT: Attributes = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC);

/// The whole of one run. Owners are ids of the host.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) ids: Option<Ids>,
    pub(crate) stdio: Stdio,
    pub(crate) root: RootPlan,
    pub(crate) own_network: bool,
    pub(crate) network: Network,
    pub(crate) hostname: Vec<u8>,
    /// In this order: `/dev` before what is in it.
    pub(crate) filesystems: Vec<Filesystem>,
    /// Names in `/dev`, bound from the host's.
    pub(crate) devices: Vec<CString>,
    /// Symbolic links in `/dev`: name, target.
    pub(crate) links: Vec<(CString, CString)>,
    /// Made unreadable, if they exist.
    pub(crate) masked: Vec<CString>,
    /// Made read-only, if they exist.
    pub(crate) read_only: Vec<CString>,
    /// In this order.
    pub(crate) binds: Vec<Bind>,
    pub(crate) cwd: CString,
    /// Owner of directories that are made on the way to a mount or to `cwd`.
    pub(crate) owner: (u32, u32),
    pub(crate) command: Command,
    /// Files of the host by which init joins its control groups, v1.
    pub(crate) cgroups: Vec<CString>,
    /// The directory of its control group, v2.
    pub(crate) cgroup: Option<CString>,
    /// Who starts the command instead of us.
    pub(crate) runtime: Option<RuntimePlan>,
}

/// Which control groups an OCI runtime sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum RuntimeGroups {
    /// None: the command stays in those that init joined.
    None,
    /// The hierarchy of the controller of devices, mounted here, and no other. In v1 it is the only one without which a runtime
    /// does not start.
    Devices(CString),
    /// The host's.
    All,
}

/// An OCI runtime to start.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RuntimePlan {
    /// What it is called.
    pub(crate) name: String,
    /// Its file on the host.
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    /// The bundle's `config.json`.
    pub(crate) config: Vec<u8>,
    /// Where the runtime mounts a filesystem of its own over ours.
    pub(crate) remounted: Vec<CString>,
    pub(crate) groups: RuntimeGroups,
}

impl Plan {
    /// Returns every tree that is mounted.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &RootPlan> {
        let bound = self.binds.iter().filter_map(|bind| match &bind.source {
            BindSource::Tree(tree, _) => Some(tree),
            BindSource::File { .. } => None,
        });
        std::iter::once(&self.root).chain(bound)
    }
}

/// Ids of the sandbox's own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ids {
    /// Index of the user namespace among the descriptors.
    pub(crate) namespace: usize,
    /// The host's id for 0.
    pub(crate) first: u32,
    /// 0 is the only id. Nobody can change users there, nor leave groups.
    pub(crate) is_single: bool,
}

/// Mirrors [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stdio {
    Output,
    Streams,
    Terminal { rows: u16, columns: u16 },
}

impl Stdio {
    fn of(io: &Io) -> Self {
        match io {
            Io::Output(_) => Self::Output,
            Io::Streams { .. } => Self::Streams,
            Io::Terminal(terminal) => Self::Terminal { rows: terminal.size.rows, columns: terminal.size.columns },
        }
    }

    /// How many descriptors come with the plan for it, before all others.
    pub(crate) fn descriptors(self) -> usize {
        match self {
            Self::Output => 1,
            Self::Streams => 3,
            Self::Terminal { .. } => 0,
        }
    }
}

/// Mirrors [`Root`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum RootPlan {
    Dir(CString),
    Mount(usize),
}

/// A kernel filesystem to mount.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Filesystem {
    pub(crate) target: CString,
    pub(crate) kind: CString,
    pub(crate) options: Vec<(CString, CString)>,
    pub(crate) attributes: Attributes,
}

/// Something bound over `target`, which is made if missing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) target: CString,
    /// Owner of what is made on the way to `target`.
    pub(crate) parents: (u32, u32),
    pub(crate) source: BindSource,
}

/// What is bound.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum BindSource {
    /// A writable tree.
    Tree(RootPlan, Attributes),
    /// A read-only file in memory.
    File { content: Content, mode: u32, owner: (u32, u32) },
}

/// What is in a file.
#[derive(PartialEq, Serialize, Deserialize)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// A copy of the host's file; nothing is mounted if the host has none.
    Host(CString),
    /// The `/etc/resolv.conf` of a private network, made from the host's.
    Resolver,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // It may be a secret.
            Content::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Content::Host(path) => write!(f, "Host({path:?})"),
            Content::Resolver => f.write_str("Resolver"),
        }
    }
}

/// The command, ready for `execve(2)`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Command {
    /// What to try to execute, in order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// As inside.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bounding set, as a bit mask; effective and permitted too if `uid` is 0.
    pub(crate) capabilities: u64,
    pub(crate) open_files: u64,
    /// `struct sock_filter[]`.
    pub(crate) filter: Vec<u8>,
}

/// Makes the plan for running `process` in `root` under `filter`, and the descriptors that go with it: first
/// those of `io`, then those that the plan names, then those that are only held.
pub(crate) fn plan<'a>(
    root: &'a Root,
    process: &'a Process,
    io: &'a Io,
    filter: &[u8],
) -> Result<(Plan, Vec<BorrowedFd<'a>>), SandboxError> {
    let mut descriptors = io.descriptors();
    let mut add = |fd: BorrowedFd<'a>| {
        descriptors.push(fd);
        descriptors.len() - 1
    };
    let root = match root {
        Root::Dir(path) => RootPlan::Dir(host_path(path)?),
        Root::Mount(fd) => RootPlan::Mount(add(fd.as_fd())),
    };
    let user = (process.user.uid, process.user.gid);
    let ids = process.user_namespace.mapped().map(|ids| Ids {
        namespace: add(ids.as_fd()),
        first: ids.first(),
        is_single: ids.count() == 1,
    });
    if ids.is_some() && user.0.max(user.1) >= IDS {
        return Err(SandboxError::Invalid {
            what: "a user or group id of 65536 or more, which needs the host's user namespace (`--userns host`)",
        });
    }
    let count = process.user_namespace.mapped().map_or(u32::MAX, |ids| ids.count());
    if user.0.max(user.1) >= count {
        return Err(SandboxError::Invalid {
            what: "a user other than root, and this user has no ids for one; see /etc/subuid and `kiln doctor`",
        });
    }
    if count == 1 && matches!(process.network, Network::Private { .. } | Network::Proxy(_)) {
        return Err(SandboxError::Invalid {
            what: "a network of its own, which a user of its own keeps, and there are no ids for one; see /etc/subuid",
        });
    }
    if ids.is_none() && process.allow_namespaces {
        return Err(SandboxError::Invalid { what: "namespaces are allowed, but it has no users of its own" });
    }
    let first = ids.map_or(0, |ids| ids.first);
    let outside = |(uid, gid): (u32, u32)| (first + uid, first + gid);
    let owner = outside(user);
    let mut binds = network_files(&process.network, &process.hostname, outside((0, 0)))?;
    for mount in &process.mounts {
        let attributes = Attributes::NODEV.and(Attributes::NOSUID);
        let source = match &mount.source {
            Source::Tree(fd) => BindSource::Tree(RootPlan::Mount(add(fd.as_fd())), attributes),
            Source::Dir(path) => BindSource::Tree(RootPlan::Dir(host_path(path)?), attributes),
            Source::Secret(bytes) => {
                BindSource::File { content: Content::Bytes(bytes.expose().to_vec()), mode: 0o400, owner }
            }
        };
        binds.push(Bind { target: inner_path(&mount.target)?, parents: owner, source });
    }
    descriptors.extend(process.held.iter().map(|fd| fd.as_fd()));
    // Nobody may have the range while a process of this run lives.
    descriptors.extend(process.user_namespace.mapped().and_then(|ids| ids.lock()));
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(SandboxError::Invalid { what: "more than 250 mounts and held descriptors" });
    }
    let plan = Plan {
        ids,
        stdio: Stdio::of(io),
        root,
        own_network: process.network != Network::Host,
        network: process.network.clone(),
        hostname: process.hostname.clone().into_bytes(),
        filesystems: filesystems((count > 5).then(|| first + 5)),
        devices: DEVICES.iter().map(|name| literal(name)).collect(),
        links: LINKS.iter().map(|(name, target)| (literal(name), literal(target))).collect(),
        masked: MASKED.iter().map(|path| literal(path)).collect(),
        read_only: READ_ONLY.iter().map(|path| literal(path)).collect(),
        binds,
        cwd: inner_path(&process.cwd)?,
        owner,
        command: command(process, filter)?,
        cgroups: Vec::new(),
        runtime: None,
        cgroup: None,
    };
    Ok((plan, descriptors))
}

/// `/dev/shm` has Docker's default size; `/dev` holds nothing but what a step leaves there.
fn filesystems(tty: Option<u32>) -> Vec<Filesystem> {
    // Group 5 is `tty` on every common distribution; it owns new terminals, where there is such a group.
    let tty = tty.map(|tty| tty.to_string());
    let mut terminals = vec![("ptmxmode", "0666"), ("mode", "0620")];
    terminals.extend(tty.as_ref().map(|tty| ("gid", tty.as_str())));
    let filesystem = |target: &str, kind: &str, options: &[(&str, &str)], attributes| Filesystem {
        target: literal(target),
        kind: literal(kind),
        options: options.iter().map(|(key, value)| (literal(key), literal(value))).collect(),
        attributes,
    };
    vec![
        filesystem("/proc", "proc", &[], INERT),
        filesystem("/sys", "sysfs", &[], INERT.and(Attributes::READ_ONLY)),
        filesystem("/dev", "tmpfs", &[("mode", "0755"), ("size", "64m")], INERT),
        filesystem("/dev/pts", "devpts", &terminals, Attributes::NOSUID.and(Attributes::NOEXEC)),
        filesystem("/dev/shm", "tmpfs", &[("mode", "1777"), ("size", "64m")], INERT),
        filesystem("/dev/mqueue", "mqueue", &[], INERT),
    ]
}

/// `tty` is the caller's own terminal: none, so opening it fails with `ENXIO` as it should.
const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Files and directories of `/proc` and `/sys` that tell about the host, or let root act on it, without asking for a
/// capability that root inside lacks. Container runtimes hide the same.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    // When which interrupt fires on which processor: a side channel on other builds' input.
    "/proc/interrupts",
    // Physical memory.
    "/proc/kcore",
    // Every key that root may see.
    "/proc/keys",
    // Physical pages and who maps them; readable by uid 0 without a capability.
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    // CVE-2017-16539: removing a device by a write.
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Settings of the whole kernel. They are files that uid 0 may write, capability or not.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/fs",
    "/proc/irq",
    "/proc/mtrr",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The files that the network needs. They are bound over the image's own, which stay as they are underneath.
fn network_files(network: &Network, hostname: &str, root: (u32, u32)) -> Result<Vec<Bind>, SandboxError> {
    let plain = !hostname.is_empty()
        && hostname.len() <= 64
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !plain {
        return Err(SandboxError::Invalid { what: "the host name is not 1 to 64 letters, digits, `-`, `_` and `.`" });
    }
    let hosts = format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n");
    let file = |target: &str, content| Bind {
        target: literal(target),
        parents: root,
        source: BindSource::File { content, mode: 0o644, owner: root },
    };
    let mut files = vec![file("/etc/hosts", Content::Bytes(hosts.into_bytes()))];
    match network {
        Network::Host => files.push(file("/etc/resolv.conf", Content::Host(literal("/etc/resolv.conf")))),
        Network::Private { .. } => files.push(file("/etc/resolv.conf", Content::Resolver)),
        // Names are the proxy's to look up.
        Network::None | Network::Proxy(_) => {}
    }
    Ok(files)
}

fn command(process: &Process, filter: &[u8]) -> Result<Command, SandboxError> {
    let argv = process.argv.iter().map(|word| c_string(word)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = argv.first() else { return Err(SandboxError::Invalid { what: "there is no command" }) };
    let mut env = Vec::with_capacity(process.env.len());
    for (name, value) in &process.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(SandboxError::Invalid { what: "an environment variable's name is empty or contains `=`" });
        }
        env.push(c_string(OsStr::from_bytes(&[name.as_bytes(), b"=", value.as_bytes()].concat()))?);
    }
    // The last of two settings counts, as in a shell.
    let path = process.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes());
    Ok(Command {
        candidates: candidates(first.as_bytes(), path.unwrap_or(DEFAULT_PATH)),
        argv,
        env,
        uid: process.user.uid,
        gid: process.user.gid,
        capabilities: match process.user_namespace.mapped() {
            Some(_) => CAPABILITIES | OVER_NOTHING,
            None => CAPABILITIES,
        },
        open_files: process.limits.open_files,
        filter: filter.to_vec(),
    })
}

/// Returns where `command` may be, as `execvp(3)` looks: itself if it has a slash, otherwise in each entry of
/// `path`, where an empty entry is the working directory.
fn candidates(command: &[u8], path: &[u8]) -> Vec<CString> {
    let join = |dir: &[u8]| match dir {
        b"" => [b"./", command].concat(),
        dir => [dir, b"/", command].concat(),
    };
    let paths = match command {
        b"" => Vec::new(),
        _ if command.contains(&b'/') => vec![command.to_vec()],
        _ => path.split(|byte| *byte == b':').map(join).collect(),
    };
    paths.into_iter().filter_map(|path| CString::new(path).ok()).collect()
}

fn literal(text: &str) -> CString {
    CString::new(text).expect("a literal without NUL")
}

fn c_string(text: &OsStr) -> Result<CString, SandboxError> {
    CString::new(text.as_bytes()).map_err(|_| SandboxError::Invalid { what: "a word or path contains a NUL byte" })
}

/// The helper's working directory is not the caller's to rely on.
pub(crate) fn host_path(path: &Path) -> Result<CString, SandboxError> {
    let path: PathBuf =
        std::path::absolute(path).map_err(|_| SandboxError::Invalid { what: "a path of the host is empty" })?;
    c_string(path.as_os_str())
}

/// Returns a C string as a path.
pub(crate) fn to_path(path: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(path.to_bytes()))
}

fn inner_path(path: &Path) -> Result<CString, SandboxError> {
    if !path.is_absolute() {
        return Err(SandboxError::Invalid { what: "a path inside the sandbox is not absolute" });
    }
    c_string(path.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Mount, Seccomp, SecretBytes, User, UserNamespace};

    fn process() -> Process {
        Process {
            argv: vec!["make".into(), "test".into()],
            env: vec![("PATH".into(), "/opt/bin::/bin".into())],
            cwd: "/src".into(),
            user: User { uid: 1000, gid: 1000 },
            hostname: "builder".to_owned(),
            network: Network::None,
            mounts: Vec::new(),
            limits: Limits::default(),
            user_namespace: UserNamespace::Host,
            allow_namespaces: false,
            seccomp: Seccomp::Default,
            fast_sync: false,
            held: Vec::new(),
        }
    }

    fn planned(process: &Process) -> Result<Plan, SandboxError> {
        let root = Root::Dir("/root-of-it".into());
        let (_, writer) = std::io::pipe().unwrap();
        plan(&root, process, &writer.into(), &[]).map(|(plan, _)| plan)
    }

    fn invalid(change: impl FnOnce(&mut Process)) -> String {
        let mut process = process();
        change(&mut process);
        planned(&process).unwrap_err().to_string()
    }

    #[test]
    fn a_command_is_looked_for_in_each_entry_of_path() {
        let command = planned(&process()).unwrap().command;
        assert_eq!(command.candidates, [c"/opt/bin/make".to_owned(), c"./make".to_owned(), c"/bin/make".to_owned()]);
        assert_eq!(candidates(b"./a", b"/bin"), [c"./a".to_owned()]);
        assert!(candidates(b"", b"/bin").is_empty());
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let mut process = process();
        process.mounts.push(Mount { target: "/s".into(), source: Source::Secret(SecretBytes::new(*b"hunter2")) });
        let plan = planned(&process).unwrap();
        let bytes = postcard::to_stdvec(&plan).unwrap();
        assert_eq!(postcard::from_bytes::<Plan>(&bytes).unwrap(), plan);
    }

    #[test]
    fn a_secret_is_for_its_user_only_and_is_not_printed() {
        let mut process = process();
        process.mounts.push(Mount { target: "/s".into(), source: Source::Secret(SecretBytes::new(*b"hunter2")) });
        let plan = planned(&process).unwrap();
        let secret = &plan.binds.last().unwrap().source;
        assert!(matches!(secret, BindSource::File { mode: 0o400, owner: (1000, 1000), .. }), "{secret:?}");
        assert!(!format!("{plan:?}").contains("hunter2"));
    }

    #[test]
    fn only_the_host_network_brings_the_hosts_resolver() {
        let mut process = process();
        let resolver = |plan: &Plan| plan.binds.iter().any(|bind| bind.target.as_bytes() == b"/etc/resolv.conf");
        let without = planned(&process).unwrap();
        assert!(without.own_network && !resolver(&without));
        process.network = Network::Host;
        let with = planned(&process).unwrap();
        assert!(!with.own_network && resolver(&with));
    }

    #[test]
    fn everything_but_the_root_and_terminals_is_nodev() {
        let plan = planned(&process()).unwrap();
        for filesystem in plan.filesystems.iter().filter(|filesystem| filesystem.kind.as_bytes() != b"devpts") {
            assert_ne!(filesystem.attributes.0 & Attributes::NODEV.0, 0, "{filesystem:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(invalid(|process| process.argv.clear()).contains("no command"));
        assert!(invalid(|process| process.cwd = "src".into()).contains("not absolute"));
        assert!(invalid(|process| process.argv.push("a\0b".into())).contains("NUL"));
        assert!(invalid(|process| process.env.push(("A=B".into(), "c".into()))).contains("contains `=`"));
        assert!(invalid(|process| process.allow_namespaces = true).contains("no users of its own"));
        assert!(invalid(|process| process.hostname = "a\nb".to_owned()).contains("host name"));
    }
}
