//! Limits, attacked from inside, on whatever control groups this host has; and the counting of what a run used.
//! `virtual_machine.rs` runs the same on control groups v2, by a kernel of its own.

use std::fs;
use std::path::PathBuf;

use kiln_sandbox::{Ended, ExitStatus, Limit, Limits, NativeSandbox, Process, Root, SandboxError};
use tokio_util::sync::CancellationToken;

use crate::harness::{HELPER, Jail, read_all, read_line, shell};
use crate::needs_sandbox;

const MIB: u64 = 1 << 20;

/// Returns limits that this host can keep, or `None`, as a skip, if it cannot.
fn kept(set: impl FnOnce(&mut Limits)) -> Option<Limits> {
    let mut limits = Limits::default();
    set(&mut limits);
    match NativeSandbox::new(HELPER).unwrap().check(&limits) {
        Ok(()) => Some(limits),
        Err(error) => {
            println!("SKIPPED: {error}");
            assert!(std::env::var_os("CI").is_none(), "a test was skipped in CI: {error}");
            None
        }
    }
}

/// Leaves the test unless this host can keep the limits.
macro_rules! limits {
    ($set:expr) => {
        match kept($set) {
            Some(limits) => limits,
            None => return,
        }
    };
}

async fn ended(jail: &Jail, process: &Process) -> (Ended, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let output = tokio::task::spawn_blocking(move || read_all(reader));
    let root = Root::Dir(jail.root());
    let ended = jail.sandbox.run(root, process, writer.into(), &CancellationToken::new()).await.unwrap();
    (ended, output.await.unwrap())
}

async fn limited(limits: Limits, script: &str) -> (Ended, String) {
    let mut process = shell(script);
    process.limits = limits;
    ended(&Jail::new(), &process).await
}

fn groups() -> Vec<PathBuf> {
    groups_of(std::process::id())
}

/// Returns the groups of runs that a process has.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mountinfo.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let ours = format!("{pid}-");
    let entries = mounts.flat_map(|mount| fs::read_dir(PathBuf::from(mount).join("kiln"))).flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)).map(|entry| entry.path()).collect()
}

#[tokio::test]
async fn a_memory_bomb_ends_the_step_and_is_told() {
    needs_sandbox!();
    let limits = limits!(|limits| (limits.memory_bytes, limits.swap_bytes) = (Some(32 * MIB), Some(0)));
    let (ended, output) = limited(limits, "exec dd if=/dev/zero of=/dev/null bs=256M count=1 2>&1").await;
    assert_eq!(ended.hit, Some(Limit::Memory(32 * MIB)), "{ended:?} {output}");
    assert_eq!(ended.status, ExitStatus::Signal(9), "{output}");
    assert!(ended.usage.peak_memory_bytes.is_none_or(|peak| peak <= 32 * MIB), "{ended:?}");
}

#[tokio::test]
async fn files_in_memory_count_as_memory() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.memory_bytes = Some(24 * MIB));
    // As root, 64 MiB would fit there.
    let (ended, output) = limited(limits, "exec dd if=/dev/zero of=/dev/shm/file bs=1M count=48 2>&1").await;
    assert_eq!((ended.hit, ended.status), (Some(Limit::Memory(24 * MIB)), ExitStatus::Signal(9)), "{output}");
}

#[tokio::test]
async fn what_makes_init_the_victim_is_told_too() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.memory_bytes = Some(32 * MIB));
    // Root inside may offer init up: a file in memory stays, whoever is killed.
    let script = "echo 1000 > /proc/1/oom_score_adj; exec dd if=/dev/zero of=/dev/shm/file bs=1M count=48 2>&1";
    let (ended, output) = limited(limits, script).await;
    assert_eq!((ended.hit, ended.status), (Some(Limit::Memory(32 * MIB)), ExitStatus::Signal(9)), "{output}");
}

#[tokio::test]
async fn too_little_memory_to_begin_with_is_a_limit_too() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.memory_bytes = Some(64 << 10));
    let (ended, output) = limited(limits, "echo ran").await;
    assert_eq!((ended.hit, ended.status), (Some(Limit::Memory(64 << 10)), ExitStatus::Signal(9)), "{output}");
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_limit() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.processes = Some(64));
    let bomb = "b() { b | b & }; b; i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done";
    let (ended, _) = limited(limits, bomb).await;
    assert_eq!(ended.hit, Some(Limit::Processes(64)), "{ended:?}");
    assert!(ended.usage.peak_processes.is_none_or(|peak| peak <= 64), "{ended:?}");
}

