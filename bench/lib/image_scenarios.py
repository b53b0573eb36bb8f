"""What is measured of images on their way in and out, as `scenarios` does for builds."""

import functools

from . import image_tools, images, memory
from .host import call, settle, warm
from .scenarios import Result, ratio
from .tools import program

KINDS = {"buildkit": image_tools.Docker, "buildah": image_tools.Buildah}


class Scene:
    """A registry with a base image of one layer, and another image on top of it; and the tools that fetch them."""

    def __init__(self, bench):
        self.home = bench.scratch / "images"
        self.home.mkdir()
        self.cleanup = bench.cleanup
        self.registries = self.plains = 0
        self.registry = self.new_registry()
        self.base_layer = images.Layer(bench.kiln.base_tar)
        upper = self.home / "upper.tar"
        images.upper_tar(upper, (1 if bench.quick else 10) * 1_000_000)
        self.upper_layer = images.Layer(upper)
        self.base = images.push(self.registry, self.home, "debian:12", [self.base_layer])
        self.upper = images.push(self.registry, self.home, "upper:1", [self.base_layer, self.upper_layer])
        self.kiln = image_tools.Kiln(self.home / "kiln", bench.kiln.base_tar, bench.kiln.binary)
        self.tools = [self.kiln] + [KINDS[tool.name](self.home / tool.name, bench.kiln.base_tar)
                                    for tool in bench.tools if tool.name in KINDS]
        for tool in self.tools:
            bench.cleanup.callback(tool.stop)

    def new_registry(self):
        self.registries += 1
        registry = images.Registry(self.home / f"registry-{self.registries}")
        self.cleanup.callback(registry.stop)
        return registry

    def plain(self, name, script, **words):
        """A tool of shell commands, in which {words} are replaced."""
        self.plains += 1
        return image_tools.Plain(name, self.home / f"plain-{self.plains}", script.format(**words))

    def warm(self):
        """Reads what the registry has, and so whatever is linked to it."""
        for directory in (self.registry.storage, self.home / "debian-12"):
            warm(directory)


@functools.lru_cache(maxsize=1)
def scene(bench):
    return Scene(bench)


def image_pull(bench):
    here = scene(bench)
    curl, skopeo, umoci = program("curl", "curl"), program("skopeo", "skopeo"), program("umoci", "umoci")
    url = f"http://{here.registry.host}/v2/debian/blobs/sha256:{here.base_layer.digest}"
    local = here.plain("zcat | tar", 'zcat "{file}" | tar -x --numeric-owner -C "$into"', file=here.base_layer.file)
    remote = here.plain("curl | tar", '{curl} -sSf "{url}" | tar -xz --numeric-owner -C "$into"', curl=curl, url=url)
    copied = here.plain("skopeo, umoci", '{skopeo} --insecure-policy copy -q --src-tls-verify=false "docker://{image}" '
                        '"oci:$into/layout:image"; {umoci} unpack --image "$into/layout:image" "$into/bundle"',
                        skopeo=skopeo, umoci=umoci, image=here.base)
    tools = [here.kiln, local, remote, copied, *here.tools[1:]]

    def prepare(tool, _):
        tool.forget()
        here.warm()

    runs = bench.alternate(tools, prepare, lambda tool, _: [tool.pull(here.base)])
    result = Result(f"import of an image of one gzip layer ({size(here.base_layer)}) from a registry on the same machine",
                    runs, [("kiln / zcat | tar", ratio(runs, "kiln", "zcat | tar"), 1.2, "x", False)])
    for tool in tools:
        prepare(tool, None)
        settle()
        largest, together = memory.peaks([tool.pull(here.base)], tool.pids())
        result.notes.append(f"{tool.name}: largest process {largest:.1f} MiB, all together {together:.1f} MiB")
        if tool is here.kiln:
            result.targets.append(("kiln, peak memory, all together", together, 100, "MiB", False))
    return result


def image_shared(bench):
    here = scene(bench)
    local = here.plain("zcat | tar", 'zcat "{file}" | tar -x --numeric-owner -C "$into"', file=here.upper_layer.file)

    def prepare(tool, _):
        tool.forget()
        here.warm()
        if tool is not local:
            argv, env, _ = tool.pull(here.base)
            call(argv, env)

    runs = bench.alternate([here.kiln, local, *here.tools[1:]], prepare, lambda tool, _: [tool.pull(here.upper)])
    base, upper = (here.registry.fetched("upper", layer, "kiln/") for layer in (here.base_layer, here.upper_layer))
    return Result(f"import of an image whose base is there and whose own layer has {size(here.upper_layer)}", runs, [],
                  [f"kiln: fetched its own layer {upper} times in {bench.runs + 1} runs, the base's {base} times"])


def image_push(bench):
    here = scene(bench)
    megabytes = 3 if bench.quick else 30
    plan = [("run", f"head -c {megabytes}000000 /dev/urandom > /srv/made")]
    fresh = [here.new_registry()]

    def prepare(tool, _):
        tool.forget()
        tool.make(here.base, plan)
        fresh[0].stop()
        fresh[0] = here.new_registry()

    runs = bench.alternate(here.tools, prepare, lambda tool, _: [tool.push(f"{fresh[0].host}/made:1")])
    return Result(f"push of that base and a step that made {megabytes} MB, as gzip, to an empty registry", runs,
                  [("kiln / buildah", ratio(runs, "kiln", "buildah"), 0.5, "x", False)])


def size(layer):
    return f"{layer.file.stat().st_size / 1e6:.0f} MB"


ALL = {"image-pull": image_pull, "image-shared": image_shared, "image-push": image_push}
