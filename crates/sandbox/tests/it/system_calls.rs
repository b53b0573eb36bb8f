//! The system call filter, asked by the probe. Numbers and arguments are such that without the
//! filter the answer would be another.

use std::sync::Arc;

use kiln_sandbox::{ExitStatus, Profile, Runtime, Seccomp};

use crate::harness::{BUILDER, Jail, MAPPED, RUNTIME, shell};
use crate::needs_sandbox;

const EPERM: &str = "errno 1";
const EBADF: &str = "errno 9";
const ENOSYS: &str = "errno 38";
const EPROTONOSUPPORT: &str = "errno 93";
const EAFNOSUPPORT: &str = "errno 97";

/// Makes each call in one sandbox as root and compares.
async fn answers(calls: &[(String, &str)], fast_sync: bool) {
    answers_under(Seccomp::Default, calls, fast_sync).await;
}

async fn answers_under(seccomp: Seccomp, calls: &[(String, &str)], fast_sync: bool) {
    let script: String = calls.iter().map(|(call, _)| format!("/probe call {call}\n")).collect();
    let mut process = shell(&script);
    process.fast_sync = fast_sync;
    process.seccomp = seccomp;
    let output = Jail::new().with_probe().ok(&process).await;
    assert_eq!(output.lines().count(), calls.len(), "{output}");
    for ((call, expected), answer) in calls.iter().zip(output.lines()) {
        assert_eq!(*expected, answer, "{call}");
    }
}

fn native(number: i64, arguments: &str) -> String {
    format!("native {number} {arguments}")
}

#[tokio::test]
async fn what_configures_the_kernel_is_refused() {
    needs_sandbox!();
    let numbers = [
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_mount_setattr,
        libc::SYS_pivot_root,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_syslog,
        libc::SYS_swapon,
        libc::SYS_clock_settime,
        libc::SYS_settimeofday,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_sethostname,
    ];
    let calls: Vec<_> = numbers.iter().map(|number| (native(*number, "-1 0 0 0 0"), EPERM)).collect();
    answers(&calls, false).await;
}

#[tokio::test]
async fn what_is_newer_than_the_table_is_unknown() {
    needs_sandbox!();
    answers(&[(native(999, ""), ENOSYS), (native(0x3fff_ffff, ""), ENOSYS)], false).await;
}

#[tokio::test]
async fn no_new_namespaces() {
    needs_sandbox!();
    let user = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let calls = [
        (native(libc::SYS_clone, &format!("{user} 0 0 0 0")), EPERM),
        (native(libc::SYS_unshare, &format!("{}", libc::CLONE_NEWUSER)), EPERM),
        // glibc then uses clone(2), whose flags can be seen.
        (native(libc::SYS_clone3, "0 0"), ENOSYS),
    ];
    answers(&calls, false).await;
}

#[tokio::test]
async fn nothing_types_into_the_callers_terminal() {
    needs_sandbox!();
    let calls = [
        (native(libc::SYS_ioctl, "0 0x5412 0"), EPERM),
        // CVE-2019-10063: the kernel looks at the low half only.
        (native(libc::SYS_ioctl, "0 0x100005412 0"), EPERM),
        (native(libc::SYS_ioctl, "0 0x541c 0"), EPERM),
        (native(libc::SYS_ioctl, "-1 0x5401 0"), EBADF),
    ];
    answers(&calls, false).await;
}

#[tokio::test]
async fn sockets_are_of_ordinary_families() {
    needs_sandbox!();
    let calls = [
        (native(libc::SYS_socket, "40 1 0"), EAFNOSUPPORT),
        (native(libc::SYS_socket, "38 5 0"), EAFNOSUPPORT),
        (native(libc::SYS_socket, "17 3 0"), EAFNOSUPPORT),
        (native(libc::SYS_socket, "16 3 9"), EPROTONOSUPPORT),
        (native(libc::SYS_socket, "16 3 0"), "ok"),
        (native(libc::SYS_socket, "1 1 0"), "ok"),
        (native(libc::SYS_socket, "2 1 0"), "ok"),
        (native(libc::SYS_socket, "10 2 0"), "ok"),
    ];
    answers(&calls, false).await;
}

#[tokio::test]
async fn personalities_that_change_no_protection() {
    needs_sandbox!();
    let calls = [
        (native(libc::SYS_personality, "0xffffffff"), "ok"),
        (native(libc::SYS_personality, "8"), "ok"),
        (native(libc::SYS_personality, "0x40000"), "ok"),
        (native(libc::SYS_personality, "0x400000"), EPERM),
        (native(libc::SYS_personality, "0x100000"), EPERM),
    ];
    answers(&calls, false).await;
}

#[tokio::test]
async fn init_cannot_be_traced_but_ones_own_processes_can() {
    needs_sandbox!();
    let calls = [
        // PTRACE_ATTACH to init; PTRACE_TRACEME; pidfd_getfd of anything.
        (native(libc::SYS_ptrace, "16 1 0 0"), EPERM),
        (native(libc::SYS_ptrace, "0 0 0 0"), "ok"),
        (native(libc::SYS_pidfd_getfd, "-1 0 0"), EPERM),
    ];
    answers(&calls, false).await;
}

#[tokio::test]
async fn fast_sync_does_not_wait_for_the_disk() {
    needs_sandbox!();
    let calls =
        |answer| [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs].map(|number| (native(number, "-1"), answer));
    answers(&calls(EBADF), false).await;
    answers(&calls("ok"), true).await;
    Jail::new().sh("sync").await;
}

