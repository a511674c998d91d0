"""A matrix, a store and a container engine: what every command works with, and the plans and graphs that it can make of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final

from release.errors import MatrixError, ReleaseError, UsageError
from release.matrix import parse
from release.matrix.check import Asked, plan_of, precision_for, problems
from release.matrix.layout import Choice, choose
from release.matrix.load import Matrix
from release.matrix.memory import Memory, memory_of
from release.matrix.nearest import alike, nearest
from release.matrix.rules import concerns, ordered
from release.matrix.sound import unsound
from release.pipeline import Graph, changes, graph, is_valid
from release.publish.reference import Reference
from release.stages import STAGES
from release.store import Store, default_path, write_whole
from release.supply import matrix_patches
from release.types import JSON, Chip, Concern, Hosts, Plan, Staging, Unknown, dump, split_cell

EXAMPLE: Final = "write HOST[:PORT]/NAME, for example registry.example.org/staging"


@dataclass(frozen=True)
class Study:
    """A plan with all that can be said before anything is built: the choice of its layout, its memory, and what the rules say."""

    plan: Plan
    choice: Choice | None
    memory: Memory | None
    concerns: tuple[Concern, ...]
    asked: Asked = field(default_factory=Asked)

    @property
    def refusal(self) -> Concern | None:
        """The first reason why nothing is to be built."""
        return next((concern for concern in self.concerns if concern.severity == "refuse"), None)


def devices_asked(plan: Plan, asked: Asked) -> Iterator[Concern]:
    """Say what becomes of the devices that a command line counts: a layout that needs more is refused, and idle ones are told."""
    if asked.devices is None:
        return
    if plan.device is None:
        text = f"--devices {asked.devices} says nothing here: a host processor is one device"
        yield Concern(rule="devices", severity="note", message=text)
    elif plan.parallel is not None:
        world, used = plan.parallel.world_size, plan.parallel.world_size * plan.parallel.replicas
        if asked.devices < world:
            text = f"{world} devices are needed for this layout, and there are {asked.devices}"
            yield Concern(
                rule="devices",
                severity="refuse",
                message=text,
                next_step="ask for a smaller layout, or for none: the plan chooses one",
            )
        elif used < asked.devices:
            text = f"{asked.devices - used} of {asked.devices} devices stay idle: {plan.parallel.replicas} × {world} are used"
            yield Concern(rule="devices", severity="note", message=text)


def _waivers(plan: Plan) -> Iterator[Concern]:
    """Say which waivers name a verdict that no validator reaches, and which have expired: those block the release."""
    if not plan.waivers:
        return
    from release.validators.conformance import CHECKS, PREFIX
    from release.validators.consistency import LAYERS

    known = [
        "accuracy",
        *(f"accuracy/{each.name}" for each in plan.benchmarks),
        "performance/reference",
        "performance/last",
        "operators/proof",
    ]
    known += [*(f"consistency/{name}" for name in LAYERS), *(PREFIX + name for name in CHECKS)]
    for waiver in plan.waivers:
        if waiver.validator not in known:
            near = parse.near(waiver.validator, known)
            yield Concern(
                rule="waivers",
                severity="refuse",
                message=f"a waiver names {waiver.validator!r}, which no validator says{near}",
                next_step="there are accuracy, consistency/LAYER, performance/…, operators/proof, conformance/CHECK: a card lists them",
            )
        elif date.today() > date.fromisoformat(waiver.expires):
            text = f"the waiver of {waiver.validator} ({waiver.owner}, {waiver.issue}) expired on {waiver.expires}: it blocks the release"
            yield Concern(rule="waivers", severity="warn", message=text, next_step="mend what it waives, or leave it out")


@dataclass(frozen=True)
class House:
    """A matrix, a store and an engine kind: all that a command needs."""

    matrix: Matrix
    store: Store
    engine_kind: str
    hosts_path: Path | None = None

    @property
    def pushed(self) -> Path:
        """The file that remembers which repositories have what was pushed from here."""
        return self.store.path / "pushed.json"

    @classmethod
    def open(cls, overlays: tuple[Path, ...], store: Path | None, engine_kind: str, hosts: Path | None = None) -> House:
        """Return the house of a command line."""
        return cls(Matrix(overlays), Store((store or default_path()).absolute()), engine_kind, hosts)

    def hosts(self) -> tuple[Hosts, dict[str, Chip]] | None:
        """Return the hosts that there are, with the chips that they lend; None where no file says any. Raises MatrixError for a wrong one."""
        if self.hosts_path is None:
            return None
        found = parse.read(self.hosts_path, Hosts)
        known = self.matrix.chips()
        _check_staging(self.hosts_path, ("registry",), found.registry)
        engines: dict[str, str] = {}
        for name, host in found.hosts.items():
            if (other := engines.setdefault(host.docker, name)) != name:
                raise MatrixError(
                    f"{parse.locate(self.hosts_path, 'hosts', name, 'docker')}: {host.docker} is the engine of {other} already",
                    next_step="name each engine once: one host may lend devices of several chips",
                )
            _check_staging(self.hosts_path, ("hosts", name, "registry"), host.registry)
            for chip in host.chips:
                if chip not in known:
                    place = parse.locate(self.hosts_path, "hosts", name, "chips", chip)
                    raise MatrixError(
                        f"{place}: there is no chip {chip!r}{parse.near(chip, known)}", next_step="`release matrix` lists them"
                    )
        return found, {chip: self.matrix.chip(chip) for host in found.hosts.values() for chip in host.chips}

    def cell(self, chip: str, model: str, precision: str | None) -> str:
        """Return the cell id for the options. Raises UsageError with near misses where there is none."""
        cell = precision_for(self.matrix, chip, model, precision)
        self.plan(cell)
        return cell

    def study(self, cell: str, asked: Asked | None = None) -> Study:
        """Return what there is to say about a cell, refusals included. Raises MatrixError or UsageError where there is no plan at all."""
        plan, choice = plan_of(self.matrix, cell, asked), None
        self._check_engine(plan)
        for source in plan.sources:
            if source.patches is not None and not matrix_patches(self.matrix, source.patches).is_dir():
                raise MatrixError(f"{cell}: sources: there is no patch set {source.patches}", next_step="add it under patches/")
        if plan.device is not None and plan.parallel is None and not isinstance(plan.device.memory, Unknown):
            choice = choose(plan, asked.devices if asked else None)
            if choice.best:
                plan = plan.model_copy(update={"parallel": choice.best.parallel})
        memory = memory_of(plan, plan.parallel) if plan.parallel and plan.device else None
        found = [*devices_asked(plan, asked or Asked()), *concerns(plan), *self._absent(plan), *_waivers(plan)]
        if choice and not choice.best:
            found.insert(0, Concern(rule="layout", severity="refuse", message=choice.why))
        return Study(plan, choice, memory, ordered(found), asked or Asked())

    def _check_engine(self, plan: Plan) -> None:
        """Raise MatrixError with file and line unless the plan's engine is one that we have."""
        from release.builders.engines import ENGINES

        if plan.engine not in ENGINES:
            chip, model, arm = split_cell(plan.cell)
            file, path = self.matrix.cell_file(chip, model)
            place = ("cells", arm, "engine") if file.cells[arm].engine else ("engine",)
            raise MatrixError(
                f"{parse.locate(path, *place)}: there is no engine {plan.engine!r}{parse.near(plan.engine, ENGINES)}",
                next_step=f"there are: {', '.join(ENGINES)}",
            )

    def _absent(self, plan: Plan) -> Iterator[Concern]:
        """Say which checkpoint is not here: whether a plan can work does not depend on it, a build of it does."""
        path = plan.model.checkpoint.path
        if path and not any((folder / path).is_dir() for folder in self.matrix.folders):
            yield Concern(
                rule="checkpoint",
                severity="warn",
                message=f"not here: {path}, which the model's file names as its checkpoint",
                next_step=f"put the folder there: {self.matrix.folders[0] / path}",
            )

    def plan(self, cell: str, asked: Asked | None = None) -> Plan:
        """Return the plan of a cell id. Raises MatrixError or UsageError where there is none, or the rules refuse it."""
        study = self.study(cell, asked)
        self.refuse(study)
        return study.plan

    def refuse(self, study: Study) -> None:
        """Raise MatrixError with the reason and the nearest cell that would work, if a rule refuses the plan."""
        if refusal := study.refusal:
            others = nearest(study.plan, lambda: self._others(study), study.asked)
            step = "\n".join(filter(None, (refusal.next_step, others)))
            raise MatrixError(f"{study.plan.cell}: {refusal.message}", next_step=step)

    def _others(self, study: Study) -> Iterator[Plan]:
        """Yield the plans of the model's other cells, with what was asked for; a file that is wrong is no alternative."""
        chip, model, _ = split_cell(study.plan.cell)
        for cell, file in self.matrix.cells():
            if file.model == model:
                with contextlib.suppress(ReleaseError):
                    yield plan_of(self.matrix, cell, alike(study.asked, here=file.chip == chip))

    def studies(self, asked: Asked | None = None) -> Iterator[Study]:
        """Yield what there is to say about every cell."""
        for cell, _ in self.matrix.cells():
            yield self.study(cell, asked)

    def problems(self) -> list[ReleaseError]:
        """Return every error of the matrix and of the plan of every cell, each once."""
        found = {str(problem): problem for problem in (*problems(self.matrix), *unsound(self.matrix))}
        for cell in [] if found else [cell for cell, _ in self.matrix.cells()]:
            try:
                self.plan(cell)
            except ReleaseError as problem:
                found[str(problem)] = problem
        return list(found.values())

    def graph(self, cell: str, until: str | None) -> Graph:
        """Return the tasks of a build of `cell`."""
        return self.graph_of([cell], until)

    def graph_of(self, cells: Sequence[str], until: str | None) -> Graph:
        """Return the tasks of a build of all `cells`, in which what several need stands once. Raises MatrixError for a refused plan."""
        names = [stage.name for stage in STAGES]
        if until is not None and until not in names:
            raise UsageError(
                f"there is no stage {until!r}{parse.near(until, names)}", next_step=f"the stages are: {', '.join(names)}"
            )
        return graph(STAGES, self.plans(cells), self.matrix, cells, until or names[-1])

    def plans(self, cells: Iterable[str], known: Mapping[str, Plan] | None = None) -> dict[str, Plan]:
        """Return the `known` plans, and those of cells and of all that they are compared with. Raises MatrixError for one that is refused."""
        found = dict(known or {})
        for cell in cells:
            following: str | None = cell
            while following is not None and following not in found:
                found[following] = self.plan(following)
                following = found[following].reference
        return found

    def reasons(self, tasks: Graph) -> dict[tuple[str, str], list[str]]:
        """Return why each stage of each cell would run; an empty list means that the store has its result."""
        history: dict[str, dict[str, str]] = {}
        found = {}
        for (cell, stage), key in tasks.of.items():
            if cell not in history:
                history[cell] = self.history(cell)
            found[cell, stage] = (
                [] if is_valid(self.store, tasks.tasks[key]) else changes(self.store, tasks.tasks[key], history[cell].get(stage))
            )
        return found

    def lock(self, tasks: Graph, cell: str) -> JSON:
        """Return every input of every stage and what each source was restored to, for lock.json."""
        restored = self.store.get(tasks.of[cell, "unpatch"]) / "git.json"
        return {
            "cell": cell,
            "sources": json.loads(restored.read_bytes()) if restored.is_file() else [],
            "stages": {
                f"{owner}: {stage}": {"key": key, "reads": tasks.tasks[key].reads, "needs": dict(tasks.tasks[key].needs)}
                for (owner, stage), key in sorted(tasks.of.items())
            },
        }

    def durations(self, cells: Collection[str]) -> dict[tuple[str, str], float]:
        """Return how long each stage took when it last ran for each of the cells, in seconds; what never ran, or is gone, is left out."""
        found: dict[tuple[str, str], float] = {}
        for cell in cells:
            for stage, key in self.history(cell).items():
                if self.store.has(key) and isinstance(seconds := self.store.facts(key).get("seconds"), int | float):
                    found[cell, stage] = float(seconds)
        return found

    def remember(self, tasks: Graph) -> None:
        """Note which keys each cell has results for, so that a later plan can say what changed."""
        for cell in {cell for cell, _ in tasks.of}:
            before = self.history(cell)
            now = before | {stage: key for (owner, stage), key in tasks.of.items() if owner == cell and self.store.has(key)}
            if now != before:
                with contextlib.suppress(OSError):  # it is a hint for `plan`, no more
                    self._history_path(cell).parent.mkdir(parents=True, exist_ok=True)
                    write_whole(self._history_path(cell), json.dumps(now, indent=1))

    def history(self, cell: str) -> dict[str, str]:
        """Return the key of the last result of each stage of a cell."""
        try:
            history: dict[str, str] = json.loads(self._history_path(cell).read_bytes())
            return history
        except (OSError, ValueError):
            return {}

    def _history_path(self, cell: str) -> Path:
        return self.store.path / "cells" / (cell.replace("/", "+") + ".json")


def _check_staging(path: Path, place: tuple[str, ...], said: Staging | str | None) -> None:
    """Raise MatrixError for a registry of hosts that is no repository of one."""
    if said is None:
        return
    named = {place: said} if isinstance(said, str) else {(*place, key): text for key, text in dump(said).items()}
    for where, text in named.items():
        try:
            found = Reference.parse(text)
        except UsageError as problem:
            raise MatrixError(f"{parse.locate(path, *where)}: {problem.message}", next_step=EXAMPLE) from problem
        if found.tag or found.digest:
            raise MatrixError(f"{parse.locate(path, *where)}: {text!r} names one image, not a repository", next_step=EXAMPLE)
