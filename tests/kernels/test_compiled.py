"""Kernels compiled by Triton for architectures that are not here, at the sizes of real models: each cut is taken, and fits the shared memory.

Nothing is launched: that a kernel computes the right thing shows in the interpreter, how fast it is on a device alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from release.matrix.load import Matrix
from release.operators import facts_of

pytest.importorskip("triton")

ROOM: Final = Path(__file__).parents[2] / "kernels"
MODELS: Final = ("deepseek-r1", "qwen3-30b-a3b")
SHARED: Final = {"cuda-80": 163 << 10, "cuda-90": 227 << 10}
"""Bytes of shared memory that a block may have: CUDA C++ programming guide, technical specifications by compute capability."""

PROGRAM: Final = """
import json, sys
from types import SimpleNamespace
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from room.cases import generator
from room.configurations import architecture, configuration, table
from room.operator import Facts
from room.operators import OPERATORS

place, *models = json.loads(sys.argv[1])
backend, arch = place.split("-")
driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: GPUTarget(backend, int(arch), 32)
))
assert architecture() == place
compiled = []
run = JITFunction.run


def compiling(self, *given, grid, warmup, **named):
    compiled.append(run(self, *given, grid=grid, warmup=True, **named))


JITFunction.run = compiling
lines = []
for facts in (Facts(**each) for each in models):
    for name, operator in OPERATORS.items():
        shapes = [operator.reduced(sizes) for sizes in operator.shapes(facts)[-1:]]
        named = [dtype for one in table()[name].get("on", {}).get(place, []) for dtype in one.get("dtypes", [])]
        usual = "bfloat16" if "bfloat16" in operator.dtypes else operator.dtypes[0]
        for dtype in dict.fromkeys([usual, *(dtype for dtype in named if dtype in operator.dtypes)]) if shapes else ():
            inputs = operator.inputs(shapes[0], getattr(torch, dtype), torch.device("cpu"), generator(torch.device("cpu")))
            kind = str(inputs["a"].dtype if "a" in inputs else dtype).removeprefix("torch.")
            cuts = [configuration(name, rows=rows, dtype=kind) for rows in (1, 16, 64, 256, 8192)]
            for cut in [cut for number, cut in enumerate(cuts) if cut not in cuts[:number]]:
                compiled.clear()
                try:
                    operator.launch(**inputs, configuration=cut)
                    shared = max(kernel.metadata.shared for kernel in compiled)
                    lines.append([facts.model, name, dtype, cut, shared, ""])
                except Exception as problem:
                    lines.append([facts.model, name, dtype, cut, 0, f"{type(problem).__name__}: {problem}"[-300:]])
print(json.dumps(lines))
"""


@pytest.mark.integration
@pytest.mark.parametrize("place", SHARED)
def test_every_cut_that_holds_on_an_architecture_compiles_for_it_and_fits_its_shared_memory(tmp_path: Path, place: str) -> None:
    (tmp_path / "room").symlink_to(ROOM)
    asked = json.dumps([place, *(asdict(facts_of(Matrix().model(model))) for model in MODELS)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines: list[Any] = json.loads(done.stdout)
    assert [line for line in lines if line[5]] == []
    assert [line for line in lines if line[4] > SHARED[place]] == []
    assert {line[1] for line in lines} == set(json.loads((ROOM / "configurations.json").read_bytes()))
