"""The verdict of accuracy: a candidate's samples against a reference's, question by question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from release.types import JSON, Accuracy, Verdict
from release.validators.accuracy import fingerprint_of, graded_rightly
from release.validators.answers import Answer, Side, judge
from release.validators.answers import obstacles as common_obstacles
from release.validators.fingerprint import MAY_DIFFER, differences, digest_of
from release.validators.judgement import STATUSES, Basis, Finding, wanted
from release.validators.samples import Samples
from release.validators.statistics import mcnemar_exact, questions_needed, repeats_needed, wilson_interval
from release.validators.verdicts import Plan

NAME: Final = "accuracy"


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

    The rule is that of `verdicts`: with [L, U] the 90 % interval of Tango (1998) for the paired difference candidate − reference, and m
    the margin, CONSISTENT (PASSED) iff L > −m; REGRESSED (FAILED) iff L ≤ −m and U < 0, not by chance; otherwise INCONCLUSIVE, with the
    number of questions (at temperature 0) or of repeats it would take. UNVERIFIABLE (status INCONCLUSIVE) if the two evaluations cannot
    be compared at all: `obstacles`. `figures.finding` is that word; in `figures`, differences and intervals are shares (0.02 = 2 points).
    """
    figures: JSON = {
        "candidate": {"name": names[0], "fingerprint": digest_of(candidate.fingerprint), **_side(candidate)},
        "reference": {"name": names[1], "fingerprint": digest_of(reference.fingerprint), **_side(reference)},
        "margin": accuracy.margin,
    }
    hindrances = list(obstacles(candidate, reference, accuracy, names))
    if hindrances:
        figures |= {"finding": str(Finding.UNVERIFIABLE), "obstacles": hindrances}
        return Verdict(
            name=NAME,
            status=STATUSES[Finding.UNVERIFIABLE],
            measured=f"no comparison of {len(candidate.records)} and {len(reference.records)} samples",
            wanted=wanted(accuracy.margin),
            reason=f"UNVERIFIABLE: {'; '.join(hindrances)}",
            figures=figures,
        )
    plan = Plan(accuracy.margin, temperature=accuracy.temperature)
    judged = judge(side_of(candidate, names[0]), side_of(reference, names[1]), plan)
    figures |= judged.json()
    if judged.basis is Basis.REPEATED:
        return judged.verdict(NAME).model_copy(update={"figures": figures})
    table = pair(candidate, reference)
    figures |= {
        "table": {
            "both": table.both,
            "candidate-only": table.candidate,
            "reference-only": table.reference,
            "neither": table.neither,
        },
        "excluded": table.excluded,
        "interval-90": judged.interval and list(judged.interval),
        "mcnemar-p": mcnemar_exact(table.candidate, table.reference),
        **needs(table, accuracy),
    }
    return judged.verdict(NAME).model_copy(update={"figures": figures})


def needs(table: Table, accuracy: Accuracy) -> JSON:
    """Return how much a run that decides would take, at the discordance seen in `table`: questions at T = 0, repeats above."""
    discordance = (table.candidate + table.reference) / table.n
    if accuracy.temperature == 0:
        return {"discordance": discordance, "questions-needed": questions_needed(discordance, accuracy.margin)}
    return {"discordance": discordance, "repeats-needed": repeats_needed(discordance, accuracy.margin, table.n)}


def side_of(samples: Samples, name: str) -> Side:
    """Return the samples of one side as answers that the rules judge."""
    answers = (
        Answer(
            question=record.question_id,
            score=None if record.correct is None else float(record.correct),
            repeat=record.repeat,
            failed=record.failed,
            truncated=record.truncated,
            empty=record.empty,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cluster=record.cluster,
        )
        for record in samples.records
    )
    return Side.of(name, answers, samples.fingerprint)


def pair(candidate: Samples, reference: Samples) -> Table:
    """Count the pairs of single answers. Both sides must have the same questions; a pair that is ungraded on one side is excluded."""
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

    Those of `answers.obstacles`, and: each side must have asked what `accuracy` says, and be graded as its grader grades.
    """
    yield from common_obstacles(side_of(candidate, names[0]), side_of(reference, names[1]))
    if not differences(candidate.fingerprint, reference.fingerprint):
        yield from _unplanned(candidate, reference, accuracy, names)
    for name, samples in zip(names, (candidate, reference), strict=True):
        if not all(graded_rightly(record, accuracy.grader) for record in samples.records):
            yield f"the samples of {name} are not graded as {accuracy.grader} grades them"


def _unplanned(candidate: Samples, reference: Samples, accuracy: Accuracy, names: tuple[str, str]) -> Iterator[str]:
    """Yield where the fingerprints differ from what `accuracy` asks for. The reference may have been asked more often than planned."""
    for name, samples in zip(names, (candidate, reference), strict=True):
        told = samples.fingerprint
        asked = fingerprint_of(accuracy, len({record.question_id for record in samples.records}), "", told.get("max-model-len"))
        fixed = MAY_DIFFER - {"repeats"} if samples is candidate and "repeats" in told else MAY_DIFFER
        if other := [key for key in asked if key not in fixed and told.get(key) != asked[key]]:
            yield f"{name} was not evaluated as the plan says: {', '.join(other)}"


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
