"""`release weights` as a model team types it: convert, prove, look before, and find what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Answer, release

from release.matrix.load import OURS

pytestmark = pytest.mark.integration
TINY = str(OURS / "checkpoints" / "tiny-qwq")


def weights(tmp_path: Path, *words: str) -> Answer:
    return release("weights", *words, store=tmp_path / "store", cwd=tmp_path)


def test_a_checkpoint_is_quantised_proven_and_sound(tmp_path: Path) -> None:
    words = ("--to", "w8a8", "--layout", "compressed-tensors", "--exclude", "*.down_proj", "--verify")
    answer = weights(tmp_path, "convert", TINY, "out", *words, "--json")
    assert answer.status == 0, answer.err
    summary = answer.document["summary"]
    assert summary["converted"]["F32 → I8"]["tensors"] == 12
    assert answer.document["verified"]["elements"] > 400_000
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    checked = weights(tmp_path, "check", "out")
    assert (checked.status, "is sound" in checked.out) == (0, True), checked.out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    answer = weights(tmp_path, "convert", TINY, "out", "--to", "bf16", "--dry-run")
    assert answer.status == 0, answer.err
    assert "F32 → BF16" in answer.out
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    answer = weights(tmp_path, "convert", TINY, "out", "--to", "bf16")
    assert answer.status == 3
    assert "is there already" in answer.err
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_a_config_of_another_model_is_found(tmp_path: Path) -> None:
    assert weights(tmp_path, "convert", TINY, "out", "--to", "bf16", "--set", "num_hidden_layers=3").status == 0
    answer = weights(tmp_path, "check", "out")
    assert answer.status == 4
    assert "num_hidden_layers" in answer.out or "layers" in answer.out


@pytest.mark.parametrize(
    ("words", "status"), [(("--to", "fp7"), 2), (("--to", "bf16", "--set", "x"), 2), (("--to", "w8a8c8"), 3)]
)
def test_what_cannot_be_done_is_said(words: tuple[str, ...], status: int, tmp_path: Path) -> None:
    answer = weights(tmp_path, "convert", TINY, "out", *words)
    assert answer.status == status, answer.err
    assert not (tmp_path / "out").exists()
