"""FlagScale's files say what the card says, its command is what its own rules come to, and no value breaks out of either."""

from __future__ import annotations

import re
import shlex
from typing import Any

import plans
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rendering import plan_named, rendered

from release.builders.engines import engine_named, flagscale
from release.errors import MatrixError
from release.types import Plan

QWQ = "cambricon/qwq-32b@bf16"
R1 = "cambricon/deepseek-r1@bf16"

EXPERIMENT = """\
defaults:
  - _self_
  - serve: serve_qwq_32b
experiment:
  exp_name: qwq_32b
  exp_dir: outputs/${experiment.exp_name}
  task:
    type: serve
  deploy:
    use_fs_serve: false
  runner:
    ssh_port: 22
  envs:
    CUDA_DEVICE_MAX_CONNECTIONS: 1
action: run
hydra:
  run:
    dir: ${experiment.exp_dir}/hydra
"""
SERVE = """\
- serve_id: vllm_model
  engine: vllm
  engine_args:
    model: /share/QwQ-32B # should be customized
    served_model_name: qwq-32b-flagos
    tensor_parallel_size: 8
    max_model_len: 32768
    pipeline_parallel_size: 1
    max_num_seqs: 8 # Even at full 32,768 context usage, 8 concurrent operations won't trigger OOM
    gpu_memory_utilization: 0.9
    port: 9010
    trust_remote_code: true
    enforce_eager: true
    enable_chunked_prefill: true
"""
"""What the card of QwQ-32B says to type into the two files."""


