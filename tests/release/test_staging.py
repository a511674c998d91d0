"""Images reach hosts over real ssh by digest, through a real registry and hostile ones; what goes wrong is told, and blames no cell."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import threading
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from distribution import PASSWORD, USER, Answer, Distribution, Seen, distribution, manifest, scripted
from night import Silent
from yard import Yard, yard

from release import containers
from release.canary import lay_out_canary
from release.containers import Engine
from release.errors import EngineError, HostError, ReleaseError, StagingError
from release.failures import failures_of
from release.fleet import Fleet
from release.guard import Guard
from release.matrix.load import Matrix
from release.oci import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_GZIP, Descriptor, Layout, sha256
from release.pipeline import Graph, Run, Stage, Task, Work, digest
from release.preflight import check
from release.progress import Line, Progress
from release.publish.reference import Reference
from release.publish.registry import pull
from release.schedule import Ledger, Limits, carry_out
from release.session import Session
from release.staging import collect, refusal, stage
from release.store import Store
from release.trial import serve
from release.types import Chip, Container, Hosts, Seat, Staging, dump

__all__ = ["yard"]
pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

NOWHERE = "127.0.0.1:9/staging"
"""Where nobody listens."""


@dataclass
class Bench:
    """A store whose cells serve a page out of an image of two layers, of which the first is shared; and what was asked of a registry."""

    store: Store
    once: str = field(default_factory=lambda: uuid.uuid4().hex)
    """What makes the images other ones than those of an earlier test, on an engine that forgets nothing."""
    tasks: dict[str, Task] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)

    def image(self, page: str, folder: Path) -> tuple[Layout, Descriptor, str]:
        """Lay out an image; return its layout, its manifest and its id."""
        layout = Layout.create(folder)
        files = ({"bin/busybox": Path("/bin/busybox").read_bytes(), "once": self.once.encode()}, {"www/health": page.encode()})
        tars = [packed(content) for content in files]
        layers = [layout.put(LAYER_GZIP, gzip.compress(tar, 1, mtime=0)) for tar in tars]
        about = {"architecture": "amd64", "os": "linux", "config": {}}
        config = layout.put_json(IMAGE_CONFIG, {**about, "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]}})
        made = layout.put_json(IMAGE_MANIFEST, manifest(config, *layers))
        layout.set_index([made.named("image")])
        self.images[page] = config.digest
        return layout, made, config.digest

    def cell(self, name: str, page: str) -> str:
        """Add a cell that serves a page, and return the key of its stage `serve`."""

        def build(work: Work) -> str:
            _, made, image = self.image(page, work.out / "layout")
            work.write("image.json", {"manifest": made.to_json(), "config": image})
            return "built"

        def weigh(work: Work) -> str:
            (work.out / "model").mkdir()
            return "weighed"

        keys = {"image": digest(f"image {page} {self.once}"), "weights": digest("weights")}
        for stage_name, act in (("image", build), ("weights", weigh)):
            made = Stage(stage_name, 1, (), lambda plan, matrix: {}, act)
            self.tasks.setdefault(keys[stage_name], Task(made, name, {}, {}, keys[stage_name]))
        key = digest(f"serve {name}")
        reads = {
            "unknown": "",
            "health": "/health",
            "argv": ["/bin/busybox", "httpd", "-f", "-p", "8000", "-h", "/www"],
            "serve": {"port": 8000, "env": {}, "memory": None, "ready-within": 30},
            "container": dump(Container(init=True)),
            "model": name,
        }
        made = Stage("serve", 1, ("image", "weights"), lambda plan, matrix: {}, serve)
        self.tasks[key] = Task(made, name, reads, keys, key, {"device:cpu": 1}, key)
        return key

    def run(self, hosts: Hosts) -> Ledger:
        """Serve all cells on hosts."""
        session = Session(hosts=(hosts, {"cpu": Matrix().chip("cpu")}))
        run = Run(Graph(self.tasks, {}), Matrix(), self.store, session, cast(Progress, Silent()))
        with closing(session):
            return carry_out(run.graph, list(self.tasks), run, Limits(4, {}, hosts.lent), keep_going=True)


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def bench(tmp_path: Path, engine: Engine) -> Iterator[Bench]:
    made = Bench(Store(tmp_path / "store"))
    yield made
    for image in made.images.values():
        if engine.has(image):
            engine.client.remove_image(image, force=True)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Distribution]:
    (tmp_path / "registry").mkdir()
    with distribution(tmp_path / "registry") as running:
        yield running


def asked(tmp_path: Path) -> Counter[str]:
    """Return how often a registry did what it was asked: `release PUT manifests`, `docker GET blobs` …, and all questions of each."""
    found = Counter[str]()
    for text in (tmp_path / "registry" / "registry.log").read_text().splitlines():
        told = dict(re.findall(r'http\.request\.(method|uri|useragent)="?([^" ]+)', text))
        if "response completed" in text:
            who = told["useragent"].partition("/")[0]
            found[who] += 1
            if kind := re.match(r"/v2/staging/(manifests|blobs)", told["uri"]):
                found[f"{who} {told['method']} {kind[1]}"] += "with error" not in text
    return found


def line() -> Line:
    return Line(cast(Progress, Silent()), "cpu/tiny@bf16", "serve")


def kind_of(failure: ReleaseError) -> str:
    """Return what kind of failure it is for who sorts them in the morning."""
    (found,) = failures_of(
        {"reason": str(failure), "stage": "serve", "error": type(failure).__name__, "detail": failure.next_step}
    )
    return found.kind


def both(registry: Distribution) -> Staging:
    return Staging(there=f"{registry.host}/staging", here=f"{registry.host}/staging")


def test_two_cells_of_an_image_on_a_host_cost_one_push_and_one_pull_by_digest(
    yard: Yard, bench: Bench, registry: Distribution, tmp_path: Path
) -> None:
    yard.sshds = {"anvil": yard.sshds["anvil"]}
    yard.sshds["anvil"].start()
    keys = [bench.cell("cpu/a@bf16", "one"), bench.cell("cpu/b@bf16", "one")]
    ledger = bench.run(yard.hosts(anvil={"registry": f"{registry.host}/staging", "store": str(bench.store.path)}))
    assert not ledger.failed and all(bench.store.has(key) for key in keys)
    told = asked(tmp_path)
    assert (told["docker GET manifests"], told["docker GET blobs"]) == (1, 3), told
    assert (told["release PUT manifests"], told["release PUT blobs"]) == (2, 3), told
    assert pull(Reference(registry.host, "staging", f"staged-{manifest_of(bench, keys[0])}"), Layout.create(tmp_path / "back"))


def manifest_of(bench: Bench, key: str) -> str:
    """Return the digest of the image that a cell's server runs, without `sha256:`."""
    facts = json.loads((bench.store.get(bench.tasks[key].needs["image"]) / "image.json").read_text())
    return str(facts["manifest"]["digest"]).removeprefix("sha256:")


