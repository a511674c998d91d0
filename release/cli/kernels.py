"""The commands about operators: whether they compute the right thing, how long they take, and what share of a model they are."""

from __future__ import annotations

from pathlib import Path

import click

from release.cli.options import complete, house_of
from release.errors import UsageError, VerdictError


@click.group()
def kernels() -> None:
    """Prove and time the Triton operators of a model, and say what share of it they are."""


@kernels.command()
@click.option("--chip", required=True, shell_complete=complete("chips"), help="The chip, whose dtypes are checked.")
@click.option("--model", required=True, shell_complete=complete("models"), help="The model, whose shapes are checked.")
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="Only this operator, and others so named.")
@click.option(
    "--library", type=click.Choice(["ours", "flaggems"]), default="ours", show_default=True, help="Whose operators are checked."
)
@click.option("--cases", is_flag=True, help="A line for every case, not for every operator and dtype.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def check(
    context: click.Context, chip: str, model: str, operators: tuple[str, ...], library: str, cases: bool, as_json: bool
) -> None:
    """Compare each operator with a float64 reference, at the model's shapes and at the edges.

    Where no device is here, it runs in Triton's interpreter on reduced shapes. $RELEASE_KERNELS_PYTHON names the Python that has
    torch and triton, if it is not this one. Exit code 4 if an operator failed, or if nothing could be checked.
    """
    from release.operators import check as proof
    from release.show.kernels import checked

    matrix = house_of(context).matrix
    _refuse_unknown(operators)
    found = proof(matrix.chip(chip), matrix.model(model), operators, library=library)
    click.echo(checked(found, cases=cases, as_json=as_json))
    if not found.passed:
        failed = sum(verdict.status.value == "FAILED" for verdict in found.verdicts)
        raise VerdictError(f"{chip}/{model}: {f'{failed} cases failed' if failed else 'nothing was checked'}")


@kernels.command()
@click.option("--chip", required=True, shell_complete=complete("chips"), help="The chip whose device is here.")
@click.option("--model", required=True, shell_complete=complete("models"), help="The model at whose shapes is timed.")
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="Only this operator, and others so named.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default=("bf16",),
    show_default=True,
    help="In this dtype, and others so named.",
)
@click.option("--try", "trying", is_flag=True, help="Time ours with every configuration worth trying, too.")
@click.option(
    "--json",
    "to_json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every figure into this file, and what was measured, as it comes, into a .jsonl beside it.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the roofline into this file, .svg or .png.")
@click.pass_context
def bench(
    context: click.Context,
    chip: str,
    model: str,
    operators: tuple[str, ...],
    dtypes: tuple[str, ...],
    trying: bool,
    to_json: Path | None,
    plot: Path | None,
) -> None:
    """Time each operator beside torch and FlagGems, at the model's shapes, on the device that is here.

    Beside them stand the bandwidth at which the device copies and the rate at which it multiplies, measured in the same process. Where
    no device is here nothing is timed: the interpreter's time says nothing about one. $RELEASE_KERNELS_PYTHON names the Python that
    has torch and triton, if it is not this one. Exit code 4 if an operator failed, or if nothing was timed.
    """
    from release.bench import bench as timing
    from release.bench import document
    from release.publish.pictures import draw, renderer
    from release.show.bench import benched, roofline
    from release.show.text import as_document
    from release.store import write_whole

    kind = plot.suffix.removeprefix(".") if plot else ""
    if plot and kind not in ("svg", "png"):
        raise UsageError(f"{plot.name} is neither .svg nor .png", next_step="name the plot as what it shall be")
    if plot and renderer() is None:
        raise UsageError("pictures need the extra `report`", next_step="pip install 'release[report]'")
    matrix = house_of(context).matrix
    _refuse_unknown(operators)
    kept = to_json.with_suffix(".jsonl") if to_json else None
    found = timing(matrix.chip(chip), matrix.model(model), operators, dtypes, trying=trying, keep=kept)
    click.echo(benched(found))
    if to_json:
        write_whole(to_json, as_document(document(found)) + "\n")
    picture = roofline(found) if plot else None
    if plot and picture:
        plot.write_bytes(draw({"roofline": picture}, kind)["roofline"])
    if plot and not picture:
        click.echo(f"{plot} is not drawn: there are no figures for it", err=True)
    if found.failed or not found.measured:
        raise VerdictError(f"{chip}/{model}: {f'{found.failed} cases failed' if found.failed else 'nothing was timed'}")


@kernels.command()
@click.argument("traces", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--chip", shell_complete=complete("chips"), help="The chip of a cell whose server is profiled now.")
@click.option("--model", shell_complete=complete("models"), help="Its model.")
@click.option("--precision", help="Its precision, and ~variant where there is one.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document, with every kind of operator.")
@click.pass_context
def coverage(
    context: click.Context, traces: tuple[Path, ...], chip: str | None, model: str | None, precision: str | None, as_json: bool
) -> None:
    """Say what share of a served model's operators ran in Triton: by kind, by launches, by time, each with its definition.

    With --chip and --model the cell is built as far as its image, started with the profiler on, and asked questions. Or TRACES are
    what torch's profiler wrote of one server, or the folder of them: `vllm serve … --profiler-config.profiler torch
    --profiler-config.torch_profiler_dir DIR`, then POST /start_profile, requests, POST /stop_profile; calls that the plugin recorded
    ($RELEASE_OPERATORS_RECORD) are read where they lie in such a folder.
    """
    from release.coverage import calls_of, measure
    from release.show.coverage import covered

    if bool(traces) == bool(chip and model) or bool(chip) != bool(model) or (traces and precision):
        raise UsageError("give traces, or the --chip and the --model whose server is to be profiled")
    if chip and model:
        from release.build import profile_cell

        house = house_of(context)
        traces = (profile_cell(house, house.cell(chip, model, precision)),)
    click.echo(covered(measure(traces), calls_of(traces), as_json=as_json))


def _refuse_unknown(operators: tuple[str, ...]) -> None:
    from release.operators import listed

    for name in operators:
        if name not in listed():
            raise UsageError(f"there is no operator {name!r}", next_step=f"there are: {', '.join(listed())}")
