//! Real filesystems on loop devices, unmounted when their test ends, even by a panic.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// A filesystem of its own, mounted for the life of this value.
#[derive(Debug)]
pub struct LoopFs {
    dir: tempfile::TempDir,
}

impl LoopFs {
    /// Makes a filesystem of `kind` (`ext4`, `xfs`, `btrfs`; `tmpfs` without a loop device) with `size_mib` and
    /// mounts it.
    ///
    /// # Errors
    ///
    /// `mkfs.KIND` or `mount` is missing or fails. Needs root.
    pub fn new(kind: &str, size_mib: u64) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("image");
        fs::create_dir(dir.path().join("mnt"))?;
        if kind == "tmpfs" {
            let made = Self { dir };
            let size = format!("size={size_mib}m");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "kiln-test"]).arg(made.path()))?;
            return Ok(made);
        }
        fs::File::create(&image)?.set_len(size_mib << 20)?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        Self { dir }.mount(&image, "loop")
    }

    /// As [`LoopFs::new`], of an `ext4` or `xfs` that keeps project quotas.
    ///
    /// # Errors
    ///
    /// As there, and the kernel has no such quotas.
    pub fn with_projects(kind: &str, size_mib: u64) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("image");
        fs::create_dir(dir.path().join("mnt"))?;
        fs::File::create(&image)?.set_len(size_mib << 20)?;
        let features: &[&str] = if kind == "ext4" { &["-O", "quota,project"] } else { &[] };
        run(Command::new(format!("mkfs.{kind}")).arg("-q").args(features).arg(&image))?;
        Self { dir }.mount(&image, "loop,prjquota")
    }

    /// Mounts the filesystem in the file `image`, which stays when this value goes.
    ///
    /// # Errors
    ///
    /// `mount` is missing or fails. Needs root.
    pub fn of(image: &Path) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("mnt"))?;
        Self { dir }.mount(image, "loop")
    }

    fn mount(self, image: &Path, options: &str) -> io::Result<Self> {
        run(Command::new("mount").args(["-o", options]).arg(image).arg(self.path()))?;
        Ok(self)
    }

    /// Returns where the filesystem is mounted.
    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("mnt")
    }

    /// Mounts it again read-only (`true`) or writable (`false`).
    ///
    /// # Errors
    ///
    /// `mount` fails, for instance because a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> io::Result<()> {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", option]).arg(self.path()))
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a process inside.
        let _ = run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let program = Path::new(command.get_program()).display().to_string();
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))))
}
