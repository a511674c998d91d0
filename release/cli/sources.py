"""The commands about vendors' changes: restore a patched tree, make a patch set, see where one applies, make keys."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from release.cli.options import complete, house_of
from release.errors import RequestError, UsageError, VerdictError

if TYPE_CHECKING:
    from release.patches.doctor import Diagnosis

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, exists=True)
JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
KEY = click.option("--key", type=FILE, help="The private key for encrypted patches [default: what $RELEASE_PATCH_KEY holds].")
FITS: Final = click.Choice(["clean", "whitespace", "fuzz"])
FLAGSCALES: Final = {"device_type": "--device-type", "commit_id": "--commit-id", "backends": "--backend", "task": "--task"}
"""Options that only FlagScale's formats have."""
SOURCES: Final = {
    **FLAGSCALES,
    **{"revision": "--revision", "form": "--format", "patches": "--patches", "submodules": "--submodule"},
    "accept_changed": "--accept-changed",
}
"""Options that describe a source; a cell's are described in its YAML."""
CELLS: Final = {"chip": "--chip", "model": "--model", "precision": "--precision"}


@click.command()
@click.option("--chip", shell_complete=complete("chips"), help="Restore the sources of this chip's cell …")
@click.option("--model", shell_complete=complete("models"), help="… for this model.")
@click.option("--precision", help="Precision, and ~variant where there is one.")
@click.option("--source", metavar="PATH|URL", help="Restore a source that no cell names: its repository.")
@click.option(
    "--revision",
    default="HEAD",
    show_default=True,
    help="The commit or tag of it (that holds the patches, of FlagScale's formats).",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["flagscale", "series"]),
    default="flagscale",
    show_default=True,
    help="How the patches lie.",
)
@click.option("--device-type", help="FlagScale's name of the chip, as Vendor_Model.")
@click.option("--commit-id", default="", help="FlagScale's name of the base: the beginning of a commit.")
@click.option("--backend", "backends", multiple=True, help="A patched backend, of FlagScale's later formats.")
@click.option("--task", default="", help="train or inference, of FlagScale's later formats.")
@click.option("--patches", type=FILE, help="Of --format series: the folder of the patch set.")
@click.option(
    "--submodule",
    "submodules",
    multiple=True,
    metavar="PATH=URL",
    help="A submodule whose content is wanted, and its repository.",
)
@KEY
@click.option("--no-whitespace-fix", is_flag=True, help="Refuse a patch that only applies after git has changed whitespace.")
@click.option("--accept-changed", is_flag=True, help="With --source: take a patch that was replaced since it was restored last.")
@click.option("--offline", is_flag=True, help="Use what the store has and no network.")
@click.option("--into", type=FOLDER, help="Write the tree here [default: leave it in the store, or ./NAME with --source].")
@JSON_FLAG
@click.pass_context
def unpatch(
    context: click.Context,
    chip: str | None,
    model: str | None,
    precision: str | None,
    source: str | None,
    revision: str,
    form: str,
    device_type: str | None,
    commit_id: str,
    backends: tuple[str, ...],
    task: str,
    patches: Path | None,
    submodules: tuple[str, ...],
    key: Path | None,
    no_whitespace_fix: bool,
    accept_changed: bool,
    offline: bool,
    into: Path | None,
    as_json: bool,
) -> None:
    """Restore a vendor's tree: its patches on their base, exactly, or an error that says why not.

    \b
    release unpatch --chip CHIP --model MODEL --into src
    release unpatch --source URL --device-type Vendor_Model --commit-id 57637057 --into src
    """
    from release import sources
    from release.show.sources import restored

    house, fix = house_of(context), not no_whitespace_fix
    if source is None:
        if chip is None or model is None:
            raise UsageError("say what to restore: --chip and --model, or --source")
        _refuse(context, SOURCES, "describes a --source; the sources of a cell stand in its YAML")
        from release.build import unpatch_cell

        found = unpatch_cell(house, house.cell(chip, model, precision), into, key=key, offline=offline, fix=fix)
    else:
        _refuse(context, CELLS, "names a cell, and --source a source that no cell names: give one of them")
        _refuse_mixture(context, form)
        wanted = sources.Wanted(revision, form, device_type, commit_id, backends, task, patches, _pairs(submodules))
        with _typed():
            found = [
                sources.unpatch_source(
                    house.store, source, wanted, key, into, offline=offline, fix=fix, accept_changed=accept_changed
                )
            ]
    click.echo(restored(found, as_json=as_json))


def _refuse_mixture(context: click.Context, form: str) -> None:
    """Refuse options of one format together with the other."""
    if form != "series":
        _refuse(context, {"patches": "--patches"}, "belongs to --format series; FlagScale's patches lie in the repository")
        return
    _refuse(
        context, {**FLAGSCALES, "accept_changed": "--accept-changed"}, "belongs to --format flagscale; a series pins its patches"
    )
    if context.params["patches"] is None:
        raise UsageError("--format series takes a patch set", next_step="name its folder with --patches, as patches/engine/0.8.3")


def _refuse(context: click.Context, names: dict[str, str], why: str) -> None:
    """Refuse the first of these options that the command line has."""
    given = (
        option for name, option in names.items() if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    )
    if option := next(given, None):
        raise UsageError(f"{option} {why}")


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    """Make what was asked for in vain a mistake of whoever typed it; in a stage it is a failure of the stage."""
    try:
        yield
    except RequestError as problem:
        raise UsageError(problem.message, next_step=problem.next_step, where=problem.where) from problem


