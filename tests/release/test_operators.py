"""The check of kernels: what it needs of a model, that it finds planted errors, and that it never passes what it did not check."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from planting import planted

from release.matrix.load import Matrix
from release.operators import PYTHON, Check, check, facts_of, listed
from release.show.kernels import checked
from release.types import Status, Verdict
from tests.parts.pythons import LACKING, lacking

CPU: Final = Matrix().chip("cpu")
TINY: Final = Matrix().model("tiny-qwq")

PLANTED: Final = {
    "a wrong mask at the edge": (
        *("softmax", "softmax.py"),
        *('mask=mask, other=float("-inf")', 'mask=(row < rows) & (start + column <= width), other=float("-inf")'),
    ),
    "a missing scale": ("int8-per-token", "int8_quantise.py", "most / 127.0", "most"),
    "swapped halves": ("rotary", "rotary.py", "(a * cos - b * sin)", "(b * cos - a * sin)"),
    "a race on the output": ("silu-mul", "silu_mul.py", "tl.program_id(1) * COLUMNS", "tl.program_id(1) * (COLUMNS - 1)"),
    "an offset of 32 bits": ("rms-norm", "rms_norm.py", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)"),
    "a kernel that ends the process": (
        *("add-rms-norm", "add_rms_norm.py"),
        *(
            'cut = configured("add-rms-norm", configuration, rows=x.shape[:-1].numel(), dtype=x.dtype)',
            "__import__('os').abort()",
        ),
    ),
}
"""Of each error: the operator, its file, what stood there, and what stands there now."""
FOUND_BY: Final = {
    "a wrong mask at the edge": ("elements outside of every tensor", "a race"),
    "a missing scale": ("too far from the float64 reference",),
    "swapped halves": ("too far from the float64 reference",),
    "a race on the output": ("a race: ",),
    "an offset of 32 bits": ("reads 641 elements outside of every tensor",),
    "a kernel that ends the process": ("ended with status",),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Check a copy of the room in which each operator has one error."""
    room = planted(tmp_path_factory.mktemp("room"), [(name, was, now) for _, name, was, now in PLANTED.values()])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(PYTHON, raising=False)
        return check(CPU, TINY, [operator for operator, *_ in PLANTED.values()], room=room)


def failures(found: Check, operator: str) -> list[Verdict]:
    return [verdict for verdict in found.verdicts if verdict.status is Status.FAILED and verdict.figures["operator"] == operator]


@pytest.mark.integration
@pytest.mark.parametrize("error", PLANTED)
def test_the_check_catches(spoilt: Check, error: str) -> None:
    found = failures(spoilt, PLANTED[error][0])
    assert any(sign in verdict.reason for verdict in found for sign in FOUND_BY[error]), found
    assert not spoilt.passed


@pytest.mark.integration
def test_an_offset_of_32_bits_shows_only_where_rows_lie_far_apart(spoilt: Check) -> None:
    assert {verdict.figures["case"] for verdict in failures(spoilt, "rms-norm")} == {
        "rows 2^30 apart",
        "heads, rows 2^30 apart",
    }


