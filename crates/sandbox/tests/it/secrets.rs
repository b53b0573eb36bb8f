//! Secrets: bytes of the caller that only this process's user may read.

use std::fs;

use kiln_sandbox::{Mount, SecretBytes, Source};

use crate::harness::{BUILDER, Jail, shell};
use crate::needs_sandbox;

fn secret(target: &str) -> Mount {
    Mount { target: target.into(), source: Source::Secret(SecretBytes::new(*b"hunter2")) }
}

#[tokio::test]
async fn a_secret_is_a_read_only_file_of_the_user() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut process = shell(
        "cat /run/secrets/token; echo; stat -c '%u:%g %a' /run/secrets/token
         (chmod 777 /run/secrets/token; echo x > /run/secrets/token; rm /run/secrets/token) 2>&1 | wc -l
         grep /run/secrets/token /proc/self/mountinfo | grep -c 'ro,nosuid,nodev,noexec'",
    );
    process.user = BUILDER;
    process.mounts = vec![secret("/run/secrets/token")];
    assert_eq!(jail.ok(&process).await, "hunter2\n1000:1000 400\n3\n1\n");
}

#[tokio::test]
async fn a_secret_is_nowhere_but_in_its_file() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut process = shell("cat /proc/self/environ /proc/self/cmdline /proc/1/cmdline | grep -c hunte[r]2; ls /s");
    process.mounts = vec![secret("/s/token")];
    let (_, output) = jail.run(&process).await.unwrap();
    assert_eq!(output, "0\ntoken\n");
    // What is left in the tree is its empty mount point.
    assert_eq!(fs::read(jail.root().join("s/token")).unwrap(), b"");
    assert!(!format!("{process:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_secret_is_in_memory_that_is_never_swapped() {
    needs_sandbox!();
    let mut process = shell("grep ' /s ' /proc/self/mountinfo | sed 's/.* - //'");
    process.mounts = vec![secret("/s")];
    assert!(Jail::new().ok(&process).await.starts_with("ramfs"));
}
