"""The kernels room as a whole: it stands alone, loads nothing heavy by itself, and lists what it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from release.kernels.configurations import candidates, configuration, table

ROOM: Final = Path(__file__).parents[2] / "kernels"


def alone(folder: Path, program: str, **environment: str) -> str:
    """Run a program that knows the room under another name, `release_kernels`, and nothing else of ours."""
    (folder / "release_kernels").symlink_to(ROOM)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.integration
def test_the_room_works_under_another_name_with_nothing_of_ours(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "import release_kernels, release_kernels.operator, release_kernels.configurations\n"
        "assert not {'torch', 'triton'} & set(sys.modules)\n"
        "from release_kernels.operators import OPERATORS\n"
        "from release_kernels.configurations import table\n"
        "assert set(table()) == set(OPERATORS), set(table()) ^ set(OPERATORS)\n"
        "assert all(name == operator.name for name, operator in OPERATORS.items())\n"
        "assert not any(name == 'release' or name.startswith('release.') for name in sys.modules)\n"
        "print(len(OPERATORS))"
    )
    assert int(alone(tmp_path, program, TRITON_INTERPRET="1")) > 0


DATA: Final[dict[str, Any]] = {
    "a": {
        "default": {"tile": 1, "num_warps": 4},
        "on": {
            "x": [{"cut": {"tile": 2}, "tuned": None}],
            "cuda-90": [
                {"rows": 16, "dtypes": ["int8"], "cut": {"tile": 3}, "tuned": None},
                {"rows": 16, "cut": {"tile": 4}, "tuned": None},
                {"rows": 64, "cut": {"num_warps": 8}, "tuned": None},
            ],
            "*": [{"rows": 16, "cut": {"tile": 5}, "tuned": None}],
        },
        "trying": [{"tile": 2}, {"tile": 3}, {"tile": 2}],
    },
    "b": {"default": {"tile": 7}},
}


@pytest.mark.parametrize(
    ("chip", "architecture", "rows", "dtype", "cut"),
    [
        ("", "", 16, "float32", {"tile": 5, "num_warps": 4}),
        ("", "", 17, "float32", {"tile": 1, "num_warps": 4}),
        ("", "hip-gfx942", 1, "float32", {"tile": 5, "num_warps": 4}),
        ("", "cuda-90", 16, "torch.int8", {"tile": 3, "num_warps": 4}),
        ("", "cuda-90", 16, "torch.bfloat16", {"tile": 4, "num_warps": 4}),
        ("", "cuda-90", 17, "torch.int8", {"tile": 1, "num_warps": 8}),
        ("", "cuda-90", 65, "torch.int8", {"tile": 1, "num_warps": 4}),  # an architecture has all or nothing: no entry of `*`
        ("x", "cuda-90", 1, "torch.int8", {"tile": 2, "num_warps": 4}),
        ("y", "cuda-90", 1, "torch.int8", {"tile": 3, "num_warps": 4}),
    ],
)
def test_the_first_configuration_holds_that_fits_of_the_chip_or_else_its_architecture_or_else_anywhere(
    monkeypatch: pytest.MonkeyPatch, chip: str, architecture: str, rows: int, dtype: str, cut: dict[str, int]
) -> None:
    monkeypatch.setattr("release.kernels.configurations.table", lambda: DATA)
    monkeypatch.setattr("release.kernels.configurations.architecture", lambda: architecture)
    monkeypatch.setenv("RELEASE_KERNELS_CHIP", chip)
    assert configuration("a", rows=rows, dtype=dtype) == cut
    assert configuration("a", {"num_warps": 16}, rows=rows, dtype=dtype) == {**cut, "num_warps": 16}
    assert configuration("b", rows=rows, dtype=dtype) == {"tile": 7}


def test_what_is_tried_is_laid_over_what_holds_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.kernels.configurations.table", lambda: DATA)
    monkeypatch.setattr("release.kernels.configurations.architecture", lambda: "cuda-90")
    assert candidates("a", rows=1, dtype="int8") == [{"tile": 3, "num_warps": 4}, {"tile": 2, "num_warps": 4}]


def test_every_configuration_has_the_names_of_the_default_and_says_whether_it_was_measured() -> None:
    for name, entry in table().items():
        assert set(entry) <= {"default", "trying", "on"}, name
        placed = [one for place in entry.get("on", {}).values() for one in place]
        assert all({"cut", "tuned"} <= set(one) <= {"cut", "tuned", "rows", "dtypes"} for one in placed), name
        for other in [*entry.get("trying", []), *(one["cut"] for one in placed)]:
            assert set(other) <= set(entry["default"]), name


def test_entries_of_a_place_go_from_few_rows_to_many_so_that_none_is_hidden() -> None:
    for name, entry in table().items():
        for place, entries in entry.get("on", {}).items():
            most = [one.get("rows", 1 << 62) for one in entries if "dtypes" not in one]
            assert most == sorted(set(most)), (name, place)


PROBE: Final = """
import torch, triton
import triton.language as tl
from release_kernels.interpreter import interpreted, mend

assert interpreted()
mend()
mend()


@triton.jit
def rounding(x, out, n, N: tl.constexpr):
    i = tl.arange(0, N)
    mask = i >= 0 and i < n
    tl.store(out + i, tl.load(x + i, mask=mask, other=0.0).to(out.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


x = torch.randn(1000)
x[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 3.4e38])
for dtype in (torch.bfloat16, torch.float16):
    out = torch.full((1024,), 7.0, dtype=dtype)
    rounding[(1,)](x, out, 1000, N=1024)
    torch.testing.assert_close(out[:1000], x.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert (out[1000:] == 7).all()
a, b, out = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
product[(1,)](a, b, out, N=16)
torch.testing.assert_close(out, a.float() @ b.float())
"""


@pytest.mark.integration
def test_the_interpreter_rounds_and_multiplies_bfloat16_and_joins_masks_as_a_device_does(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    alone(tmp_path, "import probe", TRITON_INTERPRET="1")
