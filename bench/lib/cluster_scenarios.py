"""Jobs that do nothing, and a log that is long, through a scheduler with TLS and a worker on loopback: three programs of kiln's.
A scheduler that has thousands of workers and hundreds of jobs a second. And what it decides, in simulated time."""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from .host import Failure
from .memory import peak, reset_peaks
from .scenarios import Result, median

POOL = "bench"
# The OCaml programs, on a machine like the one for which the targets were set, in seconds and MB/s. They are not run here.
OCAML = {"job": 0.240, "parallel": 7.4, "log": 0.2}
PARALLEL = 100
LOG_MB, QUICK_LOG_MB = 1024, 64
# Workers, jobs a second, seconds; and for how many seconds that goes on for a scheduler that is killed in their midst.
LOAD, QUICK_LOAD = (2000, 500, 600, 30), (100, 50, 10, 10)
CLIENTS = ("alice", "bob", "carol", "dave")
# How many jobs run when one scheduler takes over from another, and how many parts of 32 KiB the log of each has.
RUNNING, QUICK_RUNNING = (3000, 8), (300, 8)


class Scheduler:
    """A scheduler, and what else is started for it."""

    def __init__(self, bench, name, clients):
        self.binary = bench.kiln.binary
        self.dir = bench.scratch / name
        self.dir.mkdir()
        self.clients = clients
        self.started = []
        bench.cleanup.callback(self.stop)
        self.serve("127.0.0.1:0")

    def serve(self, address):
        said = self.start("scheduler", "listening at", [
            "--capnp-secret-key-file", "caps/key.pem", "--capnp-listen-address", f"tcp:{address}", "--state-dir", "state",
            "--secrets-dir", "caps", "--pools", POOL, "--default-clients", ",".join(self.clients)])
        self.address = said.rpartition("listening at ")[2].split()[0]

    def kill(self):
        """Kills the scheduler, and starts it again where it was."""
        scheduler = self.started.pop(0)
        scheduler.kill()
        scheduler.wait(60)
        self.serve(self.address)

    def start(self, command, ready, arguments):
        child = subprocess.Popen([self.binary, command, *arguments], cwd=self.dir, stderr=subprocess.PIPE, text=True)
        self.started.append(child)
        said = ""
        while ready not in said:
            line = child.stderr.readline()
            if not line:
                raise Failure(f"kiln {command} ended: {said}")
            said += line
        # What it says from now on must not fill the pipe.
        subprocess.Popen(["cat"], stdin=child.stderr, stdout=subprocess.DEVNULL)
        return said

    def stop(self):
        for child in reversed(self.started):
            child.terminate()
            child.wait(60)


