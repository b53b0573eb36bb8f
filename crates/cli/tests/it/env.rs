//! A world of its own for each test, and short ways to build in it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use kiln_testkit::Unprivileged;

/// Leaves the test, as a skip, where nothing can be built.
#[macro_export]
macro_rules! needs_builds {
    () => {
        kiln_testkit::need!(kiln_testkit::Need::Root, kiln_testkit::Need::Tool("busybox", "busybox-static"));
    };
}

/// A directory with `base.tar`, the source `src`, and whatever kiln makes of it: `store`, `home`.
pub(crate) struct TestEnv {
    dir: tempfile::TempDir,
    /// Who runs kiln, if it is not root.
    pub(crate) user: Option<Unprivileged>,
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code; of a program that a signal killed, 128 and its number.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    dir: PathBuf,
}

impl TestEnv {
    pub(crate) fn new() -> Self {
        let env = Self::without_base();
        kiln_testkit::busybox_tar(&env.at("base.tar")).unwrap();
        env
    }

    /// Without `base.tar`, for what does not build.
    pub(crate) fn without_base() -> Self {
        // Every build is followed by a flush of its filesystem: in memory, unless asked otherwise, that costs nothing.
        let memory = Path::new("/dev/shm");
        let dir = match std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let env = Self { dir: dir.unwrap(), user: None };
        // Users in sandboxes and without privileges must get through.
        fs::set_permissions(env.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(env.at("src")).unwrap();
        fs::create_dir(env.at("home")).unwrap();
        env
    }

    /// A world in which a user without root's rights runs kiln, and can write.
    pub(crate) fn for_user(user: Unprivileged) -> Self {
        let mut env = Self::new();
        for path in ["", "src", "home"] {
            user.own(&env.at(path)).unwrap();
        }
        env.user = Some(user);
        env
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    /// Writes a file, with its directories.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A word that no other test says, to find processes by.
    pub(crate) fn marker(&self) -> String {
        format!("marker{}", self.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
    }

    pub(crate) fn kiln(&self, arguments: &[&str]) -> Command {
        let Some(user) = &self.user else { return self.kiln_as_root(arguments) };
        let mut command = user.command(env!("CARGO_BIN_EXE_kiln"));
        self.set_up(command.args(arguments));
        command
    }

    pub(crate) fn kiln_as_root(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        self.set_up(command.args(arguments));
        command
    }

    /// The program, called by another name.
    pub(crate) fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let link = self.at(name);
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &link).unwrap();
        }
        let mut command = Command::new(link);
        self.set_up(command.args(arguments));
        command
    }

    /// Gives a command the directory and environment of this world.
    pub(crate) fn set_up(&self, command: &mut Command) {
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.at("home"))
            .env("KILN_STORE", format!("overlayfs:{}", self.at("store").display()))
            .stdin(Stdio::null());
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.ran(&mut self.kiln(arguments))
    }

    pub(crate) fn ran(&self, command: &mut Command) -> Ran {
        let output = command.output().unwrap();
        Ran::new(output.status, &output.stdout, &output.stderr, self.path())
    }

    /// Writes the spec: a whole one, or only the operations on the base image.
    pub(crate) fn spec(&self, spec: &str) {
        let whole = if spec.starts_with("((") { spec.to_owned() } else { format!("((from rootfs:base.tar)\n{spec})") };
        self.write("spec", whole);
    }

    /// Builds a spec, or operations on the base image.
    pub(crate) fn build(&self, spec: &str) -> Ran {
        self.build_with(&[], spec)
    }

    pub(crate) fn build_with(&self, arguments: &[&str], spec: &str) -> Ran {
        self.spec(spec);
        self.run(&[&["build", "-f", "spec", "src"], arguments].concat())
    }

    /// Builds, which must succeed, and returns what the last step printed.
    pub(crate) fn log(&self, spec: &str) -> String {
        let built = self.build(spec).ok();
        self.run(&["log", built.id()]).ok().stdout
    }

    /// Starts to build, with a log to read along.
    pub(crate) fn start(&self, spec: &str) -> Running {
        self.spec(spec);
        self.spawn(&mut self.kiln(&["build", "-f", "spec", "src"]))
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running { child, stderr, seen: Vec::new(), printed: Vec::new(), dir: self.path().to_owned() }
    }

    /// The processes whose command line or environment has the marker.
    pub(crate) fn processes(&self) -> Vec<String> {
        let marker = self.marker();
        let has_it = |bytes: Vec<u8>| bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                if fs::read(entry.path().join(file)).is_ok_and(has_it) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }

    /// Nothing of a build runs, is mounted, or is left half-written.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.processes(), [""; 0]);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(self.path().to_str().unwrap()), "{mounts}");
        for place in ["draft", "trash", "state/leases"] {
            assert_eq!(kiln_testkit::listing(&self.at("store").join(place)).unwrap(), [""; 0], "{place}");
        }
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        // The process that marks results as durable may write once more while its store is being deleted.
        for _ in 0..10 {
            match fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => return,
            }
        }
    }
}

