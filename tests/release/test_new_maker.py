"""A chip maker, a model and a cell that nobody here has seen: one YAML file each, no Python, and everything before the image works."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from command import release

pytestmark = pytest.mark.integration

CHIP = """\
# Zephyr W3: an accelerator that nobody has heard of.
id: zephyr-w3
name: Zephyr W3
vendor: Zephyr
architecture: arm64
precisions: [fp16, w8a8]
dtypes: [fp16]
devices:
  w3:
    name: Zephyr W3
    memory: 32
    bandwidth: 1200
    compute: {fp16: 256, int8: 512}
    interconnect: 40
    per-host: 8
    source: the maker's leaflet
base:
  image: registry.example.org/zephyr/runtime@sha256:DIGEST
container:
  devices: [/dev/zephyr0]
  mounts: ["/usr/lib/zephyr:/usr/lib/zephyr:ro"]
  shm-size: 16g
host:
  driver: "7.1"
  tool: {command: [zephyr-smi], driver: 'Driver (\\S+)'}
rules:
  - id: even-lengths
    multiples: {max-model-len: 16}
    reason: the compiler takes lengths by sixteens
    source: the maker's leaflet
""".replace("DIGEST", "a" * 64)

MODEL = """\
# Gravel 8B: a model that nobody has heard of.
id: gravel-8b
name: Gravel-8B
family: gravel
vendor: Quarry
license: mit
description: A model made of small stones.
example: How many stones are there?
precision: bf16
architecture:
  class: Qwen3ForCausalLM
  layers: 36
  hidden: 4096
  intermediate: 12288
  heads: 32
  kv-heads: 8
  head-dim: 128
  vocabulary: 151936
  context: 40960
  qk-norm: true
checkpoint:
  hub:
    repository: quarry/Gravel-8B
    revision: 0123456789abcdef0123456789abcdef01234567
requires: {transformers: ">=4.51.0"}
"""

CELL = """\
# Gravel 8B on Zephyr W3, served by vLLM with the maker's patches.
chip: zephyr-w3
model: gravel-8b
engine: vllm
sources:
  - name: engine
    repository: REPOSITORY
    commit: COMMIT
    patches: engine/base
    install: [.]
packages: {transformers: "4.51.3"}
serve:
  port: 9001
  args: {served-model-name: gravel, max-model-len: 8192, max-num-seqs: 8}
reported:
  - source: the maker's leaflet
    candidate: Gravel-8B-Zephyr
    reference: Gravel-8B-H100
    scores:
      - {benchmark: GSM8K, candidate: 90.1, reference: 90.3}
cells:
  fp16: {}
  w8a8:
    reference: zephyr-w3/gravel-8b@fp16
"""


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the maker's own matrix folder, with a patch set for a repository made on the spot."""
    root = tmp_path_factory.mktemp("maker")
    upstream = root / "engine"
    upstream.mkdir()
    (upstream / "engine.py").write_text("SPEED = 1\n")

    def git(*words: str) -> str:
        who = {
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@example.org",
        }
        done = subprocess.run(
            ["git", *words], cwd=upstream, capture_output=True, text=True, check=True, env={**os.environ, **who}
        )
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "HEAD")
    (upstream / "engine.py").write_text("SPEED = 2\n")
    git("commit", "--quiet", "--all", "-m", "two")
    matrix = root / "matrix"
    cell = CELL.replace("REPOSITORY", f"file://{upstream}").replace("COMMIT", commit)
    files = {"chips/zephyr-w3.yaml": CHIP, "models/gravel-8b.yaml": MODEL, "cells/zephyr-w3/gravel-8b.yaml": cell}
    for name, text in files.items():
        (matrix / name).parent.mkdir(parents=True)
        (matrix / name).write_text(text)
    made = release(
        "patch", "--from", str(upstream), "--base", commit, "--out", str(matrix / "patches/engine/base"), store=root / "store"
    )
    assert made.status == 0, made.err
    return matrix


