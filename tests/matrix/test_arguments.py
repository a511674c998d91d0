"""Serving arguments, in files and on the command line: none that the pipeline sets, no secret, and no value that is no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from folders import CELL, write

from release.errors import MatrixError, UsageError
from release.matrix.arguments import check_asked, wrong_value
from release.matrix.check import Asked, plan_of
from release.matrix.load import Matrix

WRONG: list[tuple[str, Any]] = [
    *(("max-model-len", value) for value in (0, -1, 10**10, 10**400, 4096.5, "4096", "32k", True, "auto")),
    *(("max_num_seqs", value) for value in (0, -8, 1.5, "many")),
    *(("gpu-memory-utilization", value) for value in (0, 9, 1.01, -0.5, "0.9", True, float("nan"), float("inf"))),
    *(("context-length", 0), ("max-running-requests", 0), ("mem-fraction-static", 2), ("maxSeqLen", -1)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_memory_cannot_be_reckoned_from_is_refused(name: str, value: Any) -> None:
    assert wrong_value(name, value)
    with pytest.raises(UsageError, match="is no"):
        check_asked({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("max-model-len", 1), ("max-num-seqs", 10**6), ("gpu-memory-utilization", 1), ("dtype", "auto"), ("seed", -1)],
)
def test_a_value_in_range_and_an_argument_that_nobody_knows_pass(name: str, value: Any) -> None:
    assert wrong_value(name, value) is None
    check_asked({name: value})


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("max-model-len: 0", "serve.args.max-model-len: 0 is no whole number from 1 to 1000000000"),
        ('max-model-len: "64"', "serve.args.max-model-len: '64' is no whole number from 1 to 1000000000"),
        (
            "max-model-len: 64, gpu-memory-utilization: 90",
            "gpu-memory-utilization: 90 is no share of the memory above 0 and up to 1",
        ),
        ('max-model-len: 64, served-model-name: ""', "serve.args.served-model-name: is empty"),
    ],
)
def test_a_wrong_value_in_a_file_is_told_with_its_line(said: str, wanted: str, tmp_path: Path) -> None:
    text = CELL.replace("max-model-len: 64", said)
    with pytest.raises(MatrixError) as caught:
        plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16")
    assert "pebble-7b.yaml:7: " in str(caught.value)
    assert wanted in str(caught.value)
    assert caught.value.next_step


def test_a_wrong_value_in_an_engines_configuration_is_told_with_its_line(tmp_path: Path) -> None:
    text = CELL.replace("serve:\n", "engine-config:\n  deep: {max_seq_len: none}\nserve:\n", 1)
    with pytest.raises(MatrixError, match=r"pebble-7b.yaml:6: engine-config.deep.max_seq_len: 'none' is no whole number"):
        plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("tensor-parallel-size", "use --tensor-parallel-size"),
        ("tp_size", "use --tensor-parallel-size"),
        ("pp", "use --pipeline-parallel-size"),
        ("port", "serve.port"),
        ("host", "the container's contract decides"),
        ("model", "the weights lie at /model"),
        ("nnodes", "the hosts follow"),
    ],
)
def test_what_the_pipeline_sets_is_refused_on_the_command_line_with_the_right_option(name: str, step: str) -> None:
    with pytest.raises(UsageError, match="is set by the pipeline") as caught:
        plan_of(Matrix(), "nvidia/qwq-32b@bf16~native", Asked(args={name: 4}))
    assert step in caught.value.next_step


def test_secrets_and_empty_values_are_refused_on_the_command_line() -> None:
    with pytest.raises(UsageError, match="looks like a secret") as caught:
        check_asked({"api-key": "abc123"})
    assert "abc123" not in str(caught.value)
    for args in ({"dtype": ""}, {"--dtype": "auto"}):
        with pytest.raises(UsageError) as caught:
            check_asked(args)
        assert caught.value.next_step == "write NAME=VALUE, as max-model-len=8192"


@pytest.mark.parametrize("name", ["api-key", "hf_token", "admin-password"])
def test_a_secret_among_the_arguments_of_a_file_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text = CELL.replace("max-model-len: 64", f"max-model-len: 64, {name}: abc123")
    with pytest.raises(MatrixError, match="looks like a secret") as caught:
        plan_of(Matrix((write(tmp_path, {"cells/abacus/pebble-7b.yaml": text}),)), "abacus/pebble-7b@bf16")
    assert f"pebble-7b.yaml:7: serve.args.{name}" in str(caught.value) and "abc123" not in str(caught.value)
