"""Proof of the kernels for a model: what the room needs to know of it, and its check, run where torch and triton are."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from release import kernels
from release.errors import StageError
from release.kernels.configurations import table
from release.kernels.operator import Facts
from release.processes import run
from release.types import Chip, Model, Status, Verdict

PYTHON: Final = "RELEASE_KERNELS_PYTHON"
"""Environment variable: the interpreter that has torch and triton, where it is not ours."""
ROOM: Final = Path(kernels.__file__).parent
ALIAS: Final = "release_kernels"
"""The name under which the room stands alone, as in an image."""
DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
STRICTEST: Final = "float32"
"""Always checked, whatever the chip computes in: its narrow tolerance finds the most."""


def facts_of(model: Model) -> Facts:
    """Return what the kernels need to know of a model. Latent attention turns neighbouring dimensions, all else halves."""
    shape, moe, mla = model.architecture, model.architecture.moe, model.architecture.mla
    return Facts(
        model=model.id,
        layers=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        vocabulary=shape.vocabulary,
        context=shape.context,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        qk_norm=shape.qk_norm,
        qkv_bias=shape.qkv_bias,
        rope="interleaved" if mla else "halves",
        **({name: getattr(mla, name) or 0 for name in type(mla).model_fields} if mla else {}),
        experts=moe.experts if moe else 0,
        experts_per_token=moe.experts_per_token if moe else 0,
        shared_experts=moe.shared_experts if moe else 0,
        expert_intermediate=moe.intermediate if moe else 0,
        scoring=moe.scoring if moe else "softmax",
        scaling=moe.scaling if moe else 1.0,
        groups=moe.groups if moe else 0,
        top_groups=moe.groups_per_token if moe else 0,
        block=model.checkpoint.block or 0,
    )


@dataclass(frozen=True)
class Check:
    """What a check found: a verdict for each operator, dtype and case, and on which machine; an empty machine ran nothing."""

    verdicts: tuple[Verdict, ...]
    machine: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Say whether a verdict failed."""
        return any(verdict.status is Status.FAILED for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Say whether something was checked and nothing failed; what was skipped was not checked."""
        return not self.failed and any(verdict.status is Status.PASSED for verdict in self.verdicts)


def check(chip: Chip, model: Model, operators: Sequence[str] = (), *, room: Path = ROOM, library: str = "ours") -> Check:
    """Check operators (all, where none is named) at a model's shapes, in the chip's dtypes, on the device that is here or in the interpreter.

    A process of its own does it: a kernel that ends it has failed, what came after it in the same operator is skipped, and the next one
    goes on.
    """
    request = {
        "facts": asdict(facts_of(model)),
        "operators": list(operators),
        "dtypes": sorted({STRICTEST, *(DTYPES[dtype] for dtype in chip.dtypes if dtype in DTYPES)}),
        "library": library,
    }
    verdicts: list[Verdict] = []
    machine: dict[str, Any] = {}
    for line in answers_of("check", request, room):
        machine = line.get("machine", machine)
        if "missing" in line:
            return Check((_missing(line["missing"]),), {})
        if "result" in line:
            verdicts.append(_verdict(**line["result"]))
        if "ended" in line:
            operator, case, dtype = line["ended"]
            verdicts.append(_verdict(operator, case, dtype, "FAILED", "the process ended", "a result", line["why"]))
            verdicts.append(
                _verdict(operator, "", "", "SKIPPED", "nothing", "a result", "the cases after the one that ended the process")
            )
    return Check(tuple(verdicts), machine)


def answers_of(
    program: str, request: Mapping[str, Any], room: Path = ROOM, *, keep: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the lines that a program of the room (`check`, `bench`) writes for a request.

    Where its process ends within what it had `begun` (operator, case, dtype), `ended` says so with `why`, and another process goes on
    behind that operator. Raises StageError where it ends outside. `keep` is the file into which the lines are written as they come, which
    is there whatever ends the program or us.
    """
    with tempfile.TemporaryDirectory(prefix="release-kernels-") as scratch:
        folder = Path(scratch)
        (folder / ALIAS).symlink_to(room.resolve())
        results = keep.absolute() if keep else folder / "results.jsonl"
        results.write_text("")
        after: str | None = None
        while True:
            lines, problem = _ask(program, {**request, "after": after}, folder, results)
            begun: list[str] | None = None
            ended = bool(lines) and "end" in lines[-1]
            for line in lines[: len(lines) - ended]:
                begun = line.get("begun", None if "result" in line else begun)
                yield line
            if ended and problem is None:
                return
            problem = problem or StageError(f"{program} of the kernels ended before it was done, and said that all was well")
            if begun is None:
                raise problem
            yield {"ended": begun, "why": str(problem)}
            after = begun[0]


def _ask(program: str, request: Mapping[str, Any], folder: Path, results: Path) -> tuple[list[dict[str, Any]], StageError | None]:
    """Return the lines that the room added to `results` for a request, and how its process failed, if it did."""
    asked, before = folder / "request.json", results.stat().st_size
    asked.write_text(json.dumps(request), encoding="utf-8")
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TRITON_INTERPRET": ""}
    problem = None
    try:
        python = os.environ.get(PYTHON) or sys.executable
        run([python, "-m", f"{ALIAS}.{program}", str(asked), str(results)], env=environment, cwd=folder)
    except StageError as caught:
        problem = caught
    return [json.loads(line) for line in results.read_bytes()[before:].decode().splitlines()], problem


def _verdict(operator: str, case: str, dtype: str, status: str, measured: str, wanted: str, reason: str) -> Verdict:
    name = "/".join(part for part in ("operators", operator, dtype, case) if part)
    figures = {"operator": operator, "dtype": dtype, "case": case}
    return Verdict(name=name, status=Status(status), measured=measured, wanted=wanted, reason=reason, figures=figures)


def _missing(why: str) -> Verdict:
    return Verdict(
        name="operators", status=Status.SKIPPED, measured="nothing", wanted="operators that compute the right thing", reason=why
    )


def listed() -> tuple[str, ...]:
    """Return the names of the room's operators; each has its configurations, and no torch is loaded to know them."""
    return tuple(table())
