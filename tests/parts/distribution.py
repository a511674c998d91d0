"""Registries to test against: a real CNCF Distribution registry, and a scripted one that answers as badly as it is told."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from release.oci import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    NOWHERE,
    TITLE,
    Descriptor,
    Layout,
    canonical,
    put_artifact,
    sha256,
)
from release.publish.credentials import Credentials
from release.publish.distribution import Registry
from release.publish.reference import Reference

USER: Final = "builder"
PASSWORD: Final = "open sesame"
HTPASSWD: Final = f"{USER}:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""bcrypt of PASSWORD."""
CONFIGURATION: Final = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{folder}/data"}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:0", secret: "{secret}"{tls}}}
{auth}
"""
LOGIN: Final = Credentials("me", "hunter2")
CONTENT: Final = b"weights, every byte of them"
BLOB: Final = Descriptor("application/octet-stream", sha256(CONTENT), len(CONTENT))
SUBJECT: Final = sha256(b"subject")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout.create(tmp_path / "layout")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a .netrc and a proxy that must never be used, and no docker login."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password netrc-secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.delenv("RELEASE_REGISTRY_HOST", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    return tmp_path


@dataclass(frozen=True)
class Distribution:
    """A running registry: its host and port, and names in it that nobody has used."""

    host: str

    def fresh(self, tag: str = "") -> Reference:
        """Return a reference to a repository that does not exist yet."""
        return Reference(self.host, f"team/model-{uuid.uuid4().hex[:12]}", tag)


@contextmanager
def distribution(folder: Path, *, login: bool = False, tls: tuple[Path, Path] | None = None) -> Iterator[Distribution]:
    """Run docker-registry on a free loopback port with its data in `folder`; with `login`, for USER and PASSWORD only; with `tls`, a certificate
    and its key, over TLS.
    """
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("no docker-registry: apt-get install docker-registry")
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = f'auth: {{htpasswd: {{realm: test, path: "{folder}/htpasswd"}}}}' if login else ""
    spoken = f', tls: {{certificate: "{tls[0]}", key: "{tls[1]}"}}' if tls else ""
    (folder / "registry.yml").write_text(CONFIGURATION.format(folder=folder, secret=uuid.uuid4().hex, auth=auth, tls=spoken))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(  # its log is a file, so that a full pipe never stops it
            [program, "serve", str(folder / "registry.yml")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield Distribution(listening(process, folder / "registry.log"))
    finally:
        process.terminate()
        process.wait(10)


def listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the host and port that the registry says it listens on."""
    pause = threading.Event()
    for _ in range(200):
        if found := re.search(r"listening on (127\.0\.0\.1:[0-9]+)", log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        pause.wait(0.05)
    raise RuntimeError(f"docker-registry did not start: {log.read_text()[-1000:]}")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distribution]:
    """A real registry that anybody may write to; take a `fresh` name in each test."""
    with distribution(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distribution]:
    """A real registry that wants USER and PASSWORD."""
    with distribution(tmp_path_factory.mktemp("locked"), login=True) as running:
        yield running


@dataclass
class Seen:
    """A request that a scripted server got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Answer:
    """What a scripted server says. `length` is the Content-Length that it claims (None: none, and it hangs up at the end)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1


Script = Callable[[Seen], Answer]


class Scripted:
    """A server whose every answer is decided by `script`, and which remembers what it was asked."""

    def __init__(self, script: Script, address: str) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.server = ThreadingHTTPServer((address, 0), self._handler())
        self.server.daemon_threads = True
        self.host = f"{address}:{self.server.server_address[1]}"
        self.url = f"http://{self.host}"

    def asked(self, method: str) -> list[Seen]:
        """Return the requests with that method."""
        return [request for request in self.seen if request.method == method]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen = Seen(self.command, self.path, dict(self.headers), body)
                scripted.seen.append(seen)
                answer = scripted.script(seen)
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                if answer.length is not None:
                    self.send_header("Content-Length", str(len(answer.body) if answer.length < 0 else answer.length))
                self.close_connection = answer.length is None or answer.length > len(answer.body)
                if self.close_connection:
                    self.send_header("Connection", "close")
                self.end_headers()
                with suppress(OSError):  # where the client had enough
                    if self.command != "HEAD":
                        self.wfile.write(answer.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def scripted(script: Script | Answer, address: str = "127.0.0.1") -> Iterator[Scripted]:
    """Run a server on a free port of a loopback address, which does what `script` says or gives always one answer."""
    running = Scripted((lambda seen: script) if isinstance(script, Answer) else script, address)
    thread = threading.Thread(target=running.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
        thread.join()


def at(server: Scripted, credentials: Credentials | None = None, **options: Any) -> Registry:
    """Return a client of a scripted server that loses no time."""
    return Registry(server.host, "team/model", credentials, timeout=5, pause=0.001, **options)


class Shelf:
    """The script of a registry that hands out documents and blobs, under any digest and media type that it is told."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}

    def add(self, document: object, media_type: str = IMAGE_INDEX, tag: str = "") -> Descriptor:
        """Put a document under its digest, and under `tag`."""
        data = canonical(document)
        self.manifests[sha256(data)] = self.manifests[tag or sha256(data)] = media_type, data
        return Descriptor(media_type, sha256(data), len(data))

    def add_blob(self, data: bytes, media_type: str = LAYER_TAR) -> Descriptor:
        """Put a blob under its digest."""
        self.blobs[sha256(data)] = data
        return Descriptor(media_type, sha256(data), len(data))

    def __call__(self, seen: Seen) -> Answer:
        kind, _, name = seen.path.rpartition("/")
        if kind.endswith("/manifests") and name in self.manifests:
            media_type, data = self.manifests[name]
            return Answer(body=data, headers={"Content-Type": media_type})
        if kind.endswith("/blobs") and name in self.blobs:
            return Answer(body=self.blobs[name])
        return Answer(404)


def manifest(config: Descriptor, *layers: Descriptor, **more: object) -> dict[str, object]:
    """Return an image manifest."""
    entries = [layer.to_json() for layer in layers]
    return {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config.to_json(), "layers": entries, **more}


def index(*entries: Descriptor) -> dict[str, object]:
    """Return an image index."""
    return {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry.to_json() for entry in entries]}


INDEX: Final = canonical(index())


def small_release(layout: Layout, words: str = "weights") -> Descriptor:
    """Write an index as `release` makes them: an image, weights, and a record and a card whose subject is the image."""
    layer = layout.put(LAYER_TAR, b"\0" * 10240)
    config = layout.put_json(
        IMAGE_CONFIG,
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer.digest]}},
    )
    image = layout.put_json(IMAGE_MANIFEST, manifest(config, layer))
    image = Descriptor(image.media_type, image.digest, image.size, platform={"architecture": "amd64", "os": "linux"})
    shards = [
        layout.put("application/vnd.cncf.model.weight.v1.raw", (words * 1000 + str(n)).encode(), {TITLE: f"{n}"})
        for n in range(3)
    ]
    empty = layout.put("application/octet-stream", b"")
    entries = [image, put_artifact(layout, "application/vnd.cncf.model.manifest.v1+json", [*shards, empty])]
    for kind in ("record", "card"):
        leaf = layout.put("application/json", canonical({kind: words}))
        entries.append(
            put_artifact(layout, f"application/vnd.release.{kind}.v1+json", [leaf], subject=image, annotations={"kind": kind})
        )
    nowhere = [Descriptor(e.media_type, e.digest, e.size, e.annotations, e.artifact_type, e.platform or NOWHERE) for e in entries]
    return layout.put_json(IMAGE_INDEX, index(*nowhere))
