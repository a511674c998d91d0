"""A published table is judged row by row: what it proves, what it cannot, and what cannot be true."""

from __future__ import annotations

import json
import time
from typing import Final

import pytest

from release.errors import UsageError
from release.matrix.check import plan_of
from release.matrix.load import Matrix
from release.types import Benchmark, Reported
from release.validators.judgement import Basis, Finding
from release.validators.published import Card, judge_row, verdict_of_card, verdict_of_reported
from release.validators.settlement import Decision
from release.validators.tables import number_in, tables_of

MATRIX: Final = Matrix()
BENCHMARKS: Final[tuple[Benchmark, ...]] = tuple(MATRIX.benchmark(name) for name in MATRIX.benchmarks())

QWQ: Final = """\
# Benchmark Result
| Metrics          | QwQ-32B-REF-CUDA   | QwQ-32B-FlagOS-Port |
|------------------|-------------------------|-----------------------------------|
| GSM8K (EM)       | 72.78                   |  72.63                            |
| MMLU (Acc.)      | 79.75                   |  80.02                            |
| CEVAL            | 85.07                   |  85.36                           |
| AIME 2025(Pass@1)| 80.00     |  80.00           |
| GPQA-Diamond (Pass@1)| 64.14  |  62.63         |
| MATH-500 (Pass@1)| 94.20  |  94.60              |
# How to Run Locally
"""
R1: Final = """\
| Metrics          | DeepSeek-R1-CUDA   | DeepSeek-R1-FlagOS-BF16 |
|------------------|-------------------------|-----------------------------------|
| GSM8K (EM)       | 95.75                   |  95.15                            |
| MMLU (Acc.)      | 85.34                   |  85.61                            |
| CEVAL            | 89.00                   |  89.38                            |
| AIME 2025(Pass@1)| 76.67     |  73.33           |
| GPQA-Diamond (Pass@1)| 70.20  |  73.23         |
| MATH-500 (Pass@1)| 93.20  |  92.60              |
"""
QWEN3: Final = """\
| Metrics           | Qwen3-32B-CUDA | Qwen3-32B-FlagOS |
|-------------------|--------------------------|-----------------------------|
| AIME_0fewshot_@avg1 | 0.800 | 0.800 |
| GPQA_0fewshot_@avg1 | 0.608 | 0.612 |
| LiveBench-0fewshot_@avg1 | 0.591 | 0.568 |
| MMLU_5fewshot_@avg1 | 0.770 | 0.769 |
| MUSR_0fewshot_@avg | 0.644 | 0.673 |
"""
C, I, U = Finding.CONSISTENT, Finding.INCONCLUSIVE, Finding.UNVERIFIABLE  # noqa: E741
Wanted = tuple[int, float, float, float, float, float, int, Finding]
ROWS: Final[dict[str, tuple[Wanted, ...]]] = {  # n, Δ, 95 % Newcombe, margin, p of Farrington and Manning, k, finding
    QWQ: (
        (1319, -0.15, -3.55, +3.25, 2, 0.143, 5, I), (14042, +0.27, -0.67, +1.21, 1, 0.004, 2, C),
        (1346, +0.29, -2.40, +2.98, 2, 0.047, 3, C), (30, +0.00, -20.24, +20.24, 5, 0.315, 27, I),
        (198, -1.51, -10.90, +7.92, 3, 0.379, 16, I), (500, +0.40, -2.51, +3.32, 2, 0.052, 4, I),
    ),
    R1: (
        (1319, -0.60, -2.21, +1.01, 2, 0.045, 1, C), (14042, +0.27, -0.55, +1.09, 1, 0.001, 2, C),
        (1346, +0.38, -1.97, +2.73, 2, 0.024, 3, C), (30, -3.34, -24.54, +18.23, 5, 0.441, 30, I),
        (198, +3.03, -5.82, +11.82, 3, 0.092, 15, I), (500, -0.60, -3.84, +2.63, 2, 0.196, 4, I),
    ),
    QWEN3: (
        (30, +0.00, -20.24, +20.24, 5, 0.315, 27, I), (198, +0.40, -9.13, +9.92, 3, 0.244, 17, U),
        (1000, -2.30, -6.61, +2.02, 2, 0.554, 8, I), (14042, -0.10, -1.09, +0.89, 1, 0.037, 2, C),
        (756, +2.90, -1.88, +7.66, 3, 0.008, 5, C),
    ),
}  # fmt: skip


