"""Tools of others are driven as their guides say, and nothing is made up where one is missing, fails, or makes something that is not sound."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from release.builders.weights.drivers import TOOLS, Presence, filled, prepare, presence, skipped, told
from release.builders.weights.make import LOG, make
from release.builders.weights.recipe import Recipe, recipe_for
from release.errors import StageError
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.progress import Line, Plain
from release.types import JSON, tuples

TINY = Path(__file__).parents[3] / "matrix" / "checkpoints" / "tiny-qwq"
TEXTS = "questions/two-digit-addition-calibration.jsonl"


def quiet() -> Line:
    return Plain(io.StringIO()).line("cell", "weights")


def recipe(**facts: Any) -> Recipe:
    said = {"upstream": "fp32", "precision": "w8a8", "dtype": "bf16", "tool": "copier", **facts}
    return Recipe.model_validate(tuples(said))


def source(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": (6, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.layers.0.mlp.down_proj.weight": (4, 8),
    }
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, folder / "model.safetensors")
    said = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 6, "torch_dtype": "float32", **config}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text('{"of": "the source"}')
    return folder


# Commands


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("$SRC", "/in"),
        ("$DST-w8a8s", "/out-w8a8s"),
        ("$LLM_PATH/examples/models/qwen/convert_quant_weight.sh", "/atb/examples/models/qwen/convert_quant_weight.sh"),
        ("$UNKNOWN/x", "$UNKNOWN/x"),
        ("$(reboot); `ls` $src ${SRC}", "$(reboot); `ls` $src ${SRC}"),
    ],
)
def test_only_names_of_values_mean_anything_in_a_word(word: str, result: str) -> None:
    values = {"SRC": "/in", "DST": "/out", "LLM_PATH": "/atb"}
    assert filled(word, values) == result


def test_a_record_has_placeholders_where_our_folders_were() -> None:
    assert (
        told("--save /tmp/x/made-w8a8s /tmp/x/other", {"DST": "/tmp/x/made", "SCRATCH": "/tmp/x", "EMPTY": ""})
        == "--save $DST-w8a8s $SCRATCH/other"
    )


def cell(name: str) -> Recipe:
    return recipe_for(plan_of(Matrix(), name))


def test_a_vendors_two_steps_become_two_commands_with_a_folder_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PATH", "/atb")
    asked = next(
        one for one in cells() if len(one.commands) == 2 and one.precision == "w8a8sc" and "$LLM_PATH" in one.commands[0][1]
    )
    (tmp_path / "scratch").mkdir()
    job = prepare(asked, Presence(TOOLS[asked.tool]), source(tmp_path / "in"), tmp_path / "scratch", {})
    assert job.commands[0][:2] == ("bash", "/atb/examples/models/qwen/convert_quant_weight.sh")
    between = str(tmp_path / "scratch" / "made-w8a8s")
    assert between in job.commands[0]
    assert between in job.commands[1]
    assert (job.cwd, job.env["PYTHONPATH"].split(":")[0]) == (Path("/atb"), "/atb")
    assert job.env["IGNORE_INFER_ERROR"] == "1"
    given = json.loads((tmp_path / "scratch" / "source" / "config.json").read_bytes())
    assert given["torch_dtype"] == "float16", "the guide has it set before the first step"
    assert json.loads((tmp_path / "in" / "config.json").read_bytes())["torch_dtype"] == "float32"


def test_a_build_file_is_written_where_its_compiler_runs_with_its_paths_filled_in(tmp_path: Path) -> None:
    asked = next(one for one in cells() if one.tool == "vamc")
    (tmp_path / "scratch").mkdir()
    job = prepare(asked, Presence(TOOLS["vamc"]), source(tmp_path / "in"), tmp_path / "scratch", {})
    text = (job.cwd / job.commands[0][2]).read_text()
    assert str(tmp_path / "scratch" / "source") in text
    assert str(job.made) in text
    assert "$" not in text


def cells() -> Iterator[Recipe]:
    matrix = Matrix()
    return (recipe_for(plan_of(matrix, name)) for name, _ in matrix.cells())


def test_every_tool_of_the_matrix_is_one_that_we_know() -> None:
    assert {one.tool for one in cells()} == {"release", *TOOLS}


# Where a tool is missing: these tests start the interpreter that they ask


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without any tool: no variable names one."""
    for tool in TOOLS.values():
        monkeypatch.delenv(tool.variable, raising=False)
    monkeypatch.delenv("LLM_PATH", raising=False)