def maker_says(maker: Path, *words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    done = release("--matrix", str(maker), *words, store=maker.parent / "store", cwd=cwd)
    return done.status, done.out, done.err


CELL_OPTIONS = ("--chip", "zephyr-w3", "--model", "gravel-8b")


def test_the_matrix_with_the_new_maker_is_sound(maker: Path) -> None:
    status, out, err = maker_says(maker, "matrix", "check")
    assert (status, err) == (0, "")
    assert out.startswith("the matrix is sound")


def test_the_plan_chooses_a_layout_and_says_what_the_rules_say(maker: Path) -> None:
    status, out, err = maker_says(maker, "plan", *CELL_OPTIONS, "--json")
    assert status == 0, err
    study = json.loads(out)
    assert study["plan"]["parallel"]["tensor-parallel-size"] >= 1
    assert study["why"]
    assert study["memory"]["weights"] > 0
    assert not [concern for concern in study["concerns"] if concern["severity"] == "refuse"]


def test_what_the_makers_rules_forbid_is_refused_with_its_reason(maker: Path) -> None:
    status, _, err = maker_says(maker, "plan", *CELL_OPTIONS, "--set", "max-model-len=8200")
    assert status == 2
    assert "the compiler takes lengths by sixteens" in err


def test_a_layout_that_does_not_divide_is_refused_with_the_nearest_one(maker: Path) -> None:
    status, _, err = maker_says(maker, "plan", *CELL_OPTIONS, "--tensor-parallel-size", "3")
    assert status == 2
    assert "32 attention heads" in err
    assert "--tensor-parallel-size" in err.partition("next:")[2]


def test_the_build_up_to_render_restores_the_patched_tree_and_writes_the_dockerfile(maker: Path, tmp_path: Path) -> None:
    status, _, err = maker_says(maker, "build", *CELL_OPTIONS, "--until", "render", cwd=tmp_path)
    assert status == 0, err
    status, out, err = maker_says(maker, "unpatch", *CELL_OPTIONS, "--into", str(tmp_path / "src"), "--json")
    assert status == 0, err
    (source,) = json.loads(out)
    assert (tmp_path / "src" / "engine" / "engine.py").read_text() == "SPEED = 2\n"
    assert source["patches"][0]["how"] == "exact"
    entries = list((maker.parent / "store" / "entries").glob("*/*/Dockerfile"))
    assert len(entries) == 1
    text = entries[0].read_text()
    assert f"FROM registry.example.org/zephyr/runtime@sha256:{'a' * 64}" in text
    assert "engine" in text


def test_the_card_of_the_plan_is_there_in_both_languages_and_has_no_known_defect(maker: Path, tmp_path: Path) -> None:
    status, out, err = maker_says(maker, "card", *CELL_OPTIONS, "--into", str(tmp_path / "card"))
    assert status == 0, err
    assert [Path(line).name for line in out.splitlines()] == ["README.md", "README_zh.md"]
    english = (tmp_path / "card" / "README.md").read_text()
    assert "**State: planned.**" in english
    assert "Gravel-8B-H100" in english and "Reported by others, not measured here" in english
    for name in ("README.md", "README_zh.md"):
        status, out, err = maker_says(maker, "card", "lint", str(tmp_path / "card" / name))
        assert (status, err) == (0, ""), out


def test_a_host_of_the_new_chip_is_looked_at(maker: Path) -> None:
    status, out, _ = maker_says(maker, "doctor", "--chip", "zephyr-w3")
    assert status == 0
    assert "zephyr-smi" in out and "/dev/zephyr0" in out


def test_where_a_value_comes_from_is_a_line_of_the_makers_own_file(maker: Path) -> None:
    status, out, _ = maker_says(maker, "explain", "zephyr-w3/gravel-8b@fp16", "max_model_len", "--json")
    assert status == 0
    origin = next(origin for origin in json.loads(out) if origin["key"] == "serve.args.max-model-len")
    assert (origin["value"], Path(origin["file"]).name) == (8192, "gravel-8b.yaml")