def card(text: str, **options: str | float | tuple[str, ...]) -> Card:
    return verdict_of_card(text, BENCHMARKS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ROWS, ids=["qwq-32b", "deepseek-r1", "qwen3-32b"])
def test_the_tables_of_the_seeds_prove_what_is_known_that_they_prove(text: str) -> None:
    found = card(text)
    assert len(found.lines) == len(ROWS[text])
    for line, (n, delta, lower, upper, margin, p, k, finding) in zip(found.lines, ROWS[text], strict=True):
        judged = line.judgement
        assert judged.finding is finding, line.label
        assert judged.basis is Basis.REPORTED and not judged.measured
        assert judged.n == n and 100 * judged.margin == pytest.approx(margin)
        assert judged.delta is not None and judged.interval_95 is not None and judged.need is not None
        assert 100 * judged.delta == pytest.approx(delta, abs=0.006)
        assert [100 * end for end in judged.interval_95] == pytest.approx([lower, upper], abs=0.05)
        assert judged.p == pytest.approx(p, abs=0.001) and judged.need.repeats == k


def test_seven_of_the_seventeen_rows_say_something_and_none_regressed() -> None:
    found = [line.judgement.finding for text in ROWS for line in card(text).lines]
    assert (len(found), found.count(C), found.count(I), found.count(U), found.count(Finding.REGRESSED)) == (17, 7, 9, 1, 0)
    assert all(card(text).settlement.decision is Decision.PENDING for text in ROWS)


def test_the_tables_of_our_own_matrix_say_the_same() -> None:
    tables = {table.source: table for cell, _ in MATRIX.cells() for table in plan_of(MATRIX, cell).reported}
    found = sorted(
        tuple(line.judgement.finding for line in verdict_of_reported(table, BENCHMARKS).lines) for table in tables.values()
    )
    assert found == sorted(tuple(row[-1] for row in rows) for rows in ROWS.values())


def test_a_score_that_no_count_gives_is_unverifiable_and_says_what_would_fit() -> None:
    row = card(QWEN3).lines[1].judgement
    assert row.otherwise is I and "(GRIM); 5 repeats would fit" in row.obstacles[0]
    assert "Diamond, with 198 questions, is assumed" in row.notes[0]


def test_columns_are_named_by_role_and_not_by_position() -> None:
    swapped = "| Metrics | FlagOS | Native |\n|-|-|-|\n| GSM8K | 60.05 | 95.15 |\n"
    assert card(swapped).lines[0].judgement.finding is Finding.REGRESSED
    assert card(swapped.replace("| FlagOS | Native |", "| Native | FlagOS |")).lines[0].judgement.finding is C
    assert card(swapped.replace("| FlagOS | Native |", "| 候选 | 基线 |")).lines[0].judgement.finding is Finding.REGRESSED


def test_roles_that_cannot_be_told_are_asked_for() -> None:
    unclear = "| Metrics | Model A | Model B |\n|-|-|-|\n| GSM8K | 60.05 | 95.15 |\n"
    with pytest.raises(UsageError, match=r"which column is the reference cannot be told from 'Model A', 'Model B'"):
        card(unclear)
    assert card(unclear, reference="model b").lines[0].judgement.finding is Finding.REGRESSED
    assert (
        card(unclear.replace("Model B", "Model abacus9"), reference_names=("Abacus9",)).lines[0].judgement.finding
        is Finding.REGRESSED
    )
    with pytest.raises(UsageError, match="which column"):
        card(unclear, reference="model")
    with pytest.raises(UsageError, match="which column"):
        card(QWQ.replace("QwQ-32B-FlagOS-Port", "QwQ-32B-native"))


