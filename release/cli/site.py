"""The command that lays out the catalogue of many releases."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from release.cli.options import house_of
from release.errors import UsageError


@click.command()
@click.option(
    "--from",
    "places",
    multiple=True,
    help="HOST/NAME (all its tags), HOST/NAME:TAG, HOST/NAMESPACE/* (all cells of the matrix), a folder of releases or OCI layouts, "
    "or a file that lists such. Repeatable.",
)
@click.option("--to", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write the pages to.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A public key that you trust: what it has not signed is marked.",
)
@click.option("--planned", is_flag=True, help="Show the matrix's other cells, too, as planned.")
@click.option("--base-url", default="", help="The address that the site will have, for its feed.")
@click.option("--title", default="", help="What the catalogue is called.")
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), help="The day to judge waivers by [default: that of the newest release]."
)
@click.option("--lang", "language", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="The language.")
@click.pass_context
def site(
    context: click.Context,
    places: tuple[str, ...],
    to: Path,
    keys: tuple[Path, ...],
    planned: bool,
    base_url: str,
    title: str,
    day: datetime | None,
    language: str,
) -> None:
    """Write the catalogue of releases as a static site: a map of models × chips, and a page for each release.

    It works from a server and from file://, with and without scripts, and is made of nothing but the releases' records. Pictures need
    pip install 'release[report]'.
    """
    from release.publish.site import Site
    from release.site import address_of, lay_site

    if not places and not planned:
        raise UsageError("say what to show: --from HOST/NAME, --from FOLDER, or --planned", next_step="release site --help")
    made = lay_site(
        places,
        to,
        Site(language, title, address_of(base_url)),
        house=house_of(context),
        keys=keys,
        day=day and day.date(),
        planned=planned,
    )
    for place, reason in made.left_out:
        click.echo(f"left out: {place}: {reason}", err=True)
    click.echo(f"{made.releases} releases of {made.cells} cells, {made.files} files, {made.bytes / 1e6:.1f} MB")
    click.echo(made.folder / "index.html")
