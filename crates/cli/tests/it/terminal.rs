//! `kiln run` and `kiln build --shell-on-failure` on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use kiln_testkit::{Need, need};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::env::TestEnv;
use crate::needs_builds;

/// A user at a terminal, which only kiln has open.
struct User {
    keyboard: File,
    kiln: Child,
    seen: String,
}

impl User {
    fn starts(env: &TestEnv, arguments: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        // `setsid` makes it the controlling terminal, which we cannot do between fork and exec.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(env!("CARGO_BIN_EXE_kiln")).args(arguments);
        env.set_up(&mut command);
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let kiln = command.env("TERM", "vt100").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { keyboard: master.into(), kiln, seen: String::new() }
    }

    #[track_caller]
    fn waits_for(&mut self, text: &str) {
        let mut byte = [0];
        while !self.seen.ends_with(text) {
            // Ends with EIO when kiln does.
            let length = self.keyboard.read(&mut byte).unwrap_or(0);
            assert_eq!(length, 1, "kiln ended without {text:?}: {}", self.seen);
            self.seen.push(char::from(byte[0]));
        }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn sends(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.kiln), signal).unwrap();
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.keyboard).unwrap().local_modes
    }

    /// Waits for kiln's end. Returns how it ended and all that was seen; the terminal is as it was at first.
    fn ends(mut self) -> (ExitStatus, String) {
        let mut rest = Vec::new();
        // Ends with EIO.
        let _ = self.keyboard.read_to_end(&mut rest);
        let status = self.kiln.wait().unwrap();
        assert!(self.modes().contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{:?}", self.modes());
        (status, self.seen + &String::from_utf8_lossy(&rest))
    }
}

const RAW: &str = "a terminal that is lent passes keys on as they are";

#[test]
fn a_command_has_a_terminal_and_ends_as_it_does() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    let script = "tty; echo $TERM; echo ready; read line; echo got $line; exit 7";
    let mut user = User::starts(&env, &["run", "--quiet", "rootfs:base.tar", "--", "sh", "-c", script]);
    user.waits_for("ready\r\n");
    assert!(!user.modes().intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{RAW}");
    user.types("word\r");
    let (status, seen) = user.ends();
    assert_eq!((status.code(), &*seen), (Some(7), "/dev/pts/0\r\nvt100\r\nready\r\nword\r\ngot word\r\n"));
    env.assert_clean();
}

#[test]
fn ctrl_c_goes_inside() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    let script = "trap 'echo interrupted' INT; sh -c 'trap - INT; echo ready; exec sleep 1000'; echo went on";
    let mut user = User::starts(&env, &["run", "--quiet", "rootfs:base.tar", "--", "sh", "-c", script]);
    user.waits_for("ready\r\n");
    user.types("\x03");
    let (status, seen) = user.ends();
    assert!(status.success() && seen.ends_with("went on\r\n") && seen.contains("interrupted"), "{seen}");
}

#[test]
fn a_new_size_of_the_terminal_is_seen_inside() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    let script = "echo ready; until [ \"$(stty size)\" = '50 132' ]; do sleep 0.01; done; echo seen";
    let mut user = User::starts(&env, &["run", "--quiet", "rootfs:base.tar", "--", "sh", "-c", script]);
    user.waits_for("ready\r\n");
    tcsetwinsize(user.keyboard.as_fd(), Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let (status, seen) = user.ends();
    assert!(status.success() && seen.ends_with("seen\r\n"), "{seen}");
}

#[test]
fn much_can_be_typed_and_printed_at_once() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    // More than any buffer on the way: whoever waits for one side only would wait for ever.
    let script = "stty raw -echo; echo ready; head -c 300000 | tee /copy; echo; md5sum < /copy";
    let mut user = User::starts(&env, &["run", "--quiet", "rootfs:base.tar", "--", "sh", "-c", script]);
    user.waits_for("ready\n");
    let mut keyboard = user.keyboard.try_clone().unwrap();
    let typist = std::thread::spawn(move || keyboard.write_all("0123456789".repeat(30_000).as_bytes()).unwrap());
    let (status, seen) = user.ends();
    typist.join().unwrap();
    assert!(status.success(), "{seen}");
    assert_eq!(seen.matches("0123456789").count(), 30_000);
}

