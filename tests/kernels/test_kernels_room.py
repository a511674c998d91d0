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


def test_a_chip_has_its_own_configuration_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    data: dict[str, Any] = {
        "a": {"default": {"tile": 1, "num_warps": 4}, "chips": {"x": {"tile": 2}}, "trying": [{"tile": 2}, {"tile": 3}]}
    }
    monkeypatch.setattr("release.kernels.configurations.table", lambda: data)
    assert configuration("a") == {"tile": 1, "num_warps": 4}
    monkeypatch.setenv("RELEASE_KERNELS_CHIP", "x")
    assert configuration("a") == {"tile": 2, "num_warps": 4}
    assert configuration("a", {"num_warps": 8}) == {"tile": 2, "num_warps": 8}
    assert candidates("a") == [{"tile": 2, "num_warps": 4}, {"tile": 3, "num_warps": 4}]


def test_every_configuration_tried_has_the_names_of_the_default() -> None:
    for name, entry in table().items():
        assert set(entry) <= {"default", "trying", "chips"}, name
        for other in [*entry.get("trying", []), *entry.get("chips", {}).values()]:
            assert set(other) <= set(entry["default"]), name


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
