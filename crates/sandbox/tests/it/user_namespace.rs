//! Users of the sandbox's own: who they are outside, and what files of theirs look like.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_sandbox::{Io, Process, Root, User, UserNamespace};
use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

use crate::ends::children_of;
use crate::harness::{BUILDER, HELPER, Jail, PROBE, RUNTIME, mounted_as, read_line, shell};
use crate::needs_sandbox;

const MAP: &str = "read inside outside count < /proc/self/uid_map; echo $inside $outside $count";

fn first_of(ns: &UserNamespace) -> u32 {
    ns.mapped().unwrap().first()
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    needs_sandbox!();
    let jail = Jail::new();
    let process = shell("echo ready; while :; do sleep 1; done");
    let first = first_of(&process.user_namespace);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let cancel = CancellationToken::new();
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, Io::Output(writer.into()), &cancel);
    let looking = tokio::task::spawn_blocking(move || {
        assert_eq!(read_line(&mut reader), "ready");
        // The test's child is the helper, which has one child: init.
        let helpers = children_of(std::process::id());
        let inits: Vec<u32> = helpers.into_iter().flat_map(children_of).collect();
        assert_eq!(inits.len(), 1);
        // A runtime may still have children of its own.
        let is_command =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("ready"));
        let inside = inits.iter().copied().chain(children_of(inits[0]).into_iter().filter(is_command));
        inside.map(|pid| (status(pid), fs::read_link(format!("/proc/{pid}/ns/user")).unwrap())).collect::<Vec<_>>()
    });
    let look = async {
        let seen = looking.await.unwrap();
        cancel.cancel();
        seen
    };
    let (_, seen) = tokio::join!(run, look);
    assert_eq!(seen.len(), 2);
    let all_four = format!("{first} {first} {first} {first}");
    let ours = fs::read_link("/proc/self/ns/user").unwrap();
    // With a runtime, init stays outside, where nothing of the sandbox sees it.
    for (status, namespace) in seen.into_iter().skip(usize::from(RUNTIME.is_some())) {
        assert_eq!(status, (all_four.clone(), all_four.clone(), String::new()));
        assert_ne!(namespace, ours);
    }
}

/// User ids, group ids and groups.
fn status(pid: u32) -> (String, String, String) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    (field("Uid:"), field("Gid:"), field("Groups:"))
}

#[tokio::test]
async fn its_namespaces_and_mounts_are_not_its_to_change() {
    needs_sandbox!();
    let jail = Jail::new();
    // They belong to the host's user namespace: the one that owns it is none that it could see.
    let output = jail
        .sh("readlink /proc/self/ns/user; id -u; touch /etc/hosts /proc/sys/kernel/hostname; ls -n /proc/version")
        .await;
    let lines: Vec<&str> = output.lines().collect();
    assert_ne!(lines[0], fs::read_link("/proc/self/ns/user").unwrap().to_str().unwrap());
    assert_eq!(lines[1], "0");
    assert!(output.matches("Read-only file system").count() == 2, "{output}");
    // What is the host's root's is nobody's.
    assert!(lines[4].contains(" 65534 "), "{output}");
}

#[tokio::test]
async fn two_sandboxes_have_different_users() {
    needs_sandbox!();
    let jail = Jail::new();
    let (one, two) = (shell(MAP), shell(MAP));
    let (one, two) = (jail.ok(&one).await, jail.ok(&two).await);
    assert_ne!(one, two);
    for map in [one, two] {
        assert!(map.starts_with("0 18") && map.ends_with(" 65536\n"), "{map}");
    }
}