@pytest.mark.integration
@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("facts", "missing", "step"),
    [
        ({"tool": "msmodelslim"}, "msmodelslim is not installed", "RELEASE_MSMODELSLIM"),
        ({"tool": "vamc", "commands": [["vamc", "compile", "x"]]}, "needs the program vamc", "RELEASE_VAMC"),
        ({"tool": "llm-compressor"}, "llm-compressor is not installed", "pip install llmcompressor"),
        ({"tool": "nobodys-tool"}, "needs the program nobodys-tool|nobodys-tool", "install nobodys-tool"),
        ({"commands": [["bash", "$NOWHERE_AT_ALL/x.sh"]]}, r"\$NOWHERE_AT_ALL, which is not set", "set NOWHERE_AT_ALL"),
        ({"commands": [["bash", "-m", "examples.convert.x"]]}, r"\$LLM_PATH, which is not set", "set LLM_PATH"),
        ({"commands": [["bash"]], "packages": {"numpy": "0.0.1"}}, "the recipe says 0.0.1", "numpy==0.0.1"),
        ({"commands": [["bash"]], "packages": {"no-such-thing": "1"}}, "not installed here", "no-such-thing==1"),
    ],
)
def test_a_missing_tool_is_named_with_what_to_install(facts: JSON, missing: str, step: str, tmp_path: Path) -> None:
    asked = recipe(**facts)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match=missing) as caught:
        make(asked, source(tmp_path / "in"), tmp_path / "out", line=quiet(), scratch=tmp_path / "scratch", log=tmp_path / LOG)
    assert step in caught.value.next_step
    assert list((tmp_path / "out").iterdir()) == []
    said = skipped(asked) or ""
    assert said.startswith("SKIPPED: ")
    assert step in said


@pytest.mark.integration
def test_a_variable_that_names_no_interpreter_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEASE_LLMCOMPRESSOR", "/nowhere/bin/python")
    assert "no interpreter" in presence(recipe(tool="llm-compressor")).missing


@pytest.mark.integration
def test_another_version_than_the_recipes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from release.builders.weights import drivers

    known = {**TOOLS, "copier": drivers.Tool("copier", "numpy", "", "install numpy")}
    monkeypatch.setattr(drivers, "TOOLS", known)
    monkeypatch.setenv("RELEASE_COPIER", sys.executable)
    assert presence(recipe(version="0.0.1")).missing == f"numpy is {np.__version__} here, and the recipe says 0.0.1"
    here = presence(recipe(version=np.__version__))
    assert (here.missing, here.version) == ("", np.__version__)


# What a tool makes: a shell script stands in for one, and is really run

QUANTISE = """
set -eu
while [ $# -gt 0 ]; do case $1 in -src) src=$2;; -dst) dst=$2;; esac; shift 2; done
echo "reading $src"
mkdir -p "$dst"
cp "$src"/*.safetensors "$src/config.json" "$dst"
"""


def run(tmp_path: Path, script: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, **facts: Any) -> JSON:
    monkeypatch.setenv("TOOLS_PATH", str(tmp_path))
    (tmp_path / "convert.sh").write_text(script)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    if not (tmp_path / "in").exists():
        source(tmp_path / "in")
    asked = recipe(commands=commands, **facts)
    return make(asked, tmp_path / "in", tmp_path / "out", line=quiet(), scratch=tmp_path / "scratch", log=tmp_path / LOG)


STEP = ["bash", "$TOOLS_PATH/convert.sh", "-src", "$SRC", "-dst", "$DST"]


@pytest.mark.integration
def test_a_tool_is_run_its_result_completed_checked_and_its_words_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run(
        tmp_path,
        QUANTISE,
        [STEP],
        monkeypatch,
        config={"quantize": "w8a8", "rope_scaling": None},
        files={"lora_adapter.json": "{}\n"},
    )
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_bytes())["quantize"] == "w8a8"
    assert (out / "tokenizer.json").read_text() == '{"of": "the source"}', "the tool forgot it"
    assert (out / "lora_adapter.json").read_text() == "{}\n"
    assert facts["files"].keys() == {"config.json", "model.safetensors", "tokenizer.json", "lora_adapter.json"}
    assert facts["commands"] == [["bash", "$TOOLS_PATH/convert.sh", "-src", "$SRC", "-dst", "$DST"]]
    log = (tmp_path / LOG).read_text()
    assert "reading $SRC" in log
    assert str(tmp_path) not in log
    assert facts["log"]["bytes"] == len(log.encode())
    assert "quantize" not in (tmp_path / "in" / "config.json").read_text()


@pytest.mark.integration
def test_two_steps_hand_on_what_the_first_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [*STEP[:-1], "$DST-between"]
    run(tmp_path, QUANTISE, [first, ["bash", "$TOOLS_PATH/convert.sh", "-src", "$DST-between", "-dst", "$DST"]], monkeypatch)
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo all is lost; exit 7", "bash ended with status 7"),
        ("exit 0", "ended well and wrote nothing"),
        (QUANTISE + 'truncate -s -4 "$dst/model.safetensors"', "not a sound safetensors file"),
        (QUANTISE + 'printf "{}" > "$dst/quant_model_description.json"', "has no entry"),
        (QUANTISE + 'touch "$dst/pytorch_model.bin"', "is a pickle"),
    ],
)
def test_a_tool_that_fails_or_makes_something_unsound_is_an_error(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError) as caught:
        run(tmp_path, script, [STEP], monkeypatch)
    assert reason in f"{caught.value} {caught.value.next_step}"


