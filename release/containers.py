"""The container engine: dockerd, or podman's Docker-compatible service, behind one small interface. Only this module imports docker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import docker
import docker.errors
import docker.utils
import requests.exceptions

from release import processes
from release.errors import EngineError
from release.guard import Guard
from release.store import default_path, write_whole
from release.types import Container

SOCKET: Final = "unix:///var/run/docker.sock"
WANTED: Final = 1 << 20
"""The hard limit of files and processes that podman's defaults ask for."""
TIMEOUT: Final = 900
"""Seconds that one silent answer of an engine may take (it sends nothing while it unpacks a layer)."""
ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Engine:
    """A container engine that answered: `cli` and `env` start its command line against the same engine."""

    kind: str
    version: str
    address: str
    client: docker.APIClient
    cli: str
    env: Mapping[str, str] = field(default_factory=dict)

    def has(self, image: str) -> bool:
        """Say whether the engine holds `image` (an id `sha256:…` or a reference)."""
        with refusals(f"image {image}"):
            try:
                self.client.inspect_image(image)
            except docker.errors.ImageNotFound:
                return False
        return True

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the engine's facts about an image. Raises EngineError where it has none."""
        with refusals(f"image {image}"):
            facts: dict[str, Any] = self.client.inspect_image(image)
            return facts

    def import_rootfs(self, tar: Path, tag: str) -> str:
        """Make an image of one layer from a root file system tar and return its id."""
        with refusals(f"importing {tar.name}"), tar.open("rb") as stream:
            chunks = iter(lambda: stream.read(4 << 20), b"")  # a generator is sent chunked, as the SDK's header promises
            answer = str(self.client.import_image_from_stream(chunks))
            event = json.loads(answer.strip().splitlines()[-1])
            _refuse_error(event, f"importing {tar.name}")
            repository, _, name = tag.partition(":")
            self.client.tag(event["status"], repository, name)  # podman does not heed a tag given to the import itself
        return str(self.inspect(tag)["Id"])

    def pull(self, reference: str, on_line: Callable[[str], None] = lambda line: None) -> str:
        """Pull an image by digest and return its id."""
        with refusals(f"pulling {reference}"):
            for event in self.client.pull(reference, stream=True, decode=True):
                _refuse_error(event, f"pulling {reference}")
                on_line(str(event.get("status", "")))
        return str(self.inspect(reference)["Id"])

    def build(
        self,
        context: Path,
        *,
        tag: str,
        labels: Mapping[str, str],
        use_cache: bool = True,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> str:
        """Build `context`/Dockerfile with no network and return the image id.

        Errors come inside a stream whose HTTP status is 200: they are raised as EngineError with the last lines of the build.
        """
        lines: list[str] = []
        with refusals("the image build"):
            events = self.client.build(
                path=str(context),
                tag=tag,
                labels=dict(labels),
                nocache=not use_cache,
                network_mode="none",
                rm=True,
                forcerm=True,
                decode=True,
            )
            for event in events:
                for line in ESCAPES.sub("", str(event.get("stream", ""))).replace("\r", "\n").splitlines():
                    if line.strip():
                        lines.append(line.rstrip())
                        on_line(line.strip())
                _refuse_error(event, "the image build", lines)
        return str(self.inspect(tag)["Id"])

    def save(self, image: str, target: Path, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Write `docker save` of an image to `target`."""
        with refusals(f"saving {image}"), target.open("wb") as stream:
            for chunk in self.client.get_image(image, chunk_size=4 << 20):
                stream.write(chunk)
                on_bytes(len(chunk))

    def load(self, archive: Iterable[bytes], image: str) -> None:
        """Load a docker-archive stream; raises EngineError unless `image` (its id) is there afterwards."""
        with refusals(f"loading {image}"):
            for event in self.client.load_image(archive):
                _refuse_error(event, f"loading {image}")
        if not self.has(image):
            raise EngineError(f"the engine took the archive, but has no image {image} afterwards")

    def remove_images(self, label: str) -> None:
        """Remove every image that carries a label `name=value`, and what the build of it left."""
        for image in self.client.images(all=False, filters={"label": label}):
            with contextlib.suppress(docker.errors.APIError):
                self.client.remove_image(image["Id"], force=True)

    def start(self, command: Sequence[str]) -> str:
        """Run a `docker run --detach …` command line on this engine and return the container's id."""
        lines = processes.run([self.cli, *command[1:]], env=self.env)
        return lines[-1].strip()

    def running(self, container: str) -> tuple[bool, int]:
        """Say whether a container runs, and its exit status if it does not."""
        try:
            state = self.client.inspect_container(container)["State"]
        except docker.errors.NotFound:
            return False, -1
        return bool(state["Running"]), int(state.get("ExitCode") or 0)

    def logs(self, container: str) -> str:
        """Return all that a container wrote so far."""
        with contextlib.suppress(docker.errors.APIError):
            return bytes(self.client.logs(container)).decode(errors="replace")
        return ""

    def execute(self, container: str, argv: Sequence[str]) -> tuple[int, str, str]:
        """Run a command in a running container; return its exit status, what it wrote to stdout, and to stderr."""
        with refusals(f"container {container}"):
            made = self.client.exec_create(container, list(argv))["Id"]
            out, err = self.client.exec_start(made, demux=True)
            status = self.client.exec_inspect(made)["ExitCode"]
        return int(status), (out or b"").decode("utf-8", "replace"), (err or b"").decode("utf-8", "replace")

    def remove(self, container: str) -> None:
        """Stop and remove a container, if it is there."""
        with contextlib.suppress(docker.errors.NotFound):
            with contextlib.suppress(docker.errors.APIError):
                self.client.stop(container, timeout=5)
            self.client.remove_container(container, force=True)


def run_command(
    container: Container,
    *,
    image: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    memory: str | None,
    publish: str,
    weights: str,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the `docker run` line that starts a release: what the card prints and what the validators run.

    `publish` is host:port:port (left out on the host's own network, and where it is empty), `weights` the host folder that becomes
    /model, read-only. The container has a read-only root, no capabilities and no way to gain privileges, unless the chip's container
    contract says privileged.
    """
    line = ["docker", "run", *extra, "--read-only", "--tmpfs", "/tmp:exec" if container.exec_tmp else "/tmp"]
    line += ["--init"] if container.init else []
    line += ["--privileged"] if container.privileged else ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    for option in container.security_opt:
        line += ["--security-opt", option]
    for space, where in (("network", container.network), ("ipc", container.ipc), ("pid", container.pid), ("uts", container.uts)):
        line += [f"--{space}", "host"] if where == "host" else []
    line += ["--gpus", container.gpus] if container.gpus else []
    line += ["--shm-size", container.shm_size] if container.ipc != "host" else []
    line += ["--memory", memory] if memory else []
    for device in container.devices:
        line += ["--device", device]
    for name, value in container.ulimits.items():
        line += ["--ulimit", f"{name}={value}"]
    for mount in container.mounts:
        line += ["--volume", mount]
    line += ["--publish", publish] if publish and container.network != "host" else []
    line += ["--volume", f"{weights}:/model:ro"]
    for name, value in sorted({**container.env, **env}.items()):
        line += ["--env", f"{name}={value}"]
    return [*line, image, *argv]


@contextlib.contextmanager
def connect(kind: str = "auto") -> Iterator[Engine]:
    """Give the container engine of this machine.

    `kind` is "docker", "podman" or "auto": what DOCKER_HOST or the default socket answers, else podman, whose service is started on a
    private socket and ends with the block. Raises EngineError with the next step when none can be had.
    """
    try:
        engine = _docker() if kind in ("auto", "docker") else None
    except EngineError:
        if kind == "docker" or not processes.find("podman"):
            raise
        engine = None
    if engine is not None:
        yield engine
        return
    with _podman() as engine:
        yield engine


def _docker() -> Engine:
    try:
        client = docker.APIClient(**docker.utils.kwargs_from_env(), timeout=TIMEOUT, version="auto")
        version = client.version()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as problem:
        raise EngineError(
            f"no container engine answers at {os.environ.get('DOCKER_HOST', 'the default socket')}: {_first_line(problem)}",
            next_step="start one (`sudo systemctl start docker`), or install one: `sudo apt-get install docker.io`, or `podman`",
        ) from problem
    is_podman = any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components", []))
    # The command line must reach the very engine that answered, whatever context it has been told to use.
    address = os.environ.get("DOCKER_HOST") or SOCKET
    kind = "podman" if is_podman else "docker"
    return Engine(kind, str(version["Version"]), address, client, processes.find("docker") or "docker", {"DOCKER_HOST": address})


@contextlib.contextmanager
def _podman() -> Iterator[Engine]:
    program = processes.find("podman")
    if not program:
        raise EngineError("podman is not installed", next_step="sudo apt-get install podman")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="release-podman-")))
        guard = stack.enter_context(contextlib.closing(Guard()))
        stack.enter_context(guard.watch("folder", str(home)))
        env = _settings()
        address = f"unix://{home}/podman.sock"
        service = processes.background([program, "system", "service", "--time", "0", address], env=env, log=home / "service.log")
        stack.callback(processes.stop, service)
        stack.enter_context(guard.watch("process", str(service.pid)))
        if not processes.wait_until(lambda: (home / "podman.sock").exists() or service.poll() is not None, timeout=30):
            raise EngineError("podman's service did not open its socket in 30 s")
        if service.poll() is not None:
            raise EngineError(f"podman's service ended at once: {(home / 'service.log').read_text().strip()}")
        client = docker.APIClient(base_url=address, timeout=TIMEOUT, version="auto")
        yield Engine("podman", str(client.version()["Version"]), address, client, program, env)


def _settings() -> dict[str, str]:
    """Return the environment that podman needs here: a containers.conf of ours where the defaults would start no container.

    That is so under low hard limits, and where crun meets hybrid cgroups that only runc can use. The file stays, because `release serve`
    becomes podman and needs it then. Elsewhere the user's own settings stand alone.
    """
    low = any(0 <= resource.getrlimit(limit)[1] < WANTED for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    hybrid = Path("/sys/fs/cgroup/unified").is_dir() and processes.find("runc")
    if not low and not hybrid:
        return {}
    text = (f"[containers]\ndefault_ulimits = [{_ulimits()}]\n" if low else "") + (
        '[engine]\nruntime = "runc"\n' if hybrid else ""
    )
    path = default_path() / "containers.conf"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as problem:
        raise EngineError(
            f"podman's settings cannot be written to {path}: {problem.strerror}", next_step="set RELEASE_STORE"
        ) from problem
    return {"CONTAINERS_CONF": str(path)}


def _ulimits() -> str:
    """Return limits that the kernel grants us: podman as root asks for more than its hard limit and then starts no container.

    For processes that holds even of the hard limit itself (seen with podman 4.3: 96365 of 96365 is refused, 32768 is not).
    """
    pairs = []
    for name, number, most in (("nofile", resource.RLIMIT_NOFILE, WANTED), ("nproc", resource.RLIMIT_NPROC, 1 << 15)):
        hard = resource.getrlimit(number)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(hard, most)
        pairs.append(f'"{name}={bound}:{bound}"')
    return ", ".join(pairs)


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn what the SDK raises into EngineError."""
    try:
        yield
    except docker.errors.BuildError as problem:
        raise EngineError(f"{what}: {_first_line(problem)}") from problem
    except (docker.errors.DockerException, requests.exceptions.RequestException) as problem:
        text = _first_line(problem)
        raise EngineError(f"{what}: {text}", next_step=_hint(text)) from problem


def _refuse_error(event: Mapping[str, Any], what: str, lines: Sequence[str] = ()) -> None:
    if "error" in event or "errorDetail" in event:
        text = str(event.get("error") or event["errorDetail"].get("message"))
        tail = "the last lines of the build:\n" + "\n".join(lines[-processes.TAIL :]) if lines else ""
        raise EngineError(f"{what}: {text.strip()}", next_step=_hint(f"{text}\n{tail}") or tail)


def _hint(text: str) -> str:
    """Return the next step for what engines complain about most, or nothing."""
    if "no space left" in text.lower():
        return "free some space: `release doctor` shows how much is left"
    if "cgroups in hybrid mode" in text:
        return "crun refuses this host's hybrid cgroups: sudo apt-get install runc"
    return ""


def _first_line(problem: BaseException) -> str:
    text = str(getattr(problem, "explanation", None) or problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
