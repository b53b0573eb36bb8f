//! The runtimes: how each is found, called and understood. Effects only in [`Found::find`].

use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::PLACE;
use crate::SandboxError;
use crate::plan::{host_path, to_path};

/// A program that runs OCI bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `runc`, the reference.
    Runc,
    /// `crun`.
    Crun,
    /// `youki`. In no distribution's packages yet, so it is called as `runc` is, and not tested.
    Youki,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Youki => "youki",
        })
    }
}

impl Runtime {
    /// Returns the oldest version that will do, and why.
    fn oldest(self) -> ((u32, u32), &'static str) {
        match self {
            // `errnoRet` of its own for each rule, and a umask: 1.0. What is older than 1.1 gets no fixes.
            Self::Runc => ((1, 1), "older ones get no fixes"),
            Self::Crun => ((1, 0), "older ones lack `defaultErrnoRet`"),
            Self::Youki => ((0, 3), "older ones lack `defaultErrnoRet`"),
        }
    }

    /// Returns what gets it.
    fn way_out(self) -> &'static str {
        match self {
            Self::Runc => "apt-get install runc",
            Self::Crun => "apt-get install crun",
            Self::Youki => "see https://github.com/youki-dev/youki",
        }
    }

    /// Returns whether it makes control groups. crun can be told not to: then the command stays in those of the run.
    pub(super) fn uses_groups(self) -> bool {
        self != Self::Crun
    }

    /// Returns whether it mounts the root anew without its attributes.
    pub(super) fn clears_nodev(self) -> bool {
        self == Self::Crun
    }

    /// Returns its arguments for running the bundle.
    pub(super) fn arguments(self) -> Vec<CString> {
        let log = match self {
            Self::Crun => format!("file:{PLACE}/log"),
            Self::Runc | Self::Youki => format!("{PLACE}/log"),
        };
        let [state, bundle, pid] = ["state", "bundle", "pid"].map(|name| format!("{PLACE}/{name}"));
        let mut words = vec!["--root", &state, "--log", &log, "--log-format", "json"];
        if !self.uses_groups() {
            words.extend(["--cgroup-manager", "disabled"]);
        }
        // Detached, the command has our descriptors and not pipes between, and its end is ours to see.
        words.extend(["run", "--detach", "--pid-file", &pid, "--bundle", &bundle, "command"]);
        words.into_iter().map(|word| CString::new(word).expect("a literal without NUL")).collect()
    }
}

/// A runtime on this host.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) kind: Runtime,
    pub(super) program: CString,
}

impl Found {
    /// Looks in each directory of `path`, and asks what is there for its version.
    pub(super) fn find(kind: Runtime, path: &OsStr) -> Result<Self, SandboxError> {
        let unusable =
            |what: String| SandboxError::NoRuntime { runtime: kind.to_string(), what, way_out: kind.way_out() };
        let is_program = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut files = std::env::split_paths(path).map(|dir| dir.join(kind.to_string()));
        let file = files.find(|file| is_program(file)).ok_or_else(|| unusable("it is not in $PATH".to_owned()))?;
        let program = host_path(&file)?;
        let answer = Command::new(to_path(&program)).arg("--version").output();
        let answer = answer.map_err(|error| unusable(format!("{} does not start: {error}", file.display())))?;
        let text = String::from_utf8_lossy(&answer.stdout);
        let (oldest, why) = kind.oldest();
        match version(&text) {
            Some(version) if version >= oldest => Ok(Self { kind, program }),
            Some((major, minor)) => Err(unusable(format!(
                "{} is version {major}.{minor}; it takes {}.{}, as {why}",
                file.display(),
                oldest.0,
                oldest.1
            ))),
            None => Err(unusable(format!("{} does not say which version it is", file.display()))),
        }
    }
}

/// Returns the version in what `--version` prints: `runc version 1.1.5+ds1`, `youki version: 0.3.0`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.lines().next()?.split_once("version")?;
    let digits = rest.trim_start_matches([':', ' ']);
    let mut numbers = digits.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What a runtime says of a run that did not go well.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing: the command ran.
    Nothing,
    /// The command may not be executed.
    CannotExecute,
    /// There is no such command.
    NotFound,
    /// It failed itself.
    Failed(String),
}

