//! A real registry, Debian's docker-registry, on a port of its own; and images for it, made by other tools.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use crate::net::lock;

/// Starting takes a few milliseconds; a registry that has said nothing by then is broken.
const START: Duration = Duration::from_secs(30);

/// Runs the registry until standard input ends, which it does whenever the test's process does, even by `kill -9`.
/// A signal to the whole process group must not end the shell before the registry.
const KEEPER: &str = r#"exec 2>&1; trap '' HUP INT TERM; "$@" & read -r end; kill -KILL $!; wait $!"#;

/// Authorities and servers in one file, as the extensions of OpenSSL's own configuration are not what is wanted.
const OPENSSL: &str = "[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
";

/// How a [`Registry`] is reached. By default anyone may do anything, over plain HTTP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Asks for [`Registry::USER`] and [`Registry::PASSWORD`] (basic authentication).
    pub login: bool,
    /// Speaks TLS only, with a certificate of an authority of its own ([`Registry::ca_file`]).
    pub tls: bool,
}

/// A docker-registry on a random port of the loopback interface, empty at first, with deletes enabled.
///
/// It ends with this value, or with the process. Needs docker-registry; openssl for TLS; skopeo to push, pull, log in.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    access: Access,
    address: SocketAddr,
    keeper: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Registry {
    /// The only user that a registry with [`Access::login`] knows.
    pub const USER: &str = "tester";
    /// The user's password. A colon is what naive splitting of credentials stumbles over.
    pub const PASSWORD: &str = "pass:word";
    /// `USER:PASSWORD`, bcrypt with the lowest cost, as htpasswd makes it.
    const HTPASSWD: &str = "tester:$2y$04$IT6r1/XT1ss3gBVqJGQZRusd2sDCVhHytfTm27AHMmaYretUEN1.y\n";

    /// Starts one and waits until it listens.
    ///
    /// # Errors
    ///
    /// docker-registry or openssl is missing or fails; the error has its output.
    pub fn start(access: Access) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.yml");
        fs::write(&config, configuration(dir.path(), access)?)?;
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = keeper.stdout.take().expect("it is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (found, listening) = mpsc::channel();
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || read_log(output, &log, &found))
        };
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut made = Self { dir, access, address: unknown, keeper, log, reader: Some(reader) };
        made.address = listening
            .recv_timeout(START)
            .map_err(|_| io::Error::other(format!("docker-registry does not start:\n{}", made.log())))?;
        Ok(made)
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its name in references, `127.0.0.1:PORT`. With TLS, `localhost:PORT` is as good.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns `http://HOST` or `https://HOST`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.access.tls { "https" } else { "http" }, self.address)
    }

    /// Returns the certificate of the authority that vouches for it. Exists only with [`Access::tls`].
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Returns the directory in which it keeps everything (`docker/registry/v2/{blobs,repositories}`), to be damaged.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    /// Returns what it has logged, with a line for each request. The line comes after the response.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Writes the credentials into `auth_file` the way `skopeo login` does.
    ///
    /// # Errors
    ///
    /// skopeo is missing or fails, for instance because there is no [`Access::login`].
    pub fn login(&self, auth_file: &Path) -> io::Result<()> {
        let mut command = Command::new("skopeo");
        command.arg("login").arg("--authfile").arg(auth_file).args(["-u", Self::USER, "-p", Self::PASSWORD]);
        command.args(self.skopeo_tls("--")).arg(self.host());
        run(&mut command).map(drop)
    }

    /// Copies an image here as `name`, `REPOSITORY[:TAG]`. `from` is in skopeo's words: `oci:DIR:TAG`,
    /// `docker-archive:FILE`. All platforms are copied, and no byte is changed.
    ///
    /// # Errors
    ///
    /// skopeo is missing or fails.
    pub fn push(&self, from: &str, name: &str) -> io::Result<()> {
        let mut command = skopeo_copy();
        command.args(self.skopeo_access("--dest-")).args([from, &format!("docker://{}/{name}", self.host())]);
        run(&mut command).map(drop)
    }

    /// Copies the image `name`, `REPOSITORY[:TAG]` or `REPOSITORY@DIGEST`, from here to `to`, as [`Registry::push`] does.
    ///
    /// # Errors
    ///
    /// skopeo is missing or fails; it verifies all digests.
    pub fn pull(&self, name: &str, to: &str) -> io::Result<()> {
        let mut command = skopeo_copy();
        command.args(self.skopeo_access("--src-")).args([&format!("docker://{}/{name}", self.host()), to]);
        run(&mut command).map(drop)
    }

    fn skopeo_access(&self, side: &str) -> Vec<String> {
        let mut options = self.skopeo_tls(side);
        if self.access.login {
            options.push(format!("{side}creds={}:{}", Self::USER, Self::PASSWORD));
        }
        options
    }

    fn skopeo_tls(&self, side: &str) -> Vec<String> {
        if self.access.tls {
            vec![format!("{side}cert-dir={}", self.dir.path().join("certs").display())]
        } else {
            vec![format!("{side}tls-verify=false")]
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The keeper then kills the registry, waits for it and ends.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn skopeo_copy() -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "-q", "--all", "--preserve-digests"]);
    command
}

