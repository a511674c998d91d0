"""What `release plan`, `matrix`, `explain` and `new` answer to what nobody meant: one clear error, and a command that would work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import release
from folders import CELL, CHIP, write

from release.errors import MatrixError, UsageError
from release.house import House
from release.matrix.check import Asked, plan_of
from release.matrix.load import Matrix
from release.new import new_cell, new_chip, new_model
from release.show.matrix import matrix as matrix_text
from release.show.matrix import rows_that_fit
from release.show.plan import everything, layout_line
from release.show.plan import plan as plan_text

DEVICE = """\
devices:
  a9: {name: Abacus 9, memory: 32, bandwidth: 100, per-host: 8, source: its box}
  a8: {name: Abacus 8, memory: 16, bandwidth: 100, per-host: 8, source: its box}
"""
QWQ = "nvidia/qwq-32b@bf16~native"


def house(tmp_path: Path, changes: dict[str, str | None] | None = None) -> House:
    files = {"chips/abacus.yaml": CHIP + DEVICE, **(changes or {})}
    return House.open((write(tmp_path / "matrix", files),), tmp_path / "store", "docker")


def test_a_layout_over_more_devices_than_there_are_is_refused_with_one_that_fits(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="4 devices are needed for this layout, and there are 2") as caught:
        house(tmp_path).plan(QWQ, Asked(devices=2, tensor_parallel_size=4, args={"max-model-len": 4096}))
    assert "would work with TP 2: release plan" in caught.value.next_step
    assert caught.value.next_step.endswith("--tensor-parallel-size 2 --set max-model-len=4096")


def test_devices_that_stay_idle_are_told(tmp_path: Path) -> None:
    study = house(tmp_path).study(QWQ, Asked(devices=11, tensor_parallel_size=4))
    assert study.plan.parallel and layout_line(study.plan.parallel) == "TP 4 × 2 replicas"
    assert "3 of 11 devices stay idle: 2 × 4 are used" in [concern.message for concern in study.concerns]


def test_an_engine_that_nobody_has_is_told_with_its_line_and_near_misses(tmp_path: Path) -> None:
    shared = house(tmp_path / "a", {"cells/abacus/pebble-7b.yaml": CELL.replace("engine: vllm", "engine: vlm")})
    with pytest.raises(MatrixError, match=r"pebble-7b.yaml:3: engine: there is no engine 'vlm' \(did you mean 'vllm'"):
        shared.study("abacus/pebble-7b@bf16")
    own = house(tmp_path / "b", {"cells/abacus/pebble-7b.yaml": CELL.replace("  bf16: {}", "  bf16: {engine: vlm}")})
    with pytest.raises(MatrixError, match=r"pebble-7b.yaml:20: cells.bf16.engine: there is no engine"):
        own.study("abacus/pebble-7b@bf16")


def test_a_plan_needs_no_checkpoint_and_says_that_it_is_not_here(tmp_path: Path) -> None:
    here = house(tmp_path)
    study = here.study("abacus/pebble-7b@bf16")
    (concern,) = (each for each in study.concerns if each.rule == "checkpoint")
    assert concern.message.startswith("not here: checkpoints/pebble")
    assert str(tmp_path / "matrix" / "checkpoints" / "pebble") in concern.next_step
    assert study.refusal is None
    assert "checkpoint" in plan_text(here, study, here.graph(study.plan.cell, None), as_json=False)


def test_the_plan_shows_what_it_assumes_and_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    here = house(tmp_path)
    study = here.study("abacus/pebble-7b@bf16", Asked(args={"hf-overrides": '{"a": "b c"}'}))
    text = plan_text(here, study, None, as_json=False)
    assert "; assumed: 8 sequences, the cell does not say" in text
    assert """--hf-overrides '{"a": "b c"}'""" in text


def test_filters_that_match_nothing_are_refused_with_near_misses() -> None:
    known = Matrix()
    assert rows_that_fit(known, {"chip": "NVIDIA", "model": "Qwq-*"})
    with pytest.raises(UsageError, match=r"no cell has the chip 'nvidai' \(did you mean 'nvidia'"):
        rows_that_fit(known, {"chip": "nvidai", "model": None})
    with pytest.raises(UsageError, match=r"no cell has the feature 'prefix-cach' \(did you mean 'prefix-cache'"):
        rows_that_fit(known, {"features": "prefix-cach"})
    with pytest.raises(UsageError, match="no cell has chip 'cpu' and model 'qwq-32b' together"):
        rows_that_fit(known, {"chip": "cpu", "model": "qwq-32b"})


def test_the_document_of_filtered_cells_has_their_chips_and_models_alone() -> None:
    document = json.loads(matrix_text(Matrix(), {"chip": "nvidia", "model": "qwq*"}, form="json"))
    assert ([chip["id"] for chip in document["chips"]], [model["id"] for model in document["models"]]) == (
        ["nvidia"],
        ["qwq-32b"],
    )
    assert len(json.loads(matrix_text(Matrix(), {"chip": None}, form="json"))["chips"]) == len(Matrix().chips())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_layout_that_every_cell_refuses_is_an_error_after_the_last_line(tmp_path: Path, as_json: bool) -> None:
    lines: list[str] = []
    with pytest.raises(MatrixError, match="is refused by every one"):
        for line in everything(house(tmp_path), Asked(tensor_parallel_size=7), {"chip": "nvidia"}, as_json=as_json):
            lines.append(line)
    assert len(lines) == 6
    assert lines[-1] == ("]" if as_json else "\n4 cells, 4 refused.")


def test_the_overview_names_what_a_plan_can_do_something_about_before_contradictions(tmp_path: Path) -> None:
    filters: dict[str, str | None] = {"chip": "*800i*", "model": "qwen2-7b", "precision": "fp16"}
    (line,) = (line for line in everything(house(tmp_path), Asked(), filters, as_json=False) if "qwen2-7b@fp16" in line)
    assert "activations in fp16" in line


def test_a_new_file_does_not_go_before_a_shipped_one_unless_that_is_wanted(tmp_path: Path) -> None:
    known = Matrix()
    for start in (
        lambda force: new_chip(known, "cpu", tmp_path, force=force),
        lambda force: new_model(known, "qwq-32b", None, tmp_path, force=force),
        lambda force: new_cell(known, "cpu/tiny-qwq", tmp_path, force=force),
    ):
        with pytest.raises(UsageError, match="is there already") as caught:
            start(False)
        assert "--force" in caught.value.next_step
        assert start(True)[0].is_file()


def test_a_new_model_without_a_checkpoint_is_refused_until_its_figures_are_written(tmp_path: Path) -> None:
    new_model(Matrix(), "boulder", None, tmp_path)
    assert "layers: 0   # write it" in (tmp_path / "models/boulder.yaml").read_text()
    with pytest.raises(MatrixError, match=r"boulder.yaml:\d+: architecture\.class"):
        Matrix((tmp_path,)).model("boulder")


@pytest.mark.parametrize("name", ["acme-x1", "acme-x1/", "/qwq-32b", "a/b/c"])
def test_a_new_cell_is_asked_for_as_chip_and_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not CHIP/MODEL"):
        new_cell(Matrix(), name, tmp_path)


def test_a_new_chip_does_not_make_up_how_many_devices_a_host_has(tmp_path: Path) -> None:
    new_chip(Matrix(()), "acme-x1", tmp_path)
    assert "per-host: {unknown:" in (tmp_path / "chips/acme-x1.yaml").read_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        ("matrix", "--json", "--markdown"),
        ("matrix", "--chip", "nvidai"),
        ("plan", "--all", "--chip", "nvidai"),
        ("plan", "--all", "--chip", "nvidia", "--tensor-parallel-size", "7"),
        ("plan", "--chip", "cpu", "--model", "tiny-qwq", "--device-memory", "nan"),
        ("plan", "--chip", "cpu", "--model", "tiny-qwq", "--set", "max-model-len="),
        ("plan", "--chip", "cpu", "--model", "tiny-qwq", "--set", "seed=1", "--set", "tp=2"),
    ],
)
def test_what_nobody_can_mean_ends_with_2_and_a_next_step(words: tuple[str, ...], tmp_path: Path) -> None:
    answer = release(*words, store=tmp_path / "store")
    assert answer.status == 2
    assert "next: " in answer.err


def test_a_precision_that_the_guide_does_not_tick_says_so_in_its_plan() -> None:
    conflicts = plan_of(Matrix(), "ascend-300i-duo/qwen3-32b@fp16").conflicts
    assert [each.says for each in conflicts if "✕ for FP16" in each.says]
