//! A user without root's rights.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::Need;

/// A user who exists for the commands of one test only: they see files of their own for `/etc/passwd`, `/etc/subuid` and
/// `/etc/subgid`, in a mount namespace that ends with them, and a
/// `/dev/net/tun` that everybody may open, as where udev made it. The machine's stay as they are.
#[derive(Debug)]
pub struct Unprivileged {
    etc: TempDir,
}

/// What those commands do first. Its arguments: the directory with the files, the user's number, the directory of what cargo
/// has built and the one above it that the user may not enter, or nothing; the command.
const BECOME: &str = r#"etc=$1; id=$2; built=$3; closed=$4; shift 4
    if [ -n "$closed" ]; then
        mkdir -p "$etc/built"
        mount --bind "$built" "$etc/built"
        mount -t tmpfs -o mode=755 tmpfs "$closed"
        mkdir -p "$built"
        mount --bind "$etc/built" "$built"
    fi
    for file in passwd subuid subgid; do
        [ -e /etc/$file ] || : > /etc/$file
        mount --bind "$etc/$file" /etc/$file
    done
    if [ -e /dev/net/tun ]; then
        mount -t tmpfs -o mode=755 tmpfs /dev/net
        mknod -m 666 /dev/net/tun c 10 200
    fi
    exec setpriv --reuid "$id" --regid "$id" --clear-groups "$@""#;

impl Unprivileged {
    /// What it takes to become it.
    pub const NEEDS: [Need<'static>; 4] = [
        Need::Root,
        Need::Tool("unshare", "util-linux"),
        Need::Tool("setpriv", "util-linux"),
        Need::Tool("newuidmap", "uidmap"),
    ];
    /// The user's and its group's number.
    pub const ID: u32 = 64_123;
    /// The first of the ids that it has for user namespaces; there are 65536.
    pub const FIRST: u32 = 1_600_000_000;

    /// Returns a user with ids for user namespaces.
    ///
    /// # Errors
    ///
    /// There is no temporary directory.
    pub fn with_ids() -> io::Result<Self> {
        Self::with_range(Self::FIRST)
    }

    /// As [`with_ids`](Self::with_ids), with another first id.
    ///
    /// # Errors
    ///
    /// There is no temporary directory.
    pub fn with_range(first: u32) -> io::Result<Self> {
        Self::new(&format!("kilntest:{first}:65536\n"))
    }

    /// Returns a user who has none.
    ///
    /// # Errors
    ///
    /// There is no temporary directory.
    pub fn without_ids() -> io::Result<Self> {
        Self::new("")
    }

    fn new(ranges: &str) -> io::Result<Self> {
        let etc = tempfile::tempdir()?;
        let mut users = fs::read_to_string("/etc/passwd")?;
        users.push_str(&format!("kilntest:x:{id}:{id}::/nonexistent:/bin/sh\n", id = Self::ID));
        for (name, content) in [("passwd", users.as_str()), ("subuid", ranges), ("subgid", ranges)] {
            fs::write(etc.path().join(name), content)?;
        }
        Ok(Self { etc })
    }

    /// Returns the start of a command as this user, to which arguments can be added.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", BECOME, "sh"]);
        let built = built();
        let closed = built.ancestors().filter(|path| !is_open(path)).last();
        command.arg(self.etc.path()).arg(Self::ID.to_string()).arg(&built);
        command.arg(closed.unwrap_or(Path::new(""))).arg(program);
        command
    }

    /// As [`command`](Self::command), as root of a user namespace with all ids of this user.
    #[must_use]
    pub fn command_in_a_namespace(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "--mount", "--"]).arg(program);
        command
    }

    /// Runs tests of the calling binary, all but those `skipped`, as root of a user namespace. Returns how many passed.
    ///
    /// # Errors
    ///
    /// What they printed, if one failed, or what kept them from running.
    pub fn run_tests(&self, tests: &[&str], skipped: &[&str]) -> Result<usize, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = self.command_in_a_namespace(program);
        // The other user need not be able to enter the directory that this was started in.
        command.current_dir("/").args(tests).args(skipped.iter().flat_map(|test| ["--skip", test]));
        // In CI too: what the namespace lacks is no skip of this run.
        let output = command.env_remove("CI").output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let passed = said.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
        match output.status.success() {
            true => Ok(passed),
            false => Err(format!("{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Gives the user a file or directory.
    ///
    /// # Errors
    ///
    /// Whatever `chown(2)` gives.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::chown(path, Some(Self::ID), Some(Self::ID))
    }
}

/// Returns cargo's target directory, in which the calling test is `debug/deps/NAME`.
fn built() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map(Path::to_owned).unwrap_or_default()
}

/// Returns whether everybody may enter a directory.
fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
}

/// Returns whether this is root of the host, and not of a user namespace: only the former makes device nodes and attributes
/// `trusted.*`, and has all ids.
#[must_use]
pub fn is_root_of_the_host() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