#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn the_other_abis_of_the_processor_are_no_way_around() {
    needs_sandbox!();
    let calls = [
        // x32: as if the kernel did not have it.
        ("x32 39".to_owned(), ENOSYS),
        ("x32 165 0 0 0 0 0".to_owned(), ENOSYS),
        // i386 has other numbers: getpid, mount, keyctl, clone3, ioctl(TIOCSTI), clone(CLONE_NEWUSER), personality.
        ("i386 20".to_owned(), "ok"),
        ("i386 21 0 0 0 0 0".to_owned(), EPERM),
        ("i386 288 -1".to_owned(), EPERM),
        ("i386 435 0 0".to_owned(), ENOSYS),
        ("i386 54 0 0x5412 0".to_owned(), EPERM),
        ("i386 120 0x10000011 0 0 0 0".to_owned(), EPERM),
        ("i386 136 0x400000".to_owned(), EPERM),
        ("i386 359 40 1 0".to_owned(), EAFNOSUPPORT),
    ];
    answers(&calls, false).await;
}

/// A profile as Docker's: an allow-list by name, with terms of all kinds.
fn profile() -> Seccomp {
    Seccomp::Profile(Arc::new(Profile::parse(include_str!("../profiles/builds.json")).unwrap()))
}

#[tokio::test]
async fn a_profile_decides_what_is_refused_and_how() {
    needs_sandbox!();
    let user = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let calls = [
        (native(libc::SYS_getpid, ""), "ok"),
        (native(libc::SYS_mount, "0 0 0 0 0"), EPERM),
        (native(libc::SYS_unshare, &format!("{}", libc::CLONE_NEWUSER)), EPERM),
        (native(libc::SYS_clone, &format!("{user} 0 0 0 0")), EPERM),
        (native(libc::SYS_clone3, "0 0"), ENOSYS),
        (native(libc::SYS_keyctl, "-1 0 0 0 0"), EPERM),
        (native(libc::SYS_acct, "0"), "errno 13"),
        (native(libc::SYS_memfd_create, "0 0"), EPERM),
        (native(libc::SYS_personality, "8"), "ok"),
        (native(libc::SYS_personality, "0x400000"), EPERM),
        (native(libc::SYS_socket, "40 1 0"), EPERM),
        (native(libc::SYS_socket, "2 1 0"), "ok"),
        (native(libc::SYS_ptrace, "0 0 0 0"), "ok"),
        (native(libc::SYS_fsync, "-1"), EBADF),
        // crun has the profile's default for it.
        (native(999, ""), if RUNTIME == Some(Runtime::Crun) { EPERM } else { ENOSYS }),
    ];
    answers_under(profile(), &calls, false).await;
    answers_under(profile(), &[(native(libc::SYS_fsync, "-1"), "ok"), (native(libc::SYS_acct, "0"), "errno 13")], true)
        .await;
    let mut killed = shell(&format!("exec /probe call native {} 3 0 0", libc::SYS_syslog));
    killed.seccomp = profile();
    let (status, output) = Jail::new().with_probe().run(&killed).await.unwrap();
    assert_eq!((status, &output[..]), (ExitStatus::Signal(libc::SIGSYS), ""));
}

#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn a_profile_holds_for_the_other_abis_too() {
    needs_sandbox!();
    let calls = [
        ("x32 39".to_owned(), if RUNTIME.is_some() { "Bad system call" } else { ENOSYS }),
        ("i386 20".to_owned(), "ok"),
        ("i386 21 0 0 0 0 0".to_owned(), EPERM),
        ("i386 136 0x400000".to_owned(), EPERM),
    ];
    answers_under(profile(), &calls, false).await;
}

#[tokio::test]
async fn ordinary_programs_run_under_a_profile_as_without() {
    needs_sandbox!();
    let script = "set -e; mkdir -p /tmp/d; cd /tmp/d; seq 1000 | sort -n | sha256sum > sum; tar cf a.tar sum; rm sum; tar xf a.tar
        find . -type f | xargs ls | wc -l; (sleep 0.01; echo later) & wait; awk 'BEGIN { print 6 * 7 }' < /dev/null
        mkfifo p; echo through > p & cat p; ln -s sum l; readlink l; touch -d @0 sum; stat -c %Y sum";
    for user in [crate::harness::ROOT, BUILDER] {
        for seccomp in [Seccomp::Default, profile(), Seccomp::Unconfined] {
            let process = kiln_sandbox::Process { seccomp, user, ..shell(script) };
            assert_eq!(Jail::new().ok(&process).await, "2\nlater\n42\nthrough\nsum\n0\n");
        }
    }
}

#[tokio::test]
async fn unconfined_means_that_nothing_is_refused() {
    needs_sandbox!();
    let calls = |sync| {
        [
            // What the kernel itself says.
            (native(libc::SYS_keyctl, "-1 0 0 0 0"), "errno 95"),
            (native(libc::SYS_personality, "0x400000"), "ok"),
            (native(libc::SYS_fsync, "-1"), sync),
        ]
    };
    answers_under(Seccomp::Unconfined, &calls(EBADF), false).await;
    answers_under(Seccomp::Unconfined, &calls("ok"), true).await;
    let status = |seccomp| kiln_sandbox::Process { seccomp, ..shell("grep Seccomp: /proc/self/status") };
    // With users of its own, a filter hands device nodes to the helper.
    let mode = if MAPPED { "Seccomp:\t2\n" } else { "Seccomp:\t0\n" };
    assert_eq!(Jail::new().ok(&status(Seccomp::Unconfined)).await, mode);
    assert_eq!(Jail::new().ok(&status(Seccomp::Default)).await, "Seccomp:\t2\n");
}
