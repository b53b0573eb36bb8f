//! A virtual machine with a kernel of its own: for filesystems that this machine's kernel does not have, and for losing
//! power.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What `scripts/guest/make` made, with files that a job needs.
///
/// The processor is emulated: some ten times slower than the machine it runs on. Its root is in memory and vanishes
/// with it.
#[derive(Debug)]
pub struct Guest {
    made: PathBuf,
    /// The job's files and, in the end, the initramfs.
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

/// How a job ended.
#[derive(Debug)]
pub struct GuestRun {
    /// What the job printed.
    pub output: String,
    /// Its exit code; `None` if the guest was gone or was stopped before it ended.
    pub code: Option<i32>,
}

impl Guest {
    /// Returns why no guest can be started here, or `None` if one can.
    pub fn lacking() -> Option<String> {
        if made().is_none() {
            return Some("needs a guest, run scripts/guest/make as root".to_owned());
        }
        crate::Need::Tool("qemu-system-x86_64", "qemu-system-x86").lacking()
    }

    /// Prepares a guest whose job is this shell script, run as root.
    ///
    /// # Panics
    ///
    /// There is none: see [`Guest::lacking`].
    pub fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("job")).expect("writable");
        fs::write(dir.path().join("job/run"), script).expect("writable");
        Self { made: made().expect("scripts/guest/make was run"), dir, arguments: Vec::new() }
    }

    /// Adds a program as `/job/NAME`, without its debugging information, and the libraries that it is linked with.
    ///
    /// # Panics
    ///
    /// It cannot be read, or `strip` or `ldd` fails.
    #[must_use]
    pub fn with_program(self, name: &str, program: &Path) -> Self {
        let job = self.dir.path().join("job");
        run(Command::new("strip").arg("-g").arg("-o").arg(job.join(name)).arg(program));
        let listed = Command::new("ldd").arg(program).output().expect("ldd starts");
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            let library = Path::new(word);
            let to = job.join(library.file_name().expect("a file"));
            if !to.exists() {
                fs::copy(library, to).expect("a library can be copied");
            }
        }
        self
    }

    /// Adds a disk: `/dev/vda`, `/dev/vdb`, ... in order; `options` as for `qemu -drive`.
    #[must_use]
    pub fn with_drive(mut self, options: &str) -> Self {
        self.arguments.extend(["-drive".to_owned(), format!("if=virtio,{options}")]);
        self
    }

    /// Adds arguments for QEMU.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Boots it and runs its job. `on_line` sees every line that is printed, at once, and loses the guest its power by
    /// returning false. So does `patience`, when it is over.
    ///
    /// # Errors
    ///
    /// QEMU does not start, or files cannot be written.
    pub fn run(self, patience: Duration, mut on_line: impl FnMut(&str) -> bool) -> io::Result<GuestRun> {
        let initramfs = self.dir.path().join("initramfs");
        fs::copy(self.made.join("root.img"), &initramfs)?;
        append(&initramfs, self.dir.path())?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", "1536", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
            .arg("-kernel")
            .arg(self.made.join("vmlinuz"))
            .arg("-initrd")
            .arg(&initramfs)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = Running(command.spawn()?);
        let (lines, heard) = channel();
        let output = BufReader::new(qemu.0.stdout.take().expect("a pipe"));
        let reader = std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
        });
        let end = Instant::now() + patience;
        let mut run = GuestRun { output: String::new(), code: None };
        loop {
            match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(code) = line.strip_prefix("guest: exit code ") {
                        run.code = code.parse().ok();
                        continue;
                    }
                    run.output.push_str(&line);
                    run.output.push('\n');
                    if !on_line(&line) {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    run.output.push_str("(the guest was stopped: it took too long)\n");
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        drop(heard);
        qemu.stop();
        let _ = reader.join();
        Ok(run)
    }
}

/// Where the guest is.
fn made() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = given("KILN_GUEST_CACHE")
        .or_else(|| Some(given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")))?.join("kiln")))?;
    let made = cache.join("guest");
    made.join("root.img").is_file().then_some(made)
}

/// Appends the directory `job` of `dir` to an initramfs: the kernel unpacks one archive after the other.
fn append(initramfs: &Path, dir: &Path) -> io::Result<()> {
    let list = Command::new("find").arg("job").current_dir(dir).output()?.stdout;
    let archive = File::options().append(true).open(initramfs)?;
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(archive)
        .stderr(Stdio::null())
        .spawn()?;
    cpio.stdin.take().expect("a pipe").write_all(&list)?;
    if cpio.wait()?.success() { Ok(()) } else { Err(io::Error::other("busybox cpio failed")) }
}

fn run(command: &mut Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}");
}

/// QEMU, killed at the latest when its test ends.
struct Running(Child);

impl Running {
    fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