def test_of_a_second_image_only_the_changed_layers_travel_and_what_is_there_costs_one_question(
    bench: Bench, registry: Distribution, engine: Engine, tmp_path: Path
) -> None:
    for page, sent in (("one", 3), ("two", 2)):
        before = asked(tmp_path)
        layout, made, image = bench.image(page, tmp_path / page)
        stage(both(registry), layout, made, line())
        collect(both(registry), "anvil", engine, made, image, line())
        told = asked(tmp_path) - before
        assert (told["release PUT blobs"], told["docker GET blobs"]) == (sent, sent), f"of three blobs of image {page}: {told}"
        assert engine.has(image)
    before = asked(tmp_path)
    stage(both(registry), layout, made, line())
    assert asked(tmp_path) - before == Counter({"release": 1, "release HEAD manifests": 1})


def test_a_host_that_does_not_reach_the_registry_is_left_for_another_and_is_told_of(
    yard: Yard, bench: Bench, registry: Distribution
) -> None:
    del yard.sshds["crane"]
    for sshd in yard.sshds.values():
        sshd.start()
    key, place = bench.cell("cpu/a@bf16", "one"), f"{registry.host}/staging"
    said = {"store": str(bench.store.path), "registry": place}
    ledger = bench.run(yard.hosts(anvil={**said, "registry": {"there": NOWHERE, "here": place}}, bellows=said))
    assert not ledger.failed and bench.store.facts(key)["host"] == "bellows"
    (text,) = ledger.moved
    assert "cpu/a@bf16: serve: anvil cannot pull the image from 127.0.0.1:9/staging" in text and "connection refused" in text


