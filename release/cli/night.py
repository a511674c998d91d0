"""The commands about many builds: status, triage, bisect, export."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from release.cli.options import complete, house_of

_json = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")


@click.command()
@click.option("--chip", shell_complete=complete("chips"), help="Of this chip.")
@click.option("--model", shell_complete=complete("models"), help="Of this model.")
@click.option("--select", "patterns", multiple=True, metavar="PATTERN", help="The cells that it fits, as '*/qwen3-*@w8a8'.")
@click.option(
    "--graph",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw instead which stages these cells share, which are done, and how long they took.",
)
@_json
@click.pass_context
def status(
    context: click.Context, chip: str | None, model: str | None, patterns: tuple[str, ...], picture: Path | None, as_json: bool
) -> None:
    """Show the matrix as a heat map: what is validated, built, waived, stale, blocked, failed or missing, and why."""
    from release.batch import select
    from release.show.night import status as status_text
    from release.status import standings

    house = house_of(context)
    cells = select(house, patterns, {"chip": chip, "model": model})
    if picture is not None:
        from release.show.graph import graph

        picture.write_text(graph(house, cells), encoding="utf-8")
        click.echo(picture)
        return
    shown = status_text(standings(house, cells), as_json=as_json)
    if sys.stdout.isatty() and not as_json and shown.count("\n") >= shutil.get_terminal_size().lines:
        click.echo_via_pager(shown + "\n", color=True)
    else:
        click.echo(shown)


@click.command()
@click.option(
    "--control", is_flag=True, help="Run a known good cell of each chip first, before an operator or the chip is blamed."
)
@click.option(
    "--run", default="", metavar="TIME", help="An earlier run: when it began, or the beginning of that (2026-05-31T02)."
)
@_json
@click.pass_context
def triage(context: click.Context, control: bool, run: str, as_json: bool) -> None:
    """Tell what went wrong in the last build, of one cell or of many: each cause once, by evidence, with what the failed cells share."""
    from release.show.night import triage as triage_text
    from release.triage import triage as sort_out

    click.echo(triage_text(sort_out(house_of(context), run=run, control=control), as_json=as_json))


@click.command()
@click.argument("cell")
@click.option(
    "--good", required=True, metavar="REF", help="A release that was good: a record, a lock, a folder, a layout, a reference."
)
@click.option("--bad", required=True, metavar="REF", help="A release that is not.")
@click.option(
    "--require",
    type=click.Choice(["built", "validated"]),
    default="built",
    show_default=True,
    help="The least state that is good.",
)
@_json
@click.pass_context
def bisect(context: click.Context, cell: str, good: str, bad: str, require: str, as_json: bool) -> None:
    """Find the fewest pins that make a release bad, between a good and a bad one, by builds that share all their stages."""
    from release.bisect import bisect as search
    from release.pinned import earlier_pins
    from release.show.night import bisect as bisect_text

    house = house_of(context)
    plan = house.plan(cell)
    ends = (earlier_pins(house, plan, place) for place in (good, bad))
    click.echo(bisect_text(search(house, cell, *ends, least=require), as_json=as_json))


@click.command()
@click.argument("kind", type=click.Choice(["github", "gitlab", "argo"]))
@click.option("--all", "everything", is_flag=True, help="Every cell (that --chip and --model fit).")
@click.option("--chip", shell_complete=complete("chips"), help="Of this chip.")
@click.option("--model", shell_complete=complete("models"), help="Of this model.")
@click.option("--select", "patterns", multiple=True, metavar="PATTERN", help="The cells that it fits, as '*/qwen3-*@w8a8'.")
@click.option("--to", metavar="HOST/NAMESPACE", help="The registry to push into; its user and password are secrets of the CI.")
@click.option(
    "--require", type=click.Choice(["built", "validated"]), default="built", show_default=True, help="The least that passes."
)
@click.option("--image", default="", help="The container to run in, with `release` installed: for argo, and gitlab if you like.")
@click.option(
    "--remote-store",
    envvar="RELEASE_REMOTE_STORE",
    metavar="URL",
    help="Where jobs share finished stages: oci://HOST/NAMESPACE/NAME or file:///FOLDER.",
)
@click.pass_context
def export(
    context: click.Context,
    kind: str,
    everything: bool,
    chip: str | None,
    model: str | None,
    patterns: tuple[str, ...],
    to: str | None,
    require: str,
    image: str,
    remote_store: str | None,
) -> None:
    """Print a pipeline for a CI: a job a cell, after what it is compared with. Its commands run at the root of the repository.

    Cells whose plans the rules refuse, and those that are compared with one, are left out, and told on stderr. Without --remote-store each
    job builds what it needs by itself, as far as its machine does not have it.
    """
    from release.batch import select
    from release.errors import ReleaseError, UsageError
    from release.export import Wanted
    from release.export import export as written

    if not (everything or patterns or chip or model):
        raise UsageError("say which cells: --select PATTERN, --chip, --model, or --all")
    house, kept = house_of(context), []
    for cell in select(house, patterns, {"chip": chip, "model": model}):
        try:
            house.plans([cell])
            kept.append(cell)
        except ReleaseError as problem:
            click.echo(f"left out: {problem}", err=True)
    if not kept:
        raise UsageError("no cell is left: the rules refuse all of them", next_step="`release plan --all` says why")
    click.echo(written(kind, house, kept, Wanted(to, require, image, remote_store, _passed_on(context))), nl=False)


def _passed_on(context: click.Context) -> tuple[str, ...]:
    """Return the global options of this command line that the commands of a CI need, too. Raises UsageError for a path outside of here."""
    from release.errors import UsageError

    said = context.find_root().params
    words = [word for engine in filter(None, [said["engine"]]) for word in ("--engine", engine)]
    for name, path in (
        *(("matrix", path) for path in said["matrix"]),
        *(("hosts", path) for path in filter(None, [said["hosts"]])),
    ):
        try:
            words += [f"--{name}", path.resolve().relative_to(Path.cwd()).as_posix()]
        except ValueError:
            raise UsageError(
                f"--{name} {path} lies outside of this folder: no checkout has it", next_step="say it at the repository's root"
            ) from None
    return tuple(words)
