"""What a vendor's papers demand of a cell, read from the chip's own rules: one interpreter for every chip's YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from release.matrix.memory import FLOATS, plain, settings
from release.matrix.tensors import parameters
from release.types import Concern, Plan, Rule, When

BILLION: Final = 1e9


def demanded(plan: Plan) -> Iterator[Concern]:
    """Every rule of the chip that applies to the plan holds; what does not is told with the vendor's reason and source."""
    for rule in plan.chip.rules:
        yield from _judged(rule, plan)


def demanded_of_layout(plan: Plan) -> Iterator[Concern]:
    """Of the chip's rules those hold that count devices."""
    for rule in plan.chip.rules:
        if rule.world_size is not None:
            yield from _judged(rule, plan)


def applies(when: When, plan: Plan) -> bool:
    """Say whether a rule applies to a plan: everything that it names must hold.

    `parameters-at-least` is in billions. Of several engines, families, precisions or features one is enough. Before a layout is chosen, a
    rule about split key-value heads does not apply.
    """
    a = plan.model.architecture
    if when.kv_heads_split is not None:
        tp = plan.parallel.tensor_parallel_size if plan.parallel else None
        if tp is None or (a.kv_heads % tp == 0) is not when.kv_heads_split:
            return False
    if when.parameters_at_least is not None and parameters(a) < when.parameters_at_least * BILLION:
        return False
    return (
        (not when.engines or plan.engine in when.engines)
        and (not when.families or plan.model.family in when.families)
        and (not when.precisions or plan.precision in when.precisions)
        and (not when.features or any(feature in plan.features for feature in when.features))
    )


def broken(rule: Rule, plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield what of a rule does not hold, with the next step."""
    if rule.dtypes and plan.dtype not in rule.dtypes:
        yield f"activations in {plan.dtype}", f"use {' or '.join(rule.dtypes)}"
    if rule.precisions and plan.precision not in rule.precisions:
        yield f"precision {plan.precision}", f"use {' or '.join(rule.precisions)}"
    if rule.weights == "float" and plan.precision not in FLOATS:
        yield f"{plan.precision} weights", "use float weights"
    if ticked := [feature for feature in rule.without if feature in plan.features]:
        yield f"{' and '.join(ticked)} together with this", "leave it out"
    if rule.most is not None and len(plan.adapters) > rule.most:
        yield f"{len(plan.adapters)} adapters are more than {rule.most}", f"leave {len(plan.adapters) - rule.most} out"
    if rule.world_size == "even" and plan.parallel and plan.parallel.world_size > 1 and plan.parallel.world_size % 2:
        yield f"world size {plan.parallel.world_size} is odd", "use an even number of devices, or one"
    yield from _unset(rule, plan)
    yield from _uneven(rule, plan)


def _judged(rule: Rule, plan: Plan) -> Iterator[Concern]:
    if applies(rule.when, plan):
        for message, step in broken(rule, plan):
            said = f"{message}: {rule.reason}"
            yield Concern(rule=rule.id, severity=rule.severity, message=said, source=rule.source, next_step=step)


def _unset(rule: Rule, plan: Plan) -> Iterator[tuple[str, str]]:
    env = {**(plan.weights.env if plan.weights else {}), **plan.container.env, **plan.serve.env}
    for name, wanted in rule.env.items():
        if env.get(name) != wanted:
            yield f"{name} is {env.get(name) or 'not set'}", f"set serve.env.{name} to {wanted}"
    for name, value in rule.args.items():
        said = settings(plan).get(plain(name))
        if said != value:
            yield f"{name} is {'not set' if said is None else _spelled(said)}", f"set {name} to {_spelled(value)}"


def _uneven(rule: Rule, plan: Plan) -> Iterator[tuple[str, str]]:
    for name, step in rule.multiples.items():
        for number in _numbers(settings(plan).get(plain(name))):
            if number % step:
                lower = number - number % step
                near = f"{lower} or {lower + step}" if lower else str(step)
                yield f"{name} {number} is not a multiple of {step}", f"use {near}"


def _numbers(said: Any) -> Iterator[int]:
    """Yield the whole numbers in a value: a number, a list of any depth, or a list written with commas."""
    if isinstance(said, bool) or said is None:
        return
    if isinstance(said, int):
        yield said
    elif isinstance(said, list | tuple):
        for item in said:
            yield from _numbers(item)
    elif isinstance(said, str):
        yield from (int(word) for word in said.replace("[", " ").replace("]", " ").replace(",", " ").split() if word.isdecimal())


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
