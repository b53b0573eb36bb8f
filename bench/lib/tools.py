"""The build tools that are compared. All build the same `Plan`, each in its own language.

A plan is a list of steps on top of the base image: ("run", COMMAND) or ("copy", SRC, DST).
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

from .host import Failure, call, die_with_parent

BASE = "kiln-bench-base"


def program(name, package, *places):
    """Finds a program, in `places` first."""
    for place in (*places, shutil.which(name)):
        if place and os.access(place, os.X_OK):
            return str(place)
    raise Failure(f"{name} is missing: install the Debian package {package}")


def dockerfile(plan, base):
    lines = [f"FROM {base}"]
    for kind, *rest in plan:
        # Commands run under `/bin/sh -c`, the default of Docker and buildah and what the spec says.
        lines.append(f"RUN {rest[0]}" if kind == "run" else f"COPY {rest[0]} {rest[1]}")
    return "\n".join(lines) + "\n"


class Tool:
    """A tool in a state of its own below `home`."""

    def __init__(self, home, base_tar):
        self.home = home
        home.mkdir()
        self.base_tar = base_tar
        # What builds start from.
        self.base = BASE
        self.count = 0
        self.state = None

    def new_file(self, suffix):
        self.count += 1
        return self.home / f"{self.count}.{suffix}"

    def forget(self):
        """Begins with a new state, in which there is only the base image.

        The old one stays on the disk until the end: for minutes after many files were deleted, ext4 is slow to
        make new ones, since it looks at each inode that was freed lately and does not take it (`recently_deleted`
        in fs/ext4/ialloc.c). The next to build would pay for it.
        """
        self.stop()
        self.count += 1
        self.state = self.home / f"state-{self.count}"
        self.state.mkdir()
        self.start()

    def start(self):
        """Starts what has to run, and imports the base image."""

    def stop(self):
        """Ends what `start` started."""

    def version(self):
        """Says what is measured."""

    def build(self, plan, context):
        """Returns the command that builds `plan`, as `run_at_once` wants it."""

    def pids(self):
        """Returns daemons that work for a build."""
        return []

    def notes(self, log):
        """Returns what the log of a build says of where the time went: name -> seconds."""
        return {}


class Kiln(Tool):
    name = "kiln"

    def __init__(self, home, base_tar, binary):
        super().__init__(home, base_tar)
        self.binary = binary
        # References are relative to the directory of the spec.
        os.symlink(base_tar, home / "base.tar")
        self.base = "rootfs:base.tar"
        (home / "empty").mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("KILN")}

    def start(self):
        argv, env, _ = self.build([], self.home / "empty")
        call(argv, env)

    def version(self):
        return call([self.binary, "--version"])

    def build(self, plan, context, progress="plain"):
        spec = self.new_file("spec")
        lines = [f"((from {self.base})", " (shell /bin/sh -c)"]
        for kind, *rest in plan:
            lines.append(f' (run (shell "{rest[0]}"))' if kind == "run" else f" (copy (src {rest[0]}) (dst {rest[1]}))")
        spec.write_text("\n".join(lines) + ")\n")
        argv = [self.binary, "build", "--progress", progress, "--store", f"overlayfs:{self.state}", "-f", str(spec),
                str(context)]
        return argv, self.env, self.new_file("log")

    @staticmethod
    def saved(log):
        """Returns the ids of the steps that ran, from the log of a build."""
        return re.findall(r'^---> saved as "(\w+)"', pathlib.Path(log).read_text(errors="replace"), re.MULTILINE)


class BuildKit(Tool):
    """The BuildKit inside a Docker daemon of our own."""

    name = "buildkit"

    def __init__(self, home, base_tar):
        super().__init__(home, base_tar)
        # Debian's own first: a client without its buildx plugin may be in front of it on PATH.
        self.docker = program("docker", "docker.io", os.environ.get("DOCKER"), "/usr/bin/docker")
        self.dockerd = program("dockerd", "docker.io", os.environ.get("DOCKERD"), "/usr/sbin/dockerd")
        program("runc", "runc")
        self.socket = f"unix://{home}/docker.sock"
        self.env = {**os.environ, "DOCKER_HOST": self.socket, "DOCKER_BUILDKIT": "1", "DOCKER_CONFIG": str(home),
                    "BUILDKIT_PROGRESS": "plain"}
        self.env.pop("DOCKER_CONTEXT", None)
        self.daemon = None

    def start(self):
        self.start_daemon()
        call([self.docker, "import", str(self.base_tar), BASE], self.env)

    def start_daemon(self):
        home = self.state
        with open(home / "dockerd.log", "wb") as log:
            self.daemon = subprocess.Popen(
                [self.dockerd, "-H", self.socket, "--data-root", home / "data", "--exec-root", home / "exec",
                 "--pidfile", home / "dockerd.pid", "--bridge=none", "--iptables=false", "--ip6tables=false",
                 "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent)
        for _ in range(300):
            if self.daemon.poll() is not None:
                break
            if subprocess.run([self.docker, "version"], env=self.env, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        log = (home / "dockerd.log").read_text(errors="replace")
        raise Failure(f"dockerd does not start:\n{log[-2000:]}")

    def stop(self):
        if self.daemon is None:
            return
        for number, patience_s in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            self.daemon.send_signal(number)
            try:
                self.daemon.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                continue

    def version(self):
        return f"BuildKit of Docker {call([self.docker, 'version', '-f', '{{.Server.Version}}'], self.env)}"

    def build(self, plan, context, *options):
        file = self.new_file("Dockerfile")
        file.write_text(dockerfile(plan, self.base))
        argv = [self.docker, "build", "--network", "none", *options, "-f", str(file), str(context)]
        return argv, self.env, self.new_file("log")

    def pids(self):
        return [self.daemon.pid]

    def notes(self, log):
        text = pathlib.Path(log).read_text(errors="replace")
        number = re.search(r"^#(\d+) exporting to image", text, re.MULTILINE)
        done = number and re.search(rf"^#{number[1]} DONE ([\d.]+)s", text, re.MULTILINE)
        return {"export of the image": float(done[1])} if done else {}


class Buildah(Tool):
    name = "buildah"

    def __init__(self, home, base_tar):
        super().__init__(home, base_tar)
        self.buildah = program("buildah", "buildah")
        (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        # Settings of the machine's own container storage must not leak in.
        (home / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
        self.env = {**os.environ, "BUILDAH_ISOLATION": "oci", "BUILDAH_RUNTIME": program("runc", "runc"),
                    "TMPDIR": str(home), "CONTAINERS_STORAGE_CONF": str(home / "storage.conf")}

    def command(self, *arguments):
        return [self.buildah, "--root", str(self.state / "root"), "--runroot", str(self.state / "run"),
                "--storage-driver", "overlay", *arguments]

    def call(self, *arguments):
        return call(self.command(*arguments), self.env)

    def start(self):
        container = self.call("from", "scratch")
        self.call("add", container, str(self.base_tar), "/")
        self.call("commit", "--signature-policy", str(self.home / "policy.json"), container, BASE)
        self.call("rm", container)

    def stop(self):
        if self.state is not None:
            # Unmounts what a build that was killed has left.
            subprocess.run(self.command("rm", "--all"), env=self.env, capture_output=True, check=False)

    def version(self):
        return f"Buildah {call([self.buildah, '--version']).split()[2]} with runc"

    def build(self, plan, context, *options):
        file = self.new_file("Dockerfile")
        file.write_text(dockerfile(plan, self.base))
        argv = self.command("bud", "--layers", "--pull-never", "--isolation", "oci", "--network", "none", *options,
                            "--signature-policy", str(self.home / "policy.json"), "-f", str(file), str(context))
        return argv, self.env, self.new_file("log")


class Cp:
    """`cp -a` of the same tree: what the filesystem can do. Only for the copy."""

    name = "cp -a"

    def __init__(self, home):
        self.home = home
        home.mkdir()
        self.count = 0

    def forget(self):
        self.count += 1

    def build(self, _plan, context):
        return ["cp", "-a", str(context), str(self.home / f"copy-{self.count}")], None, self.home / "log"

    def notes(self, log):
        return {}
