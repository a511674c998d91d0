"""The commands that look at the matrix and add to it."""

from __future__ import annotations

from pathlib import Path

import click

from release.cli.options import F, complete, house_of
from release.errors import UsageError


@click.group("matrix", invoke_without_command=True)
@click.option("--chip", shell_complete=complete("chips"), help="Chips that fit this name or pattern.")
@click.option("--model", shell_complete=complete("models"), help="Models that fit it.")
@click.option("--precision", help="Precisions that fit it.")
@click.option("--served-by", "engine", metavar="ENGINE", help="Cells that this engine serves.")
@click.option("--feature", help="Cells with this feature.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document, with every fact of chips and models.")
@click.option("--markdown", "as_markdown", is_flag=True, help="As a Markdown table.")
@click.pass_context
def matrix_(
    context: click.Context,
    chip: str | None,
    model: str | None,
    precision: str | None,
    engine: str | None,
    feature: str | None,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Show models × chips × precisions; of one chip, its features.

    \b
    release matrix --chip 'cpu*' --precision bf16
    release matrix check        every file and every cell
    release matrix schema       JSON Schemas for an editor
    """
    if context.invoked_subcommand is None:
        from release.show.matrix import matrix

        if as_json and as_markdown:
            raise UsageError("--json and --markdown are two forms of one thing", next_step="give one of them")
        form = "json" if as_json else "markdown" if as_markdown else "text"
        filters = {"chip": chip, "model": model, "precision": precision, "engine": engine, "features": feature}
        click.echo(matrix(house_of(context).matrix, filters, form=form))


@matrix_.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Check every file and every cell, and say what is wrong."""
    house = house_of(context)
    found = house.problems()
    for problem in found:
        click.echo(str(problem), err=True)
    if found:
        raise UsageError(f"{len(found)} errors in the matrix")
    known = house.matrix
    cells = sum(1 for _ in known.cells())
    click.echo(f"the matrix is sound: {len(known.chips())} chips, {len(known.models())} models, {cells} cells")


@matrix_.command()
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), help="Write them here [default: say where ours are].")
def schema(into: Path | None) -> None:
    """Give JSON Schemas of chip, model and cell files, for editors that complete and check YAML."""
    from release.matrix.schema import FOLDER, schemas

    if into is None:
        click.echo(FOLDER)
        return
    into.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (into / name).write_text(text, encoding="utf-8")
        click.echo(into / name)


@click.command()
@click.argument("cell")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def explain(context: click.Context, cell: str, key: str, as_json: bool) -> None:
    """Say which file and line a value of a cell comes from: release explain cpu/tiny-qwq@bf16 max-model-len."""
    from release.matrix.explain import explain as origins_of
    from release.show.matrix import origins

    click.echo(origins(origins_of(house_of(context).matrix, cell, key), as_json=as_json))


@click.group()
def new() -> None:
    """Write a commented file of the matrix to start from."""


def _into(function: F) -> F:
    return click.option(
        "--into",
        type=click.Path(path_type=Path, file_okay=False),
        help="The matrix folder [default: your first --matrix, else ./matrix].",
    )(function)


def _force(function: F) -> F:
    return click.option(
        "--force", is_flag=True, help="Also where it goes before a file of the same name in another matrix folder."
    )(function)


def _folder(context: click.Context, into: Path | None) -> Path:
    return into or next(iter(context.find_root().obj["matrix"]), Path("matrix"))


@new.command("chip")
@click.argument("name")
@_into
@_force
@click.pass_context
def new_chip(context: click.Context, name: str, into: Path | None, force: bool) -> None:
    """Start a chip, from what the host's own tool says."""
    from release import new as start

    click.echo("{}: {}".format(*start.new_chip(house_of(context).matrix, name, _folder(context, into), force=force)))


@new.command("model")
@click.argument("name")
@click.option("--from", "source", type=click.Path(path_type=Path, file_okay=False, exists=True), help="A checkpoint's folder.")
@_into
@_force
@click.pass_context
def new_model(context: click.Context, name: str, source: Path | None, into: Path | None, force: bool) -> None:
    """Start a model, from the config.json and the files of a checkpoint."""
    from release import new as start

    click.echo("{}: {}".format(*start.new_model(house_of(context).matrix, name, source, _folder(context, into), force=force)))


@new.command("cell")
@click.argument("name", metavar="CHIP/MODEL")
@_into
@_force
@click.pass_context
def new_cell(context: click.Context, name: str, into: Path | None, force: bool) -> None:
    """Start the cells of a model on a chip."""
    from release import new as start

    click.echo("{}: {}".format(*start.new_cell(house_of(context).matrix, name, _folder(context, into), force=force)))