#[test]
fn the_terminal_is_given_back_when_kiln_is_told_to_end() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    let variable = format!("MARKER={}", env.marker());
    for signal in [Signal::TERM, Signal::HUP] {
        let script = "trap '' TERM HUP INT; echo ready; while :; do sleep 1000; done";
        let mut user =
            User::starts(&env, &["run", "--quiet", "--env", &variable, "rootfs:base.tar", "--", "sh", "-c", script]);
        user.waits_for("ready\r\n");
        user.sends(signal);
        let (status, seen) = user.ends();
        assert_eq!(status.code(), Some(130), "{seen}");
        env.assert_clean();
    }
}

#[test]
fn a_shell_in_a_failed_step_sees_what_it_left_and_changes_nothing() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    env.write("token", "hunter2");
    for progress in ["tty", "plain"] {
        env.spec(
            r#"(workdir /work) (env A a)
               (run (cache (c (target /c))) (secrets (token (target /t)))
                    (shell "echo left > here; echo in > /c/in; echo why it failed; exit 7"))"#,
        );
        let arguments =
            ["build", "-f", "spec", "--secret", "token:token", "--progress", progress, "--shell-on-failure"];
        let mut user = User::starts(&env, &[&arguments[..], &["src"]].concat());
        user.waits_for("`exit` lets the build fail.\r\n");
        assert!(
            user.seen.contains("why it failed\r\n") && user.seen.contains("exited with status 7:"),
            "{}",
            user.seen
        );
        user.types("echo $A$A; pwd; cat here /c/in /t; echo; rm /c/in; echo d''one\r");
        user.waits_for("done\r\n");
        assert!(user.seen.contains("aa\r\n/work\r\nleft\r\nin\r\nhunter2\r\n"), "{}", user.seen);
        // How the shell ends does not count.
        user.types("exit 0\r");
        let (status, seen) = user.ends();
        assert_eq!(status.code(), Some(1), "{seen}");
        assert!(seen.contains("exited with status 7\r\n") && seen.contains("kiln log"), "{seen}");
        let cache = env.run(&["run", "--quiet", "--cache", "id=c,target=/c", "rootfs:base.tar", "--", "cat", "/c/in"]);
        assert_eq!(cache.ok().stdout, "in\n");
        env.assert_clean();
    }
}

#[test]
fn without_a_terminal_a_failed_step_opens_no_shell() {
    needs_builds!();
    let env = TestEnv::new();
    let failed = env.build_with(&["--shell-on-failure"], r#"(run (shell "exit 7"))"#).fails_with(1);
    assert!(failed.stderr.contains("note: --shell-on-failure does nothing"), "{}", failed.stderr);
}

#[test]
fn of_steps_that_fail_side_by_side_one_gets_a_shell() {
    needs_builds!();
    need!(Need::Tool("setsid", "util-linux"));
    let env = TestEnv::new();
    env.spec(
        r#"((build side ((from rootfs:base.tar) (run (shell "exit 7"))))
            (from rootfs:base.tar) (run (shell "exit 8")) (copy (from (build side)) (src x) (dst /x)))"#,
    );
    let arguments = ["build", "-f", "spec", "--progress", "plain", "--shell-on-failure", "src"];
    let mut user = User::starts(&env, &arguments);
    user.waits_for("`exit` lets the build fail.\r\n");
    let shown = if user.seen.contains("exited with status 7:") { 7 } else { 8 };
    user.types("exit\r");
    let (status, seen) = user.ends();
    assert_eq!((status.code(), seen.matches("This is a shell").count()), (Some(1), 1), "{seen}");
    assert!(seen.contains(&format!("exited with status {shown}\r\n")), "{seen}");
    env.assert_clean();
}
