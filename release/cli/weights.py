"""The commands about checkpoints: get one from a hub, bring one into another precision, and say what is wrong with one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from release.cli.options import house_of
from release.errors import UsageError, VerdictError

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")


@click.group()
def weights() -> None:
    """Checkpoints in safetensors: pin, fetch, convert, check."""


@weights.command()
@click.argument("source", type=FOLDER)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", required=True, help="The precision: bf16, fp16, fp32, w8a8, w8a16, w4a16, fp8.")
@click.option("--layout", default="", help="Of a quantised one: compressed-tensors, msmodelslim or rows.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="What stays float [default: as it is].")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Modules that stay float, as '*.down_proj'.")
@click.option("--group", type=click.IntRange(1), help="Inputs that share a scale, of w4a16.")
@click.option("--allow", multiple=True, type=click.Choice(["overflow", "infinite"]), help="Go on where numbers become infinite.")
@click.option("--drop-mtp", is_flag=True, help="Leave out the layers for multi-token prediction.")
@click.option("--set", "settings", multiple=True, metavar="KEY=JSON", help="An edit of config.json: null removes a key.")
@click.option("--dry-run", is_flag=True, help="Print what would be converted, kept and dropped, and the size.")
@click.option("--verify", is_flag=True, help="Recompute every element by other means afterwards, and compare.")
@JSON_FLAG
def convert(
    source: Path,
    target: Path,
    to: str,
    layout: str,
    dtype: str | None,
    exclude: tuple[str, ...],
    group: int | None,
    allow: tuple[str, ...],
    drop_mtp: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Write the checkpoint SOURCE to the folder TARGET in another precision, in fixed memory, resuming after a kill.

    \b
    release weights convert DeepSeek-R1 DeepSeek-R1-BF16 --to bf16 --verify
    release weights convert QwQ-32B QwQ-32B-W8A8 --to w8a8 --layout compressed-tensors --exclude '*.down_proj'
    """
    from release.builders.weights.make import requested
    from release.convert import convert as work
    from release.show.weights import converted
    from release.types import PRECISIONS

    if to not in PRECISIONS:
        raise UsageError(f"--to {to}: is no precision", next_step=f"there are {', '.join(PRECISIONS)}")
    recipe = requested(
        source,
        to,
        layout=layout,
        dtype=dtype,  # type: ignore[arg-type]  # click has checked it
        exclude=exclude,
        group=group,
        allow=allow,
        drop_mtp=drop_mtp,
        config=_edits(settings),
    )
    click.echo(converted(work(source, target, recipe, dry=dry_run, proof=verify), as_json=as_json))


@weights.command()
@click.argument("folder", type=FOLDER)
@click.option("--headers-only", is_flag=True, help="Do not read every number in search of NaN and infinities.")
@JSON_FLAG
def check(folder: Path, headers_only: bool, as_json: bool) -> None:
    """Say what is wrong with the checkpoint in FOLDER: headers, index, types, shapes, scales, config.json, tokenizer, numbers."""
    from release.convert import check as findings

    found = findings(folder, numbers=not headers_only)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        for finding in found:
            click.echo(str(finding))
    errors = sum(finding.severity == "error" for finding in found)
    if errors:
        raise VerdictError(f"{folder} has {errors} errors")
    if not as_json:
        click.echo(f"{folder} is sound")


@weights.command()
@click.argument("model")
@click.option("--revision", help="A commit, tag or branch [default: the main branch as it is now].")
@click.pass_context
def pin(context: click.Context, model: str, revision: str | None) -> None:
    """Print the checkpoint of MODEL (or hf:ORG/NAME, ms:ORG/NAME) as YAML: its commit, and the sha256 of every file.

    The hub says it of large files; small ones are downloaded and hashed. Pickles are left out.
    """
    from release.shipping import pin as pinned

    click.echo(pinned(house_of(context), model, revision), nl=False)


@weights.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--allow-pickles", is_flag=True, help="Bring files, too, that can run code when they are read.")
@click.pass_context
def fetch(context: click.Context, model: str, folder: Path, allow_pickles: bool) -> None:
    """Bring the pinned checkpoint of MODEL from its hub into FOLDER, every file by its digest; a killed one goes on where it was.

    $HF_ENDPOINT and $MODELSCOPE_ENDPOINT take mirrors; $HF_TOKEN and $MODELSCOPE_API_TOKEN open private repositories.
    """
    from release.shipping import fetch as bring

    count, size = bring(house_of(context), model, folder, pickles=allow_pickles)
    click.echo(f"{folder}: {count} files, {size / 1e6:.1f} MB, each the pinned one")


def _edits(settings: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {text}: is not KEY=JSON")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
