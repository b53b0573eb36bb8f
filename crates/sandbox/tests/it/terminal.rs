//! Terminals inside, and pipes for all three descriptors.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use kiln_sandbox::{ExitStatus, Io, Mount, Process, Root, SandboxError, Source, Terminal, TerminalSize};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::harness::{BUILDER, Jail, shell};
use crate::needs_sandbox;

/// The user's side of a terminal.
struct User {
    master: File,
    seen: String,
}

impl User {
    /// Reads until `text` has come.
    fn wait_for(&mut self, text: &str) {
        let mut byte = [0];
        while !self.seen.ends_with(text) {
            assert_eq!(self.master.read(&mut byte).unwrap_or(0), 1, "it ended without {text:?}: {}", self.seen);
            self.seen.push(char::from(byte[0]));
        }
    }

    fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads the rest, until all that had the terminal is gone, and returns everything.
    fn end(mut self) -> String {
        let mut buffer = [0; 1024];
        loop {
            match self.master.read(&mut buffer) {
                Ok(length @ 1..) => self.seen.push_str(&String::from_utf8_lossy(&buffer[..length])),
                Ok(_) => panic!("a terminal ends with an error"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
                    return self.seen.replace("\r\n", "\n");
                }
            }
        }
    }
}

/// Runs `process` on a terminal, with `user` in front of it.
async fn on_terminal<T: Send + 'static>(
    jail: &Jail,
    process: &Process,
    cancel: &CancellationToken,
    user: impl FnOnce(User) -> T + Send + 'static,
) -> (Result<ExitStatus, SandboxError>, T) {
    let (sender, master) = oneshot::channel::<OwnedFd>();
    let io = Io::Terminal(Terminal { size: TerminalSize { rows: 24, columns: 80 }, master: sender });
    let run = jail.sandbox.run(Root::Dir(jail.root()), process, io, cancel);
    let user = async {
        let master = File::from(master.await.unwrap());
        tokio::task::spawn_blocking(move || user(User { master, seen: String::new() })).await.unwrap()
    };
    let (ended, seen) = tokio::join!(run, user);
    (ended.map(|ended| ended.status), seen)
}

/// As [`on_terminal`]; the command must end by itself.
async fn on_terminal_to_its_end<T: Send + 'static>(
    process: &Process,
    user: impl FnOnce(User) -> T + Send + 'static,
) -> (ExitStatus, T) {
    let (status, seen) = on_terminal(&Jail::new(), process, &CancellationToken::new(), user).await;
    (status.unwrap(), seen)
}

#[tokio::test]
async fn a_terminal_is_the_commands_own() {
    needs_sandbox!();
    let process = shell(
        "test -t 0 && test -t 1 && test -t 2 && echo all; stty size; cut -d' ' -f5,6,7 /proc/$$/stat; ls -1 /dev/pts
         echo to the terminal > /dev/tty; echo to the console > /dev/console; readlink /proc/self/fd/0; exit 7",
    );
    let (status, seen) = on_terminal_to_its_end(&process, User::end).await;
    // Terminal 136:0, the first one of its own devpts.
    let expected = "all\n24 80\n2 2 34816\n0\nptmx\nto the terminal\nto the console\n/dev/pts/0\n";
    assert_eq!((status, &*seen), (ExitStatus::Code(7), expected));
}

#[tokio::test]
async fn a_user_can_open_the_terminal_by_name() {
    needs_sandbox!();
    let mut process =
        shell("for f in stdout stderr tty console pts/0; do echo $f > /dev/$f; done; stat -c '%u %g %a' /dev/pts/0");
    process.user = BUILDER;
    let (_, seen) = on_terminal_to_its_end(&process, User::end).await;
    assert_eq!(seen, "stdout\nstderr\ntty\nconsole\npts/0\n1000 5 620\n");
}

#[tokio::test]
async fn what_is_typed_is_echoed_and_read_and_its_end_too() {
    needs_sandbox!();
    let (status, seen) = on_terminal_to_its_end(&shell("echo ready; cat; echo end"), |mut user| {
        user.wait_for("ready\r\n");
        user.types("hello\r");
        user.wait_for("hello\r\nhello\r\n");
        user.types("\x04");
        user.end()
    })
    .await;
    assert_eq!((status, &*seen), (ExitStatus::Code(0), "ready\nhello\nhello\nend\n"));
}

