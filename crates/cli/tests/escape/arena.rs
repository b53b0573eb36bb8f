//! Where attacks take place: a step of a real build, once in each kind of sandbox, and without any for comparison.
//!
//! An attack is a shell script of attempts, each named: `try NAME COMMAND…` runs a command, `call NAME NUMBER
//! ARGUMENT…` makes a system call. A name that begins with `control` is something that a step may do, by the same means:
//! it must work, so that no attempt fails for want of a tool or by a slip of the pen.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kiln_testkit::{Need, Unprivileged};

use crate::env::{Ran, Running, TestEnv};

/// Leaves the test, as a skip, where attackers have no tools.
#[macro_export]
macro_rules! needs_attackers {
    () => {
        $crate::needs_builds!();
        kiln_testkit::need!(
            kiln_testkit::Need::Tool("perl", "perl-base"),
            kiln_testkit::Need::Tool("setpriv", "util-linux"),
        );
    };
}

/// Errors that mean "you may not", or "there is no such thing for you".
const REFUSALS: [i32; 5] = [libc::EPERM, libc::EACCES, libc::EROFS, libc::ENOSYS, libc::ESRCH];

const TOOLS: &str = r#"
try() {
  name=$1; shift
  ("$@") > /tmp/said 2>&1; code=$?
  case $code in
    0) echo "$name: worked" ;;
    126|127) echo "$name: broken: $(head -n 1 /tmp/said)" ;;
    *) echo "$name: refused" ;;
  esac
}
call() { perl /call "$@"; }
"#;

/// Makes a system call. Arguments are numbers, or what the call gets a pointer to: `s:TEXT`, `h:HEX`, `b:LENGTH` zeros.
const CALL: &str = r#"
my ($name, $number, @words) = @ARGV;
my @arguments = map {
    /^s:(.*)/s ? "$1\0" : /^h:(.*)/ ? pack("H*", $1) : /^b:(\d+)/ ? "\0" x $1 : /^0x/ ? hex : 0 + $_
} @words;
my $result = syscall(0 + $number, @arguments);
my $error = 0 + $!;
print "$name: ", ($result == -1 ? "errno $error" : "worked"), "\n";
"#;

/// A kind of sandbox.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    flags: &'static [&'static str],
    /// The runtime that it needs, a Debian package of the same name.
    runtime: Option<&'static str>,
    /// Who root inside can be outside.
    pub(crate) root_outside: RangeInclusive<u32>,
}

impl Kind {
    /// Whether process 1 is kiln's. In a runtime's sandbox it is the attacker itself.
    pub(crate) fn has_init(&self) -> bool {
        self.runtime.is_none()
    }

    /// Whether kiln is run by a user without root's rights: then no device node is made, and control groups limit nothing.
    pub(crate) fn is_rootless(&self) -> bool {
        *self.root_outside.start() == Unprivileged::ID
    }
}

const KINDS: [Kind; 7] = [
    Kind { name: "own users", flags: &["--userns", "auto"], runtime: None, root_outside: 0x7000_0000..=u32::MAX },
    Kind { name: "the host's users", flags: &["--userns", "host"], runtime: None, root_outside: 0..=0 },
    Kind {
        name: "the users of one without root's rights",
        flags: &[],
        runtime: None,
        root_outside: Unprivileged::ID..=Unprivileged::ID,
    },
    Kind {
        name: "own users, by runc",
        flags: &["--sandbox", "runc", "--userns", "auto"],
        runtime: Some("runc"),
        root_outside: 0x7000_0000..=u32::MAX,
    },
    Kind {
        name: "own users, by crun",
        flags: &["--sandbox", "crun", "--userns", "auto"],
        runtime: Some("crun"),
        root_outside: 0x7000_0000..=u32::MAX,
    },
    Kind {
        name: "the host's users, by runc",
        flags: &["--sandbox", "runc", "--userns", "host"],
        runtime: Some("runc"),
        root_outside: 0..=0,
    },
    Kind {
        name: "the host's users, by crun",
        flags: &["--sandbox", "crun", "--userns", "host"],
        runtime: Some("crun"),
        root_outside: 0..=0,
    },
];

/// A world with a host's things to get at, and one kind of sandbox.
pub(crate) struct Arena {
    pub(crate) env: TestEnv,
    pub(crate) kind: Kind,
    /// Where other files of the host are: at a place that nothing covers inside.
    host: tempfile::TempDir,
}

