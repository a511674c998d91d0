"""The container engine: dockerd, or podman's Docker-compatible service, behind one small interface. Only this module imports docker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import docker
import docker.auth
import docker.errors
import docker.utils
import requests.exceptions
import urllib3.exceptions

from release import processes
from release.errors import EngineError
from release.guard import Guard
from release.podman import settings

SOCKET: Final = "unix:///var/run/docker.sock"
TIMEOUT: Final = 900
"""Seconds that one silent answer of an engine may take (it sends nothing while it unpacks a layer)."""
ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Engine:
    """A container engine that answered: `cli` and `env` start its command line against the same engine.

    Of an engine on a host, `reach` are the words by which its command line gets there without our connection, `forward` gives a port of
    this machine that leads to one of the host's, and `identity` is what the engine calls itself for good: empty where it does not.
    """

    kind: str
    version: str
    address: str
    client: docker.APIClient
    cli: str
    env: Mapping[str, str] = field(default_factory=dict)
    reach: tuple[str, ...] = ()
    forward: Callable[[int], AbstractContextManager[int]] | None = None
    identity: str = ""

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

    def pull(
        self, reference: str, on_line: Callable[[str], None] = lambda line: None, login: dict[str, str] | None = None
    ) -> str:
        """Pull an image by digest and return its id.

        `login` (username and password, or empty) goes along in a header of this one request; None: what docker keeps for the registry.
        """
        with refusals(f"pulling {reference}"):
            for event in self._pulled(reference, login):
                _refuse_error(event, f"pulling {reference}")
                on_line(str(event.get("status", "")))
        return str(self.inspect(reference)["Id"])

    def _pulled(self, reference: str, login: dict[str, str] | None) -> Iterator[dict[str, Any]]:
        """Yield what the engine says as it pulls. The SDK's own `pull` waits for ever, and so does an engine, where a registry falls silent."""
        name, _, digest = reference.partition("@")
        registry, _ = docker.auth.resolve_repository_name(name)
        known = docker.auth.get_config_header(self.client, registry) if login is None else docker.auth.encode_header(login)
        url, headers = (
            f"{self.client.base_url}/v{self.client.api_version}/images/create",
            {"X-Registry-Auth": known} if known else {},
        )
        what = {"fromImage": name, "tag": digest}
        with self.client.post(url, params=what, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if not answer.ok:
                docker.errors.create_api_error_from_http_exception(requests.exceptions.HTTPError(response=answer))
            yield from (json.loads(text) for text in answer.iter_lines() if text)

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

    def forget(self, image: str) -> None:
        """Remove an image (its id) with all its names, if it is there."""
        with refusals(f"image {image}"), contextlib.suppress(docker.errors.NotFound):
            self.client.remove_image(image, force=True)

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

    def facts(self) -> dict[str, Any]:
        """Return what the engine says of itself and its host: SystemTime, DockerRootDir, Architecture …"""
        with refusals("the engine"):
            facts: dict[str, Any] = self.client.info()
            return facts

    def claim(self, name: str, image: str, labels: Mapping[str, str], volumes: Mapping[str, str] | None = None) -> str:
        """Make a container that is never started, and return its id; "" where the name is taken. Of several who claim it, one gets it.

        `volumes` are mounted in it, by name or host folder: the place in the container.
        """
        binds = [f"{source}:{place}" for source, place in (volumes or {}).items()]
        with refusals(f"container {name}"):
            settings = self.client.create_host_config(binds=binds)
            try:
                made = self.client.create_container(image, ["/ok"], name=name, labels=dict(labels), host_config=settings)
            except docker.errors.APIError as problem:
                if problem.status_code == 409:
                    return ""
                raise
        return str(made["Id"])

    def rename(self, container: str, name: str) -> bool:
        """Give a container another name; False where that is taken."""
        with refusals(f"container {container}"):
            try:
                self.client.rename(container, name)
            except docker.errors.APIError as problem:
                if problem.status_code == 409:
                    return False
                raise
        return True

    def keep(self, container: str, place: str, tar: Iterable[bytes]) -> None:
        """Unpack a tar stream into a folder of a container, which need not run."""
        with refusals(f"container {container}"):
            self.client.put_archive(container, place, iter(tar))

    def kept(self, container: str, file: str) -> bytes | None:
        """Return a small file of a container, which need not run; None where there is none."""
        with refusals(f"container {container}"):
            try:
                chunks, _ = self.client.get_archive(container, file)
            except docker.errors.NotFound:
                return None
            with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
                member = archive.extractfile(archive.getmembers()[0])
                return member.read() if member else None

    def bridge(self) -> str:
        """Return the name of the interface that containers are linked by where nobody says otherwise; "" where the engine names none."""
        with refusals("the engine's networks"), contextlib.suppress(docker.errors.NotFound):
            return str((self.client.inspect_network("bridge").get("Options") or {}).get("com.docker.network.bridge.name") or "")
        return ""

    def labelled(self, label: str) -> list[dict[str, Any]]:
        """Return the engine's short facts (Id, Names, Labels, Created in seconds) about all containers with a label, running or not."""
        with refusals("the list of containers"):
            found: list[dict[str, Any]] = self.client.containers(all=True, filters={"label": label})
            return found

    def published(self, container: str, port: int) -> int:
        """Return the port of the engine's host at which a container's port is published. Raises EngineError where it is not."""
        with refusals(f"container {container}"):
            found = self.client.port(container, port)
        if not found:
            raise EngineError(f"port {port} of container {container} is not published")
        return int(found[0]["HostPort"])

    def remove(self, container: str) -> None:
        """Stop and remove a container, if it is there."""
        with refusals(f"container {container}"), contextlib.suppress(docker.errors.NotFound):
            with contextlib.suppress(docker.errors.APIError):
                self.client.stop(container, timeout=5)
            self.client.remove_container(container, v=True, force=True)


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
    address = os.environ.get("DOCKER_HOST", "")
    step = "start one (`sudo systemctl start docker`), or install one: `sudo apt-get install docker.io`, or `podman`"
    return _answering(address or SOCKET, address or "the default socket", step, **docker.utils.kwargs_from_env())


def engine_at(
    address: str, shown: str, reach: tuple[str, ...], forward: Callable[[int], AbstractContextManager[int]] | None
) -> Engine:
    """Return the engine of a host, at a socket of this machine; `shown` is its address for people. Raises EngineError."""
    step = f"try it by hand: {' '.join(['docker', *(reach or ('--host', address)), 'version'])}"
    engine = replace(_answering(address, shown, step, base_url=address), reach=reach, forward=forward)
    # podman has another ID in every answer
    return replace(engine, identity=str(engine.facts().get("ID") or "") if engine.kind == "docker" else "")


def _answering(address: str, shown: str, step: str, **words: Any) -> Engine:
    try:
        client = docker.APIClient(**words, timeout=TIMEOUT, version="auto")
        version = client.version()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as problem:
        raise EngineError(f"no container engine answers at {shown}: {_first_line(problem)}", next_step=step) from problem
    is_podman = any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components", []))
    kind = "podman" if is_podman else "docker"
    # The command line must reach the very engine that answered, whatever context it has been told to use.
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
        env = settings()
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


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn what the SDK raises into EngineError; where an engine goes away in the middle of an answer, that is urllib3's own."""
    try:
        yield
    except docker.errors.BuildError as problem:
        raise EngineError(f"{what}: {_first_line(problem)}") from problem
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as problem:
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
