"""The benchmarks that releases are judged by are data of the matrix: n, margin and sampling with their sources, unknowns said."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.errors import MatrixError, UsageError
from release.matrix.load import OURS, Matrix
from release.types import Unknown

MARGINS = {
    "mmlu": (14042, 0.01), "gsm8k": (1319, 0.02), "c-eval": (1346, 0.02), "math-500": (500, 0.02), "livebench": (1000, 0.02),
    "gpqa-diamond": (198, 0.03), "musr": (756, 0.03), "aime-2025": (30, 0.05), "boolq": (3270, 0.02), "humaneval-x": (820, 0.03),
    "c-eval-modeltest": (1346, 0.02),
}  # fmt: skip


def test_every_benchmark_of_the_seeds_is_there_with_its_n_and_its_margin() -> None:
    matrix = Matrix()
    found = {name: matrix.benchmark(name) for name in matrix.benchmarks()}
    assert {name: (each.n, each.margin.share) for name, each in found.items()} == MARGINS
    assert all(each.source and each.margin.source and each.grader for each in found.values())


def test_no_spelling_names_two_benchmarks() -> None:
    matrix = Matrix()
    found = [matrix.benchmark(name) for name in matrix.benchmarks()]
    names = [
        name.casefold().replace("-", "").replace(" ", "") for each in found for name in {each.name, *each.aliases, *each.loose}
    ]
    owners = {name: {each.id for each in found if name in _spellings(each)} for name in names}
    assert {name: ids for name, ids in owners.items() if len(ids) > 1} == {}


def _spellings(benchmark: object) -> set[str]:
    names = (benchmark.name, *benchmark.aliases, *benchmark.loose)  # type: ignore[attr-defined]
    return {name.casefold().replace("-", "").replace(" ", "") for name in names}


def test_what_nobody_said_stands_as_unknown_and_is_not_made_up() -> None:
    gsm8k = Matrix().benchmark("gsm8k")
    assert isinstance(gsm8k.shots, Unknown) and isinstance(gsm8k.data.hub.revision, Unknown)
    assert Matrix().benchmark("livebench").n_assumed and Matrix().benchmark("livebench").fractional


def test_a_benchmark_that_is_not_there_is_refused_with_its_near_misses() -> None:
    with pytest.raises(UsageError, match=r"there is no benchmark 'gsm8' \(did you mean 'gsm8k'\?\)"):
        Matrix().benchmark("gsm8")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("n: 1319", "n: 0", "n: "),
        ("share: 0.02", "share: 2", "margin.share: "),
        ("by: model", "by: model, temperature: 0.6", "give exactly one of"),
        ("repeats: 3", "repeat: 3", r"repeat: unknown key \(did you mean 'repeats'"),
        ("id: gsm8k", "id: gsm9k", "the file's name says"),
        ("path: gsm8k", "path: ../gsm8k", "not a relative path"),
    ],
)
def test_a_benchmark_of_a_user_is_checked(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    text = (OURS / "benchmarks" / "gsm8k.yaml").read_text()
    assert old in text
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gsm8k.yaml").write_text(text.replace(old, new))
    with pytest.raises(MatrixError, match=complaint):
        Matrix((tmp_path,)).benchmark("gsm8k")