@pytest.mark.parametrize(
    ("words", "kind", "wanted"),
    [
        ("dial tcp 127.0.0.1:9: connect: connection refused", HostError, "open the way from the host to it"),
        ("dial tcp: lookup registry.lab on 10.0.0.1:53: no such host", HostError, "as the host knows it"),
        ("write /var/lib/docker/tmp/GetImageBlob12: no space left on device", HostError, "free some space on the host"),
        ("x509: certificate signed by unknown authority", HostError, "the registry's certificate"),
        ("http: server gave HTTP response to HTTPS client", HostError, "insecure-registries"),
        ("no basic auth credentials", StagingError, "docker login registry.lab"),
        ("manifest unknown: manifest unknown", StagingError, "delete the tag staged-0000"),
        ("filesystem layer verification failed for digest sha256:00", StagingError, "do not trust this registry"),
        ("something that nobody has foreseen", StagingError, "release hosts check"),
    ],
)
def test_engines_words_tell_a_host_at_fault_from_a_registry_and_both_are_infrastructure(
    words: str, kind: type[ReleaseError], wanted: str
) -> None:
    staging = Staging(there="registry.lab/staging", here="127.0.0.1:5000/staging")
    found = refusal(
        staging, "anvil", Descriptor("", f"sha256:{0:064}", 0), EngineError(f"pulling registry.lab/staging@…: {words}")
    )
    assert type(found) is kind and wanted in found.next_step and words in found.message
    assert ("anvil" in found.message) == (kind is HostError), "what is of no host is one cause for all of them"
    assert kind_of(found) == "infrastructure"


def hostile(layout: Layout, **instead: bytes) -> Any:
    """Return the script of a registry that has what a layout has, but for digests under which it keeps something else."""

    def answer(seen: Seen) -> Answer:
        _, _, name = seen.path.rpartition("/")
        if not name.startswith("sha256:"):
            return Answer(body=b"{}", headers={"Docker-Distribution-Api-Version": "registry/2.0"})
        data = instead.get(name) or layout.blob(name).read_bytes()
        kind = IMAGE_MANIFEST if "/manifests/" in seen.path else "application/octet-stream"
        return Answer(body=data, headers={"Content-Type": kind})

    return answer


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_other_content_than_was_asked_for_is_refused_and_blames_the_registry(
    what: str, bench: Bench, engine: Engine, tmp_path: Path
) -> None:
    layout, made, image = bench.image("right", tmp_path / "right")
    other, wrong, _ = bench.image("wrong", tmp_path / "wrong")
    held = {
        "manifest": (made, wrong),
        **dict(zip(("config", "base", "layer"), zip(*map(parts, (layout, other)), strict=True), strict=True)),
    }
    asked_for, given = held[what]
    with scripted(hostile(layout, **{asked_for.digest: other.blob(given.digest).read_bytes()})) as server:
        staging = Staging(there=f"{server.host}/staging", here=f"{server.host}/staging")
        with pytest.raises(StagingError, match="verification failed") as caught:
            collect(staging, "anvil", engine, made, image, line())
    assert kind_of(caught.value) == "infrastructure" and "do not trust this registry" in caught.value.next_step
    assert not engine.has(image)


def parts(layout: Layout) -> list[Descriptor]:
    """Return config and layers of the one image of a layout."""
    document = layout.read(layout.find("image"))
    return [Descriptor.from_json(each) for each in (document["config"], *document["layers"])]


def test_what_the_engine_holds_is_held_to_what_was_built(
    bench: Bench, registry: Distribution, engine: Engine, tmp_path: Path
) -> None:
    layout, made, image = bench.image("one", tmp_path / "one")
    stage(both(registry), layout, made, line())
    with pytest.raises(HostError, match=f"anvil pulled .* and holds {image}, not sha256:0000"):
        collect(both(registry), "anvil", engine, made, f"sha256:{0:064}", line())


