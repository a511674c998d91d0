"""What `release plan` prints: the plan itself, what the rules say of it, and which stages would run."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json
from rich.markup import escape
from rich.table import Table

from release.build import stages_of
from release.errors import MatrixError
from release.matrix.memory import GIB, assumed
from release.show.text import as_document, bare, counted, text
from release.types import Evaluation, GitSource, Unknown, Wheel

if TYPE_CHECKING:
    from release.house import House, Study
    from release.matrix.check import Asked
    from release.matrix.layout import Choice
    from release.pipeline import Graph
    from release.types import Concern, Parallel, Plan


COLOURS = {"refuse": "[red]refused[/]", "warn": "[yellow]warning[/]", "note": "[dim]note[/]"}
STATES = {"refuse": "refused", "warn": "warning"}
MOST = 8
"""Layouts that are shown; --json has them all."""


def plan(house: House, study: Study, tasks: Graph | None, *, as_json: bool) -> str:
    """Return what there is to say about a cell, and what a build of it would do, and why; `tasks` is None where it is refused."""
    rows = _stages(house, study.plan.cell, tasks) if tasks else []
    if as_json:
        return as_document({**from_json(to_json(_summary(study), by_alias=True)), "stages": rows})
    parts: list[object] = [_facts(study)]
    if study.choice:
        parts.append(_layouts(study.choice))
    if study.concerns:
        parts.append(_concerns(study.concerns))
    if tasks:
        parts += _stage_table(rows)
    return text(*parts)


def everything(house: House, asked: Asked, filters: dict[str, str | None], *, as_json: bool) -> Iterator[str]:
    """Yield a line a cell: whether it can work, on which layout, how much memory a device needs, and what the rules say.

    As JSON, one document whose items stand a line each: ten thousand cells are never held at once. Raises UsageError where no cell fits,
    and, after the last line, MatrixError where a layout was asked for and every cell is refused.
    """
    from release.show.matrix import rows_that_fit

    wanted = sorted(row["cell"] for row in rows_that_fit(house.matrix, filters))
    refused = 0
    if as_json:
        yield "["
        for number, cell in enumerate(wanted, 1):
            study = house.study(cell, asked)
            refused += study.refusal is not None
            yield to_json(_summary(study), by_alias=True).decode() + ("," if number < len(wanted) else "")
        yield "]"
    else:
        refused = yield from _lines(house, asked, wanted)
    if refused == len(wanted) and (asked.tensor_parallel_size or asked.pipeline_parallel_size or asked.devices):
        raise MatrixError(
            f"{counted(refused, 'cell')}: the layout that was asked for is refused by every one",
            next_step="leave it out: the plan chooses one and says why",
        )


def _lines(house: House, asked: Asked, wanted: list[str]) -> Generator[str, None, int]:
    """Yield the lines of the table, and return how many cells are refused."""
    lines, refused = [("cell", "state", "layout", "GiB a device", "at once", "what the rules say")], 0
    for cell in wanted:
        study = house.study(cell, asked)
        # Contradictions of papers are the last of the warnings: what is said is what this plan can do something about.
        worst = next((concern for concern in study.concerns if concern.severity != "note"), None)
        said = worst.message + (f" (and {len(study.concerns) - 1} more)" if len(study.concerns) > 1 else "") if worst else ""
        lines.append((cell, STATES[worst.severity] if worst else "ok", *_fit(study), said))
        refused += study.refusal is not None
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        yield "  ".join([*(word.ljust(width) for word, width in zip(line, widths, strict=False)), line[5]]).rstrip()
    yield f"\n{counted(len(wanted), 'cell')}, {refused} refused."
    return refused


def _summary(study: Study) -> dict[str, Any]:
    choice = study.choice
    return {
        "plan": study.plan,
        "concerns": study.concerns,
        "memory": study.memory,
        "layouts": choice.layouts if choice else [],
        "why": choice.why if choice else None,
    }


def _fit(study: Study) -> tuple[str, str, str]:
    """Return layout, memory and full-length sequences in a few characters."""
    if study.memory is None or study.plan.parallel is None:
        return "", "", ""
    return layout_line(study.plan.parallel), f"{study.memory.needed / GIB:.1f}", str(study.memory.sequences or "")


def layout_line(parallel: Parallel) -> str:
    """Return a layout as people say it: `TP 8`, `TP 8 × PP 2 × 2 replicas`."""
    words = [f"TP {parallel.tensor_parallel_size}"]
    words += [f"PP {parallel.pipeline_parallel_size}"] if parallel.pipeline_parallel_size > 1 else []
    words += [f"{parallel.replicas} replicas"] if parallel.replicas > 1 else []
    return " × ".join(words)


def _layouts(choice: Choice) -> Table:
    """Return the candidates with the estimate behind each, the chosen one first."""
    table = Table(
        *("layout", "weights", "KV", "of", "at once", "ms a token", "tokens/s", "prefill/s", "verdict"),
        title=f"layouts of {choice.devices} devices (GiB a device; speeds are upper bounds)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for layout in choice.layouts[:MOST]:
        held = layout.memory
        table.add_row(
            layout_line(layout.parallel),
            f"{held.weights / GIB:.1f}",
            f"{held.kv_full / GIB:.1f}",
            f"{held.budget / GIB:.1f}" if held.budget else "",
            str(held.sequences if held.sequences is not None else ""),
            _speed(layout.decode_ms, 1),
            _speed(layout.tokens_per_second, 0),
            _speed(layout.prefill_tokens_per_second, 0),
            layout.verdict,
        )
    more = len(choice.layouts) - MOST
    table.caption = f"{'chosen' if choice.best else 'none'}: {escape(choice.why)}" + (
        f"\n{more} more with --json" if more > 0 else ""
    )
    table.caption_justify, table.caption_style = "left", ""
    return table


def _speed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _concerns(concerns: tuple[Concern, ...]) -> Table:
    table = bare()
    for concern in concerns:
        source = f" ({concern.source})" if concern.source else ""
        table.add_row(COLOURS[concern.severity], concern.rule, escape(concern.message + source))
    return table


def _stages(house: House, cell: str, tasks: Graph) -> list[dict[str, Any]]:
    """Return one row a stage of the cell and of its references: whether it is cached, else why it would run."""
    reasons = house.reasons(tasks)
    rows: list[dict[str, Any]] = []
    for owner in dict.fromkeys([cell, *(owner for owner, _ in tasks.of)]):
        for name, task in stages_of(tasks, owner):
            why = reasons[owner, name]
            facts = house.store.facts(task.key) if not why else {}
            rows.append(
                {
                    "cell": owner,
                    "stage": name,
                    "key": task.key,
                    "cached": not why,
                    "why": why,
                    "shared": task.cell != owner,
                    "summary": facts.get("summary", ""),
                    "seconds": facts.get("seconds"),
                }
            )
    return rows


def _stage_table(rows: list[dict[str, Any]]) -> list[object]:
    table = Table("cell", "stage", "key", "state", "why", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        if row["shared"]:
            continue
        state = "[cyan]cached[/]" if row["cached"] else "[yellow]run[/]"
        reason = str(row["summary"]) if row["cached"] else "; ".join(row["why"])
        table.add_row(row["cell"], row["stage"], row["key"][:12], state, escape(reason))
    run = sum(not row["cached"] and not row["shared"] for row in rows)
    return [table, f"{run} stages would run, {len({row['key'] for row in rows}) - run} are cached."]


def _facts(study: Study) -> Table:
    """Return the plan itself: what is released, from what, and how it is served."""
    from release.trial import reads_serve

    planned = study.plan
    rows = [
        ("cell", planned.cell),
        ("chip", f"{planned.chip.name}, {planned.chip.architecture}"),
        ("model", f"{planned.model.name}, {planned.model.architecture.class_}, {planned.model.precision} upstream"),
        ("base", base_line(planned)),
        *(("source", source_line(source)) for source in planned.sources),
    ]
    if planned.wheels and planned.python:
        rows += [("wheels", f"{planned.wheels}, Python {planned.python.version}, glibc {planned.python.glibc}")]
    if planned.device and planned.parallel and (held := study.memory):
        count = planned.parallel.world_size * planned.parallel.replicas
        rows += [("layout", f"{layout_line(planned.parallel)} on {count} × {planned.device.name}")]
        once = f"; {held.sequences} of {held.context} tokens at once" if held.sequences is not None else ""
        room = f", of {held.budget / GIB:.1f} GiB a device{once}" if held.budget else ""
        room += f"; assumed: {held.asked} sequences, the cell does not say" if assumed(planned) else ""
        rows += [("memory", f"{held.weights / GIB:.1f} GiB of weights, {held.kv_one / GIB:.2f} GiB a sequence{room}")]
    start = reads_serve(planned)
    rows += [("serve", shlex.join(start["argv"]) or f"unknown: {start['unknown']}")]
    if planned.accuracy:
        rows += [("questions", f"{planned.accuracy.questions}, margin {100 * planned.accuracy.margin:g} points")]
    rows += [*trials(planned)]
    rows += [("compared with", planned.reference or "nothing")]
    table = bare()
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def trials(planned: Plan) -> Iterator[tuple[str, str]]:
    """Yield what else a release of this plan is tried with, and what somebody lets pass."""
    for each in planned.benchmarks:
        by = f"by {each.runner}" if isinstance(each, Evaluation) else each.questions
        yield "questions", f"{each.name}: {by}, {each.repeats} × each, margin {100 * each.margin:g} points"
    if spec := planned.consistency:
        yield "consistency", f"{spec.prompts}, {spec.tokens} tokens to score, {spec.samples} samples a prompt"
    if load := planned.performance:
        loads = ", ".join(f"{given} + {made} tokens" for given, made in load.grid)
        yield "performance", f"{loads}; {', '.join(map(str, load.concurrency))} in flight; {load.repeats} repeats"
    if planned.operators:
        yield "operators", f"{planned.operators.library}, proven by the log line {planned.operators.proof!r}"
    for waiver in planned.waivers:
        yield "waiver", f"{waiver.validator} until {waiver.expires}: {waiver.reason} ({waiver.owner}, {waiver.issue})"


def base_line(planned: Plan) -> str:
    """Return where the lowest layers come from, in a few words."""
    base = planned.base
    if isinstance(base, Unknown):
        return f"unknown: {base.unknown}"
    if base.access is not None:
        name = base.access.name if isinstance(base.access.name, str) else "an image"
        return f"{name}, not pinned: {base.access.contact}"
    return base.image or f"Debian {base.bootstrap.suite if base.bootstrap else ''}, made here"


def source_line(source: Wheel | GitSource) -> str:
    """Return what a source is and what is changed in it, in a few words."""
    if isinstance(source, Wheel):
        return source.wheel + (f", patched by {source.patches}" if source.patches else "")
    commit = source.commit[:12] if isinstance(source.commit, str) else "commit unknown"
    patch = source.patches or (source.vendor_patch and f"{source.vendor_patch.device_type}/{source.vendor_patch.commit_id}")
    return f"{source.name} {source.tag or source.branch or ''} {commit}".replace("  ", " ") + (
        f", patched by {patch}" if patch else ""
    )