def missing(wanted: Any, found: Any, place: str = "") -> list[str]:
    """Return every place of `wanted` where `found` says nothing or something else."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [gone for key in wanted for gone in missing(wanted[key], found.get(key), f"{place}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            gone for number, pair in enumerate(zip(wanted, found, strict=True)) for gone in missing(*pair, f"{place}[{number}]")
        ]
    return [] if type(wanted) is type(found) and wanted == found else [place]


def plan(**changes: Any) -> Plan:
    return plans.plan(**{"engine": "flagscale", "engine_config": {}, **changes})


def documents(made: Plan) -> tuple[Any, Any]:
    """Return experiment and serve file of a plan as a YAML reader sees them."""
    files = flagscale.files(made)
    (config,) = [name for name in files if re.fullmatch(r"conf/[^/]+\.yaml", name)]
    (serve,) = [name for name in files if name.startswith("conf/serve/")]
    experiment = yaml.safe_load(files[config])
    assert experiment["defaults"][1]["serve"] == serve.removeprefix("conf/serve/").removesuffix(".yaml")
    return experiment, yaml.safe_load(files[serve])


# The card


def test_the_files_say_all_that_the_cards_blocks_say() -> None:
    files = flagscale.files(plan_named(QWQ))
    assert list(files) == ["conf/config_qwq_32b.yaml", "conf/serve/serve_qwq_32b.yaml"]
    experiment, serve = (yaml.safe_load(text) for text in files.values())
    assert missing(yaml.safe_load(EXPERIMENT), experiment) == []
    # The card's comment says of this one value that it should be customised: weights lie at /model here.
    assert missing(yaml.safe_load(SERVE), serve) == ["[0].engine_args.model"]
    assert serve[0]["engine_args"]["model"] == "/model"


def test_the_operators_that_the_card_claims_are_switched_on() -> None:
    made = plan_named(QWQ)
    assert documents(made)[0]["experiment"]["envs"]["USE_FLAGGEMS"] == 1
    assert made.serve.env["USE_FLAGGEMS"] == "1"
    assert any("USE_FLAGGEMS" in conflict.but for conflict in made.conflicts)


def test_the_defaults_name_the_file_that_is_there() -> None:
    for cell in (QWQ, R1, "nvidia/qwen3-32b@bf16"):
        documents(plan_named(cell))


def test_port_and_name_of_the_command_are_the_plans() -> None:
    for cell in (QWQ, R1, "nvidia/qwen3-32b@bf16"):
        made = plan_named(cell)
        line = flagscale.command(made)
        assert line[line.index("--port") + 1] == str(made.serve.port) == "9010"
        assert line[line.index("--served-model-name") + 1] == made.served_model_name
        assert flagscale.HEALTH == "/health"


# The rules of the command


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"max_model_len": 32768}, ["--max-model-len", "32768"]),
        ({"enforce_eager": True, "trust_remote_code": False}, ["--enforce-eager"]),
        ({"lora_modules": ["a=b", "c=d"]}, ["--lora-modules", "a=b", "c=d"]),
        ({"more": {"inner_key": 1, "flag": True}}, ["--inner-key", "1", "--flag"]),
        ({"empty": [], "none": {}}, ["--empty"]),
        ({"rate": 0.9, "text": "a b"}, ["--rate", "0.9", "--text", "a b"]),
        ({}, []),
    ],
)
def test_arguments_are_flattened_by_flagscales_rules(values: dict[str, Any], line: list[str]) -> None:
    assert flagscale.flatten_dict_to_args(values) == line


def test_what_is_ignored_is_ignored_below_too() -> None:
    assert flagscale.flatten_dict_to_args({"model": 1, "a": {"model": 2, "b": 3}}, ("model",)) == ["--b", "3"]


def test_the_command_is_the_serve_file_flattened() -> None:
    _, (item,) = documents(made := plan_named(QWQ))
    args = item["engine_args"]
    assert flagscale.command(made) == ["vllm", "serve", args["model"], *flagscale.flatten_dict_to_args(args, ("model",))]


def test_false_reaches_the_engine_where_flagscale_would_drop_it() -> None:
    made = plan(args={"enable-prefix-caching": False, "enforce-eager": True})
    _, (item,) = documents(made)
    assert item["engine_args"]["no_enable_prefix_caching"] is True
    assert "enable_prefix_caching" not in item["engine_args"]
    assert "--no-enable-prefix-caching" in flagscale.command(made)


def test_both_schemas_come_to_the_same_arguments() -> None:
    args = {"max-model-len": 64, "enforce-eager": True, "enable-prefix-caching": False}
    both = [plan(args=args, parallel=(2,), engine_config={"schema": schema, "name": "x"}) for schema in ("list", "model-args")]
    assert flagscale.command(both[0]) == flagscale.command(both[1])
    (_, (item,)), (_, old) = map(documents, both)
    told = old["model_args"][flagscale.SERVE_ID]
    switches = dict.fromkeys(told.pop("action-args"), True)
    told["model"] = told.pop("model-tag")
    assert {name.replace("-", "_"): value for name, value in {**told, **switches}.items()} == item["engine_args"]
    assert item["serve_id"] == "vllm_model"
    assert old["deploy"] == {"command_line_mode": True, "use_native_serve": False}


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}(-[a-z]{1,6}){0,2}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text and text != "???")
        | st.integers()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False),
        max_size=5,
    ),
    st.sampled_from(["list", "model-args"]),
)
def test_any_argument_reaches_the_engine_as_it_is(args: dict[str, Any], schema: str) -> None:
    args.pop("served-model-name", None)
    made = plan(args=args, engine_config={"schema": schema})
    _, serve = documents(made)
    said = serve[0]["engine_args"] if schema == "list" else serve["model_args"]["vllm_model"]
    line = flagscale.command(made)
    for name, value in args.items():
        if isinstance(value, bool):
            assert (f"--{name}" if value else f"--no-{name}") in line
        else:
            assert said[name.replace("-", "_") if schema == "list" else name] == value
            assert line[line.index(f"--{name}") + 1] == str(value)


def test_sglang_below_is_told_in_its_own_words() -> None:
    made = plan(args={"max-model-len": 64, "max-num-seqs": 4, "skip-tokenizer-init": False}, engine_config={"engine": "sglang"})
    line = flagscale.command(made)
    assert line[:5] == ["python3", "-m", "sglang.launch_server", "--model-path", "/model"]
    assert line[line.index("--context-length") + 1] == "64"
    assert line[line.index("--max-running-requests") + 1] == "4"
    assert not [word for word in line if "skip-tokenizer" in word]


# Port


@pytest.mark.parametrize(
    ("body", "serve", "args", "port"),
    [
        ({}, [], {}, 8000),
        ({}, [], {"port": 1}, 1),
        ({"deploy": {"port": 2}}, [], {"port": 1}, 2),
        ({"runner": {"deploy": {"port": 3}}}, [], {"port": 1}, 3),
        ({"runner": {}}, {"deploy": {"port": 4}}, {"port": 1}, 4),
    ],
)
def test_the_port_of_the_deployment_goes_before_the_engines(body: Any, serve: Any, args: Any, port: int) -> None:
    assert flagscale.served_port(body, serve, args) == port


def test_two_ports_in_one_plan_are_refused() -> None:
    config = {"experiment": {"runner": {"deploy": {"port": 9011}}}}
    with pytest.raises(MatrixError, match=r"deploy\.port 9011 goes before serve\.port, which is 8000"):
        flagscale.files(plan(engine_config=config))


# More hosts than one


def test_one_host_needs_neither_hostfile_nor_ray() -> None:
    assert not [name for name in flagscale.files(plan_named(QWQ)) if name.endswith((".sh", ".txt"))]
    assert flagscale.command(plan_named(QWQ))[0] == "vllm"


@pytest.mark.parametrize(("parallel", "count"), [((8, 1), 1), ((8, 2), 2), ((16, 2), 4), ((5, 2), 2)])
def test_the_hosts_are_as_many_as_the_devices_need(parallel: tuple[int, int], count: int) -> None:
    files = flagscale.files(plan(parallel=parallel, engine_config={}))
    lines = [line for line in files.get("conf/hostfile.txt", "").splitlines() if not line.startswith("#")]
    assert len(lines) == (count if count > 1 else 0)


def test_the_hostfile_is_one_that_flagscale_reads() -> None:
    files = flagscale.files(plan_named(R1))
    found = [
        re.match(r"^(\S+)\s+slots=(\d+)(?:\s+type=(\S+))?", line)
        for line in files["conf/hostfile.txt"].splitlines()
        if not line.startswith("#")
    ]
    assert [match and match.groups() for match in found] == [("192.0.2.1", "8", "gpu"), ("192.0.2.2", "8", "gpu")]


def test_the_switch_of_the_operators_reaches_every_rank() -> None:
    made = plan_named(R1)
    files = flagscale.files(made)
    experiment, _ = documents(made)
    assert experiment["experiment"]["cmds"]["before_start"] == ". /release/env.sh"
    assert experiment["experiment"]["runner"]["hostfile"] == "/release/conf/hostfile.txt"
    assert "export USE_FLAGGEMS=1\n" in files["env.sh"]
    for script in ("head.sh", "worker.sh"):
        assert ". /release/env.sh\n" in files[script]
    assert flagscale.command(made)[:3] == ["sh", "/release/head.sh", "vllm"]
    line = flagscale.command(made)
    assert line[line.index("--distributed-executor-backend") + 1] == "ray"


def test_a_kind_of_device_that_ray_has_no_argument_for_is_a_resource() -> None:
    files = flagscale.files(plan(engine_config={"hosts": {"count": 2, "slots": 4, "type": "abacus"}}))
    (line,) = [line for line in files["worker.sh"].splitlines() if "ray start" in line]
    assert shlex.split(line)[-1] == '--resources={"abacus": 4}'
    assert "192.0.2.2 slots=4 type=abacus" in files["conf/hostfile.txt"]


# Strangers


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a${b}", "$${x", "???"])
@pytest.mark.parametrize("place", ["args", "config"])
def test_what_hydra_would_resolve_is_refused(value: str, place: str) -> None:
    changes: dict[str, Any] = {"args": {"a": value}} if place == "args" else {"engine_config": {"experiment": {"a": [value]}}}
    with pytest.raises(MatrixError, match="would not stay as it is"):
        flagscale.files(plan(**changes))


@pytest.mark.parametrize("value", ["a b", "a\nb", "$(id)", "`id`", "a;b", "'", '"', "${x}", "é", "*"])
def test_a_variable_that_flagscales_script_would_tear_apart_is_refused(value: str) -> None:
    with pytest.raises(MatrixError, match=r"serve\.env\.A: FlagScale's runner cannot carry"):
        flagscale.files(plan(env={"A": value}))


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text("abc0159_%+=:,./@-"), max_size=4))
def test_what_is_carried_is_carried_whole(env: dict[str, str]) -> None:
    made = plan(env=env, engine_config={"hosts": {"count": 2}})
    experiment, _ = documents(made)
    assert {name: str(value) for name, value in experiment["experiment"].get("envs", {}).items()} == env
    exported = [shlex.split(line) for line in flagscale.files(made)["env.sh"].splitlines() if line.startswith("export")]
    assert dict(words[1].split("=", 1) for words in exported) == env
    assert all(len(words) == 2 for words in exported)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "", "a\n", ".x", 7, "x\u2028"])
@pytest.mark.parametrize("key", ["name", "serve", "config"])
def test_a_name_that_is_no_files_is_refused(key: str, name: Any) -> None:
    with pytest.raises(MatrixError, match=rf"engine-config\.{key}: .* cannot be the name of a file"):
        flagscale.files(plan(engine_config={key: name}))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"schemes": "list"}, "unknown key 'schemes'"),
        ({"schema": "older"}, "is none of list, model-args"),
        ({"schema": ["list"]}, "is none of list, model-args"),
        ({"engine": "trt"}, "is neither vllm nor sglang"),
        ({"experiment": "x"}, "is not a mapping"),
        ({"experiment": {"envs": {"A": 1}}}, r"the environment is serve\.env"),
        ({"item": {"engine_args": {"port": 1}}}, "would not reach the command"),
        ({"hosts": 2}, "is not a mapping of count, slots, type"),
        ({"hosts": {"count": 0}}, "is not a number of at least 1"),
        ({"hosts": {"count": True}}, "is not a number of at least 1"),
        ({"hosts": {"slots": "8"}}, "is not a number of at least 1"),
        ({"hosts": {"count": 2, "type": "a b"}}, "is not one word"),
    ],
)
def test_what_the_configuration_has_no_word_for_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MatrixError, match=complaint) as caught:
        flagscale.files(plan(engine_config=config))
    assert "abacus/pebble-7b@bf16" in str(caught.value)


def test_what_a_version_of_flagscale_wants_more_is_laid_over_what_is_made() -> None:
    config = {
        "experiment": {"runner": {"ssh_port": 2222, "no_shared_fs": True}, "task": {"inference_engine": "vllm"}},
        "item": {"resources": {"num_replicas": 1}},
    }
    experiment, (item,) = documents(plan(engine_config=config))
    assert experiment["experiment"]["runner"] == {"ssh_port": 2222, "no_shared_fs": True}
    assert experiment["experiment"]["task"] == {"type": "serve", "inference_engine": "vllm"}
    assert item["resources"] == {"num_replicas": 1}


def test_every_plan_of_the_matrix_with_this_engine_renders() -> None:
    assert engine_named("flagscale").trials(plan_named(QWQ)) == []
    for cell in (QWQ, R1, "nvidia/qwen3-32b@bf16"):
        assert rendered(plan_named(cell))["Dockerfile"].startswith("# The base image: not pinned yet")