@pytest.mark.integration
@pytest.mark.parametrize("way", ["__import__('os')._exit(0)", "raise SystemExit"])
def test_a_kernel_that_ends_the_process_as_if_all_were_well_has_failed(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    room = planted(tmp_path, [("silu_mul.py", "cut = configured(", f"{way}\n    cut = configured(")])
    found = check(CPU, TINY, ["silu-mul", "softmax"], room=room)
    assert not found.passed
    assert [verdict.measured for verdict in failures(found, "silu-mul")] == ["the process ended"]
    assert any(verdict.figures["operator"] == "softmax" and verdict.status is Status.PASSED for verdict in found.verdicts)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("error", "shows"),
    [
        ("row // x_heads * x_stride", set[str]()),
        ("row // x_heads * (x_stride if x_heads == 1 else x_heads * width)", {"beside=", "odd heads", "heads, "}),
        (
            "tl.where(x_heads == 1, row // x_heads * x_stride, (row // x_heads).to(tl.int32) * x_stride)",
            {"heads, rows 2^30 apart"},
        ),
    ],
    ids=["none", "taken to lie one after the other", "an offset of 32 bits"],
)
def test_an_error_with_heads_of_a_wider_product_shows_at_those_and_nowhere_else(
    error: str, shows: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    room = planted(tmp_path, [("rms_norm.py", "row // x_heads * x_stride", error)])
    exact = CPU.model_copy(update={"dtypes": ["fp32"]})
    cases = [
        one.figures["case"] for one in failures(check(exact, Matrix().model("tiny-qwen3"), ["rms-norm"], room=room), "rms-norm")
    ]
    assert all(any(word in case for word in shows) for case in cases), cases
    assert all(any(word in case for case in cases) for word in shows), cases


@pytest.mark.integration
def test_a_race_shows_though_every_result_is_right(spoilt: Check) -> None:
    assert {verdict.figures["case"] for verdict in failures(spoilt, "silu-mul")} == {"longer than a tile"}


@pytest.mark.integration
def test_what_came_after_a_kernel_that_ended_the_process_is_skipped_not_passed(spoilt: Check) -> None:
    own = [
        verdict for verdict in spoilt.verdicts if verdict.figures["operator"] == "add-rms-norm" and verdict.figures["case"] != ""
    ]
    assert [verdict.status for verdict in own] == [Status.FAILED]


@pytest.mark.integration
def test_sound_operators_pass_at_the_shapes_of_a_model_in_the_dtypes_of_a_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    found = check(CPU, TINY, ["rms-norm", "rotary"])
    assert found.passed, checked(found, cases=False, as_json=False)
    assert {verdict.figures["dtype"] for verdict in found.verdicts if verdict.status is Status.PASSED} == {"float32", "bfloat16"}
    skipped = [verdict for verdict in found.verdicts if verdict.status is Status.SKIPPED]
    assert {verdict.figures["dtype"] for verdict in skipped} == {"float16"}
    assert {verdict.reason for verdict in skipped} == {"the chip does not compute in it"}
    said = checked(found, cases=False, as_json=False)
    assert "cases, 2 by refusal" in said, "a launch that may refuse what lies otherwise is not counted as one that computed"
    if found.machine["interpreted"]:
        assert "reduced shapes; this proves what kernels mean and nothing about a device" in said


@pytest.mark.integration
@pytest.mark.parametrize(("flag", "version", "why"), LACKING)
def test_without_torch_or_with_an_old_triton_nothing_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, version: str, why: str
) -> None:
    monkeypatch.setenv(PYTHON, str(lacking(tmp_path, flag, version)))
    found = check(CPU, TINY)
    assert [verdict.status for verdict in found.verdicts] == [Status.SKIPPED]
    assert why in found.verdicts[0].reason
    assert not found.passed


def test_a_check_of_nothing_has_not_passed() -> None:
    assert not Check((), {}).passed
    skipped = Verdict(name="operators", status=Status.SKIPPED, measured="nothing", wanted="a result", reason="no torch")
    assert not Check((skipped,), {}).passed
    assert "1 SKIPPED" in checked(Check((skipped,), {}), cases=False, as_json=False)


def test_the_facts_of_a_model_are_those_of_its_config() -> None:
    facts = facts_of(Matrix().model("deepseek-r1"))
    assert (facts.kv_lora_rank, facts.qk_rope_head_dim, facts.rope, facts.block) == (512, 64, "interleaved", 128)
    assert (facts.experts, facts.experts_per_token, facts.groups, facts.top_groups) == (256, 8, 8, 4)
    facts = facts_of(Matrix().model("tiny-r1"))
    assert (facts.experts, facts.groups, facts.top_groups, facts.scoring, facts.scaling) == (8, 4, 2, "sigmoid", 2.5)
    facts = facts_of(Matrix().model("qwen3-30b-a3b"))
    assert (facts.experts, facts.groups, facts.top_groups, facts.scoring, facts.scaling) == (128, 0, 0, "softmax", 1.0)
    facts = facts_of(TINY)
    assert (facts.experts, facts.kv_lora_rank, facts.rope, facts.groups) == (0, 0, "halves", 0)


def test_a_router_is_checked_with_the_groups_and_the_factor_of_its_model() -> None:
    pytest.importorskip("triton")
    from release.kernels.operators import OPERATORS

    sizes = OPERATORS["grouped-topk"].shapes(facts_of(Matrix().model("tiny-r1")))
    assert {(each["experts"], each["groups"], each["kept"], each["best"], each["thousandths"]) for each in sizes} == {
        (8, 4, 2, 2, 2500)
    }
    assert OPERATORS["softmax-topk"].shapes(facts_of(Matrix().model("tiny-r1"))) == []
    assert OPERATORS["grouped-topk"].shapes(facts_of(Matrix().model("qwen3-30b-a3b"))) == []


@pytest.mark.parametrize("model", Matrix().models())
def test_every_model_of_the_matrix_gives_facts(model: str) -> None:
    assert facts_of(Matrix().model(model)).hidden > 0


def test_operators_are_listed_without_torch() -> None:
    assert {"rms-norm", "rotary", "int8-per-token"} <= set(listed())


@pytest.mark.integration
@pytest.mark.skipif(find_spec("flag_gems") is not None, reason="FlagGems is here")
def test_without_flaggems_its_operators_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    found = check(CPU, TINY, library="flaggems")
    assert [verdict.status for verdict in found.verdicts] == [Status.SKIPPED]
    assert "FlagGems cannot be imported" in found.verdicts[0].reason
