"""The commands that make and use a release: plan, build, pull, serve."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from release.cli.options import (
    cluster_for,
    complete,
    complete_stage,
    executor_options,
    house_of,
    remote_house,
    remote_options,
)
from release.errors import UsageError

if TYPE_CHECKING:
    from release.batch import Batch
    from release.build import Outcome, Runner
    from release.cluster import Cluster
    from release.house import House
    from release.types import Argument

BLOCK: Final = 64
"""Lines that are printed at once."""


@click.command()
@click.option("--chip", shell_complete=complete("chips"), help="The chip, as `release matrix` lists it.")
@click.option("--model", shell_complete=complete("models"), help="The model, as `release matrix` lists it.")
@click.option("--precision", help="Precision, and ~variant where there is one [default: the first that the cell's file offers].")
@click.option(
    "--all", "everything", is_flag=True, help="Every cell of the matrix (that --chip, --model and --precision fit), a line each."
)
@click.option("--device", help="A variant of the chip's device.")
@click.option(
    "--device-memory",
    type=float,
    metavar="GIB",
    help="Memory of one device, as its tool shows it.",
)
@click.option(
    "--devices",
    type=click.IntRange(1, 16384),
    help="How many devices there are: the plan lays the model over them, and says why.",
)
@click.option("--tensor-parallel-size", type=click.IntRange(1, 16384), help="Instead of the layout that the cell says.")
@click.option("--pipeline-parallel-size", type=click.IntRange(1, 16384), help="Instead of the layout that the cell says.")
@click.option("--set", "args", multiple=True, metavar="NAME=VALUE", help="Another serving argument, as max-model-len=8192.")
@click.option(
    "--select", "patterns", multiple=True, metavar="PATTERN", help="With --bump: the cells that it fits, as '*/qwen3-*'."
)
@click.option("--bump", "bumps", multiple=True, metavar="PIN=VALUE", help="What another pin would change, as flaggems=5.3.3.")
@click.option("--until", metavar="STAGE", shell_complete=complete_stage, help="Stop after this stage.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def plan(
    context: click.Context,
    chip: str | None,
    model: str | None,
    precision: str | None,
    everything: bool,
    device: str | None,
    device_memory: float | None,
    devices: int | None,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int | None,
    args: tuple[str, ...],
    patterns: tuple[str, ...],
    bumps: tuple[str, ...],
    until: str | None,
    as_json: bool,
) -> None:
    """Print the plan of a cell: whether it can work, on which layout, what is cached, what would run, and because of which change.

    What the options ask for is tried in the plan alone: to build it so, write it into the cell's file.
    """
    from release.matrix.check import Asked, precision_for
    from release.show.plan import everything as overview
    from release.show.plan import plan as plan_text

    house = house_of(context)
    asked = Asked(device, device_memory, devices, tensor_parallel_size, pipeline_parallel_size, _settings(args))
    if bumps and (until or asked != Asked()):
        raise UsageError(
            "--bump plans cells as their files say, to the end", next_step="leave out --until and all that changes a plan"
        )
    if everything and until and not bumps:
        raise UsageError("--until is for the plan of one cell", next_step="leave it out: --all shows a line a cell")
    if bumps:
        click.echo(_bumped(house, {"chip": chip, "model": model, "precision": precision}, everything, patterns, bumps, as_json))
        return
    if patterns:
        raise UsageError("--select is for --bump here", next_step="--all takes patterns in --chip, --model and --precision")
    if everything:
        _tell(overview(house, asked, {"chip": chip, "model": model, "precision": precision}, as_json=as_json))
        return
    if chip is None or model is None:
        raise UsageError("say what to plan: --chip and --model, or --all")
    study = house.study(precision_for(house.matrix, chip, model, precision), asked)
    click.echo(plan_text(house, study, house.graph(study.plan.cell, until) if study.refusal is None else None, as_json=as_json))
    house.refuse(study)


def _tell(lines: Iterable[str]) -> None:
    """Print lines, so many at a time that looking at the terminal costs nothing: what came before an error is printed before it."""
    held: list[str] = []
    try:
        for line in lines:
            held.append(line)
            if len(held) == BLOCK:
                click.echo("\n".join(held))
                held.clear()
    finally:
        if held:
            click.echo("\n".join(held))


def _bumped(
    house: House,
    named: dict[str, str | None],
    everything: bool,
    patterns: tuple[str, ...],
    bumps: tuple[str, ...],
    as_json: bool,
) -> str:
    """Return what other pins would change of the cells that are meant."""
    from release.batch import select
    from release.bump import effect
    from release.pins import Bump
    from release.show.night import bump as bump_text

    if not (everything or patterns or (named["chip"] and named["model"])):
        raise UsageError("say which cells: --chip and --model, --select PATTERN, or --all")
    return bump_text(effect(house, select(house, patterns, named), [Bump.parse(text) for text in bumps]), as_json=as_json)


def _settings(args: tuple[str, ...]) -> dict[str, Argument]:
    """Return NAME=VALUE options as serving arguments, typed as in the YAML files."""
    found: dict[str, Argument] = {}
    for text in args:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise UsageError(f"--set {text}: is not NAME=VALUE", next_step="as in --set max-model-len=8192")
        try:
            typed = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            typed = value
        found[name] = typed if isinstance(typed, str | int | float | bool) else value
    return found


@click.command()
@click.option("--chip", shell_complete=complete("chips"), help="The chip, as `release matrix` lists it.")
@click.option("--model", shell_complete=complete("models"), help="The model, as `release matrix` lists it.")
@click.option("--precision", help="Precision, and ~variant where there is one [default: the first that the cell's file offers].")
@click.option(
    "--all", "everything", is_flag=True, help="Every cell (that --chip, --model and --precision fit), as one graph of work."
)
@click.option("--select", "patterns", multiple=True, metavar="PATTERN", help="The cells that it fits, as '*/qwen3-*@w8a8'.")
@click.option(
    "--keep-going/--stop-at-failure", default=True, show_default=True, help="Of many cells: whether a failure costs the others."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=COUNT",
    help="Units of a resource: device:CHIP, host-servers, network, disk.",
)
@click.option("--until", metavar="STAGE", shell_complete=complete_stage, help="Stop after this stage.")
@click.option(
    "--jobs", type=click.IntRange(1), help="Stages that may run side by side [default: the number of cores, at least 2]."
)
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where the release is laid out."
)
@click.option("--to", metavar="HOST/NAMESPACE", help="Push the release into this registry as well.")
@click.option(
    "--tag", help="The tag in that registry; {precision} in it is the precision, and -variant [default: that]. It never moves."
)
@click.option(
    "--require",
    type=click.Choice(["built", "validated"]),
    default="built",
    show_default=True,
    help="The least state that counts as success.",
)
@click.option("--no-build-cache", is_flag=True, help="Let the container engine reuse none of its own layers.")
@executor_options
@remote_options
@click.option("--json", "as_json", is_flag=True, help="Print the record as one JSON document; progress goes to stderr.")
@click.pass_context
def build(
    context: click.Context,
    chip: str | None,
    model: str | None,
    precision: str | None,
    everything: bool,
    patterns: tuple[str, ...],
    keep_going: bool,
    limits: tuple[str, ...],
    until: str | None,
    jobs: int | None,
    dist: Path,
    to: str | None,
    tag: str | None,
    require: str,
    no_build_cache: bool,
    executor: str,
    address: str | None,
    remote_store: str | None,
    remote_read_only: bool,
    remote_trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Build a cell: fetch, patch, convert, build the image, serve it, validate it, write the card, publish.

    With --all or --select, many cells at once: what they share is done once, and each failure is told once.
    """
    many = everything or bool(patterns)
    if not many and (chip is None or model is None):
        raise UsageError("say what to build: --chip and --model, --select PATTERN, or --all")
    _fit_together(many=many, limited=bool(limits), keep_going=keep_going, until=until, to=to, tag=tag)
    house = remote_house(house_of(context), remote_store, remote_trust, read_only=remote_read_only)
    with cluster_for(executor, address, jobs) as cluster:
        how: dict[str, Any] = {"until": until, "dist": dist, "to": to, "tag": tag, "least": require, "runner": _runner(cluster)}
        slots = jobs or (cluster.slots if cluster else None)
        outcome: Outcome | Batch
        if many:
            from release.batch import build_all, local_limits, select
            from release.session import Session
            from release.show.batch import batch as shown

            cells = select(house, patterns, {"chip": chip, "model": model, "precision": precision})
            here = local_limits(
                house, cells, None if cluster else jobs, _counts(house, limits)
            )  # this machine has as many servers as ever
            session = Session(house.engine_kind, use_build_cache=not no_build_cache, hosts=house.hosts())
            here = replace(here, jobs=slots or here.jobs)
            outcome = batch = build_all(house, cells, limits=here, keep_going=keep_going, session=session, **how)
            click.echo(shown(batch, as_json=as_json))
        else:
            from release.batch import build_one
            from release.show.outcome import outcome as outcome_text

            cell = house.cell(str(chip), str(model), precision)
            outcome = one = build_one(house, cell, jobs=slots, use_build_cache=not no_build_cache, **how)
            click.echo(outcome_text(one, as_json=as_json))
        outcome.require(require)


