"""The verdict of accuracy: a candidate's samples against a reference's, question by question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from release.types import JSON, Accuracy, Status, Verdict
from release.validators.accuracy import fingerprint_of, graded_rightly
from release.validators.samples import Samples
from release.validators.statistics import (
    mcnemar_exact,
    questions_needed,
    repeats_needed,
    tango_interval,
    two_proportions,
    wilson_interval,
)

NAME: Final = "accuracy"
NOT_COMPARED: Final = frozenset({"model"})
"""Fields of a fingerprint in which two evaluations may differ: the served name says nothing about what was asked."""
RATE_ALARM: Final = 0.01
"""p-value below which a difference in truncated or empty answers makes a comparison meaningless."""
CHANGED: Final = 0.05
"""Exact McNemar p-value below which a reason calls a small loss real. Not part of any decision."""
LENGTH_BAND: Final = (0.90, 1.10)
"""Mean completion tokens of the candidate as a share of the reference's: MLPerf Inference's guard (inference_rules.adoc)."""


@dataclass(frozen=True)
class Table:
    """Pairs of answers to the same question: by who was right, and how many could not be graded on both sides."""

    both: int
    candidate: int
    reference: int
    neither: int
    excluded: int

    @property
    def n(self) -> int:
        """The pairs that count."""
        return self.both + self.candidate + self.reference + self.neither

    @property
    def delta(self) -> float:
        """Candidate − reference, as a share."""
        return (self.candidate - self.reference) / self.n


def compare(candidate: Samples, reference: Samples, accuracy: Accuracy, names: tuple[str, str]) -> Verdict:
    """Return the verdict "the candidate answers as well as the reference, within the margin"; `names` are theirs, in that order.

    With [L, U] the 90 % interval of Tango (1998) for the paired difference candidate − reference, and m the margin: CONSISTENT
    (PASSED) iff L > −m; REGRESSED (FAILED) iff L ≤ −m and U < 0; otherwise INCONCLUSIVE, with the number of questions (at
    temperature 0) or of repeats it would take. UNVERIFIABLE (status INCONCLUSIVE) if the two evaluations cannot be compared at
    all: `obstacles`. `figures.finding` is that word; in `figures`, differences and intervals are shares (0.02 = 2 points).
    """
    figures: JSON = {
        "candidate": {"name": names[0], **_side(candidate)},
        "reference": {"name": names[1], **_side(reference)},
        "margin": accuracy.margin,
    }
    wanted = f"lower end above {-100 * accuracy.margin:+.2f} points"
    hindrances = list(obstacles(candidate, reference, accuracy, names))
    if hindrances:
        figures |= {"finding": "UNVERIFIABLE", "obstacles": hindrances}
        measured = f"no comparison of {len(candidate.records)} and {len(reference.records)} samples"
        reason = f"UNVERIFIABLE: {'; '.join(hindrances)}"
        return Verdict(name=NAME, status=Status.INCONCLUSIVE, measured=measured, wanted=wanted, reason=reason, figures=figures)
    table = pair(candidate, reference)
    interval = tango_interval(table.candidate, table.reference, table.n, 0.90)
    wide = tango_interval(table.candidate, table.reference, table.n, 0.95)
    status, finding, reason = decide(table, interval, accuracy)
    figures |= {
        "finding": finding,
        "n": table.n,
        "table": {
            "both": table.both,
            "candidate-only": table.candidate,
            "reference-only": table.reference,
            "neither": table.neither,
        },
        "excluded": table.excluded,
        "delta": table.delta,
        "interval-90": list(interval),
        "interval-95": list(wide),
        "mcnemar-p": mcnemar_exact(table.candidate, table.reference),
        **plan(table, accuracy),
    }
    right = table.both + table.candidate, table.both + table.reference
    measured = (
        f"{_points(table.delta)} points [{_points(interval[0])}, {_points(interval[1])}] 90 % interval, n = {table.n}, "
        f"{100 * right[0] / table.n:.1f} % vs {100 * right[1] / table.n:.1f} %"
    )
    return Verdict(name=NAME, status=status, measured=measured, wanted=wanted, reason=f"{finding}: {reason}", figures=figures)


def decide(table: Table, interval: tuple[float, float], accuracy: Accuracy) -> tuple[Status, str, str]:
    """Return status, finding and reason, given the table and the 90 % interval of its difference."""
    lower, upper = interval
    margin = accuracy.margin
    left_out = f"; {table.excluded} pairs with a cut-off answer are left out" if table.excluded else ""
    if lower > -margin:
        worse = f"no more than {-100 * lower:.2f} points worse than" if lower < 0 else "not worse than"
        real = mcnemar_exact(table.candidate, table.reference) < CHANGED
        small = f"; a small loss is {'real' if real else 'likely'}" if upper < 0 else ""
        better = f"; better by more than {100 * margin:.2f} points cannot be excluded" if upper >= margin else ""
        reason = f"at 95 % confidence the candidate is {worse} the reference{small}{better}{left_out}"
        return Status.PASSED, "CONSISTENT", reason
    if upper < 0:
        reason = f"the whole interval lies below 0, and a loss of {100 * margin:.2f} points or more cannot be excluded{left_out}"
        return Status.FAILED, "REGRESSED", reason
    needed = plan(table, accuracy)
    much = (
        f"a fresh set of {needed['questions-needed']} questions"
        if accuracy.temperature == 0
        else f"{needed['repeats-needed']} repeats on each side"
    )
    reason = (
        f"neither a loss of {100 * margin:.2f} points nor no loss at all can be excluded; "
        f"{much} would decide with 80 % power if there is no true difference{left_out}"
    )
    return Status.INCONCLUSIVE, "INCONCLUSIVE", reason


def plan(table: Table, accuracy: Accuracy) -> JSON:
    """Return how much a run that decides would take, at the discordance seen in `table`: questions at T = 0, repeats above."""
    discordance = (table.candidate + table.reference) / table.n
    if accuracy.temperature == 0:
        return {"discordance": discordance, "questions-needed": questions_needed(discordance, accuracy.margin)}
    return {"discordance": discordance, "repeats-needed": repeats_needed(discordance, accuracy.margin, table.n)}


def pair(candidate: Samples, reference: Samples) -> Table:
    """Count the pairs. Both sides must have the same question ids; a pair that is ungraded on one side is excluded."""
    theirs = {record.question_id: record.correct for record in reference.records}
    outcomes = [(record.correct, theirs[record.question_id]) for record in candidate.records]
    return Table(
        both=outcomes.count((True, True)),
        candidate=outcomes.count((True, False)),
        reference=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
        excluded=sum(None in outcome for outcome in outcomes),
    )


def obstacles(candidate: Samples, reference: Samples, accuracy: Accuracy, names: tuple[str, str]) -> Iterator[str]:
    """Yield every reason why the two evaluations cannot be compared; none if they can.

    They must have asked what `accuracy` says, the same questions, as the same number of prompt tokens (else template or tokenizer
    differ); every request must have been answered; truncated and empty answers must be about as frequent (p ≥ 0.01), and answers
    about as long (90–110 %).
    """
    sides = tuple(zip(names, (candidate, reference), strict=True))
    yield from _differences(candidate, reference, accuracy, names)
    ids = [{record.question_id for record in samples.records} for _, samples in sides]
    if ids[0] != ids[1]:
        yield f"the questions differ: {len(ids[0] ^ ids[1])} were asked on one side only"
    for name, samples in sides:
        if len({record.question_id for record in samples.records}) != len(samples.records):
            yield f"{name} has a question twice"
        failed = sum(record.error is not None for record in samples.records)
        if failed:
            yield f"{failed} requests of {name} failed and were not graded"
        if not all(graded_rightly(record, accuracy.grader) for record in samples.records):
            yield f"the samples of {name} are not graded as {accuracy.grader} grades them"
    yield from _prompt_lengths(candidate, reference)
    if not candidate.records or not reference.records:
        yield "there are no samples"
        return
    for what, count in (("truncated", _truncated), ("empty", _empty)):
        k1, k2, n1, n2 = count(candidate), count(reference), len(candidate.records), len(reference.records)
        p = two_proportions(k1, n1, k2, n2)
        if p < RATE_ALARM:
            yield f"{what} answers differ: {k1} of {n1} vs {k2} of {n2} (p = {p:.2g})"
    yield from _lengths(candidate, reference)
    if ids[0] == ids[1] and pair(candidate, reference).n == 0:
        yield "no pair of answers could be graded on both sides"


def _differences(candidate: Samples, reference: Samples, accuracy: Accuracy, names: tuple[str, str]) -> Iterator[str]:
    """Yield where the fingerprints differ from one another, and from what `accuracy` asks for."""
    one, two = candidate.fingerprint, reference.fingerprint
    differing = [key for key in sorted({*one, *two} - NOT_COMPARED) if key not in one or key not in two or one[key] != two[key]]
    if differing:
        yield "the evaluations differ in " + ", ".join(f"{key} ({one.get(key)!r} vs {two.get(key)!r})" for key in differing)
    for name, samples in zip(names, (candidate, reference), strict=True):
        told = samples.fingerprint
        asked = fingerprint_of(accuracy, len(samples.records), "", told.get("max-model-len"))
        other = [key for key in asked if key not in NOT_COMPARED and told.get(key) != asked[key]]
        if other and not differing:
            yield f"{name} was not evaluated as the plan says: {', '.join(other)}"


def _prompt_lengths(candidate: Samples, reference: Samples) -> Iterator[str]:
    theirs = {record.question_id: record.prompt_tokens for record in reference.records}
    pairs = [(record.prompt_tokens, theirs.get(record.question_id)) for record in candidate.records]
    different = sum(None not in lengths and lengths[0] != lengths[1] for lengths in pairs)
    if different:
        yield f"{different} prompts have another number of tokens: chat template or tokenizer differ"


def _lengths(candidate: Samples, reference: Samples) -> Iterator[str]:
    one, two = candidate.summary.completion_tokens_mean, reference.summary.completion_tokens_mean
    if one is None or two is None:
        yield "the server does not say how many tokens its answers have"
    elif not LENGTH_BAND[0] * two <= one <= LENGTH_BAND[1] * two:
        share = f"{100 * one / two:.0f} % of the reference's" if two else "and the reference's have none"
        yield f"answers have {one:.1f} tokens on average, {share}"


def _truncated(samples: Samples) -> int:
    return sum(record.truncated for record in samples.records)


def _empty(samples: Samples) -> int:
    return sum(record.empty for record in samples.records)


def _side(samples: Samples) -> dict[str, Any]:
    """Return the totals of one side for `figures`, with the 95 % Wilson interval of its share of right answers."""
    summary = samples.summary
    graded = summary.correct + summary.wrong
    return {
        "correct": summary.correct,
        "wrong": summary.wrong,
        "failed": summary.failed,
        "truncated": summary.truncated,
        "empty": summary.empty,
        "n": summary.n,
        "share": summary.correct / graded if graded else None,
        "share-interval-95": list(wilson_interval(summary.correct, graded, 0.95)) if graded else None,
        "completion-tokens-mean": summary.completion_tokens_mean,
    }


def _points(share: float) -> str:
    """Write a share as points with a sign; −0.00 is +0.00."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"
