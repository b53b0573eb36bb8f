//! A small root filesystem made from the host's static busybox, so that tests need no network.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Applets that tests use. `bash` is a script that hands over to busybox's shell: the default
/// shell of a spec is `/usr/bin/env bash -c`.
const APPLETS: &[&str] = &[
    "ash",
    "awk",
    "basename",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cksum",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "hwclock",
    "id",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nohup",
    "od",
    "pidof",
    "ping",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "su",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "tty",
    "umount",
    "uname",
    "uniq",
    "unshare",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

fn busybox() -> PathBuf {
    PathBuf::from("/bin/busybox")
}

/// Fills the empty directory `root` with a root filesystem: busybox, a `bash`, `/etc/passwd`
/// with root and the user `builder` (1000:1000), `/tmp`.
///
/// # Errors
///
/// `/bin/busybox` is missing (Debian package busybox-static) or `root` cannot be written.
pub fn busybox_root(root: &Path) -> io::Result<()> {
    for dir in ["bin", "usr/bin", "etc", "tmp", "root", "home/builder", "var", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox(), root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    symlink("../../bin/busybox", root.join("usr/bin/env"))?;
    fs::write(root.join("bin/bash"), "#!/bin/sh\nexec /bin/sh \"$@\"\n")?;
    fs::set_permissions(root.join("bin/bash"), fs::Permissions::from_mode(0o755))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/home/builder:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nbuilder:x:1000:\n")?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
}

/// Writes [`busybox_root`] as an uncompressed tar archive at `file`, owned by root.
///
/// # Errors
///
/// As [`busybox_root`], or `tar` cannot be run.
pub fn busybox_tar(file: &Path) -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    busybox_root(dir.path())?;
    let status = Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-cf"])
        .arg(file)
        .arg("-C")
        .arg(dir.path())
        .arg(".")
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("tar: {status}"))) }
}
