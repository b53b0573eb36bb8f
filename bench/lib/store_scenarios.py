"""The kinds of stores beside each other, and beside what their filesystems can do at all."""

import shutil
import subprocess

from .host import call, run_at_once, settle
from .scenarios import BUILDS, OWN, SHARED, STEPS, Result, chain, median, overlapping
from .tools import Kiln, program

# Room for every tree of all runs that share nothing; the file has holes.
IMAGE_GIB = 40


class Filesystem:
    """A filesystem of its own, on a loop device."""

    def __init__(self, bench, kind):
        program(f"mkfs.{kind}", {"btrfs": "btrfs-progs", "xfs": "xfsprogs"}[kind])
        home = bench.scratch / kind
        if home.exists():
            self.path = home / "mnt"
            return
        self.path = home / "mnt"
        self.path.mkdir(parents=True)
        with open(home / "image", "wb") as image:
            image.truncate(IMAGE_GIB << 30)
        call([f"mkfs.{kind}", "-q", str(home / "image")])
        call(["mount", "-o", "loop", str(home / "image"), str(self.path)])
        bench.cleanup.callback(subprocess.run, ["umount", "-l", str(self.path)], check=False)


class StoreOf(Kiln):
    """Kiln on a store of some kind."""

    def __init__(self, bench, name, kind, directory, options=(), steps=STEPS):
        self.name = name
        self.kind = kind
        self.options = options
        # Whole copies of the root are large: fewer of them tell as much.
        self.steps = steps
        super().__init__(directory / name.replace(" ", "-"), bench.kiln.base_tar, bench.kiln.binary)

    def forget(self):
        if self.state is not None and self.kind in ("copy", "xfs"):
            shutil.rmtree(self.state)
        super().forget()

    def build(self, plan, context, progress="plain"):
        argv, env, log = super().build(plan, context, progress)
        at = argv.index("--store") + 1
        argv[at] = f"{self.kind}:{self.state}"
        return argv[:2] + list(self.options) + argv[2:], env, log


def kinds(bench):
    xfs, btrfs = Filesystem(bench, "xfs").path, Filesystem(bench, "btrfs").path
    own = bench.scratch / "stores"
    own.mkdir(exist_ok=True)
    made = [
        StoreOf(bench, "overlayfs", "overlayfs", own),
        StoreOf(bench, "overlayfs on xfs", "overlayfs", xfs),
        StoreOf(bench, "btrfs", "btrfs", btrfs),
        StoreOf(bench, "xfs", "xfs", xfs),
        StoreOf(bench, "copy hardlink", "copy", own, ("--rsync-mode", "hardlink")),
        StoreOf(bench, "copy", "copy", own, steps=5),
    ]
    return made, xfs, btrfs, own


class Floor:
    """What the filesystem's own tool takes to make another of the same root."""

    def __init__(self, name, tree, command):
        self.name = name
        self.tree = tree
        self.command = command
        self.count = 0

    def commands(self):
        self.count += 1
        copy = self.tree.parent / f"floor-{self.name.replace(' ', '-').replace('/', '-')}-{self.count}"
        return [([*self.command, str(self.tree), str(copy)], None, self.tree.parent / "floor.log")]


def unpacked(bench, directory, subvolume=False):
    """The base image as a plain tree."""
    tree = directory / "floor" / "root"
    tree.parent.mkdir()
    if subvolume:
        call(["btrfs", "subvolume", "create", str(tree)])
    else:
        tree.mkdir()
    call(["tar", "-C", str(tree), "-xf", str(bench.kiln.base_tar)])
    return tree


def stores(bench):
    made, xfs, btrfs, own = kinds(bench)
    program("rsync", "rsync")
    plain = unpacked(bench, own)
    floors = [
        Floor("btrfs subvolume snapshot", unpacked(bench, btrfs, True), ["btrfs", "subvolume", "snapshot"]),
        Floor("cp -a --reflink", unpacked(bench, xfs), ["cp", "-a", "--reflink=always"]),
        Floor("cp -al", plain, ["cp", "-al"]),
        Floor("cp -a", plain, ["cp", "-a"]),
        Floor("rsync -a", plain, ["rsync", "-a"]),
    ]
    seconds = {tool.name: [] for tool in [*made, *floors]}
    for number in range(bench.runs + 1):
        for tool in made:
            tool.forget()
            settle()
            took = run_at_once([tool.build(chain(tool.steps), bench.empty())])
            if number > 0:
                seconds[tool.name].append(took / tool.steps)
        for floor in floors:
            todo = floor.commands()
            settle()
            took = run_at_once(todo)
            if number > 0:
                seconds[floor.name].append(took)
    if "buildah" in [tool.name for tool in bench.tools]:
        buildah = next(tool for tool in bench.tools if tool.name == "buildah")
        seconds["buildah"] = []
        for number in range(bench.runs + 1):
            buildah.forget()
            settle()
            took = run_at_once([buildah.build(chain(STEPS), bench.empty())])
            if number > 0:
                seconds["buildah"].append(took / STEPS)

    def a_step(name):
        return median(seconds[name]) * 1000

    return Result(f"a step of {STEPS} on a 170 MB root, by kind of store, and what a copy of the root costs", seconds, [
        ("overlayfs, per step", a_step("overlayfs"), 10, "ms", False),
        ("btrfs, per step", a_step("btrfs"), 10, "ms", False),
        ("xfs, per step", a_step("xfs"), 120, "ms", False),
        ("xfs / cp -a --reflink", a_step("xfs") / a_step("cp -a --reflink"), 1.2, "x", False),
        ("copy hardlink / cp -al", a_step("copy hardlink") / a_step("cp -al"), 2, "x", False),
    ])


def stores_eight(bench):
    made, *_ = kinds(bench)
    runs, notes = {}, []
    expected = SHARED + BUILDS * OWN
    for tool in made:
        if tool.name == "copy":
            continue
        runs[tool.name] = []
        counts = set()
        for number in range(bench.runs + 1):
            tool.forget()
            todo = [tool.build(overlapping(build), bench.empty()) for build in range(BUILDS)]
            settle()
            took = run_at_once(todo)
            saved = [step for _, _, log in todo for step in tool.saved(log)]
            counts.add((len(saved), len(set(saved))))
            if number > 0:
                runs[tool.name].append(took)
        once = counts == {(expected, expected)}
        notes.append(f"{tool.name}: " + (f"every step ran once, {expected} in all" if once else
                                         f"STEPS RAN TWICE OR NOT AT ALL: {sorted(counts)}, expected {expected}"))
    return Result(f"{BUILDS} builds at once on one store of each kind", runs, [], notes)


def stores_growth(bench):
    """Milliseconds a step in builds of 10, 100 and 1000 steps."""
    made, *_ = kinds(bench)
    lengths = (10, 100) if bench.quick else (10, 100, 1000)
    runs = {}
    for tool in made:
        if tool.name == "copy":
            continue
        for length in lengths:
            # A thousand whole trees are eight million files: nothing new after a hundred.
            if length > 100 and tool.kind in ("xfs", "copy"):
                continue
            name = f"{tool.name}, {length} steps"
            runs[name] = []
            for _ in range(3):
                tool.forget()
                settle()
                runs[name].append(run_at_once([tool.build(chain(length), bench.empty())]) / length)
    return Result("cost of a step in builds of growing length", runs)


ALL = {"stores": stores, "stores-eight": stores_eight, "stores-growth": stores_growth}
