"""Sums that are kept in few bits show in inputs that add much in small parts; and no axis of a kernel is left with one program in every case."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest
from planting import CPU, MATRIX, planted

from release.operators import DTYPES, PYTHON, ROOM, check, facts_of
from release.types import Status

VALUES: Final = (
    "blocks.py",
    "product(power.to(v.dtype), v, result * decay[:, None])",
    "product(power.to(v.dtype), v, result * decay[:, None]).to(v.dtype).to(tl.float32)",
)
SHARES: Final = (
    "blocks.py",
    "total = total * decay + tl.sum(power, axis=1)",
    "total = (total * decay + tl.sum(power, axis=1)).to(v.dtype).to(tl.float32)",
)
OWN: Final = (
    "prefill_attention.py",
    "highest, total, result = attend(scored(q, k, seen, scale), v, highest, total, result)",
    "highest, total, result = attend(scored(q, k, seen, scale), v, highest, total, result)\n        result = result.to(v.dtype).to(tl.float32)",
)
PRODUCTS: Final = (
    *(
        (name, "product(x, y, total)", "product(x, y, total).to(x.dtype).to(tl.float32)")
        for name in ("matmul.py", "expert_matmul.py")
    ),
    (
        "fp8_matmul.py",
        "total += part * tl.load(left_scale)[:, None] * tl.load(right_scale)[None, :]",
        "total = (total + part * tl.load(left_scale)[:, None] * tl.load(right_scale)[None, :]).to(out.dtype.element_ty).to(tl.float32)",
    ),
)
SMALL: Final = {"many small shares"}
PREFIX: Final = {*SMALL, "many small shares of a prefix"}
LONG: Final = {"a long sum"}
SUMS: Final = {
    "of values": ((VALUES,), "tiny-qwq", ("bf16", "fp16"), {"paged-attention": SMALL, "prefill-attention": PREFIX}),
    "of shares": ((SHARES,), "tiny-qwq", ("bf16",), {"paged-attention": SMALL, "prefill-attention": PREFIX}),
    "of both": ((VALUES, SHARES), "tiny-r1", ("bf16", "fp16"), {"latent-attention": SMALL}),
    "over the own sequence, and of products": (
        (OWN, *PRODUCTS),
        "tiny-r1",
        ("bf16",),
        {"prefill-attention": SMALL, "matmul": LONG, "expert-matmul": LONG, "fp8-matmul": LONG},
    ),
}
"""Sums that are kept in the dtype of the inputs: what is planted, a model, dtypes, and of operators the cases that show it."""


@pytest.mark.integration
@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_that_is_kept_in_16_bits_shows_in_inputs_that_add_much_in_small_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    errors, model, dtypes, shows = SUMS[kind]
    chip = CPU.model_copy(update={"dtypes": list(dtypes)})
    found = check(chip, MATRIX.model(model), list(shows), room=planted(tmp_path, errors))
    figures = [one.figures for one in found.verdicts if one.status is Status.FAILED]
    failed = {(one["operator"], one["case"], one["dtype"]) for one in figures}
    every = {(operator, case) for operator, cases in shows.items() for case in cases}
    assert {(*one, DTYPES[dtype]) for one in every for dtype in dtypes} <= failed, failed


AXES = """
import json, os, sys
os.environ["TRITON_INTERPRET"] = "1"
from room.check import prepare
assert not prepare()
import torch
from triton.runtime import interpreter as machine
from room.cases import generator
from room.operator import Facts
from room.operators import OPERATORS

found, plain, device = {}, machine.GridExecutor.__call__, torch.device("cpu")


def counted(self, *given, **named):
    most = found.setdefault(self.fn.__name__, [0] * len(self.grid))
    most[:] = map(max, most, self.grid)
    return plain(self, *given, **named)


machine.GridExecutor.__call__ = counted
models = [Facts(**facts) for facts in json.loads(sys.argv[1])]
for operator in OPERATORS.values():
    before = set(found)
    for sizes in (operator.edges.values(), (operator.reduced(shape) for facts in models for shape in operator.shapes(facts))):
        if set(found) == before or any(min(most) < 2 for name, most in found.items() if name not in before):
            for one in sizes:
                operator.launch(**operator.inputs(one, getattr(torch, operator.dtypes[0]), device, generator(device)))
print(json.dumps(found))
"""


@pytest.mark.integration
def test_every_axis_of_every_kernel_has_two_programs_in_a_case_at_least(tmp_path: Path) -> None:
    (tmp_path / "room").symlink_to(ROOM)
    facts = json.dumps([asdict(facts_of(MATRIX.model(model))) for model in ("tiny-qwq", "tiny-r1")])
    done = subprocess.run(
        [sys.executable, "-c", AXES, facts], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {
        name for file in (ROOM / "operators").glob("*.py") for name in re.findall(r"def (release_\w+_kernel)\(", file.read_text())
    }
    assert set(found) == names
    assert {name: most for name, most in found.items() if min(most) < 2} == {"release_place_kernel": [1]}, (
        "which is meant to be alone"
    )
