//! `/dev`, and device nodes elsewhere.

use std::os::unix::fs::MetadataExt;

use kiln_sandbox::{Mount, Source};

use crate::harness::{Jail, shell};
use crate::needs_sandbox;

#[tokio::test]
async fn the_usual_devices_work() {
    needs_sandbox!();
    let output = Jail::new()
        .sh("echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 1 /dev/urandom | wc -c
             head -c 1 /dev/random | wc -c; echo x > /dev/full; echo to stdout > /dev/stdout; ls /dev; ls /dev/pts")
        .await;
    let devices = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nptmx\n";
    assert!(output.starts_with(" 00 00 00\n1\n1\n"), "{output}");
    assert!(output.contains("No space left on device") && output.contains("to stdout\n"), "{output}");
    assert!(output.ends_with(devices), "{output}");
}

#[tokio::test]
async fn a_device_node_cannot_be_opened_wherever_it_lies() {
    needs_sandbox!();
    let jail = Jail::new();
    std::fs::create_dir(jail.dir.path().join("cache")).unwrap();
    // The host's null device too: what counts is the mount.
    let mut process = shell(
        "for dir in / /tmp /dev /dev/shm /cache; do
           for node in 'c 1 3' 'b 7 0'; do
             mknod $dir/node $node || exit 1
             cat $dir/node; echo $?
             rm $dir/node
           done
         done 2>&1 | sort | uniq -c",
    );
    process.mounts = vec![Mount { target: "/cache".into(), source: Source::Dir(jail.dir.path().join("cache")) }];
    let output = jail.ok(&process).await;
    assert!(output.trim_start().starts_with("10 1\n"), "{output}");
    assert_eq!(output.matches("Permission denied").count(), 5, "{output}");
}

#[tokio::test]
async fn root_makes_nodes_as_the_kernel_would_and_users_make_none() {
    needs_sandbox!();
    let jail = Jail::new();
    let script = "mkdir -p /tmp/d /jail/tmp; ln -s / /tmp/d/root; umask 027; cd /tmp/d
                  mknod here c 1 3; mknod ../up b 7 0; mknod root/tmp/link c 1 5; mknod /tmp/d/fifo p
                  mknod -m 600 root/etc/mode c 5 0; (cd /proc/1 && mknod cwd/x c 1 3); mknod here c 1 3
                  mknod none/x c 1 3; mknod here/x c 1 3; mknod '' c 1 3; mknod / c 1 3; mknod x/ c 1 3
                  mknod /sys/x c 1 3; mknod /dev/big c 300 70000
                  cp /bin/busybox /jail/; chroot /jail /busybox mknod /tmp/in c 1 3; chroot /jail /busybox mknod ../../tmp/in2 c 1 3
                  stat -c '%n %F %t:%T %a %u:%g' /tmp/d/* /tmp/up /tmp/link /etc/mode /jail/tmp/* /dev/big
                  mkdir -m 777 /tmp/open; su builder -c 'mknod /tmp/open/x c 1 3; mknod /tmp/open/x b 7 0; mknod /tmp/open/f p'
                  ls /tmp/open";
    let output = jail.sh(&format!("exec 2>&1; {script}")).await;
    let (refused, made): (Vec<_>, Vec<_>) = output.lines().partition(|line| line.starts_with("mknod: "));
    assert_eq!(
        made,
        [
            "/tmp/d/fifo fifo 0:0 640 0:0",
            "/tmp/d/here character special file 1:3 640 0:0",
            "/tmp/d/root symbolic link 0:0 777 0:0",
            "/tmp/up block special file 7:0 640 0:0",
            "/tmp/link character special file 1:5 640 0:0",
            "/etc/mode character special file 5:0 600 0:0",
            "/jail/tmp/in character special file 1:3 640 0:0",
            "/jail/tmp/in2 character special file 1:3 640 0:0",
            "/dev/big character special file 12c:11170 640 0:0",
            "f",
        ]
    );
    let because = |why: &str| refused.iter().filter(|line| line.ends_with(why)).count();
    assert_eq!(because("Operation not permitted"), 2, "{output}");
    assert_eq!(because("File exists"), 2, "{output}");
    assert_eq!(because("Not a directory"), 1, "{output}");
    let made = jail.root().join("tmp/d/here");
    let meta = std::fs::symlink_metadata(made).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0), "on the disk it is root's");
}

#[tokio::test]
async fn a_user_can_open_the_output_by_name() {
    needs_sandbox!();
    let mut process = shell("echo out > /dev/stdout; echo error > /dev/stderr");
    process.user = crate::harness::BUILDER;
    assert_eq!(Jail::new().ok(&process).await, "out\nerror\n");
}

#[tokio::test]
async fn stdin_is_empty_and_the_hosts_devices_stay_the_hosts() {
    needs_sandbox!();
    let null = || std::fs::metadata("/dev/null").map(|meta| (meta.uid(), meta.gid(), meta.mode())).unwrap();
    let before = null();
    let mut process = shell("cat; cat /dev/stdin; echo end");
    process.user = crate::harness::BUILDER;
    assert_eq!(Jail::new().ok(&process).await, "end\n");
    assert_eq!(null(), before);
}

#[tokio::test]
async fn shared_memory_and_the_devices_directory_are_bounded() {
    needs_sandbox!();
    let output = Jail::new().sh("df -m /dev /dev/shm | awk 'NR > 1 { print $2, $6 }'").await;
    assert_eq!(output, "64 /dev\n64 /dev/shm\n");
}