def test_turned_tables_differences_and_several_candidates_are_read() -> None:
    turned = "| Model | GSM8K | MMLU |\n|---|---:|---:|\n| reference | 95.15 | 79.75 |\n| ours | 60.05 | 80.02 |\n"
    assert [line.judgement.finding for line in card(turned).lines] == [Finding.REGRESSED, C]
    wide = (
        "| Benchmark | Native | V2 | w8a8 quantized | Diff |\n|---|---|---|---|---|\n| MMLU | 79.75 | 80.02 | 60.00 | +0.27 |\n"
    )
    assert [(line.label, line.judgement.finding) for line in card(wide).lines] == [
        ("MMLU [V2]", C), ("MMLU [w8a8 quantized]", Finding.REGRESSED),
    ]  # fmt: skip


def test_marks_percent_signs_and_spreads_are_not_part_of_a_score() -> None:
    marked = "Metric | Reference | **FlagOS**\n--- | :-: | ---\n`GSM8K` | 72.78 % | **72.63%** (±1.2)\n\ntext | with | pipes\n"
    (line,) = card(marked).lines
    assert line.judgement.delta == pytest.approx(-0.0015)
    assert number_in("**0.5**") is None and number_in("80.00 ± 1.2") == ("80.00", False) and number_in("_7_") == ("7", False)
    assert number_in("1e5") is None and number_in("") is None and number_in("٣") is None and number_in("1.2.3") is None


def test_tables_in_code_and_other_tables_are_left_alone() -> None:
    assert tables_of("```\n| a | b |\n|---|---|\n| 1 | 2 |\n```\n") == ()
    assert len(tables_of("| a | b |\n|---|---|\n| 1 | 2 \\| 3 | 4 |\n")[0].rows[0].cells) == 2
    versions = "| Item | Version | Note |\n|---|---|---|\n| vLLM | 0.8 | 1 |\n\n"
    assert len(card(versions + QWQ).lines) == 6
    with pytest.raises(UsageError, match="no table of scores"):
        card(versions)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("| GSM8K | 72.78 | - |", "a score is missing"),
        ("| GSM8K | 72.78 | TBD |", "a score is missing"),
        ("| GSM8K | 72.78 | 0.72 |", "look like a share and a percentage"),
        ("| GSM8K | 0.72 | 0.71 |", "look like shares, and the other rows are percentages"),
        ("| GSM8K | 172.78 | 72.63 |", "no scores out of 100"),
        ("| MMLU-Pro | 72.78 | 72.63 |", "no margin was fixed"),
        ("| GPQA-Diamond | 60.80 | 61.11 |", "60.80 can be no number of right answers of 198 questions"),
    ],
)
def test_rows_that_prove_nothing_say_why(rows: str, complaint: str) -> None:
    found = card(f"| Metrics | Native | FlagOS |\n|---|---|---|\n| MATH-500 | 94.20 | 94.60 |\n{rows}\n").lines[1].judgement
    assert found.finding is U and complaint in found.reason


@pytest.mark.parametrize(
    ("label", "wanted"),
    [("AIME 2025(Pass@1)", "aime-2025"), ("AIME25", "aime-2025"), ("aime_2025", "aime-2025"), ("AIME 2024", None), ("MATH", None),
     ("math-500 (EM)", "math-500"), ("GPQA-Diamond 0-shot", "gpqa-diamond"), ("gpqa_diamond_@avg8", "gpqa-diamond"), ("GPQA-main", None),
     ("C-Eval 5-shot acc", "c-eval"), ("full_CEval", "c-eval-modeltest"), ("full_BoolQ", "boolq"), ("HumanEval", None),
     ("HumanEval-X", "humaneval-x"), ("LiveCodeBench", None), ("MMLU", "mmlu"), ("MMLU-Redux", None), ("CMMLU", None), ("", None)],
)  # fmt: skip
def test_a_label_names_its_benchmark_and_no_other(label: str, wanted: str | None) -> None:
    found = judge_row(label, "50.00", "50.00", BENCHMARKS, percent=True, margin=0.02)
    assert (found.benchmark == wanted) if wanted else (found.finding is U and "number of questions is unknown" in found.reason)


