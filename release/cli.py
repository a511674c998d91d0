"""The front door: `release …`. It imports nothing heavy, prints, and is the only place that ends the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from release import __version__
from release.errors import ReleaseError, UsageError

if TYPE_CHECKING:
    from release.build import House

F = Callable[..., Any]
PREFIXES = {1: "error", 2: "usage", 3: "stage", 4: "verdict", 5: "refused"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="release")
@click.option(
    "--matrix", "matrix", multiple=True, type=click.Path(path_type=Path), help="A folder of your own that overlays ours."
)
@click.option(
    "--store", type=click.Path(path_type=Path), help="Where stage outputs live [default: $RELEASE_STORE or ~/.cache/release]."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "docker", "podman"]),
    envvar="RELEASE_ENGINE",
    default="auto",
    show_default=True,
    help="The container engine.",
)
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
@click.pass_context
def cli(context: click.Context, matrix: tuple[Path, ...], store: Path | None, engine: str, traceback: bool) -> None:
    """Build, serve, validate, document and publish a model for a chip.

    \b
    release matrix                                      what there is
    release plan  --chip cpu --model tiny-qwq           what a build would do, and why
    release build --chip cpu --model tiny-qwq           do it
    release pull  --chip cpu --model tiny-qwq           get it back, every digest checked
    release serve --chip cpu --model tiny-qwq           run the very command of the card
    """
    context.obj = {"matrix": matrix, "store": store, "engine": engine, "traceback": traceback}


def cell_options(function: F) -> F:
    """Add the options that name a cell."""
    for option in (
        click.option(
            "--precision", help="Precision, and ~variant where there is one [default: the first that the cell's file offers]."
        ),
        click.option(
            "--model", required=True, shell_complete=_complete("models"), help="The model, as `release matrix` lists it."
        ),
        click.option("--chip", required=True, shell_complete=_complete("chips"), help="The chip, as `release matrix` lists it."),
    ):
        function = option(function)
    return function


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from release.matrix.load import Matrix

        known = Matrix().chips() if kind == "chips" else Matrix().models()
        return [name for name in known if name.startswith(incomplete)]

    return names


def _complete_stage(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from release.stages import STAGES

    return [stage.name for stage in STAGES if stage.name.startswith(incomplete)]


def _house(context: click.Context) -> House:
    from release.build import House

    options = context.find_root().obj
    return House.open(options["matrix"], options["store"], options["engine"])


@cli.command("matrix")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.option("--check", is_flag=True, help="Check every file and every cell, and say what is wrong.")
@click.pass_context
def matrix_(context: click.Context, as_json: bool, check: bool) -> None:
    """List chips, models and cells."""
    from release import show

    house = _house(context)
    if check:
        found = house.problems()
        for problem in found:
            click.echo(str(problem), err=True)
        if found:
            raise UsageError(f"{len(found)} errors in the matrix")
        click.echo("the matrix is sound")
        return
    click.echo(show.matrix(house.matrix, as_json=as_json))


@cli.command()
@cell_options
@click.option("--until", metavar="STAGE", shell_complete=_complete_stage, help="Stop after this stage.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def plan(context: click.Context, chip: str, model: str, precision: str | None, until: str | None, as_json: bool) -> None:
    """Print the plan of a cell: what is cached, what would run, and because of which change."""
    from release import show

    house = _house(context)
    cell = house.cell(chip, model, precision)
    click.echo(show.plan(house, cell, house.graph(cell, until), as_json=as_json))


@cli.command()
@cell_options
@click.option("--until", metavar="STAGE", shell_complete=_complete_stage, help="Stop after this stage.")
@click.option(
    "--jobs", type=click.IntRange(1), help="Stages that may run side by side [default: the number of cores, at least 2]."
)
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where the release is laid out."
)
@click.option("--to", metavar="HOST/NAMESPACE", help="Push the release into this registry as well.")
@click.option("--tag", help="The tag in that registry [default: the precision, and -variant]; a published tag never moves.")
@click.option(
    "--require",
    type=click.Choice(["built", "validated"]),
    default="built",
    show_default=True,
    help="The least state that counts as success.",
)
@click.option("--no-build-cache", is_flag=True, help="Let the container engine reuse none of its own layers.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as one JSON document; progress goes to stderr.")
@click.pass_context
def build(
    context: click.Context,
    chip: str,
    model: str,
    precision: str | None,
    until: str | None,
    jobs: int | None,
    dist: Path,
    to: str | None,
    tag: str | None,
    require: str,
    no_build_cache: bool,
    as_json: bool,
) -> None:
    """Build a cell: fetch, patch, convert, build the image, serve it, validate it, write the card, publish."""
    from release import show

    house = _house(context)
    cell = house.cell(chip, model, precision)
    outcome = house.build(
        cell, until=until, jobs=jobs, dist=dist, to=to, use_build_cache=not no_build_cache, least=require, tag=tag
    )
    click.echo(show.outcome(outcome, as_json=as_json))
    outcome.require(require)


@cli.command()
@click.argument("reference", required=False)
@click.option("--chip", shell_complete=_complete("chips"), help="The chip of a release that was built here.")
@click.option("--model", shell_complete=_complete("models"), help="The model of a release that was built here.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option(
    "--dist", type=click.Path(path_type=Path), default=Path("dist"), show_default=True, help="Where releases are laid out."
)
@click.option("--into", type=click.Path(path_type=Path), help="The folder to write [default: pulled/CHIP/MODEL/TAG].")
@click.option("--no-image", is_flag=True, help="Leave the image out of the container engine.")
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
) -> None:
    """Get a release: image into the engine, weights, card and record into a folder; every digest is checked.

    REFERENCE is HOST/NAMESPACE/CHIP/MODEL:TAG (or @sha256:…) in a registry, or the folder of an OCI layout.
    """
    from release import show

    house = _house(context)
    if reference is None:
        if chip is None or model is None:
            raise UsageError("say what to pull: a REFERENCE, or --chip and --model")
        reference = str(house.layout_of(house.cell(chip, model, precision), dist))
    pulled = house.pull(reference, into, into_engine=not no_image)
    click.echo(show.pulled(pulled))


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--chip", shell_complete=_complete("chips"), help="The chip of a release that was pulled here.")
@click.option("--model", shell_complete=_complete("models"), help="The model of a release that was pulled here.")
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
    house = _house(context)
    if folder is None:
        if chip is None or model is None:
            raise UsageError("say what to serve: a FOLDER, or --chip and --model")
        folder = house.pulled_folder(house.cell(chip, model, precision))
    line, env = house.serve_command(folder, port, check=not dry_run)
    from release.templates.render import shell_line

    click.echo(shell_line(line))
    if not dry_run:
        from release import processes

        os.chdir(folder)
        sys.stdout.flush()
        processes.replace_with(line, env)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this machine can run: container engine, programs, disk, memory, devices."""
    from release import doctor as look
    from release import show

    house = _house(context)
    click.echo(show.findings(look.examine(house.matrix, house.store.path, context.find_root().obj["engine"]), as_json=as_json))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(release completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "release", "_RELEASE_COMPLETE").source())


