"""The verdict of a whole cell: RELEASE, BLOCK or PENDING by the findings of its benchmarks, with what it costs to settle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from release.types import JSON
from release.validators.judgement import Finding, Judgement
from release.validators.statistics import holm


class Decision(StrEnum):
    """What becomes of a cell."""

    RELEASE = "RELEASE"
    BLOCK = "BLOCK"
    PENDING = "PENDING"


@dataclass(frozen=True)
class Settlement:
    """A decision, the judgements that it stands on (Holm's correction in them), and the requests that it takes to settle the rest."""

    decision: Decision
    judgements: tuple[Judgement, ...]
    requests: int
    reason: str

    def text(self) -> str:
        """Return every judgement and the decision, for a terminal."""
        return "\n".join([*(judgement.text() for judgement in self.judgements), f"{self.decision}: {self.reason}"])

    def json(self) -> JSON:
        """Return the settlement for a machine."""
        return {
            "decision": str(self.decision),
            "reason": self.reason,
            "requests": self.requests,
            "benchmarks": [judgement.json() for judgement in self.judgements],
        }


def settle(judgements: Sequence[Judgement], *, gating: Collection[str] | None = None, waived: Collection[str] = ()) -> Settlement:
    """Decide a cell. `gating` are the benchmarks that count, all if not said; what is in `waived` does not, and is named.

    RELEASE if every gating benchmark is CONSISTENT by measurement: the intersection of tests, each at α, errs in at most α in all
    (R. L. Berger, Technometrics 24 (1982) 295–300), so nothing is corrected there. BLOCK if any is REGRESSED once Holm's correction is
    made over all benchmarks: with many, one regresses by chance. Else PENDING. Nothing at all is BLOCK.
    """
    corrected = correct(judgements)
    counting = [j for j in corrected if (gating is None or j.benchmark in gating) and j.benchmark not in waived]
    beside = f"; waived: {', '.join(sorted(waived))}" if waived else ""
    absent = sorted(set(gating or ()) - {j.benchmark for j in corrected} - set(waived))
    if not corrected:
        return Settlement(Decision.BLOCK, (), 0, "nothing was judged")
    if regressed := [j.benchmark or "the candidate" for j in counting if j.finding is Finding.REGRESSED]:
        return Settlement(Decision.BLOCK, corrected, 0, f"{_listed(regressed)} regressed{beside}")
    if not counting and not absent:
        return Settlement(Decision.BLOCK, corrected, 0, f"no benchmark that was judged is one that counts{beside}")
    undecided = [j for j in counting if j.finding is not Finding.CONSISTENT or not j.measured]
    if not undecided and not absent:
        return Settlement(
            Decision.RELEASE, corrected, 0, f"{len(counting)} of {len(counting)} are CONSISTENT by measurement{beside}"
        )
    requests = sum(j.need.requests for j in undecided if j.need)
    return Settlement(Decision.PENDING, corrected, requests, _pending(counting, undecided, absent, requests) + beside)


def correct(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """Return the judgements with Holm's correction: what regressed only because there are many is INCONCLUSIVE, and says so."""
    tested = [number for number, j in enumerate(judgements) if j.p_loss is not None and j.finding is not Finding.UNVERIFIABLE]
    adjusted = dict(zip(tested, holm([judgements[number].p_loss or 0.0 for number in tested]), strict=True))
    found = list(judgements)
    for number, p in adjusted.items():
        one = found[number]
        if one.finding is Finding.REGRESSED and p > one.alpha:
            note = f"alone it would be REGRESSED; of {len(tested)} benchmarks one comes out so by chance too often (Holm p = {p:.3f})"
            much = f"; {one.need} would decide with 80 % power {one.need.assuming}" if one.need else ""
            reason = f"a loss is likely and not certain{much}"
            found[number] = replace(one, finding=Finding.INCONCLUSIVE, reason=reason).noted(note)
    return tuple(found)


def _pending(counting: Sequence[Judgement], undecided: Sequence[Judgement], absent: Sequence[str], requests: int) -> str:
    parts = [f"{len(counting) - len(undecided)} of {len(counting) + len(absent)} are CONSISTENT by measurement"]
    for finding in (Finding.INCONCLUSIVE, Finding.UNVERIFIABLE):
        if names := [j.benchmark or "the candidate" for j in undecided if j.finding is finding]:
            parts.append(f"{finding}: {_listed(names)}")
    if names := [j.benchmark or "the candidate" for j in undecided if j.finding is Finding.CONSISTENT]:
        parts.append(f"only reported: {_listed(names)}")
    if absent:
        parts.append(f"not judged: {_listed(absent)}")
    unpriced = sum(j.need is None for j in undecided) + len(absent)
    cost = f"{requests} requests would settle it with 80 % power each, if there is no true difference"
    return "; ".join(parts) + f"; {cost}" + (f", and {unpriced} cannot be priced" if unpriced else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
