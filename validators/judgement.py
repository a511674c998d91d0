"""What can be said of one benchmark, candidate against reference: a finding with its figures, as text, as JSON and as a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from release.types import JSON, Status, Verdict


class Finding(StrEnum):
    """What a comparison says."""

    CONSISTENT = "CONSISTENT"
    REGRESSED = "REGRESSED"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNVERIFIABLE = "UNVERIFIABLE"


class Basis(StrEnum):
    """What a finding stands on. Aggregates that somebody typed in are never a measurement."""

    REPORTED = "from reported aggregates"
    PAIRED = "from paired samples"
    REPEATED = "from paired samples with repeats"


STATUSES: Final = {
    Finding.CONSISTENT: Status.PASSED,
    Finding.REGRESSED: Status.FAILED,
    Finding.INCONCLUSIVE: Status.INCONCLUSIVE,
    Finding.UNVERIFIABLE: Status.INCONCLUSIVE,
}


@dataclass(frozen=True)
class Need:
    """What would decide with 80 % power: `repeats` of all questions on each side, or at temperature 0 a fresh set of `questions`.

    `requests` is what that costs, those left out that were made and can be used; `assuming` says what it takes to be true.
    """

    repeats: int | None
    questions: int | None
    requests: int
    assuming: str = "if there is no true difference"

    def __str__(self) -> str:
        runs = f"{self.repeats} {'repeat' if self.repeats == 1 else 'repeats'} on each side" if self.repeats else ""
        fresh = f"a fresh set of {self.questions} questions" if self.questions else ""
        if runs and fresh:
            return f"{runs} (at temperature 0: {fresh})"
        return runs or fresh


@dataclass(frozen=True)
class Judgement:
    """A finding about one benchmark. Shares, differences, margin and intervals are shares (0.02 = 2 points), pairs candidate first.

    `interval` is that of the decision, 1 − 2·`alpha`; `p` is the one-sided p-value of "worse by the margin or more", `p_loss` that of
    "not worse at all". `measured` says whether both sides were asked here, under one fingerprint. `otherwise` is what the figures would
    say of something UNVERIFIABLE if the obstacles were none.
    """

    finding: Finding
    basis: Basis
    margin: float
    alpha: float
    benchmark: str = ""
    measured: bool = False
    n: int | None = None
    repeats: tuple[int, int] = (1, 1)
    shares: tuple[float, float] | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None
    interval_95: tuple[float, float] | None = None
    p: float | None = None
    p_loss: float | None = None
    discordance: float | None = None
    need: Need | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    otherwise: Finding | None = None

    @property
    def confidence(self) -> float:
        """How often the interval of the decision holds the true difference."""
        return 1 - 2 * self.alpha

    def hindered(self, *obstacles: str) -> Judgement:
        """Return the same figures as UNVERIFIABLE, for these reasons beside those there are."""
        if not obstacles:
            return self
        every = (*self.obstacles, *obstacles)
        reason = "; ".join(every)
        before = self.otherwise if self.finding is Finding.UNVERIFIABLE else self.finding
        return replace(self, finding=Finding.UNVERIFIABLE, obstacles=every, otherwise=before, reason=reason)

    def unmeasured(self, note: str) -> Judgement:
        """Return the same as what others say, and not as a measurement of ours."""
        return replace(self, measured=False).noted(note)

    def noted(self, *notes: str) -> Judgement:
        """Return the same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    @property
    def headline(self) -> str:
        """The finding in a few words: `INCONCLUSIVE(k = 5)`, `CONSISTENT (from reported aggregates)`."""
        needed = ""
        if self.finding is Finding.INCONCLUSIVE and self.need:
            needed = f"(k = {self.need.repeats})" if self.need.repeats else f"({self.need.questions} questions)"
        return f"{self.finding}{needed}" + ("" if self.measured else f" ({self.basis})")

    @property
    def figures_line(self) -> str:
        """Difference, interval, n and shares in one line; what is not known is left out."""
        if self.delta is None or self.interval is None or self.shares is None:
            return "no comparison"
        repeats = "" if self.repeats == (1, 1) else f" × {self.repeats[0]} and {self.repeats[1]}"
        places = 1 if self.measured else 2
        return (
            f"{points(self.delta)} points {interval(self.interval)} {100 * self.confidence:.4g} % interval, n = {self.n}{repeats}, "
            f"{100 * self.shares[0]:.{places}f} % vs {100 * self.shares[1]:.{places}f} %"
        )

    def text(self) -> str:
        """Return the judgement for a terminal: a headline, the figures, the reason and the notes."""
        lines = [f"{self.benchmark}: {self.headline}" if self.benchmark else self.headline]
        if self.delta is not None:
            lines.append(f"  {self.figures_line}")
            lines.append(f"  {self._tests()}")
        lines += [f"  {line}" for line in (self.reason, *self.notes) if line]
        if self.otherwise and self.delta is not None:
            lines.append(f"  if that were in order, the figures would say {self.otherwise}")
        return "\n".join(lines)

    def _tests(self) -> str:
        parts = [f"margin {100 * self.margin:.2f} points"]
        if self.interval_95 is not None:
            parts.append(f"95 % interval {interval(self.interval_95)}")
        if self.p is not None:
            parts.append(f"p of a loss of the margin or more {_p(self.p)}")
        if self.p_loss is not None:
            parts.append(f"p of no loss {_p(self.p_loss)}")
        return "; ".join(parts)

    def json(self) -> JSON:
        """Return the judgement for a machine."""
        need = self.need and {
            "repeats": self.need.repeats,
            "questions": self.need.questions,
            "requests": self.need.requests,
            "assuming": self.need.assuming,
        }
        return {
            "benchmark": self.benchmark,
            "finding": str(self.finding),
            "basis": str(self.basis),
            "measured": self.measured,
            "margin": self.margin,
            "alpha": self.alpha,
            "n": self.n,
            "repeats": {"candidate": self.repeats[0], "reference": self.repeats[1]},
            "shares": self.shares and {"candidate": self.shares[0], "reference": self.shares[1]},
            "delta": self.delta,
            "interval": self.interval and list(self.interval),
            "confidence": self.confidence,
            "interval-95": self.interval_95 and list(self.interval_95),
            "p": self.p,
            "p-loss": self.p_loss,
            "discordance": self.discordance,
            "need": need,
            "reason": self.reason,
            "notes": list(self.notes),
            "obstacles": list(self.obstacles),
            "otherwise": self.otherwise and str(self.otherwise),
        }

    def verdict(self, name: str) -> Verdict:
        """Return the judgement as a verdict of a release. What was not measured here never counts as PASSED."""
        status = STATUSES[self.finding]
        if status is Status.PASSED and not self.measured:
            status = Status.INCONCLUSIVE
        return Verdict(
            name=name,
            status=status,
            measured=self.figures_line,
            wanted=wanted(self.margin),
            reason=f"{self.finding}{'' if self.measured else f' ({self.basis})'}: {'; '.join((self.reason, *self.notes))}",
            figures=self.json(),
        )


def points(share: float) -> str:
    """Write a share as points with a sign; −0.00 is +0.00."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def wanted(margin: float) -> str:
    """Write what a verdict wants of the interval's lower end."""
    return f"lower end above {points(-margin)} points"


def interval(ends: tuple[float, float]) -> str:
    """Write an interval of shares in points."""
    return f"[{points(ends[0])}, {points(ends[1])}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.0005 else f"= {value:.3f}"