#[tokio::test]
async fn a_range_is_used_again_and_has_one_owner_even_after_the_caller_was_killed() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut caller = Command::new(PROBE);
    caller.args(["run", jail.root().to_str().unwrap(), HELPER, "own", &format!("{MAP}; while :; do sleep 1; done")]);
    let mut caller = caller.stdout(Stdio::piped()).spawn().unwrap();
    let map = read_line(caller.stdout.as_mut().unwrap());
    let first: u32 = map.split(' ').nth(1).unwrap().parse().unwrap();
    let lock = File::open(format!("/run/kiln/ids/{}", (first - 0x7000_0000) / 65536)).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockShared).unwrap_err();
    caller.kill().unwrap();
    caller.wait().unwrap();
    // Comes back when the last process of the sandbox is gone, or never.
    flock(&lock, FlockOperation::LockShared).unwrap();
}

#[tokio::test]
async fn files_belong_on_the_disk_to_whom_they_belong_inside() {
    needs_sandbox!();
    let script =
        "touch /root-made; touch /other; chown 1000:65535 /other; stat -c '%u:%g' / /etc/theirs /root-made /other
                  echo changed >> /etc/theirs; rm /etc/passwd; mv /etc/group /moved";
    for is_overlay in [false, true] {
        let (jail, process) = (Jail::new(), shell(script));
        fs::write(jail.root().join("etc/theirs"), "").unwrap();
        fs::write(jail.root().join("etc/group"), "").unwrap();
        chown(jail.root().join("etc/theirs"), Some(1000), Some(5)).unwrap();
        let (root, on_disk) = match is_overlay {
            false => (Root::Dir(jail.root()), jail.root()),
            true => overlay(&jail, &process),
        };
        let (status, output) = jail.run_in(root, &process).await.unwrap();
        assert!(status.success(), "{output}");
        assert_eq!(output, "0:0\n1000:5\n0:0\n1000:65535\n");
        let owner = |path: &str| fs::metadata(on_disk.join(path)).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!((owner("root-made"), owner("other"), owner("etc/theirs")), ((0, 0), (1000, 65535), (1000, 5)));
        assert_eq!(owner("moved"), (0, 0));
    }
}

/// Returns an overlay on the jail's root for `process`, and its writable layer.
fn overlay(jail: &Jail, process: &Process) -> (Root, PathBuf) {
    let (upper, work) = (jail.dir.path().join("upper"), jail.dir.path().join("work"));
    for dir in [&upper, &work] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let tree = kiln_store::Root::Overlay { lower: vec![jail.root()], writable: Some((upper.clone(), work)) };
    (Root::Mount(mounted_as(&tree, process)), upper)
}

#[tokio::test]
async fn a_file_capability_set_inside_works_inside_and_is_an_ordinary_one_on_the_disk() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    // CAP_CHOWN, effective.
    let set = shell("mkdir /can; cp /bin/busybox /can/; /probe capability /can/busybox 1");
    let using = || {
        let mut process = shell(
            "touch /tmp/mine; /can/busybox chown 5:6 /tmp/mine; stat -c %u:%g /tmp/mine; chown 7 /tmp/mine 2>&1 | wc -l",
        );
        process.user = BUILDER;
        process
    };
    assert_eq!(jail.ok(&set).await, "ok\n");
    assert_eq!(jail.ok(&using()).await, "5:6\n1\n");
    let capability = |path: &Path| {
        let mut bytes = [0; 64];
        let length = rustix::fs::getxattr(path, "security.capability", &mut bytes).unwrap();
        bytes[..length].to_vec()
    };
    // Of version 2: without a user namespace of its own.
    let plain = [0x0200_0001_u32, 1, 0, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(capability(&jail.root().join("can/busybox")), plain);
    fs::remove_file(jail.root().join("tmp/mine")).unwrap();
    // By a lower layer, and again into an upper one.
    let process = shell(
        "set -e; mkdir /too; cp /bin/busybox /too; /probe capability /too/busybox 1; su builder -c 'touch /tmp/x; /can/busybox chown 5 /tmp/x; stat -c %u /tmp/x'",
    );
    let (root, upper) = overlay(&jail, &process);
    let (status, output) = jail.run_in(root, &process).await.unwrap();
    assert!(status.success(), "{output}");
    assert_eq!(output, "ok\n5\n");
    assert_eq!(capability(&upper.join("too/busybox")), plain);
}

