//! Git, cut off from the host.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::repository::Login;
use crate::command::{Command, CommandError, Environment};
use kiln_api::JobLog;

/// Variables of git's that come from the worker's own environment: which authorities it trusts.
const KEPT: [&str; 2] = ["GIT_SSL_CAINFO", "GIT_SSL_CAPATH"];
/// Those that would let the host in otherwise.
const DROPPED: [&str; 6] = ["HOME", "XDG_CONFIG_HOME", "SSH_ASKPASS", "LC_ALL", "LANGUAGE", "LANG"];

/// Settings of every call. Each is here because its default would let the host's or a stranger's will in, or would wait for ever.
const SETTINGS: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("credential.helper", ""),
    // We repack under our own lock.
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    // Received packs stay as they are, which is one file and not a hundred.
    ("fetch.unpackLimit", "1"),
    // A server that sends less than a kilobyte a second for a minute.
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    // As many as there are processors, which pays for trees of some hundred files.
    ("checkout.workers", "0"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
];

/// Gives the login to the site that it is for, and only when git asks for it; so it is on no command line and in no file.
const HELPER: &str =
    r#"!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$KILN_GIT_USER" "$KILN_GIT_PASSWORD"; }; f"#;

/// Runs git.
#[derive(Clone, Debug)]
pub(super) struct Git {
    environment: Environment,
    /// How long a fetch may be silent.
    patience: Duration,
}

impl Git {
    /// `environment` is the worker's, of which git gets what does not configure git. `files` lets it fetch from `file://`.
    pub(super) fn new(environment: &Environment, files: bool, patience: Duration) -> Self {
        let mut environment: Environment = environment
            .iter()
            .filter(|(name, _)| {
                let name = name.to_string_lossy();
                KEPT.contains(&&*name) || !(name.starts_with("GIT_") || DROPPED.contains(&&*name))
            })
            .cloned()
            .collect();
        let mut set = |name: &str, value: &str| environment.push((name.into(), value.into()));
        for (name, value) in [
            ("HOME", "/nonexistent"),
            ("LC_ALL", "C.UTF-8"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", ""),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_ALLOW_PROTOCOL", if files { "https:http:git:file" } else { "https:http:git" }),
            // Merges are the same wherever they are made.
            ("GIT_AUTHOR_NAME", "Kiln"),
            ("GIT_AUTHOR_EMAIL", "kiln@localhost"),
            ("GIT_COMMITTER_NAME", "Kiln"),
            ("GIT_COMMITTER_EMAIL", "kiln@localhost"),
        ] {
            set(name, value);
        }
        Self { environment, patience }
    }

    /// Makes a call of `git SUBCOMMAND` on the repository at `directory`.
    pub(super) fn at(&self, directory: &Path, subcommand: &str) -> Command {
        self.call(directory, subcommand, None)
    }

    /// Makes a call that talks to a remote, with its login.
    pub(super) fn remote(&self, directory: &Path, subcommand: &str, login: Option<&Login>) -> Command {
        self.call(directory, subcommand, login).patience(self.patience)
    }

    /// Makes a call of `git init`, without anybody's template.
    pub(super) fn init(&self, ids: &str) -> Command {
        self.configured("init", &[]).args(["--quiet", "--template=", "--object-format"]).arg(ids)
    }

    fn call(&self, directory: &Path, subcommand: &str, login: Option<&Login>) -> Command {
        let helper;
        let more = match login {
            Some(login) => {
                helper = [(format!("credential.{}.helper", login.site), HELPER.to_owned())];
                &helper[..]
            }
            None => &[],
        };
        let mut command = self.configured(subcommand, more).env("GIT_DIR", directory);
        if let Some(login) = login {
            command = command.env("KILN_GIT_USER", &login.user).env("KILN_GIT_PASSWORD", &login.password);
        }
        command
    }

    fn configured(&self, subcommand: &str, more: &[(String, String)]) -> Command {
        let mut command = Command::new("git", &self.environment).named(format!("git {subcommand}")).arg(subcommand);
        let more = more.iter().map(|(name, value)| (&**name, &**value));
        let mut count = 0;
        for (name, value) in SETTINGS.iter().copied().chain(more) {
            command =
                command.env(format!("GIT_CONFIG_KEY_{count}"), name).env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string())
    }
}

/// How a call of git failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: CommandError,
    /// The end of what it said.
    said: String,
}

