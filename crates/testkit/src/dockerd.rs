//! A real Docker daemon in a directory of its own, and a client that can do more than talk to it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// A Docker daemon that knows nothing of the system's. It ends with this value. Needs dockerd, and docker to talk to it.
#[derive(Debug)]
pub struct Dockerd {
    child: Child,
    dir: TempDir,
}

impl Dockerd {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    ///
    /// What it said last: not every machine can run one.
    pub fn start() -> Result<Self, String> {
        Self::start_with("{}")
    }

    /// Like [`start`](Self::start), with this as its `daemon.json`.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn start_with(configuration: &str) -> Result<Self, String> {
        // What it runs has no network: a bridge would be the machine's.
        let mut dockerd = Command::new("dockerd");
        dockerd.arg("--bridge=none");
        Self::start_as(dockerd, configuration)
    }

    /// Like [`start`](Self::start), on a network of its own, which reaches nothing. BuildKit runs no command without a bridge.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn start_apart() -> Result<Self, String> {
        let mut dockerd = Command::new("unshare");
        // It becomes dockerd, and stays the same process.
        dockerd.args(["--net", "dockerd"]);
        Self::start_as(dockerd, "{}")
    }

    fn start_as(mut dockerd: Command, configuration: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| dir.path().join(name);
        fs::write(path("configuration"), configuration).map_err(|error| error.to_string())?;
        let mut child = dockerd
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--host")
            .arg(format!("unix://{}", path("socket").display()))
            .arg("--config-file")
            .arg(path("configuration"))
            .arg("--iptables=false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let dockerd = Self { child, dir };
        let mut said = String::new();
        for line in &mut lines {
            if line.contains("API listen on") {
                // It must not wait for a full pipe; this ends with it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(dockerd);
            }
            said = line;
        }
        Err(said)
    }

    /// Returns the environment in which `docker` finds it.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![("DOCKER_HOST".into(), format!("unix://{}", self.dir.path().join("socket").display()).into())]
    }
}

/// Returns a directory of `$PATH` with a `docker` that can build with BuildKit, if there is one: many cannot without their plugin,
/// which must be the system's, not a user's.
pub fn docker_with_buildkit() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let builds = |dir: &PathBuf| {
        let mut asked = Command::new(dir.join("docker"));
        asked.args(["build", "--help"]).env_clear().env("HOME", "/nonexistent").env("DOCKER_BUILDKIT", "1");
        asked.output().is_ok_and(|said| said.status.success())
    };
    std::env::split_paths(&path).find(builds)
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // It stops its containerd, and unmounts.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