class Postgres:
    """A PostgreSQL server on a Unix socket, with an empty database."""

    def __init__(self, bench):
        # Not below what only root may enter.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="kiln-bench-"))
        bench.cleanup.callback(shutil.rmtree, self.dir)
        shutil.chown(self.dir, "postgres", "postgres")
        programs = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        if programs is None:
            raise Failure("there is no PostgreSQL: apt-get install postgresql")
        self.uri = f"postgres://kiln@/kiln?host={self.dir}&sslmode=disable"

        def command(program, *arguments):
            return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", programs / program, *arguments]

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        subprocess.run(command("initdb", "--auth=trust", "--username=kiln", "-D", self.dir / "data"), check=True, **quiet)
        self.server = subprocess.Popen(command("postgres", "-D", self.dir / "data", "-k", self.dir, "-c", "listen_addresses="), **quiet)
        bench.cleanup.callback(self.stop)
        for _ in range(300):
            if subprocess.run(command("createdb", "-h", self.dir, "-U", "kiln", "kiln"), **quiet, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise Failure("PostgreSQL does not start")

    def run(self, statement):
        subprocess.run(["psql", "-XAtq", "-h", self.dir, "-U", "kiln", "-d", "kiln", "-c", statement], check=True)

    def stop(self):
        self.server.send_signal(signal.SIGINT)
        self.server.wait(60)


class Pair(Scheduler):
    """Two schedulers that share a database, a worker, and somebody who submits jobs that do nothing, one after the other."""

    def __init__(self, bench):
        self.database = Postgres(bench)
        self.ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports.append(free.getsockname()[1])
        self.scheduler = {}
        super().__init__(bench, "pair", ["me"])
        self.stand(1)
        self.start("worker", "registered", ["-c", f"caps/pool-{POOL}.cap", "--name", "w1", "--capacity", "10", "--no-docker",
                                            "--no-healthcheck", "--state-dir", "worker", "--store", f"auto:{self.dir}/store",
                                            "--custom", "nothing=true"])

    def serve(self, _):
        self.stand(0)
        self.serving = 0

    def stand(self, at):
        public = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        os.environ["KILN_STATE"] = self.database.uri
        try:
            self.start("scheduler", "listening at" if not self.scheduler else "standing by", [
                "--capnp-secret-key-file", "caps/key.pem", "--capnp-listen-address", f"tcp:127.0.0.1:{self.ports[at]}",
                "--capnp-public-address", f"tcp:{public}", "--state-dir", f"state-{at}", "--secrets-dir", "caps",
                "--pools", f"{POOL},away", "--default-clients", "me"])
        finally:
            del os.environ["KILN_STATE"]
        self.scheduler[at] = self.started[-1]

    def job(self):
        end(subprocess.Popen([self.binary, "submit", "custom", "-c", "caps/submit-me.cap", "--pool", POOL, "--kind", "nothing"],
                             cwd=self.dir, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))

    def fill(self, jobs, parts):
        """Has so many jobs run, by what the database says, on workers that are away, each with a log of so many parts."""
        subprocess.run([self.binary, "submit", "custom", "-c", "caps/submit-me.cap", "--pool", "away", "--kind", "nothing", "--detach"],
                       cwd=self.dir, check=True, stdout=subprocess.DEVNULL)
        key = "decode(lpad(to_hex(n), 20, '0'), 'hex')"
        self.database.run(f"INSERT INTO kiln_jobs (id, pool, client, urgent, detached, submitted, description, secrets, runs, worker, "
                          f"log_start) SELECT {key}, pool, client, 0, 1, submitted, description, 0, 1, convert_to('w' || n, 'UTF8'), 0 "
                          f"FROM kiln_jobs, generate_series(1, {jobs}) n WHERE ended IS NULL")
        # Of what compresses as badly as logs do at most.
        self.database.run("ALTER TABLE kiln_logs ALTER bytes SET STORAGE EXTERNAL")
        self.database.run(f"INSERT INTO kiln_logs SELECT {key}, part * 32768, 32768, convert_to(repeat(md5(n || '.' || part), 1024), "
                          f"'UTF8') FROM generate_series(1, {jobs}) n, generate_series(0, {parts - 1}) part")

    def fail(self, how):
        """Has the one that serves fail, and returns after how many seconds a job that was submitted at that moment has ended."""
        failing = self.scheduler.pop(self.serving)
        failing.send_signal(how)
        begun = time.perf_counter()
        self.job()
        seconds = time.perf_counter() - begun
        if how == signal.SIGSTOP:
            # It goes on, and finds that it does not serve any more.
            failing.send_signal(signal.SIGCONT)
            self.scheduler[self.serving] = failing
        else:
            failing.wait(60)
            self.started.remove(failing)
            self.stand(self.serving)
        self.serving = 1 - self.serving
        # As when nothing happens for a while: all are connected, and whoever stands by knows who serves.
        time.sleep(3)
        return seconds


class Cluster(Scheduler):
    """A scheduler and a worker, which does jobs of the kinds `nothing` and `log`."""

    def __init__(self, bench, log_mb):
        super().__init__(bench, "cluster", ["me"])
        # A source of known bytes that is faster than what is measured.
        (self.dir / "megabyte").write_bytes(hashlib.shake_256(b"kiln").digest(1 << 20))
        cat = f"for i in $(seq {log_mb}); do cat {self.dir}/megabyte; done"
        self.start("worker", "registered", ["-c", f"caps/pool-{POOL}.cap", "--name", "w1", "--capacity", "10", "--no-docker",
                                            "--no-healthcheck", "--state-dir", "worker", "--store", f"auto:{self.dir}/store",
                                            "--job-log-limit", "4G", "--custom", "nothing=true", "--custom", f"log={cat}"])

    def submit(self, kind, output=subprocess.DEVNULL):
        return subprocess.Popen([self.binary, "submit", "custom", "-c", "caps/submit-me.cap", "--pool", POOL, "--kind", kind],
                                cwd=self.dir, stdout=output, stderr=subprocess.PIPE)


def end(client):
    said = client.stderr.read()
    if client.wait(300) != 0:
        raise Failure(f"kiln submit: {said.decode()}")


def cluster(bench):
    log_mb = QUICK_LOG_MB if bench.quick else LOG_MB
    it = Cluster(bench, log_mb)

    def one():
        end(it.submit("nothing"))

    def many():
        for client in [it.submit("nothing") for _ in range(PARALLEL)]:
            end(client)

    def log():
        client = it.submit("log", subprocess.PIPE)
        expected = len("Building on w1\n") + (log_mb << 20) + len("Job succeeded\n")
        length = 0
        while piece := os.read(client.stdout.fileno(), 1 << 20):
            length += len(piece)
        end(client)
        if length != expected:
            raise Failure(f"the log has {length} bytes, not {expected}")

    def timed(what, runs):
        # The first does not count.
        what()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            what()
            seconds.append(time.perf_counter() - start)
        return seconds

    pids = [child.pid for child in it.started]
    runs = {"a job that does nothing": timed(one, bench.runs * 10), f"{PARALLEL} at once": timed(many, bench.runs)}
    reset_peaks(pids)
    name = f"a log of {log_mb} MiB"
    runs[name] = timed(log, max(1, bench.runs // 2))
    scheduler, worker = (peak(pid) / 1024 for pid in pids)
    rate = log_mb * 1.048576 / median(runs[name])
    return Result("jobs through a scheduler, each of a client of its own that is started for it", runs, [
        ("a job that does nothing", median(runs["a job that does nothing"]) * 1000, 10, "ms", False),
        (f"{PARALLEL} at once", median(runs[f"{PARALLEL} at once"]), 0.5, "s", False),
        ("the log", rate, 100, "MB/s", True),
    ], [f"peak memory during the log: scheduler {scheduler:.0f} MiB, worker {worker:.0f} MiB",
        "OCluster's programs, elsewhere: {job:.3f} s, {parallel} s, {log} MB/s".format(**OCAML)])


def stand_by(bench):
    it = Pair(bench)
    it.job()
    hows = {"killed": signal.SIGKILL, "stopped, and continued later": signal.SIGSTOP, "told to end": signal.SIGTERM}
    runs = {name: [it.fail(how) for _ in range(max(2, bench.runs))] for name, how in hows.items()}
    jobs, parts = QUICK_RUNNING if bench.quick else RUNNING
    it.fill(jobs, parts)
    name = f"told to end while {jobs} jobs run, each with {parts * 32} KiB of log"
    hows[name] = signal.SIGTERM
    runs[name] = [it.fail(signal.SIGTERM) for _ in range(max(2, bench.runs))]
    return Result("one of two schedulers that share a PostgreSQL fails: how long a job takes that is submitted then", runs,
                  [(f"at most, {name}", max(seconds), 10, "s", False) for name, seconds in runs.items()], [])


def load(bench):
    workers, rate, seconds, restart_seconds = QUICK_LOAD if bench.quick else LOAD
    it = Scheduler(bench, "load", CLIENTS)
    program = pathlib.Path(it.binary).parent / "examples" / "load"
    if not os.access(program, os.X_OK):
        raise Failure(f"{program} is missing: run cargo build --release -p kiln-scheduler --example load")

    def play(seconds, meanwhile=lambda: None):
        clients = [f"--client=caps/submit-{name}.cap" for name in CLIENTS]
        child = subprocess.Popen([program, "--state=state", f"--pool=caps/pool-{POOL}.cap", f"--pool-name={POOL}", *clients,
                                  f"--workers={workers}", f"--rate={rate}", f"--seconds={seconds}", "--json=figures.json"],
                                 cwd=it.dir, stdout=subprocess.DEVNULL)
        try:
            meanwhile()
            code = child.wait(seconds * 2 + 120)
        finally:
            child.kill()
        if code not in (0, 1):
            raise Failure(f"{program} ended with {code}")
        figures = json.loads((it.dir / "figures.json").read_text())
        return figures["summary"], figures["looks"]

    def some_seconds_later():
        time.sleep(restart_seconds / 2)
        it.kill()

    it_all, looks = play(seconds)
    restarted, _ = play(restart_seconds, some_seconds_later)
    # At first all have just come; in the end no more jobs do.
    steady = [look for look in looks if look["at_s"] > seconds / 10 and look["workers"] == workers] or looks
    memory = [look["resident_kib"] / 1024 for look in steady]

    def mean(what):
        return sum(look[what] for look in steady) / len(steady)

    arrival, end = it_all["submission_to_worker_ms"], it_all["submission_to_end_ms"]
    return Result(f"{workers} workers that only wait, {rate} jobs a second for {seconds} s, through TLS", {}, [
        ("errors", it_all["errors"] + restarted["errors"], 0, "", False),
        ("from submission to a worker, 99 % below", arrival["p99"], 100, "ms", False),
        ("memory in the end, of that before", memory[-1] / memory[0], 1.1, "", False),
    ], [
        f"jobs: {it_all['ended']} of {it_all['submitted']} ended, {it_all['begun_again']} begun again",
        f"from submission to a worker: median {arrival['p50']:.1f} ms, 99 % below {arrival['p99']:.1f}, 99.9 % below "
        f"{arrival['p999']:.1f}, longest {arrival['longest']:.0f}",
        f"to the end, of a job of {it_all['job_s']:.0f} s: median {end['p50']:.0f} ms, 99 % below {end['p99']:.0f}",
        f"the scheduler: {memory[0]:.0f} to {memory[-1]:.0f} MiB, at most {max(look['open_files'] for look in looks)} open files, "
        f"{mean('scheduler_percent'):.0f} % of a processor, {mean('first_thread_percent'):.0f} % in its first thread; "
        f"the workers and clients {mean('generator_percent'):.0f} %, all of the machine {mean('machine_percent'):.0f} %",
        f"all registered {it_all['all_registered_after_s'][0]:.1f} s after the first began to connect; after the scheduler was killed and "
        f"started again {', '.join(f'{after:.1f} s' for after in restarted['all_registered_after_s'][1:])}",
        f"with that: {restarted['ended']} of {restarted['submitted']} jobs ended, {restarted['begun_again']} begun again; "
        f"first errors: {it_all['first_errors'] + restarted['first_errors']}",
    ])


def simulate(bench):
    def figures(*arguments):
        done = subprocess.run([bench.kiln.binary, "simulate", "--json", *arguments], stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise Failure(f"kiln simulate {' '.join(arguments)} ended with {done.returncode}")
        return json.loads(done.stdout)

    def both(*arguments):
        kiln, ocluster = figures(*arguments)["outcomes"]
        return kiln, ocluster

    notes = []
    costs = figures("--sizes=1000,10000" if bench.quick else "--sizes=1000,10000,100000,1000000")["costs"]
    operations = ["submit", "pop", "finish", "cancel"]
    for at in costs:
        of = ", ".join("{} {mean:.1f} {p99:.1f} {max:.0f}".format(operation, **at[f"{operation}_us"]) for operation in operations)
        notes.append(f"{at['jobs']} jobs, {at['workers']} workers: {of}; {at['job_bytes']} bytes a job, "
                     f"{at['memory_bytes'] / 1e6:.0f} MB")
    most = costs[-1]
    targets = [(f"{operation}, {what}", most[f"{operation}_us"][key], 50, "µs", False)
               for operation in operations[:2] for what, key in (("mean", "mean"), ("99 % below", "p99"))]
    targets.append(("memory", most["memory_bytes"] / 1e6, 1000, "MB", False))
    # Everybody has work waiting, as long as it is measured; and a day in which workers are busy, but not all of the time.
    jobs = "20000" if bench.quick else "100000"
    full, full_ocluster = both("--span=1s", "--workers=20", "--urgent=0", f"--jobs={jobs}")
    targets.append(("off the promised share", full["unfairness"] * 100, 5, "%", False))
    notes.append(f"off the promised share: {full['unfairness']:.1%}, OCluster's policy {full_ocluster['unfairness']:.1%}")
    for kiln, ocluster, what in ((full, full_ocluster, "all at once"), (*both(f"--jobs={jobs}"), "in a day")):
        for name, it in (("kiln", kiln), ("OCluster's policy", ocluster)):
            notes.append(f"{jobs} jobs {what}, {name}: hits {it['hit_rate']:.1%}, wait mean {it['wait_s']['mean']:.0f} s, "
                         f"99 % below {it['wait_s']['p99']:.0f} s, makespan {it['makespan_s']:.0f} s, work {it['work_s']:.0f} s")
    return Result("what the scheduler decides: µs of processor time (mean, 99 % below, longest), and in simulated time", {},
                  targets, notes)


ALL = {"cluster": cluster, "load": load, "stand-by": stand_by, "simulate": simulate}
