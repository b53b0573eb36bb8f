//! A root filesystem of its own per test, and short ways to run a script in it.

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use kiln_sandbox::{
    ExitStatus, Limits, NativeSandbox, Network, OciSandbox, Process, Root, Runtime, Sandbox, SandboxError, Seccomp,
    User, UserNamespace,
};
use tokio_util::sync::CancellationToken;

/// Every promise is kept by the native sandbox and, in the binaries `runc` and `crun`, by these runtimes.
pub(crate) const RUNTIME: Option<Runtime> = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"runc" => Some(Runtime::Runc),
    b"crun" => Some(Runtime::Crun),
    _ => None,
};
/// The command's process id inside. A runtime gives it no init.
pub(crate) const COMMAND: u32 = if RUNTIME.is_some() { 1 } else { 2 };
/// Users are the sandbox's own, and in the binary `host_ids` the host's.
pub(crate) const MAPPED: bool = !matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"host_ids");
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_kiln-sandbox-helper");
pub(crate) const PROBE: &str = env!("CARGO_BIN_EXE_kiln-sandbox-probe");
pub(crate) const ROOT: User = User { uid: 0, gid: 0 };
pub(crate) const BUILDER: User = User { uid: 1000, gid: 1000 };

/// Leaves the test, as a skip, where the sandbox cannot run.
#[macro_export]
macro_rules! needs_sandbox {
    () => {
        kiln_testkit::need!(kiln_testkit::Need::Root, kiln_testkit::Need::Tool("busybox", "busybox-static"));
        if let Some(runtime) = $crate::harness::RUNTIME {
            let name = runtime.to_string();
            kiln_testkit::need!(kiln_testkit::Need::Tool(&name, &name));
            // The path of a function in the test's is the test's own.
            fn here() {}
            if $crate::not_kept::is_not_kept(std::any::type_name_of_val(&here), runtime) {
                return;
            }
        }
    };
}

/// Returns which sandbox the probe shall make.
pub(crate) fn kind() -> String {
    RUNTIME.map_or(if MAPPED { "own" } else { "host" }.to_owned(), |runtime| runtime.to_string())
}

/// Makes the sandbox that this binary tests.
pub(crate) fn sandbox() -> Box<dyn Sandbox> {
    match RUNTIME {
        None => Box::new(NativeSandbox::new(HELPER).unwrap()),
        Some(runtime) => {
            Box::new(OciSandbox::new(HELPER, runtime, &std::env::var_os("PATH").unwrap_or_default()).unwrap())
        }
    }
}

pub(crate) struct Jail {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sandbox: Box<dyn Sandbox>,
}

impl Jail {
    /// A busybox root in a directory.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The user inside must get through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        kiln_testkit::busybox_root(&dir.path().join("root")).unwrap();
        Self { dir, sandbox: sandbox() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Puts the probe at `/probe`, with the libraries that it needs.
    pub(crate) fn with_probe(self) -> Self {
        fs::copy(PROBE, self.root().join("probe")).unwrap();
        let ldd = Command::new("ldd").arg(PROBE).output().unwrap();
        let listing = String::from_utf8(ldd.stdout).unwrap();
        for library in listing.split_whitespace().filter(|word| word.starts_with('/')) {
            let copy = self.root().join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(library, copy).unwrap();
        }
        self
    }

    /// Runs `script` as root and returns what it printed; it must succeed.
    pub(crate) async fn sh(&self, script: &str) -> String {
        self.ok(&shell(script)).await
    }

    /// Runs `process` and returns what it printed; it must succeed.
    pub(crate) async fn ok(&self, process: &Process) -> String {
        let (status, output) = self.run(process).await.unwrap();
        assert_eq!(status, ExitStatus::Code(0), "{output}");
        output
    }

    pub(crate) async fn run(&self, process: &Process) -> Result<(ExitStatus, String), SandboxError> {
        self.run_in(Root::Dir(self.root()), process).await
    }

    pub(crate) async fn run_in(&self, root: Root, process: &Process) -> Result<(ExitStatus, String), SandboxError> {
        let (reader, writer) = std::io::pipe().unwrap();
        let output = tokio::task::spawn_blocking(move || read_all(reader));
        let ended = self.sandbox.run(root, process, writer.into(), &CancellationToken::new()).await;
        // The pipe ends with the sandbox, or this would wait forever.
        let output = output.await.unwrap();
        Ok((ended?.status, output))
    }
}

pub(crate) fn read_all(mut reader: PipeReader) -> String {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and including the next newline, byte by byte, so that nothing after it is taken.
pub(crate) fn read_line(reader: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while reader.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// Returns a user namespace for one run.
pub(crate) fn user_namespace() -> UserNamespace {
    static SANDBOX: LazyLock<NativeSandbox> = LazyLock::new(|| NativeSandbox::new(HELPER).unwrap());
    if MAPPED { SANDBOX.user_namespace().unwrap() } else { UserNamespace::Host }
}

/// Returns a detached mount of a directory, for `process`.
pub(crate) fn mounted(path: &Path, process: &Process) -> OwnedFd {
    mounted_as(&kiln_store::Root::Dir(path.to_owned()), process)
}

/// As [`mounted`], of a tree of a store.
pub(crate) fn mounted_as(root: &kiln_store::Root, process: &Process) -> OwnedFd {
    let ids = process.user_namespace.mapped();
    root.mount_mapped(ids.map(|ids| kiln_store::IdMap { namespace: ids.as_fd(), first: ids.first() })).unwrap()
}

pub(crate) fn shell(script: &str) -> Process {
    Process {
        argv: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
        env: vec![("PATH".into(), "/bin:/usr/bin".into())],
        cwd: "/".into(),
        user: ROOT,
        hostname: "builder".to_owned(),
        network: Network::None,
        mounts: Vec::new(),
        limits: Limits::default(),
        user_namespace: user_namespace(),
        allow_namespaces: false,
        seccomp: Seccomp::Default,
        fast_sync: false,
        held: Vec::new(),
    }
}

/// Returns this process's mounts that mention `dir`.
pub(crate) fn host_mounts(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(dir))
        .map(Into::into)
        .collect()
}
