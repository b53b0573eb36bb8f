//! A real PostgreSQL of the test's own, from Debian's package.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use crate::lan::{self, Lan};

/// A server that has said nothing by then is broken.
const START: Duration = Duration::from_secs(60);

/// Runs the server until standard input ends, which it does whenever the test's process does, even by `kill -9`. SIGQUIT ends a server and all of
/// its processes at once. A signal to the whole process group must not end the shell before them.
const KEEPER: &str = r#"exec 2>&1; trap '' HUP INT TERM; "$@" & read -r end; kill -QUIT $!; wait $!"#;

/// A PostgreSQL server with an empty database, on a Unix socket, and perhaps in a [`Lan`]. It ends with this value, or with the process.
///
/// It forgets what it was told when the machine dies, and does not wait for disks. Needs Debian's postgresql; as root it runs as its user `postgres`.
#[derive(Debug)]
pub struct Postgres {
    dir: TempDir,
    programs: PathBuf,
    keeper: Option<Child>,
    host: Option<Host>,
}

/// Where it is in a [`Lan`].
#[derive(Debug)]
struct Host {
    name: String,
    address: String,
}

impl Postgres {
    /// Makes one, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Debian's postgresql is missing or fails; the error has its output.
    pub fn start() -> io::Result<Self> {
        Self::start_at(None)
    }

    /// Makes one on a host, which all others reach, and waits until it answers.
    ///
    /// # Errors
    ///
    /// As of [`Postgres::start`].
    pub fn start_on(lan: &Lan, host: usize) -> io::Result<Self> {
        Self::start_at(Some(Host { name: lan.name(host).to_owned(), address: Lan::address(host) }))
    }

    fn start_at(host: Option<Host>) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        if rustix::process::geteuid().is_root() {
            output(Command::new("chown").arg("postgres:").arg(dir.path()))?;
        }
        let mut server = Self { programs: programs()?, dir, keeper: None, host };
        let data = server.data();
        output(
            server
                .command("initdb")
                .args(["--auth=trust", "--username=kiln", "--no-sync", "-E", "UTF8", "-D"])
                .arg(&data),
        )?;
        // Who may come from a network, if it listens to any.
        let mut rules = fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf"))?;
        writeln!(rules, "host all all samenet trust")?;
        server.restart()?;
        output(server.command("createdb").arg("-h").arg(server.dir.path()).args(["-U", "kiln", "kiln"]))?;
        Ok(server)
    }

    /// Returns what programs connect to.
    pub fn uri(&self) -> String {
        if let Some(Host { address, .. }) = &self.host {
            return format!("postgres://kiln@{address}/kiln?sslmode=disable");
        }
        format!("postgres://kiln@/kiln?host={}&sslmode=disable", self.dir.path().display())
    }

    /// Returns where its socket is.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Ends it at once, as if its machine died but for what is on the disk. Who is connected is cut off.
    pub fn crash(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }

    /// Starts it again, if it does not run, and waits until it answers.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        if self.keeper.is_some() {
            return Ok(());
        }
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]);
        let program = self.command("postgres");
        command.arg(program.get_program()).args(program.get_args());
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        // Without a limit of its own, hundreds of tests at once would want more memory than there is.
        let listen = format!("listen_addresses={}", self.host.as_ref().map_or("", |host| &host.address));
        for setting in [&*listen, "fsync=off", "shared_buffers=16MB", "max_connections=20"] {
            command.args(["-c", setting]);
        }
        command.current_dir("/");
        if let Some(Host { name, .. }) = &self.host {
            command = lan::inside(name, &command);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn()?;
        let log = keeper.stdout.take().expect("it is piped");
        self.keeper = Some(keeper);
        let (tell, told) = mpsc::channel();
        // It reads to the end, so that the server can write.
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if line.contains("database system is ready to accept connections") {
                    let _ = tell.send(Ok(()));
                }
                said += &line;
                said.push('\n');
            }
            let _ = tell.send(Err(said));
        });
        let started = told.recv_timeout(START).unwrap_or_else(|_| Err("it says nothing".to_owned()));
        started.map_err(|said| io::Error::other(format!("PostgreSQL does not start:\n{said}")))
    }

    /// Returns what a query says, a line for each row, without any ornament.
    ///
    /// # Errors
    ///
    /// What `psql` says.
    pub fn query(&self, query: &str) -> io::Result<String> {
        let mut psql = Command::new("psql");
        output(psql.args(["-XAtq", "-h"]).arg(self.dir.path()).args(["-U", "kiln", "-d", "kiln", "-c", query]))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Returns one of its programs, as who may run it.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        if !rustix::process::geteuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program).current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Returns the directory of the newest version's programs, which Debian keeps out of `$PATH`.
fn programs() -> io::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")?.flatten().map(|version| version.path().join("bin"));
    let newest = versions.filter(|bin| is_program(&bin.join("initdb"))).max();
    newest.ok_or_else(|| io::Error::other("no initdb in /usr/lib/postgresql"))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.mode() & 0o111 != 0)
}

fn output(command: &mut Command) -> io::Result<String> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output()?;
    let mut said = String::new();
    stdout.as_slice().read_to_string(&mut said)?;
    match status.success() {
        true => Ok(said),
        false => Err(io::Error::other(format!("{command:?}: {status}\n{said}{}", String::from_utf8_lossy(&stderr)))),
    }
}
