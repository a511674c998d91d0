"""The commands about this machine: doctor, base images by archive, completion."""

from __future__ import annotations

from pathlib import Path

import click

from release.cli.options import complete, house_of


@click.command()
@click.option(
    "--chip", shell_complete=complete("chips"), help="Look at this machine as a host of it: tool, driver, devices, what fits."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def doctor(context: click.Context, chip: str | None, as_json: bool) -> None:
    """Say what this machine can run: container engine, programs, disk, memory, devices."""
    from release import doctor as look
    from release.show.outcome import findings

    house = house_of(context)
    engine = context.find_root().obj["engine"]
    found = look.examine_chip(house, chip) if chip else look.examine(house.matrix, house.store.path, engine)
    click.echo(findings(found, as_json=as_json))


@click.group()
def base() -> None:
    """Base images that come from a vendor by other ways than a registry."""


@base.command("import")
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_context
def import_base(context: click.Context, archive: Path) -> None:
    """Take ARCHIVE (of `docker save`, also with gzip, bzip2 or xz) into the store, and say which digest a cell has to pin."""
    from release.build import import_base as take
    from release.show.sources import imported

    facts = take(house_of(context), archive)
    name = facts["tags"][0].rpartition(":")[0] if facts["tags"] else archive.stem
    click.echo(imported(facts))
    click.echo(f"base:\n  image: {name}@{facts['digest']}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell: eval "$(release completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "release", "_RELEASE_COMPLETE").source())
