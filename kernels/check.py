"""Proof of operators: each case launched in memory that shows mistakes and compared with its float64 reference.

Run as a program of its own, since Triton reads TRITON_INTERPRET while it is imported and a wrong kernel may end the process:
`python -m release_kernels.check REQUEST RESULTS`, files of JSON. One line a result goes to RESULTS; a case is announced before it is tried.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from .interpreter import VARIABLE, interpreted, mend, watched
from .operator import REFUSED, Facts, NotOffered

OLDEST: Final = (3, 2)
"""The first Triton that these kernels are written for."""
FLOAT64: Final = "a comparison with float64"
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


def main(arguments: list[str], answered: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]) -> None:
    """Do what a request file asks and write the results, each as soon as it is known."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    with open(arguments[1], "a", encoding="utf-8", buffering=1) as results:
        for line in answered(request):
            results.write(json.dumps(line) + "\n")
        results.write(json.dumps({"end": True}) + "\n")  # without it the process was ended, whatever its exit status says


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
        yield {"missing": f"FlagGems cannot be imported: {problem}"}
        return
    names = list(request["operators"] or table)
    done = request.get("after")
    for operator in (table[name] for name in (names[names.index(done) + 1 :] if done else names)):
        if not operator.shapes(facts):
            yield {"result": asdict(skipped(operator.name, "", f"{facts.model} has no such operator"))}
            continue
        if operator.launch is None:
            yield {"result": asdict(skipped(operator.name, "", unbound(operator.name)))}
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
    """Return the operators by name, of ours or with FlagGems' launchers in place of ours (None where none of it is bound).

    FlagGems copies what lies otherwise than it takes it, so nothing is said of that.
    """
    from .operators import OPERATORS

    if library == "ours":
        return dict(OPERATORS)
    from .bindings import bindings

    theirs = {name: binding.launch for name, binding in bindings().items()}
    plain: dict[str, Any] = {"strided": (), "laid": {}, "spread": False}
    return {name: replace(operator, launch=theirs.get(name), **plain) for name, operator in OPERATORS.items()}  # type: ignore[arg-type]


def unbound(operator: str) -> str:
    """Return why FlagGems has nothing for an operator."""
    from .bindings import NONE

    return NONE[operator]


def skipped(operator: str, dtype: str, why: str) -> Result:
    """Return the result of what was not tried."""
    return Result(operator, "", dtype, "SKIPPED", "nothing", FLOAT64, why)


def prepare() -> str:
    """Make torch and triton ready, in the interpreter where there is no device; return what is missing, or nothing."""
    missing = torch_missing()
    if missing:
        return missing
    import torch

    if not torch.accelerator.is_available():
        os.environ[VARIABLE] = "1"
    missing = triton_missing()
    if not missing and interpreted():
        mend()
    return missing


def torch_missing() -> str:
    """Return why there is no torch, or nothing."""
    try:
        import torch  # noqa: F401
    except ImportError as problem:
        return f"torch cannot be imported by the Python of the kernels: {problem}"
    return ""


def triton_missing() -> str:
    """Return why there is no Triton that will do, or nothing. It is imported: whether it interprets is settled with that."""
    try:
        import triton
    except ImportError as problem:
        return f"triton cannot be imported by the Python of the kernels: {problem}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton is {triton.__version__}, and these kernels need {'.'.join(map(str, OLDEST))} or later"
    return ""


def unsupported(dtype: str, device: Any) -> str:
    """Return why a device cannot compute in a dtype, or nothing. The interpreter can in all."""
    import torch

    if device.type == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "the device does not compute in it"
    return ""


def tried(operator: Any, case: Any) -> Result:
    """Launch one case and return what came of it; whatever is raised on the way is a failure with its reason."""
    import torch

    from .tolerances import distance, wanted

    def result(status: str, measured: str, limit: str, reason: str) -> Result:
        return Result(operator.name, case.name, case.dtype, status, measured, limit, reason)

    try:
        inputs = case.make()
        launches = [launched(operator, case, inputs) for _ in range(1 if interpreted() else LAUNCHES)]
        references = several(operator.reference(**inputs))
    except NotOffered as problem:
        return result("SKIPPED", "nothing", FLOAT64, str(problem))
    except (MemoryError, torch.OutOfMemoryError):
        return result("SKIPPED", "nothing", FLOAT64, "there is not memory enough for it")
    except Exception as problem:
        refused = case.spread and isinstance(problem, ValueError)
        status, measured = ("PASSED", REFUSED) if refused else ("FAILED", type(problem).__name__)
        return result(status, measured, "a result, or a refusal" if case.spread else "a result", root_of(problem))
    if any(len(outputs) != len(references) for outputs in launches):
        return result("FAILED", f"{len(launches[0])} outputs", f"{len(references)} outputs", "the reference has another number")
    reduces = max(1, operator.reduces(inputs))
    error, worst = max(
        (distance(outputs[number], references[number], reduces, operator.steps), number)
        for outputs in launches
        for number in range(len(references))
    )
    limit = wanted(launches[0][worst].dtype, reduces, operator.steps)
    if error > 1:
        return result("FAILED", f"{error:.2g} of the tolerance", limit, f"output {worst} is too far from the float64 reference")
    return result("PASSED", f"{error:.2g} of the tolerance", limit, "near enough to the float64 reference")


def launched(operator: Any, case: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what an operator makes of a copy of inputs in poisoned and fenced memory.

    Raises RuntimeError where something was written that should not be, and, in the interpreter, what `Watch` raises.
    """
    import torch

    from .memory import Memory, bits

    memory, placed = Memory(), dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            loose = name in operator.strided
            memory.far = case.far and loose
            placed[name] = memory.place(
                value, apart=case.apart and loose, order=case.laid.get(name, ()), spread=name in case.spread
            )
    memory.far = case.far
    with memory, watched(memory.ranges) if interpreted() else nullcontext():
        outputs = several(operator.launch(**placed))
    if memory.broken():
        raise RuntimeError(f"{memory.broken()} elements beside a tensor were written over")
    for name, value in inputs.items():
        kept = name in operator.in_place or not isinstance(value, torch.Tensor) or torch.equal(bits(value), bits(placed[name]))
        if not kept:
            raise RuntimeError(f"the input {name} was changed")
    return outputs


def several(found: Any) -> tuple[Any, ...]:
    """Return one output, or a tuple of them, as a tuple."""
    return found if isinstance(found, tuple) else (found,)


def root_of(problem: BaseException) -> str:
    """Return what the first of a chain of errors says, in one line."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:300]


if __name__ == "__main__":
    main(sys.argv[1:], answers)
