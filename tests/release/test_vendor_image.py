"""A vendor's base image that came by mail, its sources from a repository with a patch, and an image made of both: with a real engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import entry, make
from command import Answer, release
from distribution import Distribution, manifest
from vendors import Checkout

from release.builders.base import pull_base
from release.builders.image import TAG, load_image
from release.containers import Engine, connect
from release.oci import IMAGE_CONFIG, IMAGE_MANIFEST, LAYER_TAR, Layout, canonical
from release.progress import Plain
from release.publish.distribution import Registry

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CHIP = """\
# A chip whose maker sends its base image by mail.
id: anvil
name: Anvil 1
vendor: Smithy
architecture: amd64
precisions: [bf16]
base: BASE
container: {network: host}
"""
PACKAGES = "ca-certificates, python3, python3-pip, python3-setuptools, python3-wheel"
MADE_HERE = f"{{bootstrap: {{suite: bookworm, include: [{PACKAGES}], epoch: 1700000000}}}}"
MODEL = """\
# A small model.
id: nail-1b
name: Nail-1B
family: nail
vendor: Smithy
license: mit
description: Holds things together.
example: What holds?
precision: bf16
architecture:
  {class: Qwen2ForCausalLM, layers: 2, hidden: 64, intermediate: 128, heads: 2, kv-heads: 1, head-dim: 32, vocabulary: 320, context: 512}
checkpoint: {hub: {repository: smithy/Nail-1B, revision: {unknown: nobody has published it}}}
"""
CELL = """\
# Nail on Anvil, served by FlagScale, from the maker's own tree.
chip: anvil
model: nail-1b
engine: flagscale
sources:
  - name: hammer
    repository: REPOSITORY
    commit: COMMIT
    patches: hammer/base
    install: [.]
serve: {port: 9020, args: {max-model-len: 256}}
cells:
  bf16: {}
"""
SETUP = 'from setuptools import setup\nsetup(name="hammer", version="1.0", py_modules=["hammer"])\n'


@pytest.fixture
def engine() -> Iterator[Engine]:
    with connect("docker") as answering:
        yield answering


def maker(root: Path, base: str) -> Path:
    """Write the maker's matrix, with a patch set for a repository made on the spot, and return its folder."""
    upstream = Checkout(root / "hammer")
    if not upstream.folder.exists():
        upstream.folder.mkdir(parents=True)
        upstream.git("init", "-q", "-b", "main")
        upstream.write("setup.py", SETUP.encode())
        upstream.write("hammer.py", b"WEIGHT = 1\n")
        upstream.commit("base")
        upstream.git("tag", "base")
        upstream.write("hammer.py", b"WEIGHT = 2\n")
        upstream.commit("the maker's change")
        words = (
            "patch",
            "--from",
            str(upstream.folder),
            "--base",
            upstream.id("base"),
            "--out",
            str(root / "matrix/patches/hammer/base"),
        )
        made = release(*words, store=root / "store")
        assert made.status == 0, made.err
    cell = CELL.replace("REPOSITORY", f"file://{upstream.folder}").replace("COMMIT", upstream.id("base"))
    files = {"chips/anvil.yaml": CHIP.replace("BASE", base), "models/nail-1b.yaml": MODEL, "cells/anvil/nail-1b.yaml": cell}
    for name, text in files.items():
        (root / "matrix" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "matrix" / name).write_text(text)
    return root / "matrix"


def say(matrix: Path, store: Path, *words: str) -> Answer:
    return release("--engine", "docker", "--matrix", str(matrix), *words, store=store, cwd=matrix.parent)


def test_an_image_by_mail_is_imported_pinned_and_built_upon(engine: Engine, tmp_path: Path) -> None:
    store = Path(os.environ.get("RELEASE_TEST_STORE") or tmp_path / "store")
    options = ("--chip", "anvil", "--model", "nail-1b")
    answer = say(maker(tmp_path, MADE_HERE), store, "build", *options, "--until", "base")
    assert answer.status == 0, answer.err
    rootfs = max((store / "entries").glob("*/*/rootfs.tar"), key=lambda path: path.stat().st_mtime)
    docker = [engine.cli]
    name = "smithy/runtime:1"
    subprocess.run([*docker, "import", str(rootfs), name], check=True, capture_output=True)
    try:
        subprocess.run([*docker, "save", "--output", str(tmp_path / "mail.tar"), name], check=True)
    finally:
        subprocess.run([*docker, "rmi", name], check=True, capture_output=True)

    by_mail = "{access: {kind: request, name: 'smithy/runtime:1', contact: someone@example.org}}"
    matrix = maker(tmp_path, by_mail)
    answer = say(matrix, store, "build", *options, "--until", "image")
    assert answer.status == 3
    assert "it has to be got from someone@example.org" in answer.err and "release base import" in answer.err

    answer = say(matrix, store, "base", "import", str(tmp_path / "mail.tar"))
    assert answer.status == 0, answer.err
    pinned = answer.out.split("image: ")[1].strip()
    assert pinned.startswith("smithy/runtime@sha256:")
    assert say(matrix, store, "base", "import", str(tmp_path / "mail.tar")).out == answer.out

    matrix = maker(tmp_path, f"{{image: '{pinned}'}}")
    answer = say(matrix, store, "build", *options, "--until", "image")
    assert answer.status == 0, answer.err
    images = sorted((store / "entries").glob("*/*/image.json"), key=lambda path: path.stat().st_mtime)
    facts = json.loads(images[-1].read_bytes())
    layout = Layout.open(images[-1].parent / "layout")
    load_image(engine, layout, layout.find(TAG), facts["config"])
    ask = "import hammer, pathlib; print(hammer.WEIGHT, sorted(p.name for p in pathlib.Path('/release').rglob('*.yaml')))"
    said = subprocess.run(
        [*docker, "run", "--rm", facts["config"], "python3", "-c", ask], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith("2 ")
    assert "config_nail" in said or "config" in said
    subprocess.run([*docker, "rmi", "--force", facts["config"]], check=True, capture_output=True)


def test_an_archive_that_is_no_image_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mail.tar").write_bytes(b"not a tar at all" * 100)
    answer = release("base", "import", str(tmp_path / "mail.tar"), store=tmp_path / "store")
    assert answer.status == 3
    assert "mail.tar" in answer.err
    assert not list((tmp_path / "store" / "entries").glob("*/*"))


def test_a_base_that_is_pinned_stays_what_it_was_when_its_tag_moves(
    engine: Engine, registry: Distribution, tmp_path: Path
) -> None:
    layout, where = Layout.create(tmp_path / "layout"), registry.fresh("1")
    label = {"org.release.test": where.name.rpartition("-")[2]}
    pins = []
    for words in (b"first", b"second"):
        layer = layout.put(LAYER_TAR, make(entry("etc/vendor", words)))
        rootfs = {"type": "layers", "diff_ids": [layer.digest]}
        facts = {"architecture": "amd64", "os": "linux", "config": {"Labels": label}, "rootfs": rootfs}
        config = layout.put_json(IMAGE_CONFIG, facts)
        for blob in (layer, config):
            Registry.at(where).put_blob(blob, layout.blob(blob.digest))
        Registry.at(where).put_manifest(where.tag, IMAGE_MANIFEST, canonical(manifest(config, layer)))
        pins.append((f"{where}@{Registry.at(where).digest_of(where.tag)}", layer.digest))
    try:
        for pinned, layer_digest in pins:
            assert pull_base(pinned, engine, Plain().line("smithy/a", "base"))["diff-ids"] == [layer_digest]
    finally:
        engine.remove_images(f"org.release.test={label['org.release.test']}")
