"""The command that shows a release to a person: one page, with pictures."""

from __future__ import annotations

from pathlib import Path

import click

from release.cli.options import complete, house_of
from release.errors import UsageError


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--chip", shell_complete=complete("chips"), help="The chip of a release that was built here.")
@click.option("--model", shell_complete=complete("models"), help="The model of a release that was built here.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where releases are laid out."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page to write [default: FOLDER/report.html].")
@click.option("--lang", "language", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="The language.")
@click.pass_context
def report(
    context: click.Context,
    folder: Path | None,
    chip: str | None,
    model: str | None,
    precision: str | None,
    dist: Path,
    out: Path | None,
    language: str,
) -> None:
    """Write one self-contained page of HTML about a release, and its pictures as SVG and PNG.

    FOLDER is that of a release that was built (dist/CHIP/MODEL/PRECISION) or pulled. Needs pip install 'release[report]'.
    """
    from release.build import folder_of
    from release.report import report as write
    from release.show.text import relative

    if folder is None:
        if chip is None or model is None:
            raise UsageError("say what to report on: a FOLDER, or --chip and --model")
        house = house_of(context)
        folder = folder_of(house.cell(chip, model, precision), dist)
    written = write(folder, out, language)
    click.echo(relative(written.page.absolute()))
    for picture in written.pictures:
        click.echo(relative(picture.absolute()))
