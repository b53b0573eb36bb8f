"""The machine: a directory that vanishes again, processes that end with us, facts for the report."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

# No single command of a benchmark takes this long; one that does hangs, which is said and ends the run.
TIMEOUT_S = 300


class Failure(Exception):
    """Something that the reader can act on: printed without a traceback."""


def end_on_signals():
    """Lets SIGTERM and SIGHUP end the script the way Ctrl-C does, so that everything is cleaned up."""

    def end(number, _frame):
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def die_with_parent():
    """In a child before exec: asks the kernel for SIGTERM when this script is gone, even if it was killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextlib.contextmanager
def scratch():
    """A directory below $TMPDIR, removed at the end together with whatever is still mounted in it."""
    # Short, because the path of a Unix socket in it must fit into 107 bytes.
    path = pathlib.Path(tempfile.mkdtemp(prefix="kiln-bench.")).resolve()
    try:
        yield path
    finally:
        remove(path)


def remove(path):
    """Removes a directory and what is mounted below."""
    below = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(path) or point.startswith(f"{path}/"):
            below.append(point)
    for point in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        print(f"cannot remove all of {path}", file=sys.stderr)


def call(argv, env=None):
    """Runs a command that is not measured; returns its standard output."""
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
                          errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def run_at_once(commands, while_running=None):
    """Starts all commands, waits for all, and returns the seconds from before the first start to the last end.

    Each command is (argv, env, log): its output goes to the file `log`.
    """
    children = []
    try:
        with contextlib.ExitStack() as logs:
            files = [logs.enter_context(open(log, "wb")) for _, _, log in commands]
            start = time.perf_counter()
            for (argv, env, _), log in zip(commands, files):
                # A session of its own, so that all of it can be killed below.
                children.append(subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                 start_new_session=True))
            if while_running:
                while_running([child.pid for child in children],
                              lambda: any(child.poll() is None for child in children))
            for child in children:
                child.wait(TIMEOUT_S)
            seconds = time.perf_counter() - start
    except BaseException as error:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failure(f"hangs, killed after {TIMEOUT_S} s: {' '.join(map(str, error.cmd))}") from error
        raise
    for child, (argv, _, log) in zip(children, commands):
        if child.returncode != 0:
            tail = pathlib.Path(log).read_text(errors="replace")[-2000:]
            raise Failure(f"{' '.join(map(str, argv))}: exit status {child.returncode}\n{tail}")
    return seconds


def settle():
    """Writes back what earlier runs left dirty, so that the next one does not pay for it."""
    os.sync()


def warm(tree):
    """Reads all of a tree, so that it is in the page cache."""
    buffer = bytearray(1 << 20)
    for directory, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def facts(scratch_dir):
    """What a reader needs to know of the machine."""
    def field(path, name):
        for line in pathlib.Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
        return "unknown"

    return {
        "processors": len(os.sched_getaffinity(0)),
        "processor": field("/proc/cpuinfo", "model name"),
        "memory_gib": round(int(field("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20)),
        "kernel": os.uname().release,
        "filesystem": call(["stat", "-f", "-c", "%T", str(scratch_dir)]),
        "load_before": os.getloadavg()[0],
    }
