"""What the three FlagOS cards say stands in the matrix: their tables as printed, how they start a container, what they leave unsaid."""

from __future__ import annotations

import re
from typing import Final

import pytest

from release.builders.engines import engine_named
from release.launch import run_command
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.types import Access, Base, GitSource, Plan, Unknown

QWQ: Final = """\
| Metrics          | QwQ-32B-H100-CUDA   | QwQ-32B-FlagOS-Cambricon |
| GSM8K (EM)       | 72.78                   |  72.63                            |
| MMLU (Acc.)      | 79.75                   |  80.02                            |
| CEVAL            | 85.07                   |  85.36                           |
| AIME 2025(Pass@1)| 80.00     |  80.00           |
| GPQA-Diamond (Pass@1)| 64.14  |  62.63         |
| MATH-500 (Pass@1)| 94.20  |  94.60              |
"""
R1: Final = """\
| Metrics          | DeepSeek-R1-H100-CUDA   | DeepSeek-R1-FlagOS-Cambricon-BF16 |
| GSM8K (EM)       | 95.75                   |  95.15                            |
| MMLU (Acc.)      | 85.34                   |  85.61                            |
| CEVAL            | 89.00                   |  89.38                            |
| AIME 2025(Pass@1)| 76.67     |  73.33           |
| GPQA-Diamond (Pass@1)| 70.20  |  73.23         |
| MATH-500 (Pass@1)| 93.20  |  92.60              |
"""
QWEN3: Final = """\
| Metrics           | Qwen3-32B-H100-CUDA | Qwen3-32B-FlagOS |
| AIME_0fewshot_@avg1 | 0.800 | 0.800 |
| GPQA_0fewshot_@avg1 | 0.608 | 0.612 |
| LiveBench-0fewshot_@avg1 | 0.591 | 0.568 |
| MMLU_5fewshot_@avg1 | 0.770 | 0.769 |
| MUSR_0fewshot_@avg | 0.644 | 0.673 |
"""
TABLES: Final = {
    "cambricon/qwq-32b@bf16": (QWQ, "percent"),
    "cambricon/deepseek-r1@bf16": (R1, "percent"),
    "nvidia/qwen3-32b@bf16": (QWEN3, "share"),
}


def plan(cell: str) -> Plan:
    return plan_of(Matrix(), cell)


def command(made: Plan) -> list[str]:
    argv = engine_named(made.engine).command(made)
    return run_command(
        made.container,
        image="image",
        argv=argv,
        env=made.serve.env,
        memory=None,
        publish="127.0.0.1:9010:9010",
        weights="$PWD/weights",
    )


@pytest.mark.parametrize("cell", TABLES)
def test_a_cards_table_is_reported_as_printed(cell: str) -> None:
    table, unit = TABLES[cell]
    head, *rows = [[part.strip() for part in line.strip("|\n").split("|")] for line in table.splitlines()]
    (reported,) = plan(cell).reported
    assert [reported.reference, reported.candidate] == head[1:]
    assert [[s.benchmark, s.reference, s.candidate, s.unit] for s in reported.scores] == [
        [name, float(reference), float(candidate), unit] for name, reference, candidate in rows
    ]


@pytest.mark.parametrize("cell", TABLES)
def test_what_a_card_compares_with_is_a_cell_with_the_engines_own_operators(cell: str) -> None:
    made = plan(cell)
    assert made.reference
    other = plan(made.reference)
    assert (other.chip.id, other.variant, other.engine, other.model.id) == ("nvidia", "native", "vllm", made.model.id)
    assert "USE_FLAGGEMS" not in other.serve.env
    assert made.serve.env["USE_FLAGGEMS"] == "1"
    assert isinstance(other.base, Unknown)


def test_the_comparison_of_qwq_runs_both_with_one_context() -> None:
    made = plan("cambricon/qwq-32b@bf16")
    for name in ("max-model-len", "max-num-seqs"):
        assert plan(str(made.reference)).serve.args[name] == made.serve.args[name]


