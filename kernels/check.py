"""Proof of operators: each case launched in memory that shows mistakes and compared with its float64 reference.

Run as a program of its own, since Triton reads TRITON_INTERPRET while it is imported and a wrong kernel may end the process:
`python -m release_kernels.check REQUEST RESULTS`, files of JSON. One line a result goes to RESULTS; a case is announced before it is tried.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from .interpreter import VARIABLE, interpreted, mend, watched
from .operator import Facts

OLDEST: Final = (3, 2)
"""The first Triton that these kernels are written for."""
LAUNCHES: Final = 3
"""How often a case is launched on a device, where a race shows only now and then."""


@dataclass(frozen=True)
class Result:
    """What was found of one case of an operator: PASSED, FAILED or SKIPPED, what was measured and wanted, and why."""

    operator: str
    case: str
    dtype: str
    status: str
    measured: str
    wanted: str
    reason: str


def main(arguments: list[str]) -> None:
    """Do what a request file asks and write the results, each as soon as it is known."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    with open(arguments[1], "a", encoding="utf-8", buffering=1) as results:
        for line in answers(request):
            results.write(json.dumps(line) + "\n")


def answers(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a check: `missing` and nothing else where it cannot run, else `machine`, then `begun` and `result` by turns.

    A request has `facts`, `operators` (all, if empty), `dtypes`, `library` (`ours` or `flaggems`), and `after`,
    the operator behind which to go on, if any.
    """
    missing = prepare()
    if missing:
        yield {"missing": missing}
        return
    import torch
    import triton

    from .cases import cases_of

    device = torch.get_default_device() if interpreted() else torch.accelerator.current_accelerator()
    name = "Triton's interpreter" if interpreted() else torch.get_device_module(device).get_device_name()
    yield {"machine": {"device": name, "interpreted": interpreted(), "torch": torch.__version__, "triton": triton.__version__}}
    facts = Facts(**request["facts"])
    try:
        table = operators_of(request["library"])
    except ImportError as problem:
        yield {"missing": f"FlagGems cannot be imported by {sys.executable}: {problem}"}
        return
    names = list(request["operators"] or table)
    done = request.get("after")
    for operator in (table[name] for name in (names[names.index(done) + 1 :] if done else names)):
        if not operator.shapes(facts):
            yield {"result": asdict(skipped(operator.name, "", f"{facts.model} has no such operator"))}
            continue
        if operator.launch is None:
            yield {"result": asdict(skipped(operator.name, "", "FlagGems has no such operator"))}
            continue
        asked = [dtype for dtype in operator.dtypes if dtype in request["dtypes"]]
        for dtype in operator.dtypes:
            why = "the chip does not compute in it" if dtype not in asked else unsupported(dtype, device)
            if why:
                yield {"result": asdict(skipped(operator.name, dtype, why))}
        dtypes = [dtype for dtype in asked if not unsupported(dtype, device)]
        for case in cases_of(operator, facts, dtypes, device, reduced=interpreted()):
            yield {"begun": [operator.name, case.name, case.dtype]}
            yield {"result": asdict(tried(operator, case))}


def operators_of(library: str) -> dict[str, Any]:
    """Return the operators by name, of ours or with FlagGems' launchers in place of ours (None where it has none).

    FlagGems copies rows that lie apart, so nothing is said of them.
    """
    from .operators import OPERATORS

    if library == "ours":
        return dict(OPERATORS)
    from .flaggems import launchers

    theirs = launchers()
    return {name: replace(operator, launch=theirs.get(name), strided=()) for name, operator in OPERATORS.items()}  # type: ignore[arg-type]


def skipped(operator: str, dtype: str, why: str) -> Result:
    """Return the result of what was not tried."""
    return Result(operator, "", dtype, "SKIPPED", "nothing", "a comparison with float64", why)


def prepare() -> str:
    """Make torch and triton ready, in the interpreter where there is no device; return what is missing, or nothing."""
    try:
        import torch
    except ImportError as problem:
        return f"torch cannot be imported by {sys.executable}: {problem}"
    if not torch.accelerator.is_available():
        os.environ[VARIABLE] = "1"
    try:
        import triton
    except ImportError as problem:
        return f"triton cannot be imported by {sys.executable}: {problem}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton is {triton.__version__}, and these kernels need {'.'.join(map(str, OLDEST))} or later"
    if interpreted():
        mend()
    return ""


def unsupported(dtype: str, device: Any) -> str:
    """Return why a device cannot compute in a dtype, or nothing. The interpreter can in all."""
    import torch

    if device.type == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "the device does not compute in it"
    return ""


def tried(operator: Any, case: Any) -> Result:
    """Launch one case and return what came of it; whatever is raised on the way is a failure with its reason."""
    from .tolerances import distance, wanted

    try:
        inputs, outputs = launched(operator, case)
        references = operator.reference(**inputs)
    except NotImplementedError as problem:
        return Result(operator.name, case.name, case.dtype, "SKIPPED", "nothing", "a comparison with float64", str(problem))
    except Exception as problem:
        return Result(operator.name, case.name, case.dtype, "FAILED", type(problem).__name__, "a result", root_of(problem))
    references = references if isinstance(references, tuple) else (references,)
    if len(outputs) != len(references):
        return Result(operator.name, case.name, case.dtype, "FAILED", f"{len(outputs)} outputs", f"{len(references)}", "count")
    reduces = max(1, operator.reduces(inputs))
    errors = [distance(a, b, reduces, operator.steps) for a, b in zip(outputs, references, strict=True)]
    worst = max(range(len(errors)), key=lambda number: errors[number])
    near = errors[worst] <= 1
    reason = "near enough to the float64 reference" if near else f"output {worst} is too far from the float64 reference"
    what = f"{errors[worst]:.2g} of the tolerance"
    limit = wanted(outputs[worst].dtype, reduces, operator.steps)
    return Result(operator.name, case.name, case.dtype, "PASSED" if near else "FAILED", what, limit, reason)


def launched(operator: Any, case: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return the inputs of a case as they were, and what the operator made of a copy of them in poisoned and fenced memory.

    Raises RuntimeError where something was written that should not be, and, in the interpreter, what `Watch` raises.
    """
    import torch

    from .memory import Memory, bits

    before = case.make()
    for _ in range(1 if interpreted() else LAUNCHES):
        memory = Memory(far=case.far)
        placed = {}
        for name, value in before.items():
            loose = name in operator.strided
            memory.far = case.far and loose
            placed[name] = memory.place(value, apart=case.apart and loose) if isinstance(value, torch.Tensor) else value
        memory.far = case.far
        with memory, watched(memory.ranges) if interpreted() else nullcontext():
            found = operator.launch(**placed)
            outputs = found if isinstance(found, tuple) else (found,)
        if memory.broken():
            raise RuntimeError(f"{memory.broken()} elements beside a tensor were written over")
        for name, value in before.items():
            if (
                isinstance(value, torch.Tensor)
                and name not in operator.in_place
                and not torch.equal(bits(value), bits(placed[name]))
            ):
                raise RuntimeError(f"the input {name} was changed")
    return before, outputs


def root_of(problem: BaseException) -> str:
    """Return what the first of a chain of errors says, in one line."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:300]


if __name__ == "__main__":
    main(sys.argv[1:])
