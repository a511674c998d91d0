"""`release unpatch` of a cell: what its options say reaches the stages, or the command says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import Answer, release
from vendors import Checkout

from release.oci import sha256

pytestmark = pytest.mark.integration

CHIP = """\
# A chip with a base image of its maker's.
id: anvil
name: Anvil 1
vendor: Smithy
architecture: amd64
precisions: [bf16]
base: {image: 'smithy/runtime@sha256:DIGEST'}
container: {network: host}
""".replace("DIGEST", "a" * 64)
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
# Nail on Anvil, from the maker's own tree.
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


@pytest.fixture
def maker(tmp_path: Path) -> Checkout:
    """Return the maker's repository, whose second commit is a change, and leave a matrix with a cell for the first one."""
    upstream = Checkout(tmp_path / "hammer")
    upstream.folder.mkdir()
    upstream.git("init", "-q", "-b", "main")
    upstream.write("hammer.py", b"WEIGHT = 1\r\nHANDLE = 'ash'\n")
    base = upstream.commit("base")
    upstream.write("hammer.py", b"WEIGHT = 2\r\nHANDLE = 'ash'\n")
    upstream.commit("the maker's change")
    cell = CELL.replace("REPOSITORY", f"file://{upstream.folder}").replace("COMMIT", base)
    for name, text in {"chips/anvil.yaml": CHIP, "models/nail-1b.yaml": MODEL, "cells/anvil/nail-1b.yaml": cell}.items():
        (tmp_path / "matrix" / name).parent.mkdir(parents=True)
        (tmp_path / "matrix" / name).write_text(text)
    return upstream


def say(tmp_path: Path, *words: str, **options: Any) -> Answer:
    return release("--matrix", "matrix", *words, store=tmp_path / "store", cwd=tmp_path, **options)


def pack(tmp_path: Path, maker: Checkout, *words: str) -> None:
    """Make the cell's patch set of the maker's change."""
    answer = say(
        tmp_path,
        "patch",
        "--from",
        str(maker.folder),
        "--base",
        maker.id("HEAD~1"),
        "--out",
        "matrix/patches/hammer/base",
        *words,
    )
    assert answer.status == 0, answer.err


def unpatch(tmp_path: Path, *words: str) -> Answer:
    return say(tmp_path, "unpatch", "--chip", "anvil", "--model", "nail-1b", *words)


def test_offline_the_cell_is_restored_from_the_store_or_not_at_all(maker: Checkout, tmp_path: Path) -> None:
    pack(tmp_path, maker)
    answer = unpatch(tmp_path, "--offline", "--into", "src")
    assert (answer.status, answer.out) == (3, "")
    assert "is not in the mirror" in answer.err and not (tmp_path / "src").exists()
    assert unpatch(tmp_path, "--into", "src").status == 0
    maker.folder.rename(tmp_path / "gone")
    again = unpatch(tmp_path, "--offline", "--into", "again", "--json")
    assert again.status == 0, again.err
    assert (tmp_path / "again" / "hammer" / "hammer.py").read_bytes() == b"WEIGHT = 2\r\nHANDLE = 'ash'\n"


def test_offline_a_wheel_that_is_not_in_the_store_is_not_asked_for(tmp_path: Path) -> None:
    words = ("build", "--chip", "cpu", "--model", "tiny-qwq", "--until", "fetch")
    program = (
        "from pathlib import Path; import sys\nfrom release.build import build; from release.house import House\n"
        "build(House.open((), Path(sys.argv[1]), 'auto'), 'cpu/tiny-qwq@bf16', until='fetch', offline=True)"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is not in the store, and the network is not to be used" in done.stderr, words


def test_the_key_of_the_command_line_opens_the_patches_of_a_cell(maker: Checkout, tmp_path: Path) -> None:
    assert say(tmp_path, "patch", "keys", "keys").status == 0
    pack(tmp_path, maker, "--recipient", "keys/public_key.pem")
    closed = unpatch(tmp_path, "--into", "src")
    assert (closed.status, "no private key" in closed.err, "--key FILE" in closed.err) == (3, True, True)
    opened = unpatch(tmp_path, "--key", "keys/private_key.pem", "--into", "src", "--json")
    assert opened.status == 0, opened.err
    assert opened.document[0]["tree"] == maker.id("HEAD^{tree}")
    assert (tmp_path / "src" / "hammer" / "hammer.py").read_bytes().startswith(b"WEIGHT = 2")


def test_a_tree_whose_whitespace_had_to_be_fixed_is_refused_where_that_is_said(maker: Checkout, tmp_path: Path) -> None:
    pack(tmp_path, maker)
    (patch,) = (tmp_path / "matrix" / "patches" / "hammer" / "base").glob("*.patch")
    patch.write_bytes(content := patch.read_bytes().replace(b"\r\n", b"\n"))
    (patch.parent / "series").write_text(f"{patch.name} {sha256(content)}\n")
    for _ in range(2):  # also where the store has the tree already
        answer = unpatch(tmp_path, "--no-whitespace-fix", "--into", "src")
        assert (answer.status, answer.out) == (3, "")
        assert "only after its whitespace is changed" in answer.err and not (tmp_path / "src").exists()
    answer = unpatch(tmp_path, "--into", "src", "--json")
    assert answer.status == 0, answer.err
    assert answer.document[0]["patches"][0]["how"] == "whitespace-fixed"


def test_a_folder_that_is_taken_is_refused_before_anything_is_done(maker: Checkout, tmp_path: Path) -> None:
    pack(tmp_path, maker)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "hammer").symlink_to("nowhere")
    answer = unpatch(tmp_path, "--into", "src")
    assert (answer.status, "is there already" in answer.err) == (2, True)
    assert not (tmp_path / "store" / "entries").exists()
