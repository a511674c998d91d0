"""Cards of releases that are planned: the record of a plan, and README.md and README_zh.md out of it."""

from __future__ import annotations

from pathlib import Path

from release.house import House, Study
from release.launch import run_command
from release.publish.card import render_card
from release.publish.record import CARDS, IMAGE_WORD, planned
from release.store import write_whole
from release.trial import reads_serve
from release.types import JSON, dump


def planned_record(study: Study) -> JSON:
    """Return the record of a plan: nothing is measured in it, and what does not exist yet is null."""
    from release.builders.engines import engine_named

    plan, start, held = study.plan, reads_serve(study.plan), study.memory
    command = run_command(
        plan.container,
        image=IMAGE_WORD,
        argv=start["argv"],
        env=plan.serve.env,
        memory=plan.serve.memory,
        publish=f"127.0.0.1:{plan.serve.port}:{plan.serve.port}" if start["health"] else "",
        weights="$PWD/weights",
        extra=("--rm",),
    )
    why = {"why": study.choice.why} if study.choice else {}
    return planned(
        plan,
        command=command if start["argv"] else [],
        argv=start["argv"],
        health=start["health"],
        files=engine_named(plan.engine).files(plan),
        concerns=study.concerns,
        memory=held.facts if held else None,
        layout={**dump(plan.parallel), **why} if plan.parallel else None,
    )


def record_of(house: House, cell: str) -> JSON:
    """Return the record of a cell as planned. Raises MatrixError where the rules refuse it."""
    study = house.study(cell)
    house.refuse(study)
    return planned_record(study)


def card_of(house: House, cell: str, language: str) -> str:
    """Return the card of a cell as planned. Raises MatrixError where the rules refuse it."""
    return render_card(record_of(house, cell), language)


def write_cards(house: House, cell: str, into: Path) -> list[Path]:
    """Write the card of a cell as planned in both languages into a folder, and return the files."""
    record = record_of(house, cell)
    into.mkdir(parents=True, exist_ok=True)
    for language, name in CARDS.items():
        write_whole(into / name, render_card(record, language))
    return [into / name for name in CARDS.values()]