@click.group(invoke_without_command=True)
@click.option("--from", "tree", type=FILE, help="The changed tree: a folder, or a checkout (its HEAD).")
@click.option("--base", help="What it is changed from: a commit of the checkout (or of --repository), or a folder.")
@click.option("--repository", type=FILE, help="The repository that has the base [default: the tree's own].")
@click.option("--out", type=FOLDER, help="The folder of the set, SOURCE/BASE, as patches/engine/0.8.3.")
@click.option("--commit", default="HEAD", show_default=True, help="The commit of the checkout.")
@click.option("--each-commit", is_flag=True, help="One patch a commit, with its message and author.")
@click.option(
    "--recipient", "recipients", type=FILE, multiple=True, help="Encrypt for whoever has the other half of this public key."
)
@JSON_FLAG
@click.pass_context
def patch(
    context: click.Context,
    tree: Path | None,
    base: str | None,
    repository: Path | None,
    out: Path | None,
    commit: str,
    each_commit: bool,
    recipients: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Make a patch set from a changed tree, proven to give that tree again; and what else there is to do with patches."""
    if context.invoked_subcommand is not None:
        return
    if tree is None or base is None or out is None:
        raise UsageError(
            "say what to make: --from TREE --base COMMIT --out SOURCE/BASE", next_step="or: release patch doctor --help"
        )
    from release.patches.keys import public_key
    from release.patches.make import make
    from release.show.sources import made

    start: Path | str = Path(base) if Path(base).is_dir() else base
    with _typed():
        keys = [public_key(path) for path in recipients]
        result = make(tree, start, out, commit=commit, repository=repository, each_commit=each_commit, recipients=keys)
    click.echo(made(result, as_json=as_json))


@patch.command("doctor")
@click.argument("patches", type=FILE)
@click.argument("commits", nargs=-1)
@click.option("--repository", required=True, metavar="PATH|URL", help="The repository that the patches are for.")
@click.option("--branch", default="", help="Find the newest commit of this branch at which they still apply.")
@click.option("--since", default="", help="Do not look further back than this commit.")
@click.option("--scan", is_flag=True, help="Try every state of the touched files, not only those of a bisection.")
@click.option(
    "--accept",
    type=FITS,
    default="clean",
    show_default=True,
    help="What counts as applying, with --branch.",
)
@click.option("--require", type=FITS, help="End with 4 where it fits one of COMMITS worse than this (or no commit of --branch).")
@click.option("--jobs", type=click.IntRange(1), help="Commits that are tried at once [default: the number of cores].")
@KEY
@click.option("--offline", is_flag=True, help="Use the mirror in the store and no network.")
@JSON_FLAG
@click.pass_context
def patch_doctor(
    context: click.Context,
    patches: Path,
    commits: tuple[str, ...],
    repository: str,
    branch: str,
    since: str,
    scan: bool,
    accept: str,
    require: str | None,
    jobs: int | None,
    key: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Say at which COMMITS (or ranges A..B) a set, mailbox or diff PATCHES applies, and which hunks fail where it does not."""
    from release import sources
    from release.show.sources import diagnosis

    house = house_of(context)
    if not commits and not branch:
        raise UsageError("say where to try it: COMMITS, or --branch")
    with _typed():
        found = sources.diagnose_patches(
            house.store,
            patches,
            commits,
            repository,
            branch=branch,
            since=since,
            scan=scan,
            accept=accept,
            jobs=jobs or 0,
            key=key,
            offline=offline,
        )
    click.echo(diagnosis(found, as_json=as_json))
    if require:
        _require(found, require)


def _require(found: Diagnosis, wanted: str) -> None:
    """Raise VerdictError where a commit that was asked for takes the patches worse than `wanted`, or a branch has none that does."""
    if worse := found.worse(wanted):
        more = f", and {len(worse) - 1} more commits" if len(worse) > 1 else ""
        raise VerdictError(
            f"{worse[0].commit.id[:12]}: {worse[0].fit}, not {wanted}{more}", next_step="the table says which hunks"
        )
    if found.newest and not found.newest.finding:
        raise VerdictError(f"the patches apply at no commit of the branch: {found.newest.note}")


@patch.command("keys")
@click.argument("folder", type=FOLDER)
@JSON_FLAG
def patch_keys(folder: Path, as_json: bool) -> None:
    """Make a key pair for encrypted patches in FOLDER: private_key.pem, for you alone, and public_key.pem, for whoever encrypts.

    A passphrase for it is taken from $RELEASE_PATCH_KEY_PASSPHRASE.
    """
    import os

    from release.patches.keys import new_keys

    with _typed():
        key = new_keys(folder, os.environ.get("RELEASE_PATCH_KEY_PASSPHRASE", ""))
    click.echo(
        json.dumps({"id": key.id, "folder": str(folder)})
        if as_json
        else f"key {key.id} in {folder}; give public_key.pem away, and nothing else"
    )


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        path, equals, address = text.partition("=")
        if not equals or not path or not address:
            raise UsageError(f"--submodule {text}: is not PATH=URL")
        found[path] = address
    return found