#[tokio::test]
async fn who_copes_with_a_limit_ends_well() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.processes = Some(16));
    let script = "(i=0; while [ $i -lt 30 ]; do sleep 1000 & i=$((i+1)); done) 2>/dev/null; echo done; exit 0";
    let (ended, output) = limited(limits, script).await;
    assert_eq!((ended.status, ended.hit), (ExitStatus::Code(0), Some(Limit::Processes(16))));
    assert_eq!(output, "done\n");
}

#[tokio::test]
async fn a_quota_of_processor_time_holds_and_does_not_slow_down_the_end() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.cpu_millis = Some(100));
    let jail = Jail::new();
    let mut process = shell("i=0; while [ $i -lt 20 ]; do (while :; do :; done) & i=$((i+1)); done; echo ready; wait");
    process.limits = limits;
    let cancel = CancellationToken::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let ready = tokio::task::spawn_blocking(move || read_line(&mut reader));
    let canceller = async {
        assert_eq!(ready.await.unwrap(), "ready");
        let quotas = groups().into_iter().flat_map(|group| {
            [group.join("cpu.max"), group.join("cpu.cfs_quota_us")].into_iter().flat_map(fs::read_to_string)
        });
        let quotas: Vec<_> = quotas.collect();
        cancel.cancel();
        quotas
    };
    let (ended, quotas) = tokio::join!(run, canceller);
    assert!(matches!(ended, Err(SandboxError::Cancelled(_))), "{ended:?}");
    assert!(quotas.iter().any(|quota| quota.starts_with("10000 ") || quota == "10000\n"), "{quotas:?}");
}

#[tokio::test]
async fn weights_are_set() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.cpu_weight = Some(50));
    let jail = Jail::new();
    let mut process = shell("echo ready; cat /go");
    process.limits = limits;
    let made = std::process::Command::new("busybox").arg("mkfifo").arg(jail.root().join("go")).status();
    assert!(made.unwrap().success());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let cancel = CancellationToken::new();
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let go = jail.root().join("go");
    let look = tokio::task::spawn_blocking(move || {
        read_line(&mut reader);
        let weights = groups().into_iter().flat_map(|group| {
            [group.join("cpu.weight"), group.join("cpu.shares")].into_iter().flat_map(fs::read_to_string)
        });
        let weights: Vec<_> = weights.collect();
        fs::write(go, "").unwrap();
        read_all(reader);
        weights
    });
    let (ended, weights) = tokio::join!(run, look);
    assert_eq!(ended.unwrap().status, ExitStatus::Code(0));
    let weights = weights.unwrap();
    assert!(weights.contains(&"50\n".to_owned()) || weights.contains(&"512\n".to_owned()), "{weights:?}");
}

#[tokio::test]
async fn what_a_run_uses_is_counted() {
    needs_sandbox!();
    let _ = limits!(|limits| (limits.memory_bytes, limits.processes) = (Some(1 << 40), Some(1 << 20)));
    let script = "dd if=/dev/zero of=/dev/shm/file bs=1M count=16 2>/dev/null
        i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000 & sleep 1000 & exit 3";
    let (ended, _) = limited(Limits::default(), script).await;
    let usage = ended.usage;
    assert_eq!((ended.status, ended.hit), (ExitStatus::Code(3), None));
    assert!(usage.peak_memory_bytes.unwrap() >= 16 * MIB, "{usage:?}");
    assert!(usage.cpu_user_ms.unwrap() + usage.cpu_system_ms.unwrap() > 0, "{usage:?}");
    assert!(usage.io_read_bytes.is_some() && usage.io_written_bytes.is_some(), "{usage:?}");
    // Init, the shell and two children. Kernels before 6.1 do not count.
    assert!(usage.peak_processes.is_none_or(|peak| peak >= 4), "{usage:?}");
}

