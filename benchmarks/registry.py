"""A registry, there and back: weights pushed and pulled by release and by the field's tools, taking turns, medians and ratios in one run.

    python benchmarks/registry.py [--megabytes 2048] [--files 4] [--rounds 5] [--folder DIR] [--without docker,skopeo]

A CNCF Distribution registry on loopback (Debian's docker-registry), emptied before each push. The weights are one artifact of raw layers, one
a file, in an OCI layout on the same disk. crane and oras come from Debian sid, unpacked and not installed; python-dxf from
`pip install python-dxf`, where it is there. `docker push` sends an image whose layers are the same files: it packs them itself first, and that
is its way. Pull: release and python-dxf verify each digest; `copy + sha256` reads the registry's own files, hashes and writes them: the
ceiling of disk and hash. Memory is the peak of the process. Every contender is a process of its own.

`raw PUT` is the ceiling of any push: it asks nothing, knows the digests, and lets the kernel send the files on one connection each. What a
push costs is above all what the registry does: it hashes and writes. So the CPU seconds of both sides stand in the table: they hold still
where other work shares the machine, and say what a client could gain at all. (What docker's engine does stands in neither.)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parts"))

NAME: Final = "bench/weights"
OURS: Final = """
import sys; from pathlib import Path
from release.oci import Layout; from release.publish.reference import Reference; from release.publish.registry import pull, push
way, host, folder = sys.argv[1:]
where = Reference(host, "bench/weights", "1.0")
if way == "push":
    layout = Layout.open(Path(folder)); push(layout, layout.find("1.0"), where)
else:
    pull(where, Layout.create(Path(folder)))
"""
DXF: Final = """
import sys; from dxf import DXF
host, folder = sys.argv[1:]
registry = DXF(host, "bench/weights", insecure=True)
for number, digest in enumerate(sys.stdin.read().split()):
    with open(f"{folder}/{number}", "wb") as out:
        for block in registry.pull_blob(digest): out.write(block)
"""
RAW: Final = """
import os, socket, sys, threading
from pathlib import Path
host, layout = sys.argv[1:]
def send(digest):
    asked = f"POST /v2/bench/weights/blobs/uploads/ HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Length: 0\\r\\n\\r\\n"
    path = Path(layout, "blobs/sha256", digest.removeprefix("sha256:"))
    with socket.create_connection(host.split(":")) as to, path.open("rb") as stream:
        to.sendall(asked.encode())
        place = next(line for line in to.recv(65536).decode().split("\\r\\n") if line.startswith("Location: ")).split(host)[1]
        size = path.stat().st_size
        to.sendall(f"PUT {place}&digest={digest} HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Length: {size}\\r\\n\\r\\n".encode())
        to.sendfile(stream)
        if b" 201 " not in to.recv(65536): os._exit(1)
