"""Images for the scenarios that move them, and the registry that serves them."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time

from .host import Failure, call, die_with_parent
from .tools import program

# What images call the processors of other names in Linux.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry:
    """Debian's docker-registry with a directory and a port of its own."""

    def __init__(self, home):
        home.mkdir()
        self.storage = home / "storage"
        config = home / "config.json"
        # JSON is YAML. It takes a free port and says which.
        config.write_text(json.dumps({
            "version": "0.1", "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": "127.0.0.1:0", "secret": "bench"},
        }))
        self.log_file = home / "log"
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [program("docker-registry", "docker-registry"), "serve", str(config)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent)
        self.host = self.started()

    def started(self):
        for _ in range(300):
            address = re.search(r"listening on (127\.0\.0\.1:\d+)", self.log())
            if address:
                return address[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise Failure(f"docker-registry does not start:\n{self.log()[-2000:]}")

    def log(self):
        return self.log_file.read_text(errors="replace")

    def fetched(self, repository, layer, agent):
        """Returns how many times a client, the beginning of whose name is `agent`, fetched a layer."""
        request = rf'"GET /v2/{repository}/blobs/sha256:{layer.digest} [^"]*" 20[06] \d+ "[^"]*" "{agent}'
        return len(re.findall(request, self.log(), re.IGNORECASE))

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Layer:
    """A layer as an image has it: a gzip file, the digests of it and of what is in it."""

    def __init__(self, tar):
        self.file = tar.with_suffix(".gz")
        unpacked, packed = hashlib.sha256(), hashlib.sha256()
        with open(tar, "rb") as source, open(self.file, "wb") as target:
            # The level that Docker has; the name and the time of the file would change its digest.
            with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=6, mtime=0) as pack:
                for piece in pieces(source):
                    unpacked.update(piece)
                    pack.write(piece)
        with open(self.file, "rb") as source:
            for piece in pieces(source):
                packed.update(piece)
        self.diff_id, self.digest = unpacked.hexdigest(), packed.hexdigest()


def pieces(file):
    return iter(lambda: file.read(1 << 20), b"")


def upper_tar(path, size):
    """Makes the archive of a layer with one file of random bytes."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("srv/own")
        member.size = size
        tar.addfile(member, io.BytesIO(os.urandom(size)))


def push(registry, home, name, layers):
    """Puts an image of these layers into a registry as NAME, and returns the reference to it."""
    layout = home / name.replace(":", "-")
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    oci = "application/vnd.oci.image"

    def blob(media_type, document):
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"{oci}.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    for layer in layers:
        os.link(layer.file, blobs / layer.digest)
    config = blob("config.v1+json", {
        "architecture": ARCHITECTURES.get(os.uname().machine, os.uname().machine), "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
    })
    manifest = blob("manifest.v1+json", {
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json", "config": config,
        "layers": [{"mediaType": f"{oci}.layer.v1.tar+gzip", "digest": f"sha256:{layer.digest}",
                    "size": layer.file.stat().st_size} for layer in layers],
    })
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    reference = f"{registry.host}/{name}"
    call([program("skopeo", "skopeo"), "--insecure-policy", "copy", "-q", "--preserve-digests",
          "--dest-tls-verify=false", f"oci:{layout}:image", f"docker://{reference}"])
    return reference
