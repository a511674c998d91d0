"""One side of a consistency check with its folder of evidence, and the words in which every layer says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.types import JSON, Status, Verdict
from release.types.consistency import Examination, Finding, Limits
from release.validators.consistency.asking import Asking, Clock, Progress, UnshownError, ask_all
from release.validators.consistency.evidence import Log, digest_of, read_log
from release.validators.consistency.prompts import Prompt
from release.validators.endpoint import Endpoint

HARNESS: Final = "release consistency 1"
"""Name and version of this way of asking. Raise the number when it changes what an answer means."""
STATUSES: Final[dict[Finding, Status]] = {
    "CONSISTENT": Status.PASSED,
    "DIFFERENT": Status.FAILED,
    "INCONCLUSIVE": Status.INCONCLUSIVE,
    "UNVERIFIABLE": Status.INCONCLUSIVE,
}


@dataclass(frozen=True)
class Side:
    """A server that is asked, and the folder that keeps what it said.

    `model_folder` holds its tokenizer and configuration, where they can be seen.
    """

    endpoint: Endpoint
    folder: Path
    spec: Examination
    prompts: tuple[Prompt, ...]
    progress: Progress
    model_folder: Path | None = None

    def ask(
        self, name: str, asked: JSON, what: Callable[[], Iterator[Asking]], clock: Clock, *, concurrency: int | None = None
    ) -> Path:
        """Have one evidence file finished and return it: what is missing in it is asked. Raises ServingError, StageError."""
        path = self.folder / name
        with Log(path, {"harness": HARNESS, "model": self.endpoint.model, **asked}) as log:
            try:
                if not log.finished:
                    ask_all(self.endpoint, what(), log, self.spec, clock, self.progress, concurrency=concurrency)
            except UnshownError:
                if not log.done:
                    path.unlink()  # an empty file is no evidence
                raise
        return path


@dataclass(frozen=True)
class Case:
    """A candidate, the folder with what its reference said, and how far apart they may be."""

    candidate: Side
    reference: Path
    limits: Limits

    def theirs(self, name: str) -> Iterator[JSON]:
        """Yield the records of one of the reference's files."""
        return read_log(self.reference / name)

    def digest(self, name: str) -> str:
        """Return the digest of one of the reference's files."""
        return digest_of(self.reference / name)


@dataclass(frozen=True)
class Measure:
    """One thing that was compared: how it reads, and whether it lies within its limit."""

    name: str
    finding: Finding
    reads: str


def within(low: float, high: float, limit: float) -> Finding:
    """Return what an interval says of a limit that must not be exceeded."""
    if high <= limit:
        return "CONSISTENT"
    return "DIFFERENT" if low > limit else "INCONCLUSIVE"


def verdict(layer: str, measures: list[Measure], wanted: str, figures: JSON, *, note: str = "") -> Verdict:
    """Return the verdict of a layer: DIFFERENT if any measure is, CONSISTENT if all are; no measure at all is UNVERIFIABLE."""
    if any(one.finding == "DIFFERENT" for one in measures):
        finding: Finding = "DIFFERENT"
    elif not measures or all(one.finding == "UNVERIFIABLE" for one in measures):
        finding = "UNVERIFIABLE"
    else:
        finding = "CONSISTENT" if all(one.finding == "CONSISTENT" for one in measures) else "INCONCLUSIVE"
    telling = [one for one in measures if one.finding == finding] if finding in ("DIFFERENT", "INCONCLUSIVE") else measures
    reason = "; ".join(one.reads for one in telling) or "nothing could be measured"
    return Verdict(
        name=layer,
        status=STATUSES[finding],
        measured="; ".join(one.reads for one in measures[:3]) or "nothing",
        wanted=wanted,
        reason=f"{finding}: {reason}{f'; {note}' if note else ''}",
        figures={"finding": finding, **figures},
    )


def unverifiable(layer: str, reason: str, *, finding: Finding = "UNVERIFIABLE") -> Verdict:
    """Return the verdict of a layer that could not be finished, or whose answers cannot be those of a model (DIFFERENT)."""
    return Verdict(
        name=layer,
        status=STATUSES[finding],
        measured="no comparison",
        wanted="answers that can be compared",
        reason=f"{finding}: {reason}",
        figures={"finding": finding},
    )


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.2f} %"