#[tokio::test]
async fn a_program_with_capabilities_over_its_own_network_is_executed() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    // Of which its namespace has no use: as of Debian 12's `ping`, `cap_net_raw`.
    assert_eq!(jail.sh("cp /probe /ping; /probe capability /ping 0x2000; /ping ping 127.0.0.1").await, "ok\ngot 0\n");
}

#[tokio::test]
async fn ids_that_a_namespace_does_not_have_are_nobodys() {
    needs_sandbox!();
    let jail = Jail::new();
    fs::write(jail.root().join("far"), "text\n").unwrap();
    chown(jail.root().join("far"), Some(65_536), Some(0)).unwrap();
    let output =
        jail.sh("exec 2>&1; stat -c %u /far; cat /far; echo x >> /far; chown 0 /far; chown 65536 /tmp; true").await;
    assert!(output.starts_with("65534\ntext\n"), "{output}");
    assert_eq!(output.lines().count(), 5, "{output}");
    assert_eq!(fs::read_to_string(jail.root().join("far")).unwrap(), "text\n");
    let mut process = shell("true");
    process.user = User { uid: 65_536, gid: 0 };
    let error = jail.run(&process).await.unwrap_err().to_string();
    assert!(error.contains("65536") && error.contains("--userns host"), "{error}");
}

#[tokio::test]
async fn where_namespaces_are_allowed_there_is_room_below_and_none_above() {
    needs_sandbox!();
    let jail = Jail::new();
    let script = "exec 2>&1; unshare -Ur id -u; unshare -Urm sh -c 'mount -t tmpfs t /tmp && touch /tmp/x && ls /tmp'
                  ls /tmp; unshare -Urp --fork sh -c 'echo $$'; unshare -Urn ifconfig lo up && echo net
                  su builder -c 'unshare -Ur id -u'; unshare -Uru sh -c 'hostname other; hostname'; hostname";
    let mut process = shell(script);
    process.allow_namespaces = true;
    assert_eq!(jail.ok(&process).await, "0\nx\n1\nnet\n0\nother\nbuilder\n");
    // Not even then: what it came with; what is hidden, read-only or without devices; other filesystems; nodes.
    let script = "exec 2>&1
                  mount -t tmpfs t /tmp; umount /proc/sys; umount /dev; hostname x; unshare -m true; unshare -n true; unshare -p true
                  mkdir /m; mknod /tmp/null c 1 3
                  unshare -Urm sh -c 'umount /proc/sys; umount /proc/interrupts; umount /etc/hosts; mount -o remount,bind,rw /proc/sys
                    mount -o remount,bind,dev /; mount -o remount,rw /sys; mount -t proc p /m; mount -t sysfs s /m
                    mount -t ext4 /dev/null /m; mknod /tmp/n c 1 3; mount -t tmpfs t /m; mknod /m/n c 1 3'
                  unshare -Urm cat /tmp/null; ls /m";
    let mut process = shell(script);
    process.allow_namespaces = true;
    let output = jail.ok(&process).await;
    let refused =
        |line: &&str| ["denied", "not permitted", "Invalid argument", "busy"].iter().any(|why| line.contains(why));
    assert_eq!(output.lines().filter(refused).count(), 19, "{output}");
    assert_eq!(output.lines().count(), 19, "{output}");
    // And without leave there is none.
    assert_eq!(jail.sh("(unshare -Ur id; unshare -U true) 2>&1 | grep -c 'not permitted'").await, "2\n");
}

#[tokio::test]
async fn devices_of_the_host_are_not_its_to_change() {
    needs_sandbox!();
    let output = Jail::new().sh("exec 2>&1; chmod 600 /dev/null; chown 5 /dev/zero; stat -c '%a %u' /dev/null").await;
    assert_eq!(output.matches("Operation not permitted").count(), 2, "{output}");
    assert!(output.ends_with("666 65534\n"), "{output}");
}