impl Ran {
    fn new(status: std::process::ExitStatus, stdout: &[u8], stderr: &[u8], dir: &Path) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        Self { code, stdout: text(stdout), stderr: text(stderr), dir: dir.to_owned() }
    }

    /// Checks that it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.fails_with(0)
    }

    /// Checks the exit code.
    #[track_caller]
    pub(crate) fn fails_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        let errors = self.stderr.lines().filter(|line| line.starts_with("error:")).count();
        assert_eq!(errors, usize::from(!matches!(code, 0 | 130)), "one error line, and only then: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// The id that a build printed.
    #[track_caller]
    pub(crate) fn id(&self) -> &str {
        let id = self.stdout.strip_suffix('\n').unwrap();
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        id
    }

    /// How many steps of the build were made, and how many found.
    pub(crate) fn made_and_found(&self) -> (usize, usize) {
        let count = |text| self.stderr.matches(text).count();
        (count("---> saved as"), count("from cache"))
    }

    /// stderr without what differs from run to run.
    pub(crate) fn told(&self) -> String {
        tidy(&self.stderr, &self.dir)
    }

    /// stdout likewise.
    pub(crate) fn printed(&self) -> String {
        tidy(&self.stdout, &self.dir)
    }
}

/// Puts names for ids and paths, and leaves out the progress of imports.
fn tidy(text: &str, dir: &Path) -> String {
    let text = text.replace(dir.to_str().unwrap(), "[DIR]");
    let mut tidied = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if matches!(words[..], [.., _, "B" | "KiB" | "MiB", "of", _, "B" | "KiB" | "MiB"]) {
            continue;
        }
        let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        let mut rest = line;
        while let Some(start) = rest.find(is_hex) {
            let length = rest[start..].find(|c| !is_hex(c)).unwrap_or(rest.len() - start);
            tidied.push_str(&rest[..start]);
            let word = &rest[start..start + length];
            tidied.push_str(match length {
                64 => "[ID]",
                12 => "[SHORT ID]",
                _ => word,
            });
            rest = &rest[start + length..];
        }
        tidied.push_str(rest);
        tidied.push('\n');
    }
    tidied
}

/// A program that runs. Killed if the test gives up.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    seen: Vec<u8>,
    printed: Vec<u8>,
    dir: PathBuf,
}

impl Running {
    /// Waits until it has printed the line `text`.
    #[track_caller]
    pub(crate) fn wait_until_printed(&mut self, text: &str) {
        let out = self.child.stdout.as_mut().unwrap();
        let line = format!("{text}\n");
        let mut start = self.printed.len();
        while self.printed[start..] != *line.as_bytes() {
            if self.printed[start..].ends_with(b"\n") {
                start = self.printed.len();
            }
            let mut byte = [0];
            let length = out.read(&mut byte).unwrap();
            assert_ne!(length, 0, "it ended without `{text}`: {}", String::from_utf8_lossy(&self.printed));
            self.printed.push(byte[0]);
        }
    }

    /// Waits until it has said a line with `text`, and returns the line.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let start = self.seen.len();
            let length = self.stderr.read_until(b'\n', &mut self.seen).unwrap();
            assert_ne!(length, 0, "it ended without `{text}`: {}", String::from_utf8_lossy(&self.seen));
            let line = String::from_utf8_lossy(&self.seen[start..]);
            if line.contains(text) {
                return line.into_owned();
            }
        }
    }

    /// Returns the number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Reads nothing of what it prints.
    pub(crate) fn close_stdout(&mut self) {
        self.child.stdout = None;
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        self.stderr.read_to_end(&mut self.seen).unwrap();
        let mut stdout = std::mem::take(&mut self.printed);
        if let Some(mut reader) = self.child.stdout.take() {
            reader.read_to_end(&mut stdout).unwrap();
        }
        let status = self.child.wait().unwrap();
        Ran::new(status, &stdout, &std::mem::take(&mut self.seen), &self.dir)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where steps with the host's network wait until the test lets them go on.
pub(crate) struct Gate(TcpListener);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The command that waits. Prints what [`Waiting::pass`] says.
    pub(crate) fn wait(&self) -> String {
        format!("nc 127.0.0.1 {}", self.0.local_addr().unwrap().port())
    }

    /// Waits until a step has come.
    pub(crate) fn arrival(&self) -> Waiting {
        Waiting(self.0.accept().unwrap().0)
    }
}

/// A step that waits.
pub(crate) struct Waiting(TcpStream);

impl Waiting {
    /// Lets it go on.
    pub(crate) fn pass(mut self, word: &str) {
        self.0.write_all(word.as_bytes()).unwrap();
    }

    /// Returns once its process is dead.
    pub(crate) fn death(mut self) {
        // A connection that is reset is as dead.
        let _ = self.0.read_to_end(&mut Vec::new());
    }
}
