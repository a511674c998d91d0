"""The VastAI guide as data: what it says stands in the matrix, what it does not say stands as unknown, and its contradictions are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.builders.engines import llmdeploy
from release.errors import StageError
from release.matrix.check import Asked, plan_of
from release.matrix.load import Matrix
from release.matrix.rules import concerns
from release.matrix.tensors import parameters
from release.types import Chip, Plan, Unknown

MODELS = ("qwq-32b", "qwq-32b-preview")
CELLS = tuple(f"vastai/{model}@{precision}" for model in MODELS for precision in ("fp16", "w8a16"))


def cell(name: str, asked: Asked | None = None) -> Plan:
    return plan_of(Matrix(), name, asked)


def chip() -> Chip:
    return Matrix().chip("vastai")


def test_both_models_are_offered_in_the_two_types_that_the_guide_builds() -> None:
    assert [name for name, file in Matrix().cells() if file.chip == "vastai"] == sorted(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_vamc_compiles_the_build_file_that_is_rendered_for_the_cell(name: str) -> None:
    made = cell(name)
    assert made.weights is not None
    assert made.weights.tool == "vamc"
    assert made.weights.commands == (("vamc", "compile", llmdeploy.build_name(made)),)
    assert llmdeploy.build_name(made) in llmdeploy.files(made)
    build = llmdeploy.build_file(made)
    assert build["name"] == f"{made.model.name}-{build['backend']['dtype']}-tp8-1024-2048"
    assert (build["frontend"]["model_kwargs"]["model_arch"], build["backend"]["type"]) == ("vacc", "tvm_vacc")
    assert [length for shape in build["frontend"]["shape"]["input_ids"] for length in shape] == [1024, 2048]


@pytest.mark.parametrize("model", MODELS)
def test_int8_is_calibrated_with_the_guides_sets(model: str) -> None:
    weights = cell(f"vastai/{model}@w8a16").weights
    assert weights is not None
    assert weights.type == "w8a16_gptq"
    assert [line.split()[0] for line in weights.calibration] == [
        "allenai/c4",
        "allenai/c4",
        "ceval/ceval-exam",
        "yahma/alpaca-cleaned",
    ]
    float16 = cell(f"vastai/{model}@fp16").weights
    assert float16 is not None
    assert float16.type is None
    assert not float16.calibration


@pytest.mark.parametrize("name", CELLS)
def test_the_packages_are_those_of_the_guides_tips(name: str) -> None:
    weights = cell(name).weights
    assert weights is not None
    assert weights.packages == {
        **{"protobuf": "3.20.3", "torch": "2.1.0", "onnx": "1.14.0", "onnxsim": "0.4.28", "onnxruntime": "1.13.1"},
        **{"accelerate": "0.25.0", "transformers": "4.40"},
    }
    assert chip().host.software == {"vamc": "v3.0+", "llmdeploy": "v1.6+"}


@pytest.mark.parametrize("name", CELLS)
def test_the_contradictions_of_the_guide_are_said_by_every_plan(name: str) -> None:
    said = " ".join(f"{conflict.says} {conflict.but}" for conflict in cell(name).conflicts)
    for word in ("per_channel int8", "w8a16_gptq", "4.40", "4.37.0", "vamc quant", "13696", "27648"):
        assert word in said


@pytest.mark.parametrize("name", CELLS)
def test_no_rule_of_the_vendor_is_broken(name: str) -> None:
    rules = {rule.id for rule in chip().rules}
    assert [concern for concern in concerns(cell(name)) if concern.rule in rules] == []


def test_the_rules_hidden_in_prose_are_found_when_they_are_broken() -> None:
    made = cell("vastai/qwq-32b@fp16")
    assert made.weights is not None
    assert parameters(made.model.architecture) > 32e9

    def broken(plan: Plan) -> set[str]:
        return {concern.rule for concern in concerns(plan)}

    build = {**made.weights.build, "frontend": {**made.weights.build["frontend"], "shape": {"input_ids": ((1000,), (2048,))}}}
    assert "compiled-lengths" in broken(made.model_copy(update={"weights": made.weights.model_copy(update={"build": build})}))
    assert "deep-stack" in broken(
        made.model_copy(
            update={"serve": made.serve.model_copy(update={"env": {}}), "weights": made.weights.model_copy(update={"env": {}})}
        )
    )
    assert "compiled-lengths" in broken(cell("vastai/qwq-32b@fp16", Asked(args={"max-model-len": 2040})))
    assert "aligned-heads" in broken(cell("vastai/qwq-32b@fp16", Asked(tensor_parallel_size=16)))
    assert not {"compiled-lengths", "deep-stack", "aligned-heads"} & broken(made)


@pytest.mark.parametrize("name", CELLS)
def test_the_server_is_not_started_with_what_nobody_has_said(name: str) -> None:
    made = cell(name)
    with pytest.raises(StageError, match="nobody has said") as caught:
        llmdeploy.command(made)
    for word in ("model_deploy_config", "tp_elf_path_list", "publish_port"):
        assert word in str(caught.value)
    assert llmdeploy.trials(made) == []
    assert [trial.dataset for trial in made.trials] == [
        "ShareGPT_V3_unfiltered_cleaned_split.json",
        "OpenCompassData-core-20240207",
    ]


def test_what_a_die_has_is_unknown_and_says_where_to_look() -> None:
    for device in chip().devices.values():
        assert isinstance(device.memory, Unknown)
        assert "vasmi" in device.memory.unknown
        assert "a card" in device.memory.unknown
    assert list(chip().devices) == ["va16", "va1l", "va10l"]


def test_the_image_is_got_from_the_vendor_and_not_invented() -> None:
    base = chip().base
    assert base is not None
    assert base.access is not None
    assert base.access.kind == "site"
    assert isinstance(base.access.name, Unknown)


def test_no_file_of_it_names_a_mirror_of_the_guides() -> None:
    folder = Path(__file__).parents[2] / "matrix"
    texts = [folder / "chips/vastai.yaml", *(folder / "cells/vastai").glob("*.yaml")]
    assert len(texts) == 3
    assert not [path for path in texts if "hf-mirror" in path.read_text(encoding="utf-8")]