def main() -> NoReturn:
    """Run the command line; every way of failing ends here, with one message and its exit code."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # nohup
            signal.signal(sign, _interrupted)
    try:
        cli.main(standalone_mode=False)
    except ReleaseError as problem:
        _fail(problem)
    except click.exceptions.Exit as problem:
        sys.exit(problem.exit_code)
    except click.ClickException as problem:
        problem.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _stopped()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as problem:  # the last resort: a defect of ours, still one clear line
        _fail(
            ReleaseError(
                f"{type(problem).__name__}: {problem}", next_step="this is a defect of release: --traceback shows where"
            ),
            problem,
        )
    sys.exit(0)


def _fail(problem: ReleaseError, cause: Exception | None = None) -> NoReturn:
    if "--traceback" in sys.argv:
        import traceback

        traceback.print_exception(cause or problem)
    click.echo(f"{PREFIXES[problem.exit_code]}: {problem}", err=True)
    if problem.next_step:
        first, *rest = problem.next_step.splitlines()
        click.echo("\n".join([f"  next: {first}", *(f"  {line}" for line in rest)]), err=True)
    sys.stdout.flush()
    sys.exit(problem.exit_code)


def _stopped() -> NoReturn:
    """End at once: stages may still run in threads, and the guard has cleared up after them."""
    click.echo("stopped; what was finished is kept, the next build goes on from there", err=True)
    sys.stderr.flush()
    os._exit(130)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