/// Understands a runtime's log: lines of JSON. The last error counts; runc tells the cause last.
pub(crate) fn said(log: &str) -> Said {
    let error = |line: &str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        let level = entry["level"].as_str()?.to_ascii_lowercase();
        // youki has its message among `fields`.
        let message = entry["msg"].as_str().or(entry["fields"]["message"].as_str())?.trim().to_owned();
        matches!(level.as_str(), "error" | "fatal" | "panic").then_some(message)
    };
    let Some(message) = log.lines().rev().find_map(error) else { return Said::Nothing };
    let is_of_command = message.contains("exec") && !message.contains("exec fifo");
    let tells = |reasons: &[&str]| is_of_command && reasons.iter().any(|reason| message.ends_with(reason));
    if tells(&[
        "permission denied",
        "Permission denied",
        "exec format error",
        "open executable: Operation not permitted",
    ]) {
        Said::CannotExecute
    } else if message.contains("executable file") && message.contains("not found in $PATH") {
        Said::NotFound
    } else {
        Said::Failed(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\nspec: 1.0.2-dev\n"), Some((1, 1)));
        assert_eq!(version("crun version 1.8.1\ncommit: f8a0\n"), Some((1, 8)));
        assert_eq!(version("youki version: 0.3.0\ncommit: 1\n"), Some((0, 3)));
        assert_eq!(version("hello\n"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn what_runtimes_say_is_understood() {
        let runc = |message: &str| said(&format!("{{\"level\":\"error\",\"msg\":\"{message}\",\"time\":\"t\"}}\n"));
        let failed = "runc run failed: unable to start container process: ";
        assert_eq!(runc(&format!(r#"{failed}exec: \"nonesuch\": executable file not found in $PATH"#)), Said::NotFound);
        assert_eq!(runc(&format!("{failed}exec /bin/mine: permission denied")), Said::CannotExecute);
        assert_eq!(runc(&format!(r#"{failed}exec: \"/etc\": permission denied"#)), Said::CannotExecute);
        let mount = format!("{failed}error mounting to rootfs: permission denied");
        // "executing" nothing: what failed is a mount.
        assert_eq!(runc(&mount.replace("error ", "")), Said::Failed(mount.replace("error ", "")));
        assert_eq!(runc("open executable: Operation not permitted"), Said::CannotExecute);
        assert_eq!(runc("executable file `x` not found in $PATH: No such file or directory"), Said::NotFound);
        assert_eq!(said("{\"level\":\"warning\",\"msg\":\"old\"}\n"), Said::Nothing);
        assert_eq!(said(""), Said::Nothing);
        assert_eq!(said("not json\n"), Said::Nothing);
        let youki = r#"{"timestamp":"t","level":"ERROR","fields":{"message":"failed to create"},"target":"youki"}"#;
        assert_eq!(said(youki), Said::Failed("failed to create".to_owned()));
    }

    #[test]
    fn each_is_called_its_own_way() {
        let line = |runtime: Runtime| {
            let words: Vec<_> = runtime.arguments().iter().map(|word| word.to_str().unwrap().to_owned()).collect();
            words.join(" ")
        };
        let at = PLACE;
        let run = format!("run --detach --pid-file {at}/pid --bundle {at}/bundle command");
        assert_eq!(line(Runtime::Runc), format!("--root {at}/state --log {at}/log --log-format json {run}"));
        assert_eq!(line(Runtime::Youki), line(Runtime::Runc));
        assert_eq!(
            line(Runtime::Crun),
            format!("--root {at}/state --log file:{at}/log --log-format json --cgroup-manager disabled {run}")
        );
    }

    #[test]
    fn a_runtime_that_is_missing_or_old_is_told_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let find = || Found::find(Runtime::Crun, dir.path().as_os_str()).unwrap_err().to_string();
        assert_eq!(find(), "cannot use `crun`: it is not in $PATH (apt-get install crun)");
        let file = dir.path().join("crun");
        std::fs::write(&file, "#!/bin/sh\necho crun version 0.17\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let expected = format!(
            "cannot use `crun`: {} is version 0.17; it takes 1.0, as older ones lack `defaultErrnoRet` (apt-get install crun)",
            file.display()
        );
        assert_eq!(find(), expected);
    }
}
