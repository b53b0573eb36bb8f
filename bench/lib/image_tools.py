"""The tools that pull and push images: those that also build, without a base image at first, and plain programs."""

import os
import pathlib

from . import tools
from .host import call


class Kiln(tools.Kiln):
    def start(self):
        """There is nothing yet."""

    def pull(self, reference):
        self.base = reference
        return self.build([], self.home / "empty")

    def make(self, reference, plan):
        self.base = reference
        argv, env, _ = self.build(plan, self.home / "empty")
        self.result = call(argv, env).splitlines()[-1]

    def push(self, reference):
        argv = [self.binary, "export", "--progress", "plain", "--store", f"overlayfs:{self.state}", self.result,
                "--tag", reference, "--push"]
        return argv, self.env, self.new_file("log")


class Docker(tools.BuildKit):
    name = "docker"

    def start(self):
        self.start_daemon()

    def pull(self, reference):
        return [self.docker, "pull", "-q", reference], self.env, self.new_file("log")

    def make(self, reference, plan):
        argv, env, _ = self.pull(reference)
        call(argv, env)
        self.base = reference
        argv, env, _ = self.build(plan, empty(self.home), "-t", "made")
        call(argv, env)

    def push(self, reference):
        call([self.docker, "tag", "made", reference], self.env)
        return [self.docker, "push", "-q", reference], self.env, self.new_file("log")

    def notes(self, log):
        return {}


class Buildah(tools.Buildah):
    def start(self):
        """There is nothing yet."""

    def trusting(self, *arguments):
        return self.command(*arguments, "-q", "--tls-verify=false", "--signature-policy", str(self.home / "policy.json"))

    def pull(self, reference):
        return [*self.trusting("pull"), reference], self.env, self.new_file("log")

    def make(self, reference, plan):
        argv, env, _ = self.pull(reference)
        call(argv, env)
        self.base = reference
        argv, env, _ = self.build(plan, empty(self.home), "-t", "made")
        call(argv, env)

    def push(self, reference):
        return [*self.trusting("push"), "made", f"docker://{reference}"], self.env, self.new_file("log")


def empty(home):
    """A source directory for plans that copy nothing."""
    path = home / "empty"
    path.mkdir(exist_ok=True)
    return path


class Plain:
    """A shell command that makes a tree in a new directory, `$into`: what the programs of a Unix can do."""

    def __init__(self, name, home, script):
        self.name = name
        self.home = home
        home.mkdir()
        self.script = script
        self.count = 0
        self.into = None

    def forget(self):
        self.count += 1
        self.into = self.home / f"tree-{self.count}"
        self.into.mkdir()

    def pull(self, _reference):
        return ["sh", "-euc", self.script], {**os.environ, "into": str(self.into), "TMPDIR": str(self.home)}, \
            pathlib.Path(f"{self.into}.log")

    def pids(self):
        return []

    def notes(self, _log):
        return {}
