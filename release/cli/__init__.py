"""The front door: `release …`. It imports nothing heavy, prints, and is the only place that ends the process."""

from __future__ import annotations

import os
import sys

try:  # a tenth of a second in which Ctrl-C may come before `main` can catch it
    import errno
    import signal
    from pathlib import Path
    from types import FrameType
    from typing import Any, NoReturn

    import click

    from release import __version__
    from release.cli import card, host, hub, kernels, night, publish, report, signing, site, sources, validate, weights, work
    from release.cli import hosts as hosts_
    from release.cli import matrix as table
    from release.errors import ReleaseError
except KeyboardInterrupt:
    sys.stderr.write("stopped\n")
    sys.stderr.flush()
    os._exit(130)

KEPT = "stopped; what was finished is kept, the next build goes on from there"
FULL = (errno.ENOSPC, errno.EDQUOT)
BARRED = (errno.EACCES, errno.EPERM, errno.EROFS)
PREFIXES = {1: "error", 2: "usage", 3: "stage", 4: "verdict"}
"""How a message begins, by exit code; all that verifying refuses is refused."""


class _Door(click.Group):
    """The group of all commands; a Ctrl-C that went through it knows which of them it stopped."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(context.invoked_subcommand) from stop


@click.group(cls=_Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    help="The container engine [default: auto].",
)
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    help="The file of hosts that servers may be on [default: ./hosts.yaml, if it is there].",
)
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
@click.pass_context
def cli(
    context: click.Context, matrix: tuple[Path, ...], store: Path | None, engine: str | None, hosts: Path | None, traceback: bool
) -> None:
    """Build, serve, validate, document and publish a model for a chip.

    \b
    release matrix                                      what there is
    release plan  --chip cpu --model tiny-qwq           what a build would do, and why
    release build --chip cpu --model tiny-qwq           do it
    release pull  --chip cpu --model tiny-qwq           get it back, every digest checked
    release serve --chip cpu --model tiny-qwq           run the very command of the card
    """
    from release.settings import settings

    said = settings(Path.cwd())
    if store is None and "RELEASE_STORE" not in os.environ:
        store = said.store
    context.obj = {
        "matrix": matrix + said.matrix,
        "store": store,
        "engine": engine or said.engine or "auto",
        "hosts": hosts or said.hosts or (Path("hosts.yaml") if Path("hosts.yaml").is_file() else None),
        "traceback": traceback,
    }


for command in (
    *(table.matrix_, table.explain, table.new),
    *(work.plan, work.build, work.pull, work.serve),
    *(sources.unpatch, sources.patch, weights.weights, validate.validate, validate.verdict, card.card, report.report, site.site),
    *(kernels.kernels, publish.publish, publish.gc),
    *(signing.keys, signing.sign, signing.verify, signing.bundle, signing.diff, hub.hub),
    *(night.status, night.triage, night.bisect, night.export),
    *(host.doctor, host.base, host.completion, hosts_.hosts),
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line; every way of failing ends here, with one message and its exit code."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) is not signal.SIG_IGN:  # nohup
            signal.signal(sign, _interrupted)
    try:
        status = cli.main(standalone_mode=False)
    except ReleaseError as problem:
        _fail(problem)
    except click.exceptions.Exit as problem:
        sys.exit(problem.exit_code)
    except click.ClickException as problem:
        problem.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as stop:
        _stopped(stop.__cause__ or stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as problem:
        _fail(_refused_by_the_system(problem), problem)
    except Exception as problem:  # the last resort: a defect of ours, still one clear line
        _fail(
            ReleaseError(
                f"{type(problem).__name__}: {problem}", next_step="this is a defect of release: --traceback shows where"
            ),
            problem,
        )
    sys.exit(status if isinstance(status, int) else 0)  # what a command gave to context.exit


def _fail(problem: ReleaseError, cause: Exception | None = None) -> NoReturn:
    if "--traceback" in sys.argv:
        import traceback

        traceback.print_exception(cause or problem)
    click.echo(f"{PREFIXES.get(problem.exit_code, 'refused')}: {problem}", err=True)
    if problem.next_step:
        first, *rest = problem.next_step.splitlines()
        click.echo("\n".join([f"  next: {first}", *(f"  {line}" for line in rest)]), err=True)
    sys.stdout.flush()
    sys.exit(problem.exit_code)


def _refused_by_the_system(problem: OSError) -> ReleaseError:
    """Return what the system refused and why, as an error that a person can act on."""
    names = " → ".join(str(name) for name in (problem.filename, problem.filename2) if name is not None)
    reason = (problem.strerror or str(problem) or type(problem).__name__).lower()
    step = ""
    if problem.errno in FULL:
        step = "free some space; --store or RELEASE_STORE takes another disk, and `release doctor` shows what is needed"
    elif problem.errno in BARRED:
        step = "name a folder of yours, or get the right to this one"
    return ReleaseError(f"{names}: {reason}" if names else reason, next_step=step)


def _stopped(stop: BaseException) -> NoReturn:
    """End at once: stages may still run in threads, and the guard has cleared up after them."""
    click.echo(KEPT if stop.args == (work.build.name,) else "stopped", err=True)
    sys.stderr.flush()
    os._exit(130)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
