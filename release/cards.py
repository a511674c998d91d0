"""Cards of releases that are planned: the record of a plan, and README.md and README_zh.md out of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

from release.containers import run_command
from release.house import House, Study
from release.publish.card import render_card
from release.publish.record import IMAGE_WORD, planned
from release.store import write_whole
from release.trial import reads_serve
from release.types import JSON, dump

NAMES: Final = {"en": "README.md", "zh": "README_zh.md"}


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
        publish=f"127.0.0.1:{plan.serve.port}:{plan.serve.port}",
        weights="$PWD/weights",
        extra=("--rm",),
    )
    memory = held and {name.replace("_", "-"): value for name, value in asdict(held).items()}
    if held and memory is not None:
        memory |= {"needed": held.needed, "starts": held.starts, "full": held.full}
    layout = plan.parallel and {**dump(plan.parallel), **({"why": study.choice.why} if study.choice else {})}
    return planned(
        plan,
        command=command if start["argv"] else [],
        argv=start["argv"],
        health=start["health"],
        files=engine_named(plan.engine).files(plan),
        concerns=study.concerns,
        memory=memory,
        layout=layout,
    )


def card_of(house: House, cell: str, language: str) -> str:
    """Return the card of a cell as planned. Raises MatrixError where the rules refuse it."""
    study = house.study(cell)
    house.refuse(study)
    return render_card(planned_record(study), language)


def write_cards(house: House, cell: str, into: Path) -> list[Path]:
    """Write the card of a cell as planned in both languages into a folder, and return the files."""
    study = house.study(cell)
    house.refuse(study)
    record = planned_record(study)
    into.mkdir(parents=True, exist_ok=True)
    for language, name in NAMES.items():
        write_whole(into / name, render_card(record, language))
    return [into / name for name in NAMES.values()]