/// What git says of repositories that are not whole.
const DAMAGE: &[&str] = &[
    "corrupt",
    "bad object",
    "bad tree",
    "bad config",
    "bad signature",
    "invalid object",
    "missing blob",
    "missing object",
    "missing tree",
    "not a git repository",
    "not a valid object",
    "unable to read",
    "could not read",
    "cannot read",
    "failed to read",
    "could not parse",
    "could not get object",
    "could not fetch",
    "did not send all necessary objects",
    "does not point to a valid object",
    "unresolved deltas",
    "remote object not found",
    "unexpected line in",
    "unable to find",
    "unable to unpack",
    "inflate",
    "packfile",
    "pack file",
    "index file",
    "object file",
    "not a tree",
    "non-monotonic index",
    "nonexistent object",
    "invalid sha1 pointer",
    "broken",
    "alternate",
    "failed to unpack tree",
];
/// What sounds like it and speaks of the remote.
const NO_DAMAGE: &[&str] =
    &["could not read from remote", "could not read username", "could not read password", "remote helper"];

impl Failure {
    pub(super) fn says(&self, words: &[&str]) -> bool {
        let said = self.said.to_ascii_lowercase();
        words.iter().any(|words| said.contains(words))
    }

    /// Whether git found the repository not whole. A full disk looks like that too, and cloning anew is no help then.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self.error, CommandError::Failed { .. })
            && !self.says(&["no space left", "quota exceeded"])
            && (self.tells_of_damage() || self.was_killed_by_a_fault())
    }

    fn tells_of_damage(&self) -> bool {
        let said = self.said.to_ascii_lowercase();
        let has = |line: &str, words: &[&str]| words.iter().any(|words| line.contains(words));
        // What the other side says of itself is no damage of ours.
        said.lines().any(|line| !line.starts_with("remote:") && !has(line, NO_DAMAGE) && has(line, DAMAGE))
    }

    /// A pack that is cut off under a mapping kills git.
    fn was_killed_by_a_fault(&self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let fault = rustix::process::Signal::BUS.as_raw();
        matches!(self.error, CommandError::Failed { status, .. } if status.signal() == Some(fault))
    }

    /// Returns the last line that it said.
    pub(super) fn last_line(&self) -> String {
        let line = self.said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        line.trim_start_matches("fatal: ").trim_start_matches("error: ").to_owned()
    }
}

/// Runs `command`, which must succeed, and returns its output. What it says otherwise goes to the log.
pub(super) async fn output(command: &Command, log: &JobLog, cancel: &CancellationToken) -> Result<Vec<u8>, Failure> {
    let (status, output, said) = status(command, log, cancel).await?;
    command.succeeded(status).map_err(|error| Failure { error, said })?;
    Ok(output)
}

/// Runs `command`; returns how it ended, its output and the end of what it said.
pub(super) async fn status(
    command: &Command,
    log: &JobLog,
    cancel: &CancellationToken,
) -> Result<(ExitStatus, Vec<u8>, String), Failure> {
    let mut output = Vec::new();
    let mut said = Said::new(log);
    let ended = command.status_apart(&mut output, &mut said, cancel).await;
    let said = said.finish();
    match ended {
        Ok(status) => Ok((status, output, said)),
        Err(error) => Err(Failure { error, said }),
    }
}

/// Makes a failure of a status that is one.
pub(super) fn failure(command: &Command, status: ExitStatus, said: String) -> Option<Failure> {
    command.succeeded(status).err().map(|error| Failure { error, said })
}

/// Passes whole lines on to the log. Of a progress, whose lines end with a carriage return, only the last is kept.
struct Said<'a> {
    log: &'a JobLog,
    line: Vec<u8>,
    end: Vec<u8>,
}

impl<'a> Said<'a> {
    /// What is kept to be looked at, and how long a line may be before it is passed on in pieces.
    const KEPT: usize = 8 << 10;

    fn new(log: &'a JobLog) -> Self {
        Self { log, line: Vec::new(), end: Vec::new() }
    }

    fn pass(&mut self) -> io::Result<()> {
        self.end.extend_from_slice(&self.line);
        if self.end.len() > 2 * Self::KEPT {
            self.end.drain(..self.end.len() - Self::KEPT);
        }
        self.log.append(&std::mem::take(&mut self.line))
    }

    fn finish(mut self) -> String {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            // It fails again with the next line, which is reported.
            let _ = self.pass();
        }
        String::from_utf8_lossy(&self.end).into_owned()
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            match byte {
                b'\r' => self.line.clear(),
                byte => self.line.push(byte),
            }
            if byte == b'\n' || self.line.len() >= Self::KEPT {
                self.pass()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the path as an argument that no option can be taken for.
pub(super) fn path(path: &Path) -> &OsStr {
    debug_assert!(path.is_absolute(), "paths of ours are");
    path.as_os_str()
}
