"""From a cell to a plan: completed, checked, frozen; and a new chip, model or cell is a file and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from folders import CELL, CHIP, MODEL, PINS, write
from pydantic import ValidationError

from release.errors import MatrixError, UsageError
from release.matrix.check import Asked, plan_of, precision_for, problems
from release.matrix.load import Matrix
from release.types import Parallel


def complaint(tmp_path: Path, cell: str = "abacus/pebble-7b@w8a8", **changes: str) -> MatrixError:
    names = {"chip": "chips/abacus.yaml", "model": "models/pebble-7b.yaml", "file": "cells/abacus/pebble-7b.yaml"}
    matrix = Matrix((write(tmp_path, {names[kind]: text for kind, text in changes.items()}),))
    with pytest.raises(MatrixError) as caught:
        plan_of(matrix, cell)
    return caught.value


def test_a_new_chip_model_and_cell_are_three_files_and_no_python(tmp_path: Path) -> None:
    plan = plan_of(Matrix((write(tmp_path),)), "abacus/pebble-7b@w8a8")
    assert (plan.cell, plan.precision, plan.variant, plan.engine) == ("abacus/pebble-7b@w8a8", "w8a8", None, "vllm")
    assert (plan.chip.architecture, plan.chip.container.devices) == ("arm64", ("/dev/abacus0",))
    assert plan.base.image == "registry.example.org/abacus@sha256:" + "a" * 64
    assert plan.reference == "abacus/pebble-7b@bf16"
    assert plan.served_model_name == "pebble-7b"
    assert plan.wheels_sha256 == "sha256:" + hashlib.sha256(PINS.encode()).hexdigest()


def test_a_new_cell_on_a_chip_of_ours_is_one_file(tmp_path: Path) -> None:
    ours = Matrix().cell_files()["cpu/tiny-qwq"].read_text()
    model = MODEL.replace("precision: bf16", "precision: fp32")
    files = {
        "models/pebble-7b.yaml": model,
        "cells/cpu/pebble-7b.yaml": ours.replace("tiny-qwq\nengine", "pebble-7b\nengine").replace(
            "cpu/tiny-qwq@", "cpu/pebble-7b@"
        ),
    }
    plan = plan_of(Matrix((write(tmp_path, dict(files)),)), "cpu/pebble-7b@bf16")
    assert (plan.chip.id, plan.model.id) == ("cpu", "pebble-7b")


def test_an_arm_is_laid_over_what_all_share_key_by_key(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    shared, narrow, native = (plan_of(matrix, f"abacus/pebble-7b@{arm}").serve for arm in ("bf16", "w8a8", "bf16~native"))
    assert shared.args == {"max-model-len": 64, "dtype": "auto"}
    assert narrow.args == {"max-model-len": 64, "dtype": "int8"}
    assert (shared.port, narrow.port, native.port) == (9000, 9000, 9001)
    assert (shared.env, native.env) == ({"A": "1"}, {"A": "1", "B": "2"})
    assert native.memory is None


def test_an_arm_that_says_what_is_the_default_anyway_still_says_it(tmp_path: Path) -> None:
    text = CELL.replace("      port: 9001", "      port: 8000")
    plan = plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16~native")
    assert plan.serve.port == 8000


def test_a_variant_has_its_own_id_and_tag(tmp_path: Path) -> None:
    plan = plan_of(Matrix((write(tmp_path),)), "abacus/pebble-7b@bf16~native")
    assert (plan.precision, plan.variant, plan.slug) == ("bf16", "native", "bf16-native")


def test_the_base_of_a_cell_goes_before_that_of_its_chip(tmp_path: Path) -> None:
    text = CELL + "base:\n  image: other@sha256:" + "e" * 64 + "\n"
    plan = plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16")
    assert plan.base.image == "other@sha256:" + "e" * 64


def test_a_plan_is_frozen(tmp_path: Path) -> None:
    plan = plan_of(Matrix((write(tmp_path),)), "abacus/pebble-7b@bf16")
    with pytest.raises(ValidationError, match="frozen"):
        plan.cell = "other"


def test_an_arm_that_does_not_exist_is_refused_with_its_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no cell abacus/pebble-7b@w8a16 \(did you mean 'w8a8'\?\)") as caught:
        plan_of(Matrix((write(tmp_path),)), "abacus/pebble-7b@w8a16")
    assert caught.value.next_step == "abacus/pebble-7b is offered as w8a8, bf16, bf16~native"


def test_what_is_no_cell_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a cell"):
        plan_of(Matrix((write(tmp_path),)), "abacus/pebble-7b")


def test_a_precision_that_the_chip_does_not_compute_in_is_refused(tmp_path: Path) -> None:
    problem = complaint(tmp_path, file=CELL.replace("  w8a8:", "  fp8:"), cell="abacus/pebble-7b@fp8")
    assert "cells/abacus/pebble-7b.yaml:16: cells.fp8: chip abacus does not compute in fp8" in str(problem)
    assert problem.next_step == "chip abacus offers bf16, w8a8"


def test_a_chip_without_base_needs_a_cell_with_one(tmp_path: Path) -> None:
    chip = CHIP.replace("base:\n  image: registry.example.org/abacus@sha256:" + "a" * 64 + "\n", "")
    assert "base: neither the cell nor chip abacus says it" in str(complaint(tmp_path, chip=chip))


def test_a_chip_without_python_is_refused(tmp_path: Path) -> None:
    chip = CHIP.replace('python:\n  version: "3.11"\n  glibc: "2.36"\n', "")
    assert "python: neither the cell nor chip abacus says it" in str(complaint(tmp_path, chip=chip))


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ("abacus/pebble-7b@w8a8", "a cell cannot be its own reference"),
        ("abacus/pebble-7b@fp32", "there is no cell abacus/pebble-7b@fp32"),
        ("abacus/pebble-7b@bf16~natife", "there is no cell abacus/pebble-7b@bf16~natife (did you mean 'bf16~native'"),
        ("abacus/tiny-qwq@bf16", "there is no cell abacus/tiny-qwq"),
        ("abakus/pebble-7b@bf16", "there is no chip 'abakus' (did you mean 'abacus'?)"),
        ("abacus/pebbles@bf16", "there is no model 'pebbles'"),
        ("the other one", "'the other one' is not a cell"),
        ("../../x@bf16", "'../../x@bf16' is not a cell"),
    ],
)
def test_a_reference_that_cannot_be_is_refused_with_its_line(reference: str, wanted: str, tmp_path: Path) -> None:
    text = CELL.replace("reference: abacus/pebble-7b@bf16", f'reference: "{reference}"', 1)
    assert f"pebble-7b.yaml:17: cells.w8a8.reference: {wanted}" in str(complaint(tmp_path, file=text))


PLUGIN = "    operators: {library: ours, env: {RELEASE_OPERATORS: ours}, proof: release operators, plugin: true}\n"
GEMS = PLUGIN.replace("ours", "flaggems")
EAGER = "dtype: auto, enforce-eager: true"


def with_plugin(text: str = PLUGIN) -> str:
    return CELL.replace("  w8a8:\n", "  w8a8:\n" + text, 1).replace("dtype: auto", EAGER, 1)


def test_a_plugin_that_is_asked_for_is_switched_on_in_the_server_of_that_cell_alone(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": with_plugin()}),))
    env = plan_of(matrix, "abacus/pebble-7b@w8a8").serve.env
    assert env == {"A": "1", "RELEASE_OPERATORS": "ours", "RELEASE_KERNELS_CHIP": "abacus"}
    assert plan_of(matrix, "abacus/pebble-7b@bf16").serve.env == {"A": "1"}


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "RELEASE_OPERATORS: ours",
            "RELEASE_OPERATOR: ours",
            "operators.env: RELEASE_OPERATORS, which the plugin reads, is not set",
        ),
        (
            "RELEASE_OPERATORS: ours",
            "RELEASE_OPERATORS: our",
            "operators.env: RELEASE_OPERATORS, which the plugin reads, is 'our'",
        ),
        ("plugin: true", "plugin: yes please", "operators.plugin"),
        ("plugin: true", "plugins: true", "plugin"),
    ],
)
def test_a_plugin_without_a_switch_that_it_knows_is_refused_with_its_line(
    old: str, new: str, wanted: str, tmp_path: Path
) -> None:
    said = str(complaint(tmp_path, file=with_plugin(PLUGIN.replace(old, new))))
    assert wanted in said and "pebble-7b.yaml:17" in said


def test_a_switch_that_says_two_things_is_refused(tmp_path: Path) -> None:
    text = with_plugin().replace('env: {A: "1"}', "env: {RELEASE_OPERATORS: native}", 1)
    assert "RELEASE_OPERATORS is 'ours' here, and 'native' in the server's environment" in str(complaint(tmp_path, file=text))


def test_a_plugin_where_no_wheels_are_installed_is_refused(tmp_path: Path) -> None:
    text = with_plugin().replace("wheels: wheels/abacus.txt\n", "", 1)
    assert "the image installs no wheels" in str(complaint(tmp_path, file=text))


@pytest.mark.parametrize("said", ["dtype: auto", "dtype: auto, enforce-eager: false", "dtype: auto, enforce_eager: 1"])
def test_flaggems_in_a_server_that_compiles_is_refused_with_its_line_and_ours_is_not(said: str, tmp_path: Path) -> None:
    problem = complaint(tmp_path / "theirs", file=with_plugin(GEMS).replace(EAGER, said))
    assert "pebble-7b.yaml:17: cells.w8a8.operators.plugin: a model that is compiled calls few of ATen's" in str(problem)
    assert "enforce-eager: true" in problem.next_step
    ours = Matrix((write(tmp_path / "ours", {"cells/abacus/pebble-7b.yaml": with_plugin().replace(EAGER, said)}),))
    assert plan_of(ours, "abacus/pebble-7b@w8a8").operators


def test_a_command_line_cannot_let_a_server_compile_that_flaggems_serves(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": with_plugin(GEMS)}),))
    with pytest.raises(UsageError, match="a model that is compiled calls few of ATen's operators"):
        plan_of(matrix, "abacus/pebble-7b@w8a8", Asked(args={"enforce_eager": False}))
    assert plan_of(matrix, "abacus/pebble-7b@w8a8", Asked(args={"enforce_eager": True})).serve.args["enforce-eager"] is True


def test_a_reference_on_another_chip_is_found(tmp_path: Path) -> None:
    text = CELL.replace("reference: abacus/pebble-7b@bf16", "reference: cpu/pebble-7b@fp32", 1)
    there = "chip: cpu\nmodel: pebble-7b\nengine: vllm\ncells: {fp32: {}}\n"
    files: dict[str, str | None] = {"cells/abacus/pebble-7b.yaml": text, "cells/cpu/pebble-7b.yaml": there}
    assert plan_of(Matrix((write(tmp_path, files),)), "abacus/pebble-7b@w8a8").reference == "cpu/pebble-7b@fp32"


def test_a_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    text = CELL.replace("reference: abacus/pebble-7b@bf16", "reference: cpu/tiny-qwq@fp32", 1)
    problem = complaint(tmp_path, file=text)
    assert "pebble-7b.yaml:17: cells.w8a8.reference: cpu/tiny-qwq@fp32 is a cell of tiny-qwq" in str(problem)
    assert problem.next_step == "name a cell of pebble-7b"


def test_references_that_go_round_in_a_circle_are_refused(tmp_path: Path) -> None:
    text = CELL.replace("  bf16: {}", "  bf16: {reference: abacus/pebble-7b@bf16~native}")
    for arm in ("w8a8", "bf16", "bf16~native"):
        assert "references go round in a circle: " in str(complaint(tmp_path, f"abacus/pebble-7b@{arm}", file=text))


def test_two_sources_of_one_name_are_refused_with_their_line(tmp_path: Path) -> None:
    source = "  - {name: engine, repository: https://example.org/engine, commit: " + "0" * 40 + "}\n"
    problem = complaint(tmp_path, file=CELL.replace("serve:\n", f"sources:\n{source}{source}serve:\n", 1))
    assert "pebble-7b.yaml:7: sources.1: there are two sources called engine" in str(problem)


@pytest.mark.parametrize("memory", [float("nan"), float("inf"), 1e308, 0.0, -1.0])
def test_a_memory_that_no_device_has_is_refused(memory: float) -> None:
    for cell in ("nvidia/qwq-32b@bf16~native", "cpu/tiny-qwq@bf16"):
        with pytest.raises(UsageError, match="no device has that"):
            plan_of(Matrix(), cell, Asked(memory=memory))


def test_a_layout_that_is_asked_for_takes_as_many_replicas_as_the_devices_hold() -> None:
    plan = plan_of(Matrix(), "nvidia/qwq-32b@bf16~native", Asked(devices=9, tensor_parallel_size=2, pipeline_parallel_size=2))
    assert plan.parallel == Parallel(tensor_parallel_size=2, pipeline_parallel_size=2, replicas=2)
    with pytest.raises(UsageError, match="nobody has so many devices"):
        plan_of(Matrix(), "nvidia/qwq-32b@bf16~native", Asked(tensor_parallel_size=10**12))


def test_what_is_asked_for_replaces_an_argument_in_any_of_its_spellings() -> None:
    args = plan_of(Matrix(), "nvidia/qwq-32b@bf16~native", Asked(args={"max_model_len": 4096})).serve.args
    assert args["max-model-len"] == 4096
    assert "max_model_len" not in args


def test_pins_that_no_folder_has_are_refused_with_the_line_that_names_them(tmp_path: Path) -> None:
    problem = complaint(tmp_path, file=CELL.replace("wheels/abacus.txt", "wheels/abakus.txt"))
    assert "pebble-7b.yaml:4: wheels: matrix file wheels/abakus.txt does not exist" in str(problem)
    assert str(tmp_path) in problem.next_step


def test_pins_that_are_a_folder_are_refused(tmp_path: Path) -> None:
    assert "4: wheels: wheels cannot be read" in str(complaint(tmp_path, file=CELL.replace("wheels/abacus.txt", "wheels")))


@pytest.mark.parametrize("name", ["api-key", "hf-token", "token", "API_KEY", "ssl-password"])
def test_an_argument_that_carries_a_secret_is_refused(name: str, tmp_path: Path) -> None:
    problem = complaint(tmp_path, file=CELL.replace("dtype: int8", f"{name}: hunter2"))
    assert f"pebble-7b.yaml:19: cells.w8a8.serve.args.{name}: looks like a secret" in str(problem)
    assert "hunter2" not in str(problem)
    problem = complaint(tmp_path, file=CELL.replace("dtype: auto", f"{name}: hunter2"))
    assert f"pebble-7b.yaml:7: serve.args.{name}: looks like a secret" in str(problem)


def test_an_argument_that_only_sounds_like_a_secret_is_let_through(tmp_path: Path) -> None:
    text = CELL.replace("dtype: auto", "max-num-batched-tokens: 64, tokenizer-mode: auto")
    plan = plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16")
    assert plan.serve.args["max-num-batched-tokens"] == 64


def test_without_a_precision_the_first_of_the_file_is_meant(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    assert precision_for(matrix, "abacus", "pebble-7b", None) == "abacus/pebble-7b@w8a8"
    assert precision_for(matrix, "abacus", "pebble-7b", "bf16~native") == "abacus/pebble-7b@bf16~native"


def test_our_own_matrix_is_sound() -> None:
    assert problems(Matrix()) == []


def test_every_problem_of_a_matrix_is_found_in_one_go(tmp_path: Path) -> None:
    text = CELL.replace("reference: abacus/pebble-7b@bf16", "reference: abacus/pebble-7b@fp8")
    text = text.replace("  bf16: {}", "  bf16: {}\n  fp8: {}")
    write(
        tmp_path,
        {
            "chips/abacus.yaml": CHIP,
            "chips/broken.yaml": "id: [",
            "models/abacus.yaml": "id: abacus\n",
            "cells/abacus/pebble-7b.yaml": text,
            "cells/abacus/tiny-qwq.yaml": "chip: abacus\nmodle: tiny-qwq\n",
        },
    )
    found = [str(problem) for problem in problems(Matrix((tmp_path,)))]
    for wanted in (
        "chips/broken.yaml:",
        "models/abacus.yaml:",
        "cells.fp8: chip abacus does not compute in fp8",
        "tiny-qwq.yaml:2: modle: unknown key",
    ):
        assert sum(wanted in text for text in found) == 1, (wanted, found)
    assert len(found) == 4


def test_a_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, {"chips/aaa.yaml": "", "chips/bbb.yaml": ""})
    assert len(problems(Matrix((tmp_path,)))) == 2
