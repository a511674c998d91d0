"""vamc's build files and llmdeploy's configuration say what the vendor's own say, and nothing that nobody has said."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from literal import literally
from plans import QWQ, plan

from release.builders.engines import engine_named, llmdeploy
from release.builders.image import dockerfile
from release.errors import MatrixError, StageError, TemplateError
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.types import Plan

Golden = Callable[[str, str], None]
BUILD: dict[str, Any] = {
    "frontend": {"shape": {"input_ids": [[1024], [2048]]}, "model_kwargs": {"b2s": True, "model_arch": "abacus"}},
    "backend": {"type": "tvm_abacus", "merge_params": True, "compile": {"data_type": 0}},
    "workspace": {"workers": 4},
}
SERVER: dict[str, Any] = {
    "model": {
        "batch_size": 16,
        "model_deploy_config": "/model/pebble_deploy.json",
        "tp_elf_path_list": ["/opt/elf"],
        "publish_port": 7781,
    },
    "benchmark": {"test_txt": "/data/chats.json", "use_api": True},
    "eval": {"datasets_dir": "/data"},
}


def served(
    *, of: dict[str, Any] | None = None, parallel: tuple[int, ...] = (8,), precision: str = "fp16", **changes: Any
) -> Plan:
    """A plan of an invented cell that llmdeploy serves on eight dies."""
    made = plan(QWQ, engine="llmdeploy", precision=precision, dtype="fp16", parallel=parallel, of=of)
    return literally(made, **{"weights": {"tool": "vamc", "build": BUILD}, "engine_config": {"server": SERVER}, **changes})


def built(**changes: Any) -> dict[str, Any]:
    made = served(**changes)
    text: dict[str, Any] = yaml.safe_load(llmdeploy.files(made)[llmdeploy.build_name(made)])
    return text


def with_build(*keys: str, value: Any) -> dict[str, Any]:
    """The weights with one thing of their build changed."""
    changed = deepcopy(BUILD)
    part = changed
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return {"tool": "vamc", "build": changed}


# Golden files


def test_the_files_of_one_cell_are_the_golden_ones(golden: Golden) -> None:
    cell, engine = plan_of(Matrix(), "vastai/qwq-32b@w8a16"), engine_named("llmdeploy")
    for name, text in engine.files(cell).items():
        golden(f"llmdeploy/{name}", text)
    packages = cell.weights.packages if cell.weights else {}
    labels = {"org.opencontainers.image.title": "llmdeploy for vastai"}
    text = dockerfile(
        engine.TEMPLATE, base="unknown", note="not pinned yet", labels=labels, files=["llmdeploy.yaml"], packages=packages
    )
    golden("llmdeploy/Dockerfile", text)


def test_the_configuration_of_a_server_of_which_all_is_known_is_the_golden_one(golden: Golden) -> None:
    made = served(trials=[{"dataset": "chats.json"}, {"dataset": "OpenCompassData"}])
    golden("llmdeploy/llmdeploy.yaml", llmdeploy.files(made)["llmdeploy.yaml"])
    golden("llmdeploy/commands", "".join(f"{shlex.join(line)}\n" for line in (llmdeploy.command(made), *llmdeploy.trials(made))))


# The compiler's build file


def test_the_build_file_has_the_keys_and_values_of_the_vendors() -> None:
    assert built(of={"name": "QwQ-32B"}) == {
        "name": "QwQ-32B-fp16-tp8-1024-2048",
        "frontend": {
            "checkpoint": "$SRC",
            "type": "huggingface",
            "shape": {"input_ids": [[1024], [2048]]},
            "model_kwargs": {"b2s": True, "model_arch": "abacus", "tp": 8},
        },
        "backend": {"type": "tvm_abacus", "dtype": "fp16", "merge_params": True, "compile": {"data_type": 0}},
        "workspace": {"workers": 4, "path": "$DST"},
    }


def test_the_build_file_for_int8_says_how_it_is_quantised_and_nothing_else_differs() -> None:
    int8 = built(precision="w8a16", weights={"tool": "vamc", "type": "w8a16_gptq", "build": BUILD}, of={"id": "qwq-32b"})
    float16 = built()
    assert int8["frontend"].pop("quantize") == {"type": "w8a16_gptq"}
    assert int8["backend"].pop("dtype") == "int8"
    assert float16["backend"].pop("dtype") == "fp16"
    assert int8.pop("name") == float16.pop("name").replace("fp16", "int8")
    assert int8 == float16


def test_heads_are_aligned_where_the_cell_says_so() -> None:
    kwargs = {**BUILD["frontend"]["model_kwargs"], "align_qkv": True}
    assert built(weights=with_build("frontend", "model_kwargs", value=kwargs))["frontend"]["model_kwargs"]["align_qkv"] is True


def test_the_name_of_the_build_file_tells_model_and_type() -> None:
    assert llmdeploy.build_name(served(of={"id": "qwq-32b"})) == "hf_qwq-32b_fp16.yaml"
    assert llmdeploy.build_name(served(of={"id": "qwq-32b"}, precision="w8a16")) == "hf_qwq-32b_int8.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "w8a8"}, "vamc builds fp16 and w8a16, not w8a8"),
        ({"precision": "w8a16"}, "weights.type: is missing"),
        ({"weights": None}, "input_ids: is missing"),
        ({"weights": with_build("frontend", "shape", value={})}, "input_ids: is missing"),
        ({"weights": with_build("frontend", "model_kwargs", "tp", value=4)}, "tp: is 4, and the plan says 8"),
        ({"weights": with_build("backend", "dtype", value="int8")}, "dtype: is 'int8', and the plan says 'fp16'"),
        ({"args": {"max-model-len": 4096}}, "compiled for 2048 tokens"),
        ({"parallel": (4, 2)}, "tensor parallel alone"),
        ({"parallel": (4, 1, 2)}, "one replica"),
        ({"args": {"max-modell-len": 4096}}, "no serving argument 'max-modell-len'"),
        ({"engine_config": {"server": []}}, "not a mapping of sections"),
        ({"engine_config": {"server": {"model": 3}}}, "not a mapping of sections"),
        ({"engine_config": {"server": {"models": {}}}}, "no section 'models'"),
        ({"engine_config": {"server": {"api": {"server_port": 7863}}}}, "server_port: is 7863, and the plan says 8000"),
    ],
)
def test_what_cannot_be_built_or_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MatrixError, match=message):
        llmdeploy.files(served(**changes))


# The server


def test_the_server_is_started_from_a_configuration_that_follows_the_plan() -> None:
    made = served(args={"served-model-name": "pebble", "max-num-seqs": 16, "max-model-len": 2048, "max-answer-tokens": 1024})
    assert llmdeploy.command(made) == ["llmdeploy", "api", "/release/llmdeploy.yaml"]
    said = yaml.safe_load(llmdeploy.files(made)["llmdeploy.yaml"])
    assert said["api"] == {"server_host": "0.0.0.0", "server_port": 8000}
    assert said["model"] == {
        **{
            "batch_size": 16,
            "model_deploy_config": "/model/pebble_deploy.json",
            "tp_elf_path_list": ["/opt/elf"],
            "publish_port": 7781,
        },
        **{
            "model_name": "pebble",
            "max_answer_tokens": 1024,
            "model_infer_type": "tp",
            "tp_device_ids_list": [0, 1, 2, 3, 4, 5, 6, 7],
        },
    }


def test_what_nobody_has_said_starts_nothing_and_names_itself() -> None:
    server = {"model": {"batch_size": 16, "publish_port": {"unknown": "no paper says it"}, "elf": [{"unknown": "nor this"}]}}
    made = served(engine_config={"server": server})
    assert "llmdeploy.yaml" not in llmdeploy.files(made)
    with pytest.raises(StageError) as caught:
        llmdeploy.command(made)
    assert "nobody has said engine-config.server.model.publish_port (no paper says it), nor model.elf.0" in str(caught.value)
    assert "engine-config.command" in caught.value.next_step


def test_the_command_of_ones_own_installation_starts_it_all_the_same() -> None:
    server = {"model": {"publish_port": {"unknown": "no paper says it"}}}
    own = ["llmdeploy", "api", "/data/mine.yaml"]
    assert llmdeploy.command(served(engine_config={"server": server, "command": own})) == own
    for wrong in ("llmdeploy api", [], ["llmdeploy", 3], 3):
        with pytest.raises(MatrixError, match="is not a list of words"):
            llmdeploy.command(served(engine_config={"server": server, "command": wrong}))


def test_trials_are_offered_where_their_section_is_known() -> None:
    sets = [{"dataset": "chats.json"}, {"dataset": "OpenCompassData"}]
    assert llmdeploy.trials(served(trials=sets)) == [
        ["llmdeploy", "benchmark", "/release/llmdeploy.yaml"],
        ["llmdeploy", "eval", "/release/llmdeploy.yaml"],
    ]
    unknown = {**SERVER, "eval": {"datasets_dir": {"unknown": "where the data lies"}}}
    made = served(trials=sets, engine_config={"server": unknown})
    assert llmdeploy.trials(made) == [["llmdeploy", "benchmark", "/release/llmdeploy.yaml"]]
    assert "eval" not in yaml.safe_load(llmdeploy.files(made)["llmdeploy.yaml"])
    assert llmdeploy.trials(served(trials=sets, engine_config={})) == []
    with pytest.raises(MatrixError, match="not in a trial's cases"):
        llmdeploy.trials(served(trials=[{"cases": [[1, 1]]}]))


def test_a_source_to_install_is_refused() -> None:
    source = {"name": "pebbles", "repository": "https://example.org/pebbles", "commit": "a" * 40, "install": ["."]}
    with pytest.raises(MatrixError, match="installs no source"):
        llmdeploy.files(served(sources=[source]))


# No value breaks out

TEXTS = st.text() | st.sampled_from(
    [
        "a: b",
        "- x",
        "#x",
        "&a",
        "*a",
        "!!python/object",
        "null",
        "no",
        "1e3",
        "0x1",
        "2024-01-01",
        '"',
        "'",
        "a\nb: c",
        "\u2028",
        "\x85",
        "{{ 1 }}",
        "{",
        "$SRC",
    ]
)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_every_value_of_the_build_and_of_the_server_is_read_back_as_it_was(value: Any) -> None:
    server = {**SERVER, "benchmark": {"test_txt": value}}
    try:
        made = served(weights=with_build("backend", "compile", value=value), engine_config={"server": server})
        files = llmdeploy.files(made)
    except TemplateError:  # half a character, which UTF-8 cannot say
        return
    assert made.weights is not None
    assert yaml.safe_load(files[llmdeploy.build_name(made)])["backend"]["compile"] == value
    if "benchmark" in (read := yaml.safe_load(files["llmdeploy.yaml"])):
        assert read["benchmark"] == {"test_txt": value}


@given(TEXTS.filter(str.strip))
def test_no_model_name_breaks_out(name: str) -> None:
    try:
        assert built(of={"name": name})["name"] == f"{name}-fp16-tp8-1024-2048"
    except TemplateError:
        assert any("\ud800" <= sign <= "\udfff" for sign in name)
