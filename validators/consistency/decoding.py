"""Layer 2: the candidate answers greedily, alone and in a crowd. Finds what scoring cannot: decoding, caches, loops, lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from release.types import JSON, Verdict
from release.types.consistency import Finding
from release.validators.consistency import answers, scoring
from release.validators.consistency.asking import Clock
from release.validators.consistency.case import Case, Measure, percent, verdict, within
from release.validators.consistency.evidence import read_log
from release.validators.statistics import two_proportions, wilson_interval

LAYER: Final = "decoding"
FILE: Final = "greedy.jsonl"
LENGTH_BAND: Final = (0.90, 1.10)
"""Mean tokens of the candidate as a share of the reference's: MLPerf Inference's guard (inference_rules.adoc)."""
ALARM: Final = 0.01
"""p-value below which more endless or looping answers are no accident."""
UNIT: Final = 64
TIMES: Final = 4
"""An answer loops that ends with so many times the same piece of at most so many tokens."""


@dataclass(frozen=True)
class Divergences:
    """Where answers leave those of another run: the places, and at how many of them the reference was near a tie, or nobody can tell."""

    n: int
    places: tuple[int, ...]
    near: int
    untold: int

    @property
    def decided(self) -> int:
        """Answers that left at a token which was no near tie."""
        return len(self.places) - self.near - self.untold

    def __str__(self) -> str:
        untold = f", {self.untold} where nobody can tell" if self.untold else ""
        return f"{self.n - len(self.places)} of {self.n} answers are the same, {self.decided} leave at a decided token{untold}"

    def figures(self) -> JSON:
        """Return it for a verdict."""
        points = {f"p{point}": float(np.percentile(self.places, point)) for point in (5, 50, 95)} if self.places else {}
        counts = {"answers": self.n, "identical": self.n - len(self.places), "near-ties": self.near, "untold": self.untold}
        return {**counts, "decided": self.decided, "first-divergence": points}

    def finding(self, limit: float) -> Finding:
        """Say whether the share of decided ones lies within `limit`, by its 90 % Wilson interval; an untold one may be either."""
        low, _ = wilson_interval(self.decided, self.n, 0.90)
        _, high = wilson_interval(self.decided + self.untold, self.n, 0.90)
        return within(low, high, limit)


def leaves(one: JSON, other: JSON) -> int | None:
    """Return at which token (character, where no ids are shown) two answers part, None where they are the same."""
    unit = answers.unit((one, other))
    left, right = one[unit], other[unit]
    if left == right:
        return None
    return next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def compare(ones: dict[str, JSON], others: dict[str, JSON], scores: dict[str, JSON], near_tie: float) -> Divergences:
    """Compare the answers `others` with `ones`, by key; `scores` are the reference's own of its greedy answers."""
    places, near, untold = [], 0, 0
    both = sorted(ones.keys() & others.keys())
    for key in both:
        place = leaves(ones[key], others[key])
        if place is None:
            continue
        places.append(place)
        gap = _gap(ones[key], others[key], place, scores.get(key))
        untold += gap is None
        near += gap is not None and gap < near_tie
    return Divergences(len(both), tuple(places), near, untold)


def _gap(one: JSON, other: JSON, place: int, score: JSON | None) -> float | None:
    """Return by how many nats the reference's own logprobs of the two tokens at `place` are apart; None where nobody can tell."""
    ids, theirs = one["ids"], other["ids"]
    if score is None or ids is None or theirs is None or place >= min(len(ids), len(theirs), len(score["top"])):
        return None
    shown = dict(zip(score["top"][place], score["logprobs"][place], strict=True))
    if ids[place] not in shown:
        return None
    return abs(float(shown[ids[place]] - shown.get(theirs[place], -np.inf)))


