"""What is measured. Each scenario returns a `Result`; none asserts anything about time."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import time

from . import memory
from .host import Failure, run_at_once, settle, warm


@dataclasses.dataclass
class Result:
    title: str
    # Tool -> seconds of each run.
    runs: dict
    # (what, value, target, unit, whether more is better)
    targets: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    # By how much to divide, and what that is called: for times per step.
    per: tuple = None


@dataclasses.dataclass(eq=False)
class Bench:
    tools: list
    scratch: pathlib.Path
    # What ends the processes that scenarios start.
    cleanup: contextlib.ExitStack
    runs: int
    quick: bool

    @property
    def kiln(self):
        return self.tools[0]

    @property
    def sharing(self):
        """Kiln and BuildKit. Buildah's builds at the same time know nothing of each other: each does all its steps."""
        return [tool for tool in self.tools if tool.name != "buildah"]

    def empty(self):
        """A source directory for plans that copy nothing."""
        path = self.scratch / "empty"
        path.mkdir(exist_ok=True)
        return path

    def alternate(self, tools, prepare, commands, notes=None):
        """Runs all tools in turn, again and again, so that a machine that gets slower does so for all.

        The first round warms up and does not count. `prepare(tool, round)` is not measured.
        """
        seconds = {tool.name: [] for tool in tools}
        for number in range(self.runs + 1):
            for tool in tools:
                prepare(tool, number)
                todo = commands(tool, number)
                settle()
                took = run_at_once(todo)
                if number > 0:
                    seconds[tool.name].append(took)
                    for what, value in tool.notes(todo[0][2]).items():
                        if notes is not None:
                            notes.setdefault((tool.name, what), []).append(value)
        return seconds


def median(values):
    return statistics.median(values)


def ratio(runs, tool, other):
    """How many times as long as `other` a tool takes; None if one was not measured."""
    return median(runs[tool]) / median(runs[other]) if tool in runs and other in runs else None


def said(notes):
    return [f"{tool}: {what} takes {median(values) * 1000:.0f} ms of it" for (tool, what), values in notes.items()]


def chain(length, last=None):
    """`length` steps that each write one small file; the last is different if `last` says so."""
    steps = [("run", f"echo {number} > /f{number}") for number in range(1, length + 1)]
    if last is not None:
        steps[-1] = ("run", f"echo {last} > /f{length}")
    return steps


STEPS = 50


def steps_cold(bench):
    notes = {}
    runs = bench.alternate(bench.tools, lambda tool, _: tool.forget(),
                           lambda tool, _: [tool.build(chain(STEPS), bench.empty())], notes)
    return Result(f"{STEPS} steps, cold", runs, [
        ("kiln, per step", median(runs["kiln"]) * 1000 / STEPS, 10, "ms", False),
        ("buildkit / kiln", ratio(runs, "buildkit", "kiln"), 7, "x", True),
    ], said(notes), (STEPS, "step"))


def steps_cached(bench):
    # The first round, which does not count, fills the caches.
    runs = bench.alternate(bench.tools, lambda *_: None, lambda tool, _: [tool.build(chain(STEPS), bench.empty())])
    return Result(f"the same {STEPS} steps, all cached", runs,
                  [("kiln, total", median(runs["kiln"]) * 1000, 15, "ms", False)])


def steps_last(bench):
    runs = bench.alternate(bench.tools, lambda *_: None,
                           lambda tool, number: [tool.build(chain(STEPS, f"run {number}"), bench.empty())])
    return Result(f"the last of {STEPS} steps changed", runs,
                  [("kiln, total", median(runs["kiln"]) * 1000, 30, "ms", False)])


def source_tree(bench):
    """Makes what is copied: many small files and a large one, with contents that no filesystem can shrink."""
    tree = bench.scratch / "tree"
    if not tree.exists():
        directories, each, large_mb = (20, 100, 50) if bench.quick else (200, 100, 500)
        for number in range(directories):
            directory = tree / f"d{number}"
            directory.mkdir(parents=True)
            for name in range(each):
                (directory / f"f{name}").write_bytes(os.urandom(4096))
        with open(tree / "large", "wb") as file:
            for _ in range(large_mb):
                file.write(os.urandom(1_000_000))
        os.sync()
        # A file that has only just been changed might change again within the same time stamp, so tools
        # read such a file once more. Not what is measured here.
        time.sleep(2)
    return tree


def size_of(bench):
    return "2 000 files of 4 KiB and one of 50 MB" if bench.quick else "20 000 files of 4 KiB and one of 500 MB"


COPY = [("copy", ".", "/src/")]


