//! Users, capabilities, limits.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use kiln_sandbox::Limits;

use crate::harness::{BUILDER, Jail, MAPPED, shell};
use crate::needs_sandbox;

const STATUS: &str = "grep -E '^(Cap|Groups|NoNewPrivs|Uid|Gid|Seccomp:)' /proc/self/status | tr -s '\\t' ' '";

/// With users of its own also those that are over nothing then.
const CAPABILITIES: &str = if MAPPED { "00000000a80425fb" } else { "00000000a80401fb" };

#[tokio::test]
async fn root_has_the_listed_capabilities_and_none_to_inherit() {
    needs_sandbox!();
    let output = Jail::new().sh(STATUS).await;
    assert_eq!(
        output,
        format!(
            "Uid: 0 0 0 0\nGid: 0 0 0 0\nGroups: \nCapInh: 0000000000000000\nCapPrm: {CAPABILITIES}\n\
             CapEff: {CAPABILITIES}\nCapBnd: {CAPABILITIES}\nCapAmb: 0000000000000000\nNoNewPrivs: 0\nSeccomp: 2\n"
        )
    );
}

#[tokio::test]
async fn a_user_has_no_capabilities_and_no_groups() {
    needs_sandbox!();
    let mut process = shell(STATUS);
    process.user = BUILDER;
    let output = Jail::new().ok(&process).await;
    assert_eq!(
        output,
        format!(
            "Uid: 1000 1000 1000 1000\nGid: 1000 1000 1000 1000\nGroups: \nCapInh: 0000000000000000\n\
             CapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: {CAPABILITIES}\nCapAmb: 0000000000000000\n\
             NoNewPrivs: 0\nSeccomp: 2\n"
        )
    );
}

#[tokio::test]
async fn root_makes_no_raw_sockets_and_takes_no_low_ports() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    let (inet, stream, raw, icmp) = (libc::AF_INET, libc::SOCK_STREAM, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let call = |kind, protocol| format!("/probe call native {} {inet} {kind} {protocol}; ", libc::SYS_socket);
    assert_eq!(jail.sh(&(call(stream, 0) + &call(raw, icmp))).await, "ok\nerrno 1\n");
    assert!(jail.sh("nc -l -p 80 2>&1 || true").await.contains("Permission denied"));
}

#[tokio::test]
async fn set_user_id_programs_work() {
    needs_sandbox!();
    let jail = Jail::new();
    // Of busybox's applets `su` keeps the rights of the bit; without them it could not become root.
    fs::set_permissions(jail.root().join("bin/busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
    let passwd = "root::0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/:/bin/sh\n";
    fs::write(jail.root().join("etc/passwd"), passwd).unwrap();
    let mut process = shell("");
    process.argv = ["su", "root", "-c", "grep Uid /proc/self/status"].map(Into::into).to_vec();
    process.user = BUILDER;
    assert_eq!(jail.ok(&process).await, "Uid:\t0\t0\t0\t0\n");
}

#[tokio::test]
async fn root_can_do_what_package_managers_do() {
    needs_sandbox!();
    let script = "cd /tmp; touch f; chown 1000:1000 f; chmod 4755 f; mknod n c 1 3; mknod b b 7 0; su builder -c id
                  stat -c '%u %a' f; kill -0 1";
    let output = Jail::new().sh(script).await;
    assert_eq!(output, "uid=1000(builder) gid=1000(builder) groups=1000(builder)\n1000 4755\n");
}

#[tokio::test]
async fn root_cannot_change_the_hosts_state() {
    needs_sandbox!();
    let output = Jail::new()
        .sh("mount -t tmpfs t /tmp; umount /proc; mount -o remount,rw /sys; hostname x; date -s 2001-01-01; dmesg
             ifconfig lo down; unshare -U true; unshare -m true; insmod /bin/sh; kill -9 1; echo still here")
        .await;
    assert!(output.ends_with("still here\n"), "{output}");
    assert!(output.lines().count() >= 10, "{output}");
    assert_eq!(Jail::new().sh("hostname").await, "builder\n");
}

#[tokio::test]
async fn open_files_are_limited_and_core_files_are_off() {
    needs_sandbox!();
    let jail = Jail::new();
    assert_eq!(jail.sh("ulimit -Sn; ulimit -Hn; ulimit -c").await, "1024\n1024\n0\n");
    let mut process = shell("ulimit -n");
    let mut limits = Limits::default();
    limits.open_files = 77;
    process.limits = limits;
    assert_eq!(jail.ok(&process).await, "77\n");
}

#[tokio::test]
async fn the_out_of_memory_score_is_not_lower_than_usual() {
    needs_sandbox!();
    let score: i32 = Jail::new().sh("cat /proc/self/oom_score_adj").await.trim().parse().unwrap();
    assert!(score >= 0, "{score}");
}

#[tokio::test]
async fn signals_have_their_default_effect() {
    needs_sandbox!();
    let output = Jail::new().sh("grep -E 'Sig(Blk|Ign|Cgt)' /proc/1/status /proc/self/status | grep self").await;
    assert_eq!(output.matches("0000000000000000").count(), 3, "{output}");
}
