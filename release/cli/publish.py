"""What is done with what was built: publish it, and clear up after it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from release.cli.options import complete, house_of


@click.command()
@click.option("--chip", required=True, shell_complete=complete("chips"), help="The chip of a release that was built here.")
@click.option("--model", required=True, shell_complete=complete("models"), help="The model of a release that was built here.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option("--to", required=True, metavar="HOST/NAMESPACE", help="The registry, and the namespace in it.")
@click.option("--tag", help="The tag [default: the precision, and -variant]; a published tag never moves.")
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), help="Sign it with this private key before the tag is set."
)
@click.option("--require", type=click.Choice(["built", "validated"]), default="built", show_default=True, help="The least state.")
@click.option("--dry-run", is_flag=True, help="Ask the registry what it has, and write nothing.")
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where releases are laid out."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def publish(
    context: click.Context,
    chip: str,
    model: str,
    precision: str | None,
    to: str,
    tag: str | None,
    key: Path | None,
    require: str,
    dry_run: bool,
    dist: Path,
    as_json: bool,
) -> None:
    """Push a release that was built here to HOST/NAMESPACE/CHIP/MODEL:TAG, with its bill of materials, provenance and verdict.

    What the registry has, there or in a neighbouring repository, does not travel again. The tag is set last.
    """
    from release.build import layout_of, target_of
    from release.publishing import publish_release

    house = house_of(context)
    cell = house.cell(chip, model, precision)
    done = publish_release(
        layout_of(cell, dist).parent,
        target_of(cell, to, tag),
        house.pushed,
        key=key,
        dry_run=dry_run,
        validated=require == "validated",
    )
    if as_json:
        click.echo(
            json.dumps({"reference": done.reference, "bytes": done.size, "sent": done.sent, "signed": done.signed}, indent=1)
        )
        return
    verb = "would travel" if dry_run else "travelled"
    click.echo(f"{done.reference}\n{done.sent / 1e6:.1f} of {done.size / 1e6:.1f} MB {verb}")
    for line in done.signed:
        click.echo(line)


@click.command()
@click.option(
    "--keep-days", type=click.IntRange(0), default=30, show_default=True, help="Leave what is younger, whoever needs it."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.pass_context
def gc(context: click.Context, keep_days: int, dry_run: bool) -> None:
    """Remove from the store what no cell of the matrix needs: neither its present plan nor its last build."""
    from release.collect import collect

    done = collect(house_of(context), keep_days, dry_run=dry_run)
    click.echo(
        f"{done.entries} entries, {done.files} downloaded files and {done.halves} half-done stages "
        f"{'would go' if dry_run else 'are gone'}, {done.bytes / 1e6:.1f} MB; {done.kept} entries are needed"
    )
