//! The bundle's `config.json` (the OCI runtime specification, 1.0). Pure.
//!
//! It says the same as the plan. What the plan's mounts already do, it leaves out: the tree is complete but for what belongs to
//! namespaces that the runtime makes.

use std::ffi::{CStr, CString};

use serde_json::{Value, json};

use super::{LISTENER, PLACE, Runtime};
use crate::SandboxError;
use crate::ids::IDS;
use crate::plan::Plan;

/// What a capability is called, by its number (`capabilities(7)`).
const CAPABILITIES: &[(u32, &str)] = &[
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (10, "CAP_NET_BIND_SERVICE"),
    (13, "CAP_NET_RAW"),
    (18, "CAP_SYS_CHROOT"),
    (27, "CAP_MKNOD"),
    (29, "CAP_AUDIT_WRITE"),
    (31, "CAP_SETFCAP"),
];

/// Character devices: major, minor; `None` is any. Those in `/dev`, and terminals.
const DEVICES: &[(u32, Option<u32>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Returns what the runtime mounts itself: the processes and message queues of namespaces that it makes.
pub(super) fn remounted() -> Vec<CString> {
    vec![c"/proc".to_owned(), c"/dev/mqueue".to_owned()]
}

/// Returns the configuration for a plan. `group` is where the runtime makes control groups, below each hierarchy's root.
pub(super) fn config(
    runtime: Runtime,
    plan: &Plan,
    group: Option<&str>,
    seccomp: Option<Value>,
) -> Result<Value, SandboxError> {
    // In a user namespace crun 1.8 binds a directory without what is mounted in it, and takes nodes that are there.
    let binds_dev = runtime != Runtime::Crun || plan.ids.is_none();
    let command = &plan.command;
    let listed: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(number, _)| command.capabilities & (1 << number) != 0)
        .map(|(_, name)| *name)
        .collect();
    let own = if command.uid == 0 { listed.clone() } else { Vec::new() };
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"];
    // The network is init's, and so is its loopback interface.
    let own_users = plan.ids.map(|_| "user");
    let namespaces: Vec<_> = namespaces.into_iter().chain(own_users).map(|kind| json!({ "type": kind })).collect();
    let rlimit = |kind: &str, value: u64| json!({ "type": kind, "soft": value, "hard": value });
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": words(&plan.masked)?,
        "readonlyPaths": words(&plan.read_only)?,
        "resources": { "devices": devices() },
    });
    if let Some(mut seccomp) = seccomp {
        if plan.ids.is_some() {
            seccomp["listenerPath"] = LISTENER.into();
        }
        linux["seccomp"] = seccomp;
    }
    if let Some(group) = group {
        linux["cgroupsPath"] = group.into();
    }
    if let Some(ids) = plan.ids {
        // The runtime makes a namespace of its own with the ids of ours, for which the trees are mounted.
        for map in ["uidMappings", "gidMappings"] {
            linux[map] = json!([{ "containerID": 0, "hostID": ids.first, "size": IDS }]);
        }
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": format!("{PLACE}/root") },
        "hostname": String::from_utf8_lossy(&plan.hostname),
        "process": {
            "args": words(&command.argv)?,
            "env": words(&command.env)?,
            "cwd": text(&plan.cwd)?,
            "user": { "uid": command.uid, "gid": command.gid, "umask": 0o022 },
            // Inheritable and ambient ones: none, see CVE-2022-24769.
            "capabilities": {
                "bounding": listed,
                "effective": own,
                "permitted": own,
                "inheritable": [],
                "ambient": [],
            },
            // sudo works.
            "noNewPrivileges": false,
            "rlimits": [rlimit("RLIMIT_NOFILE", command.open_files), rlimit("RLIMIT_CORE", 1)],
        },
        "mounts": mounts(binds_dev),
        "linux": linux,
    }))
}

