"""Building a release: run its stages, lay it out, push it. The command line calls this; so may other programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from release.errors import PatchError, StageError, UsageError, VerdictError
from release.house import House
from release.matrix.load import Matrix, split
from release.oci import link_or_copy, sha256_file
from release.pipeline import Graph, Run, Task, is_had
from release.progress import Progress, progress_for
from release.schedule import Ledger, Limits, carry_out, unit
from release.session import Session
from release.stages import STAGES
from release.store import Store, write_whole
from release.supply import git_sources
from release.types import JSON, State, tag_of

if TYPE_CHECKING:
    from release.publish.reference import Reference

DELIVERED: Final = ("render", "card")
"""Stages whose files are laid out beside the published artifact."""
PRECISION: Final = "{precision}"
"""What stands in a tag for a cell's precision, and -variant; alone it is the tag that a release gets by itself."""
SHOWN: Final = 5
"""References that an error names."""
Runner: TypeAlias = Callable[[Graph, Matrix, Store, Session, Progress], Run]
"""What makes the run of a build, and so says on which machines its stages work."""
SMALL: Final = 1 << 20
"""Bytes up to which a delivered file is copied; larger ones are linked where the file system allows it."""


@dataclass(frozen=True)
class Outcome:
    """What a build came to: the record if there is one, where it lies, and how long it took in seconds."""

    cell: str
    folder: Path | None
    record: JSON | None
    ran: tuple[str, ...]
    seconds: float
    pushed: str | None = None

    def require(self, least: str) -> None:
        """Raise VerdictError unless the release is at least `built` or `validated`."""
        if self.record is not None and not suffices(self.record, least):
            failing = [verdict for verdict in self.record["verdicts"] if verdict["status"] != "PASSED"]
            reasons = "; ".join(
                f"{verdict['name']}: {verdict['measured']}, wanted {verdict['wanted']}" for verdict in failing[:3]
            )
            raise VerdictError(
                f"{self.cell}: {self.record['state']}, not {least}: {reasons}",
                next_step=f"the evidence lies in {self.folder}/evidence",
            )


def build(
    house: House,
    cell: str,
    *,
    until: str | None = None,
    jobs: int | None = None,
    dist: Path = Path("dist"),
    to: str | None = None,
    use_build_cache: bool = True,
    least: str = "built",
    tag: str | None = None,
    patch_key: Path | None = None,
    offline: bool = False,
    runner: Runner = Run,
    begin: Callable[[Graph], None] = lambda tasks: None,
    ledger: Ledger | None = None,
) -> Outcome:
    """Build `cell` up to `until`, lay the release out under `dist`, and push it to the registry `to` if one is given.

    A release that is not at least `least` ("built" or "validated") is laid out, and never pushed. `patch_key` opens encrypted patches;
    `offline` has repositories and wheels come from the store alone. `runner` says where stages work: on this machine, or over a cluster.
    `begin` hears of the tasks when all is checked and the work begins; `ledger` is as in `carry`.
    """
    began = time.monotonic()
    tasks = house.graph(cell, until)
    target = target_of(cell, to, tag) if to else None
    if target and (cell, "publish") not in tasks.of:
        raise UsageError("nothing can be pushed before the stage publish", next_step="leave out --until, or --to")
    if target:
        refuse_taken(house, tasks, {cell: target})
    session = Session(
        house.engine_kind, use_build_cache=use_build_cache, patch_key=patch_key, offline=offline, hosts=house.hosts()
    )
    limits = here(house, jobs)
    with house.store.in_use():  # until it is laid out: nobody clears up what was found or made
        begin(tasks)
        wanted = ends(tasks, [cell], until)
        ledger = carry(house, tasks, wanted, progress_for(sys.stderr), limits, session, runner=runner, ledger=ledger)
        for failure in ledger.failed.values():
            raise failure
        ran = tuple(ledger.ran)
        if (cell, "publish") not in tasks.of:
            return Outcome(cell, None, None, ran, time.monotonic() - began)
        folder = deliver(house, tasks, cell, dist)
    record = json.loads((folder / "release.json").read_bytes())
    pushed = push_release(house, folder, target) if target and suffices(record, least) else None
    return Outcome(cell, folder, record, ran, time.monotonic() - began, pushed)


def here(house: House, jobs: int | None) -> Limits:
    """Return the limits of a build on this machine and its hosts."""
    known = house.hosts()
    lent = known[0].lent if known else {}
    return Limits(hosts=lent) if jobs is None else Limits(jobs, hosts=lent)