def test_the_login_kept_for_the_registry_goes_there_and_nowhere_else(
    bench: Bench, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, made, image = bench.image("one", tmp_path / "one")
    (tmp_path / "locked").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with (
        distribution(tmp_path / "locked", login=True) as locked,
        scripted(Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})) as greedy,
    ):
        for act in (
            lambda: stage(both(locked), layout, made, line()),
            lambda: collect(both(locked), "a", engine, made, image, line()),
        ):
            for user in (None, f"{USER}:wrong"):
                keep_login(tmp_path, locked.host, user)
                with pytest.raises(StagingError) as caught:
                    act()
                assert f"docker login {locked.host}" in caught.value.next_step and kind_of(caught.value) == "infrastructure"
            keep_login(tmp_path, locked.host, f"{USER}:{PASSWORD}")
            act()
        assert engine.has(image)
        with pytest.raises(StagingError, match="no basic auth"):
            collect(Staging(there=f"{greedy.host}/staging", here=f"{locked.host}/staging"), "a", engine, made, image, line())
        assert greedy.seen and all("authorization" not in map(str.lower, seen.headers) for seen in greedy.seen)


def keep_login(folder: Path, host: str, login: str | None) -> None:
    """Write docker's config.json with one login, or with none."""
    kept = {host: {"auth": b64encode(login.encode()).decode()}} if login else {}
    (folder / "config.json").write_text(json.dumps({"auths": kept}))


def test_a_registry_that_falls_silent_is_not_waited_for_until_the_end_of_days(
    bench: Bench, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, made, image = bench.image("one", tmp_path / "one")
    honest, over = hostile(layout), threading.Event()

    def silent(seen: Seen) -> Answer:
        if "/manifests/" in seen.path:
            over.wait(60)
        return honest(seen)

    monkeypatch.setattr(containers, "TIMEOUT", 0.5)
    with scripted(silent) as server, pytest.raises(HostError, match="Read timed out"):
        try:
            collect(Staging(there=f"{server.host}/staging", here=NOWHERE), "anvil", engine, made, image, line())
        finally:
            over.set()


def test_the_preflight_sends_an_image_the_way_that_images_go(
    yard: Yard, registry: Distribution, engine: Engine, tmp_path: Path
) -> None:
    del yard.sshds["crane"]
    for sshd in yard.sshds.values():
        sshd.start()
    place = f"{registry.host}/staging"
    hosts = yard.hosts(anvil={"registry": place}, bellows={"registry": {"there": NOWHERE, "here": place}})
    chips: dict[str, Chip] = {"cpu": Matrix().chip("cpu")}
    with closing(Guard()) as guard, closing(Fleet(hosts, chips, lambda: guard)) as fleet:
        found = {name: {one.what: one for one in findings}["registry"] for name, findings in check(fleet).items()}
    for name in engine.inspect(lay_out_canary(Layout.create(tmp_path / "canary"), "x86_64")[1])["RepoDigests"]:
        if name.startswith(place):
            engine.client.remove_image(name)
    assert found["anvil"].state == "ok" and "by digest" in found["anvil"].found
    assert found["bellows"].state == "missing" and "connection refused" in found["bellows"].found
    assert found["bellows"].next_step == "start the registry, or open the way from the host to it"


def test_a_host_that_dies_while_it_pulls_is_at_fault(yard: Yard, bench: Bench, tmp_path: Path) -> None:
    yard.sshds = {"anvil": (sshd := yard.sshds["anvil"])}
    sshd.start()
    layout, made, image = bench.image("one", tmp_path / "one")
    honest, turn = hostile(layout), threading.Lock()

    def dying(seen: Seen) -> Answer:
        with turn:
            if "/blobs/" in seen.path and sshd.process is not None:
                sshd.end()
        return honest(seen)

    with scripted(dying) as server, closing(Guard()) as guard, closing(Fleet(yard.hosts(), {}, lambda: guard)) as fleet:
        staging = Staging(there=f"{server.host}/staging", here=f"{server.host}/staging")
        with pytest.raises(StagingError, match="the image cannot be pulled"):
            collect(staging, "anvil", fleet.engine("anvil"), made, image, line())
        assert fleet.fault(Seat(host="anvil", chip="cpu", devices=1)) == "its connection broke"