lanes = [threading.Thread(target=send, args=(digest,)) for digest in sys.stdin.read().split()]
for lane in lanes: lane.start()
for lane in lanes: lane.join()
"""
COPY: Final = """
import hashlib, sys
data, folder = sys.argv[1:]
for digest in sys.stdin.read().split():
    name = digest.removeprefix("sha256:")
    found = hashlib.sha256()
    with open(f"{data}/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data", "rb") as source, open(f"{folder}/{name}", "wb") as out:
        while block := source.read(1 << 20):
            found.update(block); out.write(block)
    assert found.hexdigest() == name
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run an empty registry in `folder`; yield its host and port."""
    from distribution import distribution

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with distribution(folder) as running:
        yield running.host


def weights(folder: Path, megabytes: int, files: int) -> list[str]:
    """Write an artifact of random files into an OCI layout; return the digests of the files."""
    from release.oci import IMAGE_INDEX, Layout, put_artifact

    layout, layers = Layout.create(folder / "layout"), []
    block = os.urandom(16 << 20)
    for number in range(files):
        path = folder / f"model-{number}.safetensors"
        with path.open("wb") as stream:
            stream.write(number.to_bytes(8, "little"))
            for _ in range(max(1, megabytes // files // 16)):
                stream.write(block)
        layers.append(layout.put_file("application/vnd.cncf.model.weight.v1.raw", path))
    artifact = put_artifact(layout, "application/vnd.cncf.model.manifest.v1+json", layers)
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [artifact.to_json()]}
    layout.set_index([layout.put_json(IMAGE_INDEX, index).named("1.0")])
    return [layer.digest for layer in layers]


class Run(NamedTuple):
    """What a contender took: seconds, MB at its peak, CPU seconds of its own and of the registry."""

    seconds: float
    megabytes: int
    cpu: float
    registry: float = 0.0


def children() -> float:
    """Return the CPU seconds of all processes that we waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(words: list[str], text: str = "", **env: str) -> Run:
    """Run a program to its end; return what it took."""
    environment = {**os.environ, **env}
    start = time.perf_counter()
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdin and running.stderr
        running.stdin.write(text.encode())
        running.stdin.close()
        said = running.stderr.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if running.returncode:
        raise SystemExit(f"{' '.join(words)[:200]}: {said.decode(errors='replace')[-2000:]}")
    return Run(seconds, usage.ru_maxrss // 1024, usage.ru_utime + usage.ru_stime)


def pushers(folder: Path, digests: list[str], tools: dict[str, str]) -> dict[str, Callable[[str], Run]]:
    """Return what pushes: a name, and how, given the registry's host."""
    layout = folder / "layout"
    plain = [f"model-{number}.safetensors" for number in range(len(digests))]
    field: dict[str, Callable[[str], Run]] = {
        "release": lambda host: measured([sys.executable, "-c", OURS, "push", host, str(layout)]),
        "skopeo": lambda host: measured(
            ["skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{layout}:1.0", f"docker://{host}/{NAME}:1.0"]
        ),
        "docker": lambda host: measured(["docker", "push", "--quiet", f"{host}/{NAME}:image"]),
        "raw PUT": lambda host: measured([sys.executable, "-c", RAW, host, str(layout)], "\n".join(digests)),
    }
    if crane := tools.get("crane"):
        field["crane"] = lambda host: measured([crane, "push", "--insecure", "--index", str(layout), f"{host}/{NAME}:1.0"])
    if oras := tools.get("oras"):
        words = [oras, "push", "--plain-http", "--disable-path-validation"]
        field["oras"] = lambda host: measured([*words, f"{host}/{NAME}:1.0", *(f"{folder}/{name}" for name in plain)])
    return field


@contextmanager
def docker_image(folder: Path, files: int) -> Iterator[str]:
    """Make an image of the files, one layer each, in the engine; yield its name. It is gone afterwards."""
    lines = ["FROM scratch", *(f"COPY model-{number}.safetensors /{number}" for number in range(files))]
    (folder / "Dockerfile").write_text("\n".join(lines))
    (folder / ".dockerignore").write_text("layout\nregistry\npulled\npeers\n")
    kept = f"{NAME}:kept"  # without a name of its own it would go with the last of the others
    words = ["docker", "build", "--quiet", "--tag", kept, str(folder)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    try:
        yield kept
    finally:
        subprocess.run(["docker", "rmi", kept], check=False, stdout=subprocess.DEVNULL)


def tools_of(folder: Path, without: set[str]) -> dict[str, str]:
    """Return the peers that Debian sid has, by name."""
    from peers import fetched

    wanted = [name for name in ("crane", "oras") if name not in without]
    with suppress(BaseException):
        folder.mkdir()
        return {peer.program.name: str(peer.program) for peer in fetched("sid", folder, *wanted)}
    return {}


def turns(field: list[str], rounds: int) -> Iterator[str]:
    """Yield the names, each round in another order."""
    for turn in range(rounds):
        yield from field[turn % len(field) :] + field[: turn % len(field)]


def push_all(folder: Path, digests: list[str], rounds: int, tools: dict[str, str], without: set[str]) -> dict[str, list[Run]]:
    """Push with everybody, taking turns, each into an empty registry."""
    field = {name: how for name, how in pushers(folder, digests, tools).items() if name not in without}
    results: dict[str, list[Run]] = {name: [] for name in field}
    with docker_image(folder, len(digests)) if "docker" in field else nullcontext("") as image:
        for name in turns(list(field), rounds):
            with served(folder / "registry") as host:
                if name == "docker":
                    subprocess.run(["docker", "tag", image, f"{host}/{NAME}:image"], check=True)
                before = children()
                run = field[name](host)
                if name == "docker":
                    subprocess.run(["docker", "rmi", f"{host}/{NAME}:image"], check=True, stdout=subprocess.DEVNULL)
            run = run._replace(registry=children() - before - run.cpu)
            results[name].append(run)
            took = f"{run.seconds:6.2f} s {run.megabytes:5} MB, CPU {run.cpu:.2f} s and {run.registry:.2f} s"
            print(f"push {name:8} {took}", file=sys.stderr)
    return results


def pull_all(folder: Path, digests: list[str], rounds: int, without: set[str]) -> dict[str, list[Run]]:
    """Pull with everybody, taking turns, from one registry."""
    target, text = folder / "pulled", "\n".join(digests)
    with served(folder / "registry") as host:
        measured([sys.executable, "-c", OURS, "push", host, str(folder / "layout")])
        field: dict[str, Callable[[], Run]] = {
            "release": lambda: measured([sys.executable, "-c", OURS, "pull", host, str(target)]),
            "python-dxf": lambda: measured([sys.executable, "-c", DXF, host, str(target)], text),
            "copy + sha256": lambda: measured([sys.executable, "-c", COPY, str(folder / "registry/data"), str(target)], text),
        }
        field = {name: how for name, how in field.items() if name not in without}
        results: dict[str, list[Run]] = {name: [] for name in field}
        for name in turns(list(field), rounds):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            results[name].append(field[name]())
            print(f"pull {name:8} {results[name][-1].seconds:6.2f} s {results[name][-1].megabytes:5} MB", file=sys.stderr)
        again = [measured([sys.executable, "-c", OURS, "push", host, str(folder / "layout")]).seconds for _ in range(rounds)]
        bare = [measured([sys.executable, "-c", "import release.publish.registry"]).seconds for _ in range(rounds)]
    print(f"push of what is there: {statistics.median(again):.2f} s, of which importing is {statistics.median(bare):.2f} s")
    return results


def table(title: str, results: dict[str, list[Run]], megabytes: int) -> None:
    """Print medians, and each peer's time as a multiple of ours, by the pairs of one round."""
    print(f"\n{title:14} {'s':>7} {'MiB/s':>7} {'MB':>6} {'x ours':>7} {'cpu s':>7} {'registry':>9}")
    for name, runs in results.items():
        seconds, cpu, registry = (
            statistics.median(each) for each in zip(*((r.seconds, r.cpu, r.registry) for r in runs), strict=True)
        )
        ratio = statistics.median(run.seconds / ours.seconds for run, ours in zip(runs, results["release"], strict=True))
        peak, theirs = max(run.megabytes for run in runs), f"{registry:9.2f}" if registry else ""
        print(f"{name:14} {seconds:7.2f} {megabytes / seconds:7.0f} {peak:6} {ratio:7.2f} {cpu:7.2f} {theirs}")


def main() -> None:
    """Measure what the command line asks for."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--megabytes", type=int, default=2048)
    asked.add_argument("--files", type=int, default=4)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--folder", type=Path)
    asked.add_argument("--without", default="")
    options = asked.parse_args()
    without = set(filter(None, options.without.split(",")))
    for program in ("docker", "skopeo"):
        if not shutil.which(program):
            without.add(program)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        digests = weights(folder, options.megabytes, options.files)
        tools = tools_of(folder / "peers", without)
        before = os.getloadavg()
        table("pull, verified", pull_all(folder, digests, options.rounds, without), options.megabytes)
        table("push", push_all(folder, digests, options.rounds, tools, without), options.megabytes)
        print(json.dumps({"load": [before, os.getloadavg()], "rounds": options.rounds, "megabytes": options.megabytes}))


if __name__ == "__main__":
    main()