def carry(
    house: House,
    tasks: Graph,
    wanted: Iterable[str],
    progress: Progress,
    limits: Limits,
    session: Session,
    *,
    keep_going: bool = False,
    seconds: Callable[[Task], float] = unit,
    note: bool = True,
    runner: Runner = Run,
    ledger: Ledger | None = None,
) -> Ledger:
    """Bring the keys `wanted` into the store, and end progress and session however that ends; return what became of it, in `ledger` if
    there is one: it is kept up while things go on.

    Without `note`, a later plan does not take what was made here for the cells' own: a trial of other pins, for one.
    """
    work = runner(tasks, house.matrix, house.store, session, progress)
    try:
        ledger = carry_out(tasks, wanted, work, limits, keep_going=keep_going, seconds=seconds, ledger=ledger)
    except KeyboardInterrupt:
        progress.close()
        work.abandon()
        raise
    except BaseException:
        session.close()
        raise
    finally:
        progress.close()
        if note:
            house.remember(tasks)
    session.close()
    return ledger


def ends(tasks: Graph, cells: Iterable[str], until: str | None) -> list[str]:
    """Return the keys that the cells want in the end: the last stage, and those whose files are laid out."""
    return [tasks.of[cell, stage] for cell in cells for stage in (until or "publish", *DELIVERED) if (cell, stage) in tasks.of]


def profile_cell(house: House, cell: str, *, jobs: int | None = None) -> Path:
    """Build a cell as far as its server can be profiled, and return the folder of its traces, recorded calls and coverage.json."""
    build(house, cell, until="profile", jobs=jobs)
    return house.store.get(house.graph(cell, "profile").of[cell, "profile"])


def unpatch_cell(
    house: House, cell: str, into: Path | None, *, key: Path | None = None, offline: bool = False, fix: bool = True
) -> list[JSON]:
    """Run the build of a cell up to its restored sources, and return what they are; copy them into `into` if one is given.

    `key` opens encrypted patches, `offline` keeps the stages from the network, and without `fix` a tree whose patches fit only after
    git changed whitespace is refused. Raises UsageError for a cell without a repository, and for folders that are there already.
    """
    names = [source.name for source in git_sources(house.plan(cell))]
    if not names:
        raise UsageError(
            f"no source of {cell} is a repository: there is no tree to restore",
            next_step="the patched wheels of a cell come from `release build --until unpatch`; other repositories take --source",
        )
    if taken := [name for name in names if into is not None and os.path.lexists(into / name)]:
        raise UsageError(f"{into}/{taken[0]} is there already", next_step="give another folder with --into")
    with house.store.in_use():
        build(house, cell, until="unpatch", patch_key=key, offline=offline)
        output = house.store.get(house.graph(cell, "unpatch").of[cell, "unpatch"])
        found: list[JSON] = json.loads((output / "git.json").read_bytes())
        changed = [patch["path"] for source in found for patch in source["patches"] if patch["how"] != "exact"]
        if changed and not fix:
            raise PatchError(
                f"{changed[0]} applies only after its whitespace is changed",
                where=cell,
                next_step="ask the vendor for a patch that fits, or leave out --no-whitespace-fix: the tree is not the vendor's own then",
            )
        for source in found:
            lies = output / "sources" / source["name"]
            if into is not None:
                target = (into / source["name"]).absolute()
                _copy_tree(lies, target)
                lies = target
            source["folder"] = str(lies)
    return found


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder beside its place, and make it `target` by one rename: it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        try:
            shutil.copytree(source, Path(scratch) / "tree", symlinks=True)
        except shutil.Error as problem:  # a list of what failed, with no number: say the first
            raise StageError(
                f"{target} cannot be written: {problem.args[0][0][2]}", next_step="free some space, or give another --into"
            ) from problem
        (Path(scratch) / "tree").rename(target)


def import_base(house: House, archive: Path) -> JSON:
    """Take a docker-archive into the store as a base image; return its digest, tags, layers, architecture and os. Raises StageError."""
    from release.builders.base import import_base

    progress = progress_for(sys.stderr)
    try:
        line = progress.line(archive.name, "base")
        line.start()
        with house.store.in_use(), tempfile.TemporaryDirectory(prefix="base-", dir=house.store.scratch()) as scratch:
            facts = import_base(archive, Path(scratch), line)
            key = facts["digest"].removeprefix("sha256:")
            if not house.store.has(key):
                house.store.put(key, {"stage": "base import", "base": facts}, lambda out: _move(Path(scratch), out))
        line.done(facts["digest"])
    finally:
        progress.close()
    return facts