def test_repeats_shots_and_other_ways_of_scoring_are_read_from_the_label() -> None:
    found = judge_row("AIME 2025 avg@8", "81.67", "80.42", BENCHMARKS, percent=True)
    assert found.repeats == (8, 8) and found.interval is not None and found.interval[0] > -0.1 and found.obstacles == ()
    notes = " ".join(judge_row("MMLU_0fewshot", "80.00", "80.00", BENCHMARKS, percent=True).notes)
    assert "asked with 0 examples, MMLU here with 5" in notes
    assert "maj@16 is no mean" in " ".join(judge_row("MATH-500 maj@16", "94.20", "94.60", BENCHMARKS, percent=True).notes)


def test_n_and_margin_can_be_given_for_a_benchmark_that_is_not_known() -> None:
    found = judge_row("OurBench", "24.00", "26.00", BENCHMARKS, percent=True, sizes={"OurBench": 50}, margin=0.05)
    assert found.finding is I and found.need is not None and found.need.repeats == 20
    assert judge_row("livebench", "56.80", "59.10", BENCHMARKS, percent=True, sizes={"livebench": 1136}).n == 1136


def test_a_reported_table_loses_no_places() -> None:
    table = Reported.model_validate(
        {
            "source": "a card",
            "candidate": "b",
            "reference": "a",
            "scores": ({"benchmark": "GPQA", "candidate": 0.6, "reference": 0.608, "unit": "share"},),
        }
    )
    (line,) = verdict_of_reported(table, BENCHMARKS).lines
    assert (line.candidate, line.reference) == ("0.600", "0.608") and line.judgement.finding is U


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0, 1e300, 1e-300, 101.0])
def test_a_reported_figure_that_is_no_score_proves_nothing(figure: float) -> None:
    score = {"benchmark": "GSM8K", "candidate": figure, "reference": 95.75}
    table = Reported.model_validate({"source": "a card", "candidate": "b", "reference": "a", "scores": (score,)})
    assert verdict_of_reported(table, BENCHMARKS).lines[0].judgement.finding in (U, Finding.REGRESSED)


def test_a_card_is_text_and_json() -> None:
    found = card(QWEN3)
    lines = found.text().splitlines()
    assert lines[0].split()[:2] == ["benchmark", "n"] and "UNVERIFIABLE, else INCONCLUSIVE" in found.text()
    assert lines[-1].startswith("2 of 5 rows say something") and lines[-1].endswith("nothing here was measured.")
    assert json.loads(json.dumps(found.json(), allow_nan=False))["rows"][1]["otherwise"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    "text",
    [
        "|" * 100_000, ("|" * 200 + "\n") * 5000, "-" * 500_000 + "|", ("| a | b |\n|---|---|\n") * 150,
        "| GSM8K | " + "9" * 100_000 + " | 1 |\n", "| a | b | c |\n|-|-|-|\n| " + "_-" * 100_000 + " | 1 | 2 |\n",
        "\n".join(["`" * 5] * 50_000), "| a" + " |-" * 100_000, "", "\0" * 1000,
    ],
    ids=range(10),
)  # fmt: skip
def test_hostile_cards_end_quickly_in_a_clear_refusal(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError):
        card(text)
    assert time.monotonic() - started < 60


def test_a_card_beyond_all_measure_is_not_read() -> None:
    with pytest.raises(UsageError, match="is none: it is read up to"):
        card("x" * ((2 << 20) + 1))
    with pytest.raises(UsageError, match="more tables, rows or columns"):
        card("| Metrics | Native | FlagOS |\n|---|---|---|\n" + "| GSM8K | 72.78 | 72.63 |\n" * 1001)
