"""How much memory processes take.

Of one process: its resident set at its peak. Of several: the sum of their *proportional* sets, which
count a page that n processes share as 1/n of it for each, at the moment when it was largest.
"""

import pathlib
import time

from .host import run_at_once

EVERY_S = 0.002


def field(pid, file, name):
    """Returns a size in KiB from a file of /proc; 0 if the process is gone."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def peak(pid):
    return field(pid, "status", "VmHWM")


def reset_peaks(pids):
    """Lets the kernel count the peaks of daemons anew, also those of their children."""
    for pid in family(pids):
        try:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            pass


def family(roots):
    """Returns the processes `roots` and all that descend from them."""
    children = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, pending = [], list(roots)
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending.extend(children.get(pid, []))
    return found


class Watch:
    """For `run_at_once`: samples the processes and everything below them while they run."""

    def __init__(self, daemons):
        self.daemons = daemons
        self.total_kib = 0

    def __call__(self, pids, is_running):
        while is_running():
            total = sum(field(pid, "smaps_rollup", "Pss") for pid in family([*pids, *self.daemons]))
            self.total_kib = max(self.total_kib, total)
            time.sleep(EVERY_S)


def peaks(commands, daemons):
    """Runs commands at once; returns the MiB of the largest process, and of all together."""
    reset_peaks(daemons)
    reports = [log.with_suffix(".kib") for _, _, log in commands]
    timed = [(["time", "-f", "%M", "-o", str(report), *map(str, argv)], env, log)
             for report, (argv, env, log) in zip(reports, commands)]
    watch = Watch(daemons)
    run_at_once(timed, watch)
    # What `time` tells is exact for the tool's own processes; daemons are only watched.
    largest = max([int(report.read_text().split()[-1]) for report in reports] + [peak(pid) for pid in daemons])
    return largest / 1024, watch.total_kib / 1024
