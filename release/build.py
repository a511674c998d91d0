"""The whole product as a few readable verbs: plan, build, pull, serve. The command line calls these; so may other programs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release.errors import MatrixError, ReleaseError, UsageError, VerdictError, VerificationError
from release.matrix import parse
from release.matrix.check import plan_of, precision_for, problems
from release.matrix.load import Matrix, split
from release.oci import DIGEST, link_or_copy, sha256_file
from release.pipeline import Graph, changes, graph, is_valid, run
from release.progress import progress_for
from release.session import Session
from release.stages import STAGES
from release.store import Store, default_path, write_whole
from release.supply import matrix_patches
from release.types import JSON, Plan, State, tag_of

if TYPE_CHECKING:
    from release.publish.artifact import Pulled
    from release.publish.reference import Reference

DELIVERED: Final = ("render", "card")
"""Stages whose files are laid out beside the published artifact."""
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


@dataclass(frozen=True)
class House:
    """A matrix, a store and an engine kind: all that a command needs."""

    matrix: Matrix
    store: Store
    engine_kind: str

    @classmethod
    def open(cls, overlays: tuple[Path, ...], store: Path | None, engine_kind: str) -> House:
        """Return the house of a command line."""
        return cls(Matrix(overlays), Store((store or default_path()).absolute()), engine_kind)

    def cell(self, chip: str, model: str, precision: str | None) -> str:
        """Return the cell id for the options. Raises UsageError with near misses where there is none."""
        cell = precision_for(self.matrix, chip, model, precision)
        self.plan(cell)
        return cell

    def plan(self, cell: str) -> Plan:
        """Return the plan of a cell id, whose engine is one that we have. Raises MatrixError or UsageError."""
        from release.builders.engines import engine_named

        planned = plan_of(self.matrix, cell)
        engine_named(planned.engine)
        for source in planned.sources:
            if source.patches is not None and not matrix_patches(self.matrix, source.patches).is_dir():
                raise MatrixError(f"{cell}: sources: there is no patch set {source.patches}", next_step="add it under patches/")
        return planned

    def problems(self) -> list[ReleaseError]:
        """Return every error of the matrix and of the plan of every cell, each once."""
        found = {str(problem): problem for problem in problems(self.matrix)}
        for cell in [] if found else [cell for cell, _ in self.matrix.cells()]:
            try:
                self.plan(cell)
            except ReleaseError as problem:
                found[str(problem)] = problem
        return list(found.values())

    def graph(self, cell: str, until: str | None) -> Graph:
        """Return the tasks of a build of `cell`."""
        names = [stage.name for stage in STAGES]
        if until is not None and until not in names:
            raise UsageError(
                f"there is no stage {until!r}{parse.near(until, names)}", next_step=f"the stages are: {', '.join(names)}"
            )
        plans: dict[str, Plan] = {}
        following: str | None = cell
        while following is not None and following not in plans:
            plans[following] = self.plan(following)
            following = plans[following].reference
        return graph(STAGES, plans, self.matrix, cell, until or names[-1])

    def reasons(self, tasks: Graph) -> dict[tuple[str, str], list[str]]:
        """Return why each stage of each cell would run; an empty list means that the store has its result."""
        history: dict[str, dict[str, str]] = {}
        found = {}
        for (cell, stage), key in tasks.of.items():
            if cell not in history:
                history[cell] = self._history(cell)
            found[cell, stage] = (
                [] if is_valid(self.store, tasks.tasks[key]) else changes(self.store, tasks.tasks[key], history[cell].get(stage))
            )
        return found

    def build(
        self,
        cell: str,
        *,
        until: str | None = None,
        jobs: int | None = None,
        dist: Path = Path("dist"),
        to: str | None = None,
        use_build_cache: bool = True,
        least: str = "built",
        tag: str | None = None,
    ) -> Outcome:
        """Build `cell` up to `until`, lay the release out under `dist`, and push it to the registry `to` if one is given.

        A release that is not at least `least` ("built" or "validated") is laid out, and never pushed.
        """
        began = time.monotonic()
        tasks = self.graph(cell, until)
        target = self._target(cell, to, tag) if to else None
        if target and (cell, "publish") not in tasks.of:
            raise UsageError("nothing can be pushed before the stage publish", next_step="leave out --until, or --to")
        wanted = [tasks.of[cell, stage] for stage in (until or "publish", *DELIVERED) if (cell, stage) in tasks.of]
        progress = progress_for(sys.stderr)
        session = Session(self.engine_kind, use_build_cache=use_build_cache)
        try:
            ran = run(tasks, wanted, self.matrix, self.store, session, progress, jobs)
        except KeyboardInterrupt:
            progress.close()
            session.abandon()
            raise
        except BaseException:
            session.close()
            raise
        finally:
            progress.close()
            self._remember(tasks)
        session.close()
        if (cell, "publish") not in tasks.of:
            return Outcome(cell, None, None, ran, time.monotonic() - began)
        folder = self.deliver(tasks, cell, dist)
        record = json.loads((folder / "release.json").read_bytes())
        pushed = self._push(folder, target) if target and suffices(record, least) else None
        return Outcome(cell, folder, record, ran, time.monotonic() - began, pushed)

    def deliver(self, tasks: Graph, cell: str, dist: Path) -> Path:
        """Lay the release out under `dist`: Dockerfile, locks, record, card, evidence, published artifact. What is right stays untouched."""
        outputs = {stage: self.store.get(tasks.of[cell, stage]) for stage in (*DELIVERED, "publish")}
        folder = folder_of(cell, dist)
        for name in ("", "oci", "oci/blobs", "oci/blobs/sha256", "evidence"):
            if (folder / name).is_symlink():
                raise UsageError(
                    f"{folder / name} is a link: a release is laid out in folders of its own", next_step="remove the link"
                )
        wanted = {"Dockerfile": outputs["render"] / "Dockerfile", "pylock.toml": outputs["render"] / "pylock.toml"}
        for name, root in (("", outputs["card"]), ("oci", outputs["publish"] / "oci")):
            for path in sorted(root.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    wanted[str(Path(name) / path.relative_to(root))] = path
        lock = json.dumps(self._lock(tasks, cell), indent=1, sort_keys=True) + "\n"
        for name, source in wanted.items():
            _deliver(source, folder / name)
        if not (folder / "lock.json").is_file() or (folder / "lock.json").read_text() != lock:
            write_whole(folder / "lock.json", lock)
        for path in (folder / "oci" / "blobs" / "sha256").glob("*"):
            if re.fullmatch("[0-9a-f]{64}", path.name) and str(path.relative_to(folder)) not in wanted:
                path.unlink()
        return folder

    def layout_of(self, cell: str, dist: Path) -> Path:
        """Return the OCI layout of a release that was built here. Raises UsageError where there is none."""
        layout = folder_of(cell, dist) / "oci"
        if not layout.is_dir():
            chip, model, arm = split(cell)
            raise UsageError(
                f"{cell} has not been built in {dist}", next_step=f"release build --chip {chip} --model {model} --precision {arm}"
            )
        return layout

    def pulled_folder(self, cell: str) -> Path:
        """Return the folder into which a release of this cell is pulled by default."""
        return folder_of(cell, Path("pulled"))

    def pull(self, reference: str, into: Path | None, *, into_engine: bool = True) -> Pulled:
        """Bring a release from a registry or a layout folder, check all of it, and unpack it. Raises VerificationError."""
        import tempfile

        from release import oci
        from release.publish import artifact

        with tempfile.TemporaryDirectory(prefix="release-pull-") as scratch:
            if Path(reference).is_dir():
                layout = oci.Layout.open(Path(reference))
                entries = layout.index()
                if len(entries) != 1:
                    raise VerificationError(f"{reference} holds {len(entries)} releases in its index, not one")
                entry = entries[0]
            else:
                from release.publish.reference import Reference
                from release.publish.registry import pull

                layout = oci.Layout.create(Path(scratch))
                entry = pull(Reference.parse(reference), layout)
            cell = artifact.cell_of(layout, entry)
            pulled = artifact.unpack(layout, entry, (into or self.pulled_folder(cell)).absolute())
            if into_engine:
                from release.builders.image import load_image
                from release.containers import connect

                with connect(self.engine_kind) as engine:
                    load_image(engine, layout, pulled.image, str(pulled.record["image"]["config"]))
        return pulled

    def serve_command(self, folder: Path, port: int | None, *, check: bool) -> tuple[list[str], dict[str, str]]:
        """Return the card's command for the pulled release in `folder`, and the environment to run it in.

        With `check`, it must ask of this host just what our matrix says of its chip, the port must be free, and the engine must hold
        the image. Raises UsageError, VerificationError, ServingError or EngineError.
        """
        try:
            record = json.loads((folder / "release.json").read_bytes())
            line, own = [str(word) for word in record["serve"]["command"]], int(record["serve"]["port"])
            if check:
                self._check_command(record, line, own)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UsageError(
                f"{folder} holds no pulled release: {problem}", next_step="release pull --chip … --model …"
            ) from problem
        line = [word.replace("$PWD/", f"{folder.absolute()}/") if word.startswith("$PWD/") else word for word in line]
        if port is not None:
            line = [f"127.0.0.1:{port}:{own}" if word == f"127.0.0.1:{own}:{own}" else word for word in line]
        if not check:
            return line, {}
        from release.containers import connect
        from release.errors import EngineError
        from release.validators.serving import free_port

        free_port(port or own)
        with connect(self.engine_kind) as engine:
            if not engine.has(record["image"]["config"]):
                raise EngineError(f"the engine has no image {record['image']['config']}", next_step="release pull brings it")
            return [engine.cli, *line[1:]], dict(engine.env)

    def _check_command(self, record: JSON, line: list[str], port: int) -> None:
        """Refuse a command that is not what our own chip's container contract gives: whoever wrote the record may be anybody."""
        from release.containers import run_command

        chip, serve = self.matrix.chip(str(record["chip"]["id"])), record["serve"]
        ours = run_command(
            chip.container,
            image=str(record["image"]["config"]),
            argv=[str(word) for word in serve["argv"]],
            env={str(name): str(value) for name, value in serve["env"].items()},
            memory=str(serve["memory"]),
            publish=f"127.0.0.1:{port}:{port}",
            weights="$PWD/weights",
            extra=("--rm",),
        )
        if line != ours or not DIGEST.fullmatch(str(record["image"]["config"])):
            odd = [word for word in line if word not in ours]
            raise VerificationError(
                f"the record's command is not the one that chip {chip.id} of this matrix gives{': ' + ' '.join(odd) if odd else ''}",
                next_step="read it with --dry-run; if you trust its author, run it yourself, or overlay the chip with --matrix",
            )

    def _target(self, cell: str, to: str, tag: str | None) -> Reference:
        """Return where in the registry `to` (HOST/NAMESPACE) a cell is pushed. Raises UsageError for what is no reference."""
        from release.publish.reference import Reference

        chip, model, arm = split(cell)
        return Reference.parse(f"{to.rstrip('/')}/{chip}/{model}:{tag or tag_of(arm)}")

    def _push(self, folder: Path, target: Reference) -> str:
        from release import oci
        from release.publish.registry import push

        layout = oci.Layout.open(folder / "oci")
        return f"{target}@{push(layout, layout.find(folder.name), target)}"

    def _lock(self, tasks: Graph, cell: str) -> JSON:
        return {
            "cell": cell,
            "stages": {
                f"{owner}: {stage}": {"key": key, "reads": tasks.tasks[key].reads, "needs": dict(tasks.tasks[key].needs)}
                for (owner, stage), key in sorted(tasks.of.items())
            },
        }

    def _history(self, cell: str) -> dict[str, str]:
        try:
            history: dict[str, str] = json.loads(self._history_path(cell).read_bytes())
            return history
        except (OSError, ValueError):
            return {}

    def _history_path(self, cell: str) -> Path:
        return self.store.path / "cells" / (cell.replace("/", "+") + ".json")

    def _remember(self, tasks: Graph) -> None:
        """Note which keys each cell has results for, so that a later plan can say what changed."""
        for cell in {cell for cell, _ in tasks.of}:
            before = self._history(cell)
            now = before | {stage: key for (owner, stage), key in tasks.of.items() if owner == cell and self.store.has(key)}
            if now != before:
                with contextlib.suppress(OSError):  # it is a hint for `plan`, no more
                    self._history_path(cell).parent.mkdir(parents=True, exist_ok=True)
                    write_whole(self._history_path(cell), json.dumps(now, indent=1))


def suffices(record: JSON, least: str) -> bool:
    """Say whether a release is at least `built` (no verdict failed) or `validated` (every verdict passed)."""
    return record["state"] == State.VALIDATED or (least == "built" and record["state"] == State.BUILT)


def folder_of(cell: str, root: Path) -> Path:
    """Return the folder of a cell under `root`: chip/model/precision[-variant]."""
    chip, model, arm = split(cell)
    return root / chip / model / tag_of(arm)


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