#[tokio::test]
async fn a_new_size_is_seen_inside() {
    needs_sandbox!();
    // `wait` is ended by a signal whenever that comes. `read` is not, if it comes just before; and if it comes before what is
    // typed, its echo follows the answer.
    let script = "trap 'stty size; exit 7' WINCH; sleep 1000 & echo ready; wait";
    let (status, seen) = on_terminal_to_its_end(&shell(script), |mut user| {
        user.wait_for("ready\r\n");
        let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(user.master.as_fd(), size).unwrap();
        user.end()
    })
    .await;
    assert_eq!((status, &*seen), (ExitStatus::Code(7), "ready\n50 132\n"));
}

#[tokio::test]
async fn ctrl_c_interrupts_what_runs_inside_and_nothing_else() {
    needs_sandbox!();
    let script = "trap 'echo interrupted' INT; sh -c 'trap - INT; echo ready; exec sleep 1000'; echo went on";
    let (status, seen) = on_terminal_to_its_end(&shell(script), |mut user| {
        user.wait_for("ready\r\n");
        user.types("\x03");
        user.end()
    })
    .await;
    assert_eq!(status, ExitStatus::Code(0));
    assert!(seen.contains("interrupted\n") && seen.ends_with("went on\n"), "{seen}");
}

#[tokio::test]
async fn job_control_works() {
    needs_sandbox!();
    let script = "set -m; sh -c 'echo ready; read line; echo got $line'; echo stopped; fg";
    let (status, seen) = on_terminal_to_its_end(&shell(script), |mut user| {
        user.wait_for("ready\r\n");
        user.types("\x1a");
        user.wait_for("stopped\r\n");
        user.types("word\r");
        user.end()
    })
    .await;
    assert_eq!(status, ExitStatus::Code(0), "{seen}");
    assert!(seen.ends_with("got word\n"), "{seen}");
}

#[tokio::test]
async fn a_command_whose_terminal_is_closed_is_hung_up() {
    needs_sandbox!();
    let (status, ()) = on_terminal_to_its_end(&shell("echo ready; while :; do sleep 1; done"), |mut user| {
        user.wait_for("ready\r\n");
    })
    .await;
    assert_eq!(status, ExitStatus::Signal(1));
}

#[tokio::test]
async fn cancelling_ends_a_terminal_too() {
    needs_sandbox!();
    let cancel = CancellationToken::new();
    let fires = cancel.clone();
    let process = shell("trap '' HUP INT TERM; echo ready; while :; do sleep 1; done");
    let (status, seen) = on_terminal(&Jail::new(), &process, &cancel, move |mut user| {
        user.wait_for("ready\r\n");
        fires.cancel();
        user.end()
    })
    .await;
    assert!(matches!(status, Err(SandboxError::Cancelled(_))), "{status:?}");
    assert_eq!(seen, "ready\n");
}

#[tokio::test]
async fn what_is_mounted_over_the_terminals_changes_nothing() {
    needs_sandbox!();
    let jail = Jail::new();
    let trap = jail.dir.path().join("trap");
    std::fs::create_dir(&trap).unwrap();
    std::os::unix::fs::symlink("/dev/tty", trap.join("ptmx")).unwrap();
    std::fs::write(trap.join("0"), "").unwrap();
    let mut process = shell("test -t 0 && echo a terminal; ls -1 /dev/pts; echo console > /dev/console");
    process.mounts = vec![Mount { target: "/dev/pts".into(), source: Source::Dir(trap) }];
    let (status, seen) = on_terminal(&jail, &process, &CancellationToken::new(), User::end).await;
    assert_eq!(status.unwrap(), ExitStatus::Code(0));
    assert_eq!(seen, "a terminal\n0\nptmx\nconsole\n");
}

#[tokio::test]
async fn stdin_can_be_given_and_the_two_outputs_kept_apart() {
    needs_sandbox!();
    for user in [crate::harness::ROOT, BUILDER] {
        let jail = Jail::new();
        let (stdin, mut to_it) = std::io::pipe().unwrap();
        let ((from_it, stdout), (errors, stderr)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        to_it.write_all(b"given\n").unwrap();
        drop(to_it);
        let io = Io::Streams { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        let mut process = shell("cat /dev/stdin; echo error >&2; ls /proc/self/fd | wc -l");
        process.user = user;
        let ended = jail.sandbox.run(Root::Dir(jail.root()), &process, io, &CancellationToken::new()).await.unwrap();
        assert_eq!(ended.status, ExitStatus::Code(0));
        // `ls` has the directory open, too.
        assert_eq!(crate::harness::read_all(from_it), "given\n4\n");
        assert_eq!(crate::harness::read_all(errors), "error\n");
    }
}
