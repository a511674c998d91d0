"""Which pins made a release worse: between a good and a bad one, the fewest that do it, by builds that share all their stages."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from release.build import carry, here, suffices
from release.errors import ReleaseError, StageError, UsageError
from release.failures import failures_of
from release.house import House
from release.matrix.load import Matrix
from release.pins import Pin, Pins, pins_of, text_of, wheels_text, with_pins
from release.pipeline import Stage, graph
from release.progress import progress_for
from release.session import Session
from release.stages import STAGES
from release.types import JSON, Plan

WHEELS: Final = "wheels/bisect.txt"
"""Where a mixture of two wheels' files lies, below a matrix folder of its own."""


class Answer(StrEnum):
    """What a step shows: as good as the good end, what the bad end shows, or something else, which proves neither."""

    GOOD = "good"
    BAD = "bad"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Step:
    """One build: the pins that were as in the bad release, what it showed and why, and which stages had to run."""

    bad: tuple[str, ...]
    answer: Answer
    why: str
    ran: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a search found: the pins that together bring the symptoms, of which none can be left out but, perhaps, the `open` ones."""

    cell: str
    searched: dict[str, tuple[str, str]]
    culprits: tuple[str, ...]
    open: tuple[str, ...]
    symptoms: tuple[str, ...]
    steps: tuple[Step, ...]


def narrow(pins: Sequence[Pin], judge: Callable[[frozenset[Pin]], Answer]) -> tuple[tuple[Pin, ...], tuple[Pin, ...]]:
    """Return the fewest pins found that are bad together, and those of them without which it is inconclusive.

    None of them is good and all are bad: that is known before. Halves first, then finer parts and what is left without each (Zeller and
    Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002). What is inconclusive is passed over. No set is judged twice.
    """
    known: dict[frozenset[Pin], Answer] = {frozenset(): Answer.GOOD, frozenset(pins): Answer.BAD}

    def answer(chosen: Iterable[Pin]) -> Answer:
        key = frozenset(chosen)
        if key not in known:
            known[key] = judge(key)
        return known[key]

    left, parts = list(pins), 2
    while len(left) > 1:
        pieces = [left[len(left) * n // parts : len(left) * (n + 1) // parts] for n in range(parts)]
        rests = [[pin for pin in left if pin not in piece] for piece in pieces]
        if piece := next((piece for piece in pieces if answer(piece) is Answer.BAD), None):
            left, parts = piece, 2
        elif rest := next((rest for rest in rests if answer(rest) is Answer.BAD), None):
            left, parts = rest, max(parts - 1, 2)
        elif parts < len(left):
            parts = min(2 * parts, len(left))
        else:
            break
    without = {pin: answer(other for other in left if other != pin) for pin in left}
    return tuple(left), tuple(pin for pin, said in without.items() if said is Answer.INCONCLUSIVE)


def bisect(
    house: House,
    cell: str,
    good: Pins,
    bad: Pins,
    *,
    least: str = "built",
    stages: Sequence[Stage] = STAGES,
    session: Callable[[], Session] | None = None,
) -> Verdict:
    """Return which of the pins in which two releases differ make the bad one bad. All else is as the cell's plan has it now.

    A step is good if it is at least `least`, bad if it shows what the bad end shows (the failed stage, a verdict), else inconclusive: it does
    not build, for one. Raises UsageError where no pin differs, or the ends are not what they are said to be. What was built is kept: the
    same search again goes on where it was stopped.
    """
    space = sorted(pin for pin in {*good, *bad} if good.get(pin) != bad.get(pin))
    if not space:
        raise UsageError(
            f"{cell}: the two releases have the same pins", next_step="what differs is no pin: compare their lock.json"
        )
    with tempfile.TemporaryDirectory(prefix="release-bisect-") as folder:
        trial = _Trial(
            house,
            cell,
            good,
            bad,
            least,
            stages,
            Path(folder),
            session or (lambda: Session(house.engine_kind, hosts=house.hosts())),
        )
        shown = trial.shows(frozenset())
        trial.require_judged("good")
        if shown:
            raise UsageError(
                f"{cell}: the good end is not good: {trial.said(shown)}", next_step="give an earlier release as --good"
            )
        trial.symptoms = trial.shows(frozenset(space))
        trial.require_judged("bad")
        if not trial.symptoms:
            raise UsageError(
                f"{cell}: with the bad end's pins all is good here",
                next_step="it is no pin: an input of the cell, the host or the chip",
            )
        found, unsure = narrow(space, trial.judge)
    searched = {str(pin): (text_of(good.get(pin)), text_of(bad.get(pin))) for pin in space}
    return Verdict(
        cell, searched, tuple(map(str, found)), tuple(map(str, unsure)), tuple(sorted(trial.symptoms)), tuple(trial.steps)
    )


@dataclass
class _Trial:
    """What the steps of one search share."""

    house: House
    cell: str
    good: Pins
    bad: Pins
    least: str
    stages: Sequence[Stage]
    folder: Path
    session: Callable[[], Session]
    symptoms: frozenset[str] = frozenset()
    steps: list[Step] = field(default_factory=list)
    elsewhere: str = ""
    why: str = ""
    ran: tuple[str, ...] = ()

    def require_judged(self, end: str) -> None:
        """Raise StageError if the host or the network kept an end from being judged: that says nothing of its pins."""
        if self.elsewhere:
            raise StageError(
                f"{self.cell}: the {end} end cannot be judged: {self.elsewhere}", next_step="mend the host, and run it again"
            )

    def judge(self, chosen: frozenset[Pin]) -> Answer:
        """Build with the chosen pins as in the bad release and say what that shows."""
        shown = self.shows(chosen)
        if self.elsewhere:
            answer = Answer.INCONCLUSIVE
        elif not shown:
            answer = Answer.GOOD
        else:
            answer = Answer.BAD if shown & self.symptoms else Answer.INCONCLUSIVE
        self.steps.append(Step(tuple(map(str, sorted(chosen))), answer, self.said(shown), self.ran))
        return answer

    def said(self, shown: frozenset[str]) -> str:
        """Say what a step showed."""
        return self.why or ", ".join(sorted(shown)) or self.least

    def shows(self, chosen: frozenset[Pin]) -> frozenset[str]:
        """Return what a build with the chosen pins as in the bad release shows: the stages that failed, or verdicts; nothing if it is good."""
        self.why = self.elsewhere = ""
        try:
            plan, matrix = self._plan(chosen)
            plans = {**self.house.plans([self.cell]), self.cell: plan}
            tasks = graph(self.stages, plans, matrix, [self.cell], "card")
        except ReleaseError as problem:
            self.why, self.ran = problem.message, ()
            return frozenset({"plan"})
        key = tasks.of[self.cell, "card"]
        mixed = House(matrix, self.house.store, self.house.engine_kind)
        with mixed.store.in_use():
            ledger = carry(mixed, tasks, [key], progress_for(sys.stderr), here(self.house, None), self.session(), note=False)
            self.ran = tuple(ledger.ran)
            for failed, failure in ledger.failed.items():
                stage = tasks.tasks[failed].stage.name
                message = failure.message if isinstance(failure, ReleaseError) else f"{type(failure).__name__}: {failure}"
                detail = failure.next_step if isinstance(failure, ReleaseError) else ""
                self.why = f"{stage}: {message}"
                told = {"stage": stage, "reason": message, "detail": detail, "error": type(failure).__name__}
                self.elsewhere = next((self.why for found in failures_of(told) if found.kind == "infrastructure"), "")
                return frozenset({f"stage {stage}"})
            record: JSON = json.loads((self.house.store.get(key) / "release.json").read_bytes())
            return (
                frozenset()
                if suffices(record, self.least)
                else frozenset(_verdicts(record, self.least)) or frozenset({"no verdict"})
            )

    def _plan(self, chosen: frozenset[Pin]) -> tuple[Plan, Matrix]:
        """Return the cell's plan with a mixture of pins, and a matrix that has the wheels' file for it."""
        plan, matrix = self.house.plan(self.cell), self.house.matrix
        now = pins_of(plan, matrix)
        mixed = {pin: value for pin, value in self.good.items() if pin not in chosen}
        mixed |= {pin: self.bad[pin] for pin in chosen if pin in self.bad}
        made = with_pins(plan, mixed, now)
        if (text := wheels_text(mixed)) != wheels_text(now):
            (self.folder / WHEELS).parent.mkdir(exist_ok=True)
            (self.folder / WHEELS).write_text(text, encoding="utf-8")
            matrix = Matrix((*reversed(matrix.folders[:-1]), self.folder))
            made = made.model_copy(update={"wheels": WHEELS if text else None})
        return made, matrix


def _verdicts(record: JSON, least: str) -> Iterator[str]:
    """Yield the verdicts that keep a release from being at least `least`."""
    for verdict in record.get("verdicts") or ():
        if verdict["status"] == "FAILED" or (least == "validated" and verdict["status"] != "PASSED"):
            yield f"verdict {verdict['name']}"
