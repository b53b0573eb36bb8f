//! How a run ends, and that nothing is left of it.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use kiln_sandbox::{ExitStatus, Process, Root, SandboxError};
use tokio_util::sync::CancellationToken;

use crate::harness::{HELPER, Jail, PROBE, kind, read_all, read_line, shell};
use crate::needs_sandbox;

#[tokio::test]
async fn the_exit_status_is_the_commands() {
    needs_sandbox!();
    let jail = Jail::new();
    for (script, status) in [
        ("exit 0", ExitStatus::Code(0)),
        ("exit 42", ExitStatus::Code(42)),
        ("exit 255", ExitStatus::Code(255)),
        ("kill -9 $$", ExitStatus::Signal(9)),
        ("kill -TERM $$", ExitStatus::Signal(15)),
        ("kill -SEGV $$", ExitStatus::Signal(11)),
    ] {
        assert_eq!(jail.run(&shell(script)).await.unwrap().0, status, "{script}");
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_ends_as_in_a_shell() {
    needs_sandbox!();
    let jail = Jail::new();
    let run = async |command: &str| {
        let mut process = shell("");
        process.argv = vec![command.into()];
        jail.run(&process).await.unwrap()
    };
    assert_eq!(run("nonesuch").await, (ExitStatus::Code(127), "kiln: nonesuch: not found\n".to_owned()));
    assert_eq!(run("/bin/nonesuch").await.0, ExitStatus::Code(127));
    assert_eq!(run("").await.0, ExitStatus::Code(127));
    assert_eq!(run("/etc/passwd").await.0, ExitStatus::Code(126));
    assert_eq!(run("/tmp").await.0, ExitStatus::Code(126));
    assert_eq!(run("true").await.0, ExitStatus::Code(0));
}

#[tokio::test]
async fn a_detached_grandchild_that_holds_the_output_does_not_hang_the_run() {
    needs_sandbox!();
    let output = Jail::new().sh("(setsid sh -c 'sleep 100000' &) ; (sleep 100000 &); echo done").await;
    assert_eq!(output, "done\n");
}

#[tokio::test]
async fn orphans_are_reaped() {
    needs_sandbox!();
    // Each inner shell leaves a child that ends after it.
    let script = "for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0.01 &'; done
                  while ls -d /proc/[0-9]* | grep -vE '/(1|'$$')$' | while read p; do cat $p/stat; done 2>/dev/null | grep sleep; do :; done
                  echo none left";
    assert!(Jail::new().sh(script).await.ends_with("none left\n"));
}

/// Starts `script`, which prints `ready`; then cancels.
async fn cancelled(script: &str) -> String {
    let jail = Jail::new();
    let cancel = CancellationToken::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let process = shell(script);
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let reading = tokio::task::spawn_blocking(move || (read_line(&mut reader), reader));
    let canceller = async {
        let (line, reader) = reading.await.unwrap();
        cancel.cancel();
        (line, reader)
    };
    let (ended, (line, reader)) = tokio::join!(run, canceller);
    assert!(matches!(ended, Err(SandboxError::Cancelled(_))), "{ended:?}");
    // Nobody is left to hold it.
    read_all(reader);
    line
}

#[tokio::test]
async fn cancelling_kills_what_ignores_signals() {
    needs_sandbox!();
    assert_eq!(cancelled("trap '' TERM INT HUP QUIT; echo ready; while :; do sleep 1; done").await, "ready");
}

#[tokio::test]
async fn cancelling_kills_what_is_stopped() {
    needs_sandbox!();
    // Where the shell is the first process of its namespace it does not stop, but goes on: pid_namespaces(7).
    let script = "sh -c 'kill -STOP $$' & echo ready; kill -STOP $$; while :; do sleep 1; done";
    assert_eq!(cancelled(script).await, "ready");
}

#[tokio::test]
async fn cancelling_kills_what_left_its_session() {
    needs_sandbox!();
    let script = "for i in 1 2 3 4 5; do (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &); done; echo ready
                  while :; do sleep 1; done";
    assert_eq!(cancelled(script).await, "ready");
}

#[tokio::test]
async fn cancelling_kills_what_keeps_forking() {
    needs_sandbox!();
    assert_eq!(cancelled("f() { (f) & }; echo ready; while :; do (:); (sleep 0.01 &); done").await, "ready");
}

#[tokio::test]
async fn cancelled_before_it_begins_nothing_runs() {
    needs_sandbox!();
    let jail = Jail::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (reader, writer) = std::io::pipe().unwrap();
    let ended = jail.sandbox.run(Root::Dir(jail.root()), &shell("echo ran"), writer.into(), &cancel).await;
    assert!(matches!(ended, Err(SandboxError::Cancelled(_))));
    assert_eq!(read_all(reader), "");
}

#[tokio::test]
async fn dropping_the_run_kills_it() {
    needs_sandbox!();
    let jail = Jail::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let process: Process = shell("echo ready; while :; do sleep 1; done");
    let cancel = CancellationToken::new();
    let run = jail.sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let reading = tokio::task::spawn_blocking(move || (read_line(&mut reader), reader));
    let reader = tokio::select! {
        ended = run => panic!("{ended:?}"),
        read = reading => read.unwrap().1,
    };
    tokio::task::spawn_blocking(move || read_all(reader)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_set_up_is_reported_and_nothing_runs() {
    needs_sandbox!();
    let jail = Jail::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let root = Root::Dir(jail.dir.path().join("nonesuch"));
    let error = jail.sandbox.run(root, &shell("echo ran"), writer.into(), &CancellationToken::new()).await.unwrap_err();
    let path = jail.dir.path().join("nonesuch");
    assert_eq!(error.to_string(), format!("cannot mount the root {}", path.display()));
    assert_eq!(read_all(reader), "");
}

/// Starts the probe as a caller of the sandbox; its stdout is the command's output.
pub(crate) fn caller(jail: &Jail, script: &str) -> Child {
    let mut command = Command::new(PROBE);
    command.args(["run", jail.root().to_str().unwrap(), HELPER, &kind(), script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Returns the processes whose parent is `parent`.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may contain anything.
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(parent.as_str())
    })
    .collect()
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn everything_dies_with_the_caller() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut caller = caller(&jail, "trap '' TERM; echo ready; while :; do sleep 1; done");
    let mut output = caller.stdout.take().unwrap();
    assert_eq!(read_line(&mut output), "ready");
    let helper = children_of(caller.id())[0];
    kill(caller.id());
    caller.wait().unwrap();
    // Ends when the command is gone.
    output.read_to_end(&mut Vec::new()).unwrap();
    // And so does the helper, after it.
    while fs::metadata(format!("/proc/{helper}/root/bin/busybox")).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn everything_dies_with_the_helper() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut caller = caller(&jail, "trap '' TERM; echo ready; while :; do sleep 1; done");
    let mut output = caller.stdout.take().unwrap();
    assert_eq!(read_line(&mut output), "ready");
    kill(children_of(caller.id())[0]);
    output.read_to_end(&mut Vec::new()).unwrap();
    let mut said = String::new();
    caller.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("the sandbox's helper died"), "{said}");
    caller.wait().unwrap();
}

#[test]
fn signals_to_the_helper_do_not_end_the_run() {
    needs_sandbox!();
    let jail = Jail::new();
    let script = "echo ready; until [ -e /go ]; do sleep 0.01; done; echo went on";
    let mut caller = caller(&jail, script);
    let mut output = caller.stdout.take().unwrap();
    assert_eq!(read_line(&mut output), "ready");
    let helper = rustix::process::Pid::from_raw(children_of(caller.id())[0].cast_signed()).unwrap();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::HUP] {
        rustix::process::kill_process(helper, signal).unwrap();
    }
    assert_ne!(rustix::process::getpgid(Some(helper)).unwrap(), rustix::process::getpgrp());
    fs::write(jail.root().join("go"), "").unwrap();
    assert_eq!(read_line(&mut output), "went on");
    caller.wait().unwrap();
}