def copy_cold(bench):
    from .tools import Cp
    tree = source_tree(bench)
    tools = [*bench.tools, Cp(bench.scratch / "cp")]

    def prepare(tool, _):
        tool.forget()
        warm(tree)

    notes = {}
    runs = bench.alternate(tools, prepare, lambda tool, _: [tool.build(COPY, tree)], notes)
    return Result(f"copy of {size_of(bench)}, cold", runs, [
        ("kiln / cp -a", ratio(runs, "kiln", "cp -a"), 1.3, "x", False),
        ("kiln / buildkit", ratio(runs, "kiln", "buildkit"), 0.5, "x", False),
    ], said(notes))


def copy_cached(bench):
    tree = source_tree(bench)
    runs = bench.alternate(bench.tools, lambda *_: warm(tree), lambda tool, _: [tool.build(COPY, tree)])
    return Result("the same copy, cached", runs, [("kiln, total", median(runs["kiln"]) * 1000, 120, "ms", False)])


BUILDS, SHARED, OWN = 8, 10, 10


def overlapping(build):
    return chain(SHARED) + [("run", f"echo {build} > /own{number}") for number in range(OWN)]


def eight_at_once(bench):
    counts = []
    logs = []

    def commands(tool, _):
        todo = [tool.build(overlapping(build), bench.empty()) for build in range(BUILDS)]
        if tool is bench.kiln:
            logs.append([log for _, _, log in todo])
        return todo

    runs = bench.alternate(bench.sharing, lambda tool, _: tool.forget(), commands)
    for of_one_run in logs:
        saved = [step for log in of_one_run for step in bench.kiln.saved(log)]
        counts.append((len(saved), len(set(saved))))
    expected = SHARED + BUILDS * OWN
    once = all(total == distinct == expected for total, distinct in counts)
    note = f"kiln: every step ran once, {expected} in all" if once else \
        f"kiln: STEPS RAN TWICE OR NOT AT ALL: (ran, distinct) {counts}, expected {expected}"
    return Result(f"{BUILDS} builds at once, {SHARED} steps shared and {OWN} of their own each, cold", runs,
                  [("kiln / buildkit", ratio(runs, "kiln", "buildkit"), 1 / 3, "x", False)], [note])


def growth(bench):
    length = 200 if bench.quick else 500
    # As long as the run of layers after which the overlayfs store merges, so that each has one merge.
    window = 32
    early, late, totals = [], [], []
    for number in range(bench.runs + 1):
        bench.kiln.forget()
        argv, env, _ = bench.kiln.build(chain(length), bench.empty(), progress="json")
        settle()
        # Taken from when the events arrive, not from the seconds that they state: nothing is left out.
        ends = []
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
        start = time.perf_counter()
        try:
            for line in child.stderr:
                if json.loads(line).get("event") == "saved":
                    ends.append(time.perf_counter())
        finally:
            child.kill() if child.poll() is None and len(ends) < length else None
            child.wait()
            child.stderr.close()
        if child.returncode != 0 or len(ends) != length:
            raise Failure(f"kiln saved {len(ends)} of {length} steps, exit status {child.returncode}")
        if number > 0:
            early.append((ends[window] - ends[0]) / window)
            late.append((ends[-1] - ends[-1 - window]) / window)
            totals.append(ends[-1] - start)
    runs = {f"kiln, each of steps 2 to {window + 1}": early,
            f"kiln, each of steps {length - window + 1} to {length}": late, f"kiln, all {length}": totals}
    growths = [after / before for before, after in zip(early, late)]
    return Result(f"one build of {length} steps, cold: does a step's cost grow?", runs,
                  [("late / early", median(growths), 1.5, "x", False)])


def memory_peaks(bench):
    tree = source_tree(bench)
    cases = {
        f"{STEPS} steps, cold": lambda tool: [tool.build(chain(STEPS), bench.empty())],
        f"copy of {size_of(bench)}, cold": lambda tool: [tool.build(COPY, tree)],
        f"{BUILDS} builds at once, cold": lambda tool:
            [tool.build(overlapping(build), bench.empty()) for build in range(BUILDS)],
    }
    result = Result("peak memory", {})
    for case, commands in cases.items():
        for tool in bench.sharing:
            tool.forget()
            todo = commands(tool)
            largest, together = memory.peaks(todo, tool.pids())
            result.notes.append(f"{tool.name}: {case}: largest process {largest:.1f} MiB, all together {together:.1f} MiB")
            if tool is bench.kiln:
                result.targets.append((f"{case}: largest process", largest, 64, "MiB", False))
                result.targets.append((f"{case}: all together", together, 64, "MiB", False))
    return result


ALL = {
    "steps-cold": steps_cold,
    "steps-cached": steps_cached,
    "steps-last": steps_last,
    "copy-cold": copy_cold,
    "copy-cached": copy_cached,
    "eight-at-once": eight_at_once,
    "growth": growth,
    "memory": memory_peaks,
}