#[tokio::test]
async fn nothing_is_left_of_the_groups() {
    needs_sandbox!();
    let limits = limits!(|limits| (limits.memory_bytes, limits.processes) = (Some(64 * MIB), Some(32)));
    limited(limits, "(sleep 1000 &) ; true").await;
    assert_eq!(groups(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn groups_of_the_dead_are_swept_and_those_of_the_living_are_not() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.processes = Some(32));
    let jail = Jail::new();
    let mut process = shell("echo ready; cat /go");
    process.limits = limits;
    let made = std::process::Command::new("busybox").arg("mkfifo").arg(jail.root().join("go")).status();
    assert!(made.unwrap().success());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let cancel = CancellationToken::new();
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let go = jail.root().join("go");
    let look = tokio::task::spawn_blocking(move || {
        read_line(&mut reader);
        let living = groups();
        // As a caller that was killed leaves them, from an id that no process has.
        let dead: Vec<_> =
            living.iter().map(|group| group.with_file_name(format!("4194305-{}", std::process::id()))).collect();
        for group in &dead {
            fs::create_dir(group).unwrap();
        }
        NativeSandbox::new(HELPER).unwrap();
        let left = dead.iter().filter(|group| group.exists()).count();
        let alive = living.iter().filter(|group| group.exists()).count();
        fs::write(go, "").unwrap();
        read_all(reader);
        (living.len(), alive, left)
    });
    let (ended, looked) = tokio::join!(run, look);
    assert_eq!(ended.unwrap().status, ExitStatus::Code(0));
    let (living, alive, left) = looked.unwrap();
    assert!(living > 0);
    assert_eq!((alive, left), (living, 0));
}

#[test]
fn what_a_killed_caller_leaves_is_swept() {
    needs_sandbox!();
    let _ = limits!(|limits| limits.processes = Some(32));
    let jail = Jail::new();
    let mut caller = crate::ends::caller(&jail, "echo ready; while :; do sleep 1; done");
    assert_eq!(read_line(caller.stdout.as_mut().unwrap()), "ready");
    let pid = caller.id();
    assert!(!groups_of(pid).is_empty());
    caller.kill().unwrap();
    caller.wait().unwrap();
    // Its helper takes a moment to kill the rest.
    while !groups_of(pid).is_empty() {
        NativeSandbox::new(HELPER).unwrap();
    }
}

#[tokio::test]
async fn the_step_sees_no_group_but_its_own() {
    needs_sandbox!();
    let limits = limits!(|limits| limits.processes = Some(32));
    let (_, output) = limited(limits, "cat /proc/self/cgroup").await;
    let joined = groups_in(&output);
    assert!(joined.contains(&"/"), "{output}");
    // Those that it did not join are the caller's, and may be anywhere.
    assert!(!output.contains("kiln"), "{output}");
}

fn groups_in(cgroup: &str) -> Vec<&str> {
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect()
}

#[tokio::test]
async fn what_cannot_be_limited_is_an_error_that_names_it() {
    needs_sandbox!();
    // Beyond what any kernel takes.
    let mut limits = Limits::default();
    limits.cpu_weight = Some(u32::MAX);
    limits.io_weight = Some(u32::MAX);
    let mut process = shell("echo ran");
    process.limits = limits;
    let error = Jail::new().run(&process).await.unwrap_err();
    let SandboxError::Limit { limit, what, .. } = error else { panic!("{error}") };
    assert!(limit.starts_with("the share of the"), "{limit}");
    assert!(!what.is_empty());
    assert_eq!(groups(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn ten_thousand_processes_are_gone_when_a_cancelled_run_returns() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    let mut process = shell("");
    process.argv = ["/probe", "crowd", "10000"].map(Into::into).to_vec();
    let (cancel, (mut reader, writer)) = (CancellationToken::new(), std::io::pipe().unwrap());
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let reading = tokio::task::spawn_blocking(move || (read_line(&mut reader), reader));
    let canceller = async {
        let (line, reader) = reading.await.unwrap();
        let start = std::time::Instant::now();
        cancel.cancel();
        (line, reader, start)
    };
    let (ended, (line, reader, start)) = tokio::join!(run, canceller);
    println!("{line} processes were gone after {:?}", start.elapsed());
    assert_eq!(line, "10000");
    assert!(matches!(ended, Err(SandboxError::Cancelled(_))), "{ended:?}");
    // Nobody is left to hold it.
    read_all(reader);
}
