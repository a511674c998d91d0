"""Matmul, routing, cache and attention: they pass the check at a model's shapes, and one planted error of each kind does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from planting import CPU, EXACT, MATRIX, failed, planted

from release.operators import PYTHON, ROOM, check
from release.show.kernels import checked
from release.types import Status

TINY: Final = {"tiny-r1": ["latent-attention", "grouped-topk", "align-experts", "expert-matmul"]}
TINY["tiny-qwq"] = ["cache-write", "paged-attention"]
TINY["qwen3-30b-a3b"] = ["softmax-topk"]

PLANTED: Final = {
    "a missing scale": ("w8a8-matmul", "w8a8_matmul.py", " * of_row[:, None] * of_column", " * of_column"),
    "a wrong mask at the end of the depth": ("matmul", "matmul.py", "step < depth - start", "step <= depth - start"),
    "a scale of the wrong block": ("fp8-matmul", "fp8_matmul.py", "right_scale += w_scale_group", "right_scale += 0"),
    "an odd block at the edge": ("fp8-dequantise", "fp8_dequantise.py", "(row // 128)", "(row // 127)"),
    "a missing mask of groups": (
        "grouped-topk",
        "grouped_topk.py",
        "tl.where(kept[:, None], choice, ",
        "tl.where(group[:, None] >= 0, choice, ",
    ),
    "no padding to whole blocks": ("align-experts", "align_experts.py", "tl.cdiv(total, SIZE) * SIZE", "total"),
    "a token's row taken for a pair's": ("expert-matmul", "expert_matmul.py", "(pair // SHARE)", "(pair // 1)"),
    "a missing check of the slot": ("cache-write", "cache_write.py", "(slot < 0) | (slot >= capacity)", "slot >= capacity"),
    "a length one too long": ("paged-attention", "paged_attention.py", "held = place < length", "held = place <= length"),
    "a maximum that is not kept": ("latent-attention", "blocks.py", "decay = tl.exp2(highest - higher)", "decay = 1.0"),
    "a token that sees the next": (
        "prefill-attention",
        "prefill_attention.py",
        "place[None, :] <= line",
        "place[None, :] <= 1 + line",
    ),
}
"""Of each error: the operator that shows it, the file, what stood there, and what stands there now."""
HIDDEN: Final = {
    "paged-attention": ("paged_attention.py", "other=0).to(tl.int64)", "other=0)", "rows 2^30 apart"),
    "cache-write": (
        "cache_write.py",
        "tl.load(slots + token).to(tl.int64)",
        "tl.load(slots + token).to(tl.int32)",
        "rows 2^30 apart",
    ),
    "latent-attention": ("latent_attention.py", "other=0).to(tl.int64)", "other=0)", "rows 2^30 apart"),
    "matmul": ("blocks.py", "first = band * BAND", "first = band * (BAND - 1)", "more than a band"),
    "int8-per-token": ("int8_quantise.py", " + 12582912.0 - 12582912.0", "", "odd"),
}
"""Errors that most shapes hide, by operator: the file, what stood there, what stands there now, and a case that shows it."""


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the operators that failed in a copy of the room in which each has one error."""
    room = planted(tmp_path_factory.mktemp("room"), [(name, was, now) for _, name, was, now in PLANTED.values()])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(PYTHON, raising=False)
        return {verdict.figures["operator"] for verdict in failed(room, [operator for operator, *_ in PLANTED.values()])}


@pytest.mark.integration
@pytest.mark.parametrize("error", PLANTED)
def test_the_check_catches(spoilt: set[str], error: str) -> None:
    assert PLANTED[error][0] in spoilt


@pytest.mark.integration
def test_errors_that_most_shapes_hide_are_caught_by_the_case_that_is_there_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    room = planted(tmp_path, [(name, was, now) for name, was, now, _ in HIDDEN.values()])
    found = {(one.figures["operator"], one.figures["case"]) for one in failed(room, HIDDEN)}
    assert {(operator, case) for operator, (*_, case) in HIDDEN.items()} <= found, found


@pytest.mark.integration
@pytest.mark.parametrize("model", TINY)
def test_heavy_operators_pass_at_the_shapes_of_a_model(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    chip = EXACT if model != "tiny-qwq" else CPU
    found = check(chip, MATRIX.model(model), TINY[model])
    assert found.passed, checked(found, cases=False, as_json=False)
    assert {verdict.figures["operator"] for verdict in found.verdicts if verdict.status is Status.PASSED} == set(TINY[model])


def alone(folder: Path, program: str) -> Any:
    """Run a program that knows the room as `room`, in the mended interpreter where there is no device; return the JSON it prints."""
    (folder / "room").symlink_to(ROOM)
    begin = (
        "import json\nfrom room.check import prepare\nassert not prepare()\nimport torch\nfrom room.operators import OPERATORS\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=300, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.integration
def test_fp8_by_its_bits_is_what_the_type_says_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    program = """
from room.check import generator if False else prepare
every = torch.arange(256, dtype=torch.uint8).view(1, 256).view(torch.float8_e4m3fn)
ones, by_bits = torch.ones(1, 2), OPERATORS["fp8-dequantise"].launch(every, torch.ones(1, 2), configuration={"bits": 1})
source = torch.Generator().manual_seed(1)
one = OPERATORS["fp8-matmul"].inputs({"rows": 5, "columns": 140, "depth": 200}, torch.float32, torch.device("cpu"), source)
product = OPERATORS["fp8-matmul"]
near = torch.allclose(product.launch(**one, configuration={"bits": 1}).double(), product.reference(**one), atol=1e-3)
refused = []
for call in (
    lambda: OPERATORS["w8a8-matmul"].launch(*(torch.zeros(1, 131072, dtype=torch.int8), ones) * 2, None, torch.float32),
    lambda: OPERATORS["matmul"].launch(torch.zeros(2, 3), torch.zeros(4, 5)),
    lambda: OPERATORS["fp8-dequantise"].launch(every, torch.ones(2, 2)),
    lambda: OPERATORS["grouped-topk"].launch(torch.zeros(1, 10), torch.zeros(10), 3, 1, 1, True, 1.0),
):
    try:
        call()
    except ValueError as problem:
        refused.append(str(problem))
print(json.dumps({"equal": torch.equal(by_bits.nan_to_num(7e3), every.float().bfloat16().nan_to_num(7e3)), "near": near, "refused": refused}))
""".replace("from room.check import generator if False else prepare\n", "")
    found = alone(tmp_path, program)
    assert found["equal"]
    assert found["near"]
    assert len(found["refused"]) == 4
    assert "131071" in found["refused"][0]


@pytest.mark.integration
def test_a_token_without_numbers_is_sent_to_experts_that_exist(tmp_path: Path) -> None:
    program = """
none, zeros = torch.full((2, 30), float("nan")), torch.zeros(30)
found = [OPERATORS["softmax-topk"].launch(none, 4, True), OPERATORS["grouped-topk"].launch(none, zeros, 5, 2, 4, True, 1.0)]
print(json.dumps([[experts.tolist(), bool(weights.isnan().all())] for weights, experts in found]))
"""
    for experts, spread in alone(tmp_path, program):
        assert all(len(set(row)) == 4 and min(row) >= 0 and max(row) < 30 for row in experts)
        assert spread