def deliver(house: House, tasks: Graph, cell: str, dist: Path) -> Path:
    """Lay the release out under `dist`: Dockerfile, locks, record, card, evidence, published artifact. What is right stays untouched."""
    outputs = {stage: house.store.get(tasks.of[cell, stage]) for stage in (*DELIVERED, "publish")}
    folder = folder_of(cell, dist)
    for name in ("", "oci", "oci/blobs", "oci/blobs/sha256", "evidence"):
        if (folder / name).is_symlink():
            raise UsageError(
                f"{folder / name} is a link: a release is laid out in folders of its own", next_step="remove the link"
            )
    wanted = {name: outputs["render"] / name for name in ("Dockerfile", "pylock.toml") if (outputs["render"] / name).is_file()}
    for name, root in (("", outputs["card"]), ("oci", outputs["publish"] / "oci")):
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                wanted[str(Path(name) / path.relative_to(root))] = path
    lock = json.dumps(house.lock(tasks, cell), indent=1, sort_keys=True) + "\n"
    for name, source in wanted.items():
        _deliver(source, folder / name)
    if not (folder / "lock.json").is_file() or (folder / "lock.json").read_text() != lock:
        write_whole(folder / "lock.json", lock)
    for path in (folder / "oci" / "blobs" / "sha256").glob("*"):
        if re.fullmatch("[0-9a-f]{64}", path.name) and str(path.relative_to(folder)) not in wanted:
            path.unlink()
    return folder


def layout_of(cell: str, dist: Path) -> Path:
    """Return the OCI layout of a release that was built here. Raises UsageError where there is none."""
    layout = folder_of(cell, dist) / "oci"
    if not layout.is_dir():
        chip, model, arm = split(cell)
        raise UsageError(
            f"{cell} has not been built in {dist}", next_step=f"release build --chip {chip} --model {model} --precision {arm}"
        )
    return layout


def target_of(cell: str, to: str, tag: str | None) -> Reference:
    """Return where in the registry `to` (HOST/NAMESPACE) a cell is pushed; `{precision}` in `tag` is its precision, and -variant.

    Raises UsageError for what is no reference.
    """
    from release.publish.reference import Reference

    chip, model, arm = split(cell)
    return Reference.parse(f"{to.rstrip('/')}/{chip}/{model}:{(tag or PRECISION).replace(PRECISION, tag_of(arm))}")


def refuse_taken(house: House, tasks: Graph, targets: Mapping[str, Reference]) -> None:
    """Ask what the tags of cells are before hours go into what could not be pushed. Raises UsageError if one is another release already, or is
    that of two cells.

    What the store has no result of is another release: it is measured anew, and its record says when.
    """
    from release.publish.distribution import Registry

    if len(set(targets.values())) < len(targets):
        raise UsageError(
            "cells of one model would have one tag", next_step=f"let it name each of them: {PRECISION} in it is the precision"
        )
    taken = []
    with house.store.in_use():
        for cell, target in targets.items():
            task = tasks.task(cell, "publish")
            found = Registry.at(target).digest_of(target.tag)
            if found is not None and not (is_had(house.store, task) and _published(house.store.get(task.key)) == found):
                taken.append(str(target))
    if taken:
        more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
        raise UsageError(
            f"another release is published already as {', '.join(taken[:SHOWN])}{more}: a published tag never moves",
            next_step=f"give each build a tag of its own, as --tag '{PRECISION}-{date.today():%Y%m%d}'",
        )


def _published(folder: Path) -> str:
    """Return the digest of the index that the stage publish has put into `folder`."""
    return str(json.loads((folder / "publish.json").read_bytes())["index"]["digest"])


def push_release(house: House, folder: Path, target: Reference) -> str:
    """Push a release that is laid out in `folder`; return where it is, by digest."""
    from release.publishing import publish_release

    return publish_release(folder, target, house.pushed).reference


def suffices(record: JSON, least: str) -> bool:
    """Say whether a release is at least `built` (no verdict failed) or `validated` (every verdict passed)."""
    return record["state"] == State.VALIDATED or (least == "built" and record["state"] == State.BUILT)


def folder_of(cell: str, root: Path) -> Path:
    """Return the folder of a cell under `root`: chip/model/precision[-variant]."""
    chip, model, arm = split(cell)
    return root / chip / model / tag_of(arm)


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)


def _deliver(source: Path, target: Path) -> None:
    """Make `target` what `source` is. Large files are linked, small ones copied, so that an edit cannot reach the store."""
    size = source.stat().st_size
    if (
        target.is_file()
        and target.stat().st_size == size
        and (target.samefile(source) or sha256_file(target) == sha256_file(source))
    ):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if size > SMALL and source.stat().st_mode & 0o222 == 0:
        link_or_copy(source, target)
    else:
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def stages_of(tasks: Graph, cell: str) -> list[tuple[str, Any]]:
    """Return the stages of one cell in the order of STAGES, each with its task."""
    return [(stage.name, tasks.task(cell, stage.name)) for stage in STAGES if (cell, stage.name) in tasks.of]
