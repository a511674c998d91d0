"""An image comes out with one digest, whatever engine saved it, goes back to the engine, and hostile archives do not get in."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from archives import EPOCH, SAMPLE, Entry, entry, folder, hard, make, rewrite

from release import processes
from release.builders.compression import DEFAULT, NONE, Compression, slow_gzip
from release.builders.layer import debris
from release.builders.normalise import Image, docker_archive, normalise
from release.containers import connect
from release.errors import EngineError, StageError, VerificationError
from release.oci import Layout, sha256

CONFIG: Final[Mapping[str, Any]] = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-01T00:00:00Z",
    "docker_version": "20.10",
    "container": "abc",
    "container_config": {"Cmd": ["secret"]},
    "config": {
        "Hostname": "abc", "User": "10001", "Env": ["PATH=/bin"], "Cmd": ["serve"], "Entrypoint": None, "WorkingDir": "/srv",
        "ExposedPorts": {"8000/tcp": {}}, "Volumes": None, "StopSignal": "SIGINT", "OnBuild": [], "Image": "sha256:x",
        "Labels": {"io.buildah.version": "1.28"},
    },
}  # fmt: skip


def save(path: Path, layers: Iterable[bytes], kind: str = "docker", *, diff_ids: list[str] | None = None) -> Path:
    """Write an image archive as docker, podman (symbolic links), hard links or containerd (gzip blobs) lay it out."""
    layers = list(layers)
    history = [{"created_by": f"{kind} {random.random()}"}]
    rootfs = {"type": "layers", "diff_ids": diff_ids if diff_ids is not None else [sha256(layer) for layer in layers]}
    body = json.dumps({**CONFIG, "rootfs": rootfs, "history": history}).encode()
    listing: list[str] = []
    written = [entry("oci-layout", b"{}"), folder("blobs")]
    for number, layer in enumerate(layers):
        plain, own = f"{sha256(layer)[7:]}.tar", f"{number:064}/layer.tar"
        if kind == "containerd":
            plain = f"blobs/sha256/{sha256(layer)[7:]}"
            written.append(entry(plain, gzip.compress(layer)))
        elif kind != "docker":
            written.append(entry(plain, layer))
        match kind:
            case "docker":
                written.append(entry(own, layer))
            case "podman":
                written.append(soft(own, f"../{plain}"))
            case "hard":
                written.append(hard(own, plain))
        listing.append(plain if kind == "containerd" else own)
    written.append(entry("config.json", body))
    written.append(manifest(Config="config.json", RepoTags=["x:1"], Layers=listing))
    path.write_bytes(make(*written))
    return path


def run(archive: Path, layout: Layout, **changes: Any) -> Image:
    facts: dict[str, Any] = {"epoch": EPOCH, "base_diff_ids": frozenset(), "labels": {"a": "1"}, "created_by": "release"}
    return normalise(archive, layout, **{**facts, **changes})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


BASE: Final = make(folder("etc"), entry("etc/debian_version", b"12\n", uname="root", mtime=5))
TOP: Final = make(*SAMPLE, folder("tmp"), entry("tmp/pip", b"x"))
RUBBISH: Final = make(entry("etc/hosts", b"x"), entry("etc/resolv.conf", b"y"))


def test_one_digest_for_the_layouts_of_all_engines(tmp_path: Path, layout: Layout) -> None:
    archives = [save(tmp_path / kind, [BASE, TOP], kind) for kind in ("docker", "podman", "hard", "containerd")]
    assert len({run(archive, layout).manifest.digest for archive in archives}) == 1


def test_base_layers_keep_their_bytes_and_empty_layers_go(tmp_path: Path, layout: Layout) -> None:
    heard: list[int] = []
    archive = save(tmp_path / "a", [BASE, RUBBISH, TOP, make()])
    image = run(archive, layout, base_diff_ids=frozenset({sha256(BASE)}), on_bytes=heard.append)
    assert [layer.diff_id for layer in image.layers] == [sha256(BASE), sha256(rewrite(TOP, debris))]
    for layer, content in zip(image.layers, (BASE, rewrite(TOP, debris)), strict=True):
        blob = layout.blob(layer.digest).read_bytes()
        assert (gzip.decompress(blob), len(blob), len(content)) == (content, layer.size, layer.uncompressed_size)
    assert sum(heard) == len(BASE) + sum(len(data) for _, data in SAMPLE)
    layout.verify(image.manifest)
    assert image.manifest.platform == {"architecture": "amd64", "os": "linux"}
    assert image.compressor.startswith("igzip-1 (isal ")


def test_the_config_says_what_runs_and_not_how_it_was_built(tmp_path: Path, layout: Layout) -> None:
    image = run(save(tmp_path / "a", [BASE, TOP]), layout)
    document = layout.read(image.manifest)
    assert document["layers"][0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    config = json.loads(layout.blob(image.config_digest).read_bytes())
    created = "2023-11-14T22:13:20Z"
    assert config == {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "User": "10001", "Env": ["PATH=/bin"], "Cmd": ["serve"], "WorkingDir": "/srv", "ExposedPorts": {"8000/tcp": {}},
            "StopSignal": "SIGINT", "Labels": {"a": "1"},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
        "history": [{"created": created, "created_by": "release"}] * 2,
    }  # fmt: skip


def soft(name: str, link: str) -> Entry:
    return entry(name, None, tarfile.SYMTYPE, link)


def manifest(**facts: Any) -> Entry:
    return entry("manifest.json", json.dumps([{"Config": "c", "Layers": ["l"], **facts}]).encode())


def config_entry(**facts: Any) -> Entry:
    return entry("c", json.dumps({**CONFIG, "rootfs": {"diff_ids": [sha256(TOP)]}, **facts}).encode())


LAYER: Final = entry("l", TOP)
BROKEN: Final[Mapping[str, tuple[bytes, str]]] = {
    "no tar": (b"not a tar", "cut off"),
    "no manifest": (make(config_entry(), LAYER), "no manifest.json"),
    "two images": (make(entry("manifest.json", b"[{}, {}]")), "exactly one image"),
    "an object": (make(entry("manifest.json", b"{}")), "exactly one image"),
    "nesting": (make(entry("manifest.json", b"[" * 100000)), "not JSON"),
    "no JSON": (make(entry("manifest.json", b"\xff")), "not JSON"),
    "a large manifest": (make(entry("manifest.json", b" " * (5 << 20))), "the limit is"),
    "no layers": (make(manifest(Layers=None), config_entry()), "no layers"),
    "no config": (make(manifest(), LAYER), "c is missing"),
    "a config without rootfs": (make(manifest(), entry("c", b"[]"), LAYER), "no image config"),
    "too few diff_ids": (make(manifest(), config_entry(rootfs={"diff_ids": []}), LAYER), "0 diff_ids for 1 layers"),
    "odd diff_ids": (make(manifest(), config_entry(rootfs={"diff_ids": ["sha256:0"]}), LAYER), "malformed"),
    "numbers as diff_ids": (make(manifest(), config_entry(rootfs={"diff_ids": [1]}), LAYER), "no image config"),
    "a config without os": (make(manifest(), config_entry(os=None), LAYER), "no architecture, no os"),
    "an environment of numbers": (make(manifest(), config_entry(config={"Env": [1]}), LAYER), "Env = "),
    "a user of lists": (make(manifest(), config_entry(config={"User": ["root"]}), LAYER), "User = "),
    "a missing layer": (make(manifest(), config_entry()), "l is missing"),
    "a layer that is a folder": (make(manifest(), config_entry(), folder("l")), "neither a file"),
    "an absolute layer": (make(manifest(Layers=["/etc/passwd"]), config_entry()), "absolute path"),
    "a layer outside": (make(manifest(Layers=["../l"]), config_entry(), LAYER), "leads out"),
    "a layer by a link out": (make(manifest(), config_entry(), soft("l", "../../etc/passwd")), "leads out"),
    "a layer by an absolute link": (make(manifest(), config_entry(), soft("l", "/etc/passwd")), "neither a file"),
    "a layer by a link to itself": (make(manifest(), config_entry(), soft("l", "l")), "more than 8 others"),
    "an absolute member": (make(entry("/x"), manifest(), config_entry(), LAYER), "absolute path"),
    "a member outside": (make(entry("../x"), manifest(), config_entry(), LAYER), "leads out"),
    "a layer that is no tar": (make(manifest(), config_entry(), entry("l", b"x" * 4096)), "checksum"),
    "a layer of zstd": (make(manifest(), config_entry(), entry("l", b"\x28\xb5\x2f\xfd" + bytes(99))), "zstd"),
    "a layer of broken gzip": (make(manifest(), config_entry(), entry("l", gzip.compress(TOP)[:-9])), "damaged gzip"),
    "a layer of flipped gzip": (make(manifest(), config_entry(), entry("l", gzip.compress(TOP)[:-8] + bytes(8))), "damaged gzip"),
    "nothing but rubbish": (make(manifest(), config_entry(), entry("l", RUBBISH)), "every layer is empty"),
    "a second layer that is broken": (
        make(manifest(Layers=["l", "m"]), config_entry(rootfs={"diff_ids": [sha256(TOP)] * 2}), LAYER, entry("m", TOP[:1000])),
        "cut off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_archive_is_refused_and_nothing_is_written(what: str, tmp_path: Path, layout: Layout) -> None:
    data, reason = BROKEN[what]
    archive = tmp_path / "image.tar"
    archive.write_bytes(data)
    with pytest.raises(StageError, match=reason):
        run(archive, layout)
    assert [path for path in (layout.path / "blobs").rglob("*") if path.is_file()] == []
    assert layout.index() == []


def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path, layout: Layout) -> None:
    whole = save(tmp_path / "whole", [BASE, TOP]).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end, 777):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(StageError):
            run(tmp_path / "cut", layout)
    assert list((layout.path / "blobs" / "sha256").iterdir()) == []


def test_a_base_layer_with_other_content_is_refused(tmp_path: Path, layout: Layout) -> None:
    claimed = sha256(b"the base")
    with pytest.raises(StageError, match="has the content of"):
        run(save(tmp_path / "a", [BASE], diff_ids=[claimed]), layout, base_diff_ids=frozenset({claimed}))


def test_an_archive_of_more_than_an_engine_saves_is_refused(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.builders.normalise.SAVED_LIMIT", 3)
    with pytest.raises(StageError, match="more than 3 members"):
        run(save(tmp_path / "a", [BASE, TOP]), layout)


def test_a_layer_may_not_unpack_without_end(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.builders.compression.UNPACK_LIMIT", 1 << 20)
    bomb = make(manifest(), config_entry(), entry("l", gzip.compress(bytes(3 << 20))))
    (tmp_path / "a").write_bytes(bomb)
    with pytest.raises(StageError, match="unpacks to more than"):
        run(tmp_path / "a", layout)


def test_a_disk_that_refuses_is_a_stage_that_failed(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be normalised"):
        run(save(tmp_path / "a", [BASE]), Layout(tmp_path / "nowhere"))
    with pytest.raises(StageError, match="cannot be normalised"):
        run(tmp_path / "nothing", Layout.create(tmp_path / "layout"))


@pytest.mark.parametrize("way", [DEFAULT, slow_gzip(6), NONE], ids=str)
def test_what_is_given_back_to_the_engine_has_the_ids_of_the_image(way: Compression, tmp_path: Path, layout: Layout) -> None:
    image = run(save(tmp_path / "a", [BASE, TOP, TOP]), layout, compression=way)
    data = b"".join(docker_archive(layout, image.manifest, tag="release:1"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    (listing,) = json.loads(found["manifest.json"])
    assert listing["RepoTags"] == ["release:1"]
    assert sha256(found[listing["Config"]]) == image.config_digest
    assert [sha256(found[name]) for name in listing["Layers"]] == [layer.diff_id for layer in image.layers]
    assert len(found) == 4, "a layer that occurs twice is sent once"
    (tmp_path / "again").write_bytes(data)
    assert run(tmp_path / "again", layout, compression=way) == image


def test_only_the_lowest_layers_that_the_engine_holds_are_left_out(tmp_path: Path, layout: Layout) -> None:
    image = run(save(tmp_path / "a", [BASE, TOP]), layout)
    low, high = (layer.diff_id for layer in image.layers)

    def sent(*have: str) -> set[str]:
        with tarfile.open(fileobj=io.BytesIO(b"".join(docker_archive(layout, image.manifest, have=frozenset(have))))) as archive:
            return {f"sha256:{name.removesuffix('.tar')}" for name in archive.getnames() if name.endswith(".tar")}

    assert (sent(), sent(low), sent(high), sent(low, high)) == ({low, high}, {high}, {low, high}, set())


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "other"])
def test_a_damaged_layout_is_not_given_to_the_engine(damage: str, tmp_path: Path, layout: Layout) -> None:
    image = run(save(tmp_path / "a", [TOP]), layout)
    path = layout.blob(image.layers[0].digest)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"short": data[:-1], "flipped": data[:-8] + bytes(8), "other": bytes(len(data))}[damage])
    with pytest.raises(VerificationError):
        list(docker_archive(layout, image.manifest))


BUILD: Final = """FROM scratch
ADD root.tar /
RUN ["/bin/sh", "-c", "mkdir -p /opt /var/log /tmp; date +%N > /tmp/x; date > /var/log/y; echo 1 > /opt/a; ln /opt/a /opt/b"]
RUN ["/bin/sh", "-c", "rm /opt/a; chmod 4755 /opt/b"]
USER 10001
CMD ["/bin/sh", "-c", "cat /opt/b"]
"""


def small_root(path: Path) -> None:
    """Write a root file system of a shell and four programs of this machine."""
    files = {f"/bin/{name}" for name in ("sh", "date", "mkdir", "ln", "rm", "chmod", "cat")}
    for program in tuple(files):
        files |= {word for line in processes.run(["ldd", program]) for word in line.split() if word.startswith("/")}
    with tarfile.open(path, "w") as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name.lstrip("/"))
            data = Path(name).read_bytes()
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_two_builds_give_one_image_that_the_engine_takes_back_and_runs(kind: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    small_root(context / "root.tar")
    (context / "Dockerfile").write_text(BUILD)
    layout = Layout.create(tmp_path / "layout")
    label = ("release-test", tmp_path.name)
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(connect(kind))
        except EngineError as problem:
            pytest.skip(f"no {kind} here: {problem}")
        stack.callback(engine.remove_images, "=".join(label))
        images = []
        for number in range(2):
            built = engine.build(context, tag=f"release-test:{number}", labels=dict([label]), use_cache=False)
            engine.save(built, tmp_path / "image.tar")
            images.append(run(tmp_path / "image.tar", layout))
        assert images[0] == images[1]
        image = images[0].config_digest
        engine.load(docker_archive(layout, images[0].manifest), image)
        stack.callback(engine.client.remove_image, image.removeprefix("sha256:"), force=True)
        run_it = [engine.cli, "run", "--rm", "--network=none", image.removeprefix("sha256:")]
        assert processes.run(run_it, env=engine.env)[-1].strip() == "1"
