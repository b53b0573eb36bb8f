//! Programs run for a job.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_worker::command::{Command, CommandError};
use tokio_util::sync::CancellationToken;

use crate::environment;

fn shell(script: &str) -> Command {
    Command::new("sh", &environment()).args(["-c", script])
}

async fn printed(command: &Command) -> String {
    let mut output = Vec::new();
    command.run(&mut output, &CancellationToken::new()).await.unwrap();
    String::from_utf8(output).unwrap()
}

/// Waits until `path` is there.
async fn appears(path: &std::path::Path) {
    while !path.exists() {
        tokio::task::yield_now().await;
    }
}

fn is_alive(pid: &str) -> bool {
    // A zombie is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn what_it_prints_comes_in_its_order() {
    assert_eq!(printed(&shell("echo out; echo err >&2; echo out again")).await, "out\nerr\nout again\n");
}

#[tokio::test]
async fn output_and_errors_can_be_kept_apart() {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let command = shell("echo out; echo err >&2; exit 3");
    let status = command.status_apart(&mut output, &mut errors, &CancellationToken::new()).await.unwrap();
    assert_eq!((&*output, &*errors, status.code()), (&b"out\n"[..], &b"err\n"[..], Some(3)));
    assert_eq!(command.succeeded(status).unwrap_err().to_string(), "`sh` failed: exit status: 3");
}

#[tokio::test]
async fn it_has_the_environment_that_it_was_given_and_no_other() {
    let command = Command::new("env", &environment()).env("A", "b");
    let printed = printed(&command).await;
    assert_eq!(
        printed.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["A=b", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    );
}

/// Returns the descriptors that whoever started this test gives to everybody, being careless.
fn inherited_by_all() -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
        let entry = entry.unwrap();
        let Ok(info) = std::fs::read_to_string(entry.path()) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let closes_on_exec = u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0;
        if !closes_on_exec {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

#[tokio::test]
async fn it_inherits_no_descriptor() {
    let _open = std::fs::File::open("/").unwrap();
    let _listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let expected: BTreeSet<String> = ["0", "1", "2"].map(str::to_owned).into_iter().chain(inherited_by_all()).collect();
    let seen = printed(&shell("for number in /proc/$$/fd/*; do echo ${number##*/}; done")).await;
    // The shell has one more while it lists the directory.
    let seen: BTreeSet<String> = seen.lines().map(str::to_owned).filter(|number| number != "3").collect();
    assert_eq!(seen, expected);
    assert_eq!(printed(&Command::new("readlink", &environment()).arg("/proc/self/fd/0")).await, "/dev/null\n");
}

#[tokio::test]
async fn it_reads_its_input_or_leaves_it() {
    let much = vec![b'x'; 1 << 20];
    assert_eq!(printed(&shell("wc -c").input(much.clone())).await, "1048576\n");
    assert_eq!(printed(&shell("true").input(much)).await, "");
}

#[tokio::test]
async fn what_is_not_installed_is_named() {
    let error = Command::new("no-such-program", &environment()).run(&mut Vec::new(), &CancellationToken::new()).await;
    assert_eq!(error.unwrap_err().to_string(), "`no-such-program` is not installed on this worker");
}

#[tokio::test]
async fn cancelling_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, child) = (dir.path().join("ready"), dir.path().join("child"));
    let script = "sleep 1000 & echo $! > child; mv child ready; wait";
    let command = shell(script).directory(dir.path());
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let cancel = cancel.clone();
        async move { command.run(&mut Vec::new(), &cancel).await }
    });
    appears(&ready).await;
    assert!(!child.exists());
    let pid = std::fs::read_to_string(&ready).unwrap();
    assert!(is_alive(pid.trim()));
    cancel.cancel();
    assert!(matches!(run.await.unwrap(), Err(CommandError::Cancelled)));
    while is_alive(pid.trim()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn cancelling_lets_it_clean_up() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let command = shell("trap 'echo cleaned; exit 0' TERM; touch ready; while :; do sleep 1000 & wait $!; done")
        .directory(dir.path());
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let cancel = cancel.clone();
        async move {
            let mut output = Vec::new();
            (command.run(&mut output, &cancel).await, output)
        }
    });
    appears(&ready).await;
    cancel.cancel();
    let (ended, output) = run.await.unwrap();
    assert!(matches!(ended, Err(CommandError::Cancelled)));
    // The shell may say before that what it waited for was terminated.
    assert!(output.ends_with(b"cleaned\n"), "{}", String::from_utf8_lossy(&output));
}

#[tokio::test]
async fn what_ignores_the_request_to_end_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let command = shell("trap '' TERM; touch ready; while :; do sleep 1000; done").directory(dir.path());
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let cancel = cancel.clone();
        async move { command.run(&mut Vec::new(), &cancel).await }
    });
    appears(&ready).await;
    cancel.cancel();
    assert!(matches!(run.await.unwrap(), Err(CommandError::Cancelled)));
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let command = shell("sleep 1000 & echo $! > child; mv child ready; wait").directory(dir.path());
    let run = tokio::spawn(async move { command.run(&mut Vec::new(), &CancellationToken::new()).await });
    appears(&ready).await;
    let pid = std::fs::read_to_string(&ready).unwrap();
    run.abort();
    while is_alive(pid.trim()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_grandchild_that_holds_the_output_ends_with_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let command = shell("sleep 1000 & echo $! > child; echo done").directory(dir.path());
    assert_eq!(printed(&command).await, "done\n");
    let pid = std::fs::read_to_string(dir.path().join("child")).unwrap();
    while is_alive(pid.trim()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_grandchild_that_left_the_group_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let command = shell(
        "setsid sh -c 'echo $$ > child; mv child ready; exec sleep 1000' & while [ ! -e ready ]; do :; done; echo done",
    );
    assert_eq!(printed(&command.directory(dir.path())).await, "done\n");
    let pid = std::fs::read_to_string(dir.path().join("ready")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn all_that_it_printed_last_is_kept() {
    let mut output = Vec::new();
    let command = shell("head -c 3000000 /dev/zero; printf end");
    command.run(&mut output, &CancellationToken::new()).await.unwrap();
    assert_eq!(output.len(), 3_000_003);
}

#[tokio::test]
async fn silence_has_an_end() {
    let command = shell("echo begun; sleep 1000").patience(Duration::from_millis(50)).named("git fetch");
    let error = command.run(&mut Vec::new(), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "`git fetch` got nowhere for 0 s");
}

#[tokio::test]
async fn output_that_nobody_keeps_ends_it() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = shell("yes").run(&mut Full, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot keep what `yes` prints".replace("yes", "sh"));
}