/// Writes what the registry needs into `dir` and returns its configuration.
fn configuration(dir: &Path, access: Access) -> io::Result<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    // It takes a free port by itself, and says which.
    let mut config = format!(
        "version: 0.1\nlog: {{level: info}}\n\
         storage: {{filesystem: {{rootdirectory: {:?}}}, delete: {{enabled: true}}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: tests\n",
        path("storage")
    );
    if access.tls {
        certificates(dir)?;
        config += &format!("  tls: {{certificate: {:?}, key: {:?}}}\n", path("server.crt"), path("server.key"));
    }
    if access.login {
        fs::write(dir.join("htpasswd"), Registry::HTPASSWD)?;
        config += &format!("auth: {{htpasswd: {{realm: tests, path: {:?}}}}}\n", path("htpasswd"));
    }
    Ok(config)
}

/// Makes an authority and a certificate of it for the loopback interface.
fn certificates(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("openssl.cnf"), OPENSSL)?;
    let make = |extensions: &str, subject: &str, more: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(dir).args(["req", "-x509", "-config", "openssl.cnf", "-days", "2", "-nodes"]);
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-extensions", extensions, "-subj", subject]).args(more);
        run(&mut command)
    };
    make("authority", "/CN=authority of tests", &["-keyout", "ca.key", "-out", "ca.crt"])?;
    let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.crt"];
    make("server", "/CN=registry of tests", &by)?;
    // In this directory skopeo would take the server's files for those of a client.
    fs::create_dir(dir.join("certs"))?;
    fs::copy(dir.join("ca.crt"), dir.join("certs/ca.crt")).map(drop)
}

/// Collects the log until it ends; tells the address as soon as the registry listens.
fn read_log(output: impl Read, log: &Mutex<String>, found: &Sender<SocketAddr>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line);
        let address = text.split_once("listening on ").and_then(|(_, rest)| {
            rest.split(|letter: char| letter != ':' && letter != '.' && !letter.is_ascii_digit()).next()?.parse().ok()
        });
        lock(log).push_str(&text);
        if let Some(address) = address {
            // Nobody listens if it took too long.
            let _ = found.send(address);
        }
        line.clear();
    }
}

/// Makes an image in the OCI layout `layout`, or adds it there, under `tag`: by umoci, from unpacked archives of its
/// layers, lowest first. Returns what skopeo calls it, `oci:LAYOUT:TAG`.
///
/// The image gets the platform of the machine.
///
/// # Errors
///
/// umoci is missing or fails.
pub fn oci_image(layout: &Path, tag: &str, layers: &[&[u8]]) -> io::Result<String> {
    let image = format!("{}:{tag}", layout.display());
    if !layout.exists() {
        umoci(["init", "--layout"].map(OsStr::new).into_iter().chain([layout.as_os_str()]))?;
    }
    umoci(["new", "--image", &image].map(OsStr::new))?;
    for layer in layers {
        let archive = tempfile::NamedTempFile::new()?;
        fs::write(archive.path(), layer)?;
        umoci(["raw", "add-layer", "--image", &image].map(OsStr::new).into_iter().chain([archive.path().as_os_str()]))?;
    }
    // It leaves a manifest for each step on the way.
    umoci(["gc", "--layout"].map(OsStr::new).into_iter().chain([layout.as_os_str()]))?;
    Ok(format!("oci:{image}"))
}

fn umoci<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<Vec<u8>> {
    run(Command::new("umoci").args(arguments))
}

fn run(command: &mut Command) -> io::Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let program = Path::new(command.get_program()).display().to_string();
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Need, need};

    const NEEDS: [Need<'static>; 4] = [
        Need::Tool("docker-registry", "docker-registry"),
        Need::Tool("openssl", "openssl"),
        Need::Tool("skopeo", "skopeo"),
        Need::Tool("umoci", "umoci"),
    ];

    /// Any bytes are an archive to umoci.
    fn image(layout: &Path) -> String {
        oci_image(layout, "1", &[&[0; 1024], b"another layer"]).expect("an image")
    }

    #[test]
    fn what_is_pushed_is_pulled_however_the_registry_is_reached() {
        need!(NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
        let dir = tempfile::tempdir().expect("a directory");
        let image = image(&dir.path().join("made"));
        for (login, tls) in [(false, false), (true, false), (false, true), (true, true)] {
            let registry = Registry::start(Access { login, tls }).expect("a registry");
            assert_eq!(registry.url().starts_with("https:"), tls);
            registry.push(&image, "some/name:tag").expect("a push");
            let pulled = dir.path().join(format!("pulled-{login}-{tls}"));
            registry.pull("some/name:tag", &format!("oci:{}:1", pulled.display())).expect("a pull");
            let index = |layout: &Path| fs::read_to_string(layout.join("index.json")).expect("an index");
            // They name the manifest by its digest.
            assert_eq!(index(&pulled).trim(), index(&dir.path().join("made")).trim());
            assert!(registry.storage().join("docker/registry/v2/repositories/some/name").is_dir());
            assert_eq!(registry.ca_file().exists(), tls);
            if login {
                let auth_file = dir.path().join("auth.json");
                registry.login(&auth_file).expect("a login");
                assert!(fs::read_to_string(auth_file).expect("credentials").contains(&registry.host()));
            }
            assert!(registry.log().contains("\"PUT /v2/some/name/manifests/tag "), "{}", registry.log());
        }
    }

    #[test]
    fn a_registry_ends_with_its_value_and_leaves_nothing() {
        need!(NEEDS[0]);
        let registry = Registry::start(Access::default()).expect("a registry");
        let (address, dir) = (registry.address(), registry.dir.path().to_owned());
        std::net::TcpStream::connect(address).expect("it listens");
        drop(registry);
        assert!(std::net::TcpStream::connect(address).is_err());
        assert!(!dir.exists());
    }
}
