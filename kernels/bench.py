"""How long operators take on a device, beside torch's own and FlagGems' in the same process, and what the device can do at most.

Run as a program of its own, as the check is: `python -m release_kernels.bench REQUEST RESULTS`. It times nothing in Triton's interpreter:
where no device is here it says so and ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from .check import main, root_of, torch_missing, triton_missing, unbound, unsupported
from .configurations import CHIP, candidates
from .contest import COMPILED, EAGER, FLAGGEMS, OURS, REPEATS, Contender, Effort, Walk, guarded, measure, pace_of, turn
from .interpreter import VARIABLE, interpreted
from .operator import Facts, Inputs, Operator, Sizes, size_of

if TYPE_CHECKING:
    from .bindings import Binding
    from .clock import Clock
    from .native import Native

SIDE: Final = 8192
"""Rows, columns and depth of the product that shows the rate of a device; float32, which takes longer, has half."""
COPIED: Final = 1 << 30
"""Bytes that are copied to show the bandwidth of a device."""


def absent() -> str:
    """Return why nothing can be timed here, or nothing."""
    if interpreted():
        return f"{VARIABLE}=1 is set, and the time of Triton's interpreter says nothing about a device"
    missing = torch_missing() or triton_missing()
    if missing:
        return missing
    import torch

    if not torch.accelerator.is_available():
        return f"torch {torch.__version__} finds no device here, and the time of Triton's interpreter says nothing about one"
    return ""


def answers(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a bench: `missing` alone where it cannot run, else `machine`, `ceilings`, then `begun` and `result` by turns.

    A request has `chip`, `facts`, `operators` (all, if empty), `dtypes`, `trying` (every configuration worth it, or the one that holds),
    and `after`, the operator behind which to go on, if any; with `looking` nothing is timed, and `machine` is all that is said.
    """
    missing = absent()
    if missing:
        yield {"missing": missing}
        return
    import torch

    from .clock import clock_of
    from .operators import OPERATORS

    os.environ[CHIP] = request["chip"]
    clock = clock_of(torch.accelerator.current_accelerator())
    yield {"machine": machine_of(clock)}
    if request.get("looking"):
        return
    done = request.get("after")
    if not done:
        yield {"ceilings": ceilings(clock, [*request["dtypes"], "int8", "float8_e4m3fn"])}
    facts, theirs = Facts(**request["facts"]), theirs_here()
    names = list(request["operators"] or OPERATORS)
    for name in names[names.index(done) + 1 :] if done else names:
        yield from lines_of(OPERATORS[name], facts, request["dtypes"], clock, theirs, trying=request["trying"])


def lines_of(
    operator: Operator, facts: Facts, dtypes: Sequence[str], clock: Clock, theirs: Mapping[str, Binding] | str, *, trying: bool
) -> Iterator[dict[str, Any]]:
    """Yield the lines of one operator: what is `planned`, then each case `begun` and its `result`, or why there is none.

    An operator of a single dtype is timed in that, whatever was asked: it is its own.
    """
    from .cases import spelled
    from .native import NATIVE

    shapes = distinct(operator.shapes(facts))
    if not shapes:
        yield {"result": skipped(operator, "", f"{facts.model} has no such operator")}
        return
    own = [dtype for dtype in operator.dtypes if dtype in dtypes] or operator.dtypes[: len(operator.dtypes) == 1]
    yield {"planned": [{**label(operator, dtype), "case": spelled(sizes)} for dtype in own for sizes in shapes]}
    for dtype in own:
        why = unsupported(dtype, clock.device)
        for sizes in shapes:
            if why:
                yield {"result": {**skipped(operator, dtype, why), "case": spelled(sizes)}}
                continue
            yield {"begun": [operator.name, spelled(sizes), dtype]}
            asked = contenders(operator, NATIVE[operator.name], theirs)
            found = case(operator, sizes, dtype, asked, clock, trying=trying)
            yield {"result": {**label(operator, dtype), "case": spelled(sizes), **found}}
    if not set(operator.dtypes) & set(dtypes) and len(operator.dtypes) > 1:
        yield {"result": skipped(operator, "", f"it does not compute in {', '.join(dtypes)}")}


def distinct(shapes: Sequence[Sizes]) -> list[Sizes]:
    """Return each shape once, however often a model calls it: it counts once in a mean."""
    return list({tuple(sorted(sizes.items())): sizes for sizes in shapes}.values())


def label(operator: Operator, dtype: str) -> dict[str, Any]:
    """Return what names a line."""
    return {"operator": operator.name, "family": operator.family, "dtype": dtype, "memory_bound": operator.memory_bound}


def skipped(operator: Operator, dtype: str, why: str) -> dict[str, Any]:
    """Return the line of what was not timed."""
    return {**label(operator, dtype), "case": "", "contenders": [], "why": why}


def case(
    operator: Operator, sizes: Mapping[str, int], dtype: str, asked: Sequence[Contender], clock: Clock, *, trying: bool = False
) -> dict[str, Any]:
    """Return what one case comes to: bytes, operations, rows and dtype that it multiplies, and the seconds of each contender."""
    import torch

    from .cases import generator

    try:
        inputs = operator.inputs(sizes, getattr(torch, dtype), clock.device, generator(clock.device))
    except (MemoryError, torch.OutOfMemoryError):
        clock.settle()
        return {"contenders": [], "why": "there is not memory enough for its inputs"}
    multiplied = inputs["a"].dtype if "a" in inputs else getattr(torch, dtype)
    rows = inputs.get("pairs", sizes.get("rows", 0))
    asked = [*asked, *(tries(operator, rows, multiplied) if trying else ())]
    found = {
        "computes": str(multiplied).removeprefix("torch."),
        "rows": rows,
        "moved": operator.moved(inputs),
        "flops": operator.flops(inputs),
    }
    return {**found, **measure(operator, inputs, asked, clock)}


