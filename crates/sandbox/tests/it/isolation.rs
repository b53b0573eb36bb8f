//! What of the host a process does not see.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_sandbox::{Mount, Network, Root, Source};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use tokio_util::sync::CancellationToken;

use crate::harness::{BUILDER, COMMAND, Jail, ROOT, RUNTIME, host_mounts, mounted, read_all, read_line, shell};
use crate::needs_sandbox;

#[tokio::test]
async fn every_namespace_is_its_own() {
    needs_sandbox!();
    let inside = Jail::new().sh("for n in pid mnt uts ipc cgroup net; do readlink /proc/self/ns/$n; done").await;
    for (kind, inside) in ["pid", "mnt", "uts", "ipc", "cgroup", "net"].iter().zip(inside.lines()) {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(outside.to_str().unwrap(), inside);
    }
    assert_eq!(inside.lines().count(), 6);
}

#[tokio::test]
async fn only_its_own_processes_are_visible() {
    needs_sandbox!();
    let pids = Jail::new().sh("for p in /proc/[0-9]*; do echo ${p#/proc/}; done").await;
    assert_eq!(pids, (1..=COMMAND).map(|pid| format!("{pid}\n")).collect::<String>());
}

#[tokio::test]
async fn the_host_name_is_the_given_one() {
    needs_sandbox!();
    let names = Jail::new().sh("hostname; cat /etc/hosts").await;
    assert!(names.starts_with("builder\n127.0.0.1 localhost builder\n"), "{names}");
}

#[tokio::test]
async fn the_network_is_loopback_only_and_it_works() {
    needs_sandbox!();
    let jail = Jail::new();
    assert_eq!(jail.sh("ls /sys/class/net").await, "lo\n");
    assert!(jail.sh("ifconfig lo").await.contains("UP LOOPBACK RUNNING"));
    let script = "mkfifo /tmp/in; exec 3<>/tmp/in; nc -l -p 8000 <&3 > /tmp/got & until echo hello | nc 127.0.0.1 8000 2>/dev/null; do :; done; wait; cat /tmp/got";
    assert_eq!(jail.sh(script).await, "hello\n");
    assert!(!jail.root().join("etc/resolv.conf").exists());
}

#[tokio::test]
async fn root_and_users_can_ping() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    for user in [ROOT, BUILDER] {
        let mut process = shell("/probe ping 127.0.0.1");
        process.user = user;
        assert_eq!(jail.ok(&process).await, "got 0\n");
    }
}

#[tokio::test]
async fn the_host_network_comes_with_its_resolver() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut process = shell("readlink /proc/self/ns/net; cat /etc/resolv.conf 2>/dev/null; true");
    process.network = Network::Host;
    let output = jail.ok(&process).await;
    let namespace = fs::read_link("/proc/self/ns/net").unwrap();
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(output, format!("{}\n{resolver}", namespace.display()));
}

#[tokio::test]
async fn hosts_and_resolver_are_read_only_and_stay_out_of_the_tree() {
    needs_sandbox!();
    let jail = Jail::new();
    fs::write(jail.root().join("etc/hosts"), "original").unwrap();
    let output = jail.sh("echo x >> /etc/hosts || rm /etc/hosts || echo refused").await;
    assert!(output.ends_with("refused\n"), "{output}");
    assert_eq!(fs::read_to_string(jail.root().join("etc/hosts")).unwrap(), "original");
}

#[tokio::test]
async fn nothing_mounted_shows_up_on_the_host() {
    needs_sandbox!();
    let jail = Jail::new();
    // The worst case: the root and a mount lie on a filesystem whose mounts propagate, as systemd makes all of them.
    let shared = jail.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    rustix::mount::mount("tmpfs", &shared, "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_change(&shared, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir_all(shared.join("root")).unwrap();
    fs::create_dir_all(shared.join("cache")).unwrap();
    kiln_testkit::busybox_root(&shared.join("root")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        shared.join("root/go"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let before = host_mounts(jail.dir.path());

    let mut process = shell("echo ready; cat /go");
    let detached = |path: &str| mounted(&shared.join(path), &process);
    let cases = [
        (Root::Dir(shared.join("root")), Source::Dir(shared.join("cache"))),
        // A copy of a shared mount is its peer.
        (Root::Mount(detached("root")), Source::Tree(Arc::new(detached("cache")))),
    ];
    let mut seen = Vec::new();
    for (root, source) in cases {
        process.mounts = vec![Mount { target: "/cache".into(), source }];
        let (mut reader, writer) = std::io::pipe().unwrap();
        let go = shared.join("root/go");
        let dir = jail.dir.path().to_owned();
        let watcher = tokio::task::spawn_blocking(move || {
            let ready = read_line(&mut reader);
            let during = host_mounts(&dir);
            fs::OpenOptions::new().write(true).open(go).unwrap().write_all(b"gone\n").unwrap();
            (ready, during, read_all(reader))
        });
        jail.sandbox.run(root, &process, writer.into(), &CancellationToken::new()).await.unwrap();
        seen.push((watcher.await.unwrap(), host_mounts(jail.dir.path())));
    }
    rustix::mount::unmount(&shared, UnmountFlags::DETACH).unwrap();
    for ((ready, during, rest), after) in seen {
        assert_eq!((ready.as_str(), rest.as_str()), ("ready", "gone\n"));
        assert_eq!(during, before);
        assert_eq!(after, before);
    }
}

#[tokio::test]
async fn no_mount_of_the_host_is_left_inside() {
    needs_sandbox!();
    let mounts = Jail::new().sh("cat /proc/self/mountinfo").await;
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap();
        let ours = ["/proc", "/sys", "/dev", "/etc/hosts"];
        assert!(point == "/" || ours.iter().any(|ours| point.starts_with(ours)), "{line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
}

#[tokio::test]
async fn only_the_three_standard_descriptors_are_open() {
    needs_sandbox!();
    let jail = Jail::new();
    let lock = Arc::new(OwnedFd::from(fs::File::open("/").unwrap()));
    // Init's are out of sight; a runtime's command has none.
    let init = if RUNTIME.is_some() { "" } else { "for fd in /proc/1/fd/*; do readlink $fd && echo seen; done" };
    let mut process = shell(&format!("ls /proc/self/fd; cat; {init}\ntrue"));
    process.held = vec![lock];
    // 3 is the directory that ls reads.
    assert_eq!(jail.ok(&process).await, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn held_descriptors_are_closed_after_the_run() {
    needs_sandbox!();
    let jail = Jail::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut process = shell("true");
    process.held = vec![Arc::new(OwnedFd::from(writer))];
    jail.ok(&process).await;
    drop(process);
    assert_eq!(read_all(reader), "");
}

#[tokio::test]
async fn the_environment_is_the_given_one() {
    needs_sandbox!();
    let mut process = shell("");
    process.argv = vec!["env".into()];
    process.env = vec![("PATH".into(), "/bin".into()), ("A".into(), "b c".into())];
    assert_eq!(Jail::new().ok(&process).await, "PATH=/bin\nA=b c\n");
}

#[tokio::test]
async fn it_has_a_session_without_a_terminal() {
    needs_sandbox!();
    let output = Jail::new().sh("cut -d' ' -f1,5,6,7 /proc/$$/stat; cat < /dev/tty; umask").await;
    assert!(output.starts_with(&format!("{COMMAND} {COMMAND} {COMMAND} 0\n")), "{output}");
    assert!(output.contains("No such device or address"), "{output}");
    assert!(output.ends_with("0022\n"), "{output}");
}
