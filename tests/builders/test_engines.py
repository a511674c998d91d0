"""What the engines that take the matrix's arguments as they are come to: command lines, scripts for several hosts, Dockerfiles."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import plans
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering import PIP, plan_named, rendered

from release.builders.engines import ENGINES, engine_named, flagscale, health_of, hosts, sglang, vllm
from release.builders.image import dockerfile
from release.errors import MatrixError, TemplateError
from release.templates.render import sources
from release.types import Plan

TEMPLATES = [engine.TEMPLATE for engine in (vllm, flagscale, sglang)]


def test_every_engine_of_the_table_offers_what_the_protocol_says() -> None:
    for name in ENGINES:
        engine = engine_named(name)
        assert engine.TEMPLATE in sources(engine.TEMPLATE)
        assert engine.HEALTH.startswith("/")
        assert all(callable(getattr(engine, part)) for part in ("command", "files", "trials"))
        assert health_of(engine, plans.plan()) in (engine.HEALTH, "")
    with pytest.raises(MatrixError, match="there is no engine 'trt'"):
        engine_named("trt")


# vLLM


def test_the_command_of_the_demo_stays_as_it_was() -> None:
    made = plan_named("cpu/tiny-qwq@bf16")
    assert vllm.command(made)[:9] == [
        "vllm",
        "serve",
        "/model",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--served-model-name",
        "tiny-qwq",
    ]
    assert vllm.files(made) == {}


def test_a_server_is_called_what_the_plan_says_it_is() -> None:
    for engine in (vllm, sglang, flagscale):
        for made in (plans.plan(), plans.plan(args={"served-model-name": "other"})):
            line = engine.command(made)
            assert line.count("--served-model-name") == 1
            assert line[line.index("--served-model-name") + 1] == made.served_model_name


def test_vllm_spans_hosts_with_ray_and_one_host_without() -> None:
    wide, narrow = plans.plan(parallel=(8, 2)), plans.plan(parallel=(8, 1))
    line = vllm.command(wide)
    assert line[:4] == ["sh", hosts.HEAD, "vllm", "serve"]
    assert line[line.index("--distributed-executor-backend") + 1] == "ray"
    assert set(vllm.files(wide)) == {"env.sh", "head.sh", "worker.sh"}
    assert vllm.command(narrow)[0] == "vllm"
    assert "--distributed-executor-backend" not in vllm.command(narrow)
    own = plans.plan(parallel=(8, 2), args={"distributed-executor-backend": "mp"})
    assert vllm.command(own).count("--distributed-executor-backend") == 1


# SGLang


def test_sglang_is_told_in_its_own_words() -> None:
    made = plans.plan(
        engine="sglang", parallel=(4, 2), args={"context-length": 64, "enable-metrics": True, "skip-tokenizer-init": False}
    )
    assert sglang.command(made) == [
        *("python3", "-m", "sglang.launch_server", "--model-path", "/model", "--host", "0.0.0.0", "--port", "8000"),
        *("--tp-size", "4", "--pp-size", "2", "--served-model-name", "pebble-7b", "--context-length", "64", "--enable-metrics"),
    ]
    assert sglang.files(made) == {}
    assert sglang.HEALTH == "/health"
    assert sglang.trials(made) == []


def test_sglang_starts_on_every_host_with_its_rank() -> None:
    made = plans.plan(engine="sglang", parallel=(16, 1))
    assert sglang.command(made)[:3] == ["sh", hosts.NODE, "python3"]
    assert "--nnodes 2" in sglang.files(made)["node.sh"]


# Several hosts


@given(
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(st.characters(exclude_characters="\0", codec="utf-8")))
)
def test_an_environment_file_holds_every_value_whole(env: dict[str, str]) -> None:
    words = shlex.split(hosts.environment(env), comments=True)
    assert words == [word for name, value in env.items() for word in ("export", f"{name}={value}")]


@pytest.mark.integration
def test_a_real_shell_reads_the_environment_and_starts_engine_and_ray(tmp_path: Path) -> None:
    evil = 'a\'b "$(touch pwned)" `id` ${x}\nexport A=2 é'
    made = plans.plan(parallel=(8, 2), env={"A": evil}, engine_config={"hosts": {"slots": 8, "type": "abacus"}})
    tell = f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.environ['A'], sys.argv[1:]]))\n"
    for name, text in {**vllm.files(made), "ray": tell, "vllm": tell}.items():
        (tmp_path / name).write_text(text.replace("/release/", f"{tmp_path}/"))
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*line: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = {**environment, **more}
        return subprocess.run([*line], capture_output=True, text=True, env=done, cwd=tmp_path, check=False)

    command = [word.replace("/release/", f"{tmp_path}/") for word in vllm.command(made)]
    head = [json.loads(line) for line in run(*command).stdout.splitlines()]
    assert head == [[evil, ["start", "--head", "--port=6379", '--resources={"abacus": 8}']], [evil, command[3:]]]
    (known, _) = [json.loads(line) for line in run(*command, HEAD_ADDRESS="192.0.2.1").stdout.splitlines()]
    assert known[1][:3] == ["start", "--head", "--node-ip-address=192.0.2.1"]
    worker = run("sh", f"{tmp_path}/worker.sh", HEAD_ADDRESS="192.0.2.1")
    assert json.loads(worker.stdout)[1] == ["start", "--block", "--address=192.0.2.1:6379", '--resources={"abacus": 8}']
    lost = run("sh", f"{tmp_path}/worker.sh")
    assert lost.returncode != 0
    assert "is the address of the first host" in lost.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.integration
def test_a_real_shell_gives_sglang_its_rank(tmp_path: Path) -> None:
    made = plans.plan(engine="sglang", parallel=(16, 1))
    (tmp_path / "node.sh").write_text(sglang.files(made)["node.sh"])
    line = ["sh", f"{tmp_path}/node.sh", "echo", "a b"]
    env = {"PATH": os.environ["PATH"], "NODE_RANK": "1", "HEAD_ADDRESS": "192.0.2.1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "a b --nnodes 2 --node-rank 1 --dist-init-addr 192.0.2.1:29500\n"


# Dockerfiles


def image(template: str, **values: Any) -> str:
    return dockerfile(template, **{"base": "base:1", "labels": {"a": "b"}, **values})


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_makers_base_keeps_its_python_its_user_and_its_path(template: str) -> None:
    text = image(template)
    assert text.splitlines()[0] == "FROM base:1"
    assert "wheels" not in text
    assert "USER" not in text
    assert "PATH=" not in text.replace("PYTHONPATH", "")
    assert text.endswith("ENTRYPOINT []\n")
    assert "None" not in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_sources_are_installed_one_after_the_other_without_a_network(template: str) -> None:
    made = [{"name": "one", "install": ("core", "core/plugin", ".")}, {"name": "two", "install": ()}]
    text = image(template, sources=made)
    assert [line for line in text.splitlines() if line.startswith("COPY")] == ["COPY sources/one/ /src/one/"]
    runs = [run.split("\n\n")[0] for run in text.split("RUN ")[1:]]
    assert [shlex.split(run.replace("\\\n", " "))[-1] if run.count("\n") < 5 else "" for run in runs][:2] == [
        "/src/one/core",
        "/src/one/core/plugin",
    ]
    for run in runs:
        assert all(flag in run for flag in ("--no-index", "--no-deps", "--no-build-isolation", "python3 -m pip install"))
    assert "/src/one\n" in text


def test_wheels_join_what_a_makers_base_brings_but_for_vllm() -> None:
    texts = {template: image(template, wheels=[PIP], sources=[{"name": "a", "install": (".",)}]) for template in TEMPLATES}
    assert "--system-site-packages" not in texts[vllm.TEMPLATE]
    for text in texts.values():
        assert "--require-hashes" in text
        assert "pip-26.0-py3-none-any.whl/pip --python /opt/release/bin/python3 install --quiet" in text
        assert text.endswith("USER 10001:10001\n")
    assert "--system-site-packages" in texts[flagscale.TEMPLATE]


@pytest.mark.parametrize("bad", ["a b", "a;b", "$(id)", "a\nRUN id", "", "-x"])
def test_a_folder_or_name_that_is_not_one_word_is_refused(bad: str) -> None:
    for made in ({"name": "a", "install": (bad,)}, {"name": bad, "install": (".",)}):
        with pytest.raises(TemplateError):
            image(flagscale.TEMPLATE, sources=[made])


def check_of(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith('RUN ["python3"')]
    return list(json.loads(line.removeprefix("RUN ")))


@pytest.mark.integration
def test_the_versions_that_the_base_must_bring_are_checked_when_it_is_built() -> None:
    pyyaml = next(line.split("==")[1] for line in _installed() if line.lower().startswith("pyyaml=="))

    def run(**packages: str) -> subprocess.CompletedProcess[str]:
        _, *argv = check_of(image(flagscale.TEMPLATE, packages=packages))
        return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)

    assert run(pyyaml=pyyaml).returncode == 0
    assert run(pyyaml=f"{pyyaml}.0.0").returncode == 0
    wrong = run(pyyaml="0.1")
    assert wrong.returncode != 0
    assert f"pyyaml {pyyaml}, wanted 0.1" in wrong.stderr
    assert run(nowhere="1").returncode != 0


def _installed() -> list[str]:
    line = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


@given(st.text(), st.text())
def test_no_version_gets_out_of_its_place(name: str, version: str) -> None:
    try:
        text = image(flagscale.TEMPLATE, packages={name: version})
    except TemplateError:
        return
    assert check_of(text)[3:] == [f"{name}=={version}"]


@given(st.text())
def test_a_note_stays_a_comment(note: str) -> None:
    lines = image(flagscale.TEMPLATE, note=note).splitlines()
    assert next(line.split()[0] for line in lines if line and not line.startswith("#")) == "FROM"
    assert len([line for line in lines if line.startswith("#")]) == (1 if note else 0)


def test_the_templates_that_one_is_made_from_count_for_its_key() -> None:
    assert set(sources(flagscale.TEMPLATE)) == {flagscale.TEMPLATE, "Dockerfile.serving.j2"}


# Golden files


def sglang_plan() -> Plan:
    return plans.plan(
        engine="sglang", parallel=(8, 2), args={"context-length": 32768, "mem-fraction-static": 0.9}, packages={"sglang": "0.5.0"}
    )


@pytest.mark.parametrize(
    ("folder", "cell"),
    [
        ("flagscale", "cambricon/qwq-32b@bf16"),
        ("flagscale-hosts", "cambricon/deepseek-r1@bf16"),
        ("flagscale-sglang", "nvidia/qwen3-32b@bf16"),
        ("vllm", "nvidia/qwq-32b@bf16~native"),
        ("sglang", ""),
    ],
)
def test_what_is_rendered_for_a_cell_is_the_golden_one(folder: str, cell: str, golden: Any) -> None:
    for name, text in rendered(plan_named(cell) if cell else sglang_plan()).items():
        golden(f"{folder}/{name}", text)