def contenders(operator: Operator, native: Native, theirs: Mapping[str, Binding] | str) -> list[Contender]:
    """Return the ways of an operator: ours, torch's eager and compiled, torch's others, and FlagGems' (or why there are none)."""
    import torch

    def eager(inputs: Inputs) -> Callable[[], Any]:
        return partial(native.eager, **native.known(inputs))

    def compiled() -> Callable[[Inputs], Callable[[], Any]]:
        call = torch.compile(native.eager, dynamic=False)
        return lambda inputs: partial(call, **native.known(inputs))

    found = [Contender(OURS, lambda inputs: partial(operator.launch, **inputs)), Contender(EAGER, eager)]
    found.append(Contender(COMPILED, None, native.unfused) if native.unfused else Contender(COMPILED, compiled()))
    for name, (call, known) in native.others.items():
        found.append(Contender(name, partial(_called, call, known)))
    if isinstance(theirs, str) or operator.name not in theirs:
        found.append(Contender(FLAGGEMS, None, theirs if isinstance(theirs, str) else unbound(operator.name)))
    else:
        found.append(Contender(FLAGGEMS, theirs[operator.name].ready, same=theirs[operator.name].same))
    return [replace(contender, ties=native.ties) for contender in found]


def tries(operator: Operator, rows: int, dtype: object) -> list[Contender]:
    """Return ours with each other configuration worth trying for so many rows, named by what differs from the one that holds."""
    now, *others = candidates(operator.name, rows=rows, dtype=dtype)
    found = []
    for other in others:
        name = " ".join((OURS, *(f"{key}={value}" for key, value in other.items() if value != now[key])))
        found.append(Contender(name, partial(_called, partial(operator.launch, configuration=other), dict)))
    return found


def _called(call: Callable[..., Any], known: Callable[[Inputs], Inputs], inputs: Inputs) -> Callable[[], Any]:
    return partial(call, **known(inputs))


def ceilings(
    clock: Clock, dtypes: Sequence[str], effort: Effort | None = None, *, side: int = SIDE, copied: int = COPIED
) -> dict[str, Any]:
    """Return what the device does at most: `copy`, bytes read and written and the seconds of each round; `matmul` by dtype, or why not.

    The product is the one of the device's own library, float32 in all its bits unless torch was told otherwise.
    """
    import torch

    effort = effort or Effort()
    source = torch.randn(copied // 4, device=clock.device)
    target = torch.empty_like(source)
    found: dict[str, Any] = {"copy": {"moved": 2 * size_of(source), **timed(lambda: target.copy_(source), clock, effort)}}
    found["matmul"] = {}
    for name in dict.fromkeys(dtypes):
        length = side // 2 if name == "float32" else side
        found["matmul"][name] = {
            "flops": 2 * length**3,
            **timed(partial(product_of, name, length, clock), clock, effort, made=True),
        }
    return found


def timed(call: Callable[[], Any], clock: Clock, effort: Effort, *, made: bool = False) -> dict[str, Any]:
    """Return the median seconds of each round of a call (of the one that it returns, if it is `made` first), or why there are none."""
    why: dict[str, tuple[str, str]] = {}

    def rounds() -> list[float]:
        walk = Walk(Contender("ceiling", lambda inputs: call() if made else call), [{}])
        pace = pace_of(walk, clock, effort)
        return [turn(walk, pace, clock) for _ in range(REPEATS)]

    seconds = guarded("ceiling", clock, why, rounds)
    return {"seconds": seconds or [], "why": why["ceiling"][1] if why else ""}


def product_of(name: str, side: int, clock: Clock) -> Callable[[], Any]:
    """Return a square product of the device's library in a dtype."""
    import torch

    dtype = getattr(torch, name)
    if dtype is torch.int8:
        a, b = (torch.randint(-128, 128, (side, side), device=clock.device, dtype=dtype) for _ in range(2))
        return lambda: torch._int_mm(a, b.t())
    a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    if dtype.itemsize == 1:
        one = torch.ones((), device=clock.device)
        return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)
    return lambda: a @ b.t()


def theirs_here() -> Mapping[str, Binding] | str:
    """Return FlagGems' operators, which may write over their inputs here, or why there are none."""
    from .bindings import bindings

    try:
        return bindings(spare=False)
    except ImportError as problem:
        return f"FlagGems cannot be imported: {problem}"
    except Exception as problem:  # it asks the device for much while it is imported
        return f"FlagGems cannot be imported: {root_of(problem)}"


def machine_of(clock: Clock) -> dict[str, Any]:
    """Return what the figures were taken on: device, versions, clock, and the cache that was emptied."""
    import torch
    import triton

    from .clock import cache_of

    module = torch.get_device_module(clock.device)
    runtimes = {name: getattr(torch.version, name, None) for name in (clock.device.type, "hip")}
    try:
        gems = version("flag-gems")
    except PackageNotFoundError:
        gems = None
    return {
        "device": module.get_device_name(clock.device),
        "backend": clock.device.type,
        "runtime": next((f"{name} {value}" for name, value in runtimes.items() if value), None),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flag-gems": gems,
        "clock": clock.name,
        "cache_bytes": clock.cache,
        "cover_seconds": clock.cover,
        "cache_assumed": not cache_of(module, clock.device),
        "float32_products": torch.get_float32_matmul_precision(),
    }


if __name__ == "__main__":
    main(sys.argv[1:], answers)
