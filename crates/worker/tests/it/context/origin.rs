//! Repositories of strangers, and servers that give them.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kiln_testkit::{Request, Response, Script};
use tempfile::TempDir;

/// A directory of repositories.
pub(crate) struct Origin {
    dir: TempDir,
    format: &'static str,
}

impl Origin {
    /// An empty one, whose repositories have ids of `format`.
    pub(crate) fn new(format: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), format }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the repository `name`, which is made if it is not there.
    pub(crate) fn repository(&self, name: &str) -> Repository {
        let path = self.dir.path().join(name);
        if !path.exists() {
            std::fs::create_dir_all(&path).unwrap();
            let repository = Repository { path };
            repository.git(&["init", "--quiet", "--initial-branch=main", "--object-format", self.format]);
            return repository;
        }
        Repository { path }
    }
}

pub(crate) struct Repository {
    pub(crate) path: PathBuf,
}

impl Repository {
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.git_reads(arguments, b"")
    }

    pub(crate) fn git_reads(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = git(&self.path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "git {arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Commits the files of the working directory and these; returns the id.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            self.write(name, text);
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a change"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Commits these files on a branch of its own that leaves `from`; returns the id. What is checked out is `main` then.
    pub(crate) fn branch(&self, name: &str, from: &str, files: &[(&str, &str)]) -> String {
        self.git(&["checkout", "--quiet", "-b", name, from]);
        let id = self.commit(files);
        self.git(&["checkout", "--quiet", "main"]);
        id
    }

    /// Commits, on no branch, a tree with these entries: mode, id, name. Nothing is checked.
    pub(crate) fn raw_commit(&self, entries: &[(&str, &str, &str)]) -> String {
        let mut tree = Vec::new();
        for (mode, id, name) in entries {
            tree.extend(format!("{mode} {name}\0").bytes());
            tree.extend((0..id.len() / 2).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()));
        }
        let tree = self.git_reads(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &tree);
        self.git(&["commit-tree", &tree, "-m", "a strange tree"])
    }

    pub(crate) fn blob(&self, text: &str) -> String {
        self.git_reads(&["hash-object", "-w", "--stdin"], text.as_bytes())
    }
}

/// Git without this machine's configuration.
pub(crate) fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(directory).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")]);
    command.envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_AUTHOR_DATE", "@1000000000 +0000")]);
    command.envs([
        ("GIT_COMMITTER_NAME", "a"),
        ("GIT_COMMITTER_EMAIL", "a@b"),
        ("GIT_COMMITTER_DATE", "@1000000000 +0000"),
    ]);
    command
}

/// What a server over HTTP asks for.
pub(crate) struct Http {
    pub(crate) authorization: Option<&'static str>,
    /// Speaks the old protocol, which gives commits only by name.
    pub(crate) old: bool,
}

/// Serves `root` over HTTP with `git http-backend`.
pub(crate) fn http(root: &Path, how: Http) -> Script {
    let root = root.to_owned();
    Script::start(move |request| {
        if how.authorization.is_some() && request.header("authorization") != how.authorization {
            return Response::new(401).header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        backend(&root, request, how.old)
    })
    .unwrap()
}

pub(crate) const OPEN: Http = Http { authorization: None, old: false };

fn backend(root: &Path, request: &Request, old: bool) -> Response {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut command = git(root);
    command.arg("http-backend").env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("REQUEST_METHOD", &request.method).env("PATH_INFO", path).env("QUERY_STRING", query);
    command.env("CONTENT_LENGTH", request.body.len().to_string());
    for (header, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ] {
        if let Some(value) = request.header(header).filter(|_| !(old && variable == "GIT_PROTOCOL")) {
            command.env(variable, value);
        }
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(&request.body);
    let output = child.wait_with_output().unwrap().stdout;
    let Some(end) = output.windows(4).position(|window| window == b"\r\n\r\n") else { return Response::new(500) };
    let head = String::from_utf8_lossy(&output[..end]);
    let mut response = Response::new(200).bytes(&output[end + 4..]);
    for line in head.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            response.status = value[..3].parse().unwrap();
        } else {
            response = response.header(name, value);
        }
    }
    response
}

/// Serves `root` over git's own protocol.
pub(crate) struct Daemon {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (root, over) = (root.to_owned(), Arc::clone(&over));
            move || {
                for stream in listener.incoming() {
                    if over.load(Ordering::Acquire) {
                        return;
                    }
                    let stream = OwnedFd::from(stream.unwrap());
                    let mut command = git(&root);
                    command.args(["daemon", "--inetd", "--export-all"]).arg(format!("--base-path={}", root.display()));
                    command.stdin(stream.try_clone().unwrap()).stdout(stream).stderr(Stdio::null());
                    command.spawn().unwrap().wait().unwrap();
                }
            }
        });
        Self { address, over, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("git://{}", self.address)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = std::net::TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}
