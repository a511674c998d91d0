"""What an operator is tried with: a model's own shapes, the edges, hostile values, and memory laid out to show mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch

from .operator import Facts, Inputs, Operator, Orders, Sizes

SEED: Final = 20_261_128


@dataclass(frozen=True)
class Case:
    """One call: its name, how its inputs are made, and how they lie.

    Rows lie apart (with poison between) or far apart, inputs are `laid` in another order, or some are `spread`: every other element of
    what is longer, which a launch may refuse.
    """

    name: str
    dtype: str
    make: Callable[[], Inputs]
    apart: bool = False
    far: bool = False
    laid: Orders = field(default_factory=dict)
    spread: tuple[str, ...] = ()


def cases_of(operator: Operator, facts: Facts, dtypes: Sequence[str], device: torch.device, *, reduced: bool) -> Iterator[Case]:
    """Yield every case of an operator; none where the model does not have it. `reduced` makes shapes small enough for the interpreter."""
    shapes = operator.shapes(facts)
    if not shapes:
        return
    if reduced:
        shapes = [dict(items) for items in dict.fromkeys(tuple(operator.reduced(shape).items()) for shape in shapes)]
    smallest = {"": operator.edges.get("odd", operator.reduced(shapes[0]))}
    if "odd heads" in operator.edges:  # rows that lie in another way are another way through the kernel
        smallest["heads, "] = operator.edges["odd heads"]
    for name in dtypes:
        dtype = getattr(torch, name)
        for case, sizes in [*((spelled(shape), shape) for shape in shapes), *operator.edges.items()]:
            yield Case(case, name, partial(made, operator, sizes, dtype, device))
        for of, small in smallest.items():
            few = {**small, "rows": min(small.get("rows", 3), 3)}
            for kind in (FINITE if operator.finite else (LARGE, *VALUES)) if operator.hostile else ():
                yield Case(f"{of}{kind}", name, partial(made, operator, small, dtype, device, kind))
            if operator.strided:
                yield Case(f"{of}rows apart", name, partial(made, operator, small, dtype, device), apart=True)
                yield Case(f"{of}rows 2^30 apart", name, partial(made, operator, few, dtype, device), far=True)
        for edge, orders in operator.laid.items():
            yield Case(f"{edge}, laid otherwise", name, partial(made, operator, operator.edges[edge], dtype, device), laid=orders)
        if operator.adversarial:
            for kind, inputs in operator.adversarial(dtype, device, generator(device)).items():
                yield Case(kind, name, partial(dict, inputs))
    if operator.spread and dtypes:
        yield from spread(
            operator, [*map(operator.edges.__getitem__, operator.laid), smallest[""], *operator.edges.values()], dtypes[0], device
        )


def spread(operator: Operator, sizes: Sequence[Sizes], name: str, device: torch.device) -> Iterator[Case]:
    """Yield for each input the case in which it is every other element of what is longer, and for inputs of one shape that of them all.

    In one dtype: whether a launch knows the stride, or sees that there is one that it does not know, is the same in all.
    """
    done: set[tuple[str, ...]] = set()
    for one in sizes:
        make = partial(made, operator, one, getattr(torch, name), device)
        tensors = {key: value for key, value in make().items() if isinstance(value, torch.Tensor) and value.numel() > 1}
        alike: dict[object, list[str]] = {}
        for key, value in tensors.items():
            alike.setdefault((value.shape, value.dtype), []).append(key)
        for names in dict.fromkeys([*((key,) for key in tensors), *map(tuple, alike.values())]):
            if names not in done:
                done.add(names)
                yield Case(f"every other element of {', '.join(names)}", name, make, spread=names)


def made(operator: Operator, sizes: Sizes, dtype: torch.dtype, device: torch.device, kind: str = "") -> Inputs:
    """Return an operator's random inputs, hostile values of a kind planted in them where one is named."""
    inputs = operator.inputs(sizes, dtype, device, generator(device))
    for name in operator.hostile if kind else ():
        if kind == LARGE and dtype is torch.float16:
            inputs[name].mul_(min(operator.largest, 1e4)).clamp_(-6e4, 6e4)
        elif kind == LARGE:
            inputs[name].mul_(operator.largest)
        else:
            VALUES[kind](inputs[name])
    return inputs


def generator(device: torch.device) -> torch.Generator:
    """Return the source of all random inputs, the same each time."""
    return torch.Generator(device=device).manual_seed(SEED)


def spelled(sizes: Sizes) -> str:
    """Return sizes in one line."""
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def some(value: float) -> Callable[[torch.Tensor], None]:
    """Return what puts a value at a few places."""

    def plant(values: torch.Tensor) -> None:
        places = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        places[:: max(1, values.numel() // 5)] = True
        values.masked_fill_(places.view(values.shape), value)

    return plant


VALUES: Final[dict[str, Callable[[torch.Tensor], object]]] = {
    "NaN": some(float("nan")),
    "infinity": some(float("inf")),
    "−infinity": some(float("-inf")),
    "−0": lambda values: values.fill_(-0.0),
}
LARGE: Final = "large values"
FINITE: Final = (LARGE, "−0")
