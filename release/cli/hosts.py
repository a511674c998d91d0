"""The commands about the hosts that servers may be on: which there are, whether they are fit, and who holds their devices."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict

import click

from release.cli.options import house_of


@click.group()
def hosts() -> None:
    """Hosts that servers may be on, as ./hosts.yaml (or --hosts FILE) names them."""


@hosts.command("list")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """Print the hosts with their addresses and what they lend."""
    from release.errors import UsageError
    from release.show.text import table, text
    from release.types import dump

    known = house_of(context).hosts()
    if known is None:
        raise UsageError("no hosts are known", next_step="name them in ./hosts.yaml, or say where that is with --hosts")
    if as_json:
        click.echo(json.dumps(dump(known[0]), indent=1))
        return
    rows: list[tuple[str, ...]] = []
    for name, host in known[0].hosts.items():
        chips = ", ".join(f"{len(lent.ids)} × {chip}" for chip, lent in host.chips.items())
        labels = ", ".join(f"{key}={value}" for key, value in host.labels.items())
        staging = known[0].staging(name)
        rows.append((name, host.docker, chips, host.store or "(copied)", staging.there if staging else "(streamed)", labels))
    click.echo(text(table("host", "engine", "chips", "store", "images", "labels", rows=rows)))


@hosts.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Look at every host: engine, clock, disk, registry, devices, driver, and whether a canary lives there. Exit code 3 if one is not fit."""
    from release.preflight import check as look
    from release.preflight import fleet_of, require
    from release.show.text import table, text

    with ExitStack() as stack:
        found = look(fleet_of(house_of(context), stack))
    if as_json:
        click.echo(json.dumps({name: [asdict(finding) for finding in findings] for name, findings in found.items()}, indent=1))
    else:
        rows: list[tuple[str, ...]] = []
        for name, findings in found.items():
            for one in findings:
                rows.append((name, one.what, one.state, one.found + (f"\n→ {one.next_step}" if one.next_step else "")))
        click.echo(text(table("host", "what", "state", "found", rows=rows)))
    require(found)


@hosts.command()
@click.option("--release", "free", is_flag=True, help="Free those of this machine whose build is gone.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def leases(context: click.Context, free: bool, as_json: bool) -> None:
    """Print who holds which device, for what, and until when."""
    from release.preflight import fleet_of, held
    from release.show.text import table, text

    with ExitStack() as stack:
        found = held(
            fleet_of(house_of(context), stack), release=free, tell=lambda name, text: click.echo(f"{name}: {text}", err=True)
        )
    if as_json:
        click.echo(json.dumps({name: [asdict(lease) for lease in leases] for name, leases in found.items()}, indent=1))
        return
    rows: list[tuple[str, ...]] = []
    for name, standing in found.items():
        for one in standing:
            rows.append((name, one.device, one.owner, one.note, "expired" if one.expired else f"in {one.left:.0f} s"))
    click.echo(text(table("host", "device", "owner", "for", "expires", rows=rows)))
