"""The commands that judge: a server by its address, and what figures or files of answers prove."""

from __future__ import annotations

import os

import click

from release.errors import VerdictError


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
