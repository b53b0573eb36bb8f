//! `/dev`, and device nodes elsewhere.

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
async fn a_user_can_open_the_output_by_name() {
    needs_sandbox!();
    let mut process = shell("echo out > /dev/stdout; echo error > /dev/stderr");
    process.user = crate::harness::BUILDER;
    assert_eq!(Jail::new().ok(&process).await, "out\nerror\n");
}

#[tokio::test]
async fn shared_memory_and_the_devices_directory_are_bounded() {
    needs_sandbox!();
    let output = Jail::new().sh("df -m /dev /dev/shm | awk 'NR > 1 { print $2, $6 }'").await;
    assert_eq!(output, "64 /dev\n64 /dev/shm\n");
}