/// Returns what is mounted over the tree.
fn mounts(binds_dev: bool) -> Vec<Value> {
    let options = ["nosuid", "nodev", "noexec"];
    // As it is. That it is bound once more tells the runtime not to make device nodes of its own.
    let dev = json!({
        "destination": "/dev",
        "type": "bind",
        "source": format!("{PLACE}/root/dev"),
        "options": ["rbind", "nosuid", "nodev", "noexec"],
    });
    let proc = json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": options });
    let mqueue = json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": options });
    [Some(proc), binds_dev.then_some(dev), Some(mqueue)].into_iter().flatten().collect()
}

/// Returns the hooks that make crun's root what init made it. crun binds the root once more and clears its `nodev`; this sets it again,
/// before the command starts, or the run fails.
pub(super) fn hooks() -> Value {
    // A hook gets the container's state to read. Who ends before that fails the run.
    let script =
        format!("while read -r _; do :; done; exec /bin/mount -o remount,bind,nodev {PLACE}/root >/dev/null 2>&1");
    json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] })
}

/// Returns which device nodes may be opened; any may be made, for what unpacks a root filesystem. No mount lets one be opened
/// but those of `/dev`, so this is a second lock on that door.
fn devices() -> Vec<Value> {
    let opened = DEVICES.iter().map(|(major, minor)| match minor {
        Some(minor) => json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }),
        None => json!({ "allow": true, "type": "c", "major": major, "access": "rwm" }),
    });
    let made = ["c", "b"].map(|kind| json!({ "allow": true, "type": kind, "access": "m" }));
    [json!({ "allow": false, "access": "rwm" })].into_iter().chain(opened).chain(made).collect()
}

fn words(words: &[CString]) -> Result<Vec<&str>, SandboxError> {
    words.iter().map(|word| text(word)).collect()
}

fn text(word: &CStr) -> Result<&str, SandboxError> {
    word.to_str().map_err(|_| SandboxError::Invalid {
        what: "an OCI runtime takes arguments, variables and paths in UTF-8 only; the native sandbox takes any",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CAPABILITIES as NATIVE, OVER_NOTHING, plan};
    use crate::{Limits, Mount, Network, Process, Root, SecretBytes, Source, User, UserNamespace};

    fn configured(process: &Process) -> Result<Value, SandboxError> {
        let (_, writer) = std::io::pipe().unwrap();
        let (plan, _) = plan(&Root::Dir("/root-of-it".into()), process, &writer.into(), &[])?;
        config(Runtime::Runc, &plan, Some("/kiln/1-1"), Some(json!("as `filter::oci` says")))
    }

    fn process() -> Process {
        Process {
            argv: vec!["make".into(), "test".into()],
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/src".into(),
            user: User { uid: 0, gid: 0 },
            hostname: "builder".to_owned(),
            network: Network::None,
            mounts: vec![Mount { target: "/s".into(), source: Source::Secret(SecretBytes::new(*b"hunter2")) }],
            limits: Limits::default(),
            user_namespace: UserNamespace::Host,
            allow_namespaces: false,
            seccomp: crate::Seccomp::Default,
            fast_sync: false,
            held: Vec::new(),
        }
    }

    #[test]
    fn every_capability_has_its_name() {
        let named: u64 = CAPABILITIES.iter().map(|(number, _)| 1 << number).sum();
        assert_eq!(named, NATIVE | OVER_NOTHING);
    }

    #[test]
    fn the_whole_of_it() {
        let config = configured(&process()).unwrap();
        assert!(!config.to_string().contains("hunter2") && !config.to_string().contains("/s\""));
        insta::assert_snapshot!(format!("{config:#}"));
    }

    #[test]
    fn a_user_has_no_capabilities() {
        let mut process = process();
        process.user = User { uid: 1000, gid: 1000 };
        let config = configured(&process).unwrap();
        let capabilities = &config["process"]["capabilities"];
        assert_eq!(capabilities["bounding"].as_array().unwrap().len(), NATIVE.count_ones() as usize);
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(capabilities[set], json!([]), "{set}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut process = process();
        process.argv.push(std::ffi::OsString::from_vec(vec![0xff]));
        assert!(configured(&process).unwrap_err().to_string().contains("UTF-8"));
    }
}
