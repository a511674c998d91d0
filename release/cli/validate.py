"""The commands that judge: a server by its address, and what figures or files of answers prove."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from release.cli.options import house_of
from release.errors import UsageError, VerdictError

if TYPE_CHECKING:
    from release.validators.judgement import Judgement
    from release.validators.published import Card

DEFAULT_MARGIN: Final = 0.02
"""Two points, where nothing is said: what most benchmarks of the field are held to."""


@click.command()
@click.option("--url", required=True, help="Where it answers, as http://host:8000.")
@click.option("--model", required=True, help="The name under which it serves.")
@click.option("--require", multiple=True, metavar="FEATURE", help="Features that it must have; what else it lacks is SKIPPED.")
@click.option("--select", multiple=True, metavar="PATTERN", help="Only checks whose name fits.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="No checks whose name fits.")
@click.option("--max-model-len", type=click.IntRange(1), help="Its context in tokens [default: what it says itself].")
@click.option("--timeout", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds for one request.")
@click.option("--within", type=click.FloatRange(min=1), default=1800, show_default=True, help="Seconds for everything.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def validate(
    url: str,
    model: str,
    require: tuple[str, ...],
    select: tuple[str, ...],
    skip: tuple[str, ...],
    max_model_len: int | None,
    timeout: float,
    within: float,
    as_json: bool,
) -> None:
    """Check that any server speaks the OpenAI protocol as clients expect it. A key is taken from $RELEASE_API_KEY.

    Exit code 4 if a check failed.
    """
    from release.show.verdicts import verdicts
    from release.validators.conformance import KEY_VARIABLE
    from release.validators.conformance import validate as check

    found = check(
        url,
        model,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        require=require,
        select=select,
        skip=skip,
        timeout=timeout,
        within=within,
        max_model_len=max_model_len,
    )
    click.echo(verdicts(found, as_json=as_json))
    failed = sum(verdict.status.value == "FAILED" for verdict in found)
    if failed or not found:
        raise VerdictError(f"{url}: {failed} of {len(found)} checks failed")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--candidate", metavar="RIGHT/N", help="Right answers of the candidate, as 12/50.")
@click.option("--reference", metavar="RIGHT/N", help="Right answers of the reference, as 13/50.")
@click.option("--margin", type=click.FloatRange(min=0, max=100, min_open=True), help="The non-inferiority margin in points.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Times that each question was asked.")
@click.option("--looks", type=click.IntRange(1, 2), default=1, show_default=True, help="Looks at the data, planned beforehand.")
@click.option("--temperature", type=float, help="At 0, repeats would not help, and the verdict says so.")
@click.option(
    "--card", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A published card, whose tables are judged."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def verdict(
    context: click.Context,
    files: tuple[Path, ...],
    candidate: str | None,
    reference: str | None,
    margin: float | None,
    repeats: int,
    looks: int,
    temperature: float | None,
    card: Path | None,
    as_json: bool,
) -> None:
    """Say what figures, two files of answers (CAND.jsonl REF.jsonl) or a published card prove: verdict, interval, p, repeats needed.

    \b
    release verdict --candidate 12/50 --reference 13/50 --margin 5
    release verdict cand.jsonl ref.jsonl --margin 2
    release verdict --card README.md

    Exit code 4 if it says REGRESSED.
    """
    from release.validators.files import verdict_of_files
    from release.validators.published import verdict_of_card
    from release.validators.verdicts import verdict_of_counts

    share = None if margin is None else margin / 100
    found: Judgement | Card
    if card is not None:
        known = house_of(context).matrix
        names = [device.name for chip in known.chips() for device in known.chip(chip).devices.values()]
        benchmarks = tuple(known.benchmark(name) for name in known.benchmarks())
        found = verdict_of_card(
            card.read_text(encoding="utf-8", errors="replace"), benchmarks, reference_names=names, margin=share
        )
    elif len(files) == 2:
        found = verdict_of_files(*files, margin=share or DEFAULT_MARGIN, looks=looks, temperature=temperature)
    elif candidate and reference:
        found = verdict_of_counts(
            candidate, reference, margin=share or DEFAULT_MARGIN, repeats=repeats, looks=looks, temperature=temperature
        )
    else:
        raise UsageError(
            "say what to judge: --candidate and --reference, two files, or --card", next_step="release verdict --help"
        )
    click.echo(json.dumps(found.json(), indent=1, ensure_ascii=False) if as_json else found.text())
    if "REGRESSED" in json.dumps(found.json()):
        raise VerdictError("the candidate is worse than its reference by more than the margin")