def _fit_together(*, many: bool, limited: bool, keep_going: bool, until: str | None, to: str | None, tag: str | None) -> None:
    """Raise UsageError for options of a build that would change nothing beside the others."""
    if not many and (limited or not keep_going):
        raise UsageError(
            f"{'--limit' if limited else '--stop-at-failure'} is for many cells", next_step="--select or --all builds many"
        )
    if tag is not None and to is None:
        raise UsageError("--tag is the tag in a registry: which one?", next_step="give --to HOST/NAMESPACE as well")
    if to is not None and until not in (None, "publish"):
        raise UsageError("nothing can be pushed before the stage publish", next_step="leave out --until, or --to")


def _runner(cluster: Cluster | None) -> Runner:
    """Return what makes the run of a build: over the cluster, if there is one."""
    from release.pipeline import Run

    return cluster.run if cluster else Run


def _counts(house: House, limits: tuple[str, ...]) -> dict[str, int]:
    """Return NAME=COUNT options as numbers. Raises UsageError for what is none, and for a resource that no stage uses."""
    from release.matrix.parse import near
    from release.stages import DISK, HOST_SERVERS, NETWORK

    found, plain = {}, [NETWORK, DISK, HOST_SERVERS]
    known = [*plain, *(f"device:{chip}" for chip in house.matrix.chips())]
    for text in limits:
        name, _, count = text.rpartition("=")
        if not name or not count.isdecimal() or not int(count):
            raise UsageError(f"--limit {text}: is not NAME=COUNT", next_step="as in --limit device:CHIP=8")
        if name not in known:
            raise UsageError(
                f"--limit {text}: there is no resource {name!r}{near(name, known)}",
                next_step=f"there are: {', '.join(plain)}, and device:CHIP",
            )
        found[name] = int(count)
    return found