def test_a_container_of_this_chip_is_started_as_the_cards_start_it() -> None:
    line = " ".join(command(plan("cambricon/qwq-32b@bf16")))
    for part in ("--privileged", "--network host", "--pid host", "--ipc host", "--volume /usr/bin/cnmon:/usr/bin/cnmon"):
        assert part in line
    assert not re.search(r"DISPLAY|X11|-e --net|--publish|--shm-size|9000", line)
    assert "--env USE_FLAGGEMS=1" in line


def test_the_container_of_the_third_card_is_started_as_it_says() -> None:
    line = " ".join(command(plan("nvidia/qwen3-32b@bf16")))
    for part in (
        *(
            "--init",
            "--network host",
            "--uts host",
            "--ipc host",
            "--security-opt seccomp=unconfined",
            "--privileged",
            "--gpus all",
        ),
        *("--ulimit stack=67108864", "--ulimit memlock=-1", "--ulimit nofile=1048576:1048576"),
    ):
        assert part in line
    assert plan("nvidia/qwen3-32b@bf16").container.shm_size == "32g"


def test_what_nobody_has_said_is_unknown_with_a_reason() -> None:
    qwq, r1 = plan("cambricon/qwq-32b@bf16"), plan("cambricon/deepseek-r1@bf16")
    gems, scale = (source for source in qwq.sources if isinstance(source, GitSource))
    assert (gems.name, gems.tag) == ("flaggems", "deepseek_release_cambricon")
    assert isinstance(gems.commit, Unknown) and "b5042afd" in gems.commit.unknown
    assert isinstance(scale.commit, Unknown) and "default branch" in scale.commit.unknown
    assert scale.vendor_patch and (scale.vendor_patch.device_type, scale.vendor_patch.commit_id) == ("cambricon_MLU", "57637057")
    assert isinstance(scale.vendor_patch.sha256, Unknown)
    pinned = next(source for source in r1.sources if source.name == "flagscale")
    assert isinstance(pinned, GitSource) and pinned.commit == "ae85925798358d95050773dfa66680efdb0c2b28"
    assert r1.parallel is None and r1.world_sizes == ()


@pytest.mark.parametrize("cell", ["cambricon/qwq-32b@bf16", "cambricon/deepseek-r1@bf16"])
def test_an_image_that_comes_by_mail_says_whom_to_ask(cell: str) -> None:
    base = plan(cell).base
    assert isinstance(base, Base) and isinstance(base.access, Access)
    assert (base.access.kind, base.access.contact) == ("request", "ecosystem@cambricon.com")


@pytest.mark.parametrize("cell", TABLES)
def test_a_cards_contradictions_are_said(cell: str) -> None:
    made = plan(cell)
    assert len(made.conflicts) >= 7
    assert all(conflict.source for conflict in made.conflicts)


SEEN: Final = """\
+------------------------------------------------------------------------------+
| CNMON v6.2.29                                                Driver v6.2.29 |
| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |
| 0     /   MLU590-M9    v1.5.0 |         0000:0E:00.0 | 0%                  0 |
|  0%   35C         75 W/ 550 W |     0 MiB/ 98304 MiB | FULL          Default |
| 1     /   MLU590-M9    v1.5.0 |         0000:0F:00.0 | 0%                  0 |
|  0%   34C         74 W/ 550 W |    12 MiB/ 98304 MiB | FULL          Default |
"""
GPUS: Final = "NVIDIA H100 80GB HBM3, 81559 MiB, 535.129.03\nNVIDIA H100 80GB HBM3, 81559 MiB, 535.129.03\n"


@pytest.mark.parametrize(
    ("chip", "text", "driver", "device", "memory"),
    [
        ("cambricon", SEEN, ["6.2.29"], ["MLU590-M9"] * 2, ["98304"] * 2),
        ("nvidia", GPUS, ["535.129.03"] * 2, ["NVIDIA H100 80GB HBM3"] * 2, ["81559"] * 2),
    ],
)
def test_the_hosts_tool_is_read(chip: str, text: str, driver: list[str], device: list[str], memory: list[str]) -> None:
    tool = Matrix().chip(chip).host.tool
    assert tool and tool.driver and tool.device and tool.memory
    assert re.findall(tool.driver, text) == driver
    assert re.findall(tool.device, text) == device
    assert re.findall(tool.memory, text) == memory