/// Runs a test once in each kind of sandbox.
pub(crate) fn in_each(test: impl Fn(&Arena)) {
    for kind in KINDS {
        if kind.runtime.is_some_and(|runtime| !kiln_testkit::have(&[Need::Tool(runtime, runtime)])) {
            continue;
        }
        if kind.is_rootless() && !kiln_testkit::have(&Unprivileged::NEEDS) {
            continue;
        }
        println!("in a sandbox with {}", kind.name);
        let env = match kind.is_rootless() {
            true => TestEnv::for_user(Unprivileged::with_ids().unwrap()),
            false => TestEnv::new(),
        };
        let arena = Arena { env, kind, host: tempfile::tempdir().unwrap() };
        arena.add_tools();
        fs::write(arena.canary(), "untouched").unwrap();
        fs::set_permissions(arena.host(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(arena.canary(), fs::Permissions::from_mode(0o666)).unwrap();
        test(&arena);
        assert_eq!(fs::read_to_string(arena.canary()).unwrap(), "untouched");
        assert_eq!(fs::read_dir(arena.host()).unwrap().count(), 1);
        arena.env.assert_clean();
    }
}

impl Arena {
    /// Puts Perl, which can make any system call, into the base image.
    fn add_tools(&self) {
        let said = Command::new("ldd").arg("/usr/bin/perl").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        // `name => /path (address)`, or the loader's path alone.
        let libraries = said.split_whitespace().filter(|word| word.starts_with('/'));
        let mut tar = Command::new("tar");
        tar.args(["--dereference", "--owner=0", "--group=0", "-rf"]).arg(self.env.at("base.tar"));
        tar.args(["-C", "/", "usr/bin/perl"]).args(libraries.map(|path| path.trim_start_matches('/')));
        assert!(tar.status().unwrap().success());
        self.env.write("src/call", CALL);
    }

    /// A directory of the host that everybody there may write, with the [`Self::canary`] and nothing else.
    pub(crate) fn host(&self) -> &Path {
        self.host.path()
    }

    /// A file of the host that everybody there may write.
    pub(crate) fn canary(&self) -> PathBuf {
        self.host().join("canary")
    }

    /// The operations that come before an attack: those given, then the attack's files.
    fn spec(&self, before: &str, options: &str, attack: &str) -> String {
        self.env.write("src/attack", format!("{TOOLS}{attack}\necho end"));
        format!(
            "(env MARKER {}) {before} (copy (src call attack) (dst /)) (run {options} (shell \"sh /attack\"))",
            self.env.marker()
        )
    }

    /// Builds with the flags of this kind of sandbox, everything anew.
    pub(crate) fn build(&self, flags: &[&str], spec: &str) -> Ran {
        self.build_again(&[&["--no-cache"], flags].concat(), spec)
    }

    /// As [`Self::build`], but takes what there is.
    pub(crate) fn build_again(&self, flags: &[&str], spec: &str) -> Ran {
        self.env.build_with(&[self.kind.flags, flags].concat(), spec)
    }

    /// Starts a build whose step is an attack.
    pub(crate) fn start(&self, options: &str, attack: &str) -> Running {
        self.start_with(&[], options, attack)
    }

    /// As [`Self::start`], with flags.
    pub(crate) fn start_with(&self, flags: &[&str], options: &str, attack: &str) -> Running {
        self.env.spec(&self.spec("", options, attack));
        let arguments = [&["build", "-f", "spec", "--no-cache", "src"], self.kind.flags, flags].concat();
        self.env.spawn(&mut self.env.kiln(&arguments))
    }

    /// Builds a step that is an attack, after `before`. Returns what it said to its end.
    #[track_caller]
    pub(crate) fn said(&self, flags: &[&str], before: &str, options: &str, attack: &str) -> String {
        let built = self.build(flags, &self.spec(before, options, attack)).ok();
        let log = self.env.run(&["log", built.id()]).ok().stdout;
        log.strip_suffix("end\n").unwrap_or_else(|| panic!("it did not come to its end: {log}")).to_owned()
    }

    /// Checks that in a step nothing of an attack works but its controls.
    #[track_caller]
    pub(crate) fn refuses(&self, attack: &str) {
        let said = self.said(&[], "", "", attack);
        let is_own = |line: &&str| self.kind.has_init() || !line.contains(" of init: ");
        let told: Vec<&str> = said.lines().filter(is_own).collect();
        judge(&told.join("\n"), |name| name.starts_with("control"));
    }

    /// Checks that all of an attack works without a sandbox: for root in a `chroot`, with the same files.
    #[track_caller]
    pub(crate) fn works_without(&self, attack: &str) {
        fs::write(self.env.at("attack"), format!("{TOOLS}{attack}\necho end")).unwrap();
        let place = self.env.at("without");
        fs::create_dir(&place).unwrap();
        // In memory and in a mount namespace of its own, so that nothing of it stays.
        let script = r#"mount -t tmpfs none "$1"; tar -xf base.tar -C "$1"; cp attack src/call "$1"
            mount -t proc proc "$1/proc"; mknod "$1/dev/null" c 1 3; exec chroot "$1" /bin/sh /attack"#;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]).arg(&place);
        self.env.set_up(&mut unshare);
        let ran = self.env.ran(unshare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
        fs::remove_dir(&place).unwrap();
        let said = ran.stdout.strip_suffix("end\n").unwrap_or_else(|| panic!("{}{}", ran.stdout, ran.stderr));
        judge(said, |_| true);
    }

    /// A process of the host, found by nothing of this test.
    pub(crate) fn bystander() -> Bystander {
        Bystander(Command::new("sleep").arg("infinity").stdin(Stdio::null()).spawn().unwrap())
    }
}

/// Checks each line of an attack against whether it may work.
#[track_caller]
fn judge(said: &str, may_work: impl Fn(&str) -> bool) {
    let (mut controls, mut attempts) = (0, 0);
    for line in said.lines() {
        let (name, outcome) = line.split_once(": ").unwrap_or_else(|| panic!("`{line}` in: {said}"));
        let errno = outcome.strip_prefix("errno ").map(|number| number.parse().unwrap());
        let is_refused = outcome == "refused" || errno.is_some_and(|errno| REFUSALS.contains(&errno));
        match may_work(name) {
            true => assert_eq!(outcome, "worked", "{name}: {said}"),
            false => assert!(is_refused, "{line}: {said}"),
        }
        if name.starts_with("control") { controls += 1 } else { attempts += 1 }
    }
    assert!(controls > 0 && attempts > 0, "an attack has attempts, and controls: {said}");
}

/// A process of the host's. Ended with the test.
pub(crate) struct Bystander(Child);

impl Bystander {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Checks that it lives and nobody traces it.
    pub(crate) fn is_unharmed(&mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None);
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        assert!(status.contains("State:\tS") && status.contains("TracerPid:\t0\n"), "{status}");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // It has ended already if an attack succeeded.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