@click.command()
@click.argument("reference", required=False)
@click.option("--chip", shell_complete=complete("chips"), help="The chip of a release that was built here.")
@click.option("--model", shell_complete=complete("models"), help="The model of a release that was built here.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where releases are laid out."
)
@click.option("--into", type=click.Path(path_type=Path), help="The folder to write [default: pulled/CHIP/MODEL/TAG].")
@click.option("--no-image", is_flag=True, help="Leave the image out of the container engine.")
@click.option(
    "--layout",
    type=click.Path(path_type=Path),
    help="Keep all of it as an OCI layout in this folder, and no image in the engine.",
)
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path, dir_okay=False), help="Verify it first with this public key."
)
@click.option("--policy", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="… and by this file of rules.")
@click.pass_context
def pull(
    context: click.Context,
    reference: str | None,
    chip: str | None,
    model: str | None,
    precision: str | None,
    dist: Path,
    into: Path | None,
    no_image: bool,
    layout: Path | None,
    keys: tuple[Path, ...],
    policy: Path | None,
) -> None:
    """Get a release: image into the engine, weights, card and record into a folder; every digest is checked.

    REFERENCE is HOST/NAMESPACE/CHIP/MODEL:TAG (or @sha256:…) in a registry, or the folder of an OCI layout.
    """
    from release.build import layout_of
    from release.pull import pull as bring
    from release.show.outcome import pulled as pulled_text

    house = house_of(context)
    if reference is None:
        if chip is None or model is None:
            raise UsageError("say what to pull: a REFERENCE, or --chip and --model")
        reference = str(layout_of(house.cell(chip, model, precision), dist))
    pulled = bring(house, reference, into, into_engine=not (no_image or layout), layout=layout, keys=keys, policy=policy)
    click.echo(pulled_text(pulled))


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--chip", shell_complete=complete("chips"), help="The chip of a release that was pulled here.")
@click.option("--model", shell_complete=complete("models"), help="The model of a release that was pulled here.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option("--port", type=click.IntRange(1, 65535), help="The port on this host [default: the card's].")
@click.option("--dry-run", is_flag=True, help="Print the command and stop.")
@click.pass_context
def serve(
    context: click.Context,
    folder: Path | None,
    chip: str | None,
    model: str | None,
    precision: str | None,
    port: int | None,
    dry_run: bool,
) -> None:
    """Print and run the very command of the card, in the FOLDER of a pulled release."""
    from release.pull import pulled_folder, serve_command

    house = house_of(context)
    if folder is None:
        if chip is None or model is None:
            raise UsageError("say what to serve: a FOLDER, or --chip and --model")
        folder = pulled_folder(house.cell(chip, model, precision))
    line, env = serve_command(house, folder, port, check=not dry_run)
    from release.templates.render import shell_line

    click.echo(shell_line(line))
    if not dry_run:
        from release import processes

        os.chdir(folder)
        sys.stdout.flush()
        processes.replace_with(line, env)
