"""One process in a sandbox: kiln's, beside those of runc, crun and bubblewrap."""

import ctypes
import json
import os
import pathlib
import random
import subprocess
import time

from .host import Failure, call
from .scenarios import Result, median
from .tools import program

# The range of ids that `/etc/subuid` begins with: nobody's, on a machine for benchmarks.
FIRST_ID, IDS = 100000, 65536
PROFILE = pathlib.Path("/usr/share/containers/seccomp.json")
EVERYTHING = "everything"
# What commands read. Not the host's /dev/null: crun gives its standard input to the container's root.
NOTHING, _WRITER = os.pipe()
os.close(_WRITER)
# Between two runs: the kernel goes on to take down a sandbox after its end.
PAUSE_S = 0.05


class Probe:
    """Kiln's sandbox in a process that stays, as the engine does."""

    def __init__(self, bench, root):
        binary = pathlib.Path(bench.kiln.binary)
        measure = pathlib.Path(os.environ.get("MEASURE", binary.parent / "examples" / "measure"))
        helper = measure.parent.parent / "kiln-sandbox-helper"
        for needed in (measure, helper):
            if not os.access(needed, os.X_OK):
                raise Failure(f"{needed} is missing: run cargo build --release -p kiln-sandbox --bins --example measure")
        self.child = subprocess.Popen([str(measure), str(root), str(helper), "turns"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        bench.cleanup.callback(self.stop)

    def run(self, way):
        self.child.stdin.write(way + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise Failure(f"kiln's sandbox failed in the way `{way}`; it has said why")
        return float(answer)

    def stop(self):
        self.child.stdin.close()
        self.child.wait(60)
        self.child.stdout.close()


def spawned(argv):
    """Runs a command and returns the seconds until it has ended. Not by `subprocess`, which itself takes a millisecond."""
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, {"PATH": os.environ["PATH"]}, file_actions=[(os.POSIX_SPAWN_DUP2, NOTHING, 0)])
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - start
    if status != 0:
        raise Failure(f"{' '.join(argv)}: wait status {status}")
    return took


def seccomp():
    """The profile that Podman and Buildah use, as a runtime's configuration has it, for a process without CAP_SYS_ADMIN."""
    if not PROFILE.exists():
        raise Failure(f"{PROFILE} is missing: install the Debian package golang-github-containers-common")
    profile = json.loads(PROFILE.read_text())
    calls = []
    for entry in profile["syscalls"]:
        condition = entry.get("includes", {})
        if condition.get("caps") or "amd64" not in condition.get("arches", ["amd64"]):
            continue
        calls.append({key: entry[key] for key in ("names", "action", "args", "errnoRet") if entry.get(key) is not None})
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": calls}


class WithoutVersionTwo:
    """A mount namespace without control groups of version 2, for spawning in. crun takes no host that has controllers in both."""

    def __init__(self, bench):
        script = "grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5 | xargs -n1 umount && echo ready && read -r _"
        self.keeper = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)
        bench.cleanup.callback(self.stop)
        if self.keeper.stdout.readline() != b"ready\n":
            raise Failure("cannot make a mount namespace without control groups of version 2 for crun")
        self.inside, self.outside = (os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                                     for pid in (self.keeper.pid, "self"))

    def spawned(self, argv):
        directory = os.getcwd()
        self.enter(self.inside)
        try:
            return spawned(argv)
        finally:
            self.enter(self.outside)
            os.chdir(directory)

    @staticmethod
    def enter(namespace):
        mount_namespace = 0x20000
        if ctypes.CDLL(None, use_errno=True).setns(namespace, mount_namespace) != 0:
            raise Failure(f"cannot enter a mount namespace: {os.strerror(ctypes.get_errno())}")

    def stop(self):
        self.keeper.stdin.close()
        self.keeper.wait(60)
        self.keeper.stdout.close()


def bundle(bench, runc, root):
    """`runc spec`, with what kiln does too: users and a network of its own, limits, a filter of system calls."""
    directory = bench.scratch / "bundle"
    directory.mkdir()
    call([runc, "spec", "--bundle", str(directory)])
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["process"].update(terminal=False, args=["/bin/true"], noNewPrivileges=False)
    config["root"] = {"path": str(root), "readonly": False}
    linux = config["linux"]
    linux["namespaces"].append({"type": "user"})
    if not any(namespace["type"] == "network" for namespace in linux["namespaces"]):
        linux["namespaces"].append({"type": "network"})
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
    linux["resources"] = {"memory": {"limit": 4 << 30}, "pids": {"limit": 16384},
                          "cpu": {"quota": 200000, "period": 100000}}
    linux["seccomp"] = seccomp()
    file.write_text(json.dumps(config))
    return directory


def sandbox(bench):
    runc, crun, bwrap = (program(name, package) for name, package in
                         (("runc", "runc"), ("crun", "crun"), ("bwrap", "bubblewrap")))
    # Root inside, who is nobody outside, must get through.
    bench.scratch.chmod(0o755)
    root = bench.scratch / "sandbox-root"
    root.mkdir()
    call(["tar", "-C", str(root), "-xf", str(bench.kiln.base_tar)])
    directory = bundle(bench, runc, root)
    probe = Probe(bench, root)
    state = bench.scratch / "runtimes"
    state.mkdir()

    def runtime(binary, spawn=spawned):
        return lambda number: spawn([binary, "--root", str(state), "run", "--bundle", str(directory),
                                     f"kiln-bench-{os.getpid()}-{number}"])

    notes = ["bubblewrap has neither limits nor a filter of system calls here"]
    by_crun = runtime(crun)
    try:
        by_crun("probe")
    except Failure:
        by_crun = runtime(crun, WithoutVersionTwo(bench).spawned)
        notes.append("crun sees control groups of version 1 only: it takes no host that has controllers in both")

    ways = {f"kiln, {way}": (lambda _, way=way: probe.run(way)) for way in
            ("no limits", "the host's users", "the host's users, no limits")}
    contestants = {
        "kiln": lambda _: probe.run(EVERYTHING),
        **ways,
        "bubblewrap": lambda _: spawned([bwrap, "--unshare-all", "--uid", "0", "--gid", "0", "--bind", str(root), "/", "--proc", "/proc",
                                         "--dev", "/dev", "--die-with-parent", "/bin/true"]),
        "crun": by_crun,
        "runc": runtime(runc),
    }
    seconds = {name: [] for name in contestants}
    rounds = bench.runs * (4 if bench.quick else 20)
    # Who comes after whom changes, because the kernel takes sandboxes down for a while after their end.
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    # The first rounds do not count.
    for number in range(-2, rounds):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            took = contestants[name](number + 2)
            if number >= 0:
                seconds[name].append(took)

    def times(one, other):
        return median(seconds[one]) / median(seconds[other])

    return Result(f"/bin/true in a sandbox ({rounds} rounds)", seconds, [
        ("kiln", median(seconds["kiln"]) * 1000, 5, "ms", False),
        ("runc / kiln", times("runc", "kiln"), 5, "x", True),
        ("crun / kiln", times("crun", "kiln"), 2, "x", True),
        ("own users and limits / neither", times("kiln", "kiln, the host's users, no limits"), 1.2, "x", False),
    ], notes)


ALL = {"sandbox": sandbox}
