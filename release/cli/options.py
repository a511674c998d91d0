"""What several commands share: the options that name a cell, completion of names, and the house that a command line opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from release.errors import UsageError

if TYPE_CHECKING:
    from release.cluster import Cluster
    from release.house import House

F = Callable[..., Any]


def cell_options(function: F) -> F:
    """Add the options that name a cell."""
    for option in (
        click.option(
            "--precision", help="Precision, and ~variant where there is one [default: the first that the cell's file offers]."
        ),
        click.option(
            "--model", required=True, shell_complete=complete("models"), help="The model, as `release matrix` lists it."
        ),
        click.option("--chip", required=True, shell_complete=complete("chips"), help="The chip, as `release matrix` lists it."),
    ):
        function = option(function)
    return function


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a completer of the names of `chips` or `models`."""

    def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from release.matrix.load import Matrix

        known = Matrix().chips() if kind == "chips" else Matrix().models()
        return [name for name in known if name.startswith(incomplete)]

    return names


def complete_stage(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the stages that begin so."""
    from release.stages import STAGES

    return [stage.name for stage in STAGES if stage.name.startswith(incomplete)]


def house_of(context: click.Context) -> House:
    """Return the house that the command line's global options open."""
    from release.house import House

    options = context.find_root().obj
    return House.open(options["matrix"], options["store"], options["engine"], options["hosts"])


def remote_options(function: F) -> F:
    """Add the options that name a store which others share."""
    for option in (
        click.option(
            "--remote-trust",
            multiple=True,
            envvar="RELEASE_REMOTE_TRUST",
            type=click.Path(path_type=Path),
            metavar="FILE.pub",
            help="Take only entries signed by this key; more than once for more keys.",
        ),
        click.option("--remote-read-only", is_flag=True, help="Take from the remote store, and put nothing there."),
        click.option(
            "--remote-store",
            envvar="RELEASE_REMOTE_STORE",
            metavar="URL",
            help="Share finished stages with others: oci://HOST/NAMESPACE/NAME or file:///FOLDER.",
        ),
    ):
        function = option(function)
    return function


def executor_options(function: F) -> F:
    """Add the options that say on which machines stages work."""
    for option in (
        click.option(
            "--address", metavar="HOST:PORT", help="With --executor ray: the cluster, or auto [default: one is started here]."
        ),
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where stages work: on this machine, or those that need none of its things over a Ray cluster.",
        ),
    ):
        function = option(function)
    return function


@contextmanager
def cluster_for(executor: str, address: str | None, jobs: int | None) -> Iterator[Cluster | None]:
    """Give the cluster that a command line asks for, if it does; it is let go of however the build ends."""
    if executor == "local":
        if address is not None:
            raise UsageError("--address is for a cluster", next_step="say --executor ray as well")
        yield None
        return
    from release.cluster import Cluster

    with Cluster.join(address, jobs) as cluster:
        yield cluster


def remote_house(house: House, address: str | None, trusted: Sequence[Path], *, read_only: bool) -> House:
    """Return the house with its store in front of the remote one at `address`, if one is named. What is refused there is told at once."""
    if address is None:
        source = click.get_current_context().get_parameter_source
        for option in ("remote_trust", "remote_read_only"):  # in the environment, they may wait for a store
            if source(option) is ParameterSource.COMMANDLINE:
                raise UsageError(
                    f"--{option.replace('_', '-')} is for a remote store, and none is named",
                    next_step="name it with --remote-store or RELEASE_REMOTE_STORE",
                )
        return house
    from release.remote import Remote, Trust
    from release.shelves import shelf_at

    def warn(text: str) -> None:
        click.echo(f"warning: {text}", err=True)

    return replace(house, store=Remote(house.store.path, shelf_at(address), Trust.of(trusted), read_only=read_only, warn=warn))
