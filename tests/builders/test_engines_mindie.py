"""MindIE's files say what the guide and MindIE's documents say, and no value of a cell breaks out of its place in them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from literal import literally
from plans import QWEN2_72B, plan

from release.builders.engines import engine_named, health_of, mindie
from release.builders.engines.mindie_service import laid_over, service_config
from release.builders.image import dockerfile
from release.errors import MatrixError, StageError
from release.matrix.check import Asked, plan_of
from release.matrix.load import Matrix
from release.trial import reads_serve, serve
from release.types import Plan

Golden = Callable[[str, str], None]
CELL = "ascend-800i-a2/qwen2-72b@w8a16"
BOOLQ = {"dataset": "full_BoolQ"}
SPEED = {
    "cases": [[2048, 2048], [1024, 1024], [512, 512], [256, 256]],
    "env": {"HCCL_DETERMINISTIC": "false", "LCCL_DETERMINISTIC": "0", "HCCL_BUFFSIZE": "120"},
}
CHAT = {"chat": True, "trust-remote-code": True}


def served(*, of: dict[str, Any] | None = None, parallel: tuple[int, ...] = (8,), dtype: str = "bf16", **changes: Any) -> Plan:
    """A plan of an invented cell that MindIE-Service serves on eight devices."""
    made = plan(QWEN2_72B, engine="mindie", parallel=parallel, dtype=dtype, of={"family": "qwen2", **(of or {})})
    return literally(made, **{"features": ("mindie-service",), **changes})


def config(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(mindie.files(served(**changes))["conf/config.json"])
    return made


def inside(argv: list[str]) -> str:
    """What is run within the environment, as one writes it in a shell."""
    assert argv[:2] == ["bash", "/release/within.sh"]
    return " ".join(argv[3:])


# Golden files


def test_the_files_of_one_cell_are_the_golden_ones(golden: Golden) -> None:
    cell = plan_of(Matrix(), CELL, Asked(tensor_parallel_size=8))
    engine = engine_named("mindie")
    for name, text in engine.files(cell).items():
        golden(f"mindie/{name.replace('/', '-')}", text)
    lines = [engine.command(cell), mindie.chat(cell), *engine.trials(cell)]
    golden("mindie/commands", "".join(f"{shlex.join(line)}\n" for line in lines))
    packages = cell.weights.packages if cell.weights else {}
    labels = {"org.opencontainers.image.title": "mindie for ascend-800i-a2"}
    text = dockerfile(
        engine.TEMPLATE, base="unknown", note="not pinned yet", labels=labels, files=["within.sh"], packages=packages
    )
    golden("mindie/Dockerfile", text)


def test_every_cell_that_mindie_serves_has_files_a_command_and_its_trials() -> None:
    matrix, seen = Matrix(), 0
    for cell, file in matrix.cells():
        if file.engine == "mindie":
            made = plan_of(matrix, cell, Asked(tensor_parallel_size=max(file.world_sizes, default=1)))
            assert {"within.sh", "config-edits.json", "trials.sh"} <= set(mindie.files(made))
            assert mindie.command(made)[:2] == ["bash", "/release/within.sh"]
            assert len(mindie.trials(made)) == len(made.trials)
            seen += 1
    assert seen > 50


# The service


def test_the_configuration_names_the_model_its_devices_and_its_lengths() -> None:
    made = config(args={"served-model-name": "pebble", "max-model-len": 8192, "max-num-seqs": 16, "trust-remote-code": True})
    assert made["ServerConfig"]["port"] == 8000
    backend = made["BackendConfig"]
    assert backend["npuDeviceIds"] == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert backend["ModelDeployConfig"]["maxSeqLen"] == 8192
    assert backend["ModelDeployConfig"]["maxInputTokenLen"] == 8191
    (model,) = backend["ModelDeployConfig"]["ModelConfig"]
    assert model["modelName"] == "pebble"
    assert model["modelWeightPath"] == "/model"
    assert model["worldSize"] == 8
    assert model["trustRemoteCode"] is True
    assert (model["cpuMemSize"], model["npuMemSize"], model["backendType"]) == (5, -1, "atb")
    schedule = backend["ScheduleConfig"]
    assert (schedule["maxBatchSize"], schedule["maxPrefillBatchSize"]) == (16, 16)
    assert schedule["maxIterTimes"] == 8192, "at the documented 512 no long answer would end"
    assert schedule["maxPrefillTokens"] == 8192


def test_a_prompt_may_be_as_long_as_the_context_and_is_prefilled_in_one_go() -> None:
    made = config(args={"max-seq-len": 131072})["BackendConfig"]
    assert made["ModelDeployConfig"]["maxSeqLen"] == 131072
    assert made["ScheduleConfig"]["maxPrefillTokens"] == made["ModelDeployConfig"]["maxInputTokenLen"] == 131071
    assert config()["BackendConfig"]["ModelDeployConfig"]["maxSeqLen"] == QWEN2_72B.context


def test_each_replica_has_devices_of_its_own() -> None:
    made = config(parallel=(2, 1, 3))["BackendConfig"]
    assert made["npuDeviceIds"] == [[0, 1], [2, 3], [4, 5]]
    assert made["modelInstanceNumber"] == 3


def test_health_is_asked_on_the_port_that_clients_use() -> None:
    server = config(serve={"port": 9010})["ServerConfig"]
    assert server["managementPort"] == server["port"] == 9010
    assert server["managementIpAddress"] == server["ipAddress"] == "0.0.0.0"
    assert mindie.HEALTH == "/v2/health/ready"


def test_only_the_service_is_a_server() -> None:
    engine = engine_named("mindie")
    assert health_of(engine, served()) == mindie.HEALTH
    assert health_of(engine, served(features=("paged-attention",))) == ""
    for cell, file in Matrix().cells():
        if file.engine == "mindie":
            made = plan_of(Matrix(), cell)
            assert bool(reads_serve(made)["health"]) == ("conf/config.json" in mindie.files(made))


def test_a_cell_without_a_server_is_told_so_by_its_serve_stage() -> None:
    work = SimpleNamespace(reads=reads_serve(served(features=())))
    with pytest.raises(StageError, match="this cell has no server to validate"):
        serve(work)  # type: ignore[arg-type]


def test_on_the_hosts_own_network_it_listens_to_the_host_alone() -> None:
    server = config(container={"network": "host"})["ServerConfig"]
    assert server["ipAddress"] == "127.0.0.1"
    assert server["allowAllZeroIpListening"] is False


def test_a_model_larger_than_a_host_is_spread_over_hosts_with_a_rank_table() -> None:
    made = served(parallel=(16,))
    backend = service_config(made)["BackendConfig"]
    assert backend["multiNodesInferEnabled"] is True
    assert backend["npuDeviceIds"] == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert backend["ModelDeployConfig"]["ModelConfig"][0]["worldSize"] == 16
    assert "RANK_TABLE_FILE" in mindie.files(made)["within.sh"]
    assert "RANK_TABLE_FILE" not in mindie.files(served())["within.sh"]
    with pytest.raises(MatrixError, match="more than one host has"):
        mindie.command(served(parallel=(16,), features=()))
    with pytest.raises(MatrixError, match="start each by itself"):
        service_config(served(parallel=(16, 1, 2)))


def test_the_cell_has_the_last_word_on_the_configuration() -> None:
    over = {"ServerConfig": {"httpsEnabled": True, "tlsCaFile": ["ca.pem"]}, "LogConfig": {"dynamicLogLevel": "info"}}
    made = config(engine_config={"config": over})
    assert made["ServerConfig"]["httpsEnabled"] is True
    assert made["ServerConfig"]["port"] == 8000
    assert made["LogConfig"] == {"dynamicLogLevel": "info"}
    assert laid_over({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": {"d": 2}}) == {"a": [3], "b": {"c": 1, "d": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": {"max-modell-len": 1}}, "has no setting 'max-modell-len' \\(did you mean 'max-model-len'"),
        ({"args": {"worldSize": 4}}, "has no setting 'worldSize'"),
        ({"args": {"max-model-len": "8k"}}, "'8k' is not a int"),
        ({"args": {"truncation": 1}}, "1 is not a bool"),
        ({"args": {"max-model-len": 10, "maxSeqLen": 10}}, "said twice"),
        ({"args": {"max-model-len": 4096, "max-iter-times": 5000}}, "not between 1 and maxSeqLen 4096"),
        ({"args": {"max-model-len": 4096, "max-num-batched-tokens": 512}}, "less than a prompt may be long"),
        ({"args": {"served-model-name": "-x"}}, "is no name for MindIE-Service"),
        ({"args": {"served-model-name": "a b"}}, "is no name for MindIE-Service"),
        ({"serve": {"port": 80}}, "takes ports from 1024"),
        ({"parallel": (4, 2)}, "tensor parallel alone"),
        ({"engine_config": {"config": []}}, "is not a mapping"),
        ({"engine_config": {"attention": "none"}}, "'paged' or 'flash'"),
        ({"engine_config": {"visible-devices": "A B"}}, "not the name of an environment variable"),
        ({"engine_config": {"visible-devices": 1}}, "not the name of an environment variable"),
        ({"engine_config": {"service": "/a b"}}, "not an absolute path of plain signs"),
        ({"engine_config": {"service": "$(id)"}}, "not an absolute path of plain signs"),
        ({"engine_config": {"environment": ["/a\nid"]}}, "not an absolute path of plain signs"),
        ({"engine_config": {"model-type": "../x"}}, "no folder of examples/models"),
        ({"engine_config": {"model-type": 3}}, "no folder of examples/models"),
        ({"adapters": {"base": "/a"}}, "'base' cannot be an adapter's id"),
        ({"adapters": {"../a": "/a"}}, "cannot be an adapter's id"),
        ({"weights": {"config": {"torch_dtype": "float16"}}}, "computes in bf16"),
        ({"trials": [{}]}, "either a dataset or cases"),
        ({"trials": [{**BOOLQ, "cases": [[1, 1]]}]}, "either a dataset or cases"),
        ({"trials": [BOOLQ], "dtype": "fp32"}, "knows fp16 and bf16"),
    ],
)
def test_what_mindie_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MatrixError, match=message):
        mindie.files(served(**changes))


# run_pa and run_fa


def test_without_the_service_torchrun_starts_the_models_themselves() -> None:
    made = served(features=(), args=CHAT, parallel=(4,))
    assert inside(mindie.command(made)) == (
        "torchrun --nproc_per_node 4 --master_port 20030 -m examples.run_pa --model_path /model --is_chat_model --trust_remote_code"
    )
    assert "conf/config.json" not in mindie.files(made)


def test_an_embedding_model_is_started_as_one() -> None:
    made = served(features=(), args={"embedding": True, "max-num-seqs": 2, "max-model-len": 8192}, env={"MASTER_PORT": "20039"})
    assert inside(mindie.command(made)) == (
        "torchrun --nproc_per_node 8 --master_port 20039 -m examples.run_pa --model_path /model --is_embedding_model "
        "--max_batch_size 2 --max_position_embeddings 8192"
    )
    assert inside(mindie.chat(made)) == "bash examples/models/qwen/run_pa.sh -m /model -e true"


def test_the_chat_test_is_the_guides() -> None:
    assert (
        inside(mindie.chat(served(args=CHAT))) == "bash examples/models/qwen/run_pa.sh -m /model --trust_remote_code true -c true"
    )
    assert inside(mindie.chat(served(args={"trust-remote-code": True}))) == (
        "bash examples/models/qwen/run_pa.sh -m /model --trust_remote_code true"
    )


def test_flash_attention_is_asked_for_and_has_no_chat_mode() -> None:
    made = served(features=(), args=CHAT, engine_config={"attention": "flash"}, trials=[BOOLQ], dtype="fp16")
    assert "-m examples.run_fa --model_path /model --trust_remote_code" in inside(mindie.command(made))
    assert inside(mindie.chat(made)) == "bash examples/models/qwen/run_fa.sh -m /model"
    assert inside(mindie.trials(made)[0]).startswith("bash run.sh fa_fp16 ")


@pytest.mark.parametrize("args", [{"max-modell-len": 1}, {"chat": "yes"}])
def test_an_argument_that_run_pa_has_not_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(MatrixError, match=r"has no argument|is true or false"):
        mindie.command(served(features=(), args=args))


# Trials, as the guide prints them (its full-width space between `performance` and the pairs would make them one word)


@pytest.mark.parametrize(
    ("dtype", "devices", "trial", "line"),
    [
        ("fp16", 8, BOOLQ, "bash run.sh pa_fp16 full_BoolQ 1 qwen /model 8"),
        ("bf16", 8, BOOLQ, "bash run.sh pa_bf16 full_BoolQ 1 qwen /model 8"),
        ("fp16", 4, BOOLQ, "bash run.sh pa_fp16 full_BoolQ 1 qwen /model 4"),
        ("fp16", 8, {"dataset": "full_HumanEval_X"}, "bash run.sh pa_fp16 full_HumanEval_X 1 qwen /model 8"),
        ("fp16", 8, {**BOOLQ, "batch": 16}, "bash run.sh pa_fp16 full_BoolQ 16 qwen /model 8"),
        (
            "fp16",
            8,
            SPEED,
            "env HCCL_DETERMINISTIC=false LCCL_DETERMINISTIC=0 HCCL_BUFFSIZE=120 bash run.sh pa_fp16 performance "
            "[[2048,2048],[1024,1024],[512,512],[256,256]] 1 qwen /model 8",
        ),
    ],
)
def test_trials_are_the_guides_own_lines(dtype: str, devices: int, trial: dict[str, Any], line: str) -> None:
    (argv,) = mindie.trials(served(trials=[trial], dtype=dtype, parallel=(devices,)))
    assert argv[2] == "tests"
    assert inside(argv) == line


def test_the_script_of_trials_runs_the_chat_test_and_every_trial() -> None:
    made = served(args=CHAT, trials=[BOOLQ, SPEED])
    lines = mindie.files(made)["trials.sh"].replace(" \\\n  ", " ").splitlines()
    run = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert run == [mindie.chat(made), *mindie.trials(made)]


@pytest.mark.parametrize(
    ("family", "word"), [("qwen2", "qwen"), ("qwen2.5-coder", "qwen"), ("qwen3", "qwen"), ("deepseek-v3", "deepseek-v")]
)
def test_the_family_gives_the_vendors_word_for_the_model(family: str, word: str) -> None:
    assert mindie.model_type(served(of={"family": family})) == word
    assert mindie.model_type(served(of={"family": family}, engine_config={"model-type": "qwen"})) == "qwen"


# What the weights stage uses


def test_the_edits_of_config_json_are_the_type_and_what_the_recipe_says() -> None:
    weights = {"config": {"quantize": "w8a16", "quantization": {"group_size": 0}}}
    made = mindie.files(served(weights=weights, dtype="fp16"))["config-edits.json"]
    assert json.loads(made) == {"torch_dtype": "float16", "quantize": "w8a16", "quantization": {"group_size": 0}}
    yarn = {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}
    made = mindie.files(served(weights={"config": yarn}))["config-edits.json"]
    assert json.loads(made) == {"torch_dtype": "bfloat16", **yarn}


def test_adapters_lie_beside_the_weights_and_are_told_to_the_service() -> None:
    made = mindie.files(served(adapters={"pebble_lora1": "/adapters/1", "pebble-lora2": "/adapters/2"}))
    assert json.loads(made["lora_adapter.json"]) == {"pebble_lora1": "/adapters/1", "pebble-lora2": "/adapters/2"}
    modules = json.loads(made["conf/config.json"])["BackendConfig"]["ModelDeployConfig"]["LoraModules"]
    assert modules[0] == {"name": "pebble_lora1", "path": "/adapters/1", "baseModelName": "pebble-7b"}
    assert "lora_adapter.json" not in mindie.files(served())


# No value breaks out

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00")) | st.sampled_from(
    ["$(id)", "`id`", "a'b", 'a"b', "a\nexport B=1", "\\", "${HOME}", "; id", "{{ 1 }}", "$PWD/x", "</script>", "\u2028"]
)


def exported(text: str) -> dict[str, str]:
    """The variables that a script exports one a line, read as a shell reads them; words of several lines included."""
    part = text.partition("set some of it themselves.\n")[2].partition("\nexport MIES_CONFIG_JSON_PATH")[0]
    words = shlex.split(part)
    assert words[::2] == ["export"] * (len(words) // 2)
    return dict(word.split("=", 1) for word in words[1::2])


@given(TEXTS, TEXTS)
def test_no_value_of_the_environment_breaks_out_of_the_script(one: str, other: str) -> None:
    env = {"ONE": one, "OTHER": other}
    assert exported(mindie.files(served(env=env))["within.sh"]) == env


@given(TEXTS, st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.booleans(), max_size=3))
def test_no_text_breaks_out_of_the_json(path: str, edits: dict[str, Any]) -> None:
    edits.pop("torch_dtype", None)
    made = served(adapters={"a": path}, weights={"config": edits}, engine_config={"config": {"LogConfig": edits}})
    files = mindie.files(made)
    assert json.loads(files["lora_adapter.json"]) == {"a": path}
    assert json.loads(files["config-edits.json"]) == {"torch_dtype": "bfloat16", **edits}
    assert json.loads(files["conf/config.json"])["LogConfig"] == edits
    assert all(text.isascii() for name, text in files.items() if name.endswith(".json"))


@given(TEXTS)
def test_no_trial_breaks_out_of_its_line(text: str) -> None:
    made = served(trials=[{"dataset": text or "x", "env": {"A": text}}])
    script = mindie.files(made)["trials.sh"]
    lines = script.split("without --read-only.\n")[1].replace(" \\\n  ", " ")
    assert shlex.split(lines)[-len(mindie.trials(made)[0]) :] == mindie.trials(made)[0]


def test_the_variable_that_lists_devices_is_named_by_the_cell() -> None:
    assert exported(mindie.files(served(engine_config={"visible-devices": "VISIBLE"}))["within.sh"]) == {
        "VISIBLE": "0,1,2,3,4,5,6,7"
    }
    made = served(engine_config={"visible-devices": "VISIBLE"}, env={"VISIBLE": "4,5,6,7"})
    assert exported(mindie.files(made)["within.sh"]) == {"VISIBLE": "4,5,6,7"}


def test_a_source_to_install_is_refused_and_one_to_read_is_not() -> None:
    source = {"name": "pebbles", "repository": "https://example.org/pebbles", "commit": "a" * 40}
    assert mindie.files(served(sources=[source]))
    with pytest.raises(MatrixError, match="installs no source"):
        mindie.files(served(sources=[{**source, "install": ["."]}]))


@pytest.mark.integration
def test_a_real_shell_starts_the_daemon_in_the_environment_of_scripts_and_cell(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "set_env.sh").write_text('export FROM_SCRIPT="[$*]" HCCL_BUFFSIZE=1\nfalse\n')
    (tmp_path / "bin" / "daemon").write_text(
        '#!/bin/bash\necho "$PWD|$FROM_SCRIPT|$HCCL_BUFFSIZE|$EVIL|$MIES_CONFIG_JSON_PATH|$*"\n'
    )
    (tmp_path / "bin" / "daemon").chmod(0o755)
    where = {"environment": [f"{tmp_path}/set_env.sh"], "models": str(tmp_path), "daemon": f"{tmp_path}/bin/daemon"}
    text = mindie.files(served(engine_config=where, env={"HCCL_BUFFSIZE": "120", "EVIL": "$(id) 'x'"}))["within.sh"]
    (tmp_path / "within.sh").write_text(text)

    def run(*argv: str) -> tuple[int, str]:
        done = subprocess.run(["bash", str(tmp_path / "within.sh"), *argv], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert run("service", "--config-file", "x y") == (0, "/tmp|[]|120|$(id) 'x'|/release/conf/config.json|--config-file x y\n")
    assert run("models", "pwd") == (0, f"{tmp_path}\n")
    assert run("models", "sh", "-c", "exit 7") == (7, "")
    assert run("nowhere")[0] == 1
    (tmp_path / "set_env.sh").unlink()
    code, said = run("service")
    assert code == 1
    assert re.search("set_env.sh is not there: the base image is not the one", said)