def loops(answer: JSON) -> bool:
    """Return whether an answer ends with the same piece again and again, cut off only by its limit."""
    text = answer[answers.unit((answer,))]
    if answer["finish"] != "length":
        return False
    for unit in range(1, min(UNIT, len(text) // TIMES) + 1):
        tail = text[-unit:]
        if all(text[len(text) - (i + 1) * unit : len(text) - i * unit] == tail for i in range(TIMES)):
            return True
    return False


def record(case: Case, clock: Clock) -> tuple[Path, Path]:
    """Have the candidate answer every prompt in a crowd, and some alone."""
    side = case.candidate
    crowd = side.ask(FILE, answers.greedy_asked(side), lambda: answers.greedy(side, side.prompts), clock)
    return crowd, answers.record_alone(side, clock)


def judge(case: Case, clock: Clock) -> Verdict:
    """Compare the candidate's greedy answers with the reference's and with its own, alone and in a crowd."""
    crowd, alone = (_by_key(read_log(path)) for path in record(case, clock))
    theirs = _by_key(one for one in case.theirs(answers.FILE) if one["key"].endswith("#0"))
    their_alone = _by_key(case.theirs(answers.ALONE))
    scores = _scores(case.reference)
    tie, limits = case.limits.near_tie, case.limits
    floor = compare(theirs, their_alone, scores, tie)
    limit = max(limits.divergence, limits.floor_factor * floor.decided / floor.n)
    width = case.candidate.spec.concurrency
    found = {
        f"{width} at once": compare(theirs, crowd, scores, tie),
        "one at a time": compare(their_alone, alone, scores, tie),
        f"alone against {width} at once": compare({k: crowd[k] for k in alone}, alone, scores, tie),
    }
    crowded, *few = found.items()
    measures = [Measure(crowded[0], crowded[1].finding(limit), f"{crowded[0]}: {crowded[1]}")]
    measures += [Measure(name, _lenient(one, limit), f"{name}: {one}") for name, one in few]
    ends, figures = _ends(theirs, crowd)
    figures |= {"limit": limit, "floor": floor.figures(), "runs": {name: one.figures() for name, one in found.items()}}
    wanted = f"at most {percent(limit)} of the answers leave the reference's at a token that is no near tie ({tie:g} nats)"
    return verdict(LAYER, measures + ends, wanted, figures)


def _lenient(found: Divergences, limit: float) -> Finding:
    """Return the finding of a run that is too small to prove that nothing is wrong, and may only prove that something is.

    The run of all prompts must prove it; this one passes where its own share lies within the limit.
    """
    finding = found.finding(limit)
    return "CONSISTENT" if finding == "INCONCLUSIVE" and found.decided + found.untold <= limit * found.n else finding


def _ends(theirs: dict[str, JSON], ours: dict[str, JSON]) -> tuple[list[Measure], JSON]:
    """Compare lengths, answers that never ended, and loops."""
    unit = answers.unit((*ours.values(), *theirs.values()))
    lengths = [[len(one[unit]) for one in side.values()] for side in (ours, theirs)]
    mean, wanted = (float(np.mean(one)) for one in lengths)
    share = mean / wanted if wanted else 1.0
    fits = LENGTH_BAND[0] <= share <= LENGTH_BAND[1]
    measures = [
        Measure("length", "CONSISTENT" if fits else "DIFFERENT", f"answers are {percent(share)} as long as the reference's")
    ]
    figures: JSON = {"length-share": share, "tokens-mean": {"candidate": mean, "reference": wanted}}
    for name, check in (("endless", lambda one: one["finish"] == "length"), ("looping", loops)):
        k, j = (sum(map(check, side.values())) for side in (ours, theirs))
        more = k > j and two_proportions(k, len(ours), j, len(theirs)) < ALARM
        figures[name] = {"candidate": k, "reference": j}
        if more:
            measures.append(Measure(name, "DIFFERENT", f"{k} of {len(ours)} answers are {name}, and {j} of the reference's"))
    return measures, figures


def _by_key(records: Iterable[JSON]) -> dict[str, JSON]:
    return {one["key"]: one for one in records}


def _scores(reference: Path) -> dict[str, JSON]:
    """Return the reference's scores of its greedy answers; none where it shows none."""

    def found() -> Iterator[JSON]:
        if (reference / scoring.FILE).is_file():
            yield from (one for one in read_log(reference / scoring.FILE) if one["key"].endswith("#0"))

    return _by_key(found())
