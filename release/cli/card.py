"""The commands about cards: what the card of a planned release says, and what is wrong with any card."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from release.cli.options import complete, house_of
from release.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from release.types import JSON


@click.group(invoke_without_command=True)
@click.option("--chip", shell_complete=complete("chips"), help="The chip, as `release matrix` lists it.")
@click.option("--model", shell_complete=complete("models"), help="The model, as `release matrix` lists it.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="The language to print it in.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), help="Write README.md and README_zh.md here instead.")
@click.pass_context
def card(
    context: click.Context, chip: str | None, model: str | None, precision: str | None, lang: str, into: Path | None
) -> None:
    """Give the card of a cell as it is planned; a built release carries its own."""
    if context.invoked_subcommand is not None:
        return
    if chip is None or model is None:
        raise UsageError("say which card: --chip and --model", next_step="or: release card lint FILE")
    from release.cards import card_of, write_cards
    from release.matrix.check import precision_for

    house = house_of(context)
    cell = precision_for(house.matrix, chip, model, precision)
    if into is None:
        click.echo(card_of(house, cell, lang), nl=False)
        return
    for path in write_cards(house, cell, into):
        click.echo(path)


@card.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--record", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The release.json that the card is of."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def lint(file: Path, record: Path | None, as_json: bool) -> None:
    """Say what is wrong with a card, ours or anybody's: unpinned clones, ports that differ, claims without a switch, and so on."""
    from release.publish.lint import lint as defects

    found = defects(file.read_text(encoding="utf-8", errors="replace"), _record(record) if record else None)
    if as_json:
        click.echo(json.dumps([asdict(defect) for defect in found], indent=1, ensure_ascii=False))
    else:
        for defect in found:
            click.echo(f"{file}:{defect.line}: {defect.rule}: {defect.message}")
    if found:
        raise VerdictError(f"{file} has {len(found)} defects")
    if not as_json:
        click.echo(f"{file} has none of the known defects")


def _record(file: Path) -> JSON:
    """Return a record that a card is compared with. Raises UsageError for a file that is none."""
    step = "name the release.json that lies beside the card"
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{file} is not JSON, and so no release record", next_step=step) from problem
    if not isinstance(found, dict) or not {"cell", "state"} <= found.keys():
        raise UsageError(f"{file} is no release record", next_step=step)
    return found