@pytest.mark.integration
def test_a_config_of_another_model_is_found_before_the_tool_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path / "in", intermediate_size=13696)
    with pytest.raises(StageError, match="does not fit its config"):
        run(tmp_path, f"touch {tmp_path}/ran", [STEP], monkeypatch)
    assert not (tmp_path / "ran").exists()


@pytest.mark.integration
def test_weights_that_were_cut_are_checked_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = QUANTISE + 'for n in 0 1; do mkdir "$dst/part$n-of-2"; cp "$dst"/*.* "$dst/part$n-of-2"; done; rm "$dst"/*.safetensors'
    facts = run(tmp_path, cut, [STEP], monkeypatch, split=2)
    assert {"part0-of-2/model.safetensors", "part1-of-2/model.safetensors"} <= facts["files"].keys()


@pytest.mark.integration
def test_weights_cut_for_other_devices_than_the_recipe_says_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = QUANTISE + 'mkdir "$dst/part0-of-1"; mv "$dst"/*.* "$dst/part0-of-1"'
    with pytest.raises(StageError, match="for 1 devices, and the recipe says 2"):
        run(tmp_path, cut, [STEP], monkeypatch, split=2)


# llm-compressor, for real

COMPRESSOR = os.environ.get("RELEASE_LLMCOMPRESSOR", "")
needs_compressor = pytest.mark.skipif(
    not COMPRESSOR,
    reason="RELEASE_LLMCOMPRESSOR names no interpreter: python -m venv VENV && VENV/bin/pip install llmcompressor datasets, "
    "then RELEASE_LLMCOMPRESSOR=VENV/bin/python",
)

READ = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
folder = Path(sys.argv[1])
said = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
scheme = next(iter(said.config_groups.values()))
tensors = load_file(folder / "model.safetensors")
compressor = BaseCompressor.get_value_from_registry(said.format)
source = load_file(sys.argv[2])
worst = 0.0
for name in source:
    if not name.endswith("_proj.weight"):
        continue
    module = name.removesuffix(".weight")
    parts = {word.rpartition(".")[2]: value for word, value in tensors.items() if word.startswith(module + ".")}
    weight = compressor.decompress(parts, scheme)["weight"].float()
    worst = max(worst, float((weight - source[name]).abs().max() / source[name].abs().max()))
print(json.dumps({"format": said.format, "ignore": said.ignore, "worst": worst}))
"""


def as_the_library_reads(folder: Path) -> JSON:
    """What the compressed-tensors library makes of a checkpoint: its declaration, and the largest error of its weights as a share."""
    said = subprocess.run(
        [COMPRESSOR, "-c", READ, str(folder), str(TINY / "model.safetensors")], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    found: JSON = json.loads(said.stdout.splitlines()[-1])
    return found


@pytest.mark.integration
@needs_compressor
@pytest.mark.parametrize(("precision", "group", "worst"), [("w8a8", 128, 1 / 254), ("fp8", 128, 1 / 28), ("w4a16", 32, 1 / 13.9)])
def test_the_reference_library_reads_our_formats(precision: str, group: int, worst: float, tmp_path: Path) -> None:
    asked = Recipe.model_validate({"upstream": "fp32", "precision": precision, "dtype": "bf16", "group": group})
    make(asked, TINY, tmp_path / "out", line=quiet())
    found = as_the_library_reads(tmp_path / "out")
    assert found["ignore"] == ["lm_head"]
    assert 0 < found["worst"] <= worst * 1.01


@pytest.mark.integration
@needs_compressor
@pytest.mark.parametrize("scheme", ["gptq-w4a16", "awq-w4a16", "w8a8"])
def test_llm_compressor_calibrates_the_tiny_model_on_this_machine(scheme: str, tmp_path: Path) -> None:
    asked = recipe(
        **{"tool": "llm-compressor", "precision": scheme[-5:].lstrip("-"), "type": scheme, "group": 32},
        calibration=[TEXTS],
        build={"samples": 32, "length": 64},
    )
    for folder in ("scratch", "out"):
        (tmp_path / folder).mkdir()
    texts = {TEXTS: Matrix().file(TEXTS)}
    facts = make(asked, TINY, tmp_path / "out", line=quiet(), scratch=tmp_path / "scratch", log=tmp_path / LOG, files=texts)
    assert facts["tool-version"]
    assert facts["settings"]["scheme"] == scheme
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / LOG).read_text()
    said = json.loads((tmp_path / "out" / "config.json").read_bytes())["quantization_config"]
    assert said["format"] == ("int-quantized" if scheme == "w8a8" else "pack-quantized")


@pytest.mark.integration
@needs_compressor
def test_calibrating_without_texts_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with pytest.raises(StageError, match="names no texts") as caught:
        make(
            recipe(tool="llm-compressor"), TINY, tmp_path / "out", line=quiet(), scratch=tmp_path / "scratch", log=tmp_path / LOG
        )
    assert "weights.calibration" in caught.value.next_step
